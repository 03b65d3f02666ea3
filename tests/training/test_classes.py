"""What the class head is trained on: the right box, the right pixels in it, nothing counted that is not known."""

import numpy as np
import pytest

from surveycat.errors import OptionError
from surveycat.mrcnn.config import Calibration
from training import classes


def test_central_box_holds_the_centre_and_is_nearest_to_it():
    """A neighbour that comes nearer with its edge, or a box beside the centre, is not the labelled galaxy."""
    boxes = np.float32([[0, 0, 104, 104], [80, 84, 124, 120], [101, 101, 110, 110]])
    np.testing.assert_array_equal(classes.central_box(boxes, 200), boxes[1])
    assert classes.central_box(boxes[2:], 200) is None
    assert classes.central_box(boxes[:0], 200) is None


def bright_sample(rng):
    """A dark tile with one bright rectangle that fills its box."""
    y0, x0 = rng.integers(40, 120, 2)
    height, width = rng.integers(30, 80, 2)
    image = np.zeros((256, 256, 3), np.uint8)
    image[y0 : y0 + height, x0 : x0 + width] = 200
    return classes.sample(image, [[y0, x0, y0 + height, x0 + width]], [1.0], [0.7], [1.0])


def test_boxes_stay_on_their_galaxies_when_tiles_are_turned():
    """After flips and turns the pixels in each box are still those of its galaxy, and those around it are not."""
    rng = np.random.default_rng(2)
    batch = classes.make_batch([bright_sample(rng) for _ in range(24)], rng)
    for image, box in zip(batch["image"], batch["box"][:, 0], strict=True):
        y0, x0, y1, x1 = np.rint(box).astype(int)
        height, width = y1 - y0, x1 - x0
        inner = image[y0 + height // 4 : y1 - height // 4, x0 + width // 4 : x1 - width // 4]
        assert inner.mean() > image.mean() + 100 * (inner.mean() > 128)
        assert inner.mean() > 2 * np.delete(image, np.s_[max(y0 - 20, 0) : y1 + 20], axis=0).mean()
    assert (batch["valid"] == [1, 0, 0, 0]).all()


def test_boxes_of_a_batch_point_to_their_tiles():
    """Cutouts bring one box each, scenes bring all theirs; every box knows its tile."""
    rng = np.random.default_rng(3)
    whole = classes.make_batch([bright_sample(rng) for _ in range(3)], rng)
    some = classes.make_batch([bright_sample(rng) for _ in range(2)], rng)
    batch = classes._joined(whole, some)
    np.testing.assert_array_equal(batch["image_index"], [0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4])
    np.testing.assert_array_equal(batch["box"][3:7], some["box"][0])
    np.testing.assert_array_equal(batch["image"][4], some["image"][1])
    assert len(batch["box"]) == len(batch["valid"]) == len(batch["class_weight"]) == 11


def test_scenes_teach_stars_as_no_galaxy_and_unknown_objects_not_at_all():
    """A box on a galaxy is one, with its class; a box on sky is none; a box on something to ignore is left out."""

    class Found:
        tile = np.zeros(3, np.int32)
        box = np.float32([[10, 10, 52, 50], [100, 100, 140, 140], [200, 200, 240, 240]])

    class Detector:
        @staticmethod
        def find(_tiles, _least):
            return Found

    scene = {
        "image": np.zeros((256, 256, 3), np.uint8),
        "ignore": np.zeros((256, 256), bool),
        "box": np.float32([[10, 10, 50, 50]]),
        "p_spiral": np.float32([0.8]),
        "class_weight": np.float32([1.0]),
    }
    scene["ignore"][210:230, 210:230] = True
    (one,) = classes._judged(Detector, [scene])
    np.testing.assert_array_equal(one["is_galaxy"], [1, 0])
    np.testing.assert_array_equal(one["class_weight"], [1, 0])
    np.testing.assert_allclose(one["p_spiral"], [0.8, 0.0])


def test_another_stretch_shows_the_same_galaxy():
    """A picture in another stretch has its galaxy in the same place: labels and boxes stay true."""
    rng = np.random.default_rng(4)
    radius = np.hypot(*(np.mgrid[:96, :96] - np.array([60.0, 30.0])[:, None, None]))
    image = np.repeat((8 + 180 * np.exp(-radius / 8.0)).astype(np.uint8)[..., None], 3, axis=2)
    for _ in range(5):
        other = classes.restretched(image, rng)
        assert other.shape == image.shape and other.dtype == np.uint8
        assert not np.array_equal(other, image)
        bright = np.argwhere(other.sum(axis=2) > 0.5 * other.sum(axis=2).max())
        np.testing.assert_allclose(bright.mean(axis=0), [60.0, 30.0], atol=1.5)


def brightness_left(_network, samples):
    """Spiral logits by rule: the mean left of the middle of the box."""
    middle = [int(one["box"][0, [1, 3]].mean()) for one in samples]
    return np.array([one["image"][:, :x].mean() for one, x in zip(samples, middle, strict=True)])


def test_a_head_teaches_what_it_says_of_all_eight_orientations(monkeypatch):
    """Known classes move half-way to the mean opinion; of an unknown one the opinion is all, and counts half."""

    class Teacher:
        class config:
            calibration = Calibration(class_scale=2.0, class_bias=-1.0)

    monkeypatch.setattr(classes, "spiral_logits", brightness_left)
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, :128] = 2  # two of the four quarter turns, mirrored or not, leave half of each side bright
    known = classes.sample(image, [[98, 98, 158, 158]], [1.0], [0.9], [1.0])
    unknown = classes.sample(image, [[98, 98, 158, 158]], [1.0], [0.1], [0.0])
    classes.keep_opinion(Teacher, [known, unknown], 0.5)
    opinion = 1 / (1 + np.exp(-(2.0 * 1.0 - 1.0)))  # the bright half is left, right, and twice on both sides: mean 1
    np.testing.assert_allclose(known["p_spiral"], [0.5 * 0.9 + 0.5 * opinion], rtol=1e-6)
    np.testing.assert_allclose(unknown["p_spiral"], [opinion], rtol=1e-6)
    assert known["class_weight"] == 1.0 and unknown["class_weight"] == 0.5


def test_noise_is_drawn_from_hardly_any_to_what_drowns_arms():
    """Sigma reaches from 6 to 80 counts, half of it below 22; the picture stays one of 8 bits."""
    rng = np.random.default_rng(5)
    grey = np.full((48, 48, 3), 128, np.uint8)
    sigma = np.array([classes.noisy(grey, rng).astype(float).std() for _ in range(200)])
    assert 5.5 < sigma.min() < 8 and 50 < sigma.max() < 81
    assert 0.4 < np.mean(sigma < 22) < 0.6
    assert classes.noisy(grey, rng).dtype == np.uint8


def test_an_opinion_needs_a_head():
    """--keep without --head is refused in one line, before anything is read."""
    with pytest.raises(OptionError, match="--keep 0.5: there is no opinion"):
        classes.train("nowhere", "nowhere", "nowhere", "nowhere", 1, 1e-3, 1, keep=0.5)
