"""Zero points are read from the keywords that surveys use, and from nothing else."""

import math

import pytest
from astropy.io import fits

from surveycat.calibration import calibration, magnitude

JANSKY = 1e9 / 3631
HUBBLE = {"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.5}  # ACS, F814W


@pytest.mark.parametrize(
    ("cards", "nanomaggy", "source"),
    [
        ({"BUNIT": "nanomaggy"}, 1.0, "BUNIT"),
        ({"BUNIT": "nmgy", "MAGZP": 30.0}, 1.0, "BUNIT"),
        ({"BUNIT": "uJy"}, 1e-6 * JANSKY, "BUNIT"),
        ({"BUNIT": "MJy/sr", "PIXAR_SR": 1e-14}, 1e-8 * JANSKY, "BUNIT, PIXAR_SR"),
        ({"FLUX20": 1981.78, "SOFTBIAS": 1000}, 10 / 1981.78, "FLUX20"),
        ({"FLUXMAG0": 6.3e10}, 1e9 / 6.3e10, "FLUXMAG0"),
        ({"MAGZP": 25.0}, 0.1, "MAGZP"),
        ({"PHOTZP": 22.5}, 1.0, "PHOTZP"),
        ({"ZP": 27.5}, 0.01, "ZP"),
        (
            {"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.5, "BUNIT": "ELECTRONS/S"},
            10 ** (0.4 * (22.5 - 25.947)),
            "PHOTFLAM",
        ),
        ({**HUBBLE, "BUNIT": "ELECTRONS", "EXPTIME": 100}, None, "PHOTFLAM"),
    ],
)
def test_known_conventions(cards, nanomaggy, source):
    """Each convention gives nanomaggies per unit as its survey defines them (Hubble's from its zero point, to 1 %)."""
    found = calibration(fits.Header(cards))
    if nanomaggy is None:  # in electrons instead of electrons per second, a hundredth of the flux
        nanomaggy = calibration(fits.Header({**cards, "BUNIT": "ELECTRONS/S"})).nanomaggy / 100
    assert found.nanomaggy == pytest.approx(nanomaggy, rel=0.01)
    assert found.source.startswith(source)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"BUNIT": "DNs", "SOFTBIAS": 1000},
        {"BUNIT": "MJy/sr"},
        {"BUNIT": "Jy/beam"},
        {"FLUX20": 0.0},
        {"FLUX20": -9999.0},
        {"MAGZP": 99.0},
        {"MAGZP": -999.0},
        {"ZP": 0.0},
        {"ZP": "unknown"},
        {"PHOTFLAM": 0.0, "PHOTPLAM": 8045.0},
        {"PHOTFLAM": 7e-20, "PHOTPLAM": 8045.0, "BUNIT": "ELECTRONS"},
    ],
)
def test_what_says_nothing_is_not_known(cards):
    """Place holders, other units and missing partners give no zero point rather than a wrong one."""
    found = calibration(fits.Header(cards))
    assert math.isnan(found.nanomaggy) and found.source == ""


def test_gain_and_magnitudes():
    """A gain of 0 is none; 1 nanomaggy is magnitude 22.5; what is not positive has no magnitude."""
    assert calibration(fits.Header({"GAIN": 4.7})).gain == 4.7
    assert math.isnan(calibration(fits.Header({"GAIN": 0})).gain)
    assert magnitude([1.0, 10.0]) == pytest.approx([22.5, 20.0])
    assert all(math.isnan(value) for value in magnitude([0.0, -1.0]))


def test_flux20_comes_with_a_caveat():
    """The zero points of two runs are a few hundredths of a magnitude apart, which no header says."""
    assert "0.025 mag" in calibration(fits.Header({"FLUX20": 1981.78})).caveat
    assert calibration(fits.Header({"MAGZP": 25.0})).caveat == calibration(fits.Header()).caveat == ""
