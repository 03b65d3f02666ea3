"""An image lies where its sources of position say, in their order, and they are compared."""

import csv
import pickle
import re

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from surveycat.errors import PositionError
from surveycat.image import open_image
from surveycat.sky import SOURCES
from surveycat.wcs import pixel_scale_of, pixel_to_sky, sky_to_pixel, tan_wcs

BLACK = np.zeros((60, 80, 3), np.uint8)
AVM = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:avm="http://www.communicatingastronomy.org/avm/1.0/" avm:Spatial.Rotation="{rotation}">
<avm:Spatial.Notes><rdf:Alt><rdf:li xml:lang="x-default"/></rdf:Alt></avm:Spatial.Notes>
<avm:Spatial.ReferenceValue><rdf:Seq><rdf:li>{ra}</rdf:li><rdf:li>{dec}</rdf:li></rdf:Seq>
</avm:Spatial.ReferenceValue>
<avm:Spatial.ReferenceDimension><rdf:Seq><rdf:li>{width}</rdf:li><rdf:li>{height}</rdf:li></rdf:Seq>
</avm:Spatial.ReferenceDimension>
<avm:Spatial.ReferencePixel><rdf:Seq><rdf:li>{x}</rdf:li><rdf:li>{y}</rdf:li></rdf:Seq>
</avm:Spatial.ReferencePixel>
<avm:Spatial.Scale><rdf:Bag><rdf:li>-{scale}</rdf:li><rdf:li>{scale}</rdf:li></rdf:Bag></avm:Spatial.Scale>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def avm(ra=30.0, dec=10.0, width=80, height=60, x=41.0, y=30.0, scale=1 / 3600, rotation=0.0):
    """XMP packet; by default the position is that of 0-based pixel (40, 30), as in `tan_wcs`."""
    return AVM.format(**locals()).encode()


def text_header(ra=40.0, dec=10.0, shape=(60, 80), scale=1.0):
    """FITS header of a north-up picture."""
    header = tan_wcs(shape, ra, dec, scale).to_header()
    header["IMAGEW"], header["IMAGEH"] = shape[1], shape[0]
    return header


def centre(image):
    """Position of pixel (W/2, H/2)."""
    return tuple(float(v) for v in image.pixel_to_sky(image.shape[1] / 2, image.shape[0] / 2))


# --- --ra and --dec ---


@settings(max_examples=25, deadline=None)
@given(
    ra=st.floats(0, 359.999),
    dec=st.floats(-89, 89),
    scale=st.floats(0.05, 5),
    rotation=st.floats(-180, 180),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_asked_position_and_orientation(ra, dec, scale, rotation, shape):
    """(ra, dec) is at (W/2, H/2); north is up, turned counter-clockwise by the rotation.

    East is left of north.
    """
    wcs = tan_wcs(shape, ra, dec, scale, rotation)
    centre = SkyCoord(ra, dec, unit="deg")
    around = centre.directional_offset_by([0, 0, 90] * u.deg, [0, 10, 10] * u.arcsec * scale)
    (x, to_north_x, to_east_x), (y, to_north_y, to_east_y) = sky_to_pixel(wcs, around.ra.deg, around.dec.deg)
    assert (x, y) == (pytest.approx(shape[1] / 2, abs=1e-6), pytest.approx(shape[0] / 2, abs=1e-6))
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    np.testing.assert_allclose((to_north_x - x, to_north_y - y), (-10 * sin, -10 * cos), atol=1e-4)
    np.testing.assert_allclose((to_east_x - x, to_east_y - y), (-10 * cos, 10 * sin), atol=1e-4)
    assert pixel_scale_of(wcs, shape) == pytest.approx(scale, rel=1e-3)


def test_default_scale_is_said():
    """Without --pixel-scale, that of SDSS is taken, and the log says so."""
    with open_image(BLACK, ra=351.65, dec=0.1) as image:
        assert image.wcs_source == "radec" and image.pixel_scale == pytest.approx(0.396127, rel=1e-5)
        assert any("0.396127" in note and "--pixel-scale" in note for note in image.notes)
    with open_image(BLACK, ra=351.65, dec=0.1, pixel_scale=0.25) as image:
        assert image.pixel_scale == pytest.approx(0.25, rel=1e-5) and image.notes == []


def test_fits_rows_run_upwards(tmp_path):
    """North is up in a FITS image where rows grow, and in a picture where they shrink."""
    fits.PrimaryHDU(np.random.default_rng(0).normal(0, 1, (60, 80))).writeto(tmp_path / "a.fits")
    for image, sign in ((tmp_path / "a.fits", 1), (BLACK, -1)):
        with open_image(image, ra=10, dec=20, pixel_scale=1) as opened:
            x, y = opened.sky_to_pixel(10, 20 + 5 / 3600)
            assert (x, y) == (pytest.approx(40), pytest.approx(30 + 5 * sign, abs=1e-3))
            assert opened.sky_to_pixel(10.001, 20)[0] < 40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ra": 10.0}, "--ra 10.0 is given without --dec"),
        ({"dec": -5.0}, "--dec -5.0 is given without --ra"),
        ({"ra": 400.0, "dec": 0.0}, "--ra 400.0 is not in 0 to 360"),
        ({"ra": 360.0, "dec": 0.0}, "--ra 360.0"),
        ({"ra": -1.0, "dec": 0.0}, "--ra -1.0"),
        ({"ra": float("nan"), "dec": 0.0}, "--ra nan"),
        ({"ra": 10.0, "dec": 95.0}, "--dec 95.0 is not in -90 to 90"),
        ({"ra": 10.0, "dec": float("nan")}, "--dec nan"),
        ({"ra": 10.0, "dec": 0.0, "pixel_scale": 0.0}, "--pixel-scale 0.0"),
        ({"ra": 10.0, "dec": 0.0, "pixel_scale": -0.4}, "--pixel-scale -0.4"),
        ({"ra": 10.0, "dec": 0.0, "pixel_scale": float("nan")}, "--pixel-scale nan"),
        ({"ra": 10.0, "dec": 0.0, "pixel_scale": float("inf")}, "--pixel-scale inf"),
        ({"pixel_scale": 0.0}, "--pixel-scale 0.0"),
        ({"rotation": 30.0}, "--rotation 30.0 is given without"),
        ({"ra": 10.0, "dec": 0.0, "rotation": float("nan")}, "--rotation nan"),
        ({"wcs": "missing.hdr"}, "missing.hdr does not exist"),
    ],
)
def test_bad_positions_are_one_line(options, words):
    """The option, its value and the way out, in one line."""
    with pytest.raises(PositionError) as caught:
        open_image(BLACK, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# --- order of the sources ---


def picture_with_everything(folder):
    """Path of a PNG with AVM at RA 30 and a sidecar at RA 40, and of a header file at RA 10."""
    Pillow.fromarray(BLACK).save(folder / "a.png", pnginfo=png_info(avm()))
    text_header(40).totextfile(folder / "a.hdr")
    text_header(10).totextfile(folder / "given.hdr")
    return folder / "a.png", folder / "given.hdr"


def png_info(xmp):
    """Chunk with an XMP packet."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return info


def test_the_first_source_wins_and_the_others_are_compared(tmp_path):
    """--wcs, then --ra --dec, then what is in the file, then a file beside it.

    Degrees of disagreement are said.
    """
    path, given = picture_with_everything(tmp_path)
    cases = [
        ({"wcs": given, "ra": 20, "dec": 10}, "file", 10),
        ({"ra": 20, "dec": 10}, "radec", 20),
        ({}, "avm", 30),
    ]
    for options, source, ra in cases:
        with open_image(path, **options) as image:
            assert image.wcs_source == source and centre(image) == pytest.approx((ra, 10))
            disagreements = [note for note in image.notes if note.startswith("positions disagree")]
            others = [name for name in SOURCES[SOURCES.index(source) + 1 :] if name != "header"]
            assert len(disagreements) == len(others)
            for name, note in zip(others, disagreements, strict=True):
                there = SkyCoord({"radec": 20, "avm": 30, "sidecar": 40}[name], 10, unit="deg")
                apart = SkyCoord(ra, 10, unit="deg").separation(there).arcsec
                said = float(re.search(rf'{name} is ([\d.]+)" from {source}', note)[1])
                assert said == pytest.approx(apart, abs=1)
    Pillow.fromarray(BLACK).save(path)
    with open_image(path) as image:
        assert image.wcs_source == "sidecar" and centre(image) == pytest.approx((40, 10))


def test_header_of_a_fits_image_comes_before_its_sidecar(tmp_path):
    """And after --ra --dec."""
    data = np.random.default_rng(0).normal(0, 1, (60, 80))
    fits.PrimaryHDU(data, text_header(50)).writeto(tmp_path / "a.fits")
    text_header(40).totextfile(tmp_path / "a.wcs")
    with open_image(tmp_path / "a.fits") as image:
        assert image.wcs_source == "header" and centre(image) == pytest.approx((50, 10))
    with open_image(tmp_path / "a.fits", ra=20, dec=10) as image:
        assert image.wcs_source == "radec" and image.pixel_scale == pytest.approx(1, rel=1e-4)
        assert any("is that of the file (header)" in note for note in image.notes)


def test_sources_that_agree_say_nothing(tmp_path):
    """Two arcsec apart is no disagreement worth a line."""
    Pillow.fromarray(BLACK).save(tmp_path / "a.png", pnginfo=png_info(avm(30.0, 10.0)))
    with open_image(tmp_path / "a.png", ra=30.0, dec=10.0 + 1.5 / 3600, pixel_scale=1.0) as image:
        assert image.notes == []


def test_no_position_says_what_to_add():
    """A pixel-only catalogue comes with the way to a better one; a given scale is kept."""
    with open_image(BLACK) as image:
        assert image.wcs is None and image.wcs_source is None and image.pixel_scale is None
        assert any("--ra and --dec" in note and "--wcs" in note for note in image.notes)
    with open_image(BLACK, pixel_scale=0.4) as image:
        assert image.pixel_scale == 0.4


def test_a_scale_against_the_wcs_is_said(tmp_path):
    """--pixel-scale does not bend a WCS, and is not dropped silently."""
    text_header(scale=0.5).totextfile(tmp_path / "a.hdr")
    with open_image(BLACK, wcs=tmp_path / "a.hdr", pixel_scale=0.4) as image:
        assert image.pixel_scale == pytest.approx(0.5, rel=1e-4)
        assert any("--pixel-scale 0.4 is not used" in note for note in image.notes)


# --- WCS files ---


def write_header(path, header, form):
    """Write a header as lines, as cards of 80 characters, or as a FITS file."""
    if form == "lines":
        header.totextfile(path)
    elif form == "cards":
        path.write_text(header.tostring(padding=False))
    else:
        hdu = fits.PrimaryHDU() if form == "fits" else fits.PrimaryHDU(np.zeros((60, 80), np.float32))
        hdu.header.update({k: v for k, v in header.items() if k != "WCSAXES"})
        hdu.writeto(path)


@pytest.mark.parametrize("form", ["lines", "cards", "fits", "fits with data"])
def test_forms_of_wcs_files(tmp_path, form):
    """Headers come as text in lines or cards, and as FITS with or without data."""
    write_header(tmp_path / "a.wcs", text_header(123.0), form)
    with open_image(BLACK, wcs=tmp_path / "a.wcs") as image:
        assert image.wcs_source == "file" and centre(image) == pytest.approx((123, 10))


def test_windows_line_ends(tmp_path):
    """A header that passed through a Windows editor."""
    text_header(123.0).totextfile(tmp_path / "a.hdr")
    (tmp_path / "a.hdr").write_bytes((tmp_path / "a.hdr").read_bytes().replace(b"\n", b"\r\n"))
    with open_image(BLACK, wcs=tmp_path / "a.hdr") as image:
        assert centre(image) == pytest.approx((123, 10))


def test_wcs_objects_and_their_journey(tmp_path):
    """A WCS object is taken as it is, and travels to other processes with the image's source."""
    with open_image(BLACK, wcs=tan_wcs((60, 80), 77.0, 10.0)) as image:
        source = pickle.loads(pickle.dumps(image.source))
        with source.open() as again:
            assert centre(again) == centre(image) == pytest.approx((77, 10))
    with pytest.raises(PositionError, match="no celestial coordinates on its 2 axes"):
        open_image(BLACK, wcs=WCS(naxis=2))


def test_wcs_of_another_image_is_said(tmp_path):
    """A WCS made for another size gives wrong positions: the sizes are named."""
    text_header(123.0, shape=(1489, 2048)).totextfile(tmp_path / "a.hdr")
    with open_image(BLACK, wcs=tmp_path / "a.hdr") as image:
        assert any("made for 2048 x 1489 pixels" in note and "80 x 60" in note for note in image.notes)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\xd8\xff\xe0" + bytes(100), b"SIMPLE  =  T", bytes(2880)])
def test_files_without_a_wcs(tmp_path, content):
    """Any other file given as --wcs is refused in one line; as a sidecar it is passed over with a note."""
    (tmp_path / "a.hdr").write_bytes(content)
    with pytest.raises(PositionError, match=r"WCS file .*a\.hdr") as caught:
        open_image(BLACK, wcs=tmp_path / "a.hdr")
    assert "\n" not in str(caught.value)
    Pillow.fromarray(BLACK).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as image:
        assert image.wcs is None and any("sidecar a.hdr is not used" in note for note in image.notes)


def test_broken_header_of_the_image_is_said(tmp_path):
    """An image is searched though its WCS cannot be used; the log says why it has no positions."""
    header = text_header()
    header["CDELT1"], header["PC1_1"] = 0.0, 0.0
    header["CDELT2"], header["PC2_2"] = 0.0, 0.0
    fits.PrimaryHDU(np.random.default_rng(0).normal(0, 1, (60, 80)), header).writeto(tmp_path / "a.fits")
    with open_image(tmp_path / "a.fits") as image:
        assert image.wcs is None
        assert any(note.startswith("FITS header: its WCS cannot be used") for note in image.notes)


@pytest.mark.parametrize(
    ("name", "works"),
    [
        ("2wcses", True),
        ("defunct_keywords", True),
        ("siponly", True),
        ("unit", True),
        ("locale", True),
        ("too_many_pv", True),
        ("outside_sky", False),
    ],
)
def test_wild_headers(shared_data, name, works):
    """Headers that crashed something once give a position, or one line."""
    path = shared_data / "wild" / "D" / f"astropy_wcs_{name}.hdr"
    try:
        with open_image(BLACK, wcs=path) as image:
            assert np.isfinite(centre(image)).all()
    except PositionError as error:
        assert not works and "\n" not in str(error) and path.name in str(error)
    else:
        assert works


# --- AVM ---


def test_avm_counts_rows_from_the_bottom(tmp_path):
    """ReferencePixel is 1-based from the bottom left.

    The same picture under --ra --dec lies in the same place.
    """
    Pillow.fromarray(BLACK).save(tmp_path / "a.png", pnginfo=png_info(avm(rotation=25.0)))
    with (
        open_image(tmp_path / "a.png") as image,
        open_image(BLACK, ra=30.0, dec=10.0, pixel_scale=1.0, rotation=25.0) as same,
    ):
        assert image.wcs_source == "avm"
        for x, y in ((0, 0), (79, 0), (0, 59), (40, 30)):
            np.testing.assert_allclose(image.pixel_to_sky(x, y), same.pixel_to_sky(x, y), atol=1e-8)


def test_avm_of_a_scaled_copy(tmp_path):
    """A copy at a quarter of the size covers the same sky: its corners are those of the original."""
    xmp = png_info(avm(width=80, height=60, rotation=-70.0))
    Pillow.fromarray(BLACK).save(tmp_path / "whole.png", pnginfo=xmp)
    Pillow.fromarray(BLACK[::4, ::4]).save(tmp_path / "small.png", pnginfo=xmp)
    with open_image(tmp_path / "whole.png") as whole, open_image(tmp_path / "small.png") as small:
        assert small.pixel_scale == pytest.approx(4 * whole.pixel_scale, rel=1e-4)
        for x, y in ((0, 0), (80, 0), (0, 60), (80, 60)):  # edges of pixels
            expected = whole.pixel_to_sky(x - 0.5, y - 0.5)
            np.testing.assert_allclose(small.pixel_to_sky(x / 4 - 0.5, y / 4 - 0.5), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("xmp", "words"),
    [
        (avm(width=80, height=90), "not the shape of this picture"),
        (avm(ra="x"), "could not convert"),
        (avm(scale="0"), "AVM tags are not used"),
        (avm().replace(b"ReferenceValue", b"ReferenceVolume"), "ReferenceValue has 0 numbers"),
    ],
)
def test_wrong_avm_is_said(tmp_path, xmp, words):
    """Tags that cannot be used are passed over with the reason; the picture opens."""
    Pillow.fromarray(BLACK).save(tmp_path / "a.png", pnginfo=png_info(xmp))
    with open_image(tmp_path / "a.png") as image:
        assert image.wcs is None and any("AVM tags are not used" in note and words in note for note in image.notes)


@pytest.mark.parametrize("xmp", [b"not xml", b"<rdf:RDF><broken</rdf:RDF>", b"<rdf:RDF></rdf:RDF>"])
def test_xmp_without_avm(tmp_path, xmp):
    """Other metadata is no concern of ours."""
    Pillow.fromarray(BLACK).save(tmp_path / "a.png", pnginfo=png_info(xmp))
    with open_image(tmp_path / "a.png") as image:
        assert image.wcs is None


def test_hudf(shared_data):
    """On a real picture with AVM that pyavm refuses, a bright galaxy is where its published position says.

    EIS J033238.61-274631.6 (53.160803 -27.775437); with wrong parity or rotation it is 3" and more from any.
    """
    folder = shared_data / "fields" / "hudf"
    with open_image(folder / "field.jpg") as image, open(folder / "bright.csv", newline="") as file:
        assert image.wcs_source == "avm" and image.pixel_scale == pytest.approx(0.060012, rel=1e-3)
        ra, dec = image.pixel_to_sky(1172.5, 2039 - 1020.5)
        assert (ra, dec) == (pytest.approx(53.160117, abs=1e-6), pytest.approx(-27.783549, abs=1e-6))
        bright = np.array([(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)])
        apart = np.hypot(*(bright - np.transpose(image.sky_to_pixel(53.160803, -27.775437))).T) * image.pixel_scale
        assert apart.min() < 0.5


def test_scaled_avm_of_eso(shared_data):
    """A 320-px copy of a picture of 16877 px.

    The scale is that of the copy, the centre that of the original.
    """
    with open_image(shared_data / "wild" / "B" / "avm_eso1723a_320.jpg") as image:
        assert image.pixel_scale == pytest.approx(0.213143 * 16877 / 320, rel=3e-3)
        ra, dec = image.pixel_to_sky(319 / 2, 247 / 2)
        assert (ra, dec) == (pytest.approx(83.78440, abs=1e-4), pytest.approx(-5.47870, abs=1e-4))
        # the Trapezium (theta1 Orionis C), the brightest place of the nebula, lies north-east of the centre
        x, y = image.sky_to_pixel(83.81860, -5.38968)
        assert image.read((int(y) - 3, int(x) - 3, int(y) + 4, int(x) + 4)).mean() > 200


# --- real images ---


def test_wild_headers_of_images(shared_data):
    """Every kind of WCS in the collection gives the centre that its index lists.

    Frames, swapped axes, distortions.
    """
    wild, checked = shared_data / "wild", 0
    with open(wild / "index.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("C/") and row["ra"]]
    for row in rows:
        with open_image(wild / row["path"]) as image:
            assert image.wcs_source == "header", row["path"]
            assert image.pixel_scale == pytest.approx(float(row["pixel_scale_arcsec"]), rel=0.03), row["path"]
            ra, dec = image.pixel_to_sky((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
            if "ngc1316" in row["path"]:  # the index has the galaxy there, not the centre
                continue
            away = np.hypot((ra - float(row["ra"])) * np.cos(np.radians(dec)), dec - float(row["dec"])) * 3600
            assert away < max(2.0, image.pixel_scale), row["path"]
            checked += 1
    assert checked > 25


def brightest(image, ra, dec, radius):
    """Position of the brightest pixel around a position, in a smoothed image."""
    from scipy.ndimage import gaussian_filter

    x, y = (int(round(float(v))) for v in image.sky_to_pixel(ra, dec))
    box = y - radius, x - radius, y + radius + 1, x + radius + 1
    band = "r" if "r" in image.bands else image.bands[0]
    smooth = gaussian_filter(np.nan_to_num(image.band(band, box)), 1.5)
    dy, dx = np.unravel_index(smooth.argmax(), smooth.shape)
    return image.pixel_to_sky(x - radius + dx, y - radius + dy)


@pytest.mark.parametrize(
    ("name", "ra", "dec", "tolerance"),
    [
        ("astropy_comp_ngc1316_fk4_sin.fits", 50.676, -37.208, 14.0),
        ("galsim_sipsample.fits", 202.46942, 47.19516, 1.3),
        ("hostphot_PS1_r.fits", 27.95203, 0.26393, 0.4),
        ("astroquery_ukidss_zpn.fits", 83.63310, 22.01448, 0.3),
        ("fitsrs_HST_WFPC2_100.fits", 182.63574, 39.40582, 0.5),
        ("petrofit_abell_2744_group_of_galaxies_f105w.fits.gz", 3.59480, -30.39164, None),
        ("decals_cube_native0.262.fits", 146.714217, -1.041278, 0.5),
    ],
)
def test_known_objects(shared_data, name, ra, dec, tolerance):
    """Objects with published positions are bright where the WCS puts them.

    FK4, SIP, ZPN, cubes, PC and CD matrices.
    """
    with open_image(shared_data / "wild" / "C" / name) as image:
        if tolerance is None:  # outside this cutout
            x, y = image.sky_to_pixel(ra, dec)
            assert not (0 <= x < image.shape[1] and 0 <= y < image.shape[0])
            return
        found = brightest(image, ra, dec, 4)
        away = np.hypot((found[0] - ra) * np.cos(np.radians(dec)), found[1] - dec) * 3600
        assert away < tolerance


def test_skyserver_picture(shared_data):
    """Galaxies of HCG 7 are where the New General Catalogue has them: our --ra --dec is SkyServer's."""
    path = shared_data / "wild" / "A" / "sdss_hcg7_12arcmin_1024.jpg"
    with open_image(path, ra=9.81625, dec=0.88806, pixel_scale=0.703125) as image:
        galaxies = [(9.80596, 0.86433), (9.82433, 0.91275), (9.82829, 0.89192), (9.89508, 0.85989)]
        for ra, dec in galaxies:
            found = brightest(image, ra, dec, 4)
            away = np.hypot(found[0] - ra, found[1] - dec) * 3600
            assert away < 2


def test_mirrored_field(shared_data):
    """A picture in FITS row order, north to the right and east down, keeps its parity.

    Stars are where they should be.
    """
    folder = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    with open_image(folder / "field.jpg", wcs=folder / "wcs.hdr") as image:
        with open(folder / "stars.csv", newline="") as file:
            stars = [row for row in csv.DictReader(file) if row["saturated"] != "1"]
        x, y = image.sky_to_pixel([float(s["ra"]) for s in stars], [float(s["dec"]) for s in stars])
        off = np.hypot(x - [float(s["x"]) for s in stars], y - [float(s["y"]) for s in stars])
        assert np.median(off) < 0.15
        assert image.sky_to_pixel(351.65, 0.11)[0] > image.sky_to_pixel(351.65, 0.10)[0]
        assert image.sky_to_pixel(351.66, 0.10)[1] > image.sky_to_pixel(351.65, 0.10)[1]


def test_ra_wraps(shared_data):
    """Right ascension stays in 0 to 360 where an image lies across 0."""
    with open_image(shared_data / "wild" / "C" / "galsim_razero.fits") as image:
        x, y = np.meshgrid(np.arange(0, 256, 51), np.arange(0, 256, 51))
        ra, dec = pixel_to_sky(image.wcs, x, y)
        assert ra.shape == (6, 6) and ((ra >= 0) & (ra < 360)).all() and ra.max() > 359 and ra.min() < 1
        np.testing.assert_allclose(image.sky_to_pixel(ra, dec), (x, y), atol=1e-2)
