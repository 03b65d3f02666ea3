"""World coordinates: reading them from headers, and going between pixels and sky.

All WCS objects here speak of rows as they are stored: pixel (0, 0) is the centre of the first pixel of the
first row in the file, and the WCS, never a flip, says where north is.
"""

import logging
import math
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from surveycat.errors import PositionError

__all__ = [
    "SDSS_SCALE",
    "cd_matrix",
    "has_position",
    "header_wcs",
    "is_usable",
    "load_wcs",
    "one_line",
    "pixel_scale_of",
    "pixel_to_sky",
    "quiet",
    "sky_to_pixel",
    "tan_wcs",
    "probe_points",
    "unit_vectors",
]

SDSS_SCALE = 0.396127  # arcsec per pixel: SkyServer's default, the native scale of SDSS


@contextmanager
def quiet():
    """Keep astropy's warnings and log lines from the user's terminal; what matters is said in notes."""
    from astropy import log as logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def one_line(error):
    """Message of a library's error as a part of one line of ours."""
    message = re.sub(r"ERROR \d+ in \w+\(\) at line \d+ of file \S+:", "", str(error))  # what wcslib puts before
    message = " ".join(message.split()) or type(error).__name__
    return message if len(message) <= 200 else message[:197] + "..."


# --- making WCS objects ---


def tan_wcs(shape, ra, dec, pixel_scale=SDSS_SCALE, rotation=0.0, up=-1):
    """Gnomonic (TAN) WCS like that of SkyServer's pictures: north up, east left.

    Parameters
    ----------
    shape : tuple of int
        (H, W); the position is that of 0-based pixel (W/2, H/2).
    ra, dec : float
        ICRS degrees.
    pixel_scale : float
        Arcsec per pixel.
    rotation : float
        Angle in degrees from "up" to north, counter-clockwise as seen with east on the left of north; the
        position angle of "up" is minus this. The same as CROTA2 in FITS and Spatial.Rotation in AVM.
    up : {-1, 1}
        Whether "up" is towards smaller (pictures: the first row is on top) or larger (FITS) row numbers.

    Returns
    -------
    `~astropy.wcs.WCS`
    """
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.cunit = "deg", "deg"
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = shape[1] / 2 + 1, shape[0] / 2 + 1
    wcs.wcs.cd = cd_matrix((-pixel_scale / 3600, pixel_scale / 3600), rotation) * [1, up]
    wcs.array_shape = shape
    wcs.wcs.set()
    return wcs


def cd_matrix(scale, rotation):
    """CD matrix from CDELT1, CDELT2 and CROTA2 (Calabretta & Greisen 2002, eq. 189), y upwards; degrees."""
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    return np.array([[scale[0] * cos, -scale[1] * sin], [scale[0] * sin, scale[1] * cos]])


def has_position(header):
    """Whether a FITS header names celestial axes, or has a plate solution of the Digitized Sky Survey."""
    names = " ".join(str(header.get(f"CTYPE{axis}", "")) for axis in (1, 2))
    return bool(re.search(r"RA--|DEC-|LON|LAT", names)) or "AMDX1" in header


def header_wcs(header, hdus=None):
    """WCS of a FITS header.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
    hdus : `~astropy.io.fits.HDUList` or None
        The file, in which tables of distortions may lie.

    Returns
    -------
    wcs : `~astropy.wcs.WCS` or None
        None without usable celestial coordinates.
    notes : list of str
        Why there is none, or what to know of it.
    """
    from astropy.io.fits import VerifyError
    from astropy.wcs import WCS

    if not has_position(header):
        return None, []
    if fault := _fault(header):
        return None, [f"its WCS cannot be used ({fault})"]
    shape = header_size(header) or (1, 1)
    try:
        with quiet():
            wcs = WCS(header, fobj=hdus)
            if wcs.naxis != 2:  # not at once: astropy mends SCAMP's PV terms only without `naxis`
                wcs = WCS(header, fobj=hdus, naxis=2)
            usable = wcs.has_celestial and is_usable(wcs, shape) and not _singular(wcs)
    except (ValueError, TypeError, KeyError, IndexError, AssertionError, MemoryError, VerifyError) as error:
        return None, [f"its WCS cannot be used ({one_line(error)})"]
    if not usable:
        return None, ["its WCS cannot be used (it puts the image outside the sky, or on a line)"]
    return wcs, _distortion_notes(header, wcs)


def _fault(header):
    """What astropy passes over in silence and puts the image at a wrong place for; "" for nothing."""
    numbers = [f"{key}{axis}" for key in ("CRVAL", "CRPIX", "CDELT") for axis in (1, 2)]
    matrix = [key for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2") if key in header]
    for key in (*numbers, *matrix):
        if isinstance(header.get(key), (str, bool)):
            return f"{key} is {header[key]!r}, not a number"
    if matrix and not any(header[key] for key in matrix):
        return "all of its CD matrix is 0"
    return ""


def _singular(wcs):
    """Whether all pixels lie on one line of the sky."""
    matrix = wcs.celestial.pixel_scale_matrix
    return abs(np.linalg.det(matrix)) < 1e-9 * np.abs(matrix).max() ** 2


def _distortion_notes(header, wcs):
    projection = str(header.get("CTYPE1", ""))
    if projection.endswith(("TNX", "ZPX")):
        return [f"the distortion of {projection[-3:]} is not applied: positions may be off by arcseconds"]
    if wcs.sip is None:
        return []
    return ["SIP distortion is applied" + ("" if projection.endswith("-SIP") else ", though CTYPE does not name it")]


def header_size(header):
    """(H, W) of the image that a header was made for, or None where it does not say."""
    for width, height in (("IMAGEW", "IMAGEH"), ("ZNAXIS1", "ZNAXIS2"), ("NAXIS1", "NAXIS2")):
        if width in header and height in header:
            return int(header[height]), int(header[width])
    return None


def load_wcs(path):
    """Read a WCS from a FITS file, or from a header as text (lines, or cards of 80 characters).

    Parameters
    ----------
    path : path-like

    Returns
    -------
    wcs : `~astropy.wcs.WCS`
    size : tuple of int or None
        (H, W) of the image that it was made for, where it says so.
    notes : list of str
        What the user should know.

    Raises
    ------
    PositionError
        There is no such file, or no WCS in it.
    """
    from astropy.io.fits import VerifyError

    path = Path(path)
    try:
        with quiet():
            return _first_wcs(path)
    except FileNotFoundError as error:
        raise PositionError(f"WCS file {path} does not exist: check the name and the folder") from error
    except (OSError, ValueError, TypeError, KeyError, IndexError, VerifyError) as error:
        raise PositionError(
            f"WCS file {path} cannot be read ({one_line(error)}): give a FITS file or a FITS header as text"
        ) from error


def _first_wcs(path):
    reasons = []
    for header, hdus in _headers(path):
        wcs, notes = header_wcs(header, hdus)
        if wcs is not None:
            return wcs, header_size(header), notes
        reasons += notes
    reason = f" ({reasons[0]})" if reasons else ""
    raise PositionError(
        f"WCS file {path} holds no celestial WCS{reason}: give a FITS file or a header with RA and Dec axes"
    )


def _headers(path):
    """Headers in a file, each with the list of HDUs that it belongs to (None for text)."""
    from astropy.io import fits

    with open(path, "rb") as file:
        head = file.read(82)  # a card, and the end of its line
    if 0 <= head.find(b"\n"):
        lines = path.read_text("latin-1").splitlines()
        yield fits.Header.fromstring("\n".join(line.rstrip() for line in lines), sep="\n"), None
    elif head.startswith((b"\x1f\x8b", b"BZh")) or (head.startswith(b"SIMPLE") and path.stat().st_size % 2880 == 0):
        with fits.open(path) as hdus:
            yield from ((hdu.header, hdus) for hdu in hdus)
    else:
        yield fits.Header.fromstring(path.read_text("latin-1").strip()), None


# --- between pixels and sky ---


def pixel_to_sky(wcs, x, y):
    """ICRS position of pixels, all distortions applied, whatever the frame and the order of the axes.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
    x, y : array-like
        0-based column and row.

    Returns
    -------
    ra, dec : ndarray
        Degrees, ``0 <= ra < 360``; NaN outside the sky.
    """
    with quiet():
        icrs = wcs.pixel_to_world(np.asarray(x, float), np.asarray(y, float)).icrs
    return np.asarray(icrs.ra.deg) % 360, np.asarray(icrs.dec.deg)


def sky_to_pixel(wcs, ra, dec):
    """Pixels at ICRS positions.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
    ra, dec : array-like
        Degrees.

    Returns
    -------
    x, y : ndarray
        0-based column and row; NaN where the projection does not reach.
    """
    from astropy.coordinates import SkyCoord

    with quiet():
        x, y = wcs.world_to_pixel(SkyCoord(np.asarray(ra, float), np.asarray(dec, float), unit="deg"))
    return np.asarray(x), np.asarray(y)


def unit_vectors(ra, dec):
    """Unit vectors, shape (3, N), of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def pixel_scale_of(wcs, shape):
    """Square root of the area of the pixel at the centre of an image of shape (H, W), in arcsec."""
    from astropy.coordinates import SkyCoord

    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    ra, dec = pixel_to_sky(wcs, [x, x + 1, x], [y, y, y + 1])
    if not np.isfinite(ra + dec).all():
        return abs(float(np.linalg.det(wcs.pixel_scale_matrix))) ** 0.5 * 3600
    centre, neighbours = SkyCoord(ra[0], dec[0], unit="deg"), SkyCoord(ra[1:], dec[1:], unit="deg")
    east, north = (offset.arcsec for offset in centre.spherical_offsets_to(neighbours))
    return abs(float(east[0] * north[1] - east[1] * north[0])) ** 0.5


def probe_points(shape):
    """Columns and rows of the centre and the four corner pixels of an image of shape (H, W)."""
    right, bottom = shape[1] - 1, shape[0] - 1
    return np.array([right / 2, 0, right, 0, right]), np.array([bottom / 2, 0, 0, bottom, bottom])


def is_usable(wcs, shape):
    """Whether a WCS puts at least one of the `probe_points` on the sky."""
    ra, dec = pixel_to_sky(wcs, *probe_points(shape))
    return bool(np.isfinite(ra + dec).any())
