"""Cross-identification of positions: the same as brute force, anywhere on the sky, also where positions coincide."""

import numpy as np
import pytest
import shapely
from astropy.coordinates import angular_separation
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surveycat import pairs as module
from surveycat.errors import OptionError
from surveycat.pairs import find_pairs, mutual_nearest, one_to_one, parse_regions, tied

ARCSEC = 1 / 3600


def separations(a, b):
    """All separations in arcsec, shape (N, M), by astropy."""
    (ra, dec), (other_ra, other_dec) = np.radians(a).T, np.radians(b).T
    return np.degrees(angular_separation(ra[:, None], dec[:, None], other_ra, other_dec)) * 3600


def is_decided(distance):
    """Tell whether rounding settles all ties: no equal separations lie where noise decides how they are rounded."""
    values = np.sort(distance, axis=None)
    in_tie = np.diff(values) < 1e-9
    equal = np.concatenate([values[1:][in_tie], values[:-1][in_tie]])
    return not (np.abs(equal * 10**module.DECIMALS % 1 - 0.5) < 0.2).any()


def brute_force(a, b, radius):
    """One-to-one pairs by going through all of them, closest first, lower indices first."""
    exact = separations(a, b)
    assume(is_decided(exact[exact <= radius]))
    distance = np.round(exact, module.DECIMALS)
    order = sorted((distance[i, j], i, j) for i, j in np.argwhere(distance <= radius).tolist())
    chosen, used_a, used_b = [], set(), set()
    for _, i, j in order:
        if i not in used_a and j not in used_b:
            chosen.append((i, j))
            used_a.add(i)
            used_b.add(j)
    return [(i, j) for _, i, j in order], chosen


@st.composite
def two_lists(draw):
    """Two lists near one another: anywhere, at a pole, over RA 0; with duplicates, and with exact ties on a grid."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centre_ra = draw(st.sampled_from([0.0, 359.9999, 123.4, 270.0]))
    centre_dec = draw(st.sampled_from([-90.0, -89.999, -45.0, 0.0, 30.0, 89.99, 90.0]))
    spread = draw(st.sampled_from([2, 60, 600])) * ARCSEC
    lists = []
    for n in (draw(st.integers(0, 25)), draw(st.integers(0, 25))):
        steps = rng.integers(-6, 7, (n, 2)) / 6 if draw(st.booleans()) else rng.uniform(-1, 1, (n, 2))
        dec = centre_dec + steps[:, 1] * spread
        over = np.abs(dec) > 90
        dec = np.where(over, np.sign(dec) * 180 - dec, dec)
        stretch = 1 / max(np.cos(np.radians(centre_dec)), spread / 90)
        ra = np.mod(centre_ra + steps[:, 0] * spread * stretch + 180 * over, 360)
        if n and draw(st.booleans()):
            twin = rng.integers(0, n, n // 2)
            ra, dec = np.append(ra, ra[twin]), np.append(dec, dec[twin])
        lists.append(np.column_stack([ra, dec]))
    return lists


@settings(max_examples=150, deadline=None)
@given(two_lists(), st.sampled_from([0.0, 1.0, 10.0, 180.0]))
def test_pairs_are_those_of_brute_force(lists, radius):
    """Every pair within the radius and no other, and of these the closest ones, one partner each."""
    a, b = lists
    every, chosen = brute_force(a, b, radius)
    pairs = find_pairs(*a.T, *b.T, radius)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == every
    np.testing.assert_allclose(pairs.separation, [separations(a, b)[i, j] for i, j in every], atol=2e-8, rtol=0)
    best = pairs.select(one_to_one(pairs))
    assert list(zip(best.first.tolist(), best.second.tolist(), strict=True)) == chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 180.0]))
def test_pairs_over_the_whole_sky(seed, radius):
    """Far positions are never pairs, and near ones always, wherever on the sphere."""
    rng = np.random.default_rng(seed)
    a = np.column_stack([rng.uniform(0, 360, 200), np.degrees(np.arcsin(rng.uniform(-1, 1, 200)))])
    moved = np.degrees([rng.normal(0, 3e-4, 200), rng.normal(0, 3e-4, 200)]).T
    b = np.where(rng.random((200, 1)) < 0.3, a, a + moved)
    b[:, 1] = np.clip(b[:, 1], -90, 90)
    every, _ = brute_force(a, b, radius)
    pairs = find_pairs(*a.T, *b.T, radius)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == every


def test_chunks_do_not_matter(monkeypatch):
    """What fits into memory at once must not change the answer."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 0.05, (300, 2)), rng.uniform(0, 0.05, (280, 2))
    whole = find_pairs(*a.T, *b.T, 10)
    monkeypatch.setattr(module, "CHUNK", 70)
    assert whole.first.tolist() == find_pairs(*a.T, *b.T, 10).first.tolist() and len(whole) > 300


def test_pole_is_one_position_at_any_right_ascension():
    """At Dec 90 the right ascension says nothing: radius 0 still finds the pair."""
    assert len(find_pairs(*np.array([[10.0], [90.0]]), *np.array([[200.0], [90.0]]), 0)) == 1


def test_right_ascension_0_and_360_are_one():
    """Catalogues write the same meridian in both ways."""
    assert len(find_pairs(*np.array([[0.0], [5.0]]), *np.array([[360.0], [5.0]]), 0)) == 1


def test_rows_without_position_have_no_pairs_and_keep_their_numbers():
    """NaN is no place; the indices of the others count it."""
    pairs = find_pairs(
        np.array([np.nan, 1.0]), np.array([0.0, 1.0]), np.array([1.0, np.nan]), np.array([1.0, np.nan]), 1
    )
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([1], [0])


def test_the_closer_of_two_takes_the_partner_and_the_other_its_next():
    """A second best partner is better than none, and is not called mutual."""
    ra, other = np.array([0.0, 1.0]) * ARCSEC, np.array([0.2, 2.5]) * ARCSEC
    pairs = find_pairs(ra, np.zeros(2), other, np.zeros(2), 2)
    chosen = one_to_one(pairs)
    assert list(zip(pairs.first[chosen], pairs.second[chosen], strict=True)) == [(0, 0), (1, 1)]
    assert mutual_nearest(pairs)[chosen].tolist() == [True, False]


def test_ties_are_told():
    """Two candidates at the same distance: the lower index wins, and the pair says that it was a tie."""
    pairs = find_pairs(np.zeros(1), np.zeros(1), np.array([ARCSEC, -ARCSEC, 3 * ARCSEC]), np.zeros(3), 5)
    assert pairs.second[one_to_one(pairs)].tolist() == [0]
    assert tied(pairs).tolist() == [True, True, False]


@pytest.mark.parametrize("radius", [-1, 3601, np.nan])
def test_radius_out_of_range_is_refused(radius):
    """A negative or absurd radius is a slip of the user, and is named."""
    with pytest.raises(OptionError, match="--radius"):
        find_pairs(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), radius)


def test_too_many_pairs_are_refused_before_memory_is_full(monkeypatch):
    """A large radius on a dense list must end in one line, not in a machine that swaps."""
    monkeypatch.setattr(module, "MAX_PAIRS", 50)
    with pytest.raises(OptionError, match="smaller radius"):
        find_pairs(np.zeros(10), np.zeros(10), np.zeros(10), np.zeros(10), 1)


# Footprints -----------------------------------------------------------------------------------------------


def polygon(corners):
    return "POLYGON ICRS " + " ".join(f"{ra:.9f} {dec:.9f}" for ra, dec in corners)


def turned(points, ra, dec):
    """Move offsets (degrees, on the equator around RA 0) to around a position: rotation of the sphere."""
    from astropy.coordinates import SkyCoord, SkyOffsetFrame

    frame = SkyOffsetFrame(origin=SkyCoord(ra, dec, unit="deg"))
    moved = SkyCoord(*points.T, unit="deg", frame=frame).icrs
    return np.column_stack([moved.ra.deg, moved.dec.deg])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(0.0, 0.0), (359.999, 40.0), (77.0, -89.99), (10.0, 90.0)]))
def test_footprint_pairs_are_those_in_the_plane(seed, centre):
    """Inside is inside wherever the polygon lies: the same answer as in the plane, near poles and over RA 0."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    star = rng.uniform(5, 30, (9, 1)) * ARCSEC * np.column_stack([np.cos(angles), np.sin(angles)])
    points = rng.uniform(-35, 35, (60, 2)) * ARCSEC
    border = shapely.distance(shapely.Polygon(star).exterior, shapely.points(points)) > 0.001 * ARCSEC
    points = points[border]
    inside = shapely.contains_xy(shapely.Polygon(star), *points.T)
    beyond = np.hypot(*points.T) > 3 * ARCSEC
    sky, position = turned(points, *centre), turned(np.zeros((1, 2)), *centre)
    pairs = find_pairs(*position.T, *sky.T, 3, [polygon(turned(star, *centre))])
    assert sorted(pairs.second[pairs.in_footprint]) == np.flatnonzero(inside & beyond).tolist()
    assert sorted(pairs.second[~pairs.in_footprint]) == np.flatnonzero(~beyond).tolist()


def test_regions_that_are_no_polygons_are_left_out():
    """Empty ones (off the projection) and other shapes have no inside; the rows keep their numbers."""
    rows, corners, counts = parse_regions(["", polygon([(1, 1), (2, 1), (1, 2)]), "CIRCLE ICRS 1 2 3", "POLYGON 1 2 3"])
    assert (rows.tolist(), counts.tolist(), corners.shape) == ([1], [3], (3, 3))


def test_footprint_of_an_empty_list_and_of_far_polygons():
    """Nothing near is no pair, and no error."""
    far = [polygon([(50, 1), (50.01, 1), (50, 1.01)])]
    assert not len(find_pairs(np.array([50.0]), np.array([1.0]), np.array([1.0]), np.array([1.0]), 1, far))
    assert not len(find_pairs(np.zeros(0), np.zeros(0), np.zeros(1), np.zeros(1), 1, []))
