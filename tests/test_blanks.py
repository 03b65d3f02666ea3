"""Where the data end objects are cut, marked, or left out, and nothing is found along the edges that is not there."""

import numpy as np
import pytest
from astropy.io import fits
from mask_detector import MaskDetector, catalogue
from masks import ellipse
from scipy import ndimage

from surveycat import blanks, pipeline
from surveycat.blanks import cut_to_data
from surveycat.catalog import FLAGS
from surveycat.image import open_image
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.products import paint_rows
from surveycat.tiles import TileGrid

EDGE = 1 << FLAGS["edge_truncated"]
SHAPE = (420, 500)
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]
EDGES = {
    "rectangle": (ROWS >= 120) & (ROWS < 260) & (COLUMNS >= 150) & (COLUMNS < 333),
    "border": (np.minimum(ROWS, SHAPE[0] - 1 - ROWS) < 41) | (np.minimum(COLUMNS, SHAPE[1] - 1 - COLUMNS) < 37),
    "diagonal": ROWS + 0.7 * COLUMNS < 300,
    "holes": ((ROWS % 67 - 30) ** 2 + (COLUMNS % 91 - 40) ** 2) < 25,
}


def opened(blank, path, seed=0):
    """An image of noise that is NaN where it is blank."""
    data = np.random.default_rng(seed).normal(10, 1, blank.shape).astype(np.float32)
    data[blank] = np.nan
    fits.PrimaryHDU(data).writeto(path)
    return open_image(path)


def discs(n, seed, side=(6, 40), shape=SHAPE):
    """Masks of n ellipses, where their first pixels are, and the objects that a perfect detector makes of them."""
    rng = np.random.default_rng(seed)
    masks = [ellipse(s, r, a) for s, r, a in rng.uniform((side[0], 0.5, 0), (side[1], 1, 3), (n, 3))]
    origins = [rng.integers(0, np.array(shape) - mask.shape + 1) for mask in masks]
    return catalogue(MaskDetector(masks, np.array(origins), rng.uniform(0.6, 0.9, n)), TileGrid(shape))


def painted(found, i, shape=SHAPE):
    """A mask of level 0 on the whole image."""
    canvas = np.zeros(shape, bool)
    y, x = found.mask_origin[i]
    mask = found.mask(i)
    canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return canvas


@pytest.fixture(scope="module")
def many():
    """Sixty objects of all sizes."""
    return discs(60, seed=3)


@pytest.mark.parametrize("edge", EDGES)
def test_masks_end_where_the_data_end(many, edge, tmp_path):
    """Against whole frames: cut to data, flagged if they touch a blank pixel and only then, gone if half is blank."""
    blank, objects = EDGES[edge], many
    with opened(blank, tmp_path / "a.fits") as image:
        cut = cut_to_data(objects, image)
    expected = []
    for i in range(len(objects)):
        mask = painted(objects.detections, i)
        touches = (ndimage.binary_dilation(mask, np.ones((3, 3))) & blank).any()
        if (mask & ~blank).sum() > mask.sum() / 2:
            flagged = touches or objects.flags[i] & EDGE > 0
            expected.append((mask & ~blank, flagged, objects.detections.p_spiral[i]))
    assert len(cut) == len(expected) and 0 < sum(flagged for _, flagged, _ in expected) < len(expected)
    for i, (mask, flagged, name) in enumerate(expected):
        assert cut.detections.p_spiral[i] == name
        np.testing.assert_array_equal(painted(cut.detections, i), mask)
        assert (cut.flags[i] & EDGE > 0) == flagged


def test_coarse_masks_are_cut_on_their_own_pixels(tmp_path):
    """An object of a coarse level keeps the blocks that have data for the most part, whatever is read at a time."""
    blank = np.zeros((700, 900), bool)
    blank[:, 450:] = True
    objects = catalogue(
        MaskDetector([ellipse(300, 0.8)], np.array([(200, 250)]), np.array([0.9])), TileGrid(blank.shape)
    )
    block = 2 ** int(objects.detections.level[0])
    assert len(objects) == 1 and block > 1
    with opened(blank, tmp_path / "a.fits") as image:
        cut = cut_to_data(objects, image)
        before = blanks.MAX_STRIP
        blanks.MAX_STRIP = 1
        try:
            again = cut_to_data(objects, image)
        finally:
            blanks.MAX_STRIP = before
    assert cut.detections.mask_box[0, 3] * block == pytest.approx(450, abs=block)
    np.testing.assert_array_equal(cut.detections.bits, again.detections.bits)
    assert cut.flags[0] & EDGE
    whole, left = objects.detections.mask(0), cut.detections.mask(0)
    np.testing.assert_array_equal(left, whole[: left.shape[0], : left.shape[1]])


def test_the_border_of_the_image_is_no_blank_region(tmp_path):
    """An object that reaches over the border keeps its mask and the flag that it has for that."""
    objects = discs(1, seed=1, side=(150, 160), shape=(203, 211))
    with opened(np.zeros((203, 211), bool), tmp_path / "a.fits") as image:
        assert cut_to_data(objects, image) is objects


def test_what_lies_on_an_object_that_goes_has_no_host(tmp_path):
    """A companion on the visible side of a galaxy that is mostly blank stays, alone."""
    blank = COLUMNS >= 200
    masks, origins = [ellipse(120), ellipse(12)], np.array([(150, 178), (200, 184)])
    objects = catalogue(MaskDetector(masks, origins, np.array([0.9, 0.8])), TileGrid(SHAPE))
    assert len(objects) == 2 and (objects.host >= 0).sum() == 1
    with opened(blank, tmp_path / "a.fits") as image:
        cut = cut_to_data(objects, image)
    assert len(cut) == 1 and cut.host[0] == -1 and cut.detections.area[0] < 200


def test_pictures_have_no_blank_pixels():
    """Nothing is read of what cannot be blank."""
    objects = discs(5, seed=2)
    with open_image(np.zeros((*SHAPE, 3), np.uint8)) as image:
        assert cut_to_data(objects, image) is objects


# The network on a real field -------------------------------------------------------------------------------

FIELD = (160, 1150, 580, 1650)  # y0, x0, y1, x1 of a part of the frame with galaxies and a burnt-out star
TOGETHER = (("rectangle", "border"), ("diagonal", "saturated", "holes"))


@pytest.fixture(scope="module")
def frame(shared_data):
    """The r frame, in counts, and the catalogue of the part without any blank pixel."""
    data = fits.getdata(shared_data / "fields" / "sdss_351.65+0.10_run4192" / "fpC-004192-r4-0300.fit.gz")
    return data.astype(np.float32), DetectorSpec("compact").load()


def rows(frame, blank, path, min_score=0.5):
    """The catalogue of the part with some pixels NaN."""
    data, detector = frame
    data = data.copy()
    y0, x0, y1, x1 = FIELD
    data[y0:y1, x0:x1][blank] = np.nan
    fits.PrimaryHDU(data).writeto(path)
    with open_image(path) as image:  # the stretch is that of the whole frame
        return pipeline.search(image.region(FIELD), detector, min_score=min_score)[0]


@pytest.fixture(scope="module")
def whole(frame, tmp_path_factory):
    """Positions (x, y) without blank pixels, of what is just below the limit too: next to a hole it may be above."""
    table = rows(frame, np.zeros(SHAPE, bool), tmp_path_factory.mktemp("whole") / "a.fits", min_score=0.25)
    assert len(table) > 8
    return np.column_stack([table["x"].value, table["y"].value])


@pytest.mark.parametrize("kinds", TOGETHER)
def test_no_rows_along_edges_of_the_data(frame, whole, kinds, tmp_path):
    """Whatever is found within 12 px of a blank pixel is found without blank pixels, too; outlines end at the edge."""
    part = frame[0][FIELD[0] : FIELD[2], FIELD[1] : FIELD[3]]
    edges = EDGES | {"saturated": ndimage.binary_dilation(part > 20_000, iterations=2)}
    blank = np.any([edges[kind] for kind in kinds], axis=0)
    assert all(edges[kind].any() for kind in kinds)
    table = rows(frame, blank, tmp_path / "a.fits")
    away = ndimage.distance_transform_edt(~blank)
    for row in table:
        x, y = row["x"].value, row["y"].value
        new = np.hypot(*(whole - (x, y)).T).min() > 4
        assert not (new and away[round(y), round(x)] < 12), (x, y)
    labels = paint_rows(table, 0, SHAPE[0], SHAPE[1])
    flagged = np.asarray(table["flags"]) & EDGE > 0
    for number in np.unique(labels[blank & (labels > 0)]):
        inside = ndimage.binary_fill_holes(labels * ~blank == number)  # a hole in a galaxy stays in its outline
        assert inside[(labels == number) & blank].all()
    touching = np.unique(labels[ndimage.binary_dilation(blank, np.ones((3, 3)))])
    assert flagged[np.isin(np.asarray(table["id"]), touching)].all()
