"""Outlines become polygons of few corners that lie where the outlines are."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import blob
from test_footprint import blob as ragged_blob

from surveycat.footprint import Footprint
from surveycat.simplify import MAX_VERTICES, TOLERANCE, _middles, area_of, simplify


def outline_of(mask):
    """Outline of the largest part of a mask."""
    return Footprint.from_mask(mask, (0, 0), 0, mask.shape).outline


def ragged(seed, side, share):
    """Outline of a blob where a share of the pixels along the border are gone."""
    rng = np.random.default_rng(seed)
    mask = np.pad(blob(side, rng.uniform(0.6, 1), rng.uniform(0, np.pi), 0.1, 3), 2)
    inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    return outline_of(inner | mask & (rng.random(mask.shape) > share))


def comb(n_teeth):
    """Outline of a bar with teeth of one pixel, one pixel apart."""
    mask = np.ones((8, 2 * n_teeth + 1), bool)
    mask[0, 1::2] = False
    return outline_of(mask)


def away(one, two):
    """Distance between two outlines where they are farthest apart, pixels."""
    rings = [shapely.segmentize(shapely.Polygon(np.column_stack(each)).exterior, 0.1) for each in (one, two)]
    return shapely.hausdorff_distance(*rings)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([12, 25, 40]), st.sampled_from([0.0, 0.1]))
def test_polygons_lie_within_half_a_pixel_of_ragged_outlines(seed, side, share):
    """At most 64 corners, valid, counter-clockwise, the area to 1 % or that of a pixel, half a pixel away."""
    exact = ragged(seed, side, share)
    (simple,) = simplify([exact])
    polygon = shapely.Polygon(np.column_stack(simple))
    assert polygon.is_valid and polygon.exterior.is_ccw and len(simple[0]) <= MAX_VERTICES
    assert polygon.area == pytest.approx(area_of(*exact), rel=0.01, abs=1)
    assert away(exact, simple) <= TOLERANCE


def test_a_line_halfway_up_the_teeth():
    """Teeth of one pixel, far too many for a corner each, are within half a pixel of one straight line."""
    exact = comb(30)
    (simple,) = simplify([exact])
    assert len(simple[0]) <= MAX_VERTICES < len(exact[0])
    assert away(exact, simple) <= TOLERANCE


def test_what_no_few_corners_can_follow_still_is_a_polygon():
    """Teeth of three pixels cannot be followed with 64 corners: the polygon is valid, near, and has the area."""
    exact = tuple(3 * edge for edge in comb(60))
    (simple,) = simplify([exact])
    polygon = shapely.Polygon(np.column_stack(simple))
    assert polygon.is_valid and len(simple[0]) <= MAX_VERTICES
    assert polygon.area == pytest.approx(area_of(*exact), rel=0.01)
    assert away(exact, simple) < 6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(24, 31), (90, 120), (300, 200)]))
def test_simplified_polygons_keep_the_area(seed, shape):
    """At most 64 corners, valid, area to 3 %, and no corner far from the outline."""
    footprint = Footprint.from_mask(ragged_blob(seed, shape, smooth=shape[0] / 10), (0, 0), 0, shape)
    x, y = footprint.outline
    exact = shapely.Polygon(np.column_stack([x, y]))
    ((sx, sy),) = simplify([(x, y)])
    simple = shapely.Polygon(np.column_stack([sx, sy]))
    assert simple.is_valid and simple.exterior.is_ccw and len(sx) <= 64
    assert simple.area == pytest.approx(exact.area, rel=0.03)
    assert shapely.symmetric_difference(exact, simple).area < 0.7 * exact.length
    away = shapely.hausdorff_distance(exact.exterior, simple.exterior)
    closest = shapely.simplify(shapely.Polygon(_middles(x, y)), TOLERANCE - np.sqrt(0.125))
    assert away < 0.5 or shapely.get_num_coordinates(closest) > MAX_VERTICES + 1  # too ragged for so few
