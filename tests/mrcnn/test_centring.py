"""Boxes on their light, wherever the tile began."""

import numpy as np
import pytest

from surveycat.mrcnn.centring import centre_boxes

RNG = np.random.default_rng(8)


def picture(centre, width=3.0, shape=(96, 96), noise=2.0):
    """A round galaxy on a noisy sky, 8 bits."""
    y, x = np.indices(shape) + 0.5
    light = 20 + 150 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    return np.clip(light[..., None] + RNG.normal(0, noise, (*shape, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("offset", [(0.0, 0.0), (1.3, -0.8), (-2.1, 1.7)])
def test_boxes_of_one_galaxy_meet_on_its_light(offset):
    """Two tiles never give quite the same box; the class head must see the same crop."""
    centre = np.array([48.3, 51.8])
    half = np.array([9.0, 8.0])
    box = np.float32(np.concatenate([centre + offset - half, centre + offset + half]))
    (moved,) = centre_boxes(picture(centre)[None], np.array([0]), box[None])
    np.testing.assert_allclose(0.5 * (moved[:2] + moved[2:]), centre, atol=0.12)
    np.testing.assert_allclose(moved[2:] - moved[:2], 2 * half, rtol=1e-5)


def test_boxes_know_their_tile():
    """In a batch each box is moved by the light of its own tile."""
    tiles = np.stack([picture((40, 40)), picture((44, 38))])
    boxes = np.float32([[33, 31, 51, 49]] * 2)
    moved = centre_boxes(tiles, np.array([1, 0]), boxes)
    np.testing.assert_allclose(0.5 * (moved[:, :2] + moved[:, 2:]), [[44, 38], [40, 40]], atol=0.15)


def test_nothing_to_centre_on_leaves_the_box():
    """On empty sky, at the border, and where only a far neighbour shines, the box stays where the network put it."""
    sky = np.full((1, 96, 96, 3), 20, np.uint8)
    box = np.float32([[-3, 70, 17, 101]])
    np.testing.assert_array_equal(centre_boxes(sky, np.array([0]), box), box)
    neighbour = picture((48, 48), width=2.0, noise=0.0)[None]
    box = np.float32([[36, 54, 46, 64]])
    np.testing.assert_array_equal(centre_boxes(neighbour, np.array([0]), box), box)
    assert centre_boxes(sky, np.zeros(0, int), box[:0]).shape == (0, 4)
