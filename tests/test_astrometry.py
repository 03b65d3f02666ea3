"""A WCS that is wrong is noticed and named, and one that is right is left in peace."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat.astrometry import ARCSEC, check_wcs, fit, solve
from surveycat.tablefile import read_table
from surveycat.wcs import unit_vectors

CENTRE = (351.65, 0.1)


def sky(points, centre=CENTRE):
    """Positions of points in the plane (arcsec east, north) that touches the sphere at `centre`."""
    a, d = np.radians(centre)
    east, north = points.T / ARCSEC
    x, y, z = (
        np.cos(d) * np.cos(a) - east * np.sin(a) - north * np.sin(d) * np.cos(a),
        np.cos(d) * np.sin(a) + east * np.cos(a) - north * np.sin(d) * np.sin(a),
        np.sin(d) + north * np.cos(d),
    )
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))


def changed(points, mirrored=False, degrees=0.0, shift=(0.0, 0.0)):
    """What a wrong WCS makes of points in the plane."""
    points = points * [-1, 1] if mirrored else points
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cos, -sin], [sin, cos]]) + shift


def a_field(seed, n=60, n_reference=250, found=0.7):
    """Objects with noise of 0.1 arcsec, of which a part is in the reference, among others."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-400, 400, (n_reference, 2)) * [1, 0.7]
    n_found = int(n * found)
    here = np.vstack([reference[:n_found], rng.uniform(-400, 400, (n - n_found, 2)) * [1, 0.7]])
    return here + rng.normal(0, 0.1, here.shape), reference


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.floats(-180, 180), st.floats(-200, 200), st.booleans())
def test_any_mirroring_angle_and_shift_is_found(seed, mirrored, degrees, shift, at_pole):
    """The solution undoes what was done, wherever on the sky the field lies."""
    here, reference = a_field(seed, n_reference=150)
    centre = (0.01, 89.9) if at_pole else CENTRE
    wrong = changed(here, mirrored, degrees, (shift, -shift / 2))
    middle = unit_vectors(*(np.array([value]) for value in centre))[:, 0]
    found = solve(*sky(wrong, centre), *sky(reference, centre), 2.0, middle)
    assert found is not None and found.mirrored == mirrored and found.n_pairs >= 40
    back = found.scale * changed(wrong, found.mirrored, found.rotation) + [found.shift_east, found.shift_north]
    assert np.abs(back - here).max() < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_unrelated_positions_have_no_solution(seed):
    """Stars around a catalogue of galaxies must not be laid upon them."""
    here, reference = a_field(seed, found=0.0)
    verdict = check_wcs(*sky(here), *sky(reference), 2.0)
    assert (verdict["verdict"], verdict["warnings"], verdict["solution"]) == ("unknown", [], None)


def test_right_positions_are_good():
    """Noise and a few wrong pairs are no fault of the WCS; the fit says how small its errors are."""
    here, reference = a_field(3)
    verdict = check_wcs(*sky(here), *sky(reference), 2.0)
    assert (verdict["verdict"], verdict["warnings"]) == ("good", [])
    assert abs(verdict["fit"]["shift_east"]) < 5 * verdict["fit"]["shift_error"] < 0.2
    assert abs(verdict["fit"]["rotation"]) < 5 * verdict["fit"]["rotation_error"] < 0.05


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mirrored": True}, r"looks mirrored: 4\d of 60 objects .* \(east and west exchanged\)$"),
        ({"mirrored": True, "degrees": 90}, r"looks mirrored and rotated: .* then turned by [-+]90"),
        ({"degrees": 30}, r"looks rotated: .* turned by -30.00 degrees"),
        ({"shift": (50, -20)}, r"looks shifted: .* shifted by -50.\d arcsec east and \+20.\d north"),
        ({"shift": (0.8, 0)}, r"looks shifted: the reference lies -0.8\d arcsec east"),
        ({"degrees": 0.1}, r"looks rotated: by \+0.1\d\d degrees"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    """Each fault of a WCS gets one warning, that says what would be right."""
    here, reference = a_field(5)
    middle = unit_vectors(*np.array(CENTRE)[:, None])[:, 0]
    verdict = check_wcs(*sky(changed(here, **change)), *sky(reference), 2.0, middle)
    assert verdict["verdict"] == "wrong" and len(verdict["warnings"]) == 1
    assert re.search(said, verdict["warnings"][0]), verdict["warnings"]


def test_wrong_scale_is_named():
    """Half a percent of pixel scale leaves pairs in the middle only."""
    here, reference = a_field(6)
    verdict = check_wcs(*sky(here * 1.005), *sky(reference), 2.0)
    assert verdict["verdict"] == "wrong" and "scale" in " ".join(verdict["warnings"])


def test_real_field_against_real_detections(shared_data):
    """Galaxies of a real field find the survey's detections; mirrored ones are noticed."""
    folder = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    galaxies, detections = read_table(folder / "galaxies.csv"), read_table(folder / "lsst_detections_r.csv")
    there = np.array(detections["ra"]), np.array(detections["dec"])
    ra, dec = np.array(galaxies["ra"]), np.array(galaxies["dec"])
    assert check_wcs(ra, dec, *there, 2.0)["verdict"] == "good"
    verdict = check_wcs(2 * CENTRE[0] - ra, dec, *there, 2.0)
    assert verdict["verdict"] == "wrong" and "mirrored" in verdict["warnings"][0]


@pytest.mark.parametrize("n", [(0, 5), (5, 0), (1, 1), (3, 200)])
def test_too_few_to_tell(n):
    """Nothing is said of a handful of positions, and nothing breaks."""
    here, reference = a_field(0)
    assert check_wcs(*sky(here[: n[0]]), *sky(reference[: n[1]] + 1000), 2.0)["verdict"] == "unknown"


def test_fit_ignores_outliers():
    """A tenth of wrong pairs must not move the fit."""
    rng = np.random.default_rng(0)
    here = rng.uniform(-300, 300, (80, 2))
    there = changed(here, degrees=0.05, shift=(0.4, -0.2)) + rng.normal(0, 0.05, here.shape)
    there[:8] += rng.uniform(-2, 2, (8, 2))
    matrix, shift, error, _ = fit(here, there)
    np.testing.assert_allclose(shift, [0.4, -0.2], atol=5 * error)
    np.testing.assert_allclose(np.degrees(-np.arctan2(matrix[1, 0], matrix[0, 0])), 0.05, atol=0.005)
