"""Which of several views of one galaxy is the one to count.

Cutouts overlap, and a galaxy near one target is seen in the cutout of another, too. Each view keeps its row; one is
primary. Views are of the same galaxy if

- they are from different cutouts,
- both are whole, their centroids are nearer than half of the smaller one's radius and their areas differ by less than
  4 times (a companion on a large disc is a galaxy of its own); or one is cut by the edge of its cutout and its centroid
  is within the radius of the other,
- and neither has a nearer partner in the other's cutout: where a cutout shows two galaxies, they stay two.

Then, from the best view down, each one not yet taken is primary and takes its partners, as the seam rule does it with
tiles. Nothing depends on the order in which cutouts were done.
"""

import numpy as np

from surveycat.catalog import FLAGS
from surveycat.wcs import unit_vectors

__all__ = ["LEAST_ARCSEC", "primary", "same_galaxy"]

LEAST_ARCSEC = 1.0  # by which centroids of one small galaxy differ between cutouts
SAME_AREA = 4.0
BLOCK = 20_000  # rows whose neighbours are looked for at once


def same_galaxy(ra, dec, cutout, area, flags):
    """Find the pairs of views that are of the same galaxy.

    Parameters
    ----------
    ra, dec : ndarray of float64, shape (N,)
        ICRS degrees of the centroid.
    cutout : ndarray, shape (N,)
        In which cutout it was seen.
    area : ndarray of float64, shape (N,)
        Area of the footprint, arcsec2.
    flags : ndarray of int32, shape (N,)
        As in the catalogue.

    Returns
    -------
    i, j : ndarray of int64, shape (P,)
        Rows of each pair, ``i < j``.
    """
    from scipy.spatial import cKDTree

    if not len(ra):
        return np.empty((2, 0), np.int64)
    cutout = np.unique(cutout, return_inverse=True)[1]
    points = np.ascontiguousarray(unit_vectors(ra, dec).T)  # else the tree has a copy
    tree = cKDTree(points)
    pairs = [
        _same(*_neighbours(tree, points, block, np.sqrt(area[block] / np.pi)), cutout, area, flags)
        for block in np.array_split(np.arange(len(ra)), -(-len(ra) // BLOCK))
    ]
    i, j, apart = (np.concatenate(values) for values in zip(*pairs, strict=True))
    i, j, apart = _undirected(i, j, apart, len(ra))
    who, other = np.concatenate([i, j]), np.concatenate([j, i])
    mutual = np.logical_and(*np.split(_nearest(who, cutout[other], np.concatenate([apart, apart])), 2))
    return i[mutual], j[mutual]


def primary(i, j, rank):
    """Choose the view to count of each galaxy.

    Parameters
    ----------
    i, j : ndarray of int64, shape (P,)
        Pairs of views of the same galaxy.
    rank : ndarray of int64, shape (N,)
        The best view has the lowest.

    Returns
    -------
    ndarray of bool, shape (N,)
        True for one view of each galaxy.
    """
    chosen = np.ones(len(rank), bool)
    _take(chosen, i, j, rank)
    return chosen


def _neighbours(tree, points, block, radius):
    """Give rows i of a block, rows j within the radius of each of its rows, and their distances in arcsec."""
    reach = np.maximum(radius, LEAST_ARCSEC)
    lists = tree.query_ball_point(points[block], 2 * np.sin(np.radians(reach / 3600) / 2))
    i = np.repeat(block, [len(each) for each in lists])
    j = np.concatenate([np.asarray(each, np.int64) for each in lists])
    i, j = i[i != j], j[i != j]
    chord = np.linalg.norm(points[i] - points[j], axis=1)
    return i, j, np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600


def _same(i, j, apart, cutout, area, flags):
    """Keep the pairs that are views of one galaxy."""
    cut = (flags[i] | flags[j]) >> FLAGS["edge_truncated"] & 1 == 1
    small, large = np.minimum(area[i], area[j]), np.maximum(area[i], area[j])
    whole = (apart <= np.maximum(LEAST_ARCSEC, 0.5 * np.sqrt(small / np.pi))) & (large < SAME_AREA * small)
    same = (cutout[i] != cutout[j]) & (cut | whole)
    return i[same], j[same], apart[same]


def _undirected(i, j, apart, n):
    """Give each pair once, the lower row first."""
    key, first = np.unique(np.minimum(i, j) * n + np.maximum(i, j), return_index=True)
    return key // n, key % n, apart[first]


def _nearest(row, other_cutout, apart):
    """Whether a pair is the nearest of those that join `row` to that cutout."""
    _, group = np.unique(np.stack([row, other_cutout]), axis=1, return_inverse=True)
    best = np.full(group.max(initial=-1) + 1, np.inf)
    np.minimum.at(best, group.ravel(), apart)
    return apart <= best[group.ravel()]


def _take(chosen, i, j, rank):
    """Walk from the best view down; each one that is still there takes its partners away."""
    partners = {}
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    for row in sorted(partners, key=rank.__getitem__):
        if chosen[row]:
            chosen[partners[row]] = False
