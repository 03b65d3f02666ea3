"""Point sources: how large and how concentrated stars are on an image, and the core of any source beside them."""

from dataclasses import dataclass, replace

import numpy as np

from surveycat.bands import reference_of
from surveycat.centroid import half_light_radius, windowed_centroid
from surveycat.photometry import concentration, median, sky_and_noise

__all__ = ["CORE_RADIUS", "Stars", "core_concentration", "core_of", "stars"]

CORE_RADIUS = 1.7  # pixels; of the window in which the centre of a core is found
CORE_APERTURE = 6.0  # pixels, radius
STAR_WINDOW = 512  # pixels
STAR_WINDOWS = 3  # in each direction
MIN_STARS = 8
MATCHED = 0.1  # relative difference in the size of stars that colours can stand
LEAST_SCATTER = 0.02  # mag; the PSF changes over an image by at least this much
MAX_STARS = 150


@dataclass(frozen=True)
class Stars:
    """How large stars look on an image, by the brightness of their centre.

    On linear data all have one size. In a stretched picture the brighter ones look larger: of a Gaussian in
    a logarithmic stretch, the square of the radius grows with the stretched brightness.

    Parameters
    ----------
    intercept, slope : float
        The square of the half-light radius within `CORE_APERTURE`, in pixels, is ``intercept + slope *
        core``, where `core` is the mean of the pixels within 1.5 px of the centre. NaN if there are too few
        stars to tell.
    low, high : float
        Range of `core` in which there were stars; beyond it the radius stays the same.
    concentration, concentration_scatter : float
        Of linear data, magnitude in 2 px less magnitude in 6 px radius: its median over the stars, and what is left
        of its scatter when noise is taken off. NaN if not known.
    matched : bool
        Whether stars are as large in all bands, to `MATCHED`.
    """

    intercept: float = np.nan
    slope: float = np.nan
    low: float = 0.0
    high: float = 0.0
    concentration: float = np.nan
    concentration_scatter: float = np.nan
    matched: bool = True

    @property
    def size(self):
        """Half-light radius of faint stars, pixels."""
        return float(self.radius(np.array(self.low)))

    def radius(self, core):
        """Half-light radius of a star.

        Parameters
        ----------
        core : ndarray
            Brightness of its centre.

        Returns
        -------
        ndarray
            Radius in pixels, same shape as `core`.
        """
        return np.sqrt(self.intercept + self.slope * np.clip(core, self.low, self.high))


def stars(image):
    """Find out how large stars look, from the image itself.

    Peaks are measured in a few windows spread over the image. Stars of one brightness have one size,
    galaxies have many, and nothing is smaller than a star: the stars are the straight line, in the plane of
    brightness and radius, that most peaks lie on (to 7 %) and fewest lie below.

    Parameters
    ----------
    image : `image.Image`
        The image; at most 9 windows of `STAR_WINDOW` pixels are read.

    Returns
    -------
    Stars
        With NaN if fewer than `MIN_STARS` peaks lie on any line.
    """
    band = reference_of(image)
    boxes = _windows(image.shape)
    enough = MIN_STARS if len(boxes) == 1 else 0  # with fewer peaks in all there can be no line
    peaks = [peak for box in boxes for peak in _peaks(image.band(band, box), image.picture, enough)]
    peaks = np.array(sorted(peaks)).reshape(-1, 4)
    fitted = _fit_stars(*_thin_out(peaks[:, :2]).T)
    if image.picture:
        return fitted
    fitted = _with_concentration(fitted, peaks)
    sizes = [_size_of_stars(image, other) for other in image.bands if other != band]
    return replace(fitted, matched=all(abs(size / fitted.size - 1) < MATCHED for size in sizes))


def core_of(light, x, y):
    """Measure the centre of a source in a small aperture, which does not depend on any mask.

    Parameters
    ----------
    light : ndarray, shape (h, w)
        Pixels above the sky.
    x, y : float
        Where to start; the centre is the centroid within 3 px of it, found in three steps.

    Returns
    -------
    core : float
        Mean within 1.5 px of the centre.
    radius : float
        Half-light radius within `CORE_APERTURE`, NaN without light.
    """
    for _ in range(4):
        part, rows, columns = _part(light, x, y, 4)
        near = part * (rows[:, None] ** 2 + columns**2 <= 3**2)
        by_column, by_row = near.sum(axis=0, dtype=float), near.sum(axis=1, dtype=float)
        total = by_column.sum()
        if total <= 0:
            return 0.0, np.nan
        last = x, y
        x, y = x + by_column @ columns / total, y + by_row @ rows / total
    x, y = last
    part, rows, columns = _part(light, x, y, int(CORE_APERTURE) + 2)
    square = rows[:, None] ** 2 + columns**2
    core = part[square <= 1.5**2].mean(dtype=float)
    return float(core), half_light_radius(part * (square <= CORE_APERTURE**2), -columns[0], -rows[0])


def core_concentration(light, x, y, noise):
    """Measure the concentration of the core of a source about its own centre.

    Parameters
    ----------
    light : ndarray, shape (h, w)
        Pixels above the sky.
    x, y : float
        Where to start.
    noise : float
        Of a pixel.

    Returns
    -------
    concentration, error : float
        As `photometry.concentration` has them, magnitudes.
    """
    x, y = windowed_centroid(np.maximum(light, 0), x, y, CORE_RADIUS)
    return concentration(light, x, y, noise)


def _size_of_stars(image, band):
    """Half-light radius of stars in one band of linear data, NaN with too few of them."""
    peaks = [peak[:2] for box in _windows(image.shape) for peak in _peaks(image.band(band, box), image.picture)]
    return _fit_stars(*_thin_out(np.array(sorted(peaks)).reshape(-1, 2)).T).size


def _with_concentration(fitted, peaks):
    """Add the concentration of stars: of the peaks as large as stars, measured to 0.02 mag, burnt-out ones left out.

    Parameters
    ----------
    fitted : Stars
    peaks : ndarray, shape (N, 4)
        Brightness, radius, concentration and its error.
    """
    core, radius, concentrated, error = peaks.T
    chosen = (np.abs(radius / fitted.radius(core) - 1) < 0.07) & (error < 0.02) & np.isfinite(concentrated)
    if chosen.sum() < MIN_STARS:
        return fitted
    values = concentrated[chosen]
    for _ in range(5):
        middle = np.median(values)
        scatter = max(1.4826 * np.median(np.abs(values - middle)), 1e-3)
        values = values[np.abs(values - middle) < 3 * scatter]
    return replace(fitted, concentration=float(middle), concentration_scatter=float(max(scatter, LEAST_SCATTER)))


def _thin_out(cores):
    """Keep at most `MAX_STARS` peaks, as many of each octave of brightness, lest the many faint ones decide.

    Parameters
    ----------
    cores : ndarray, shape (N, 2)
        Brightness and radius of peaks, sorted by brightness.

    Returns
    -------
    ndarray, shape (M, 2)
        Some of the rows.
    """
    octave = np.floor(2 * np.log2(cores[:, 0])).astype(int)
    groups = [cores[octave == which] for which in np.unique(octave)]
    return np.concatenate([group[:: -(-len(group) * len(groups) // MAX_STARS)] for group in groups] or [cores])


def _windows(shape):
    """Spread windows over an image, evenly and without overlap."""
    spans = []
    for size in shape:
        count = min(STAR_WINDOWS, -(-size // STAR_WINDOW))
        length = min(STAR_WINDOW, size // count)
        spans.append([(int((i + 0.5) * size / count - length / 2), length) for i in range(count)])
    return [(y, x, y + height, x + width) for y, height in spans[0] for x, width in spans[1]]


def _peaks(values, picture, enough=0):
    """Measure the peaks in a window that stand 20 sigma above the sky and are not burnt out; none if not `enough`.

    Returns
    -------
    list of (core, radius, concentration, error)
        As `core_of` and, for linear data, `core_concentration` give them.
    """
    from scipy import ndimage

    finite = np.isfinite(values)
    if not finite.any():
        return []
    above = np.where(finite, values - sky_and_noise(values, finite)[0], 0)
    smooth = ndimage.gaussian_filter(above, 1.0)
    noise = 1.4826 * median(np.abs(smooth - median(smooth.ravel())).ravel())
    radius = int(CORE_APERTURE)
    places = _local_maxima(smooth, max(20 * noise, 1e-30), radius)
    if picture:  # in pictures, white is no measurement
        places = [(y, x) for y, x in places if values[y - 2 : y + 3, x - 2 : x + 3].max() < 250]
    if len(places) < enough:
        return []
    sigma = 0.0 if picture else 1.4826 * median(np.abs(above[finite]))
    found = []
    for y, x in places:
        shape = (np.nan, np.nan) if picture else core_concentration(_around(above, x, y), 12, 12, sigma)
        found.append((*core_of(above, x, y), *shape))
    return found


def _local_maxima(values, least, reach):
    """Give (row, column) of the pixels above `least` that nothing within `reach` pixels surpasses.

    Those nearer than twice that to the border are left out. Most are ruled out by their neighbours, so that few
    windows need to be looked at.
    """
    margin = 2 * reach
    rows, columns = np.nonzero(values[margin:-margin, margin:-margin] > least)
    rows, columns = rows + margin, columns + margin
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        higher = values[rows, columns] >= values[rows + dy, columns + dx]
        rows, columns = rows[higher], columns[higher]
    return [
        (y, x)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
        if values[y, x] >= values[y - reach : y + reach + 1, x - reach : x + reach + 1].max()
    ]


def _around(values, x, y):
    """The 25 x 25 pixels around one that is not at the border."""
    return values[y - 12 : y + 13, x - 12 : x + 13]


def _part(light, x, y, reach):
    """The pixels within `reach` of a place, negative ones as 0, and how far their rows and columns are from it."""
    top, left = max(0, round(y) - reach), max(0, round(x) - reach)
    part = np.maximum(light[top : round(y) + reach + 1, left : round(x) + reach + 1], 0)
    return part, np.arange(part.shape[0]) + (top - y), np.arange(part.shape[1]) + (left - x)


def _fit_stars(core, radius):
    """Find the line through most of the points and above fewest, among all lines through two of them.

    Parameters
    ----------
    core, radius : ndarray, shape (N,)
        Brightness and half-light radius of peaks.

    Returns
    -------
    Stars
        Its line is the least-squares one of the points it goes through.
    """
    first, second = np.triu_indices(len(core), 1)
    # A brighter star never looks smaller: such a line runs through noise, or galaxies.
    grows = (core[second] > 1.001 * core[first]) & (radius[second] >= 0.99 * radius[first])
    first, second = first[grows], second[grows]
    square = radius**2
    slope = (square[second] - square[first]) / (core[second] - core[first])
    intercept = square[first] - slope * core[first]
    ratio = radius / np.sqrt(np.maximum(intercept[:, None] + slope[:, None] * core, 1e-3))
    merit = (np.abs(ratio - 1) < 0.07).sum(axis=1) - 2 * (ratio < 0.93).sum(axis=1)
    if not len(merit):
        return Stars()
    on_line = np.abs(ratio[np.argmax(merit)] - 1) < 0.07
    if on_line.sum() < MIN_STARS:
        return Stars()
    slope, intercept = np.polyfit(core[on_line], square[on_line], 1)
    return Stars(float(intercept), float(slope), float(core[on_line].min()), float(core[on_line].max()))
