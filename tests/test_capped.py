"""Rule 7 from pixels to rows: a tile that hits a cap is run again in windows, and what stays capped is flagged."""

import numpy as np
from detectors import BlobDetector
from hypothesis import given, settings
from hypothesis import strategies as st

import surveycat
from surveycat.stitch import CAPPED
from surveycat.tiles import Tile, TileGrid, is_cut, margin, sub_windows

SHAPE = (600, 760)
SPACING, RADIUS = 20, 4
# 144 galaxies in the first tile of the grid and few anywhere else; too small to be seen on the coarser levels.
CROWD = [(y, x) for y in range(12, 250, SPACING) for x in range(12, 250, SPACING)]
OTHERS = [(60, 500), (400, 100), (500, 640)]
MIN_AREA = 30


def picture(places, large=()):
    """Discs on a dark image; large ones are given as y, x, radius."""
    image = np.full((*SHAPE, 3), 4, np.uint8)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for v, u, radius in [(v, u, RADIUS) for v, u in places] + list(large):
        image[np.hypot(y - v, x - u) <= radius] = (200, 180, 120)
    return image


def rows_of(image, most):
    """Places of the rows that a detector with this cap gives, sorted, and which of them are flagged."""
    table = surveycat.run(image, detector=BlobDetector(min_area=MIN_AREA, most=most))
    places = np.stack([np.asarray(table["y"]), np.asarray(table["x"])], axis=1)
    order = np.lexsort(np.rint(places.T))
    return places[order], (np.asarray(table["flags"])[order] & CAPPED) > 0


def test_windows_bring_back_what_the_cap_dropped():
    """Protects crowds: rows as without any cap, each once, and no flag, since no window hit the cap."""
    image = picture(CROWD + OTHERS)
    expected, _ = rows_of(image, most=1000)
    assert len(expected) == len(CROWD) + len(OTHERS)
    places, flagged = rows_of(image, most=125)
    assert np.allclose(places, expected, atol=1e-3)
    assert not flagged.any()


def test_cap_that_the_windows_hit_too_is_flagged():
    """Protects against a silent cap: every row that only the capped tile can show says so, and no far row does."""
    places, flagged = rows_of(picture(CROWD + OTHERS), most=60)
    in_tile = (places < TileGrid(SHAPE).step).all(axis=1)
    assert 0 < in_tile.sum() < sum(y < 192 and x < 192 for y, x in CROWD), "the cap has dropped nothing"
    assert flagged[in_tile].all()
    assert not flagged[(places > 300).any(axis=1)].any()


def test_cap_in_a_second_look_is_flagged():
    """Protects rule 7 where no tile of the grid hits the cap but the look centred on a large galaxy does."""
    large = (224, 224, 60)
    # Around the large galaxy, so that several tiles of the grid share them and the look has them all.
    ring = [
        (int(224 + r * np.sin(t)), int(224 + r * np.cos(t)))
        for r, n in ((82, 24), (104, 28))
        for t in np.linspace(0, 2 * np.pi, n, endpoint=False)
    ]
    image = picture(ring, [large])
    grid = TileGrid(SHAPE)
    inside = [
        sum(((np.array(p) - RADIUS < tile.box[2:]) & (np.array(p) + RADIUS >= tile.box[:2])).all() for p in ring) + 1
        for tile in grid.tiles()
        if tile.level == 0
    ]
    most = max(inside)
    assert most < len(ring) + 1, "a tile of the grid has them all"
    places, flagged = rows_of(image, most=1000)
    assert not flagged.any() and len(places) == len(ring) + 1
    capped_places, flagged = rows_of(image, most=most)
    at_large = np.hypot(*(capped_places - large[:2]).T) < 3
    assert at_large.sum() == 1 and flagged[at_large].all()
    # The grid had shown all the small ones: the cap cost nothing, and is said all the same.
    assert np.allclose(capped_places, places, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(96, 320), st.data())
def test_what_is_whole_in_a_tile_is_whole_in_a_window(size, data):
    """Protects the windows: what is within reach of tiles with a quarter of overlap is whole in one of the four."""
    tile = Tile(3, 0, 1000, 2000, size)
    windows = sub_windows(tile)
    overlap = 2 * windows[0].size - size
    reach = TileGrid((4000, 4000), size, overlap).reach
    # In steps that floats hold exactly: at the border of being cut a rounding error would decide.
    share = st.integers(0, 64).map(lambda n: n / 64)
    side = reach * data.draw(share)
    room = np.ceil(margin(side))
    low = [edge + room + data.draw(share) * (size - 2 * room - side) for edge in (tile.y0, tile.x0)]
    box = np.array([[*low, low[0] + side, low[1] + side]])
    assert not is_cut(box, tile.box, (4000, 4000))[0]
    assert any(not is_cut(box, window.box, (4000, 4000))[0] for window in windows)


def test_windows_cover_their_tile():
    """Protects the numbers of the rule: 160 px, overlapping by 64, together the tile."""
    windows = sub_windows(Tile(0, 0, 0, 0, 256))
    assert {w.size for w in windows} == {160}
    covered = np.zeros((256, 256), int)
    for w in windows:
        covered[w.y0 : w.y0 + w.size, w.x0 : w.x0 + w.size] += 1
    assert covered.min() == 1 and (covered.max(axis=0) >= 2).sum() == 256 and (covered == 4).sum() == 64**2
