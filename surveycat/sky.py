"""Where an image is on the sky: which source of position is asked first, and whether they agree."""

import math
import re
from dataclasses import dataclass

import numpy as np

from surveycat.avm import avm_tags, avm_wcs
from surveycat.errors import PositionError
from surveycat.wcs import (
    SDSS_SCALE,
    is_usable,
    load_wcs,
    one_line,
    pixel_scale_of,
    pixel_to_sky,
    probe_points,
    tan_wcs,
)

__all__ = ["Placement", "SOURCES", "locate"]

SOURCES = ("file", "radec", "header", "avm", "sidecar")
"""In the order in which they are asked: ``--wcs``, ``--ra --dec``, FITS header, AVM tags, a header beside."""

DISAGREEMENT_ARCSEC = 2.0
NO_POSITION = (
    "no sky position: the catalogue will be in pixels only; add --ra and --dec of the image centre (with "
    "--pixel-scale), or --wcs FILE"
)


@dataclass(frozen=True)
class Placement:
    """An image's place on the sky.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS` or None
        None without a position.
    source : str or None
        Which of `SOURCES` gave it.
    pixel_scale : float or None
        Arcsec per pixel (square root of the area of a pixel at the image centre).
    notes : tuple of str
        What the user should know.
    """

    wcs: object
    source: str | None
    pixel_scale: float | None
    notes: tuple = ()


def locate(raster, path=None, wcs=None, ra=None, dec=None, pixel_scale=None, rotation=0.0):
    """Find an image's place on the sky.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
    path : `~pathlib.Path` or None
        Path of the image, beside which a header file of the same stem is looked for.
    wcs : path-like, `~astropy.wcs.WCS` or None
        A WCS, or a file with one.
    ra, dec : float or None
        Position of pixel (W/2, H/2), ICRS degrees: where SkyServer puts the position that it is asked for.
    pixel_scale : float or None
        Arcsec per pixel. Default: the file's own, else that of SDSS.
    rotation : float
        Degrees from "up" counter-clockwise to north; see `~surveycat.wcs.tan_wcs`.

    Returns
    -------
    Placement

    Raises
    ------
    PositionError
        A given value is out of range, or a given file holds no usable position.
    """
    _check_values(ra, dec, pixel_scale, rotation)
    notes, found = [], {}
    if wcs is not None:
        found["file"] = _given_wcs(wcs, raster.shape, notes)
    if raster.wcs is not None:
        found["header"] = raster.wcs
    found.update(_from_avm(raster, notes))
    found.update(_from_sidecar(path, raster.shape, notes))
    if ra is not None:
        scale = pixel_scale or _default_scale(found, raster.shape, notes)
        found["radec"] = tan_wcs(raster.shape, ra, dec, scale, rotation, up=1 if raster.fits else -1)
    source = next((name for name in SOURCES if name in found), None)
    if source is None:
        return Placement(None, None, pixel_scale, (*notes, NO_POSITION))
    notes += _disagreements(source, found, raster.shape)
    scale = pixel_scale_of(found[source], raster.shape)
    if pixel_scale is not None and abs(pixel_scale / scale - 1) > 0.01:
        notes.append(f"--pixel-scale {pixel_scale:g} is not used: the position ({source}) says {scale:.4g} arcsec")
    return Placement(found[source], source, scale, tuple(notes))


def _check_values(ra, dec, pixel_scale, rotation):
    if (ra is None) != (dec is None):
        given, missing = (f"--ra {ra}", "--dec") if dec is None else (f"--dec {dec}", "--ra")
        raise PositionError(f"{given} is given without {missing}: give both, in degrees")
    if ra is not None and not 0 <= ra < 360:
        raise PositionError(f"--ra {ra} is not in 0 to 360 degrees: give the right ascension in ICRS degrees")
    if dec is not None and not -90 <= dec <= 90:
        raise PositionError(f"--dec {dec} is not in -90 to 90 degrees: give the declination in ICRS degrees")
    if pixel_scale is not None and not 0 < pixel_scale <= 36000:
        raise PositionError(
            f"--pixel-scale {pixel_scale} is not a pixel's size: give arcsec above 0 (SDSS: {SDSS_SCALE})"
        )
    if not math.isfinite(rotation):
        raise PositionError(f"--rotation {rotation} is not an angle: give degrees from up to north, 0 for north up")
    if rotation and ra is None:
        raise PositionError(f"--rotation {rotation} is given without --ra and --dec: give these too")


def _default_scale(found, shape, notes):
    for name in ("avm", "header"):
        if name in found:
            scale = pixel_scale_of(found[name], shape)
            notes.append(f'pixel scale {scale:.4g}" is that of the file ({name}); --pixel-scale sets another')
            return scale
    notes.append(f'pixel scale {SDSS_SCALE}" is assumed, that of SDSS; --pixel-scale sets another')
    return SDSS_SCALE


# --- the sources ---


def _given_wcs(wcs, shape, notes):
    from astropy.wcs import WCS

    name, size, wcs_notes = "the given WCS", None, []
    if not isinstance(wcs, WCS):
        name = f"--wcs {wcs}"
        wcs, size, wcs_notes = load_wcs(wcs)
    if wcs.naxis != 2 or not wcs.has_celestial:
        raise PositionError(f"{name} has no celestial coordinates on its {wcs.naxis} axes: give RA and Dec on two")
    if not is_usable(wcs, shape):
        raise PositionError(f"{name} puts this image of {shape[1]} x {shape[0]} pixels outside the sky: is it its own?")
    notes += [f"{name}: {note}" for note in wcs_notes + _size_notes(size, shape)]
    return wcs


def _size_notes(size, shape):
    if size is None or tuple(size) == tuple(shape):
        return []
    return [f"it was made for {size[1]} x {size[0]} pixels, this has {shape[1]} x {shape[0]}"]


def _from_avm(raster, notes):
    tags = avm_tags(raster.xmp)
    if not tags:
        return {}
    try:
        wcs = avm_wcs(tags, raster.shape)
    except ValueError as error:  # also what wcslib raises on a singular matrix or an unknown projection
        notes.append(f"AVM tags are not used: {one_line(error)}")
        return {}
    if not is_usable(wcs, raster.shape):
        notes.append("AVM tags are not used: they put the image outside the sky")
        return {}
    return {"avm": wcs}


def _from_sidecar(path, shape, notes):
    """WCS of a header file beside the image, of the same stem."""
    if path is None:
        return {}
    stem = re.sub(r"\.[A-Za-z0-9]+(\.gz|\.bz2|\.fz)?$", "", path.name)
    for sidecar in (path.with_name(stem + suffix) for suffix in (".wcs", ".hdr")):
        if sidecar == path or not sidecar.is_file():
            continue
        try:
            wcs, size, wcs_notes = load_wcs(sidecar)
        except PositionError as error:
            notes.append(f"sidecar {sidecar.name} is not used: {error}")
            continue
        if not is_usable(wcs, shape):
            notes.append(f"sidecar {sidecar.name} is not used: it puts the image outside the sky")
            continue
        notes += [f"sidecar {sidecar.name}: {note}" for note in wcs_notes + _size_notes(size, shape)]
        return {"sidecar": wcs}
    return {}


def _disagreements(source, found, shape):
    """Notes on sources that put the image elsewhere than the chosen one."""
    from astropy.coordinates import SkyCoord

    points = probe_points(shape)
    chosen = SkyCoord(*pixel_to_sky(found[source], *points), unit="deg")
    notes = []
    for name in (name for name in SOURCES if name in found and name != source):
        apart = chosen.separation(SkyCoord(*pixel_to_sky(found[name], *points), unit="deg")).arcsec
        most = np.nan_to_num(apart).max()  # NaN where one of the two has no sky
        if most > DISAGREEMENT_ARCSEC:
            notes.append(
                f'positions disagree: {name} is {apart[0]:.1f}" from {source} at the image centre, '
                f'{most:.1f}" at most in the corners; {source} is used'
            )
    return notes
