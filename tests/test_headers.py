"""Headers as they come: the right sky position, checked against astropy on the same header, or none and a reason."""

import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image as Pillow

from surveycat.image import open_image
from surveycat.wcs import quiet

SHAPE = (60, 80)
BASE = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 40.5, "CRPIX2": 30.5,
    "CD1_1": -1e-4, "CD1_2": 2e-5, "CD2_1": 2e-5, "CD2_2": 1e-4, "RADESYS": "ICRS",
}  # fmt: skip
CDELT = {"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None, "CDELT1": -1e-4, "CDELT2": 1e-4}
SIP = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_0_2": -2e-4}
GALACTIC = {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "CRVAL1": 10.0, "CRVAL2": 0.0, "RADESYS": None}

GOOD = {
    "plain": {},
    "CDELT without rotation": CDELT,
    "CDELT and CROTA2": {**CDELT, "CROTA2": 30.0},
    "PC and CDELT": {**CDELT, "PC1_1": 0.9, "PC1_2": -0.4, "PC2_1": 0.4, "PC2_2": 0.9},
    "old style PC001001": {**CDELT, "PC001001": 1.0, "PC001002": 0.0, "PC002001": 0.0, "PC002002": 1.0},
    "declination first": {
        "CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.0, "CRVAL2": 150.0, "CD1_1": 1e-4, "CD2_2": -1e-4,
    },
    "SIP with its name": {**SIP, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
    "SIP without its name": SIP,
    "TPV": {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_2": 1e-3},
    "SIN": {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"},
    "ZPN": {"CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN", "PV2_1": 1.0, "PV2_3": 42.0},
    "galactic": GALACTIC,
    "FK5": {"RADESYS": "FK5", "EQUINOX": 2000.0},
    "FK5 of another equinox": {"RADESYS": "FK5", "EQUINOX": 1975.0},
    "FK4 of B1950": {"RADESYS": "FK4", "EQUINOX": 1950.0},
    "B1950 by EQUINOX alone": {"RADESYS": None, "EQUINOX": 1950.0},
    "no RADESYS at all": {"RADESYS": None},
    "RADECSYS": {"RADESYS": None, "RADECSYS": "FK5"},
    "no CUNIT but degrees": {"CUNIT1": None},
    "CRVAL in minutes of arc": {
        "CUNIT1": "arcmin", "CUNIT2": "arcmin", "CRVAL1": 9000.0, "CRVAL2": 120.0, "CD1_1": -6e-3, "CD1_2": 0.0,
        "CD2_1": 0.0, "CD2_2": 6e-3,
    },
    "right ascension 0": {"CRVAL1": 0.0},
    "right ascension above 360": {"CRVAL1": 510.0},
    "negative right ascension": {"CRVAL1": -0.001},
    "a pole": {"CRVAL2": 90.0},
    "reference far outside": {"CRPIX2": 25_000.0},
    "mirrored": {"CD1_1": 1e-4},
    "only one CD term each": {"CD1_2": None, "CD2_1": None},
    "LONPOLE": {"LONPOLE": 170.0},
}  # fmt: skip
BAD = {
    "no CTYPE": {"CTYPE1": None, "CTYPE2": None},
    "one CTYPE": {"CTYPE2": None},
    "blank CTYPE": {"CTYPE1": "", "CTYPE2": ""},
    "twice right ascension": {"CTYPE2": "RA---TAN"},
    "two projections": {"CTYPE2": "DEC--SIN"},
    "unknown projection": {"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"},
    "zero scale": {"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0},
    "singular matrix": {"CD1_1": 1e-4, "CD1_2": 1e-4, "CD2_1": 1e-4, "CD2_2": 1e-4},
    "zero CDELT": {**CDELT, "CDELT1": 0.0},
    "text for CRVAL": {"CRVAL1": "10:00:00"},
    "impossible unit": {"CUNIT1": "furlong", "CUNIT2": "furlong"},
    "pixels outside the sphere": {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CD1_1": 90.0, "CD2_2": 90.0,
                                  "CRPIX1": -500.0},
}  # fmt: skip


def write(folder, cards):
    """A FITS image with the base header and some cards changed; None takes one out."""
    header = fits.Header()
    for key, value in {**BASE, **cards}.items():
        if value is not None:
            header[key] = value
    data = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    fits.PrimaryHDU(data, header).writeto(folder / "a.fits")
    return folder / "a.fits"


@pytest.mark.parametrize("name", GOOD)
def test_odd_headers_give_the_position_that_astropy_gives(tmp_path, name):
    """Corners and centre come out to a milliarcsecond in ICRS, right ascension from 0 to 360."""
    path = write(tmp_path, GOOD[name])
    x, y = np.array([0, 79, 0, 79, 39.5]), np.array([0, 0, 59, 59, 29.5])
    with quiet(), fits.open(path) as hdus:
        wanted = WCS(hdus[0].header).pixel_to_world(x, y).icrs
    with open_image(path) as image:
        assert image.wcs_source == "header", image.notes
        ra, dec = image.pixel_to_sky(x, y)
    assert ((ra >= 0) & (ra < 360)).all()
    east = (ra - wanted.ra.deg + 180) % 360 - 180
    assert np.abs(east * np.cos(np.radians(dec))).max() * 3600 < 1e-3
    assert np.abs(dec - wanted.dec.deg).max() * 3600 < 1e-3


@pytest.mark.parametrize("name", BAD)
def test_broken_headers_give_no_position(tmp_path, name):
    """There is no position rather than a wrong one, and a note says that there is none."""
    path = write(tmp_path, BAD[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with open_image(path) as image:
            assert image.wcs is None and image.wcs_source is None
            assert any("no sky position" in note for note in image.notes)


@pytest.mark.parametrize("mirrored", [False, True])
def test_one_object_from_three_formats(tmp_path, mirrored):
    """An asymmetric field as JPEG, PNG and FITS, both parities: the same object at the same sky position."""
    picture = np.full((*SHAPE, 3), 20, np.uint8)
    picture[12:16, 60:68] = 230
    header = fits.Header({**BASE, "CD1_1": 1e-4 if mirrored else -1e-4})
    (tmp_path / "wcs.hdr").write_text(header.tostring(sep="\n"))
    Pillow.fromarray(picture).save(tmp_path / "a.jpg", quality=98)
    Pillow.fromarray(picture).save(tmp_path / "a.png")
    fits.PrimaryHDU(picture[..., 1].astype(np.float32), header).writeto(tmp_path / "a.fits")
    places = []
    for name in ("a.jpg", "a.png", "a.fits"):
        with open_image(tmp_path / name, wcs=tmp_path / "wcs.hdr") as image:
            light = image.band("r", (0, 0, *SHAPE)) if name != "a.fits" else image.band("image", (0, 0, *SHAPE))
            rows, columns = np.nonzero(light > 150)
            places.append(image.pixel_to_sky(columns.mean(), rows.mean()))
    wanted = WCS(header).pixel_to_world(63.5, 13.5)
    np.testing.assert_allclose(places, [(wanted.ra.deg, wanted.dec.deg)] * 3, atol=1e-5)
