"""What can be said of each object from its mask and the pixels under it: outline, position, shape, flux.

Only a window around each object is read. One larger than `MAX_SIDE` is measured on averages over blocks of
pixels, read strip by strip, so that memory stays bounded.
"""

import numpy as np

from surveycat import catalog
from surveycat.bands import reference_of
from surveycat.calibration import magnitude
from surveycat.catalog import FLAGS
from surveycat.centroid import galaxy_centre, half_light_radius, moments, window_sigma
from surveycat.footprint import Footprint
from surveycat.photometry import (
    Band,
    Crowd,
    gini,
    likelihood_ratio,
    measure_apertures,
    mirrored,
    sky_and_noise,
)
from surveycat.simplify import area_of, simplify
from surveycat.stars import Stars, core_concentration, core_of, stars
from surveycat.wcs import unit_vectors

__all__ = ["columns", "measure"]

MAX_SIDE = 1024  # pixels; windows of larger objects are averaged over blocks
MAX_STRIP = 2**22  # pixels read at once for such an average
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
    Sums are over the `~surveycat.footprint.Footprint`, above a local sky (`photometry.sky_and_noise`); of pixels in two
    footprints each belongs to one object (`photometry.Crowd`), or a companion whose mask reaches over a bright galaxy
    would be measured on that. Positions and moments are weighted by that light in the band of `bands.reference_of`,
    negative values as 0; where there is no light at all every pixel weighs the same.
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


# Pixels ---------------------------------------------------------------------------------------------------


def _light(image, footprint, number, crowd):
    """Measure the light of one object.

    Returns
    -------
    dict
        ``x``, ``y`` (pixels of the image), ``covariance`` ((xx, xy, yy), pixels squared), ``radius``
        (half-light), ``core`` and ``core_radius`` (as `core_of` has them, NaN where the object was averaged),
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
    block, reference = 2**level, light[reference_of(image)]
    weights = np.maximum(unstretched(reference) if image.picture else reference, 0) * mask
    where = mask if mask.any() else footprint.on_grid(box, level)  # other objects may have all of its pixels
    x_iso, y_iso, covariance = moments(weights if weights.any() else where.astype(np.float32))
    x, y, window = x_iso, y_iso, np.nan
    if weights.any():
        x, y, window = galaxy_centre(weights, mask, x, y)
    core, core_radius = core_of(reference, x, y) if level == 0 else (np.nan, np.nan)
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
        found |= _apertures(bands, reference_of(image), mask, others, (x, y, covariance, window), level)
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
    weights = np.exp(-0.5 * (rows**2 + columns**2) / window_sigma(window) ** 2) * (mask & ~band.missing)
    flux = float((weights * band.light).sum(dtype=float))
    if not flux > 0:
        return np.nan, np.nan
    photons = np.maximum(band.light, 0) / band.gain if band.gain > 0 else 0
    variance = weights**2 * (band.variance + photons)
    return tuple(2 * float(np.sqrt((variance * distance**2).sum(dtype=float))) / flux for distance in (columns, rows))


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
