"""The promise of the grid: whatever is small enough lies whole in some tile, wherever the seams are."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat.errors import OptionError
from surveycat.tiles import Tile, TileGrid, is_cut, margin, parent_index, sub_windows

SHAPES = [(1, 1), (255, 257), (256, 256), (256, 100_000), (100_000, 256), (300, 1000), (2048, 1489)]


@st.composite
def grids(draw, largest=3000):
    size = draw(st.integers(32, 320))
    overlap = draw(st.integers(16, size - 1))
    shift = tuple(draw(st.integers(0, size - overlap - 1)) for _ in range(2))
    shape = tuple(draw(st.integers(1, largest)) for _ in range(2))
    # A small step on a large image is a long list of tiles that shows nothing new.
    shape = tuple(min(n, 40 * (size - overlap)) for n in shape)
    return TileGrid(shape, size, overlap, shift)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_is_covered_and_no_tile_is_wasted(shape):
    """Protects the coverage of awkward shapes: no strip without tiles, none outside, none twice."""
    grid = TileGrid(shape)
    tiles = list(grid.tiles())
    assert [t.index for t in tiles] == list(range(len(grid)))
    assert len({(t.level, t.y0, t.x0) for t in tiles}) == len(tiles)
    for level in range(grid.n_levels):
        for axis, n in enumerate(grid.level_shape(level)):
            origins = grid.origins(level)[axis]
            assert origins[0] == 0
            assert origins[-1] == max(0, n - 256)
            assert np.all(np.diff(origins) <= 192) and np.all(np.diff(origins) > 0)


def test_known_grid():
    """Protects the numbers of the README's field: 1000 px are five tiles across, three levels high."""
    grid = TileGrid((1000, 1000))
    assert grid.n_levels == 3
    assert grid.origins(0)[0].tolist() == [0, 192, 384, 576, 744]
    assert [grid.level_shape(k) for k in range(3)] == [(1000, 1000), (500, 500), (250, 250)]
    assert len(grid) == 25 + 9 + 1
    assert grid.reach == 56
    assert grid.tile(34) == Tile(34, 2, 0, 0, 256)
    assert TileGrid((257, 100)).level_shape(1) == (129, 50)


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_objects_within_reach_are_whole_somewhere(grid, data):
    """Protects the guarantee on which stitching rests: side <= reach is whole in a tile of any level."""
    level = data.draw(st.integers(0, grid.n_levels - 1))
    shape = np.array(grid.level_shape(level))
    unit = st.floats(0, 1)
    side = grid.reach * np.array([data.draw(unit), data.draw(unit)])
    side = np.minimum(side, shape)
    low = (shape - side) * np.array([data.draw(unit), data.draw(unit)])
    box = np.concatenate([low, low + side])[None]
    assert grid.n_tiles(box, [level])[0] >= 1


def test_the_promise_is_tight():
    """Protects `reach` from being understated: one pixel more, and some place has no whole tile."""
    for size, overlap in [(256, 64), (256, 128), (128, 32), (200, 16)]:
        grid = TileGrid((2000, 2000), size, overlap)
        y0 = np.arange(0, 1900, 0.5)
        for side, least in [(grid.reach, 1), (grid.reach + 1, 0)]:
            box = np.stack([y0, y0, y0 + side, y0 + side], axis=1)
            assert grid.n_tiles(box, np.zeros(len(box), int)).min() == least


@settings(max_examples=60, deadline=None)
@given(grids(1200), st.data())
def test_n_tiles_agrees_with_rule_one(grid, data):
    """Protects `n_tiles`: the closed form counts exactly the tiles in which `is_cut` finds nothing wrong."""
    level = data.draw(st.integers(0, grid.n_levels - 1))
    shape = np.array(grid.level_shape(level))
    corners = [data.draw(st.integers(0, 2 * n)) / 2 for n in (*shape, *shape)]
    low, high = np.minimum(corners[:2], corners[2:]), np.maximum(corners[:2], corners[2:])
    box = np.concatenate([low, high])
    tiles = np.array([t.box for t in grid.tiles() if t.level == level])
    # A tile that does not hold the box at all cuts it, by the sign of the distance.
    expected = np.count_nonzero(~is_cut(np.tile(box, (len(tiles), 1)), tiles, shape))
    assert grid.n_tiles(box[None], [level])[0] == expected


@settings(max_examples=60, deadline=None)
@given(grids())
def test_each_size_has_one_home_where_it_fits(grid):
    """Protects the ladder: homes rise with size, and at home the side is within reach, and not far below."""
    side = np.geomspace(1, 4000, 300)
    home = grid.home_level(side)
    top = grid.n_levels - 1
    assert np.all(np.diff(home) >= 0)
    own = side / 2.0**home
    assert np.all(own[home < top] <= grid.reach)
    assert np.all(own[home > 0] > grid.reach / 2)


def test_home_levels_at_their_borders():
    """Protects the borders of the bands: 56 px is at home on level 0, 57 px on level 1."""
    grid = TileGrid((5000, 5000))
    assert grid.home_level([1, 56, 56.5, 112, 113, 1792, 1793, 9999]).tolist() == [0, 0, 1, 1, 2, 5, 5, 5]
    assert grid.look_level([56, 192, 193, 384, 385]).tolist() == [0, 0, 1, 1, 2]
    assert TileGrid((100, 100)).home_level([5, 90]).tolist() == [0, 0]
    assert TileGrid((100, 100)).endless_home_level([5, 90, 225]).tolist() == [0, 1, 3]


@settings(max_examples=40, deadline=None)
@given(grids())
def test_boxes_and_tiles_agree(grid):
    """Protects the arithmetic that turns an index into a place."""
    tiles = list(grid.tiles())
    index = np.array([t.index for t in tiles])
    assert np.array_equal(grid.boxes(index), [t.box for t in tiles])
    assert np.array_equal(grid.level_of(index), [t.level for t in tiles])
    assert [grid.tile(i) for i in index[:: max(1, len(index) // 20)]] == tiles[:: max(1, len(index) // 20)]
    with pytest.raises(IndexError, match="of a grid with"):
        grid.tile(len(grid))


def test_cut_needs_room_except_at_the_image_edge():
    """Protects rule 1: 4 px or a fourteenth of the larger side, and never for an edge of the image."""
    tile = np.array([192, 0, 448, 256])
    shape = (448, 1000)
    boxes = np.array(
        [
            [196, 0, 210, 10],  # 4 px from the upper edge; the left one is the image's
            [195.5, 0, 210, 10],
            [300, 100, 448, 110],  # ends with the image
            [300, 200, 310, 252],
            [300, 200, 310, 253],
            [206, 20, 300, 238],  # 218 px wide: needs 15.6 px
            [210, 20, 300, 238],
            [180, 20, 230, 40],  # the box before clipping lies partly outside
        ]
    )
    assert is_cut(boxes, tile, shape).tolist() == [False, True, False, False, True, True, False, True]
    assert margin([10, 56, 112]).tolist() == [4, 4, 8]
    assert is_cut(np.empty((0, 4)), tile, shape).shape == (0,)


def test_second_looks_stay_inside_the_image():
    """Protects second looks: centred where there is room, real pixels rather than padding elsewhere."""
    grid = TileGrid((1000, 300))
    assert grid.centred_tile(99, 0, 500.0, 150.0).box == (372, 22, 628, 278)
    assert grid.centred_tile(99, 0, 10.0, 290.0).box == (0, 44, 256, 300)
    assert grid.centred_tile(99, 1, 250.0, 75.0).box == (122, 0, 378, 256)


def test_sub_windows():
    """Protects rule 7: four 160-px windows, 64 px of overlap, traceable to their tile, even for tile 0."""
    tile = Tile(7, 1, 192, -10, 256)
    windows = sub_windows(tile)
    assert [w.box for w in windows] == [
        (192, -10, 352, 150),
        (192, 86, 352, 246),
        (288, -10, 448, 150),
        (288, 86, 448, 246),
    ]
    assert {w.level for w in windows} == {1}
    parents = [0, 1, 7, 10**6]
    indices = [w.index for p in parents for w in sub_windows(Tile(p, 0, 0, 0, 256))]
    assert len(set(indices)) == 16 and max(indices) < 0
    assert parent_index(indices).tolist() == np.repeat(parents, 4).tolist()
    assert parent_index(7) == 7
    assert windows[0].padded(256).box == (144, -58, 400, 198)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(shape=(100, 100), size=256, overlap=256), "tile overlap 256 px"),
        (dict(shape=(100, 100), size=256, overlap=15), "from 16 to 255"),
        (dict(shape=(100, 100), size=256, overlap=64.0), "tile overlap 64.0 px"),
        (dict(shape=(100, 100), size=31), "tile size 31 px"),
        (dict(shape=(100, 100), size=True), "tile size True px"),
        (dict(shape=(0, 100)), r"image shape \(0, 100\)"),
        (dict(shape=(100, 100, 3)), r"image shape \(100, 100, 3\)"),
        (dict(shape=(100, 100), shift=(0, 192)), "less than the step between tiles, 192 px"),
        (dict(shape=(100, 100), shift=(-1, 0)), r"grid shift \(-1, 0\)"),
    ],
)
def test_options_out_of_range(options, message):
    """Protects the user from a grid with holes: each bad value is refused by name."""
    with pytest.raises(OptionError, match=message):
        TileGrid(**options)


def test_grids_compare_and_travel():
    """Protects resuming and workers: equal options are equal grids, also after pickling."""
    grid = TileGrid((500, 700), shift=(3, 4))
    again = pickle.loads(pickle.dumps(grid))
    assert again == grid and len(again) == len(grid)
    assert grid != TileGrid((500, 700))
    assert TileGrid(np.array([500, 700]), shift=(3, 4)) == grid
