"""The shipped network on a painted field whose truth is known to the pixel."""

from pathlib import Path

import numpy as np
import pytest
from simulate import simulate_field

import surveycat

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "compact" / "config.json"
NEAR = 3.0  # pixels within which a row is the galaxy
LARGE = 100  # pixels of area above the noise

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no trained weights yet: {WEIGHTS} is missing")


@pytest.fixture(scope="module")
def field():
    """A field of 2048 x 2048 pixels: its truth, and the catalogue that the shipped weights give."""
    image, truth = simulate_field((2048, 2048), n_spiral=90, n_elliptical=80, n_star=250, seed=12, n_faint=300)
    return truth, surveycat.run(image, ra=180.0, dec=30.0)


def pairs(truth, table):
    """Match rows and true galaxies one to one, nearest first; gives both indices and the distance in pixels."""
    dx = np.asarray(table["x"])[:, None] - np.asarray(truth["x"])
    dy = np.asarray(table["y"])[:, None] - np.asarray(truth["y"])
    distance = np.hypot(dx, dy)
    rows, galaxies = np.nonzero(distance < NEAR)
    order = np.argsort(distance[rows, galaxies])
    found, used = [], (set(), set())
    for row, galaxy in zip(rows[order].tolist(), galaxies[order].tolist(), strict=True):
        if row not in used[0] and galaxy not in used[1]:
            found.append((row, galaxy, distance[row, galaxy]))
            used[0].add(row)
            used[1].add(galaxy)
    return [np.array(column) for column in zip(*found, strict=True)]


def test_field_has_what_is_counted(field):
    """The figures below are of more than a hundred galaxies, not of a handful."""
    truth, _ = field
    assert np.count_nonzero(truth["area"] > LARGE) > 100


def test_completeness(field):
    """Of the galaxies larger than 100 px at least 0.95 have a row."""
    truth, table = field
    _, galaxies, _ = pairs(truth, table)
    found = np.isin(np.arange(len(truth)), galaxies)
    assert found[truth["area"] > LARGE].mean() >= 0.95


def test_purity(field):
    """Of the rows larger than 100 px at least 0.95 are a galaxy, once each; stars and doubles are not."""
    truth, table = field
    rows, _, _ = pairs(truth, table)
    large = np.asarray(table["area_pix"]) > LARGE
    assert np.isin(np.arange(len(table)), rows)[large].mean() >= 0.95


def test_class_and_position(field):
    """Spirals and ellipticals are told apart in at least 0.90, and lie within 0.3 px in the median."""
    truth, table = field
    rows, galaxies, distance = pairs(truth, table)
    large = truth["area"][galaxies] > LARGE
    right = np.asarray(table["class"])[rows] == np.asarray(truth["class"])[galaxies]
    assert right[large].mean() >= 0.90
    assert np.median(distance[large]) < 0.3
