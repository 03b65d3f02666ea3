"""What a user asks for with --region becomes a box inside the image, or one clear line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat.errors import OptionError
from surveycat.image import open_image
from surveycat.region import overlap, parse_region

numbers = st.integers(-30, 60)


@settings(max_examples=100)
@given(box=st.tuples(numbers, numbers, numbers, numbers), shape=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_overlap_agrees_with_painting(box, shape):
    """The part of a box inside an image is what one finds by painting both; positions in the box fit."""
    y, x = np.indices(shape)
    painted = (y >= box[0]) & (x >= box[1]) & (y < box[2]) & (x < box[3])
    inside, target = overlap(box, shape)
    if inside is None:
        assert not painted.any() and target is None
        return
    y0, x0, y1, x1 = inside
    assert painted[y0:y1, x0:x1].all() and painted.sum() == (y1 - y0) * (x1 - x0)
    assert target == (y0 - box[0], x0 - box[1], y1 - box[0], x1 - box[1])


@pytest.fixture
def image():
    """North-up image of 300 rows and 400 columns across RA 0, 1" per pixel."""
    with open_image(np.zeros((300, 400, 3), np.uint8), ra=0.0, dec=20.0, pixel_scale=1.0) as opened:
        yield opened


@pytest.mark.parametrize(
    ("region", "box"),
    [
        ("10,20,110,70", (20, 10, 70, 110)),
        (" 10, 20 , 110,70 ", (20, 10, 70, 110)),
        ((10, 20, 110, 70), (20, 10, 70, 110)),
        ("-5,-5,50,60", (0, 0, 60, 50)),
        ("350,250,1000,1000", (250, 350, 300, 400)),
        ("1e1,2e1,110.0,70", (20, 10, 70, 110)),
    ],
)
def test_pixels(image, region, box):
    """x0,y0,x1,y1 becomes (y0, x0, y1, x1), clipped to the image."""
    assert parse_region(region, image) == box


def test_sky_box_holds_its_corners(image):
    """The box holds the asked corners, across RA 0 too.

    And is not larger than the curvature of the sky asks for.
    """
    y0, x0, y1, x1 = parse_region("359.99d,19.99d,0.01d,20.01d", image)
    x, y = image.sky_to_pixel([359.99, 0.01, 0.01, 359.99], [19.99, 19.99, 20.01, 20.01])
    assert (x0 - 0.5 <= x).all() and (x <= x1 - 0.5).all() and (y0 - 0.5 <= y).all() and (y <= y1 - 0.5).all()
    assert x1 - x0 == pytest.approx(np.ptp(x), abs=3) and y1 - y0 == pytest.approx(np.ptp(y), abs=3)
    assert parse_region("0.01d,20.01d,359.99d,19.99d", image) == (y0, x0, y1, x1)


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ("10,20,30", "'10,20,30' is not four numbers"),
        ("a,b,c,d", "'a,b,c,d' is not four numbers"),
        ("", "is not four numbers"),
        ("1,2,nan,4", "is not four numbers"),
        ("10,20,10,70", "'10,20,10,70' is empty"),
        ("30,20,10,70", "is empty"),
        ("1.5,2,30,40", "fractions of pixels"),
        ("400,0,500,100", "outside the image of 400 x 300 pixels"),
        ("1d,2,3d,4", "mixes pixels and degrees"),
        ("0d,20d,0d,21d", "is empty"),
        ("0d,89d,1d,95d", "declination outside"),
        ("10d,20d,11d,21d", "outside the image"),
        ("179d,-21d,181d,-20d", "another side of the sky"),
    ],
)
def test_bad_regions_are_one_line(image, region, words):
    """Malformed, empty and outside: the value and the way out in one line."""
    with pytest.raises(OptionError) as caught:
        parse_region(region, image)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_sky_box_needs_a_position():
    """Degrees on an image without a WCS say what is missing."""
    with (
        open_image(np.zeros((30, 40, 3), np.uint8)) as image,
        pytest.raises(OptionError, match="no sky position"),
    ):
        parse_region("0d,20d,1d,21d", image)
