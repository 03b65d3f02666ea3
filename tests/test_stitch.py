"""One row per galaxy, wherever the seams are: the seam rule against detectors that know the truth."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_detector import MaskDetector, catalogue, look_at, reduce_mask
from masks import crowd, ellipse

from surveycat.detections import Detections
from surveycat.stitch import BLENDED, CAPPED, EDGE_TRUNCATED, SINGLE_LOOK, confirm, second_looks, stitch
from surveycat.tiles import TileGrid


def detector_of(*galaxies, scores=None):
    """`MaskDetector` of ellipses given as ``centre row, centre column, side[, ratio[, angle]]``."""
    masks = [ellipse(*g[2:]) for g in galaxies]
    origins = [
        (int(y) - m.shape[0] // 2, int(x) - m.shape[1] // 2) for (y, x, *_), m in zip(galaxies, masks, strict=True)
    ]
    scores = np.full(len(masks), 0.9) if scores is None else np.asarray(scores)
    return MaskDetector(masks, np.array(origins).reshape(-1, 2), scores)


def names(objects):
    """Which mask each object is, sorted."""
    return sorted(np.rint(objects.detections.p_spiral).astype(int).tolist())


def full_area(objects):
    """Areas in pixels of level 0, in the order of the masks."""
    found = objects.detections
    return (found.area * 4.0**found.level)[np.argsort(found.p_spiral)]


def rows(objects):
    """Everything the stitching says, as plain tuples in its own order."""
    found = objects.detections
    columns = (found.p_spiral, found.level, found.score, *found.mask_box.T, found.area)
    columns += (objects.n_seen, objects.n_tiles, objects.host, objects.flags)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# A perfect detector ------------------------------------------------------------------------------------------


@st.composite
def scenes(draw):
    """Any tile size, overlap and offset, and masks of 3 to 1500 px that overlap and nest, with random scores."""
    size = draw(st.integers(64, 320))
    overlap = draw(st.integers(16, int(0.7 * size)))
    shift = tuple(draw(st.integers(0, size - overlap - 1)) for _ in range(2))
    # A small step on a large image is a long list of tiles that shows nothing new.
    shape = tuple(draw(st.integers(30, min(2000, 14 * (size - overlap)))) for _ in range(2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return TileGrid(shape, size, overlap, shift), crowd(rng, shape, draw(st.integers(1, 24)))


def expect_the_same_as_whole(detector, grid):
    """One object for each mask, of its score, its area counted in pixels of a level no coarser than its home."""
    objects = catalogue(detector, grid)
    assert names(objects) == list(range(len(detector.masks)))
    found = objects.detections
    which = np.rint(found.p_spiral).astype(int)
    assert np.array_equal(found.score, detector.scores[which].astype(np.float32))
    assert np.all(found.level <= grid.home_level([max(m.shape) for m in detector.masks])[which])
    given = [
        reduce_mask(detector.masks[k], detector.origins[k], level) for k, level in zip(which, found.level, strict=True)
    ]
    assert found.area.tolist() == [mask.sum() for mask, _ in given]
    assert np.all(objects.n_seen <= objects.n_tiles)
    shapes = np.array([grid.level_shape(level) for level in found.level]).reshape(-1, 2)
    at_border = ((found.mask_box[:, :2] == 0) | (found.mask_box[:, 2:] == shapes)).any(axis=1)
    assert np.array_equal(objects.flags & EDGE_TRUNCATED > 0, at_border)
    assert not np.any(objects.flags & (SINGLE_LOOK | CAPPED))
    return objects


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenes())
def test_whole_and_tiled_give_the_same(scene):
    """Protects the guarantee: nothing missing, nothing doubled, areas to the pixels of the home level, for any grid."""
    grid, detector = scene
    tiled = expect_the_same_as_whole(detector, grid)
    # One tile that holds the whole image is the image undivided.
    whole = expect_the_same_as_whole(detector, TileGrid(grid.shape, max(*grid.shape, 32), 16))
    assert whole.detections.level.tolist() == [0] * len(whole)
    assert full_area(whole).tolist() == [mask.sum() for mask in detector.masks]
    level = tiled.detections.level[np.argsort(tiled.detections.p_spiral)]
    # A coarse pixel is right or wrong as a whole: only those that the outline crosses can be.
    crossed = np.array(
        [outline_pixels(m, o, int(k)) for m, o, k in zip(detector.masks, detector.origins, level, strict=True)]
    )
    assert np.all(np.abs(full_area(tiled) - full_area(whole)) <= crossed * 4.0**level / 2)


def outline_pixels(mask, origin, level):
    """How many pixels of a level a mask covers in part."""
    step = 2**level
    padded = np.pad(mask, [(int(o) % step, -(int(o) + n) % step) for o, n in zip(origin, mask.shape, strict=True)])
    covered = padded.reshape(padded.shape[0] // step, step, -1, step).sum(axis=(1, 3))
    return np.count_nonzero((covered > 0) & (covered < step**2))


@pytest.mark.parametrize("centre, n_tiles", [((100, 100), 1), ((100, 224), 2), ((224, 224), 4)])
def test_small_object_over_one_two_and_four_tiles(centre, n_tiles):
    """Protects the count of tiles, by which users audit the seams, and that one of them is chosen."""
    objects = catalogue(detector_of((*centre, 40)), TileGrid((1000, 900)))
    assert names(objects) == [0]
    assert (objects.n_seen.tolist(), objects.n_tiles.tolist()) == ([n_tiles], [n_tiles])
    assert objects.detections.level.tolist() == [0] and objects.flags.tolist() == [0]


@pytest.mark.parametrize(
    "galaxy, n", [((100, 100, 40), 1), ((100, 224, 100), 2), ((224, 224, 100), 4), ((320, 320, 300), 9)]
)
def test_object_that_reaches_into_tiles_is_one(galaxy, n):
    """Protects what several tiles show in whole or in part: one row, no piece left over."""
    grid, detector = TileGrid((1000, 900)), detector_of(galaxy)
    found = look_at(detector, [tile for tile in grid.tiles() if tile.level == 0], grid)
    assert len(found) == n
    expect_the_same_as_whole(detector, grid)


@pytest.mark.parametrize("side", [70, 150, 300, 500, 900])
def test_large_object_over_many_tiles_is_one(side):
    """Protects galaxies larger than the overlap, and than nine tiles: no pieces, the mask from the finest look."""
    grid = TileGrid((1500, 1300))
    detector = detector_of((700, 650, side, 0.8, 0.5))
    objects = catalogue(detector, grid)
    assert names(objects) == [0]
    assert objects.detections.level[0] == min(grid.look_level(max(detector.masks[0].shape)), grid.n_levels - 1)
    assert full_area(objects)[0] == pytest.approx(detector.masks[0].sum(), rel=0.03)
    assert objects.flags.tolist() == [0]


def test_nested_pairs_stay_two():
    """Protects companions on discs: a small galaxy inside a large mask keeps its row, and names its host."""
    pairs = [(400, 400, 300), (430, 420, 40), (900, 300, 50), (900, 310, 14), (900, 900, 120), (940, 900, 5)]
    objects = catalogue(detector_of(*pairs), TileGrid((1200, 1200)))
    assert names(objects) == list(range(6))
    host = {int(objects.detections.p_spiral[i]): h for i, h in enumerate(objects.host.tolist())}
    on = {k: -1 if h < 0 else int(objects.detections.p_spiral[h]) for k, h in host.items()}
    # Of those at home on one level the network has decided within one tile: they have no host.
    assert on == {0: -1, 1: 0, 2: -1, 3: -1, 4: -1, 5: 4}
    assert np.array_equal((objects.flags & BLENDED) > 0, objects.host >= 0)


def test_dense_cluster_on_a_corner_of_tiles():
    """Protects crowds where four tiles meet: everything there is seen four times, in pieces and whole."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:8, 0:8].reshape(2, -1) * 11 + 180
    sizes = rng.uniform(5, 18, 64), rng.uniform(0.6, 1, 64)
    detector = detector_of(*[(a, b, s, r) for a, b, s, r in zip(y, x, *sizes, strict=True)])
    assert names(catalogue(detector, TileGrid((700, 640)))) == list(range(64))


@pytest.mark.parametrize("seed", range(3))
def test_sizes_at_the_border_of_two_levels_in_a_crowd(seed):
    """Protects sides that are 57 px on one level and 2 x 28 on the next: at home on neither, neighbours took them."""
    rng = np.random.default_rng(seed)
    grid = TileGrid((700, 700), shift=tuple(rng.integers(0, 192, 2)))
    bands = [(53, 61), (30, 60), (108, 120)]
    detector = crowd(rng, grid.shape, 60, sides=lambda: rng.uniform(*bands[rng.integers(3)]))
    expect_the_same_as_whole(detector, grid)


@pytest.mark.parametrize("step", [9, 12, 16])
def test_chains_never_merge(step):
    """Protects crowds: A overlaps B and B overlaps C, and yet there are as many rows as galaxies."""
    chain = [(220, 60 + step * k, 24) for k in range(30)]
    assert names(catalogue(detector_of(*chain), TileGrid((600, 640)))) == list(range(30))


def test_chain_of_imperfect_sightings_does_not_merge_its_ends():
    """Protects rule 4: with A ~ B and B ~ C, but not A ~ C, and B the worst, A and C both stay."""
    mask = np.ones((20, 30), dtype=bool)
    origin = [(100, 100), (100, 109), (100, 118)]
    distance = [1, 9, 2]
    grid = TileGrid((700, 700))
    boxes = [(y, x, y + 20, x + 30) for y, x in origin]
    found = Detections.from_masks([0, 1, 4], 0, boxes, 0.9, [0, 1, 2], [mask] * 3, origin, centre_distance=distance)
    assert names(stitch(found, grid)) == [0, 2]
    # Within one tile the network has decided.
    assert names(stitch(found.replace(tile=np.zeros(3, int)), grid)) == [0, 1, 2]


@pytest.mark.parametrize("inner, n", [((14, 13), 1), ((16, 15), 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_two_masks_in_one_tile_and_one_in_the_next(inner, n, order):
    """Protects against doubles: one mask that is like two of another tile, which have less than half in common, takes
    both; two that overlap by more than half stay two.
    """
    masks = [np.ones(shape, dtype=bool) for shape in ((20, 20), inner, (16, 16))]
    boxes = [(100, 220, 100 + h, 220 + w) for h, w in (m.shape for m in masks)]
    found = Detections.from_masks([0, 0, 1], 0, boxes, 0.9, [0, 1, 2], masks, [(100, 220)] * 3)
    # Where the tile with the two is the more central one, they are what it says.
    for distances, expected in (([2, 3, 1], n), ([1, 2, 3], 2)):
        seen = found.replace(centre_distance=np.array(distances)).select(list(order))
        assert len(stitch(seen, TileGrid((700, 700)))) == expected


def test_equal_scores_and_order_of_arrival_do_not_matter():
    """Protects reproducibility: workers answer in any order, and scores are often equal."""
    rng = np.random.default_rng(2)
    grid = TileGrid((800, 900))
    galaxies = [(*rng.uniform(20, 780, 2), s, rng.uniform(0.4, 1), 1.0) for s in rng.uniform(4, 30, 60)]
    detector = detector_of(*galaxies, (400, 450, 260), (200, 600, 90))
    found = look_at(detector, grid.tiles(), grid)
    expected = rows(catalogue(detector, grid, found))
    for _ in range(3):
        assert rows(catalogue(detector, grid, found.select(rng.permutation(len(found))))) == expected


@pytest.mark.parametrize("shape", [(1, 1), (255, 257), (256, 4000), (4000, 256), (40, 1500), (3, 700), (700, 1100)])
def test_awkward_shapes(shape):
    """Protects one-row and one-column grids, tiny images and images that are not square."""
    grid = TileGrid(shape)
    side = min(30, *shape)
    x = np.arange(side // 2, shape[1] - side // 2, max(2 * side, shape[1] // 20))
    y = np.arange(side // 2, shape[0] - side // 2, max(2 * side, shape[0] // 20))
    centres = [(b, a) for b in (y if len(y) else [0]) for a in (x if len(x) else [0])]
    masks = [np.ones((1, 1), bool) if side < 3 else ellipse(side - 1)] * len(centres)
    origins = np.array([(b - masks[0].shape[0] // 2, a - masks[0].shape[1] // 2) for b, a in centres])
    objects = catalogue(MaskDetector(masks, np.maximum(origins, 0), np.full(len(masks), 0.7)), grid)
    assert names(objects) == list(range(len(masks)))


def test_very_long_image():
    """Protects strips of 256 x 100000: ten levels of one row, a galaxy on each seam."""
    grid = TileGrid((256, 100_000))
    galaxies = [(100 + k % 50, 224 + 192 * k, 8 + k % 45) for k in range(0, 515, 9)] + [(128, 51_234, 240, 0.9)]
    assert names(catalogue(detector_of(*galaxies), grid)) == list(range(len(galaxies)))


def test_nothing_found_is_nothing():
    """Protects the empty catalogue."""
    grid = TileGrid((500, 500))
    objects = stitch(Detections.empty(), grid)
    assert len(objects) == 0 and second_looks(objects, grid) == []
    assert len(confirm(objects, Detections.empty(), grid)) == 0


# Flags, second looks and companions --------------------------------------------------------------------------


class Picky(MaskDetector):
    """Sees only the masks that `sees(which, tile)` allows."""

    sees = staticmethod(lambda which, tile: True)

    def __call__(self, tile):
        found = super().__call__(tile)
        return found.select(np.array([self.sees(int(k), tile) for k in found.p_spiral], dtype=bool))


def picky(sees, *galaxies):
    plain = detector_of(*galaxies)
    detector = Picky(plain.masks, plain.origins, plain.scores)
    detector.sees = sees
    return detector


def test_cut_one_is_looked_at_centred_until_whole():
    """Protects rule 5: what was seen in pieces only gets a tile centred on it."""
    grid = TileGrid((1000, 1000))
    detector = picky(lambda which, tile: tile.level == 0, (224, 300, 120))
    objects = stitch(look_at(detector, grid.tiles(), grid), grid)
    assert objects.detections.cut.all()
    looks = second_looks(objects, grid)
    assert all(tile.level == 0 and tile.index >= len(grid) for tile in looks)
    objects = catalogue(detector, grid)
    assert names(objects) == [0] and not objects.detections.cut.any()
    assert full_area(objects)[0] == detector.masks[0].sum()


def test_look_that_shows_more_is_centred_anew():
    """Protects detail: a look centred on a piece shows more of it, and one centred on that, on the same level, all."""
    grid = TileGrid((1000, 1000))
    detector = picky(lambda which, tile: tile.index >= len(grid) or tile.index == 0, (100, 320, 185, 0.4, 1.57))
    objects = catalogue(detector, grid)
    assert names(objects) == [0] and objects.detections.level.tolist() == [0]
    assert full_area(objects)[0] == detector.masks[0].sum()


def test_piece_that_no_look_confirms_goes():
    """Protects against rows with an outline on a tile line: a piece never becomes an object."""
    grid = TileGrid((1000, 1000))
    detector = picky(lambda which, tile: tile.index in (0, 1), (100, 224, 80))
    assert len(look_at(detector, grid.tiles(), grid)) and len(catalogue(detector, grid)) == 0


def test_whole_find_that_no_look_confirms_stays_with_a_flag():
    """Protects large galaxies that are seen on their home level only: kept, and said so."""
    grid = TileGrid((2000, 2000))
    detector = picky(lambda which, tile: tile.index < len(grid) and tile.level == 2, (900, 900, 200))
    objects = catalogue(detector, grid)
    assert names(objects) == [0]
    assert objects.flags.tolist() == [SINGLE_LOOK]


def test_unconfirmed_blend_of_finer_objects_goes():
    """Protects groups: two galaxies taken for one on a coarse level are two rows, not three."""
    grid = TileGrid((2000, 2000))

    def sees(which, tile):
        return which > 0 or (tile.index < len(grid) and tile.level == 2)

    detector = picky(sees, (900, 900, 200), (900, 860, 40), (900, 940, 40))
    assert names(catalogue(detector, grid)) == [1, 2]


@pytest.mark.parametrize("every", [False, True])
def test_pair_that_one_tile_takes_for_a_third_galaxy_goes(every):
    """Protects close pairs: what a tile shows beside the two that fill it is no galaxy if the other tiles do not."""
    grid = TileGrid((448, 256))
    pair = [(220, 100, 16), (220, 114, 16)]
    detector = detector_of(*pair, (220, 107, 30, 0.6, np.pi / 2))
    detector = Picky(detector.masks, detector.origins, detector.scores)
    detector.sees = lambda which, tile: which < 2 or every or tile.index == 0
    assert names(catalogue(detector, grid)) == ([0, 1, 2] if every else [0, 1])


@pytest.mark.parametrize("shown_by, stays", [([0], False), ([0, 1], True), ([0, 1, 2, 3], True)])
def test_third_galaxy_that_most_tiles_do_not_show_goes_when_half_full(shown_by, stays):
    """Protects close pairs whose blend reaches beyond them: most of the tiles outvote the one that shows it."""
    grid = TileGrid((448, 448))
    pair = [(220, 212, 17), (220, 236, 17)]
    detector = detector_of(*pair, (220, 224, 34, 0.6, np.pi / 2))
    detector = Picky(detector.masks, detector.origins, detector.scores)
    detector.sees = lambda which, tile: which < 2 or tile.level > 0 or tile.index in shown_by
    objects = catalogue(detector, grid)
    assert names(objects) == ([0, 1, 2] if stays else [0, 1])
    assert objects.n_tiles.tolist() == [4] * len(objects)


def test_knot_that_the_larger_ones_look_does_not_show_goes():
    """Protects against rows for spiral arms: what only the finest level sees, inside a disc, is a knot."""
    grid = TileGrid((2000, 2000))

    def sees(which, tile):
        return which == 0 or (tile.level == 0 and tile.index < len(grid))

    # 40 px on a look level of 2: 10 px there, and so it had to be seen.
    assert names(catalogue(picky(sees, (900, 900, 600), (950, 900, 40)), grid)) == [0]
    # Not inside the disc it is nobody's knot.
    assert names(catalogue(picky(sees, (900, 900, 600), (400, 400, 40)), grid)) == [0, 1]


def test_piece_of_a_galaxy_as_large_as_the_image_goes():
    """Protects the largest galaxies: the top level is home to them and to large pieces of them alike."""
    grid = TileGrid((700, 700))

    def sees(which, tile):
        return which == 0 or tile.level == 1

    galaxies = (350, 350, 600), (420, 350, 230)
    assert names(catalogue(picky(sees, *galaxies), grid)) == [0]
    # What the galaxy's own level shows as well is another one.
    objects = catalogue(detector_of(*galaxies), grid)
    assert names(objects) == [0, 1] and (objects.host >= 0).sum() == 1


@pytest.mark.parametrize("away, on", [(196, True), (206, False)])
def test_host_of_what_lies_across_its_edge(away, on):
    """Protects users who leave out what lies on others: half of a mask on a larger one is enough."""
    objects = catalogue(detector_of((900, 900, 400), (900, 900 + away, 40)), TileGrid((2000, 2000)))
    assert names(objects) == [0, 1] and (objects.host >= 0).any() == on


@pytest.mark.parametrize(
    "hidden_from, stays", [("nothing", True), ("a tile of the grid", False), ("its own look", False)]
)
def test_central_one_that_only_level_0_can_show_has_to_be_steady(hidden_from, stays):
    """Protects against knots that a galaxy's own look shows as well: in its middle every look has to show them."""
    grid = TileGrid((700, 700))

    def sees(which, tile):
        if which == 0 or hidden_from == "nothing":
            return True
        if tile.level > 0:
            return False
        if hidden_from == "a tile of the grid":
            return tile.box != (192, 192, 448, 448)
        # The look centred on the galaxy, not that centred on the knot.
        return tile.index < len(grid) or abs(tile.y0 + 128 - 210) < 10

    objects = catalogue(picky(sees, (210, 205, 150), (235, 230, 12)), grid)
    assert names(objects) == ([0, 1] if stays else [0])


def test_edge_of_the_image_is_flagged_and_cuts_nothing():
    """Protects galaxies on the border: a row each, flag edge_truncated, no endless second look."""
    grid = TileGrid((700, 600))
    objects = catalogue(detector_of((15, 300, 31), (300, 300, 31), (684, 15, 31)), grid)
    order = np.argsort(objects.detections.p_spiral)
    assert names(objects) == [0, 1, 2]
    assert (objects.flags[order] & EDGE_TRUNCATED > 0).tolist() == [True, False, True]


def test_image_of_one_tile_needs_no_rules():
    """Protects the short way for small pictures: the rows of the long one, that a window of the tile takes."""
    grid, rng = TileGrid((256, 240)), np.random.default_rng(5)
    detector = crowd(rng, grid.shape, 20, (3, 60))
    found = look_at(detector, grid.tiles(), grid).replace(capped=np.array([0]))
    short = stitch(found, grid)
    assert rows(short) == rows(stitch(found.replace(tile=np.full(len(found), -1)), grid)) and len(short) > 10


def test_cap_is_never_silent():
    """Protects rule 7: all that was seen in a capped tile carries the flag, nothing else does."""
    grid = TileGrid((700, 700))
    detector = detector_of((100, 100, 20), (400, 400, 20))
    found = look_at(detector, grid.tiles(), grid)
    objects = catalogue(detector, grid, found.replace(capped=np.array([0])))
    order = np.argsort(objects.detections.p_spiral)
    assert (objects.flags[order] & CAPPED > 0).tolist() == [True, False]
