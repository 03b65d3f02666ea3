"""Which positions of two lists belong together: geometry on the sphere, without tables.

Candidates are all pairs within a radius, and optionally those whose second position lies in the footprint of the
first. `one_to_one` chooses among them. Positions are degrees in one frame; they are compared as unit vectors, so
that neither RA 0 nor a pole is special.
"""

import re
from dataclasses import dataclass

import numpy as np

from surveycat.errors import OptionError
from surveycat.wcs import unit_vectors

__all__ = [
    "MAX_RADIUS",
    "Pairs",
    "find_pairs",
    "gnomonic",
    "in_regions",
    "footprint_pairs",
    "mutual_nearest",
    "one_to_one",
    "parse_regions",
    "separations",
    "tied",
]

MAX_RADIUS = 3600.0  # arcsec
MAX_PAIRS = 50_000_000  # 1.2 GB
CHUNK = 100_000  # rows that are looked up at once
DECIMALS = 8
"""Decimals of an arcsec to which separations are rounded. Positions in degrees as float64 are good to 2e-10 arcsec:
without rounding noise would break exact ties, and a pole would not be one position at all right ascensions."""

_POLYGON = re.compile(r"\s*POLYGON\s+(?:ICRS|J2000|FK5)?\s*((?:[-+.\deE]+\s*)+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pairs:
    """Pairs of positions, as columns of equal length, sorted by separation, then first, then second.

    Parameters
    ----------
    first, second : int64 ndarray, shape (N,)
        Index into the first and into the second list.
    separation : float64 ndarray, shape (N,)
        Arcsec, rounded to `DECIMALS`; NaN where one of the two has no position.
    in_footprint : bool ndarray, shape (N,)
        Beyond the radius, but the second lies in the footprint of the first.
    """

    first: np.ndarray
    second: np.ndarray
    separation: np.ndarray
    in_footprint: np.ndarray

    def __len__(self):
        return len(self.first)

    @classmethod
    def sorted(cls, first, second, separation, in_footprint=None):
        """Make pairs of unsorted columns; `in_footprint` is false by default."""
        inside = np.zeros(len(first), bool) if in_footprint is None else in_footprint
        order = np.lexsort((second, first, separation))
        return cls(first[order], second[order], separation[order], inside[order])

    def select(self, which):
        """Pairs of an index or a mask, in the same order."""
        return Pairs(self.first[which], self.second[which], self.separation[which], self.in_footprint[which])


def find_pairs(ra, dec, other_ra, other_dec, radius, regions=None):
    """Find all pairs of positions of two lists that are no farther apart than a radius.

    Parameters
    ----------
    ra, dec : float ndarray, shape (N,)
        First list, degrees; rows with NaN have no pairs.
    other_ra, other_dec : float ndarray, shape (M,)
        Second list.
    radius : float
        Largest separation, arcsec, included.
    regions : sequence of str, length N, optional
        Footprints ``POLYGON ICRS ra dec ...`` of the first list: what lies inside is a pair at any separation.

    Returns
    -------
    Pairs

    Raises
    ------
    OptionError
        If `radius` is out of range, or so large for these lists that there would be too many pairs.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise OptionError(f"--radius {radius:g} is not in 0 to {MAX_RADIUS:g} arcsec: give the largest separation")
    rows, vectors = _finite_vectors(ra, dec)
    others, other_vectors = _finite_vectors(other_ra, other_dec)
    if not len(rows) or not len(others):
        return Pairs.sorted(*np.zeros((2, 0), np.int64), np.zeros(0))
    tree = _tree(other_vectors)
    found = [_near(vectors, tree, radius)]
    if regions is not None:
        found.append(footprint_pairs(vectors, [regions[row] for row in rows], tree, radius))
    first, second, separation, inside = (np.concatenate(column) for column in zip(*found, strict=True))
    return Pairs.sorted(rows[first], others[second], separation, inside)


def separations(ra, dec, other_ra, other_dec):
    """Distances of positions, one by one.

    Parameters
    ----------
    ra, dec, other_ra, other_dec : float ndarray, shape (N,)
        Degrees.

    Returns
    -------
    float64 ndarray, shape (N,)
        Arcsec, rounded to `DECIMALS`; NaN where a coordinate is.
    """
    return _arcsec(np.linalg.norm(unit_vectors(ra, dec) - unit_vectors(other_ra, other_dec), axis=0))


def _finite_vectors(ra, dec):
    """Rows that have a position, and their unit vectors, shape (n, 3)."""
    rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    return rows, unit_vectors(np.mod(np.asarray(ra)[rows], 360), np.asarray(dec)[rows]).T


def _tree(vectors):
    from scipy.spatial import cKDTree

    return cKDTree(vectors)


def _near(vectors, tree, radius):
    """Pairs within the radius: columns first, second, separation, in_footprint."""
    reach = _chord(radius + 10**-DECIMALS)  # exact at the end, by the rounded separation
    order = np.argsort(vectors[:, 2], kind="stable")  # neighbours in Dec together: small trees
    parts, total = [], 0
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        part = _tree(vectors[rows])
        total += tree.count_neighbors(part, reach)
        if total > MAX_PAIRS:
            raise OptionError(
                f"--radius {radius:g} gives more than {MAX_PAIRS:,} pairs: choose a smaller radius, or match parts"
            )
        near = part.sparse_distance_matrix(tree, reach, output_type="ndarray")
        separation = _arcsec(near["v"])
        keep = separation <= radius
        parts.append((rows[near["i"][keep]], near["j"][keep], separation[keep]))
    first, second, separation = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, separation, np.zeros(len(first), bool)


def _chord(arcsec):
    """Distance of two unit vectors at an angle."""
    return 2 * np.sin(np.radians(arcsec / 3600) / 2)


def _arcsec(chord):
    """Angle between two unit vectors by their distance, rounded."""
    return np.round(np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600, DECIMALS)


# Footprints -----------------------------------------------------------------------------------------------


def parse_regions(regions):
    """Read polygons on the sky.

    Parameters
    ----------
    regions : sequence of str, length N
        ``POLYGON ICRS ra dec ra dec ...`` in degrees; the sides are great circles.

    Returns
    -------
    rows : int64 ndarray, shape (P,)
        Which of the texts are polygons of at least three corners.
    corners : float ndarray, shape (K, 3)
        Unit vectors of all their corners, one polygon after the other.
    counts : int64 ndarray, shape (P,)
        Number of corners of each.
    """
    rows, numbers = [], []
    for row, text in enumerate(regions):
        polygon = _POLYGON.match(str(text))
        values = np.array(polygon[1].split(), float) if polygon else np.zeros(0)
        if len(values) >= 6 and len(values) % 2 == 0:
            rows.append(row)
            numbers.append(values.reshape(-1, 2))
    places = np.concatenate(numbers) if numbers else np.zeros((0, 2))
    counts = np.array([len(each) for each in numbers], np.int64)
    return np.array(rows, np.int64), unit_vectors(*places.T).T, counts


def footprint_pairs(vectors, regions, tree, radius):
    """Find the positions that lie in a polygon and are farther from its row's position than the radius.

    Each polygon is projected from the centre of the sphere onto the plane that touches it (gnomonic), where
    great circles are straight lines.

    Parameters
    ----------
    vectors : float ndarray, shape (N, 3)
        Unit vectors of the first list.
    regions : sequence of str, length N
        Their footprints.
    tree : `scipy.spatial.cKDTree`
        Unit vectors of the second list.
    radius : float
        Arcsec.

    Returns
    -------
    first, second : int64 ndarray
        Pairs.
    separation : float64 ndarray
        Arcsec.
    in_footprint : bool ndarray
        True.
    """
    parts, step = [], CHUNK // 10
    for start in range(0, len(vectors), step):
        rows, corners, counts = parse_regions(regions[start : start + step])
        parts.append(_inside(vectors, start + rows, corners, counts, tree, radius))
    first, second, separation = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, separation, np.ones(len(first), bool)


def _inside(vectors, rows, corners, counts, tree, radius):
    """Pairs of some rows with polygons, beyond the radius: first, second, separation."""
    owner = np.repeat(np.arange(len(rows)), counts)
    centres = _centres(corners, owner, len(rows))
    reach = np.zeros(len(rows))
    np.maximum.at(reach, owner, np.linalg.norm(corners - centres[owner], axis=1))
    reach = np.where(reach < np.sqrt(2), reach * (1 + 1e-9), -1)  # not a hemisphere or more
    found = tree.query_ball_point(centres, np.maximum(reach, 0), return_sorted=True)
    polygon = np.repeat(np.arange(len(rows)), [len(each) for each in found])
    second = np.concatenate([np.asarray(each, np.int64) for each in found] or [np.zeros(0, np.int64)])
    first = rows[polygon]
    separation = _arcsec(np.linalg.norm(vectors[first] - tree.data[second], axis=1))
    keep = (separation > radius) & (reach[polygon] >= 0)
    polygon, first, second, separation = polygon[keep], first[keep], second[keep], separation[keep]
    keep = _in_polygons(polygon, tree.data[second], centres, corners, owner)
    return first[keep], second[keep], separation[keep]


def in_regions(ra, dec, regions):
    """Tell which positions lie in at least one of some polygons, border included.

    Parameters
    ----------
    ra, dec : float ndarray, shape (N,)
        Degrees; NaN lies nowhere.
    regions : sequence of str
        As in `parse_regions`.

    Returns
    -------
    bool ndarray, shape (N,)
    """
    rows, vectors = _finite_vectors(ra, dec)
    inside = np.zeros(len(ra), bool)
    polygons, corners, counts = parse_regions(regions)
    if len(rows) and len(polygons):
        centres = _centres(corners, np.repeat(np.arange(len(counts)), counts), len(counts))
        _, second, _ = _inside(centres, np.arange(len(counts)), corners, counts, _tree(vectors), -1)
        inside[rows[second]] = True
    return inside


def _centres(vectors, owner, n):
    """Mean direction of each polygon's corners, shape (n, 3)."""
    total = np.zeros((n, 3))
    np.add.at(total, owner, vectors)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300)


def _in_polygons(polygon, points, centres, corners, owner):
    """Tell for each point whether it lies in its polygon, border included."""
    import shapely

    needed, index = np.unique(polygon, return_inverse=True)
    of_needed = np.isin(owner, needed)
    rings = shapely.linearrings(
        gnomonic(corners[of_needed], centres[owner[of_needed]]),
        indices=np.searchsorted(needed, owner[of_needed]),
    )
    x, y = gnomonic(points, centres[polygon]).T
    return shapely.intersects_xy(shapely.polygons(rings)[index], x, y)


def gnomonic(vectors, centres):
    """Project from the centre of the sphere onto planes that touch it.

    Parameters
    ----------
    vectors, centres : float ndarray, shape (N, 3) or (3,)
        Unit vectors of what is projected and of where the planes touch, less than 90 degrees apart.

    Returns
    -------
    float ndarray, shape (N, 2)
        Eastward and northward, in radians near the centre; right of a pole "north" is along RA 180 degrees.
    """
    x, y, z = np.moveaxis(np.broadcast_to(centres, vectors.shape), -1, 0)
    level = np.hypot(x, y)
    at_pole = level == 0
    cos, sin = (
        np.where(at_pole, 1, x / np.where(at_pole, 1, level)),
        np.where(at_pole, 0, y / np.where(at_pole, 1, level)),
    )
    east = np.stack([-sin, cos, np.zeros_like(z)], axis=-1)
    north = np.stack([-z * cos, -z * sin, level], axis=-1)
    depth = (vectors * np.stack([x, y, z], axis=-1)).sum(-1)
    return np.stack([(vectors * east).sum(-1) / depth, (vectors * north).sum(-1) / depth], axis=-1)


# Choice ---------------------------------------------------------------------------------------------------


def one_to_one(pairs):
    """Choose pairs so that no position has two partners: always the closest pair of those still free.

    The result is the one stable assignment: no two positions that are not partners are closer to each other than
    each is to its partner. Equal separations are decided by the lower index in the first list, then in the second.

    Parameters
    ----------
    pairs : Pairs
        Candidates.

    Returns
    -------
    int64 ndarray
        Indices into `pairs`, increasing.
    """
    if not len(pairs):
        return np.zeros(0, np.int64)
    first_free = bytearray(b"\1") * (int(pairs.first.max()) + 1)
    second_free = bytearray(b"\1") * (int(pairs.second.max()) + 1)
    chosen = []
    for start in range(0, len(pairs), 1_000_000):  # lists of Python's own numbers are fast, and large
        part = slice(start, start + 1_000_000)
        for number, (a, b) in enumerate(
            zip(pairs.first[part].tolist(), pairs.second[part].tolist(), strict=True), start
        ):
            if first_free[a] and second_free[b]:
                first_free[a] = second_free[b] = 0
                chosen.append(number)
    return np.array(chosen, np.int64)


def mutual_nearest(pairs):
    """Tell which pairs are the closest of both their positions; of equal ones the first.

    Parameters
    ----------
    pairs : Pairs
        All candidates.

    Returns
    -------
    bool ndarray, shape (N,)
    """
    nearest = np.zeros((2, len(pairs)), bool)
    for side, index in zip(nearest, (pairs.first, pairs.second), strict=True):
        side[np.unique(index, return_index=True)[1]] = True  # the first of each: pairs are sorted by separation
    return nearest.all(axis=0)


def tied(pairs):
    """Tell which pairs have a rival at the same separation: another pair of one of their two positions.

    Parameters
    ----------
    pairs : Pairs
        All candidates.

    Returns
    -------
    bool ndarray, shape (N,)
    """
    result = np.zeros(len(pairs), bool)
    for index in (pairs.first, pairs.second):
        order = np.lexsort((pairs.separation, index))
        same = (np.diff(index[order]) == 0) & (np.diff(pairs.separation[order]) == 0)
        result[order[1:][same]] = True
        result[order[:-1][same]] = True
    return result
