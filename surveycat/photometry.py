"""Photometry of objects in linear data: apertures, errors, and how concentrated the light is.

Each object is measured in a window around it, on pixels of its own. Where footprints overlap, a pixel belongs to
one of them: to the object that lies on the other (its `host`), else to the one whose centre is nearer, in units of
their sizes (`Crowd`). Inside apertures, pixels of other objects and pixels without data are replaced by those on
the opposite side of the centre, as in SExtractor. The reference band sets position and aperture; all bands are
measured in it, so that differences of magnitudes are colours.
"""

from dataclasses import dataclass

import numpy as np

__all__ = [
    "APERTURES",
    "Crowd",
    "concentration",
    "gini",
    "likelihood_ratio",
    "measure_apertures",
    "median",
    "mirrored",
    "sky_and_noise",
]

APERTURES = (2.0, 6.0)  # pixels; radii whose magnitudes tell a star from a galaxy
KRON_FACTOR, KRON_MIN, KRON_REACH = 2.5, 1.4, 6.0  # as in SExtractor and photutils
MANY = 2**14  # values from which on it pays to look at a sample first
MISSING = 0.05  # share of an aperture without data above which it gives no flux
GALAXY_EXCESS, GALAXY_SPREAD = 0.7, 0.35  # mag; concentration of galaxies over stars, its mean and scatter


# Whose pixel is it ----------------------------------------------------------------------------------------


class Crowd:
    """The footprints of an image, and whose each pixel is where they overlap.

    Parameters
    ----------
    prints : list of `~surveycat.footprint.Footprint`
    hosts : array_like of int, shape (N,)
        Number of the larger object on which each one lies, -1 for none.
    """

    def __init__(self, prints, hosts):
        import shapely

        self._prints, self._hosts = prints, np.asarray(hosts)
        boxes = np.array([footprint.box for footprint in prints], float).reshape(-1, 4)
        y0, x0, y1, x1 = boxes.T
        self._tree = shapely.STRtree(shapely.box(x0, y0, x1, y1))
        shapes = [_centre_and_size(footprint) for footprint in prints]
        self._y, self._x, self._size = np.array(shapes, float).reshape(-1, 3).T

    def split(self, number, box, level):
        """Pixels of an object and of the others in a window.

        Parameters
        ----------
        number : int
            Which object.
        box : tuple of int
            Window ``(y0, x0, y1, x1)`` in pixels of `level`.
        level : int

        Returns
        -------
        own, others : ndarray of bool, shape (y1 - y0, x1 - x0)
            They share no pixel.
        """
        import shapely

        own = self._prints[number].on_grid(box, level)
        others = np.zeros_like(own)
        block = 2**level
        window = shapely.box(box[1] * block, box[0] * block, box[3] * block, box[2] * block)
        for other in sorted(self._tree.query(window).tolist()):
            if other == number:
                continue
            theirs = self._prints[other].on_grid(box, level)
            if (shared := own & theirs).any():
                mine = self._nearer(number, other, shared, box, level)
                own &= ~(shared & ~mine)
                theirs &= ~(shared & mine)
            others |= theirs
        return own, others & ~own

    def _nearer(self, number, other, shared, box, level):
        """Where, of the pixels that two objects share, those of the first are."""
        if self._hosts[other] == number or self._hosts[number] == other:
            return np.full(shared.shape, self._hosts[number] == other)
        block = 2**level
        rows = (np.arange(box[0], box[2]) + 0.5) * block - 0.5
        columns = (np.arange(box[1], box[3]) + 0.5) * block - 0.5
        distance = [np.hypot(rows[:, None] - self._y[i], columns - self._x[i]) / self._size[i] for i in (number, other)]
        first_wins = number < other  # where both are as near
        return distance[0] <= distance[1] if first_wins else distance[0] < distance[1]


def _centre_and_size(footprint):
    """Centre (y, x) in pixels of the image and square root of the area of a footprint."""
    rows, columns = np.nonzero(footprint.mask)
    block = 2**footprint.level
    y, x = (
        (axis.mean() + start + 0.5) * block - 0.5 for axis, start in ((rows, footprint.y0), (columns, footprint.x0))
    )
    return y, x, np.sqrt(len(rows)) * block


# Sky and light --------------------------------------------------------------------------------------------


def sky_and_noise(values, beyond):
    """Measure the sky around an object, cleaned of other sources.

    Parameters
    ----------
    values : ndarray, shape (h, w)
        Pixels of the window; NaN is left out.
    beyond : ndarray of bool, shape (h, w)
        Where no light of an object is expected.

    Returns
    -------
    sky, noise, error : float
        Mean and standard deviation of the pixels beyond, after three rounds that drop what lies more than 3 sigma
        (from the median absolute deviation) from the median; and the error of that mean. The mean is finer than the
        steps of an 8-bit picture, which a median is not. Where fewer than 30 pixels are left, the 5th percentile of the
        window (0 where it has no data at all), and NaN for the others.
    """
    sky = values[beyond & np.isfinite(values)]
    if len(sky) < 30:
        finite = values[np.isfinite(values)]
        return (float(np.percentile(finite, 5)) if len(finite) else 0.0), np.nan, np.nan
    sky = sky[:: -(-len(sky) // 10_000)]
    for _ in range(3):
        distance = np.abs(sky - median(sky))
        near = distance <= 3 * 1.4826 * median(distance)
        if near.all():
            break
        sky = sky[near]
    noise = float(sky.std(dtype=float)) * 1.014  # what was dropped at 3 sigma belonged to it
    return float(sky.mean(dtype=float)), noise, noise / np.sqrt(len(sky))


def median(values):
    """Median of finite values: that of numpy, without its checks, and of many values without moving most of them.

    Parameters
    ----------
    values : ndarray, shape (N,)
        At least one, none of them NaN.

    Returns
    -------
    float
    """
    some, below = values, 0
    if len(values) >= MANY:
        sample = np.sort(values[:: len(values) // (MANY // 16)])
        low, high = sample[int(0.45 * len(sample))], sample[int(0.55 * len(sample))]
        some, below = values[(values >= low) & (values <= high)], np.count_nonzero(values < low)
    first, last = (len(values) - 1) // 2 - below, len(values) // 2 - below
    if first < 0 or last >= len(some):  # the sample misled
        some, first, last = values, first + below, last + below
    if first == last:
        return np.partition(some, last)[last]
    two = np.partition(some, (first, last))[first : last + 1]
    return (two[0] + two[1]) / 2


def mirrored(values, bad, x, y):
    """Replace pixels by those on the opposite side of a centre.

    Parameters
    ----------
    values : ndarray, shape (h, w)
        Light above the sky.
    bad : ndarray of bool, shape (h, w)
        Which to replace.
    x, y : float
        The centre.

    Returns
    -------
    ndarray, shape (h, w)
        0 where the opposite pixel is bad too, or outside.
    """
    if not bad.any():
        return values
    rows, columns = np.nonzero(bad)
    across_y, across_x = np.rint(2 * y - rows).astype(int), np.rint(2 * x - columns).astype(int)
    there = (across_y >= 0) & (across_y < bad.shape[0]) & (across_x >= 0) & (across_x < bad.shape[1])
    across_y, across_x = np.where(there, across_y, 0), np.where(there, across_x, 0)
    mended = values.copy()
    mended[rows, columns] = np.where(there & ~bad[across_y, across_x], values[across_y, across_x], 0)
    return mended


def gini(values):
    """Gini coefficient of pixels: 0 where all have the same light, 1 where one has all of it.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Light of the pixels of an object.

    Returns
    -------
    float
        NaN for fewer than two pixels, or without light (Lotz, Primack & Madau 2004, eq. 6).
    """
    light = np.sort(np.abs(values).astype(float))
    n, total = len(light), np.abs(light).sum()
    if n < 2 or not total > 0:
        return np.nan
    return float((2 * np.arange(1, n + 1) - n - 1) @ light / (total * (n - 1)))


@dataclass
class Band:
    """One band in the window of an object.

    Parameters
    ----------
    light : ndarray of float32, shape (h, w)
        Pixels above the local sky, without data where `missing`.
    variance : float or ndarray of float32, shape (h, w)
        Of the noise of each pixel.
    missing : ndarray of bool, shape (h, w)
        Where there is no data.
    sky_error : float
        Error of the local sky.
    gain : float
        Electrons per unit, NaN if not known.
    """

    light: np.ndarray
    variance: object
    missing: np.ndarray
    sky_error: float
    gain: float = np.nan

    def error(self, flux, n_pixels, variance):
        """Error of a sum: noise of its pixels, of the sky below them, and photons where the gain is known."""
        photons = max(flux, 0) / self.gain if self.gain > 0 else 0.0
        return float(np.sqrt(variance + (n_pixels * self.sky_error) ** 2 + photons))

    def sum(self, own):
        """Flux and error of the pixels of a mask that have data."""
        own = own & ~self.missing
        flux, n_pixels = float(self.light.sum(where=own, dtype=float)), int(own.sum())
        spread = np.broadcast_to(self.variance, own.shape)
        return flux, self.error(flux, n_pixels, float(spread.sum(where=own, dtype=float)))


def measure_apertures(bands, reference, others, shape):
    """Measure an object in elliptical apertures.

    Parameters
    ----------
    bands : dict of str to Band
    reference : str
        The band that sets the aperture.
    others : ndarray of bool, shape (h, w)
        Pixels of other objects.
    shape : tuple of float
        (x, y, semimajor, semiminor, angle): centre, rms axes in pixels, and the angle from +x to +y in degrees.

    Returns
    -------
    dict
        ``kron_radius`` (semi-major axis of the aperture), ``r50``, ``concentration`` (5 log10 of the ratio of the radii
        with 80 % and 20 % of the Kron flux; Bershady et al. 2000), ``kron`` and ``kron_error`` by band. NaN where an
        aperture lies to more than `MISSING` on pixels without data in a band.

    Notes
    -----
    Kron (1980), as Bertin & Arnouts (1996) have it: the aperture is the ellipse of the second moments, scaled to 2.5
    times the first moment of the light within 6 of it, which is taken to be 1.4 at least.
    """
    import sep

    x, y, a, b, degrees = shape
    a, b = max(a, 0.5), max(b, 0.5)
    theta = float(np.clip(np.radians(degrees), -np.pi / 2, np.pi / 2))
    whole = {name: _whole(band, others, x, y) for name, band in bands.items()}
    data = whole[reference]
    kron = sep.kron_radius(data, [x], [y], [a], [b], [theta], KRON_REACH)[0][0]
    scale = KRON_FACTOR * max(kron if np.isfinite(kron) else 0.0, KRON_MIN)
    found = {"kron_radius": scale * a, "kron": {}, "kron_error": {}}
    ellipse = [x], [y], [a], [b], [theta], scale
    for name, band in bands.items():
        variance = _whole_variance(band, others, x, y)
        flux, error = _aperture(sep.sum_ellipse, whole[name], variance, band, ellipse)
        found["kron"][name], found["kron_error"][name] = flux, error
    flux = found["kron"][reference]
    radii = np.full(3, np.nan)
    if flux > 0:
        radii = sep.flux_radius(data, [x], [y], [scale * a], [0.2, 0.5, 0.8], normflux=[flux], subpix=5)[0].ravel()
    found["r50"] = float(radii[1])
    found["concentration"] = 5 * float(np.log10(radii[2] / radii[0])) if radii[0] > 0 else np.nan
    return found


def _whole(band, others, x, y):
    """Light of an object with the gaps mended, as sep wants it."""
    return np.ascontiguousarray(mirrored(band.light, band.missing | others, x, y), np.float32)


def _whole_variance(band, others, x, y):
    """Variance of the light of `_whole`: pixels that took the light of others took their noise too."""
    if not np.ndim(band.variance):
        return band.variance
    return np.ascontiguousarray(mirrored(band.variance, band.missing | others, x, y), np.float32)


def _aperture(summing, data, variance, band, where):
    """Flux and error in an aperture of sep, NaN where it lies on missing pixels."""
    flux = float(summing(data, *where)[0][0])
    counts = summing(np.ones_like(data), *where)[0][0]
    if counts <= 0 or (
        band.missing.any() and summing(band.missing.astype(np.float32), *where)[0][0] > MISSING * counts
    ):
        return np.nan, np.nan
    total = float(summing(variance, *where)[0][0]) if np.ndim(variance) else counts * variance
    return flux, band.error(flux, counts, total)


# Stars ----------------------------------------------------------------------------------------------------


def concentration(light, x, y, noise):
    """Magnitude in 2 px less magnitude in 6 px radius.

    Parameters
    ----------
    light : ndarray of float32, shape (h, w)
        Pixels above the sky.
    x, y : float
        Centre.
    noise : float
        Of a pixel.

    Returns
    -------
    difference, error : float
        Magnitudes; NaN without light.
    """
    import sep

    data = np.ascontiguousarray(light, np.float32)
    inner, outer = (float(sep.sum_circle(data, [x], [y], radius)[0][0]) for radius in APERTURES)
    if not (inner > 0 and outer > 0):
        return np.nan, np.nan
    noises = [noise * np.sqrt(np.pi) * radius for radius in APERTURES]
    # the outer sum holds the inner one: only the ring has noise of its own
    ring = np.sqrt(noises[1] ** 2 - noises[0] ** 2)
    error = np.hypot(noises[0] * (1 / inner - 1 / outer), ring / outer) * 2.5 / np.log(10)
    return 2.5 * np.log10(outer / inner), float(error)


def likelihood_ratio(excess, error):
    """How much more probable a galaxy is than a star, given how much less concentrated than a star it is.

    Parameters
    ----------
    excess, error : ndarray
        Concentration above that of stars and its error, magnitudes.

    Returns
    -------
    ndarray
        Ratio of the likelihoods, 1 at most: what looks extended may still be two stars. 1 where the excess is not
        known.

    Notes
    -----
    Stars scatter about 0 by the error; galaxies about `GALAXY_EXCESS` by `GALAXY_SPREAD` and the error.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        spread = np.hypot(GALAXY_SPREAD, error)
        log_ratio = (excess / error) ** 2 / 2 - ((excess - GALAXY_EXCESS) / spread) ** 2 / 2 + np.log(error / spread)
        ratio = np.exp(np.minimum(log_ratio, 0))
    return np.where(np.isfinite(ratio) & (excess < GALAXY_EXCESS), ratio, 1.0)
