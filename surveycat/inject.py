"""How good is the catalogue *here*? Artificial galaxies and stars are added to an image, and looked for.

`inject` is the line: measure the seeing, draw objects, add them in rounds of a few that do not touch, search each
round, and count what was found. `rates` is what it is for: completeness and star contamination by magnitude and size.
"""

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from surveycat import __version__, catalog
from surveycat.artificial import (
    BURNT,
    REACH,
    Psf,
    Stamp,
    altered,
    blur_margin,
    blurred,
    galaxy_files,
    light_of_picture,
    measure_psf,
    real_galaxy,
    sersic,
    units_per_nanomaggy,
)
from surveycat.bands import gather, reference_of
from surveycat.dispatch import loaded
from surveycat.errors import ImageError, OptionError, OutputError, RunFailed
from surveycat.image import open_image
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.pipeline import check_min_score, search, way_to_look
from surveycat.region import parse_region
from surveycat.sampling import asked_level
from surveycat.stretch import NANOMAGGY_BRIGHTNESS
from surveycat.wcs import SDSS_SCALE

__all__ = ["Injection", "inject", "rates"]

log = logging.getLogger(__name__)

FILES = ("objects.ecsv", "rates.ecsv", "rates.png")
APART = 160  # pixels: a round has one object in each square of this side, on average
LEAST_APART = 24  # pixels between two artificial objects of a round
MARGIN = 6  # pixels from the border of the image
SPAN = (6.0, 1.0)  # magnitudes brighter than a star of 5 sigma: from and to
SIZES = (0.5, 4.0)  # half-light radii of galaxies in units of that of a star: from and to
DENSEST = {1.0: 20.0, 4.0: 19.0}  # mag per square arcsec within the half-light radius, by Sersic index: see `draw`
LEAST_SPAN = 1.5  # of sizes, where the surface brightness sets the least
SIZE_BINS = 3
PSF_SIDE = 1024  # pixels of the window in the middle where stars are measured


@dataclass(frozen=True, eq=False)
class Injection:
    """What was added to an image and what was found of it.

    Parameters
    ----------
    objects : `~astropy.table.QTable`
        A row for each artificial object: ``kind`` (galaxy or star), ``x``, ``y``, ``magnitude``,
        ``half_light_radius`` (before seeing), ``sersic`` (NaN for real galaxies and stars), ``axis_ratio``,
        ``cutout`` (file of a real galaxy), ``round``, ``on_object`` (a row of the unaltered image is there), ``found``,
        ``score``, ``class``.
    rates : `~astropy.table.QTable`
        From `rates`.
    """

    objects: object
    rates: object

    def summary(self):
        """Say in a few words how many were found, leaving out those that lie on an object of the image."""
        free = self.objects[~np.asarray(self.objects["on_object"])]
        kind, found = np.asarray(free["kind"]), np.asarray(free["found"])
        galaxies, stars = kind == "galaxy", kind == "star"
        return (
            f"{(found & galaxies).sum()} of {galaxies.sum()} galaxies found, "
            f"{(found & stars).sum()} of {stars.sum()} stars catalogued as galaxies"
        )


def inject(
    images,
    out=None,
    *,
    galaxies=200,
    stars=200,
    magnitudes=None,
    sizes=None,
    cutouts=None,
    fwhm=None,
    zero_point=None,
    seed=0,
    bands="auto",
    region=None,
    weights="compact",
    preset=None,
    detector=None,
    min_score=0.5,
    resample="auto",
    overwrite=False,
    progress=None,
):
    """Add artificial galaxies and stars to an image, search it, and say what part of them is found.

    Parameters
    ----------
    images : path, uint8 array of shape (H, W, 3), or a sequence of paths
        The image; several FITS files are its bands.
    out : path, optional
        Folder for ``objects.ecsv``, ``rates.ecsv`` and ``rates.png``; it appears when all is done.
    galaxies, stars : int, optional
        How many of each.
    magnitudes : (float, float), optional
        Brightest and faintest in the reference band, drawn evenly. By default from 6 to 1 magnitudes brighter than a
        star at 5 sigma.
    sizes : (float, float), optional
        Half-light radii of galaxies before seeing, pixels, drawn evenly in the logarithm. By default 0.5 to 4 times
        that of a star. A bright galaxy is larger where the range would make it denser than galaxies are; see `draw`.
    cutouts : path, optional
        Folder with pictures of real galaxies, in SDSS's stretch, to be added instead of Sersic profiles.
    fwhm : float, optional
        Seeing in pixels, where it cannot be measured.
    zero_point : float, optional
        Magnitude of one unit of the image (of white for a picture). By default that of the FITS header, else 0:
        magnitudes are then in the image's own units.
    seed : int, optional
        The same seed adds the same objects.
    bands, region, weights, preset, detector, min_score, resample, progress
        As in `surveycat.run`.
    overwrite : bool, optional
        Replace what `out` holds from an earlier run.

    Returns
    -------
    Injection
        Objects and rates; ``meta`` of both tables says how they were made.

    Raises
    ------
    SurveycatError
        If an input, an option or an output cannot be used. Nothing is written then.
    """
    _check_options(galaxies, stars, magnitudes, sizes, fwhm, zero_point, seed)
    check_min_score(min_score)
    _check_folder(out, overwrite)
    asked_level(resample)
    files = None if cutouts is None else galaxy_files(cutouts)
    single = isinstance(images, (str, os.PathLike, np.ndarray))
    gathered, _ = gather([images] if single else list(images), bands)
    if len(gathered) != 1:
        raise OptionError(f"{len(gathered)} images were given; give one, or the FITS files of its bands")
    with open_image(gathered[0]) as whole:
        image = whole if region is None else whole.region(parse_region(region, whole))
        field = Field.of(image, fwhm, zero_point)
        detector = loaded(detector or DetectorSpec(os.fspath(weights), preset=preset))
        magnitudes = magnitudes or tuple(field.deepest - span for span in SPAN)
        sizes = sizes or tuple(field.psf.half_light_radius * size for size in SIZES)
        rng = np.random.default_rng([seed, 1])
        objects = draw(image.shape, galaxies, stars, magnitudes, sizes, files, rng, field.surface)
        meta = field.meta | {
            "surveycat_version": __version__,
            "weights": getattr(detector, "weights_id", type(detector).__name__),
            "image": image.name,
            "seed": seed,
            "min_score": min_score,
            "bands": image.bands,
        }
        look, why = way_to_look(image, resample)
        for note in (field.meta["magnitudes"], *why):
            log.info("%s", note)
        meta |= {f"searched_{name}": value for name, value in look.items()}
        rows_of = partial(_rows, detector=detector, min_score=min_score, look=look)
        _search_rounds(image, field, objects, rows_of, seed, progress)
    result = Injection(_table(objects, meta), rates(objects, magnitudes, sizes, meta))
    if out is not None:
        _write(result, out)
    return result


# Before the work ------------------------------------------------------------------------------------------


def _check_options(galaxies, stars, magnitudes, sizes, fwhm, zero_point, seed):
    """Refuse numbers that cannot be meant."""
    for name, count in (("galaxies", galaxies), ("stars", stars)):
        if count < 0:
            raise OptionError(f"{name} is {count}; give 0 or more")
    if galaxies + stars == 0:
        raise OptionError("there is nothing to add: galaxies and stars are both 0")
    for name, pair in (("magnitudes", magnitudes), ("sizes", sizes)):
        if pair is not None and not -np.inf < pair[0] < pair[1] < np.inf:
            raise OptionError(f"{name} are {pair[0]:g} to {pair[1]:g}; give the smaller number first")
    if sizes is not None and sizes[0] <= 0:
        raise OptionError(f"sizes begin at {sizes[0]:g} px; give half-light radii above 0")
    if fwhm is not None and not 1 <= fwhm <= 25:
        raise OptionError(f"fwhm is {fwhm:g} px; give 1 to 25 pixels")
    if zero_point is not None and not np.isfinite(zero_point):
        raise OptionError(f"zero-point is {zero_point}; give the magnitude of one unit of the image")
    if seed < 0:
        raise OptionError(f"seed is {seed}; give 0 or more")


def _check_folder(out, overwrite):
    """Refuse a folder that could not be written at the end."""
    if out is None:
        return
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a folder")
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: there is no folder {out.parent}; make it first")
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise OutputError(f"{out / there[0]} exists already; choose another folder or ask to overwrite it")
    catalog.check_writable(out if out.exists() else out.parent)


# The image ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Field:
    """What must be known of an image to add objects that could be its own.

    Parameters
    ----------
    psfs : dict
        `Psf` of each band, by name, in the order of the raster's planes. A picture has one for all, and so has what
        shows too few stars in a band to measure another.
    units : dict
        Units of the image per nanomaggy in each band, by name, in the order of the raster's planes.
    zero_point : float
        Magnitude of one unit of the reference band.
    gain : dict
        Electrons per unit, NaN where not known: then objects are added without noise of their own.
    noise : float
        Of a pixel of the reference band.
    deepest : float
        Magnitude of a star at 5 sigma within a radius of one FWHM.
    surface : float
        AB magnitude per square arcsec of magnitude 0 per square pixel; NaN where it is not known.
    meta : dict
        What is to be said of it.
    """

    psfs: dict
    units: dict
    reference: str
    zero_point: float
    gain: dict
    noise: float
    deepest: float
    surface: float
    meta: dict

    @classmethod
    def of(cls, image, fwhm=None, zero_point=None):
        """Measure an image; see `inject` for the options."""
        reference = reference_of(image)
        light = _middle(image, reference)
        psfs = _psfs(image, light, reference, fwhm)
        psf, noise = psfs[reference], _noise(light)
        worth = units_per_nanomaggy(image)
        ab = 22.5 + 2.5 * np.log10(worth[reference]) if zero_point is None else zero_point
        scale = image.pixel_scale or (SDSS_SCALE if image.picture else np.nan)  # pictures are taken for those of SDSS
        statement, zero_point = _zero_point(image, worth[reference], reference, zero_point)
        units = {name: worth[name] if np.isfinite(worth[name]) else np.nan for name in image.raster.bands}
        limit = 5 * noise * np.sqrt(np.pi) * psf.fwhm / 0.8  # a star has about 0.8 of its light within one FWHM
        calibration = image.calibration
        meta = {
            "magnitudes": statement,
            "zero_point": round(float(zero_point), 4),
            "reference_band": reference,
            "psf_fwhm": round(psf.fwhm, 3),
            "psf_fwhm_by_band": {name: round(each.fwhm, 3) for name, each in psfs.items()},
            "psf_source": "given" if fwhm is not None else "stars of the image",
        }
        return cls(
            psfs=psfs,
            units=units,
            reference=reference,
            zero_point=zero_point,
            gain={name: calibration[name].gain if name in calibration else np.nan for name in image.raster.bands},
            noise=noise,
            deepest=float(zero_point - 2.5 * np.log10(limit)),
            surface=float(ab - zero_point + 5 * np.log10(scale)),
            meta=meta,
        )

    @property
    def psf(self):
        """Psf : of the reference band."""
        return self.psfs[self.reference]

    def fluxes(self, magnitude, colour):
        """Light of an object in each plane.

        Parameters
        ----------
        magnitude : float
            In the reference band.
        colour : dict
            Nanomaggies in i, r, g over those in r. Other bands, and those without a zero point, get the signal to
            noise ratio of the reference band only if their units are the same: their light is that of the reference.

        Returns
        -------
        ndarray, shape (P,)
            In units of the image, in the order of the raster's planes.
        """
        flux = 10 ** (-0.4 * (magnitude - self.zero_point))
        worth = np.array([self.units[name] for name in self.units])
        ratio = np.array([colour.get(name, 1.0) for name in self.units]) / colour.get(self.reference, 1.0)
        relative = worth / self.units[self.reference]
        return flux * np.where(np.isfinite(relative), relative * ratio, 1.0)

    def seen(self, planes, y=0.0, x=0.0):
        """Light of each plane as seen through the point spread function of its band; see `blurred`.

        Parameters
        ----------
        planes : list of ndarray, shape (h, w)
            In the order of `psfs`.
        y, x : float, optional
            Pixels by which the light is moved.

        Returns
        -------
        ndarray of float32, shape (P, h + 2 m, w + 2 m)
        """
        margin = blur_margin(max(psf.fwhm for psf in self.psfs.values()))
        pairs = zip(planes, self.psfs.values(), strict=True)
        return np.stack([blurred(light, psf, y, x, margin) for light, psf in pairs])


def _psfs(image, light, reference, fwhm):
    """Point spread function of each plane, by name: measured, or round ones of a given width."""
    names = image.raster.bands
    if fwhm is not None:
        return dict.fromkeys(names, Psf(fwhm))
    own = measure_psf(light, _burnt(image, light))
    if own is None:
        raise ImageError(f"{image.name}: too few stars to measure the seeing; give it in pixels with fwhm")
    psfs = dict.fromkeys(names, own)
    if not image.picture:
        for name in set(names) - {reference}:
            other = _middle(image, name)
            psfs[name] = measure_psf(other, _burnt(image, other)) or own
    return psfs


def _middle(image, band):
    """Linear light of one band in the middle of the image."""
    size = [min(side, PSF_SIDE) for side in image.shape]
    y, x = ((side - length) // 2 for side, length in zip(image.shape, size, strict=True))
    box = (y, x, y + size[0], x + size[1])
    if not image.picture:
        return image.band(band, box)
    return light_of_picture(image.read(box))[image.raster.bands.index(band)]


def _burnt(image, light):
    """Light above which a peak is burnt out."""
    if image.picture:
        grey = np.full((1, 1, 3), BURNT - 20, np.uint8)
        return float(light_of_picture(grey)[0, 0, 0])
    return 0.5 * float(np.nanmax(light))


def _noise(light):
    """Noise of a pixel, from the side of the sky's histogram that objects do not reach."""
    sky = light[np.isfinite(light)]
    middle = np.median(sky)
    low = middle - np.quantile(sky, 0.159)
    high = np.quantile(sky, 0.75) - middle
    # a picture's dark side is clipped: then the bright one tells
    return float(max(low, high / 0.6745, 1e-12))


def _zero_point(image, worth, band, given):
    """Say what magnitudes mean here: a sentence and the zero point."""
    if given is not None:
        unit = "white (256 counts where the stretch is linear)" if image.picture else "unit"
        return f"magnitudes in {band} with the given zero point: one {unit} is {given:g}", given
    if image.picture:
        return (
            f"a picture has no zero point: magnitudes are -2.5 log10 of the light in {band}, in units of white after "
            "undoing the stretch of SDSS's pictures (for those, --zero-point 23.54 gives AB magnitudes)",
            0.0,
        )
    if np.isfinite(worth):
        return f"AB magnitudes in {band}, from {image.calibration[band].source}", 22.5 + 2.5 * np.log10(worth)
    return f"no zero point in the header: magnitudes are -2.5 log10 of the counts in {band}", 0.0


# The objects ----------------------------------------------------------------------------------------------


def draw(shape, galaxies, stars, magnitudes, sizes, files, rng, surface=np.nan):
    """Draw all objects: what they are and where.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the image.
    galaxies, stars, magnitudes, sizes
        As in `inject`.
    files : list of Path or None
        Pictures of real galaxies.
    rng : `numpy.random.Generator`
    surface : float, optional
        As in `Field`.

    Returns
    -------
    dict of ndarray
        Columns of equal length, as in `Injection`, with ``angle`` (radians) and ``g_r`` besides.

    Raises
    ------
    OptionError
        If the image is too small.

    Notes
    -----
    The surface brightness of a galaxy does not depend on its distance, and has a limit: that of disks (Freeman 1970)
    is fainter than that of ellipticals (Kormendy 1977). In r the mean within the half-light radius, seeing removed, of
    the 43 galaxies brighter than 20 in two SDSS frames is 19.9 and fainter for early types, 20.6 and fainter for disks.
    What would be brighter than `DENSEST` is made larger: it would look like a star, and the sky has next to nothing
    like it. Pictures of real galaxies have the limit of disks.
    """
    if min(shape) < 4 * MARGIN:
        raise OptionError(f"the image has {shape[1]} x {shape[0]} pixels; give a larger one")
    count = galaxies + stars
    is_galaxy = rng.permutation(np.arange(count) < galaxies)
    index = np.where(rng.random(count) < 0.5, 1.0, 4.0)
    magnitude, place_in_sizes = rng.uniform(*magnitudes, count), rng.random(count)
    ratio = np.where(index == 1, rng.uniform(0.2, 1, count), rng.uniform(0.6, 1, count))
    densest = np.where(index == 1, DENSEST[1.0], DENSEST[4.0]) if files is None else DENSEST[1.0]
    low, high = np.log(_possible(sizes, magnitude, ratio if files is None else 1.0, densest - surface))
    objects = {
        "kind": np.where(is_galaxy, "galaxy", "star"),
        "magnitude": magnitude,
        "half_light_radius": np.where(is_galaxy, np.exp(low + (high - low) * place_in_sizes), 0.0),
        "sersic": np.where(is_galaxy, index, np.nan),
        "axis_ratio": np.where(is_galaxy, ratio, 1),
        "angle": rng.uniform(0, np.pi, count),
        "g_r": np.where(is_galaxy, rng.normal(np.where(index == 1, 0.6, 0.95), 0.15), _star_colours(count, rng)),
        "cutout": np.full(count, "", object),
    }
    if files is not None:
        chosen = rng.integers(len(files), size=count)
        objects["cutout"][is_galaxy] = [str(files[i]) for i in chosen[is_galaxy]]
        objects["sersic"][:] = objects["axis_ratio"][is_galaxy] = np.nan
    return objects | _places(shape, count, rng)


def _possible(sizes, magnitude, ratio, densest):
    """Least and largest half-light radius of each galaxy, pixels.

    Parameters
    ----------
    sizes : (float, float)
        As in `inject`.
    magnitude, ratio, densest : ndarray or float
        Of the galaxies; magnitude per square pixel that the mean within the half-light radius may have, NaN for any.

    Returns
    -------
    low, high : ndarray
        The sizes asked for; where the least is too small for the surface brightness, from one that is not, and at
        least to `LEAST_SPAN` times that.
    """
    least = np.nan_to_num(np.sqrt(10 ** (0.4 * (densest - magnitude)) / (2 * np.pi * ratio)))
    low = np.maximum(sizes[0], least)
    return low, np.maximum(sizes[1], LEAST_SPAN * least)


def _star_colours(count, rng):
    """g - r of stars: those of the halo and disk, and M dwarfs."""
    return np.where(rng.random(count) < 0.7, rng.normal(0.45, 0.15, count), rng.normal(1.35, 0.12, count))


def _places(shape, count, rng):
    """Positions and rounds: within a round objects are at least 24 pixels apart."""
    height, width = shape
    per_round = max(1, round(height * width / APART**2))
    y, x, number = np.empty(count), np.empty(count), np.arange(count) // per_round
    for i in range(count):
        mates = np.flatnonzero(number[:i] == number[i])
        for _ in range(100):
            y[i], x[i] = rng.uniform(MARGIN, height - 1 - MARGIN), rng.uniform(MARGIN, width - 1 - MARGIN)
            if not (np.hypot(y[mates] - y[i], x[mates] - x[i]) < LEAST_APART).any():
                break
        else:  # a small image is full: the next round has room
            number[i:] += 1
    return {"x": x, "y": y, "round": number}


def stamp_of(objects, i, field, rng):
    """Light of one object in all planes.

    Parameters
    ----------
    objects : dict of ndarray
        From `draw`; the half-light radius of a real galaxy is set to what it became.
    i : int
        Which.
    field : Field
        Of the image.
    rng : `numpy.random.Generator`
        For the noise of the object's own light.

    Returns
    -------
    Stamp
        Its light.
    """
    y, x = objects["y"][i], objects["x"][i]
    row, column = round(y), round(x)
    g_r = objects["g_r"][i]
    colour = {"g": 10 ** (-0.4 * g_r), "r": 1.0, "i": 10 ** (0.16 * g_r)}
    if objects["kind"][i] == "star":
        flux = field.fluxes(objects["magnitude"][i], colour)
        half = field.psf.reach(flux.max(), field.noise)
        place = half + y - row, half + x - column, (2 * half + 1, 2 * half + 1)
        profile = np.stack([psf.at(*place) for psf in field.psfs.values()])
    elif objects["cutout"][i]:
        profile, own, objects["half_light_radius"][i] = _real_profile(objects, i, field, rng)
        flux = field.fluxes(objects["magnitude"][i], own)
        # it is where its light is, to the pixel in which its picture can be put
        (cy, cx), half = _centre(profile[0]), np.array(profile.shape[1:]) // 2
        row, column = round(y - cy) + half[0], round(x - cx) + half[1]
        objects["y"][i], objects["x"][i] = row - half[0] + cy, column - half[1] + cx
    else:
        flux = field.fluxes(objects["magnitude"][i], colour)
        radius = objects["half_light_radius"][i]
        half = int(np.clip(np.ceil(REACH * radius), 6, 150))
        shape = objects["sersic"][i], radius, objects["axis_ratio"][i], objects["angle"][i]
        profile = field.seen([sersic(*shape, half)] * len(field.psfs), y - row, x - column)
    light = (profile * flux[:, None, None]).astype(np.float32)
    gain = np.array([field.gain[name] for name in field.units])[:, None, None]
    noise = rng.standard_normal(light.shape) * np.sqrt(np.maximum(light, 0) / np.where(gain > 0, gain, np.inf))
    height, width = light.shape[1:]
    return Stamp(row - height // 2, column - width // 2, light + noise.astype(np.float32))


def _real_profile(objects, i, field, rng):
    """Profile of a real galaxy in all planes, its colour as `Field.fluxes` takes it, and its half-light radius."""
    names = ("i", "r", "g")
    planes, radius = real_galaxy(objects["cutout"][i], objects["half_light_radius"][i], rng)
    flux = planes.sum(axis=(1, 2)) / NANOMAGGY_BRIGHTNESS[3]
    ones = dict(zip(names, (plane / max(plane.sum(), 1e-30) for plane in planes), strict=True))
    profile = field.seen([ones.get(name, ones["r"]) for name in field.psfs])
    return profile, dict(zip(names, flux / flux[1], strict=True)), radius


def _centre(light):
    """Centroid (y, x) of an image."""
    rows, columns = light.sum(axis=1), light.sum(axis=0)
    return np.arange(len(rows)) @ rows / rows.sum(), np.arange(len(columns)) @ columns / columns.sum()


# The search -----------------------------------------------------------------------------------------------


def _search_rounds(image, field, objects, rows_of, seed, progress):
    """Search the image as it is, and with the objects of each round; fill in what was found."""
    count = len(objects["x"])
    objects |= {
        "found": np.zeros(count, bool),
        "on_object": np.zeros(count, bool),
        "score": np.full(count, np.nan),
        "class": np.full(count, "", object),
    }
    rounds = np.unique(objects["round"])
    radius = max(1.5 * field.psf.fwhm, 3.0)

    def told(step):
        if progress is not None:
            progress("rounds", step, len(rounds) + 1)

    plain = rows_of(image)
    told(1)
    for step, number in enumerate(rounds, 2):
        index = np.flatnonzero(objects["round"] == number)
        stamps = [stamp_of(objects, i, field, np.random.default_rng([seed, 2, i])) for i in index]
        with altered(image, stamps) as changed:
            table = rows_of(changed)
        x, y = objects["x"][index], objects["y"][index]
        objects["on_object"][index] = _nearest(x, y, plain)[0] <= radius
        distance, row = _nearest(x, y, table)
        objects["found"][index] = hit = distance <= radius
        objects["score"][index[hit]] = np.asarray(table["score"])[row[hit]]
        objects["class"][index[hit]] = np.asarray(table["class"])[row[hit]]
        told(step)


def _rows(image, detector, min_score, look):
    """Catalogue of an image, in its own pixels; a tile that fails is an error here."""
    table, failed = search(image, detector, 0, min_score, **look)
    if failed:
        raise RunFailed(f"{image.name}: a tile could not be searched: {failed[0][1]}")
    return table


def _nearest(x, y, table):
    """Distance to the nearest row of a catalogue, infinite for none, and which one it is."""
    from scipy.spatial import cKDTree

    if not len(table):
        return np.full(len(x), np.inf), np.zeros(len(x), int)
    return cKDTree(np.column_stack([table["x"].value, table["y"].value])).query(np.column_stack([x, y]))


# What it comes to -----------------------------------------------------------------------------------------


def rates(objects, magnitudes, sizes, meta=None):
    """Completeness of galaxies, and stars taken for galaxies, by magnitude and size.

    Parameters
    ----------
    objects : mapping of ndarray
        Columns ``kind``, ``magnitude``, ``half_light_radius``, ``found``, ``on_object``.
    magnitudes, sizes : (float, float)
        Ranges in which they were drawn.
    meta : dict, optional
        For the table.

    Returns
    -------
    `~astropy.table.QTable`
        ``kind``, ``magnitude_low``, ``magnitude_high``, ``size_low``, ``size_high`` (pix; 0 to infinity for all sizes),
        ``added`` (objects that do not lie on one of the image's own), ``found``, ``rate`` with the limits ``low`` and
        ``high`` of its 68 % interval (Wilson), NaN without objects.
    """
    from astropy import units as u
    from astropy.stats import binom_conf_interval
    from astropy.table import QTable

    steps = max(1, round(magnitudes[1] - magnitudes[0]))
    edges = np.linspace(*magnitudes, steps + 1)
    size_edges = np.geomspace(*sizes, SIZE_BINS + 1)
    kind, magnitude, size, found, taken = (
        np.asarray(objects[name]) for name in ("kind", "magnitude", "half_light_radius", "found", "on_object")
    )
    size_edges[-1] = np.nextafter(max(size_edges[-1], size.max()), np.inf)  # bright ones may be larger than asked for
    ranges = [(0.0, np.inf), *zip(size_edges[:-1], size_edges[1:], strict=True)]
    rows = []
    for name, size_ranges in (("galaxy", ranges), ("star", ranges[:1])):
        for low_size, high_size in size_ranges:
            for low, high in zip(edges[:-1], edges[1:], strict=True):
                chosen = (kind == name) & ~taken & (magnitude >= low) & (magnitude < high)
                chosen &= (size >= low_size) & (size < high_size)
                added, hits = int(chosen.sum()), int((chosen & found).sum())
                limits = binom_conf_interval(hits, added, interval="wilson") if added else (np.nan, np.nan)
                rows.append(
                    (name, low, high, low_size, high_size, added, hits, hits / added if added else np.nan, *limits)
                )
    names = (
        "kind",
        "magnitude_low",
        "magnitude_high",
        "size_low",
        "size_high",
        "added",
        "found",
        "rate",
        "low",
        "high",
    )
    table = QTable(rows=rows, names=names, meta=dict(meta or {}))
    for name in ("size_low", "size_high"):
        table[name] = table[name] * u.pix
    return table


def _table(objects, meta):
    """The objects as a table with units."""
    from astropy import units as u
    from astropy.table import QTable

    names = ("kind", "x", "y", "magnitude", "half_light_radius", "sersic", "axis_ratio", "cutout", "round")
    table = QTable({name: objects[name] for name in names}, meta=dict(meta))
    for name in ("on_object", "found", "score", "class"):
        table[name] = objects[name]
    for name in ("cutout", "class"):
        table[name] = np.array([str(value) for value in objects[name]])
    for name in ("x", "y", "half_light_radius"):
        table[name] = table[name] * u.pix
    return table


def _write(result, out):
    """Write the three files into the folder; each is complete when it appears."""
    out = Path(out)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, table in (("objects.ecsv", result.objects), ("rates.ecsv", result.rates)):
            catalog.write_table(table, folder / name)
        plot(result.rates, folder / "rates.png")
        out.mkdir(exist_ok=True)
        for name in FILES:
            os.replace(folder / name, out / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plot(table, path):
    """Plot rates against magnitude: galaxies of all sizes and by size, and stars.

    Parameters
    ----------
    table : `~astropy.table.Table`
        From `rates`.
    path : path-like
        PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    size = np.column_stack([table["size_low"].value, table["size_high"].value])
    for low, high in np.unique(size, axis=0):
        chosen = (table["kind"] == "galaxy") & (size[:, 0] == low) & (size[:, 1] == high)
        label = "all" if np.isinf(high) else f"{low:.1f} to {high:.1f} px"
        _errorbars(left, table[chosen], label, "black" if np.isinf(high) else None)
    _errorbars(right, table[table["kind"] == "star"], "stars", "#d55e00")
    left.set_title("galaxies found, by half-light radius before seeing", fontsize=9)
    right.set_title("stars catalogued as galaxies", fontsize=9)
    for axes in (left, right):
        axes.set(xlabel=f"magnitude in {table.meta['reference_band']}", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(f"{table.meta['image']}: {table.meta['magnitudes']}"[:150], fontsize=7)
    figure.savefig(path, dpi=110)


def _errorbars(axes, table, label, colour):
    """Draw rates with their intervals at the middle of each magnitude bin."""
    table = table[np.asarray(table["added"]) > 0]
    middle = (np.asarray(table["magnitude_low"]) + np.asarray(table["magnitude_high"])) / 2
    value, low, high = (np.asarray(table[name], float) for name in ("rate", "low", "high"))
    error = np.maximum([value - low, high - value], 0)
    axes.errorbar(middle, value, error, marker="o", ms=4, capsize=2, label=label, color=colour)
