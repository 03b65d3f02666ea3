"""Pictures of low contrast are shown to the network brighter; all others as they are."""

import logging
import pickle

import numpy as np
import pytest
from PIL import Image as Pillow

import surveycat
from surveycat.contrast import LEAST_NOISE, Brightened, as_shown, brighten, gain_of, noise_of
from surveycat.image import open_image


def sky(noise, shape=(300, 320), seed=0):
    """Picture of nothing but noise: standard deviation of R + G + B in counts, not clipped at black."""
    rng = np.random.default_rng(seed)
    return np.rint(40 + noise / np.sqrt(3) * rng.normal(0, 1, (*shape, 3))).clip(0, 255).astype(np.uint8)


def test_noise_is_that_of_the_sky():
    """Bright objects on a fifth of the pixels hardly count; clipping takes 1 % of Gaussian noise."""
    picture = sky(9)
    picture[:60] = 200
    assert noise_of(picture) == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize(("noise", "gain"), [(9.0, 1.0), (LEAST_NOISE + 0.2, 1.0), (1.5, 3.0), (0.9, 4.0)])
def test_gain_follows_the_noise(noise, gain):
    """Ordinary noise needs no gain; that of a low contrast is brought to what is usual, by a factor of 4 at most."""
    with open_image(sky(noise)) as image:
        found, notes = gain_of(image)
    assert found == pytest.approx(gain, rel=0.15) and bool(notes) == (gain > 1)


def test_a_sky_without_noise_says_nothing():
    """Where the sky was cut off or painted the picture stays as it is, and so does one without pixels of sky."""
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[40:60, 40:60] = 200
    with open_image(picture) as image:
        assert gain_of(image) == (1.0, [])
    assert as_shown(picture) is picture


@pytest.mark.parametrize("gain", [1.0, 1.7, 3.0, 4.0])
def test_brightening_keeps_order_ends_and_hue(gain):
    """Black and white stay, faint greys are multiplied, brighter stays brighter, and channels keep their ratios."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    bright = brighten(grey, gain)[:, 0].astype(int)
    assert bright[0] == 0 and bright[255] == 255 and (np.diff(bright) >= 0).all()
    assert bright[4] == pytest.approx(4 * gain, abs=1)
    red = brighten(np.array([[250, 125, 50]], np.uint8), gain)[0].astype(float)
    np.testing.assert_allclose(red / red[0], [1, 0.5, 0.2], atol=0.01)


def test_other_processes_see_the_same(tmp_path):
    """A brightened image travels as a name and a gain."""
    Pillow.fromarray(sky(1.5)).save(tmp_path / "dim.png")
    with open_image(tmp_path / "dim.png", scratch=tmp_path / "scratch") as image:
        shown = Brightened(image, 3.0)
        again = pickle.loads(pickle.dumps(shown.source)).open()
        for level, box in ((0, (10, -20, 150, 200)), (1, (0, 0, 60, 60))):
            np.testing.assert_array_equal(shown.read(box, level), brighten(image.read(box, level), 3.0))
            np.testing.assert_array_equal(again.read(box, level), shown.read(box, level))


class Recorder:
    """Detector that keeps the brightest pixel of what it is shown and finds nothing."""

    def __init__(self):
        self.brightest = 0

    def __call__(self, tiles, min_score):
        from surveycat.detections import Detections

        self.brightest = max(self.brightest, int(tiles.max()))
        return Detections.empty()


def test_a_run_says_what_it_shows(tmp_path, caplog):
    """Never without a word, in the log and in the table; the network does see the brighter picture."""
    picture = sky(1.5)
    picture[100:110, 100:110] = 60
    Pillow.fromarray(picture).save(tmp_path / "dim.png")
    detector = Recorder()
    with caplog.at_level(logging.INFO, "surveycat"):
        table = surveycat.run(tmp_path / "dim.png", detector=detector)
    assert any("contrast is low" in line for line in caplog.messages)
    gain = table.meta["inputs"][0]["searched_gain"]
    assert gain == pytest.approx(3.0, rel=0.15)
    assert detector.brightest == brighten(np.full((1, 3), 60, np.uint8), gain).max()


def test_real_fields(shared_data):
    """The low-contrast picture of each field gets a gain, the usual one none; nor does any picture of Galaxy Zoo."""
    for name in ("sdss_183.76-3.44_run1140", "sdss_313.17-5.69_ngc6976", "sdss_run1045"):
        with open_image(shared_data / "fields" / name / "field_low.jpg") as image:
            assert 2 < gain_of(image)[0] < 4, name
        with open_image(shared_data / "fields" / name / "field.jpg") as image:
            assert gain_of(image)[0] == 1, name
