"""What SkyServer draws into its pictures is found, and nothing is found in pictures of the sky."""

import csv
import io
import logging

import numpy as np
import pytest
from detectors import BlobDetector
from PIL import Image as Pillow
from PIL import ImageDraw

import surveycat
from surveycat.image import open_image
from surveycat.overlays import LARGEST, drawn, overlay_note

# what each file of the wild shows, by looking at it
SEEN = {
    "sdss_0266.51602.001_0.1_oversampled.jpg": ["grid lines", "labels", "marks around objects"],
    "sdss_0266.51602.001_0.25_GLS.jpg": ["grid lines", "labels", "marks around objects"],
    "sdss_0266.51602.001_0.5_INVERTED.jpg": ["grid lines", "labels"],
    "sdss_0266.51602.001_0.5_overlay.jpg": ["grid lines", "labels"],
    "sdss_NGC1055_0.25_GLS.jpg": ["grid lines", "labels", "marks around objects"],
    "sdss_NGC5145_366x600_nonsquare.jpg": ["grid lines"],
    "sdss_NGC5750_0.25_GLS.jpg": ["grid lines", "labels", "marks around objects"],
}
COLOURS = {"spectra": (255, 0, 0), "photometry": (30, 144, 255), "boxes": (255, 0, 255), "outlines": (0, 255, 0)}


def picture(path):
    """The pixels of a file, its upper left 2048 if it is larger; None for what is not in colour."""
    with Pillow.open(path) as opened:
        return np.asarray(opened)[:LARGEST, :LARGEST] if opened.mode == "RGB" else None


def test_files_of_skyserver(shared_data):
    """Of the pictures in the wild those with drawings are known, with what is drawn, and no others."""
    with open(shared_data / "wild" / "index.csv", newline="") as file:
        names = [row["path"] for row in csv.DictReader(file) if row["group"] in "AB"]
    pictures = [name for name in names if name.endswith((".jpg", ".jpeg", ".png"))]
    assert len(pictures) > 12
    for name in pictures:
        pixels = picture(shared_data / "wild" / name)
        if pixels is not None:
            assert drawn(pixels) == SEEN.get(name.split("/")[1], []), name


def test_no_false_alarm(shared_data):
    """All fields, crowded and with nebulae, and 200 cutouts of galaxies have nothing drawn into them."""
    fields = sorted((shared_data / "fields").glob("*/*.jpg"))
    cutouts = sorted((shared_data / "cutouts").glob("*/*/*.jpg"))
    assert len(fields) >= 8 and len(cutouts) >= 200
    for path in [*fields, *cutouts[:: len(cutouts) // 200]]:
        pixels = picture(path)
        assert pixels is None or drawn(pixels) == [], path


@pytest.mark.parametrize("what", COLOURS)
@pytest.mark.parametrize("side", [12, 18, 40])
def test_marks_of_every_colour(what, side):
    """Squares and circles, one pixel thick and smoothed, around things on noise, as a JPEG has them."""
    rng = np.random.default_rng(3)
    large = Pillow.fromarray(np.clip(rng.normal(12, 6, (300, 300, 3)), 0, 255).astype(np.uint8)).resize((1200, 1200))
    draw = ImageDraw.Draw(large)
    shape = draw.ellipse if what == "photometry" else draw.rectangle
    for x, y in ((221, 300), (802, 917)):
        shape((x - 2 * side, y - 2 * side, x + 2 * side, y + 2 * side), outline=COLOURS[what], width=4)
    file = io.BytesIO()
    large.resize((300, 300), Pillow.Resampling.LANCZOS).save(file, "JPEG", quality=80)
    assert drawn(picture(file)) == ["marks around objects"]
    assert drawn(np.full((300, 300, 3), 12, np.uint8)) == []


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (400, 6), (7, 7)])
def test_small_pictures(shape):
    """Nothing can be drawn into a picture that is smaller than a mark, and that is no error."""
    assert drawn(np.full((*shape, 3), 200, np.uint8)) == []


def test_it_is_said_once_with_the_way_out(tmp_path, caplog):
    """One line: what is drawn, and how to get the picture without; also where a region without drawings is searched."""
    large = Pillow.new("RGB", (400, 400), (12, 12, 12))
    ImageDraw.Draw(large).rectangle((300, 300, 330, 330), outline=(255, 0, 0), width=2)
    large.save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO, "surveycat"):
        surveycat.run(tmp_path / "a.png", detector=BlobDetector(90, 3), region="0,0,200,200")
    (line,) = [line for line in caplog.messages if "drawn into" in line]
    assert "marks around objects are drawn into the picture" in line and "without opt=" in line
    assert "surveycat fetch" in line
    with open_image(np.full((LARGEST + 1, 40, 3), 10, np.uint8)) as image:
        assert overlay_note(image) == []
