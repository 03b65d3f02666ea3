"""What can be said of each object from its mask and the pixels under it: outline, position, shape, flux.

The *footprint* of an object is the largest part of its mask (parts hang together by sides, not by corners),
holes filled, cut to the image. Every number of a row refers to it. Its outline runs along the edges of
pixels, half a pixel outside of their centres, so that the area of the polygon is the number of pixels and
its centroid theirs::

    mask [[1, 1],      outline, as x: -0.5  1.5  1.5  0.5  0.5 -0.5
          [1, 0]]               as y: -0.5 -0.5  0.5  0.5  1.5  1.5     area 3

Only a window around each object is read. One larger than `MAX_SIDE` is measured on averages over blocks of
pixels, read strip by strip, so that memory stays bounded.
"""

from dataclasses import dataclass, replace

import numpy as np

from surveycat import catalog
from surveycat.bands import reference_band as choose_reference
from surveycat.calibration import magnitude
from surveycat.catalog import FLAGS
from surveycat.detections import largest_part
from surveycat.photometry import (
    Band,
    Crowd,
    concentration,
    gini,
    likelihood_ratio,
    measure_apertures,
    median,
    mirrored,
    sky_and_noise,
)
from surveycat.simplify import area_of, simplify
from surveycat.wcs import unit_vectors

__all__ = [
    "Footprint",
    "Stars",
    "columns",
    "half_light_radius",
    "local_sky",
    "measure",
    "outline",
    "reference_band",
    "stars",
]

MAX_SIDE = 1024  # pixels; windows of larger objects are averaged over blocks
MAX_STRIP = 2**22  # pixels read at once for such an average
INNER = 5.0  # pixels around the centre of a small object that always count for its position
RIM, HEART = 0.3, 0.5  # depths in a mask as shares of the greatest: no galaxy is centred in its rim
CORE_RADIUS = 1.7  # pixels; of the window in which the centre of a core is found
POINT_SOURCE = 0.1  # likelihood ratio of galaxy to star below which an object is flagged as a star
UNRESOLVED = 1.2  # half-light radii of a star, below which the class of an object is a guess


def measure(objects, image, point_sources=None):
    """Measure every object on the image.

    Parameters
    ----------
    objects : `stitch.Objects`
        What was found: ``detections`` (masks, scores, levels), ``host``, ``n_seen``, ``n_tiles`` and
        ``flags``.
    image : `image.Image`
        The image; ``image.band`` is read in a window around each object.
    point_sources : Stars, optional
        How large stars look; `stars` of the image by default.

    Returns
    -------
    `~astropy.table.QTable`
        One row for each object with a pixel in the image, in the order of `objects`, with all columns of
        the schema but ``name`` and ``image``; ``id`` counts from 1. Rows may be left out before
        `catalog.finish`.

    Notes
    -----
    Sums are over the footprint, above a local sky (`local_sky`); of pixels in two footprints each belongs to one object
    (`photometry.Crowd`), or a companion whose mask reaches over a bright galaxy would be measured on that. Positions
    and moments are weighted by that light in the band of `reference_band`, negative values as 0; where there is no
    light at all every pixel weighs the same.
    """
    from astropy.table import QTable

    return catalog.conform(QTable(columns(objects, image, point_sources)))


def columns(objects, image, point_sources=None):
    """Give what `measure` gives as bare columns: for many small images, of which each would be a table of few rows.

    Parameters
    ----------
    objects, image, point_sources
        As in `measure`.

    Returns
    -------
    dict of ndarray
        Columns by name, in the units of the schema.
    """
    found = objects.detections
    prints = [
        Footprint.from_mask(found.mask(i), found.mask_origin[i], found.level[i], image.shape) for i in range(len(found))
    ]
    kept = np.array([i for i, footprint in enumerate(prints) if footprint is not None], dtype=int)
    prints = [prints[i] for i in kept]
    crowd = Crowd(prints, _numbers(objects.host, kept))
    lights = [_light(image, footprint, number, crowd) for number, footprint in enumerate(prints)]
    if point_sources is None:
        point_sources = stars(image) if prints else Stars()

    outlines = [footprint.outline for footprint in prints]
    measured = _from_network(objects, kept) | _from_outlines(prints, outlines) | _from_light(lights, image.bands)
    measured["flags"] = _flags(objects.flags[kept], lights, point_sources, image)
    if not image.picture:
        measured |= _from_apertures(lights, image)
        measured |= _from_concentration(lights, measured, point_sources)
    if image.wcs is not None:
        measured |= _from_sky(lights, outlines, measured["area_pix"], image.pixel_to_sky)
    return measured


def reference_band(image):
    """Choose the band that gives positions and shapes: r, or the middle one where none is named so.

    Parameters
    ----------
    image : `image.Image`
        The image.

    Returns
    -------
    str
        Name of one of ``image.bands``. The r band of a colour picture is its green channel.
    """
    return choose_reference(image.bands[::-1])


# Footprints -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """The pixels of one object, on the grid of the level that gave its mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        One part without holes and without empty rows or columns at its border.
    y0, x0 : int
        Place of the mask's first pixel, in pixels of its level.
    level : int
        Its pixels are blocks of 2^level pixels of the image.
    shape : tuple of int
        (height, width) of the image. The last blocks of a level may reach beyond it.
    """

    mask: np.ndarray
    y0: int
    x0: int
    level: int
    shape: tuple

    @classmethod
    def from_mask(cls, mask, origin, level, shape):
        """Take the largest part of a mask, fill its holes, cut it to the image.

        Parameters
        ----------
        mask : ndarray of bool, shape (h, w)
            Mask in pixels of `level`; it may reach outside of the image.
        origin : tuple of int
            (y0, x0) of its first pixel, in pixels of `level`.
        level : int
            Level of the mask.
        shape : tuple of int
            (height, width) of the image.

        Returns
        -------
        Footprint or None
            None if no pixel of the mask lies in the image.
        """
        y0, x0, level = int(origin[0]), int(origin[1]), int(level)
        height, width = (-(-n // 2**level) for n in shape)
        mask = np.asarray(mask, bool)
        mask = mask[max(0, -y0) : max(0, height - y0), max(0, -x0) : max(0, width - x0)]
        if not mask.any():
            return None
        mask = _without_holes(largest_part(mask))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(mask, max(y0, 0) + int(rows[0]), max(x0, 0) + int(columns[0]), level, tuple(shape))

    @property
    def box(self):
        """Pixels of the image that it spans: [y0, x0, y1, x1), half-open, cut to the image."""
        block, (height, width) = 2**self.level, self.mask.shape
        y1, x1 = (self.y0 + height) * block, (self.x0 + width) * block
        return self.y0 * block, self.x0 * block, min(y1, self.shape[0]), min(x1, self.shape[1])

    @property
    def outline(self):
        """Corners (x, y) in pixels of the image: float arrays, counter-clockwise with x right and y up."""
        x, y = outline(self.mask)
        block = 2**self.level
        x = np.minimum((self.x0 + x) * block, self.shape[1]) - 0.5
        y = np.minimum((self.y0 + y) * block, self.shape[0]) - 0.5
        return x, y

    def on_grid(self, box, level):
        """Paint the footprint on a window.

        Parameters
        ----------
        box : tuple of int
            Window [y0, x0, y1, x1) in pixels of `level`; it may hold a part of the footprint, or nothing of it.
        level : int
            Level of the window. On a coarser one than the footprint's own, pixels are painted that hold any of it.

        Returns
        -------
        ndarray of bool, shape (y1 - y0, x1 - x0)
            True on the footprint.
        """
        if level > self.level:
            step = 2 ** (level - self.level)
            fine = self.on_grid(tuple(edge * step for edge in box), self.level)
            return fine.reshape(box[2] - box[0], step, box[3] - box[1], step).any(axis=(1, 3))
        block = 2 ** (self.level - level)
        grid = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
        rows, columns = np.arange(box[0], box[2]) // block - self.y0, np.arange(box[1], box[3]) // block - self.x0
        in_y, in_x = (rows >= 0) & (rows < self.mask.shape[0]), (columns >= 0) & (columns < self.mask.shape[1])
        grid[np.ix_(in_y, in_x)] = self.mask[np.ix_(rows[in_y], columns[in_x])]
        return grid


def _without_holes(mask):
    """Fill what the outside cannot reach by sides of pixels: the part then has one outline that never touches
    itself."""
    from scipy import ndimage

    labels, n_parts = ndimage.label(~_framed(mask))
    if n_parts == 1:
        return mask
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _framed(mask):
    """The mask in a frame of pixels without it, one wide: `numpy.pad` takes longer than the work on it."""
    framed = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    framed[1:-1, 1:-1] = mask
    return framed


def outline(mask):
    """Walk around a mask along the edges of its pixels.

    Every corner of the outline has an odd number of mask pixels around it. Sorted by rows, corners pair up
    to the horizontal edges, sorted by columns to the vertical ones; the walk alternates between the two.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        One part (by sides of pixels) without holes, as in a `Footprint`.

    Returns
    -------
    x, y : ndarray of int, shape (n,)
        Corners in edge coordinates: the first pixel spans 0 to 1. Straight runs have no corners in between.
        The order is counter-clockwise with x to the right and y up.
    """
    ones = _framed(mask).view(np.int8)
    y, x = np.nonzero((ones[:-1, :-1] + ones[1:, :-1] + ones[:-1, 1:] + ones[1:, 1:]) & 1)
    partners = np.arange(len(x)) ^ 1
    by_column = np.lexsort((y, x))
    beside, above = partners.tolist(), np.empty_like(partners)
    above[by_column] = by_column[partners]
    above = above.tolist()
    walk, corner = [], 0
    while True:
        walk += (corner, beside[corner])
        corner = above[beside[corner]]
        if corner == 0:
            return x[walk], y[walk]


# Pixels ---------------------------------------------------------------------------------------------------


def _light(image, footprint, number, crowd):
    """Measure the light of one object.

    Returns
    -------
    dict
        ``x``, ``y`` (pixels of the image), ``covariance`` ((xx, xy, yy), pixels squared), ``radius``
        (half-light), ``core`` and ``core_radius`` (as `_core` has them, NaN where the object was averaged),
        ``flux`` (by band); and for linear data what `_apertures` gives.
    """
    box, level = _window(footprint, image.picture)
    mask, others = crowd.split(number, box, level)
    beyond = _beyond(mask) & ~others
    pixels = _pixels(image, box, level)
    skies = {band: sky_and_noise(values, beyond) for band, values in pixels.items()}
    light = {}
    for band, values in pixels.items():
        above = values - skies[band][0]
        light[band] = np.where(np.isfinite(above), above, 0)
    block, reference = 2**level, light[reference_band(image)]
    weights = np.maximum(unstretched(reference) if image.picture else reference, 0) * mask
    where = mask if mask.any() else footprint.on_grid(box, level)  # other objects may have all of its pixels
    x_iso, y_iso, covariance = _moments(weights if weights.any() else where.astype(np.float32))
    x, y, window = x_iso, y_iso, np.nan
    if weights.any():
        x, y, window = _centre(weights, mask, x, y)
    core, core_radius = _core(reference, x, y) if level == 0 else (np.nan, np.nan)
    found = {
        "x": (box[1] + x + 0.5) * block - 0.5,
        "y": (box[0] + y + 0.5) * block - 0.5,
        "covariance": covariance * block**2,
        "radius": half_light_radius(weights, x, y) * block,
        "core": core,
        "core_radius": core_radius,
        "flux": {band: float(values.sum(where=mask, dtype=float)) * block**2 for band, values in light.items()},
    }
    if not image.picture:
        bands = {}
        for band, values in pixels.items():
            _, noise, sky_error = skies[band]
            gain = image.calibration[band].gain if band in image.calibration else np.nan
            variance = _variance(image, band, box, level, noise)
            bands[band] = Band(light[band], variance, ~np.isfinite(values), sky_error, gain / block**2)
        found["x_iso"], found["y_iso"] = (box[1] + x_iso + 0.5) * block - 0.5, (box[0] + y_iso + 0.5) * block - 0.5
        found["sky"] = {band: sky for band, (sky, _, _) in skies.items()}
        found |= _apertures(bands, reference_band(image), mask, others, (x, y, covariance, window), level)
    return found


def _variance(image, band, box, level, noise):
    """Variance of the noise of pixels in a window: from the weights of the image if it has some, else that of its sky.

    That of an average over a block is smaller by the number of its pixels; 0 where there is no weight.
    """
    strips = [image.weight(band, window) for window in _strips(box, level, image.shape)]
    if any(weights is None for weights in strips):
        return noise**2
    return np.concatenate([_variance_of_average(weights, 2**level) for weights in strips])


def _apertures(bands, reference, mask, others, centre, level):
    """Measure what needs more than the footprint of one object; see `measure_apertures`.

    Returns
    -------
    dict
        In pixels and units of the image: ``flux_error``, ``kron``, ``kron_error`` (by band), ``kron_radius``, ``r50``,
        ``concentration``, ``gini``, ``x_error``, ``y_error``, and ``core_concentration`` with its error (NaN where the
        object was averaged).
    """
    block, (x, y, covariance, window) = 2**level, centre
    semimajor, semiminor, angle = (axis[0] for axis in _ellipse(covariance[None]))
    found = measure_apertures(bands, reference, others, (x, y, semimajor, semiminor, angle))
    band = bands[reference]
    found["flux_error"] = {name: each.sum(mask)[1] * block**2 for name, each in bands.items()}
    for name in ("kron", "kron_error"):
        found[name] = {each: value * block**2 for each, value in found[name].items()}
    for name in ("kron_radius", "r50"):
        found[name] *= block
    found["gini"] = gini(band.light[mask & ~band.missing])
    found["x_error"], found["y_error"] = (error * block for error in _centroid_error(band, mask, x, y, window))
    found["core_concentration"] = found["core_error"] = np.nan
    if level == 0 and np.isfinite(window):
        data = mirrored(band.light, band.missing | others, x, y)
        noise = float(np.sqrt(np.mean(np.broadcast_to(band.variance, mask.shape)[mask & ~band.missing])))
        found["core_concentration"], found["core_error"] = core_concentration(data, x, y, noise)
    return found


def _centroid_error(band, mask, x, y, window):
    """Errors of a windowed centroid from the noise of its pixels, as ERRX2WIN of SExtractor: NaN without light."""
    rows, columns = np.arange(mask.shape[0])[:, None] - y, np.arange(mask.shape[1]) - x
    weights = np.exp(-0.5 * (rows**2 + columns**2) / _window_sigma(window) ** 2) * (mask & ~band.missing)
    flux = float((weights * band.light).sum(dtype=float))
    if not flux > 0:
        return np.nan, np.nan
    photons = np.maximum(band.light, 0) / band.gain if band.gain > 0 else 0
    variance = weights**2 * (band.variance + photons)
    return tuple(2 * float(np.sqrt((variance * distance**2).sum(dtype=float))) / flux for distance in (columns, rows))


def core_concentration(light, x, y, noise):
    """Concentration of the core of a source about its own centre; see `photometry.concentration`."""
    x, y = windowed_centroid(np.maximum(light, 0), x, y, CORE_RADIUS)
    return concentration(light, x, y, noise)


def unstretched(values):
    """Light from the values of a colour picture, so that weights by it are weights by flux.

    Pictures of SDSS show the asinh of the light (Lupton et al. 2004; softening 2.25 on the sum of the bands in units of
    white, as its own pictures have it). Summed as they are, their values give the faint rim of a mask, which noise and
    neighbours shape, several times its true weight. Other stretches are undone in part.

    Parameters
    ----------
    values : ndarray
        One channel less its sky, 0 to 255.

    Returns
    -------
    ndarray
        Light in arbitrary units, equal to `values` where they are small.
    """
    softening = 3 * 2.25 / 255  # three channels of about the same value
    return np.sinh(softening * values) / softening


def _window(footprint, picture):
    """Choose the window in which an object is measured, with sky around it, and the level to read.

    For linear data it has room for apertures that are larger than the footprint. What is so large that it is averaged
    is no point source, even if a nucleus like a star is all that is in its middle: its core is not measured.

    Returns
    -------
    box : tuple of int
        [y0, x0, y1, x1) in pixels of `level`.
    level : int
        0, but for objects larger than `MAX_SIDE`.
    """
    y0, x0, y1, x1 = footprint.box
    side = max(y1 - y0, x1 - x0)
    largest = MAX_SIDE if picture else MAX_SIDE / 2
    level = min(footprint.level, max(0, int(np.ceil(np.log2(side / largest)))))
    block = 2**level
    margin = max(side // 4, 8 * block) if picture else max(side, 16 * block)
    height, width = footprint.shape
    low = [max(0, edge - margin) // block for edge in (y0, x0)]
    high = [-(-min(edge + margin, end) // block) for edge, end in ((y1, height), (x1, width))]
    return (*low, *high), level


def _pixels(image, box, level):
    """Read the bands in a window, averaged over blocks of 2^level pixels; NaN where there is no data.

    Returns
    -------
    dict of ndarray, shape (h, w), float32
        Pixels by name of the band.
    """
    strips = []
    for window in _strips(box, level, image.shape):
        strips.append({name: _average(image.band(name, window), 2**level) for name in image.bands})
    return {name: np.concatenate([strip[name] for strip in strips]) for name in image.bands}


def _strips(box, level, shape):
    """Cut a window of a level into boxes of the image that are small enough to be read at once, whole blocks high."""
    if level == 0:
        return [box]
    block, (height, width) = 2**level, shape
    rows = max(1, MAX_STRIP // (block**2 * (box[3] - box[1])))
    return [
        (
            top * block,
            box[1] * block,
            min(min(top + rows, box[2]) * block, height),
            min(box[3] * block, width),
        )
        for top in range(box[0], box[2], rows)
    ]


def _average(values, block):
    """Average over blocks of pixels, the last ones over what they have, leaving out NaN."""
    if block == 1:
        return values
    finite = np.isfinite(values)
    counts, sums = _sums(finite, block), _sums(np.where(finite, values, 0), block)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def _variance_of_average(weights, block):
    """Variance of averages over blocks of pixels from inverse variances, 0 where none has a weight."""
    known = weights > 0
    variance = np.where(known, 1 / np.where(known, weights, 1), 0).astype(np.float32)
    return variance if block == 1 else _sums(variance, block) / np.maximum(_sums(known, block), 1) ** 2


def _sums(values, block):
    """Sums over blocks of pixels; the last ones have what is there."""
    sums = values.astype(np.float32)
    for axis in (0, 1):
        sums = np.add.reduceat(sums, np.arange(0, values.shape[axis], block), axis=axis)
    return sums


def _beyond(mask):
    """Tell which pixels of a window lie at least 3 px outside of the footprint."""
    return ~_spread(_spread(mask).T).T


def _spread(mask):
    """Reach 3 rows up and down."""
    height = len(mask)
    wide = np.zeros((height + 6, mask.shape[1]), bool)
    wide[3:-3] = mask
    two = wide[:-1] | wide[1:]
    four = two[:-2] | two[2:]
    return four[:height] | four[3:]


def local_sky(values, beyond):
    """Estimate the sky around an object: the mean beyond it, cleaned of other sources.

    Parameters
    ----------
    values : ndarray, shape (h, w)
        Pixels of the window; NaN is left out.
    beyond : ndarray of bool, shape (h, w)
        Where no light of the object is expected.

    Returns
    -------
    float
        Mean after three rounds that drop what lies more than 3 sigma (from the median absolute deviation)
        from the median: finer than the steps of an 8-bit picture, which a median is not. Where fewer than
        30 pixels are left beyond the object, the 5th percentile of the window; 0 where it has no data at
        all.
    """
    return sky_and_noise(values, beyond)[0]


def _moments(weights):
    """Give centroid and central second moments of an image.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Not negative, not all 0.

    Returns
    -------
    x, y : float
        Centroid, the first pixel's centre at 0.
    covariance : ndarray, shape (3,)
        (xx, xy, yy). As in SExtractor and photutils, what is thinner than a pixel gets the moment of one,
        1/12.
    """
    total = weights.sum(dtype=float)
    along_x, along_y = weights.sum(axis=0, dtype=float), weights.sum(axis=1, dtype=float)
    columns, rows = np.arange(len(along_x), dtype=float), np.arange(len(along_y), dtype=float)
    x, y = columns @ along_x / total, rows @ along_y / total
    xx, yy = (columns - x) ** 2 @ along_x / total, (rows - y) ** 2 @ along_y / total
    xy = (rows - y) @ weights.astype(float) @ (columns - x) / total
    if xx * yy - xy**2 < 1 / 12**2:
        xx, yy = xx + 1 / 12, yy + 1 / 12
    return x, y, np.array([xx, xy, yy])


def _centre(weights, mask, x, y):
    """Give the windowed centroid of the light in a mask, and the half-light radius that set the last window.

    Where a brighter neighbour reaches into the mask from outside, that leads to its rim: then only what lies deep in
    the mask counts.
    """
    found = _centre_of(weights, mask, x, y)
    depth = _depth(mask)
    if _at(depth, *found[:2]) >= RIM * depth.max():
        return found
    heart = np.where(depth >= HEART * depth.max(), weights, 0)
    return _centre_of(heart, mask, *_moments(heart)[:2]) if heart.any() else found


def _depth(mask):
    """Distance of each pixel of a mask from the nearest one outside, the border of the array being none."""
    from scipy.ndimage import distance_transform_edt

    return np.ones(mask.shape) if mask.all() else distance_transform_edt(mask)


def _at(values, x, y):
    """Value of an image at the nearest pixel; 0 outside."""
    row, column = round(y), round(x)
    inside = 0 <= row < values.shape[0] and 0 <= column < values.shape[1]
    return values[row, column] if inside else 0.0


def _centre_of(weights, mask, x, y):
    """Give the windowed centroid, first of all light, then of that within half of the mask's radius.

    The third value is the half-light radius that set the last window. Where a neighbour shares the mask, that of the
    whole spans both, and so would the window.
    """
    window = half_light_radius(weights, x, y)
    x, y = windowed_centroid(weights, x, y, window)
    inner = max(0.5 * np.sqrt(mask.sum() / np.pi), INNER)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for _ in range(2):
        near = np.where((rows - y) ** 2 + (columns - x) ** 2 < inner**2, weights, 0)
        if not near.any():
            break
        window = half_light_radius(near, x, y)
        x, y = windowed_centroid(weights, x, y, window)
    return x, y, window


def windowed_centroid(weights, x, y, radius, rounds=30):
    """Give the centroid under a round Gaussian window that moves with it.

    In a stretched picture the faint parts of a mask, and the stars and neighbours in them, pull a plain centroid off
    the galaxy; under the window they hardly count. As XWIN_IMAGE of SExtractor (Bertin, manual, "Windowed centroid").

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Light in each pixel; not negative.
    x, y : float
        Where to start, pixels.
    radius : float
        Half-light radius, pixels: the window holds half of its own weight within it.
    rounds : int, optional
        Steps at most.

    Returns
    -------
    x, y : float
        The centroid; the start where the light has none.
    """
    sigma = _window_sigma(radius)
    weights = weights.astype(float)  # else each product below makes a copy
    rows, columns = np.arange(weights.shape[0]), np.arange(weights.shape[1])
    for _ in range(rounds):
        from_x, from_y = columns - x, rows - y
        across, along = np.exp(-0.5 * (from_x / sigma) ** 2), np.exp(-0.5 * (from_y / sigma) ** 2)
        by_column = along @ weights
        total = by_column @ across
        if not total > 0:
            break
        step_x = 2 * (by_column @ (across * from_x)) / total
        step_y = 2 * ((along * from_y) @ (weights @ across)) / total
        x, y = x + step_x, y + step_y
        if abs(step_x) + abs(step_y) < 1e-3:
            break
    return float(x), float(y)


def _window_sigma(radius):
    """Width of the round Gaussian that holds half of its own weight within a radius of at least a pixel."""
    return max(radius, 1.0) / np.sqrt(2 * np.log(2))


def half_light_radius(weights, x, y):
    """Give the radius of the circle that holds half of the light.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Light in each pixel; not negative.
    x, y : float
        Centre of the circle.

    Returns
    -------
    float
        Radius in pixels, NaN without light. Pixels are split into 3 x 3, so that a point source is measured
        well.
    """
    rows, columns = np.nonzero(weights)
    if not len(rows):
        return np.nan
    thirds = np.array([-1, 0, 1]) / 3
    dx = (columns[:, None] + thirds - x)[:, None, :]
    dy = (rows[:, None] + thirds - y)[:, :, None]
    radius = np.sqrt(dx**2 + dy**2).ravel()
    return _weighted_median(radius, np.repeat(weights[rows, columns].astype(float), 9))


def _weighted_median(values, weights, bins_per_unit=16):
    """Give the value below which half of the weight lies, without sorting more than the values next to it.

    Parameters
    ----------
    values, weights : ndarray of float64, shape (N,)
        Not negative, at least one.
    bins_per_unit : int, optional
        Bins in which the weights are summed to find the place.

    Returns
    -------
    float
        Interpolated in the running sum of the sorted weights.
    """
    bins = (values * bins_per_unit).astype(np.int64)
    sums = np.cumsum(np.bincount(bins, weights))
    middle = min(int(np.searchsorted(sums, sums[-1] / 2)), len(sums) - 1)
    below = bins < middle
    last = bins[below].max() if below.any() else 0  # the value before the place may lie in an earlier bin
    near = (bins >= last) & (bins <= middle)
    order = np.argsort(values[near])
    before = sums[last - 1] if last > 0 else 0.0
    return float(np.interp(sums[-1] / 2, before + np.cumsum(weights[near][order]), values[near][order]))


# Columns --------------------------------------------------------------------------------------------------


def _from_network(objects, kept):
    """Give the columns that repeat what network and stitching say, for the objects that are kept."""
    found = objects.detections
    p_spiral = np.asarray(found.p_spiral, dtype=np.float32)[kept]
    new_id = np.zeros(len(found) + 1, dtype=np.int64)  # the last entry answers for host -1
    new_id[kept] = np.arange(1, len(kept) + 1)
    return {
        "id": np.arange(1, len(kept) + 1),
        "class": np.where(p_spiral >= 0.5, "spiral", "elliptical"),
        "score": np.asarray(found.score)[kept],
        "p_spiral": p_spiral,
        "p_elliptical": 1 - p_spiral,
        "host": new_id[np.asarray(objects.host)[kept]],
        "level": np.asarray(found.level)[kept],
        "n_seen": np.asarray(objects.n_seen)[kept],
        "n_tiles": np.asarray(objects.n_tiles)[kept],
    }


def _numbers(host, kept):
    """Number of the host of each object that is kept among these, -1 for none."""
    number = np.full(len(host) + 1, -1)  # the last entry answers for host -1
    number[kept] = np.arange(len(kept))
    return number[np.asarray(host)[kept]]


def _from_outlines(prints, outlines):
    """Give the columns that follow from the footprints alone."""
    boxes = np.array([footprint.box for footprint in prints], dtype=int).reshape(-1, 4)
    return {
        "y_min": boxes[:, 0],
        "x_min": boxes[:, 1],
        "y_max": boxes[:, 2],
        "x_max": boxes[:, 3],
        "area_pix": np.array([area_of(x, y) for x, y in outlines]),
        "footprint_x": catalog.lists([x for x, _ in outlines]),
        "footprint_y": catalog.lists([y for _, y in outlines]),
    }


def _from_light(lights, bands):
    """Give the columns that follow from the pixels, without a sky position."""
    covariance = np.array([light["covariance"] for light in lights]).reshape(-1, 3)
    semimajor, semiminor, angle = _ellipse(covariance)
    columns = {
        "x": np.array([light["x"] for light in lights]),
        "y": np.array([light["y"] for light in lights]),
        "semimajor_pix": semimajor,
        "semiminor_pix": semiminor,
        "orientation_pix": angle,
        "ellipticity": 1 - semiminor / semimajor,
        "half_light_radius_pix": np.array([light["radius"] for light in lights]),
    }
    return columns | {f"flux_{band}": np.array([light["flux"][band] for light in lights]) for band in bands}


def _from_apertures(lights, image):
    """Give the columns of linear data: errors, apertures, and magnitudes where there is a zero point."""
    columns = {
        name: np.array([light[key] for light in lights], float)
        for name, key in (
            ("x_err", "x_error"),
            ("y_err", "y_error"),
            ("x_iso", "x_iso"),
            ("y_iso", "y_iso"),
            ("kron_radius_pix", "kron_radius"),
            ("r50_pix", "r50"),
            ("concentration", "concentration"),
            ("gini", "gini"),
        )
    }
    for band in image.bands:
        columns |= {
            f"{name}_{band}": np.array([light[key][band] for light in lights], float)
            for name, key in (
                ("flux_err", "flux_error"),
                ("flux_kron", "kron"),
                ("flux_kron_err", "kron_error"),
                ("sky", "sky"),
            )
        }
        worth = image.calibration[band].nanomaggy if band in image.calibration else np.nan
        if np.isfinite(worth):
            flux, error = columns[f"flux_kron_{band}"], columns[f"flux_kron_err_{band}"]
            columns[f"mag_{band}"] = magnitude(flux * worth)
            with np.errstate(divide="ignore", invalid="ignore"):
                columns[f"mag_err_{band}"] = np.where(flux > 0, 2.5 / np.log(10) * error / flux, np.nan)
    return columns


def _from_concentration(lights, columns, point_sources):
    """Give the columns that tell point sources from galaxies, and what they do to scores and flags."""
    excess = np.array([light["core_concentration"] for light in lights], float) - point_sources.concentration
    error = np.hypot(np.array([light["core_error"] for light in lights], float), point_sources.concentration_scatter)
    ratio = likelihood_ratio(excess, error)
    score = np.asarray(columns["score"], float)
    return {
        "conc_excess": excess,
        "conc_excess_err": error,
        "score": score * ratio / (score * ratio + 1 - score + 1e-12 * (ratio == 0)) if len(score) else score,
        "flags": columns["flags"] | (ratio < POINT_SOURCE).astype(np.int32) << FLAGS["point_source"],
    }


def _ellipse(covariance):
    """Turn second moments into the ellipse that has them.

    Parameters
    ----------
    covariance : ndarray, shape (N, 3)
        (xx, xy, yy) of each object.

    Returns
    -------
    semimajor, semiminor : ndarray, shape (N,)
        Standard deviations along the axes.
    angle : ndarray, shape (N,)
        Of the major axis from +x towards +y, degrees, -90 to 90.
    """
    xx, xy, yy = covariance.T
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2
    return np.sqrt(middle + spread), np.sqrt(np.maximum(middle - spread, 0)), angle


def _flags(flags, lights, point_sources, image):
    """Add the flags that follow from the pixels to those of the stitching."""
    core = np.array([light["core"] for light in lights])
    radius = np.array([light["core_radius"] for light in lights])
    unresolved = radius < UNRESOLVED * point_sources.radius(core)
    flags = np.asarray(flags, dtype=np.int32) | (unresolved.astype(np.int32) << FLAGS["unresolved"])
    if not point_sources.matched:
        flags = flags | 1 << FLAGS["psf_unmatched"]
    return flags | 1 << FLAGS["uncalibrated"] if image.picture else flags


# Sky ------------------------------------------------------------------------------------------------------


def _from_sky(lights, outlines, area_pix, to_sky):
    """Give the columns that need a sky position: place, size and outline on the sky."""
    x, y = (np.array([light[axis] for light in lights]) for axis in "xy")
    covariance = np.array([light["covariance"] for light in lights]).reshape(-1, 3)
    ra, dec = to_sky(x, y)
    jacobian = _jacobian(to_sky, x, y, ra, dec)
    xx, xy, yy = covariance.T
    moments = np.array([[xx, xy], [xy, yy]]).transpose(2, 0, 1)
    moments = jacobian @ moments @ jacobian.transpose(0, 2, 1)
    semimajor, semiminor, from_east = _ellipse(moments[:, [0, 0, 1], [0, 1, 1]])
    determinant = jacobian[:, 0, 0] * jacobian[:, 1, 1] - jacobian[:, 0, 1] * jacobian[:, 1, 0]
    return {
        "ra": ra,
        "dec": dec,
        "area": area_pix * np.abs(determinant),
        "semimajor": semimajor,
        "semiminor": semiminor,
        "position_angle": np.mod(90 - from_east, 180),
        "ellipticity": 1 - semiminor / semimajor,
        "s_region": _regions(to_sky, outlines, determinant > 0),
    }


def _jacobian(to_sky, x, y, ra, dec):
    """Tell how far a step of one pixel leads on the sky.

    Works on unit vectors, so that neither RA 0 nor a pole is special.

    Parameters
    ----------
    to_sky : callable
        Converts pixels x, y to ICRS degrees ra, dec, NaN off the projection.
    x, y : ndarray, shape (N,)
        Pixels.
    ra, dec : ndarray, shape (N,)
        The same places in degrees.

    Returns
    -------
    ndarray, shape (N, 2, 2)
        Arcseconds to the east (row 0) and to the north (row 1) for a step in x (column 0) and in y (column
        1). Its determinant is negative where east is to the left of north.
    """
    a, d, zero = np.radians(ra), np.radians(dec), np.zeros(len(ra))
    east = np.array([-np.sin(a), np.cos(a), zero])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    around = to_sky(np.concatenate([x + 0.5, x, x - 0.5, x]), np.concatenate([y, y + 0.5, y, y - 0.5]))
    right, up, left, down = np.split(unit_vectors(*around), 4, axis=1)
    steps = [[(step * east).sum(axis=0), (step * north).sum(axis=0)] for step in (right - left, up - down)]
    return np.degrees(np.array(steps)).transpose(2, 1, 0) * 3600


def _regions(to_sky, outlines, mirrored):
    """Write outlines as polygons on the sky.

    The corners run counter-clockwise as seen from inside of the sphere, with east to the left of north, as
    IVOA's DALI has it: from north over east to south.

    Parameters
    ----------
    to_sky : callable
        Converts pixels x, y to ICRS degrees ra, dec, NaN off the projection.
    outlines : list of (x, y)
        Corners in pixels, counter-clockwise with x right and y up.
    mirrored : ndarray of bool, shape (N,)
        Where the image shows east to the right of north.

    Returns
    -------
    list of str
        ``POLYGON ICRS ra dec ra dec ...`` in degrees, right ascension from 0 to 360 on either side of the
        wrap; "" where a corner is off the projection.
    """
    simple = simplify(outlines)
    if not simple:
        return []
    ra, dec = to_sky(np.concatenate([x for x, _ in simple]), np.concatenate([y for _, y in simple]))
    ra = np.mod(np.round(ra, 6), 360)
    regions, stop = [], 0
    for (corners, _), flip in zip(simple, mirrored.tolist(), strict=True):
        start, stop = stop, stop + len(corners)
        places = list(zip(ra[start:stop].tolist(), dec[start:stop].tolist(), strict=True))
        inside = np.isfinite(ra[start:stop] + dec[start:stop]).all()
        numbers = " ".join(f"{a:.6f} {d:.6f}" for a, d in (places[::-1] if flip else places))
        regions.append(f"POLYGON ICRS {numbers}" if inside else "")
    return regions


# Point sources --------------------------------------------------------------------------------------------

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
    band = reference_band(image)
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
        As `_core` and, for linear data, `core_concentration` give them.
    """
    from scipy import ndimage

    finite = np.isfinite(values)
    if not finite.any():
        return []
    above = np.where(finite, values - local_sky(values, finite), 0)
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
        found.append((*_core(above, x, y), *shape))
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


def _core(light, x, y):
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
