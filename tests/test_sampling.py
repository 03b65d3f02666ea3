"""Images that are sampled too finely are searched coarsely, and measured and placed as they are."""

import itertools
import logging
import pickle

import numpy as np
import pytest
from detectors import BlobDetector
from PIL import Image as Pillow
from scipy import ndimage

import surveycat
from surveycat.errors import OptionError
from surveycat.image import open_image
from surveycat.sampling import Shrunk, asked_level, sampling_of, shrink_level
from surveycat.stretch import AsinhStretch


def starry(fwhm, shape=(700, 800), seed=0, n=90):
    """Picture of stars of a given width on noise, with the stretch of SDSS."""
    rng, sigma = np.random.default_rng(seed), fwhm / 2.355
    image = np.zeros(shape)
    rows, columns = rng.uniform(40, shape[0] - 40, n).astype(int), rng.uniform(40, shape[1] - 40, n).astype(int)
    image[rows, columns] = 2 * np.pi * sigma**2 * 10 ** rng.uniform(1.2, 2.6, n)
    image = ndimage.gaussian_filter(image, sigma) + rng.normal(0, 1, shape)
    planes = np.repeat(image[None], 3, axis=0).astype(np.float32)
    return AsinhStretch(np.zeros(3, np.float32), np.ones(3, np.float32)).render(planes)


@pytest.mark.parametrize(("fwhm", "level"), [(3.0, 0), (3.6, 0), (6.5, 1), (13.0, 2)])
def test_stars_tell_the_sampling(fwhm, level):
    """The width comes back to 25 %; three pixels are left alone, six and a half are halved, thirteen are quartered."""
    shape, n = ((700, 800), 90) if fwhm < 10 else ((1400, 1600), 120)
    with open_image(np.ascontiguousarray(starry(fwhm, shape, n=n))) as image:
        found = sampling_of(image)
        assert found.source == "stars" and found.fwhm == pytest.approx(fwhm, rel=0.25)
        assert shrink_level(image)[0] == level


def test_noise_tells_where_there_are_no_stars():
    """Noise that was enlarged fourfold shows it; noise of single pixels, and a smooth glow, do not."""
    rng = np.random.default_rng(1)
    coarse = ndimage.gaussian_filter(rng.normal(0, 1, (150, 150)), 0.6)
    fine = ndimage.zoom(coarse / coarse.std(), 4, order=1)
    glow = np.linspace(-2, 2, 360_000).reshape(600, 600)
    for field, enlarged in ((fine, True), (rng.normal(0, 1, (600, 600)), False), (glow, False)):
        picture = np.clip(40 + 8 * field, 0, 255).astype(np.uint8)
        with open_image(np.repeat(picture[..., None], 3, axis=2)) as image:
            assert (shrink_level(image)[0] > 0) == enlarged


def galaxies(tmp_path):
    """A picture with three blobs; path and centres (x, y)."""
    picture, places = np.full((900, 1100, 3), 15, np.uint8), [(201, 301), (703, 505), (401, 797)]
    rows, columns = np.ogrid[:900, :1100]
    for x, y in places:
        picture[((rows - y) / 20) ** 2 + ((columns - x) / 34) ** 2 < 1] = 180
    Pillow.fromarray(picture).save(tmp_path / "a.png")
    return tmp_path / "a.png", np.array(places)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_positions_and_sizes_are_the_images_own(tmp_path, factor):
    """Whatever the factor, centres are right to about half a pixel of the image, areas to the steps of masks."""
    path, places = galaxies(tmp_path)
    table = surveycat.run(path, detector=BlobDetector(90, 3), resample=factor, ra=10, dec=0, pixel_scale=0.1)
    table.sort("y")
    assert len(table) == 3
    np.testing.assert_allclose(table["x"].value, places[:, 0], atol=max(0.6, factor / 8))
    np.testing.assert_allclose(table["y"].value, places[:, 1], atol=max(0.6, factor / 8))
    np.testing.assert_allclose(table["area_pix"].value, np.pi * 20 * 34, rtol=0.12)
    np.testing.assert_allclose(table["area"].value, table["area_pix"].value * 0.01, rtol=1e-3)
    assert table.meta["inputs"][0]["searched_level"] == int(np.log2(factor))
    assert (table["level"] >= np.log2(factor)).all()


def test_it_is_said(tmp_path, caplog):
    """A finer image is never shrunk without a word, and the word says how to have it otherwise."""
    Pillow.fromarray(np.ascontiguousarray(starry(6.5))).save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO, "surveycat"):
        surveycat.run(tmp_path / "a.png", detector=BlobDetector(90, 3))
    (line,) = [line for line in caplog.messages if "resolution" in line]
    assert "1/2 of its resolution" in line and "by its stars" in line and "--resample none" in line


@pytest.mark.parametrize("resample", ["auto", 2])
def test_a_picture_in_which_nothing_is_found(tmp_path, caplog, resample):
    """Where one galaxy fills an enlarged picture nothing tells the sampling: an empty table comes with a way out."""
    Pillow.fromarray(np.full((200, 200, 3), 20, np.uint8)).save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO, "surveycat"):
        assert not len(surveycat.run(tmp_path / "a.png", detector=BlobDetector(90, 3), resample=resample))
    assert any("--resample 2 or 4" in line for line in caplog.messages) == (resample == "auto")


def test_other_processes_see_the_same(tmp_path):
    """A shrunk image travels as a name and a level, and shows what the level shows."""
    path, _ = galaxies(tmp_path)
    with open_image(path, scratch=tmp_path / "scratch") as image:
        shrunk = Shrunk(image, 2)
        again = pickle.loads(pickle.dumps(shrunk.source)).open()
        box = (10, 20, 150, 200)
        assert shrunk.shape == again.shape == image.level_shape(2)
        np.testing.assert_array_equal(again.read(box), image.read(box, 2))
        np.testing.assert_array_equal(again.read((0, 0, 60, 60), 1), image.read((0, 0, 60, 60), 3))
        assert shrunk.level_shape(1) == image.level_shape(3)


@pytest.mark.parametrize("value", ["3", "0", "-2", "half", "1.5"])
def test_other_factors_are_refused(tmp_path, value):
    """The error repeats the value and lists those that work, before anything is searched."""
    with pytest.raises(OptionError, match=f"resample is {value}; give auto, none or a factor of 1, 2, 4, 8"):
        surveycat.run(np.zeros((50, 50, 3), np.uint8), detector=BlobDetector(), resample=value)


def test_values_of_the_option():
    """auto leaves the choice, none is the image as it is."""
    assert asked_level("auto") is None and asked_level("none") == 0 and asked_level(4) == 2


def test_skyserver_pictures_of_three_scales(shared_data):
    """The same field at 0.1, 0.25 and 0.5 arcsec per pixel is searched at a quarter, a half and as it is."""
    folder = shared_data / "wild" / "A"
    names = {"0.1_oversampled": (2, 3), "0.25_GLS": (1,), "0.5_overlay": (0,)}
    for name, wanted in names.items():
        with open_image(folder / f"sdss_0266.51602.001_{name}.jpg") as image:
            assert shrink_level(image)[0] in wanted, name


def test_one_field_at_three_scales_gives_the_same_galaxies(shared_data):
    """From SkyServer at 0.1, 0.25 and 0.5 arcsec per pixel: what is sure in one is a row of the others."""
    found = {}
    for name, scale, side in (("0.1_oversampled", 0.1, 1000), ("0.25_GLS", 0.25, 1000), ("0.5_overlay", 0.5, 600)):
        path = shared_data / "wild" / "A" / f"sdss_0266.51602.001_{name}.jpg"
        table = surveycat.run(path, ra=10.0, dec=0.0, pixel_scale=scale)
        places = np.column_stack([table["ra"].to_value("arcsec") - 36_000, table["dec"].to_value("arcsec")])
        found[side * scale / 2] = places, np.asarray(table["score"]) > 0.7
    hits = []
    for one, other in itertools.permutations(found, 2):
        (places, sure), (others, _) = found[one], found[other]
        seen = sure & (np.abs(places).max(axis=1) < min(one, other) - 3)  # what a border cuts is a matter of its own
        hits += list(np.hypot(*(places[seen][:, None] - others).transpose(2, 0, 1)).min(axis=1) < 2)
    assert len(hits) > 30 and np.mean(hits) >= 0.9
