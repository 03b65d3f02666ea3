"""Which of several views of a galaxy counts: one each, whatever the order."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat.catalog import FLAGS
from surveycat.primary import primary, same_galaxy

CUT = 1 << FLAGS["edge_truncated"]


def choose(east_arcsec, cutout, area=None, flags=None, rank=None, ra=0.0, dec=30.0):
    """Choose among views that lie in a row."""
    n = len(east_arcsec)
    ra = (ra + np.array(east_arcsec) / 3600 / np.cos(np.radians(dec))) % 360
    area = np.full(n, 100.0) if area is None else np.array(area, float)
    flags = np.zeros(n, int) if flags is None else np.array(flags)
    rank = np.arange(n) if rank is None else np.array(rank)
    return primary(*same_galaxy(ra, np.full(n, dec), np.array(cutout), area, flags), rank).tolist()


def test_the_best_of_two_views():
    """The one with the lowest rank, across RA 0 too."""
    assert choose([-0.2, 0.2], [0, 1]) == [True, False]
    assert choose([-0.2, 0.2], [0, 1], rank=[1, 0]) == [False, True]


def test_what_one_cutout_shows_twice_stays_two():
    """The network has decided; and each keeps its own partner in another cutout."""
    assert choose([0, 0.5], [3, 3]) == [True, True]
    assert choose([0, 2.0, 0.1, 2.1], [0, 0, 1, 1]) == [True, True, False, False]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_only_the_nearest_partner_is_taken_in_any_order(order):
    """A view between two galaxies of another cutout is one of the nearer one, whichever row comes first."""
    order = list(order)
    east, cutout, rank = np.array([0, 0.9, 0.5]), np.array([0, 0, 1]), np.array([1, 2, 0])
    expected = np.array([True, False, True])[order].tolist()
    assert choose(east[order], cutout[order], rank=rank[order]) == expected


def test_a_companion_on_a_disc_is_a_galaxy():
    """Seen in different cutouts, a small one on a large one is not the large one."""
    assert choose([0, 3], [0, 1], area=[3000, 60]) == [True, True]
    assert choose([0, 0.5], [0, 1], area=[3000, 60]) == [True, True]


def test_a_piece_at_the_edge_is_not_a_galaxy_of_its_own():
    """A view that its cutout's edge cuts off belongs to the whole one that it lies in."""
    assert choose([0, 12], [0, 1], area=[1000, 300], flags=[0, CUT]) == [True, False]
    assert choose([0, 30], [0, 1], area=[1000, 300], flags=[0, CUT]) == [True, True]


def test_nothing_is_nothing():
    """No rows, no views."""
    assert choose([], []) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 4))
def test_each_galaxy_counts_once_in_any_order(seed, n_galaxies, n_views):
    """Well separated galaxies, each seen in some cutouts: one primary view each, and no order of rows changes which."""
    rng = np.random.default_rng(seed)
    galaxy = np.repeat(np.arange(n_galaxies), n_views)
    dec = rng.uniform(-80, 80)
    ra = (359.99 + galaxy * 30 / 3600 / np.cos(np.radians(dec)) + rng.normal(0, 0.2, len(galaxy)) / 3600) % 360
    cutout = np.tile(np.arange(n_views), n_galaxies)
    area, rank = rng.uniform(60, 150, len(galaxy)), rng.permutation(len(galaxy))
    flags = np.zeros(len(galaxy), int)
    chosen = primary(*same_galaxy(ra, np.full(len(ra), dec), cutout, area, flags), rank)
    assert np.bincount(galaxy, chosen, n_galaxies).tolist() == [1] * n_galaxies
    best = [np.flatnonzero(galaxy == g)[rank[galaxy == g].argmin()] for g in range(n_galaxies)]
    assert chosen[best].all()
    order = rng.permutation(len(galaxy))
    pairs = same_galaxy(ra[order], np.full(len(ra), dec), cutout[order], area[order], flags)
    again = primary(*pairs, rank[order])
    assert (again == chosen[order]).all()
