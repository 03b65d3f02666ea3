"""The overlay: outlines where the objects are, in the colour of their class, arrows along the sky."""

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS
from PIL import Image

from surveycat import preview as module
from surveycat.errors import OutputError
from surveycat.preview import COLOURS, preview


class FakeImage:
    """A black image with what `preview` asks of one."""

    def __init__(self, shape, wcs=None, pixel_scale=None):
        self.shape, self.wcs, self.pixel_scale = shape, wcs, pixel_scale

    def level_shape(self, level):
        return tuple(-(-n // 2**level) for n in self.shape)

    def read(self, box, level=0):
        assert box == (0, 0, *self.level_shape(level))
        return np.zeros((box[2], box[3], 3), np.uint8)

    def pixel_to_sky(self, x, y):
        return self.wcs.all_pix2world(x, y, 0)

    def sky_to_pixel(self, ra, dec):
        return self.wcs.all_world2pix(ra, dec, 0)


def make_table(boxes, classes=None, scores=None):
    """Catalogue of rectangles [y0, x0, y1, x1)."""
    n = len(boxes)
    table = Table()
    table["class"] = np.array(["spiral"] * n if classes is None else classes, dtype="U10")
    table["score"] = np.full(n, 0.9) if scores is None else scores
    for axis, order in (("x", (1, 3, 3, 1)), ("y", (0, 0, 2, 2))):
        corners = np.empty(n, object)
        for row, box in enumerate(boxes):
            corners[row] = np.array([box[i] - 0.5 for i in order], np.float32)
        table[f"footprint_{axis}"] = corners
    return table


def make_wcs(rotation=0.0, mirrored=False, dec=30.0):
    """North towards +y turned by `rotation`, east to the left of it unless mirrored (with y up)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix = (0.0, dec), (500.5, 400.5)
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    flip = 1 if mirrored else -1
    wcs.wcs.cd = np.array([[flip * cos, -sin], [flip * sin, cos]]) * 0.4 / 3600
    return wcs


def where(path, colour):
    """Extent (x0, y0, x1, y1), inclusive, of the pixels that have exactly a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = np.nonzero((pixels == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def only_outlines(monkeypatch):
    """Leave out everything that is written."""
    for name in ("_draw_scores", "_draw_legend", "_draw_scale_bar", "_draw_compass"):
        monkeypatch.setattr(module, name, lambda *args: None)


@pytest.mark.parametrize("kind", ["spiral", "elliptical"])
def test_outlines_lie_where_the_objects_are(kind, tmp_path, monkeypatch):
    """Each class in its colour, the outline around the pixels [300, 340) x [200, 260)."""
    only_outlines(monkeypatch)
    preview(make_table([(300, 200, 340, 260)], [kind]), FakeImage((800, 1000)), tmp_path / "p.png")
    x0, y0, x1, y1 = where(tmp_path / "p.png", COLOURS[kind])
    assert (abs(y0 - 300), abs(x0 - 200), abs(y1 - 339), abs(x1 - 259)) <= (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("shape", "size"), [((5000, 3001), (751, 1250)), ((100, 70), (490, 700)), ((800, 1000), (1000, 800))]
)
def test_size_and_scale(shape, size, tmp_path, monkeypatch):
    """Large images are read from a coarser level and small ones enlarged, outlines with them."""
    only_outlines(monkeypatch)
    box = (shape[0] // 2, shape[1] // 2, shape[0] * 3 // 4, shape[1] * 3 // 4)
    preview(make_table([box]), FakeImage(shape), tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size == size
    scale = size[0] / shape[1]
    found = np.array(where(tmp_path / "p.png", COLOURS["spiral"]))
    assert np.abs(found - np.array([box[1], box[0], box[3], box[2]]) * scale).max() <= 2


def test_labels_do_not_cover_each_other(tmp_path, monkeypatch):
    """Of two objects on the same spot the better one is labelled; labels at the border stay inside."""
    written = []
    place = module._label_box

    def spy(draw, text, corners, size):
        box = place(draw, text, corners, size)
        written.append((text, box))
        return box

    monkeypatch.setattr(module, "_label_box", spy)
    table = make_table([(9, 980, 30, 1000), (9, 981, 30, 1000), (0, 0, 9, 9)], scores=np.array([0.61, 0.95, 0.7]))
    preview(table, FakeImage((800, 1000)), tmp_path / "p.png")
    assert [text for text, _ in written] == ["0.95", "0.70", "0.61"]
    for _, (x0, y0, x1, y1) in written:
        assert 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 800


def test_legend_hides_no_object(tmp_path):
    """What was found below the legend is outlined on it in its full colour, and its score does not cover the words."""
    preview(make_table([(46, 60, 51, 90)]), FakeImage((800, 1000)), tmp_path / "p.png")
    outline = np.asarray(Image.open(tmp_path / "p.png"))[45:52, 58:92]
    assert (outline == COLOURS["spiral"]).all(axis=2).sum() > 50


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 30, 200])
def test_arrows_follow_the_wcs(rotation, mirrored):
    """North and east are where astropy has them, mirrored images included; rows run downwards."""
    north, east = module._north_and_east(FakeImage((800, 1000), make_wcs(rotation, mirrored), 0.4))
    turn = np.radians(rotation)
    np.testing.assert_allclose(north, [np.sin(turn) if mirrored else -np.sin(turn), np.cos(turn)], atol=2e-3)
    handedness = east[0] * north[1] - east[1] * north[0]
    assert handedness == pytest.approx(1 if mirrored else -1, abs=2e-3)


def test_arrows_at_the_pole():
    """Near the pole the arrows stand at right angles; on it, where any is right, they are still drawn."""
    for dec in (89.99, 89.99995):  # the second is less than a pixel from it
        north, east = module._north_and_east(FakeImage((800, 1000), make_wcs(dec=dec), 0.4))
        assert abs(north @ east) < 0.05
    assert np.isfinite(module._north_and_east(FakeImage((800, 1000), make_wcs(dec=90), 0.4))).all()


@pytest.mark.parametrize(
    ("longest", "in_pixels", "label"),
    [
        (137, True, "100 px"),
        (99, True, "50 px"),
        (70, False, "1'"),
        (49, False, '30"'),
        (4000, False, "1°"),
        (1799, False, "20'"),
        (0.7, False, '0.5"'),
    ],
)
def test_scale_bar_has_a_round_length(longest, in_pixels, label):
    """As people would choose it: 30 arcsec, 1 arcmin, 100 px; never longer than asked."""
    length, text = module._round_length(longest, in_pixels)
    assert text == label and length <= longest


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("sky", [True, False])
@pytest.mark.parametrize("boxes", [[], [(300, 200, 340, 260)]])
def test_whole_pictures(suffix, sky, boxes, tmp_path):
    """With and without objects and sky position; the file opens, an older one is replaced."""
    path = tmp_path / f"p{suffix}"
    path.write_text("old")
    image = FakeImage((800, 1000), make_wcs(), 0.4) if sky else FakeImage((800, 1000))
    preview(make_table(boxes), image, path)
    assert Image.open(path).size == (1000, 800)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_bad_outputs(tmp_path):
    """A suffix that is no picture and a folder that is not there are said in one line."""
    image, table = FakeImage((80, 100)), make_table([])
    with pytest.raises(OutputError, match=r"unknown suffix '.pdf'; use one of \.png"):
        preview(table, image, tmp_path / "p.pdf")
    with pytest.raises(OutputError, match="there is no folder"):
        preview(table, image, tmp_path / "none" / "p.png")
