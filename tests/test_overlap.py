"""What masks have in common, counted word by word, against counting the pixels of whole frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_detector import reduce_mask

from surveycat import overlap
from surveycat.detections import Detections
from surveycat.overlap import Bitmaps, overlaps

FRAME = 256


def random_masks(rng, n, n_levels=4):
    """Detections of noise, sparse and dense, on several levels, some of them at odd places left of the image."""
    level = rng.integers(0, n_levels, n)
    shapes = rng.integers(1, 100, (n, 2)) >> (level[:, None] // 2)
    masks = [rng.random(np.maximum(shape, 1)) < rng.choice([0.05, 0.5, 0.95]) for shape in shapes]
    origins = rng.integers(-20, 110, (n, 2)) >> level[:, None]
    found = Detections.from_masks(rng.integers(0, 4, n), level, np.zeros((n, 4)), 0.5, 0.5, masks, origins)
    return found.select(found.area > 0)


def frame(found, i, level):
    """The mask of a detection on a coarser level, in a whole frame; a mask never vanishes."""
    step = 2 ** (level - int(found.level[i]))
    covered = np.zeros((FRAME, FRAME), dtype=int)
    y, x = np.argwhere(found.mask(i)).T + found.mask_origin[i][:, None]
    np.add.at(covered, (y // step + 32, x // step + 32), 1)
    return covered >= min(covered.max(), -(-(step**2) // 2))


def compare(found, i, j):
    """What `overlaps` should say of a pair: shared pixels, both areas, whether the centroids lie in each other."""
    level = max(found.level[i], found.level[j])
    one, two = frame(found, i, level), frame(found, j, level)
    middles = [tuple(np.rint(np.argwhere(m).mean(axis=0)).astype(int)) for m in (one, two)]
    return np.sum(one & two), np.sum(one), np.sum(two), bool(one[middles[1]] and two[middles[0]])


def everything(i, j, room):
    """Every pair is wanted."""
    return np.ones(len(i), dtype=bool)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 14),
    st.sampled_from([(1 << 16, 1 << 13, 1 << 20), (7, 5, 300), (1, 1, 1)]),
)
def test_all_pairs_as_counted_in_whole_frames(seed, n, portions):
    """Protects the comparison of masks: every pair that touches once, whatever the size of the portions."""
    found = random_masks(np.random.default_rng(seed), n)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("_BAND", "_QUERY", "_WORDS"), portions, strict=True):
            patch.setattr(overlap, name, value)
        given_pairs = {}
        for part in overlaps(found, everything):
            columns = (part.shared, part.area_i, part.area_j, part.centred, part.iou)
            for i, j, *rest in zip(part.i.tolist(), part.j.tolist(), *(c.tolist() for c in columns), strict=True):
                key, swap = (min(i, j), max(i, j)), i > j
                assert i != j and key not in given_pairs
                shared, area_i, area_j, centred, iou = rest
                given_pairs[key] = (shared, *((area_j, area_i) if swap else (area_i, area_j)), centred)
                assert iou == pytest.approx(shared / (area_i + area_j - shared))
    for i in range(len(found)):
        for j in range(i + 1, len(found)):
            expected = compare(found, i, j)
            if (i, j) in given_pairs:
                assert given_pairs[i, j] == expected
            else:
                assert expected[0] == 0 and not expected[3]


def test_room_is_no_less_than_what_is_shared():
    """Protects the shortcut by boxes: a pair that shares enough is never ruled out before its pixels are counted."""
    found = random_masks(np.random.default_rng(3), 40)
    rooms = {}

    def note(i, j, room):
        rooms.update(zip(zip(i.tolist(), j.tolist(), strict=True), room.tolist(), strict=True))
        return everything(i, j, room)

    pairs = list(overlaps(found, note))
    n = 0
    for part in pairs:
        for i, j, shared in zip(part.i.tolist(), part.j.tolist(), part.shared.tolist(), strict=True):
            assert shared <= rooms[i, j]
            n += 1
    assert n > 100


def test_only_wanted_pairs_are_compared():
    """Protects the time that stitching takes: what the caller rules out costs nothing more."""
    found = random_masks(np.random.default_rng(4), 30)
    same_tile = [
        (i, j)
        for part in overlaps(found, lambda i, j, room: found.tile[i] == found.tile[j])
        for i, j in zip(part.i.tolist(), part.j.tolist(), strict=True)
    ]
    assert same_tile and all(found.tile[i] == found.tile[j] for i, j in same_tile)
    assert list(overlaps(Detections.empty(), everything)) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cells", [(32, 2048), (4, 2048), (1, 7)])
def test_leaving_out_pairs_of_others_loses_none(seed, cells, monkeypatch):
    """Protects the shortcut for few second looks among many objects: the same pairs are compared, each once."""
    monkeypatch.setattr(overlap, "_CELL", cells[0])
    monkeypatch.setattr(overlap, "_CELLS", cells[1])
    monkeypatch.setattr(overlap, "_BAND", 25)
    rng = np.random.default_rng(seed)
    found = random_masks(rng, 60)
    some = rng.random(len(found)) < rng.choice([0.1, 0.5])

    def pairs(wanted, *limits):
        parts = overlaps(found, wanted, *limits)
        return sorted(sorted(pair) for part in parts for pair in zip(part.i.tolist(), part.j.tolist(), strict=True))

    assert pairs(everything, some) == pairs(lambda i, j, room: some[i] | some[j])
    assert pairs(everything, some, True) == pairs(lambda i, j, room: some[i] != some[j])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_coarser_bitmaps_are_reduced_masks(seed, down):
    """Protects comparisons over many levels: half a coarse pixel counts, and no mask vanishes."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 150, 2)) < rng.choice([0.02, 0.5, 1.0])
    mask[tuple(rng.integers(0, mask.shape))] = True
    origin = rng.integers(-100, 5000, (1, 2))
    found = Detections.from_masks(0, 0, np.zeros((1, 4)), 0.5, 0.5, [mask], origin)
    stream = overlap._BitStream(found.bits)
    maps = Bitmaps.of(found, stream, np.array([0]), down)
    reduced, low = reduce_mask(mask, origin[0], down)
    if reduced.any():
        assert maps.area[0] == reduced.sum()
        middle = np.argwhere(reduced).mean(axis=0) + low
        assert np.abs(maps.centroid[0] - middle).max() <= 0.5 + 1e-9
    else:
        assert 1 <= maps.area[0] <= reduced.size


def test_one_detection_far_from_the_origin():
    """Protects large mosaics: places beyond 2^20 pixels, and words at any bit of the stream."""
    mask = np.ones((3, 130), dtype=bool)
    origins = np.array([[2**21 + 1, 2**22 + 61], [2**21 + 2, 2**22 + 100], [0, 0]])
    found = Detections.from_masks(0, 0, np.zeros((3, 4)), 0.5, 0.5, [mask] * 3, origins)
    (part,) = overlaps(found, everything)
    assert (part.i.tolist(), part.j.tolist(), part.shared.tolist()) == ([0], [1], [2 * 91])
