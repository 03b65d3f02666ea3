"""Are a catalogue's positions right? Residuals against a reference, and what is wrong with a WCS where they are large.

A WCS that is shifted, turned or mirrored leaves few or no pairs, so that pairs cannot tell what is wrong with it.
`solve` therefore tries to lay two objects of the catalogue on any two of the reference that are as far apart: only the
right two bring many others onto each other at once.
"""

from dataclasses import asdict, dataclass

import numpy as np

from surveycat.pairs import find_pairs, gnomonic, one_to_one
from surveycat.wcs import unit_vectors

__all__ = ["Solution", "chance_pairs", "check_wcs", "fit", "residuals", "solve"]

ARCSEC = np.degrees(1) * 3600  # in a radian
MAX_ROWS, MAX_REFERENCE = 100, 500  # positions that are compared with each other
MAX_BASES = 30  # pairs of the catalogue that are laid on pairs of the reference
MAX_REFINED = 10
NEAR = 2.0  # arcsec that two positions may be off while a solution is rough
TRIALS = 1e7  # ways to lay one on the other that are looked at, in order of magnitude
CHANCE = 1e-3  # that a solution which is accepted is none
LEAST_PAIRS = 5
LEAST_SHIFT = 0.3  # arcsec; less is no fault of a WCS worth a warning
SURE = 5.0  # standard errors


@dataclass(frozen=True)
class Solution:
    """How a catalogue's positions must be changed to lie on the reference's.

    They are mirrored (east and west exchanged), then turned, then shifted, in the plane that touches the sphere at the
    middle of the field.

    Parameters
    ----------
    mirrored : bool
    rotation : float
        Degrees, from north to east.
    scale : float
        Factor of distances.
    shift_east, shift_north : float
        Arcsec at the middle of the field.
    n_pairs, n_objects : int
        Positions that then have a partner within the radius, of how many that were looked at.
    """

    mirrored: bool
    rotation: float
    scale: float
    shift_east: float
    shift_north: float
    n_pairs: int
    n_objects: int


# Residuals ------------------------------------------------------------------------------------------------


def residuals(matched):
    """Offsets of partners: reference minus catalogue.

    Parameters
    ----------
    matched : `~surveycat.match.Matched`

    Returns
    -------
    east, north : float ndarray, shape (N,)
        Arcsec, of the chosen pairs that have positions.
    where : float ndarray, shape (N, 2)
        Eastward and northward from the middle of the catalogue, arcsec.
    """
    pairs = matched.chosen
    pairs = pairs.select(np.isfinite(pairs.separation))
    here, there = matched.places, matched.reference_places
    vectors = unit_vectors(here.ra[pairs.first], here.dec[pairs.first]).T
    others = unit_vectors(there.ra[pairs.second], there.dec[pairs.second]).T
    if not len(pairs):
        return *np.zeros((2, 0)), np.zeros((0, 2))
    east, north = gnomonic(others, vectors).T * ARCSEC
    return east, north, gnomonic(vectors, middle(vectors)) * ARCSEC


def middle(vectors):
    """Mean direction of unit vectors, shape (3,)."""
    total = vectors.sum(axis=0)
    return total / max(np.linalg.norm(total), 1e-300)


def spread(values):
    """Median and scaled median absolute deviation (that of a normal distribution is its sigma); NaN of nothing."""
    if not len(values):
        return np.nan, np.nan
    centre = np.median(values)
    return float(centre), float(1.4826 * np.median(np.abs(values - centre)))


def fit(here, there):
    """Fit shift, rotation and scale that bring positions onto others (least squares, outliers left out).

    Parameters
    ----------
    here, there : float ndarray, shape (N, 2)
        Eastward and northward, arcsec.

    Returns
    -------
    matrix : float ndarray, shape (2, 2)
        ``there = here @ matrix.T + shift``; a rotation times a scale.
    shift : float ndarray, shape (2,)
    error : float
        Standard error of a coordinate of the shift, arcsec.
    error_angle : float
        Standard error of the rotation (radians) and of the scale.
    """
    keep = np.ones(len(here), bool)
    for _ in range(5):
        h, t = here[keep], there[keep]
        h0, t0 = h.mean(axis=0), t.mean(axis=0)
        (x, y), (u, v) = (h - h0).T, (t - t0).T
        power = max((x * x + y * y).sum(), 1e-12)
        a, b = (x * u + y * v).sum() / power, (x * v - y * u).sum() / power
        matrix = np.array([[a, -b], [b, a]])
        shift = t0 - h0 @ matrix.T
        away = np.hypot(*(there - here @ matrix.T - shift).T)
        sigma = max(1.4826 * np.median(away[keep]) / 1.18, 1e-9)
        keep = away < max(3.5 * sigma, 1e-6)
    n = max(int(keep.sum()), 1)
    return matrix, shift, sigma / np.sqrt(n), sigma / np.sqrt(power)


# Solutions ------------------------------------------------------------------------------------------------


def solve(ra, dec, other_ra, other_dec, radius, centre=None):
    """Find the mirroring, angle and shift that bring most positions of a field onto those of a reference.

    Parameters
    ----------
    ra, dec : float ndarray, shape (N,)
        Positions of one field, finite, degrees.
    other_ra, other_dec : float ndarray, shape (M,)
        Reference, finite.
    radius : float
        Arcsec within which positions are partners.
    centre : float ndarray, shape (3,), optional
        Unit vector of the middle of the field; that of the positions by default.

    Returns
    -------
    Solution or None
        None where no solution is better than chance.
    """
    here, there, reach = _limited(*_plane(ra, dec, other_ra, other_dec, centre))
    if len(here) < LEAST_PAIRS or len(there) < LEAST_PAIRS:
        return None
    tried = [(*each, mirrored) for mirrored in (False, True) for each in _hypotheses(here, there, reach, mirrored)]
    tried.sort(key=lambda each: -each[0])
    refined = [_refined(here, there, mirrored, turn, shift, radius) for _, turn, shift, mirrored in tried[:MAX_REFINED]]
    return max((each for each in refined if each is not None), key=lambda each: each.n_pairs, default=None)


def _plane(ra, dec, other_ra, other_dec, centre):
    """Both lists in the plane that touches the sphere at the middle of the field; arcsec, what is behind left out."""
    vectors, others = unit_vectors(ra, dec).T, unit_vectors(other_ra, other_dec).T
    centre = middle(vectors) if centre is None else centre
    others = others[others @ centre > 0.5]
    return gnomonic(vectors, centre) * ARCSEC, gnomonic(others, centre) * ARCSEC


def _limited(here, there):
    """What lies around the middle, few enough to try everything; and the radius of that disc."""
    distance, far = np.hypot(*here.T), np.hypot(*there.T)
    reach = max(float(np.max(distance, initial=0)), 1.0)
    if len(far) > MAX_REFERENCE:  # a shifted field must still find itself
        reach = min(reach, float(np.sort(far)[MAX_REFERENCE - 1]) / 1.5)
    inside = np.flatnonzero(distance <= reach)
    inside = inside[:: max(1, -(-len(inside) // MAX_ROWS))]
    return here[inside], there[far <= 1.5 * reach], reach


def _hypotheses(here, there, reach, mirrored):
    """The best way to lay each of some pairs of `here` on a pair of `there`: (hits, turn, shift) as complex numbers."""
    points, others = _complex(here, mirrored), _complex(there, False)
    cells, low = _painted(there)
    first, second = np.triu_indices(len(points), 1)
    length = np.abs(points[second] - points[first])
    wide = np.flatnonzero((length > 0.4 * reach) & (length < 1.2 * reach))
    chosen = np.random.default_rng(0).permutation(wide)[:MAX_BASES]
    a, b = np.nonzero(~np.eye(len(others), dtype=bool))
    apart = np.abs(others[b] - others[a])
    order = np.argsort(apart)
    a, b, apart = a[order], b[order], apart[order]
    for p, q, size in zip(points[first[chosen]], points[second[chosen]], length[chosen], strict=True):
        same = slice(*np.searchsorted(apart, [size - NEAR, size + NEAR]))
        turn = (others[b[same]] - others[a[same]]) / (q - p)
        turn /= np.abs(turn)
        shift = (others[a[same]] + others[b[same]]) / 2 - turn * (p + q) / 2
        hits = _hits(turn[:, None] * points + shift[:, None], cells, low)
        if len(hits):
            best = int(np.argmax(hits))
            yield int(hits[best]), turn[best], shift[best]


def _complex(points, mirrored):
    """Positions in the plane as complex numbers, east and west exchanged where mirrored."""
    return (-points[:, 0] if mirrored else points[:, 0]) + 1j * points[:, 1]


def _painted(there):
    """Cells of an arcsec that are near a position: a picture, and its corner."""
    from scipy.ndimage import maximum_filter

    low = there.min(axis=0) - 2 * NEAR
    cells = np.zeros(np.ceil(there.max(axis=0) + 2 * NEAR - low).astype(int) + 1, bool)
    cells[tuple((there - low).astype(int).T)] = True
    y, x = np.mgrid[-2:3, -2:3]
    return maximum_filter(cells, footprint=np.hypot(x, y) <= NEAR), low


def _hits(points, cells, low):
    """How many of the complex numbers in each row lie on painted cells."""
    x, y = (points.real - low[0]).astype(int), (points.imag - low[1]).astype(int)
    inside = (points.real >= low[0]) & (points.imag >= low[1]) & (x < cells.shape[0]) & (y < cells.shape[1])
    return (cells[np.where(inside, x, 0), np.where(inside, y, 0)] & inside).sum(axis=1)


def _refined(here, there, mirrored, turn, shift, radius):
    """Fit to the pairs that a rough solution gives, narrower each time; None if what is left may be chance."""
    points = _complex(here, mirrored)
    start = np.column_stack([points.real, points.imag])
    matrix, offset = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]]), np.array([shift.real, shift.imag])
    radius = max(radius, 0.5)
    for within in (2 * NEAR + radius, NEAR + radius, radius, radius):
        first, second = _nearest(start @ matrix.T + offset, there, within)
        if len(first) < LEAST_PAIRS:
            return None
        matrix, offset, *_ = fit(start[first], there[second])
    moved = start @ matrix.T + offset
    n_pairs = len(_nearest(moved, there, radius)[0])
    if not _beyond_chance(n_pairs, moved, there, radius, TRIALS):
        return None
    rotation = float(np.degrees(-np.arctan2(matrix[1, 0], matrix[0, 0])))  # from (east, north) to north through east
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    return Solution(mirrored, rotation, scale, float(offset[0]), float(offset[1]), n_pairs, len(here))


def _nearest(here, there, radius):
    """Mutual nearest neighbours in the plane within a radius: indices into both."""
    from scipy.spatial import cKDTree

    apart, second = cKDTree(there).query(here, distance_upper_bound=radius)
    found = np.flatnonzero(np.isfinite(apart))
    _, back = cKDTree(here).query(there[second[found]])
    found = found[back == found]
    return found, second[found]


def _beyond_chance(n_pairs, here, there, radius, trials):
    """Whether so many pairs are too many to be chance."""
    from scipy.stats import poisson

    return n_pairs >= LEAST_PAIRS and poisson.sf(n_pairs - 1, chance_pairs(here, there, radius)) * trials < CHANCE


def chance_pairs(here, there, radius):
    """Number of pairs that unrelated positions would have.

    Parameters
    ----------
    here, there : float ndarray, shape (N, 2), (M, 2)
        Positions in a plane.
    radius : float
        In the same unit.

    Returns
    -------
    float
        Mean number, from the density of the reference around ten times the radius.
    """
    from scipy.spatial import cKDTree

    if not len(here) or not len(there):
        return 0.0
    near = cKDTree(there).query_ball_point(here, 10 * radius, return_length=True)
    return float(near.sum()) / 100


# Verdict --------------------------------------------------------------------------------------------------


def check_wcs(ra, dec, other_ra, other_dec, radius, centre=None):
    """Judge the WCS of one field by its positions.

    Parameters
    ----------
    ra, dec : float ndarray, shape (N,)
        Positions of one field, degrees; NaN are left out.
    other_ra, other_dec : float ndarray, shape (M,)
        Reference.
    radius : float
        Arcsec within which positions are partners.
    centre : float ndarray, shape (3,), optional
        Unit vector of the middle of the image. Without it a shift cannot be told from mirroring or turning about
        another point, and is not called a fault beside these.

    Returns
    -------
    dict
        ``verdict``: "good", "wrong", or "unknown" where there are too few pairs to tell; ``warnings``: what is wrong,
        one line each; ``n_pairs`` as the positions are; ``fit``: shift (arcsec), rotation (degrees) and scale of these
        pairs, with standard errors, None without pairs; ``solution``: what would be right, None if it is not known.
    """
    (ra, dec), (other_ra, other_dec) = _finite(ra, dec), _finite(other_ra, other_dec)
    pairs = find_pairs(ra, dec, other_ra, other_dec, radius)
    pairs = pairs.select(one_to_one(pairs))
    result = {"verdict": "unknown", "warnings": [], "n_pairs": len(pairs), "fit": None, "solution": None}
    if not len(ra) or not len(other_ra):
        return result
    here, there = _plane(ra, dec, other_ra, other_dec, centre)
    if len(pairs) < 0.5 * min(len(here), _within(there, here)):
        found = solve(ra, dec, other_ra, other_dec, radius, centre)
        if found is not None and found.n_pairs > 1.3 * _pairs_among(here, there, radius) + 3:
            warning = _said(found, radius, centre is not None)
            return {**result, "verdict": "wrong", "warnings": [warning], "solution": asdict(found)}
    if not _beyond_chance(len(pairs), here, there, radius, 1):
        return result
    vectors, others = unit_vectors(ra, dec).T, unit_vectors(other_ra, other_dec).T
    centre = middle(vectors)
    here, there = (gnomonic(v[i], centre) * ARCSEC for v, i in ((vectors, pairs.first), (others, pairs.second)))
    matrix, shift, error, error_angle = fit(here, there)
    result["fit"] = _numbers(matrix, shift, error, error_angle)
    result["warnings"] = _doubts(result["fit"], float(np.hypot(*here.T).max()))
    result["verdict"] = "wrong" if result["warnings"] else "good"
    return result


def _finite(ra, dec):
    keep = np.isfinite(ra) & np.isfinite(dec)
    return ra[keep], dec[keep]


def _within(there, here):
    """How many of the reference lie in the box around the field."""
    low, high = here.min(axis=0), here.max(axis=0)
    return int(((there >= low) & (there <= high)).all(axis=1).sum())


def _pairs_among(here, there, radius):
    """How many of the positions that `solve` looks at have a partner as they are."""
    here, there, _ = _limited(here, there)
    return len(_nearest(here, there, radius)[0])


def _numbers(matrix, shift, error, error_angle):
    """A fit in words of a report."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    return {
        "shift_east": float(shift[0]),
        "shift_north": float(shift[1]),
        "shift_error": float(error),
        "rotation": float(np.degrees(-np.arctan2(matrix[1, 0], matrix[0, 0]))),
        "rotation_error": float(np.degrees(error_angle)),
        "scale": scale,
        "scale_error": float(error_angle),
    }


def _doubts(fitted, reach):
    """Warnings about a fit to pairs; `reach` is the distance of the farthest from the middle, arcsec."""
    warnings = []
    shift = float(np.hypot(fitted["shift_east"], fitted["shift_north"]))
    if shift > LEAST_SHIFT and shift > SURE * fitted["shift_error"]:
        warnings.append(
            f"the WCS looks shifted: the reference lies {fitted['shift_east']:+.2f} arcsec east and "
            f"{fitted['shift_north']:+.2f} north of the catalogue"
        )
    turned, allowed = abs(fitted["rotation"]), np.degrees(LEAST_SHIFT / max(reach, 1.0))
    if turned > allowed and turned > SURE * fitted["rotation_error"]:
        warnings.append(f"the WCS looks rotated: by {-fitted['rotation']:+.3f} degrees (north to east)")
    stretched = abs(fitted["scale"] - 1)
    if stretched > LEAST_SHIFT / max(reach, 1.0) and stretched > SURE * fitted["scale_error"]:
        warnings.append(f"the pixel scale looks wrong: it should be {fitted['scale']:.5f} times what it is")
    return warnings


def _said(found, radius, centre_known):
    """A solution as a warning."""
    mirrored, rotated = found.mirrored, abs(found.rotation) > 0.1
    far = np.hypot(found.shift_east, found.shift_north) > max(radius, LEAST_SHIFT)
    shifted = far and (centre_known or not (mirrored or rotated))
    stretched = abs(found.scale - 1) > 0.002
    faults = {"mirrored": mirrored, "rotated": rotated, "shifted": shifted, "of another scale": stretched}
    changes = {
        "mirrored (east and west exchanged)": mirrored,
        f"turned by {found.rotation:+.2f} degrees (north to east)": rotated,
        f"shifted by {found.shift_east:+.1f} arcsec east and {found.shift_north:+.1f} north": far,
        f"stretched by {found.scale:.4f}": stretched,
    }
    return (
        f"the WCS looks {' and '.join(name for name, so in faults.items() if so) or 'wrong'}: {found.n_pairs} of "
        f"{found.n_objects} objects would have a partner within {radius:g} arcsec if positions were "
        f"{', then '.join(name for name, so in changes.items() if so) or 'slightly moved'}"
    )
