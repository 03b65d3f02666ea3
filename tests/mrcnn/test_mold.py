"""Images of any size become the network's square, and boxes and masks come back to where they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat.errors import OptionError
from surveycat.mrcnn.masks import paste_rounded, resize
from surveycat.mrcnn.mold import mold, unmold
from surveycat.mrcnn.presets import PRESETS

CONFIG = PRESETS["mask-galaxy-2class"]
SIZES = st.integers(min_value=20, max_value=700)


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES)
def test_square_holds_the_whole_image(height, width):
    """The window has the image's proportions, touches two sides and lies in the middle; all around is zero."""
    image = np.full((height, width, 3), 200, np.uint8)
    molded, window = mold(image, 256)
    y0, x0, y1, x1 = window
    assert molded.shape == (256, 256, 3) and molded.dtype == np.uint8
    assert max(y1 - y0, x1 - x0) == 256
    assert abs((y1 - y0) * width - (x1 - x0) * height) <= max(height, width)  # within a pixel
    assert abs(y0 - (256 - y1)) <= 1 and abs(x0 - (256 - x1)) <= 1
    inside = np.zeros((256, 256), bool)
    inside[y0:y1, x0:x1] = True
    assert not molded[~inside].any() and (molded[y0 + 9 : y1 - 9, x0 + 9 : x1 - 9] >= 199).all()


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, data=st.data())
def test_boxes_come_back(height, width, data):
    """A box that is marked in the image is found again from its place in the square, within the scale's rounding."""
    _, window = mold(np.zeros((height, width, 3), np.uint8), 256)
    scale = (window[2:] - window[:2]) / (height, width)
    y0, x0 = data.draw(st.integers(0, height - 10)), data.draw(st.integers(0, width - 10))
    y1, x1 = data.draw(st.integers(y0 + 5, height)), data.draw(st.integers(x0 + 5, width))
    box = np.array([y0, x0, y1, x1])
    inside = np.tile(window[:2], 2) + box * np.tile(scale, 2)
    back = unmold(CONFIG.to_frame(inside[None]), CONFIG.to_frame(window), (height, width))[0]
    assert np.abs(back - box).max() <= np.ceil(0.5 + 1 / scale.min())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 256), min_size=4, max_size=4))
def test_frame_of_the_network_is_that_of_its_pixels(box):
    """Normalised boxes and half-open pixel boxes are each other's inverse."""
    box = np.float32(box)
    np.testing.assert_allclose(CONFIG.to_pixels(CONFIG.to_frame(box)), box, atol=1e-3)
    np.testing.assert_array_equal(CONFIG.to_frame(np.float32([0, 0, 256, 256])), [0, 0, 1, 1])


def test_crop_keeps_the_scale():
    """The two-class network was trained on pieces of larger images at their own scale, not on shrunk ones."""
    image = np.random.default_rng(2).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    molded, window = mold(image, 256, mode="crop", corner=(7, 30))
    np.testing.assert_array_equal(molded, image[7:263, 30:286])
    np.testing.assert_array_equal(window, [0, 0, 256, 256])
    middle, _ = mold(image, 256, mode="crop")
    np.testing.assert_array_equal(middle, image[22:278, 72:328])
    enlarged, _ = mold(image[:128, :200], 256, mode="crop", corner=(0, 100))
    assert enlarged.shape == (256, 256, 3)
    with pytest.raises(OptionError, match=r"\(50, 0\)"):
        mold(image, 256, mode="crop", corner=(50, 0))
    with pytest.raises(OptionError, match="'pad64'"):
        mold(image, 256, mode="pad64")


def test_resize_aligns_pixel_centres():
    """A ramp keeps its slope and its place away from the border: no half-pixel shift."""
    ramp = np.tile(np.arange(40.0), (8, 1))
    larger = resize(ramp, 8, 100)
    np.testing.assert_allclose(larger[4, 5:95], (np.arange(5, 95) + 0.5) * 0.4 - 0.5, atol=1e-9)


def test_rounded_masks_fade_at_the_border():
    """The rule of the package: a mask that is sure everywhere fills its rounded box, but fades into zero outside."""
    logits = np.full((2, 28, 28), 9.0, np.float32)
    boxes = np.float32([[10.4, 20.2, 66.4, 104.7], [30.2, 30.2, 30.4, 60.0]])
    crops, origins = paste_rounded(logits, boxes, 256)
    assert crops[0].shape == (56, 85) and tuple(origins[0]) == (10, 20)
    assert crops[0][1:-1, 1:-1].all()
    assert crops[1].size == 0  # no row after rounding: no mask, and no failure
