"""FITS numbers become colours by the sky of the whole image."""

import numpy as np
import pytest

from surveycat.raster import Raster
from surveycat.stretch import AsinhStretch, background_of, sample_pixels, sky_statistics, stretch_for

rng = np.random.default_rng(7)


def test_sky_statistics_of_noise_with_objects():
    """Sky and noise are right within a few per cent though a tenth of the pixels are objects."""
    values = rng.normal(100, 5, 100_000)
    values[:10_000] += rng.exponential(500, 10_000)
    sky, noise = sky_statistics(values)
    assert sky == pytest.approx(100, abs=1)
    assert noise == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_padding_is_not_sky(share):
    """Zeros around a mosaic, even in most of it, do not change sky and noise."""
    values = rng.normal(100, 5, 50_000)
    values[: int(share * 50_000)] = 0
    assert sky_statistics(values) == pytest.approx((100, 5), rel=0.05)


def test_counts_may_repeat():
    """In whole numbers a frequent value is sky: it stays."""
    values = np.rint(rng.normal(100, 2, 50_000))
    assert sky_statistics(values, continuous=False) == (100, pytest.approx(2, rel=0.3))


def test_constant_and_empty_samples_have_a_noise():
    """No division by zero follows from an image without noise, or without data."""
    assert sky_statistics(np.full(100, 7.0)) == (7, 1)
    assert sky_statistics(np.full(100, np.nan)) == (0, 1)


def test_tiny_fluxes_are_not_lost():
    """Images in W/m^2 or maggies have values of 1e-12 and less; the picture is the same as in other units."""
    planes = rng.normal(0, 1, (1, 50, 50)).astype(np.float32)
    planes[0, 20:30, 20:30] += 50
    stretch = AsinhStretch(np.zeros(1, np.float32), np.ones(1, np.float32))
    tiny = AsinhStretch(np.zeros(1, np.float32), np.full(1, 1e-15, np.float32))
    difference = stretch.render(planes).astype(int) - tiny.render(planes * np.float32(1e-15))
    assert np.abs(difference).max() <= 1


def test_grey_is_grey_and_brightness_rises():
    """A single plane is shown with equal channels, brighter where there is more light.

    Never wrapping round.
    """
    stretch = AsinhStretch(np.array([10], np.float32), np.array([2], np.float32))
    ramp = np.linspace(-1e3, 1e7, 5000, dtype=np.float32)[None, None]
    picture = stretch.render(ramp)
    assert picture.dtype == np.uint8 and picture.shape == (1, 5000, 3)
    assert (picture == picture[..., :1]).all()
    assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all()
    assert picture[0, 0, 0] == 0 and picture[0, -1, 0] == 255


def test_no_light_in_the_sum_is_black():
    """As SDSS colours its pictures: a pixel whose planes sum to nothing is black, not lit by the one above 0."""
    stretch = AsinhStretch(np.zeros(3, np.float32), np.ones(3, np.float32))
    pixels = np.array([[3, -2, -2], [3, -1, -1], [-4, -4, 20]], np.float32).T[:, None]
    dark, dim, blue = stretch.render(pixels)[0].astype(int)
    assert (dark == 0).all()
    assert dim[0] > 0 and (dim[1:] == 0).all()
    assert blue[2] > 0 and (blue[:2] == 0).all()


def test_hue_is_kept_in_bright_cores():
    """A red object stays red however bright it is: channels are not clipped one by one."""
    stretch = AsinhStretch(np.zeros(3, np.float32), np.ones(3, np.float32))
    for brightness in (20, 1e3, 1e5):
        red, green, blue = stretch.render(np.array([10, 5, 1], np.float32)[:, None, None] * brightness)[0, 0].astype(
            int
        )
        assert red > green > blue


def test_missing_data_look_like_the_sky_around():
    """A blank region has level and grain of the sky, the same in every window: no bright spot and no black one."""
    planes = np.random.default_rng(0).normal(100, 5, (3, 200, 220)).astype(np.float32)
    planes[:, 60:140, 60:140] = np.nan
    stretch = AsinhStretch(np.full(3, 100, np.float32), np.full(3, 5, np.float32))
    picture = stretch.render(planes, (0, 0, 200, 220))
    filled, sky = picture[60:140, 60:140].astype(float), picture[:, 150:].astype(float)
    assert filled.mean() == pytest.approx(sky.mean(), rel=0.05) and filled.std() == pytest.approx(sky.std(), rel=0.05)
    window = stretch.render(planes[:, 50:150, 30:170], (50, 30, 150, 170))
    np.testing.assert_array_equal(window, picture[50:150, 30:170])


def test_the_sample_finds_data_in_a_corner():
    """A frame that is almost all NaN still has sky and noise; a frame of NaN has none."""
    array = np.full((1, 5000, 40), np.nan, np.float32)
    assert sample_pixels(Raster(array, picture=False, bands=("r",))).shape == (1, 0)
    assert stretch_for(Raster(array, picture=False, bands=("r",))) == (None, None)
    array[0, 3001:3004, 10:30] = rng.normal(50, 2, (3, 20))
    stretch, colour = stretch_for(Raster(array, picture=False, bands=("r",)))
    assert stretch.sky[0] == pytest.approx(50, abs=2)
    assert colour.shape == (3,)


def test_the_sample_is_bounded():
    """The sample of a large image has about a million pixels, from top to bottom and from left to right."""
    array = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (40_000, 50_000, 3), (0, 0, 0))
    sample = sample_pixels(Raster(array, picture=True))
    assert 2**19 < sample.shape[1] < 2**21


# --- the sky, box by box ---


def slope(shape, noise=5.0):
    """Noise on a sky that rises by 40 from the left to the right."""
    tilt = np.linspace(100, 140, shape[1])
    return (rng.normal(0, noise, shape) + tilt).astype(np.float32)


def test_background_follows_a_gradient_as_photutils_has_it(monkeypatch):
    """On a tilted sky with objects the level is that of the sky to a fifth of the noise, and photutils agrees."""
    from photutils.background import Background2D, MedianBackground

    monkeypatch.setattr("surveycat.stretch.BOX", 128)
    data = slope((1024, 2048))
    for y, x in rng.integers(0, 1000, (150, 2)):
        data[y : y + 8, x : x + 8] += 200
    box = 100, 300, 900, 1800
    found = background_of(Raster(data[None], picture=False, bands=("r",)), [0]).at(box)[0]
    inside = np.s_[box[0] : box[2], box[1] : box[3]]
    assert np.abs(found - np.linspace(100, 140, 2048)[box[1] : box[3]]).max() < 1.0
    theirs = Background2D(data, 128, filter_size=3, bkg_estimator=MedianBackground()).background[inside]
    assert np.abs(found - theirs).mean() < 0.5


def test_a_crowded_box_has_the_sky_of_its_neighbours():
    """A star cluster or a large galaxy in one box is not taken for sky."""
    data = rng.normal(100, 5, (1536, 1536)).astype(np.float32)
    data[600:1000, 600:1000] += rng.exponential(80, (400, 400)).astype(np.float32)
    found = background_of(Raster(data[None], picture=False, bands=("r",)), [0])
    assert np.abs(found.level - 100).max() < 1.0


def test_sky_of_whole_numbers_lies_between_them():
    """Counts with a noise of few units give the sky to a tenth of a unit."""
    data = np.rint(rng.normal(100.4, 2, (1100, 600))).astype(np.int16)
    found = background_of(Raster(data[None], picture=False, bands=("r",)), [0])
    assert np.abs(found.level - 100.4).max() < 0.1


def test_boxes_without_data():
    """Boxes of NaN take the sky of others; an image of NaN has none."""
    data = np.full((1024, 1024), np.nan, np.float32)
    assert np.isnan(background_of(Raster(data[None], picture=False, bands=("r",)), [0]).level).all()
    data[:500, :500] = rng.normal(50, 1, (500, 500))
    assert background_of(Raster(data[None], picture=False, bands=("r",)), [0]).level == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("noise", [0.032, 0.032 / 20])
def test_zero_points_give_colours_and_depth_gives_brightness(noise):
    """With zero points a white source is white and as bright as in SDSS; a deeper image shows SDSS's noise instead."""
    from surveycat.calibration import Calibration
    from surveycat.wcs import tan_wcs

    worth = np.array([2.0, 0.5, 1.0])  # nanomaggies per unit
    flux = rng.normal(0, noise, (3, 300, 300))
    flux[:, 100:110, 100:110] += 1 / np.array([2.0, 2.6, 3.6])[:, None, None] * (noise / 0.032) * 0.5
    data = (flux / worth[:, None, None]).astype(np.float32)
    units = tuple(Calibration(value, "BUNIT") for value in worth)
    raster = Raster(data, picture=False, wcs=tan_wcs((300, 300), 10, 0, 0.396127), calibration=units)
    stretch, _ = stretch_for(raster)
    colour = stretch.render(data)[101:109, 101:109].reshape(-1, 3).mean(axis=0)
    assert np.ptp(colour) < 8
    assert colour.mean() == pytest.approx(256 * 0.5 * np.arcsinh(3.375) / 3.375, abs=4)
