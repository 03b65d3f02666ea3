"""Footprints and their outlines against shapely and scipy."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from surveycat.footprint import Footprint


def blob(seed, shape=(24, 31), smooth=1.5):
    """Random mask with several parts, holes and touching corners."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return noise > np.quantile(noise, 0.6)


def union_of_pixels(mask, y0=0, x0=0, block=1):
    """The mask as a polygon, from the squares of its pixels: slow, and obviously right."""
    rows, columns = np.nonzero(mask)
    left, low = (columns + x0) * block - 0.5, (rows + y0) * block - 0.5
    return shapely.union_all(shapely.box(left, low, left + block, low + block))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 0.7, 1.5, 3]), st.integers(0, 3))
def test_outline_has_the_area_and_centroid_of_its_pixels(seed, smooth, level):
    """Half a pixel or one row off, clockwise, a ring left open: all of this happened to others."""
    footprint = Footprint.from_mask(blob(seed, smooth=smooth), (5, 9), level, (600, 600))
    x, y = footprint.outline
    polygon, block = shapely.Polygon(np.column_stack([x, y])), 2**level
    assert polygon.is_valid and polygon.exterior.is_ccw
    rows, columns = np.nonzero(footprint.mask)
    assert polygon.area == len(rows) * block**2
    assert polygon.centroid.x == pytest.approx((columns.mean() + footprint.x0 + 0.5) * block - 0.5, abs=1e-9)
    assert polygon.centroid.y == pytest.approx((rows.mean() + footprint.y0 + 0.5) * block - 0.5, abs=1e-9)
    assert polygon.equals(union_of_pixels(footprint.mask, footprint.y0, footprint.x0, block))
    turns = (np.diff(x, append=x[0]) != 0) ^ (np.diff(y, append=y[0]) != 0)
    assert turns.all(), "every step is straight"
    assert (np.diff(x, append=x[0]) != 0).sum() * 2 == len(x), "no corner in the middle of an edge"


def test_outline_of_one_pixel():
    """The docstring's half-pixel convention, at its smallest."""
    x, y = Footprint.from_mask(np.ones((1, 1), bool), (3, 7), 0, (20, 20)).outline
    assert x.tolist() == [6.5, 7.5, 7.5, 6.5] and y.tolist() == [2.5, 2.5, 3.5, 3.5]


def test_largest_part_and_holes():
    """Crumbs go, holes are filled, and a touch by corners does not hang parts together."""
    mask = np.zeros((9, 12), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False  # a hole
    mask[6, 6] = True  # touches by a corner
    mask[8, 11] = True  # a crumb
    footprint = Footprint.from_mask(mask, (0, 0), 0, (9, 12))
    assert footprint.mask.shape == (5, 5) and footprint.mask.all()
    assert footprint.box == (1, 1, 6, 6)


def test_a_gap_closed_by_a_corner_only_is_a_hole():
    """Else the outline would touch itself and be no valid polygon."""
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    footprint = Footprint.from_mask(ring, (0, 0), 0, (3, 3))
    assert footprint.mask.sum() == 8
    assert shapely.Polygon(np.column_stack(footprint.outline)).area == 8


@pytest.mark.parametrize("level", [0, 2])
def test_footprints_are_cut_to_the_image(level):
    """A mask may hang over the border, and the last blocks of a level always may."""
    shape = (37, 50)
    footprint = Footprint.from_mask(np.ones((60, 80), bool), (-7, -3), level, shape)
    assert footprint.box == (0, 0, 37, 50)
    x, y = footprint.outline
    assert (x.min(), x.max(), y.min(), y.max()) == (-0.5, 49.5, -0.5, 36.5)


def test_footprint_outside_of_the_image():
    """Nothing to measure, and no crash."""
    for origin in ((-5, 3), (3, -5), (40, 3), (3, 60)):
        assert Footprint.from_mask(np.ones((5, 5), bool), origin, 0, (37, 50)) is None
    assert Footprint.from_mask(np.zeros((5, 5), bool), (3, 3), 0, (37, 50)) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 8), st.integers(0, 8))
def test_painting_on_a_finer_grid(seed, level, margin_y, margin_x):
    """A coarse mask covers the pixels that its blocks hold, the last ones cut at the image."""
    shape = (75, 103)
    height, width = (-(-n // 2**level) for n in shape)
    footprint = Footprint.from_mask(blob(seed, (height, width)), (0, 0), level, shape)
    y0, x0, y1, x1 = footprint.box
    box = (max(0, y0 - margin_y), max(0, x0 - margin_x), min(75, y1 + margin_y), min(103, x1 + margin_x))
    dense = np.zeros((height, width), bool)
    dense[footprint.y0 :, footprint.x0 :][: footprint.mask.shape[0], : footprint.mask.shape[1]] = footprint.mask
    dense = dense.repeat(2**level, axis=0).repeat(2**level, axis=1)[:75, :103]
    assert np.array_equal(footprint.on_grid(box, 0), dense[box[0] : box[2], box[1] : box[3]])
    assert shapely.Polygon(np.column_stack(footprint.outline)).area == dense.sum()
