"""An image is the same whatever it came from, whole or by region, here or in another process."""

import csv
import hashlib
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from surveycat.bands import Bands
from surveycat.errors import OptionError
from surveycat.image import ImageSource, open_image
from surveycat.scratch import Scratch

rng = np.random.default_rng(5)
PICTURE = np.clip(rng.normal(20, 8, (300, 700, 3)), 0, 255).astype(np.uint8)
PICTURE[100:140, 200:260] += 100
OPENED = open_image(PICTURE)  # in memory


@pytest.fixture
def fits_path(tmp_path):
    """A float FITS image with sky, an object, a band of NaN, and a position."""
    data = rng.normal(100, 5, (300, 700)).astype(np.float32)
    data[100:140, 200:260] += 80
    data[:, 500:510] = np.nan
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0})
    header.update({"CRPIX1": 350.5, "CRPIX2": 150.5, "CDELT1": -1e-4, "CDELT2": 1e-4, "FILTER": "r.MP9601"})
    fits.PrimaryHDU(data, header).writeto(tmp_path / "a.fits")
    return tmp_path / "a.fits"


@pytest.fixture
def all_large(monkeypatch):
    """Every array goes to scratch."""
    monkeypatch.setattr(Scratch, "large", 0)


# --- reading ---


def test_what_an_image_says_of_itself(fits_path):
    """Name, shape, bands, levels and hash."""
    with open_image(fits_path) as image:
        assert (image.name, image.shape, image.offset) == ("a.fits", (300, 700), (0, 0))
        assert image.bands == ["r"] and not image.picture
        assert image.n_levels == 3 and image.level_shape(2) == (75, 175)
        assert image.sha256 == hashlib.sha256(fits_path.read_bytes()).hexdigest()
        assert image.pixel_scale == pytest.approx(0.36, rel=1e-4)
    with open_image(PICTURE) as image:
        assert image.name == "array" and image.bands == ["g", "r", "i"] and image.picture
        assert image.sha256 == hashlib.sha256(PICTURE.tobytes()).hexdigest()


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(*[st.integers(-300, 800)] * 2, *[st.integers(1, 300)] * 2),
    level=st.integers(0, 3),
)
def test_read_pads_with_the_colour_of_the_sky(box, level):
    """A window is the same part of the whole, and has the median colour outside, in every level."""
    y0, x0, height, width = box
    window = OPENED.read((y0, x0, y0 + height, x0 + width), level)
    whole = OPENED.read((0, 0, *OPENED.level_shape(level)), level)
    sky = np.median(PICTURE, axis=(0, 1)).astype(np.uint8)
    padded = np.broadcast_to(sky, (1700, 2000, 3)).copy()
    padded[500 : 500 + whole.shape[0], 500 : 500 + whole.shape[1]] = whole
    expected = padded[500 + y0 : 500 + y0 + height, 500 + x0 : 500 + x0 + width]
    np.testing.assert_array_equal(window, expected)


def test_levels_are_block_averages():
    """Levels are true averages, rounded once: not the rounded averages of rounded averages."""
    with open_image(PICTURE[:, :513]) as image:
        assert image.n_levels == 3
        for level in (1, 2):
            step = 2**level
            h, w = image.level_shape(level)
            expected = [
                [
                    PICTURE[:, :513][y * step : (y + 1) * step, x * step : (x + 1) * step].mean(axis=(0, 1))
                    for x in range(w)
                ]
                for y in range(h)
            ]
            assert np.abs(image.read((0, 0, h, w), level) - np.array(expected)).max() < 0.51


@pytest.mark.parametrize("shape", [(1, 1), (255, 257), (256, 256), (1, 1000), (3000, 2)])
def test_odd_shapes(shape):
    """From one pixel to a thin strip: levels end at the first that fits into a tile."""
    array = np.full((*shape, 3), 9, np.uint8)
    with open_image(array) as image:
        image.build_levels()
        assert max(image.level_shape(image.n_levels - 1)) <= 256
        assert image.n_levels == 1 or max(image.level_shape(image.n_levels - 2)) > 256
        last = image.n_levels - 1
        assert (image.read((-2, -2, 4, 4), last) == 9).all()


def test_bands_are_linear(fits_path):
    """Measuring needs the numbers of the file, not the picture; channels of a picture are its r, g, b."""
    data = fits.getdata(fits_path)
    with open_image(fits_path) as image:
        values = image.band("r", (90, 190, 150, 270))
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, data[90:150, 190:270])
        outside = image.band("r", (-5, -5, 5, 5))
        assert np.isnan(outside[:5]).all() and np.isnan(outside[:, :5]).all()
        np.testing.assert_array_equal(outside[5:, 5:], data[:5, :5])
    with open_image(PICTURE) as image:
        for name, channel in (("i", 0), ("r", 1), ("g", 2)):
            np.testing.assert_array_equal(image.band(name, (0, 0, 300, 700)), PICTURE[..., channel])


def test_blank(fits_path):
    """NaN and what is outside are blank; a picture has no blank pixels."""
    with open_image(fits_path) as image:
        blank = image.blank((-1, 495, 3, 515))
        assert blank[0].all() and (blank[1:] == blank[1]).all()
        assert blank[1].nonzero()[0].tolist() == list(range(5, 15))
    with open_image(PICTURE) as image:
        assert not image.blank((0, 0, 300, 700)).any()


def mosaic(kind):
    """Float sky of which a corner is 0, or something else in which zeros are common."""
    noise = np.random.default_rng(3).normal(0, 2, (200, 300)).astype(np.float32)
    corner = np.add.outer(np.arange(200), np.arange(300)) < 150
    if kind == "simulation":
        sources = np.where(np.hypot(*(np.indices((200, 300)) - 100)) < 40, np.abs(noise), 0)
        return sources.astype(np.float32), np.zeros_like(corner)
    if kind == "counts":
        return np.random.default_rng(3).poisson(0.5, (200, 300)).astype(np.float32), np.zeros_like(corner)
    return np.where(corner, 0, noise + (1000 if kind == "sky" else 0)).astype(np.float32), corner


@pytest.mark.parametrize("kind", ["sky", "no sky", "simulation", "counts"])
def test_zeros_around_the_sky_are_no_data(tmp_path, kind):
    """Padding of a mosaic is blank, and that is said; where 0 is a value like others it stays one."""
    data, padding = mosaic(kind)
    fits.PrimaryHDU(data).writeto(tmp_path / "a.fits")
    with open_image(tmp_path / "a.fits") as image:
        np.testing.assert_array_equal(image.blank((0, 0, 200, 300)), padding)
        assert any("exactly 0, side by side" in note for note in image.notes) == padding.any()
    with open_image(Bands((str(tmp_path / "a.fits"),), ("r",))) as image:
        np.testing.assert_array_equal(image.blank((0, 0, 200, 300)), padding)


def test_zeros_of_a_mask_are_good_pixels(tmp_path):
    """Padding is looked for in images only: a mask of floating-point numbers is mostly 0."""
    data, _ = mosaic("no sky")
    fits.PrimaryHDU(np.where(data == 0, 1, data)).writeto(tmp_path / "a.fits")
    mask = np.zeros((200, 300), np.float32)
    mask[50:80] = 1
    fits.PrimaryHDU(mask).writeto(tmp_path / "mask.fits")
    with open_image(tmp_path / "a.fits", mask=tmp_path / "mask.fits") as image:
        np.testing.assert_array_equal(image.blank((0, 0, 200, 300)), mask == 1)


@pytest.mark.parametrize("level", [0, 1])
def test_beyond_linear_data_the_sky_goes_on(fits_path, level):
    """A plain patch, darker than the mean of clipped noise, made the network see less at borders than elsewhere."""
    with open_image(fits_path) as image:
        height, width = image.level_shape(level)
        inside, outside = image.read((0, 0, height // 4, width // 4), level), image.read((-90, -90, -10, 300), level)
        assert outside.mean() == pytest.approx(inside.mean(), rel=0.1)
        assert level or outside.std() == pytest.approx(inside.std(), rel=0.15)
        again = image.read((-60, -60, 10, 10), level)
        np.testing.assert_array_equal(again[:50, :60], outside[30:80, 30:90])


def test_tiles_agree_with_the_whole(fits_path):
    """The stretch is that of the image, so that a window of it is a window of the picture."""
    with open_image(fits_path) as image:
        whole = image.read((0, 0, 300, 700))
        np.testing.assert_array_equal(image.read((100, 200, 150, 280)), whole[100:150, 200:280])
        assert whole[100:140, 200:260].mean() > 100 and np.median(whole) < 20


def test_sdss_frames_look_like_sdss_pictures(shared_data):
    """The r frame alone is shown as bright as the r channel of the colour picture that the network knows."""
    folder = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    colour = np.asarray(Pillow.open(folder / "field.jpg"))[..., 1].astype(float)
    with open_image(folder / "fpC-004192-r4-0300.fit.gz") as image:
        grey = image.read((0, 0, *image.shape))[..., 0].astype(float)
    sky = np.abs(np.percentile(grey, [50, 84, 95]) - np.percentile(colour, [50, 84, 95]))
    assert sky.max() < 6
    objects = colour > 60
    assert np.median(grey[objects] / colour[objects]) == pytest.approx(1, abs=0.2)


# --- regions ---


@pytest.mark.parametrize("kind", ["picture", "fits"])
def test_a_region_is_a_part_of_the_whole(fits_path, kind):
    """Pixels, bands, blanks and positions of a region are those of the whole.

    So are stretch and sky colour.
    """
    box = (90, 180, 290, 620)
    options = {"ra": 150.0, "dec": 2.0} if kind == "picture" else {}
    with open_image(PICTURE if kind == "picture" else fits_path, **options) as image:
        region = image.region(box)
        assert (region.shape, region.offset) == ((200, 440), (90, 180))
        np.testing.assert_array_equal(region.read((0, 0, 200, 440)), image.read(box))
        beyond, sky = region.read((-50, -50, 50, 50))[:50], image.read((-60, 0, -10, 100))
        assert beyond.mean() == pytest.approx(sky.mean(), abs=1)
        assert kind == "fits" or (beyond == sky).all()
        np.testing.assert_array_equal(region.band("r", (10, 20, 30, 40)), image.band("r", (100, 200, 120, 220)))
        np.testing.assert_array_equal(region.blank((0, 0, 200, 440)), image.blank(box))
        np.testing.assert_allclose(region.pixel_to_sky(10, 20), image.pixel_to_sky(190, 110))
        inner = region.region((10, 20, 50, 60))
        assert inner.offset == (100, 200)
        np.testing.assert_array_equal(inner.read((0, 0, 40, 40)), image.read((100, 200, 140, 240)))
        np.testing.assert_allclose(inner.pixel_to_sky(0, 0), image.pixel_to_sky(200, 100))


def test_levels_of_a_region_start_at_its_corner(all_large, tmp_path):
    """They are those of the cut-out picture.

    And are not taken for those of the whole in a common scratch folder.
    """
    with open_image(PICTURE, scratch=tmp_path) as image, open_image(PICTURE[33:, 77:].copy()) as cut:
        image.build_levels()
        region = image.region((33, 77, 300, 700))
        for level in (1, 2):
            box = (0, 0, *cut.level_shape(level))
            np.testing.assert_array_equal(region.read(box, level), cut.read(box, level))


def test_regions_must_be_inside():
    """A box that is not in the image is refused."""
    with open_image(PICTURE) as image:
        for box in ((0, 0, 301, 10), (-1, 0, 10, 10), (10, 10, 10, 20)):
            with pytest.raises(OptionError, match="is not inside"):
                image.region(box)


# --- other processes ---


def read_elsewhere(source):
    """What a worker sees of an image."""
    with source.open() as image:
        picture = image.read((50, 50, 250, 250))
        return picture, image.read((0, 0, *image.level_shape(1)), 1), image.offset, image.wcs_source


@pytest.fixture(scope="module")
def other_process():
    """A process that shares nothing with this one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["picture", "fits", "array"])
def test_other_processes_see_the_same(fits_path, tmp_path, other_process, kind):
    """A worker that is given the source opens the same image: levels, region and position too."""
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
    path = {"picture": tmp_path / "a.png", "fits": fits_path, "array": PICTURE}[kind]
    with open_image(path, ra=150.0, dec=2.0) as whole:
        for image in (whole, whole.region((20, 30, 290, 690))):
            picture, level, offset, wcs_source = other_process.apply(read_elsewhere, (image.source,))
            np.testing.assert_array_equal(picture, image.read((50, 50, 250, 250)))
            np.testing.assert_array_equal(level, image.read((0, 0, *image.level_shape(1)), 1))
            assert (offset, wcs_source) == (image.offset, "radec")


def test_sources_carry_no_pixels_when_there_is_scratch(tmp_path):
    """An array travels once, through a file, and not with every task."""
    with open_image(PICTURE, scratch=tmp_path) as image:
        source = image.source
        assert len(pickle.dumps(source)) < 2000
        with pickle.loads(pickle.dumps(source)).open() as again:
            np.testing.assert_array_equal(again.read((0, 0, 300, 700)), PICTURE)
        region = pickle.loads(pickle.dumps(image.region((5, 6, 70, 80)).source))
        with region.open() as again:
            np.testing.assert_array_equal(again.read((0, 0, 65, 74)), PICTURE[5:70, 6:80])


def test_levels_are_made_once_for_all(fits_path, tmp_path, all_large, monkeypatch):
    """A second opening with the same scratch folder finds the levels; it does not make them again."""
    with open_image(fits_path, scratch=tmp_path / "scratch") as image:
        image.build_levels()
        expected = image.read((0, 0, 75, 175), 2)
        source = image.source
    with source.open() as again:
        monkeypatch.setattr(again, "_average", lambda level: pytest.fail("made again"))
        np.testing.assert_array_equal(again.read((0, 0, 75, 175), 2), expected)


def test_relative_paths_hold_in_other_folders(tmp_path, monkeypatch):
    """Workers may run elsewhere: a source has the absolute path."""
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with open_image("a.png") as image:
        source = image.source
    monkeypatch.chdir("/")
    with source.open() as again:
        assert again.name == "a.png"


def test_temporary_files_go(fits_path, tmp_path, monkeypatch, all_large):
    """Scratch in the system's temporary folder is removed at the end.

    Of a failed opening and of a region too.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    with open_image(fits_path) as image:
        image.build_levels()
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    with ImageSource(fits_path, region=(0, 0, 299, 699)).open() as region:
        region.build_levels()
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    with pytest.raises(OptionError):
        ImageSource(fits_path, region=(0, 0, 999, 999)).open()
    assert list((tmp_path / "tmp").iterdir()) == []


# --- what the log says ---


def test_negatives_are_noticed(shared_data):
    """SkyServer's inverted pictures show holes as sources: the user is told."""
    folder = shared_data / "wild" / "A"
    with open_image(folder / "sdss_0266.51602.001_0.5_INVERTED.jpg") as image:
        assert any("negative" in note for note in image.notes)
    with open_image(folder / "sdss_0266.51602.001_0.5_overlay.jpg") as image:
        assert not any("negative" in note for note in image.notes)


# --- the example ---


def test_example_field(shared_data):
    """Stars of the example lie where its README's --ra and --dec put them.

    Scale, centre, north up, east left.
    """
    from photutils.centroids import centroid_2dg

    field = Path(__file__).parents[1] / "examples" / "field.jpg"
    with open(shared_data / "fields" / "sdss_351.65+0.10_run4192" / "stars.csv", newline="") as file:
        stars = [row for row in csv.DictReader(file) if row["saturated"] != "1" and 15 < float(row["r"]) < 18]
    with open_image(field, ra=351.65, dec=0.10) as image:
        assert image.shape == (1000, 1000)
        off = []
        for star in stars:
            x, y = (float(v) for v in image.sky_to_pixel(float(star["ra"]), float(star["dec"])))
            if min(x, y) < 10 or max(x, y) > 990:
                continue
            y0, x0 = round(y) - 5, round(x) - 5
            cutout = image.band("r", (y0, x0, y0 + 11, x0 + 11))
            centroid = centroid_2dg(np.clip(cutout - np.median(cutout), 0, None))
            off.append(centroid - (x - x0, y - y0))
    assert len(off) >= 8
    assert np.median(np.hypot(*np.transpose(off))) < 0.15
    assert np.hypot(*np.median(off, axis=0)) < 0.1
