"""Files of several bands become one image: the same object at the same pixel, with its flux, in every band."""

import csv
import logging
import pickle

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from detectors import BlobDetector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

import surveycat
from surveycat import bands as bands_module
from surveycat.bands import Bands, gather, in_colour_order, reference_band, shown
from surveycat.errors import ImageError, OptionError
from surveycat.image import ImageSource, open_image

RA, DEC, SCALE = 150.0, 2.0, 0.4


def header(shape, shift=(0.0, 0.0), scale=SCALE, rotation=0.0, **cards):
    """TAN header; `shift` (x, y) moves the sky in the frame."""
    angle = np.radians(rotation)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ("RA---TAN", "DEC--TAN"), (RA, DEC)
    wcs.wcs.crpix = shape[1] / 2 + shift[0], shape[0] / 2 + shift[1]
    wcs.wcs.cd = np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale / 3600
    return fits.Header({**wcs.to_header(), **cards})


def sky_of(x, y, head):
    """Position of pixels of a header."""
    return WCS(head).pixel_to_world(x, y)


def paint(shape, head, places, flux, sigma_arcsec, sky=100.0):
    """Gaussians at sky positions, with the flux given."""
    data = np.full(shape, sky, float)
    scale = np.sqrt(abs(np.linalg.det(WCS(head).pixel_scale_matrix))) * 3600
    sigma = sigma_arcsec / scale
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for place, total in zip(places, flux, strict=True):
        x, y = WCS(head).world_to_pixel(place)
        data += total / (2 * np.pi * sigma**2) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return data


def save(path, data, head):
    """Write a FITS image and give its name."""
    fits.PrimaryHDU(data.astype(np.float32), head).writeto(path)
    return str(path)


SHAPE = (200, 260)
X, Y = np.array([60.0, 130.4, 200.7]), np.array([50.2, 120.0, 80.6])
FLUX = np.array([8000.0, 20000.0, 12000.0])


@pytest.fixture
def three(tmp_path):
    """Bands g, r, i of one sky: g is shifted by fractions of pixels, i has larger, turned pixels."""
    heads = {
        "r": header(SHAPE, FILTER="r"),
        "g": header(SHAPE, shift=(10.4, -3.3), FILTER="g"),
        "i": header((170, 210), scale=0.5, rotation=20, FILTER="i"),
    }
    places = sky_of(X, Y, heads["r"])
    sizes = {"r": SHAPE, "g": SHAPE, "i": (170, 210)}
    return [
        save(tmp_path / f"{name}.fits", paint(sizes[name], heads[name], places, FLUX, 1.2), heads[name])
        for name in "gri"
    ]


def centroid_and_flux(values, x, y, radius=12):
    """Centre and sum of one source on a sky of its own median."""
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    near = np.hypot(columns - x, rows - y) < radius
    light = np.where(near, values - np.nanmedian(values), 0)
    return (light * columns).sum() / light.sum(), (light * rows).sum() / light.sum(), light.sum()


def test_bands_share_pixels_and_keep_their_flux(three):
    """In all bands a source lies on the same pixel (0.02 px) with its whole flux (1 %), whatever their own pixels."""
    with open_image(gather(three)[0][0]) as image:
        assert image.bands == ["g", "r", "i"] and image.shape == SHAPE
        for name in image.bands:
            values = image.band(name, (0, 0, *SHAPE))
            for x, y, flux in zip(X, Y, FLUX, strict=True):
                found = centroid_and_flux(values, x, y)
                assert found[:2] == pytest.approx((x, y), abs=0.02), name
                assert found[2] == pytest.approx(flux, rel=0.01), name


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """An image of three bands larger than a chunk, and all of its pixels."""
    folder, shape = tmp_path_factory.mktemp("bands"), (700, 1100)
    rng = np.random.default_rng(1)
    files = []
    for number, name in enumerate("gri"):
        head = header(shape, shift=(3.3 * number, -5.7 * number), FILTER=name)
        files.append(save(folder / f"{name}.fits", rng.normal(100, 5, shape), head))
    image = open_image(gather(files)[0][0])
    yield image, [image.band(name, (0, 0, *shape)) for name in image.bands], image.read((0, 0, *shape))
    image.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 690), st.integers(0, 1090), st.integers(1, 300), st.integers(1, 300))
def test_every_window_sees_the_same_values(opened, y0, x0, height, width):
    """Tiles that overlap agree exactly on data and picture: chunks and JPEG blocks do not depend on the window."""
    image, whole, picture = opened
    box = y0, x0, min(y0 + height, 700), min(x0 + width, 1100)
    inside = np.s_[box[0] : box[2], box[1] : box[3]]
    for name, values in zip(image.bands, whole, strict=True):
        np.testing.assert_array_equal(image.band(name, box), values[inside])
    np.testing.assert_array_equal(image.read(box), picture[inside])


def test_another_process_reads_the_same(three):
    """The source that travels to workers opens the same image from absolute paths."""
    with open_image(gather(three)[0][0]) as image:
        source = pickle.loads(pickle.dumps(image.source))
        with source.open() as again:
            assert again.bands == image.bands and again.sha256 == image.sha256
            np.testing.assert_array_equal(again.read((0, 0, *SHAPE)), image.read((0, 0, *SHAPE)))


def test_holes_stay_holes(tmp_path):
    """NaN in a resampled band does not spread over the spline, and pixels beyond a band's frame are NaN in it alone."""
    heads = header(SHAPE, FILTER="r"), header(SHAPE, shift=(0.5, 20.5), FILTER="g")
    data = np.random.default_rng(2).normal(100, 1, SHAPE)
    holed = data.copy()
    holed[100:104, 50:54] = np.nan
    files = save(tmp_path / "r.fits", data, heads[0]), save(tmp_path / "g.fits", holed, heads[1])
    with open_image(Bands(files, ("r", "g"))) as image:
        missing = np.isnan(image.band("g", (0, 0, *SHAPE)))
        assert missing[-20:].all() and not missing[120:-21, 1:-1].any()
        hole = missing[:170, 10:-1]
        assert 16 <= hole.sum() <= 49 and hole[80:83, 40:43].all()
        assert not np.isnan(image.band("r", (0, 0, *SHAPE))).any() and not image.blank((0, 0, *SHAPE)).any()


def test_without_wcs_equal_shapes_are_aligned(tmp_path):
    """Bands without a WCS are taken pixel by pixel if they have one shape, else refused."""
    plain = fits.Header({"FILTER": "r"})
    files = [save(tmp_path / f"{name}.fits", np.full((30, 40), value), plain) for name, value in (("a", 1), ("b", 2))]
    with open_image(Bands(tuple(files), ("r", "g"))) as image:
        assert image.wcs is None and image.band("g", (0, 0, 1, 1)) == 2
    odd = save(tmp_path / "c.fits", np.zeros((31, 40)), plain)
    with pytest.raises(ImageError, match="no WCS to bring them together"):
        open_image(Bands((files[0], odd), ("r", "g")))


# --- which files are bands ---


def test_filters_and_sky_decide(three, tmp_path):
    """Different filters of one sky are bands, said in one line; another sky, one filter or a picture is not."""
    found, notes = gather(three)
    assert found == [Bands(tuple(three), ("g", "r", "i"))]
    assert len(notes) == 1 and "bands g, r, i of one image, in the pixels of r.fits" in notes[0]
    assert gather(three, "none") == (three, [])
    assert gather(three[:1]) == (three[:1], [])

    head = header(SHAPE, FILTER="z")
    head["CRVAL1"] = RA + 1
    elsewhere = save(tmp_path / "z.fits", np.zeros(SHAPE), head)
    assert gather([*three, elsewhere]) == ([*three, elsewhere], [])
    Pillow.new("RGB", (40, 30)).save(tmp_path / "a.png")
    mixed = [*three, str(tmp_path / "a.png")]
    assert gather(mixed) == (mixed, [])


def test_one_filter_for_all_needs_names(three, tmp_path):
    """Files of one sky whose FILTER is the same, or missing, stay apart, and the log says how to join them."""
    files = []
    for name in "ab":
        head = header(SHAPE, FILTER="g")
        files.append(save(tmp_path / f"{name}.fits", np.zeros(SHAPE), head))
    found, notes = gather(files)
    assert found == files and "(g, g)" in notes[0] and "--bands" in notes[0]
    assert gather(files, "i,g")[0] == [Bands(tuple(files), ("i", "g"))]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("i,r", "names 2 bands, there are 3 files"),
        ("i,r,r", "different names"),
        ("i,r,a b", "names 4"),
        ("i,r,-", "letters"),
    ],
)
def test_names_that_do_not_fit(three, names, words):
    """The error repeats the value and shows one that is right."""
    with pytest.raises(OptionError, match=words) as caught:
        gather(three, names)
    assert names.split(",")[1] in str(caught.value) and "i,r,g" in str(caught.value)


def test_given_names_must_be_one_sky(three, tmp_path):
    """Named as bands, files of different places on the sky are refused."""
    head = header(SHAPE, FILTER="z")
    head["CRVAL1"] = RA + 1
    far = save(tmp_path / "far.fits", np.zeros(SHAPE), head)
    with pytest.raises(ImageError, match=r"far.fits does not show the sky of .*r.fits"):
        open_image(Bands((three[1], far), ("r", "z")))


def test_pictures_are_no_bands(three, tmp_path):
    """A colour picture named as a band is refused with the reason."""
    Pillow.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a.png is a picture, not one band"):
        open_image(Bands((three[0], str(tmp_path / "a.png")), ("r", "g")))


def test_order_and_choice_of_bands():
    """Red first where wavelengths are known; i, r, g make the picture; r gives the pixels, or the middle band."""
    assert in_colour_order(["g", "z", "r", "i", "u"]) == ["z", "i", "r", "g", "u"]
    assert in_colour_order(["F814W", "r"]) == ["F814W", "r"]
    assert shown(["z", "i", "r", "g", "u"]) == [1, 2, 3] and shown(["K", "H", "J", "Y"]) == [0, 2, 3]
    assert shown(["z", "g"]) == [0, 1]
    assert reference_band(["z", "i", "r"]) == "r" and reference_band(["K", "H", "J"]) == "H"


def test_two_and_five_bands_are_colour_pictures(tmp_path):
    """With two bands green is their mean; with five every band is measured and three are shown, which is said."""
    data = np.random.default_rng(3).normal(0, 1, SHAPE)
    data[50:60, 50:60] += 100
    files = {name: save(tmp_path / f"{name}.fits", data, header(SHAPE, FILTER=name)) for name in "ugriz"}
    with open_image(Bands((files["z"], files["g"]), ("z", "g"))) as image:
        assert image.read((52, 52, 58, 58)).min() > 130
    with open_image(gather(list(files.values()))[0][0]) as image:
        assert image.bands == ["u", "g", "r", "i", "z"]
        assert any("i, r, g make the picture" in note for note in image.notes)


# --- from end to end ---


def test_the_command_makes_one_catalogue(three, tmp_path, caplog):
    """`run` on three files gives one image with a flux for each band, in r's pixels, at the right sky position."""
    with caplog.at_level(logging.INFO, "surveycat"):
        table = surveycat.run(three, tmp_path / "cat.parquet", detector=BlobDetector(60))
    assert len(table) == 3 and "image" not in table.colnames
    assert {"flux_g", "flux_r", "flux_i"} <= set(table.colnames)
    order = np.argsort(table["x"])
    np.testing.assert_allclose(np.asarray(table["x"])[order], X, atol=0.05)
    places = sky_of(X, Y, fits.getheader(three[1]))
    np.testing.assert_allclose(np.asarray(table["ra"])[order], places.ra.deg, atol=0.02 / 3600)
    assert sum("of one image" in line for line in caplog.messages) == 1
    about = table.meta["inputs"][0]
    assert about["name"] == "g.fits, r.fits, i.fits"
    assert about["zero_points"]["r"] == {"nanomaggy_per_unit": None, "from": ""}


def test_bands_none_gives_one_image_each(three):
    """Told so, `run` searches each file by itself."""
    table = surveycat.run(three, bands="none", detector=BlobDetector(60))
    assert set(table["image"]) == {"g.fits", "r.fits", "i.fits"}


# --- a real field ---


@pytest.fixture(scope="module")
def field(shared_data):
    """Folder and image of an SDSS field in three bands."""
    folder = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    files = [str(folder / f"fpC-004192-{name}4-0300.fit.gz") for name in "irg"]
    with open_image(gather(files)[0][0]) as image:
        yield folder, image


def test_stars_share_pixels(field):
    """Stars of an SDSS field lie on the same pixels in g, r and i to 0.1 px, though the files lie 10 rows apart."""
    folder, image = field
    with open(folder / "stars.csv", newline="") as file:
        stars = [row for row in csv.DictReader(file) if row["saturated"] == "0" and 14 < float(row["r"]) < 18]
    places = [(float(row["x"]), float(row["y"])) for row in stars if float(row["edge_px"]) > 30]
    assert len(places) > 15
    for name in image.bands:
        offsets = []
        for x, y in places:
            top, left = round(y) - 12, round(x) - 12
            column, row, _ = centroid_and_flux(image.band(name, (top, left, top + 25, left + 25)), 12, 12, 4)
            offsets.append((column + left - x, row + top - y))
        assert np.abs(np.median(offsets, axis=0)).max() < 0.1, name


def test_picture_looks_like_the_jpeg(field):
    """The bands, rendered, have the histogram and the colours of the JPEG of the same sky."""
    folder, image = field
    jpeg = np.asarray(Pillow.open(folder / "field.jpg"))[200:1200, 100:1900]
    picture = image.read((200, 100, 1200, 1900))
    difference = picture.astype(int) - jpeg
    assert np.abs(difference.mean(axis=(0, 1))).max() < 1
    assert np.median(np.abs(difference)) <= 3
    for channel in range(3):
        both = [np.histogram(each[..., channel], np.arange(0, 257, 4))[0] for each in (picture, jpeg)]
        assert np.abs(both[0] - both[1]).sum() / 2 < 0.12 * jpeg[..., 0].size


def test_wide_images_keep_a_row_of_chunks(monkeypatch):
    """Strips of the whole width, as levels are made of, do not resample a chunk again for every strip."""
    calls = []

    class Counting(bands_module._Resampled):
        def _resample(self, top, left):
            calls.append((top, left))
            return np.zeros((bands_module.CHUNK, bands_module.CHUNK), np.float32)

    raster = type("Raster", (), {"wcs": WCS(header(SHAPE)), "shape": (600, 200 * 512), "calibration": (None,)})
    counted = Counting(raster, raster)
    for y in range(0, 512, 64):
        counted.planes((y, 0, y + 64, 200 * 512))
    assert len(calls) == 200


def test_source_of_bands_is_small():
    """What travels with every task names files, not pixels."""
    assert len(pickle.dumps(ImageSource(Bands(("a.fits", "b.fits"), ("r", "g"))))) < 1000
