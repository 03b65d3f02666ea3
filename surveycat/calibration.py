"""What a count is worth: nanomaggies per unit of a FITS image, from the keywords in which surveys say it.

A nanomaggy is the flux of an object of AB magnitude 22.5.
"""

import math
import re
from dataclasses import dataclass

__all__ = ["Calibration", "calibration", "magnitude"]

ZERO_POINT_KEYWORDS = ("MAGZP", "MAGZERO", "MAGZPT", "PHOTZP", "MAG_ZP", "ZEROPT", "ZPT", "ZP")
"""Magnitude of an object of one unit of the image, as the file has it."""

CAVEATS = {"FLUX20": "of one run: those of two runs differ by about 0.025 mag; tie magnitudes to stars for less"}
"""What to know of a keyword before its zero point is trusted."""

AB_JANSKY = 3631.0  # of magnitude 0
JANSKY = {"JY": 1.0, "MJY": 1e-3, "UJY": 1e-6, "NJY": 1e-9}
STERADIAN_JANSKY = {"MJY/SR": 1e6, "JY/SR": 1.0}


@dataclass(frozen=True)
class Calibration:
    """How the values of one band turn into fluxes.

    Parameters
    ----------
    nanomaggy : float
        Nanomaggies per unit of the image, NaN where the header does not say.
    source : str
        The keywords that say so, "" for none.
    gain : float
        Electrons per unit, NaN where the header does not say.
    """

    nanomaggy: float = math.nan
    source: str = ""
    gain: float = math.nan

    @property
    def caveat(self):
        """What to know before the zero point is trusted, "" for nothing."""
        return CAVEATS.get(self.source, "")


def calibration(header):
    """Read the zero point and the gain of an image.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`

    Returns
    -------
    Calibration

    Notes
    -----
    The first that is there: a unit that is a flux (nanomaggies, as in SDSS ``frame-*`` files and the Legacy
    Surveys, or Jansky) · FLUX20, the counts of magnitude 20 in SDSS ``fpC`` files · FLUXMAG0, those of magnitude
    0 · PHOTFLAM and PHOTPLAM of the Hubble telescope · one of `ZERO_POINT_KEYWORDS`.
    """
    nanomaggy, source = next(
        (found for found in (read(header) for read in _READERS) if found is not None), (math.nan, "")
    )
    gain = _number(header, "GAIN")
    return Calibration(nanomaggy, source, gain if gain > 0 else math.nan)


def magnitude(nanomaggies):
    """AB magnitude of fluxes in nanomaggies; NaN where there is no light.

    Parameters
    ----------
    nanomaggies : array_like

    Returns
    -------
    ndarray
    """
    import numpy as np

    flux = np.asarray(nanomaggies, float)
    return 22.5 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def _number(header, keyword):
    """Value of a keyword, NaN where it is missing or no number."""
    try:
        return float(header.get(keyword, math.nan))
    except (TypeError, ValueError):
        return math.nan


def _unit(header):
    return re.sub(r"\s+", "", str(header.get("BUNIT", ""))).upper()


def _flux_unit(header):
    unit = _unit(header)
    if re.fullmatch(r"NANOMAGG(Y|IES|IE)S?|NMGY|NMAGGIES", unit):
        return 1.0, "BUNIT"
    if unit in JANSKY:
        return JANSKY[unit] / AB_JANSKY * 1e9, "BUNIT"
    area = _number(header, "PIXAR_SR")
    if unit in STERADIAN_JANSKY and area > 0:
        return STERADIAN_JANSKY[unit] * area / AB_JANSKY * 1e9, "BUNIT, PIXAR_SR"
    return None


def _counts_at(keyword, nanomaggies):
    """Reader of a keyword that holds the counts of an object of known flux."""

    def read(header):
        counts = _number(header, keyword)
        return (nanomaggies / counts, keyword) if 0 < counts < math.inf else None

    return read


def _hubble(header):
    """AB zero point from the sensitivity: electrons per second, or counts with their exposure time."""
    flam, pivot = _number(header, "PHOTFLAM"), _number(header, "PHOTPLAM")
    if not (flam > 0 and pivot > 0):
        return None
    zero_point = -2.5 * math.log10(flam) - 5 * math.log10(pivot) - 2.408
    if not _unit(header).endswith(("/S", "/SEC", "S-1", "S**-1")):
        seconds = _number(header, "EXPTIME")
        if not seconds > 0:
            return None
        zero_point += 2.5 * math.log10(seconds)
    return 10 ** (0.4 * (22.5 - zero_point)), "PHOTFLAM, PHOTPLAM"


def _zero_point(header):
    for keyword in ZERO_POINT_KEYWORDS:
        value = _number(header, keyword)
        if 5 < abs(value) < 50:  # 0, 99 and -999 stand for "not known"
            return 10 ** (0.4 * (22.5 - value)), keyword
    return None


_READERS = (_flux_unit, _counts_at("FLUX20", 10.0), _counts_at("FLUXMAG0", 1e9), _hubble, _zero_point)
