"""What training must and must not see."""

import functools

import numpy as np
from keras import ops

from surveycat.mrcnn import losses
from surveycat.mrcnn.losses import training_losses
from training.classes import class_losses
from training.train import LOSS_WEIGHTS, Trainer, compile_trainer


def make_batch(config, images):
    """Two objects in the first tile, none in the others."""
    count, size = len(images), config.tile_size
    batch = {
        "image": images,
        "ignore": np.zeros((count, size, size), "uint8"),
        "box": np.zeros((count, 4, 4), "float32"),
        "valid": np.zeros((count, 4), "float32"),
        "mask": np.full((count, 4, 56, 56), 255, "uint8"),
        "roi": np.tile(np.float32([0, 0, 8, 8]), (count, 2, 1)),
        "roi_index": np.zeros((count, 2), "int32"),
        "roi_valid": np.zeros((count, 2), "float32"),
    }
    batch["box"][0, :2] = [[20, 20, 44, 50], [80, 60, 100, 90]]
    batch["valid"][0, :2] = batch["roi_valid"][0] = 1
    batch["roi"][0], batch["roi_index"][0] = batch["box"][0, :2], [0, 1]
    return batch


def test_losses_are_finite_with_and_without_objects(small_network, small_config, tiles):
    """Empty tiles are half of the sky: they must not give NaN."""
    batch = make_batch(small_config, tiles[:2])
    for name, value in training_losses(small_network, batch, proposals=16).items():
        assert np.isfinite(float(value)), name
    batch["valid"][:] = batch["roi_valid"][:] = 0
    values = training_losses(small_network, batch, proposals=16)
    assert all(np.isfinite(float(value)) for value in values.values())
    assert float(values["rpn_box"]) == float(values["mask"]) == 0.0


def test_a_backbone_left_alone_does_not_move(small_network, small_config, tiles):
    """With `heads_only` neither its weights nor the statistics of its normalisations change; those of the heads do."""
    before = {name: part.get_weights() for name, part in small_network.parts.items()}
    parts = [small_network.parts[name] for name in ("rpn", "box_head", "mask_head")]
    losses_of = functools.partial(training_losses, small_network, proposals=16, heads_only=True)
    trainer = Trainer(parts, losses_of, LOSS_WEIGHTS)
    compile_trainer(trainer, peak=1e-3, steps=2, warmup=1)
    trainer.train_on_batch(make_batch(small_config, tiles[:2]))

    def moved(name):
        return any((a != b).any() for a, b in zip(before[name], small_network.parts[name].get_weights(), strict=True))

    assert [name for name in before if moved(name)] == ["rpn", "box_head", "mask_head"]


def test_ignored_centres_are_left_out():
    """What is extended and unlabelled is never taught as background."""
    ignore = np.zeros((1, 64, 64), "uint8")
    ignore[0, 10:20, 30:40] = 1
    boxes = np.float32([[[10, 30, 20, 40], [40, 40, 50, 50], [0, 0, 29, 69]]])
    np.testing.assert_array_equal(ops.convert_to_numpy(losses.centre_ignored(boxes, ignore)), [[1.0, 0.0, 1.0]])


def test_ignored_region_does_not_change_the_score_loss():
    """A confident proposal on an ignored object costs nothing; the same one on plain sky does."""
    rois = np.float32([[[10, 10, 20, 20]]])
    batch = {
        "box": np.zeros((1, 1, 4), "float32"),
        "valid": np.zeros((1, 1), "float32"),
        "ignore": np.zeros((1, 64, 64), "uint8"),
    }
    logits, deltas = np.float32([[5.0]]), np.zeros((1, 1, 4), "float32")
    on_sky, _ = losses.box_losses(logits, deltas, rois, batch)
    batch["ignore"][:] = 1
    on_ignored, _ = losses.box_losses(logits, deltas, rois, batch)
    assert float(on_sky) > 4.9 and float(on_ignored) == 0.0


def test_every_true_box_claims_an_anchor(small_network, small_config):
    """An object of a size between two anchors still has a positive one: its loss falls when that anchor is sure."""
    batch = {
        "box": np.float32([[[10, 10, 25, 26]]]),
        "valid": np.ones((1, 1), "float32"),
        "ignore": np.zeros((1, small_config.tile_size, small_config.tile_size), "uint8"),
    }
    count = len(small_network.anchors)
    deltas = np.zeros((1, count, 4), "float32")
    sure_of_none = np.full((1, count), -8.0, "float32")
    missed, _ = losses.rpn_losses(small_network, sure_of_none, deltas, batch)
    iou, _, _ = losses.match(small_network.anchors, batch["box"], batch["valid"])
    best = sure_of_none.copy()
    best[0, int(np.argmax(ops.convert_to_numpy(iou)[0]))] = 8.0
    found, _ = losses.rpn_losses(small_network, best, deltas, batch)
    assert float(found) < float(missed)


def test_cross_entropy_is_the_definition():
    """Soft labels from vote fractions are allowed."""
    target, logit = np.float32([0.0, 0.3, 1.0]), np.float32([-2.0, 0.5, 3.0])
    p = 1 / (1 + np.exp(-logit))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    np.testing.assert_allclose(ops.convert_to_numpy(losses.binary_cross_entropy(target, logit)), expected, rtol=1e-5)


def testmask_targets_follow_the_jittered_box():
    """The left half of an object is its mask; a box moved by half its width must see the edge in the middle."""
    mask = np.zeros((1, 1, 56, 56), "uint8")
    mask[..., :28] = 255
    batch = {"mask": mask, "roi": np.float32([[[10, 20, 30, 60]]]), "roi_index": np.zeros((1, 1), "int32")}
    truth = np.float32([[[10, 10, 30, 70]]])  # centre column 40 is where the mask ends
    target = ops.convert_to_numpy(losses.mask_targets(batch, truth, 28))[0, 0]
    assert target[:, :13].min() > 0.99 and target[:, 15:].max() < 0.01


def test_boxes_without_weight_cost_nothing(small_network, small_config):
    """Filled-up slots and unknown classes must not teach anything."""
    side = small_config.tile_size
    batch = {
        "image": np.zeros((1, side, side, 3), np.uint8),
        "image_index": np.zeros(2, np.int32),
        "box": np.float32([[10, 10, 30, 30], [40, 40, 60, 60]]),
        "valid": np.float32([0, 0]),
        "is_galaxy": np.float32([1, 0]),
        "p_spiral": np.float32([1, 0]),
        "class_weight": np.float32([0, 0]),
    }
    losses = class_losses(small_network, batch)
    assert {name: float(value) for name, value in losses.items()} == {"spiral": 0.0, "galaxy": 0.0}
    batch["class_weight"][0] = batch["valid"][1] = 1
    losses = class_losses(small_network, batch)
    assert all(float(value) > 0 for value in losses.values())
