"""Columns of equal length: every operation must keep rows and their masks together."""

import pickle
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import surveycat.detections as module
from surveycat.detections import Detections, flag_cut, pack
from surveycat.errors import OutputError
from surveycat.tiles import Tile, TileGrid

COLUMNS = [field.name for field in fields(Detections)]


def random_detections(rng, n=None, capped=()):
    n = int(rng.integers(0, 12)) if n is None else n
    masks = [rng.random(rng.integers(1, 20, size=2)) < rng.choice([0.0, 0.1, 0.9]) for _ in range(n)]
    return Detections.from_masks(
        tile=rng.integers(0, 5, n),
        level=rng.integers(0, 3, n),
        box=rng.random((n, 4)) * 100,
        score=rng.random(n),
        p_spiral=rng.random(n),
        masks=masks,
        mask_origin=rng.integers(-5, 200, (n, 2)),
        cut=rng.random(n) < 0.5,
        capped=capped,
    )


def full_masks(found, shape=(300, 300)):
    """Every mask painted on a canvas of its own, the slow and obvious way."""
    canvas = np.zeros((len(found), *shape), dtype=bool)
    for i in range(len(found)):
        y0, x0 = found.mask_origin[i] + 10
        mask = found.mask(i)
        canvas[i, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    return canvas


def assert_same(a, b):
    for name in COLUMNS:
        first, second = getattr(a, name), getattr(b, name)
        assert first.dtype == second.dtype, name
        assert np.array_equal(first, second), name


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_masks_come_back_as_they_went_in(rng):
    """Protects the packing: pixels stay where they were, and the crop is as small as it can be."""
    n = int(rng.integers(0, 8))
    masks = [rng.random(rng.integers(1, 25, size=2)) < 0.2 for _ in range(n)]
    origin = rng.integers(0, 200, (n, 2))
    found = Detections.from_masks(0, 0, np.zeros((n, 4)), 0.5, 0.5, masks, origin)
    expected = np.zeros((n, 300, 300), dtype=bool)
    for canvas, mask, (y0, x0) in zip(expected, masks, origin + 10, strict=True):
        canvas[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    assert np.array_equal(full_masks(found), expected)
    assert found.area.tolist() == [int(mask.sum()) for mask in masks]
    for i in range(n):
        crop = found.mask(i)
        assert crop.shape == (0, 0) or (crop[[0, -1]].any(axis=1).all() and crop[:, [0, -1]].any(axis=0).all())


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_pixels_and_pack_are_inverse(rng):
    """Protects the array route from masks to coordinates and back, with repeats and any order asked for."""
    found = random_detections(rng, 8)
    index = rng.integers(0, 8, 5)
    which, y, x = found.pixels(index)
    canvas = np.zeros((5, 300, 300), dtype=bool)
    canvas[which, y + 10, x + 10] = True
    assert np.array_equal(canvas, full_masks(found.select(index)))
    packed = pack(which, y, x, 5)
    expected = found.select(index)
    assert np.array_equal(packed["bits"], expected.bits)
    assert np.array_equal(packed["mask_shape"], expected.mask_shape)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_concatenate_and_select_are_inverse(rng):
    """Protects rows from being mixed: parts joined and taken apart again are the same parts."""
    parts = [random_detections(rng) for _ in range(int(rng.integers(0, 4)))]
    joined = Detections.concatenate(parts)
    assert len(joined) == sum(map(len, parts))
    start = 0
    for part in parts:
        assert_same(joined.select(slice(start, start + len(part))), part)
        start += len(part)
    keep = rng.random(len(joined)) < 0.5
    assert_same(joined.select(keep), joined.select(np.flatnonzero(keep)))


def test_work_in_blocks_changes_nothing(monkeypatch):
    """Protects the bounded-memory route: the size of the blocks is not visible in the result."""
    found = random_detections(np.random.default_rng(1), 200)
    index = np.random.default_rng(2).integers(0, 200, 300)
    expected, area = found.select(index), found.area
    monkeypatch.setattr(module, "_BLOCK", 16)
    assert_same(found.select(index), expected)
    assert np.array_equal(found.area, area)


def test_empty_has_all_columns():
    """Protects the case of no galaxy: every operation works, no column is missing."""
    empty = Detections.empty()
    assert len(empty) == 0 and empty.area.shape == (0,) and empty.mask_box.shape == (0, 4)
    assert empty.side.shape == (0,)
    assert_same(empty, Detections.from_masks([], [], np.empty((0, 4)), [], [], [], np.empty((0, 2))))
    assert_same(empty, Detections.concatenate([empty, empty]))
    assert_same(empty, empty.select([]))
    assert_same(empty, empty.shift(3, 4, 5, 6))
    assert_same(empty, empty.place([Tile(3, 0, 0, 0, 256)], TileGrid((300, 300))))
    assert all(len(values) == 0 for values in empty.pixels())
    assert Detections.concatenate([]).box.shape == (0, 4)


def test_capped_tiles_are_never_lost():
    """Protects rule 7: which tiles hit a cap survives joining, selecting and placing."""
    rng = np.random.default_rng(0)
    one, two = random_detections(rng, 3, capped=[4, 2]), random_detections(rng, 0, capped=[9, 2])
    joined = Detections.concatenate([one, two])
    assert joined.capped.tolist() == [2, 4, 9]
    assert joined.select([]).capped.tolist() == [2, 4, 9]
    batch = Detections.empty(capped=[1])
    tiles = [Tile(30, 0, 0, 0, 256), Tile(31, 0, 0, 192, 256)]
    assert batch.place(tiles, TileGrid((600, 600))).capped.tolist() == [31]


def test_place_moves_a_batch_into_the_image():
    """Protects coordinates: box, mask, level, cut and distance follow the tile of each detection."""
    grid = TileGrid((600, 800))
    tiles = [Tile(5, 0, 192, 384, 256), Tile(17, 1, 44, 144, 256)]
    mask = np.ones((10, 20), dtype=bool)
    answer = Detections.from_masks(
        [1, 0, 0], 0, [[100, 118, 110, 138], [3, 100, 13, 120], [0, 0, 256, 256]], 0.9, 0.2,
        [mask, mask, mask], [[100, 118], [3, 100], [100, 100]],
    )  # fmt: skip
    found = answer.place(tiles, grid)
    assert found.tile.tolist() == [17, 5, 5]
    assert found.level.tolist() == [1, 0, 0]
    assert found.box[0].tolist() == [144, 262, 154, 282]
    assert found.mask_origin.tolist() == [[144, 262], [195, 484], [292, 484]]
    assert found.cut.tolist() == [False, True, True]
    assert found.centre_distance[0] == pytest.approx(23.0)
    assert found.centre_distance[2] == 0
    assert found.area.tolist() == [200, 200, 200]


def test_mask_outside_its_box_can_be_cut():
    """Protects rule 1: the mask counts as well as the box."""
    grid = TileGrid((1000, 1000))
    mask = np.ones((100, 10), dtype=bool)
    found = Detections.from_masks(0, 0, [[300, 300, 350, 310]], 1, 1, [mask], [[300, 300]])
    tile = Tile(7, 0, 192, 192, 256)
    assert not flag_cut(found, [tile], grid).cut[0]
    reaches = found.replace(mask_origin=np.array([[345, 300]]))
    assert flag_cut(reaches, [tile], grid).cut[0]


def test_rows_that_do_not_fit_are_refused():
    """Protects against columns of different lengths, the start of every mixed-up catalogue."""
    found = random_detections(np.random.default_rng(0), 4)
    with pytest.raises(ValueError, match=r"column score has shape \(3,\), expected \(4,\)"):
        found.replace(score=np.zeros(3))


def test_save_and_load(tmp_path):
    """Protects the resume folder: what comes back is what went in, and nothing else is left there."""
    found = random_detections(np.random.default_rng(0), 9, capped=[3])
    found.save(tmp_path / "part.npz")
    found.save(tmp_path / "part.npz")
    assert_same(Detections.load(tmp_path / "part.npz"), found)
    Detections.empty().save(tmp_path / "empty.npz")
    assert_same(Detections.load(tmp_path / "empty.npz"), Detections.empty())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.npz", "part.npz"]


def test_damaged_files_are_noticed(tmp_path):
    """Protects resuming from half-written or rotten parts: any cut and any changed mask byte is an error."""
    path = tmp_path / "part.npz"
    found = random_detections(np.random.default_rng(0), 30)
    found.save(path)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(OutputError, match=r"part\.npz cannot be read .*run again"):
            Detections.load(path)
    at = whole.index(found.bits.tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(OutputError, match="cannot be read"):
        Detections.load(path)
    with pytest.raises(OutputError, match="absent"):
        Detections.load(tmp_path / "absent.npz")


def test_unwritable_place_is_one_line(tmp_path):
    """Protects the user: a missing folder is named, and no temporary file stays behind."""
    with pytest.raises(OutputError, match="cannot write .*nowhere"):
        Detections.empty().save(tmp_path / "nowhere" / "part.npz")
    assert list(tmp_path.iterdir()) == []


def test_other_layouts_are_refused(tmp_path, monkeypatch):
    """Protects against reading a file of another version as if it were ours."""
    monkeypatch.setattr(module, "FILE_VERSION", 99)
    Detections.empty().save(tmp_path / "part.npz")
    monkeypatch.undo()
    with pytest.raises(OutputError, match="layout 99, not 1"):
        Detections.load(tmp_path / "part.npz")


def test_pickles_small():
    """Protects the scheduler: a detection costs its crop and about 80 bytes, also when cut out of many."""
    rng = np.random.default_rng(0)
    many = Detections.concatenate([random_detections(rng, 50) for _ in range(20)])
    few = many.select(slice(10, 30))
    size = len(pickle.dumps(few, protocol=5))
    assert size < 20 * 80 + few.bits.nbytes + 2000
    assert_same(pickle.loads(pickle.dumps(few)), few)
