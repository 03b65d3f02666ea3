"""Targets and losses of the paper's networks, against boxes worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
from keras import ops

from surveycat.mrcnn import paper_losses as losses


def as_bool(tensor):
    """A tensor of truth values as an array."""
    return np.asarray(ops.convert_to_numpy(tensor)).astype(bool)


def sky(boxes, classes, side=64):
    """A batch of one image with these objects (px) and plain sky."""
    count = len(boxes)
    return {
        "image": np.zeros((1, side, side, 3), np.uint8),
        "ignore": np.zeros((1, side, side), np.uint8),
        "box": np.float32(boxes).reshape(1, count, 4),
        "valid": np.ones((1, count), np.float32),
        "class": np.int32([classes]),
        "mask": np.full((1, count, 56, 56), 255, np.uint8),
    }


def test_anchors_are_sorted_by_overlap():
    """IoU 1 and 0.72 teach "object", 0.5 nothing, 0.25 and 0 "sky"; the best anchor of an odd object is claimed."""
    batch = sky([[0, 0, 10, 10], [40, 40, 44, 60]], [1, 2])
    anchors = np.float32(
        [[0, 0, 10, 10], [0, 0, 10, 7.2], [0, 0, 10, 5], [0, 0, 10, 2.5], [20, 20, 30, 30], [38, 45, 48, 55]]
    )
    batch["anchor_draw"] = np.linspace(0.9, 0.1, 6, dtype=np.float32)[None]
    positive, negative, deltas = losses.anchor_targets(anchors, batch, count=20)
    assert as_bool(positive)[0].tolist() == [True, True, False, False, False, True]
    assert as_bool(negative)[0].tolist() == [False, False, False, True, True, False]
    # the second anchor is 7.2 wide, centred 1.4 to the left of the object: over the scales 0.1 and 0.2
    expected = [0, 1.4 / 7.2 / 0.1, 0, math.log(10 / 7.2) / 0.2]
    np.testing.assert_allclose(ops.convert_to_numpy(deltas)[0, 1], expected, rtol=1e-4, atol=1e-5)


def test_half_of_the_anchors_at_most_are_positive_and_the_draw_decides():
    """Of 6 good anchors and 4 on sky, 4 teach: the 2 good ones and the 2 on sky with the largest numbers."""
    batch = sky([[0, 0, 10, 10]], [1])
    anchors = np.float32([[0, 0, 10, 10]] * 6 + [[30, 30, 40, 40]] * 4)
    batch["anchor_draw"] = np.float32([[0.1, 0.9, 0.3, 0.8, 0.2, 0.4, 0.5, 0.6, 0.7, 0.05]])
    positive, negative, _ = losses.anchor_targets(anchors, batch, count=4)
    assert np.flatnonzero(as_bool(positive)[0]).tolist() == [1, 3]
    assert np.flatnonzero(as_bool(negative)[0]).tolist() == [7, 8]


def test_ignored_pixels_teach_neither_anchors_nor_regions():
    """What is unlabelled is not taught as sky."""
    batch = sky([[0, 0, 10, 10]], [1])
    batch["ignore"][0, 30:40, 30:40] = 1
    boxes = np.float32([[0, 0, 10, 10], [30, 30, 40, 40], [50, 50, 60, 60]])
    batch["anchor_draw"] = batch["region_draw"] = np.float32([[0.5, 0.5, 0.5]])
    _, negative, _ = losses.anchor_targets(boxes, batch, count=6)
    assert as_bool(negative)[0].tolist() == [False, False, True]
    shift = np.float32([0, 0, 1, 1])
    regions, truth = (boxes[None] - shift) / 63, (batch["box"] - shift) / 63
    targets = losses.region_targets(regions, np.ones((1, 3), bool), truth, batch, 3, 0.34)
    kept = ops.convert_to_numpy(targets["roi"])[0][ops.convert_to_numpy(targets["counts"])[0] > 0]
    np.testing.assert_allclose(kept, regions[0][[0, 2]], atol=1e-6)


def test_regions_have_the_class_and_deltas_of_their_object():
    """Two on objects come first, sky fills up to a third of objects; unused slots and unknown classes do not count."""
    batch = sky([[0, 0, 10, 10], [40, 40, 60, 60], [20, 0, 30, 10]], [2, 1, 0])
    shift = np.float32([0, 0, 1, 1])
    pixels = np.float32(
        [[0, 0, 10, 8], [40, 40, 60, 60], [30, 30, 34, 34], [10, 50, 20, 60], [50, 0, 60, 10], [0, 30, 9, 39]]
    )
    pixels = np.concatenate([pixels, np.float32([[20, 0, 30, 10], [0, 0, 10, 10]])])[None]
    alive = np.array([[True] * 7 + [False]])
    batch["region_draw"] = np.linspace(0.9, 0.2, 8, dtype=np.float32)[None]
    regions, truth = (pixels - shift) / 63, (batch["box"] - shift) / 63
    targets = {
        name: ops.convert_to_numpy(value)[0]
        for name, value in losses.region_targets(regions, alive, truth, batch, 9 - 1, 0.375).items()
    }
    order = [np.flatnonzero(np.isclose(regions[0], one, atol=1e-6).all(axis=1))[0] for one in targets["roi"]]
    assert order[:3] == [0, 1, 6] and sorted(order[3:7]) == [2, 3, 4, 5]
    assert targets["class"].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert targets["counts"].tolist() == [1, 1, 0, 1, 1, 1, 1, 0]
    # in the network's units the region is 7 / 63 wide and its centre 1 / 63 to the left of that of its object, 9 wide
    np.testing.assert_allclose(targets["deltas"][0], [0, 1 / 7 / 0.1, 0, math.log(9 / 7) / 0.2], rtol=1e-3, atol=1e-4)


def test_class_and_box_loss_look_at_the_own_class_alone():
    """Cross-entropy of the wanted class; deltas of the other classes cost nothing."""
    targets = {
        "class": np.int32([[1, 0, 2]]),
        "counts": np.float32([[1, 1, 0]]),
        "deltas": np.float32([[[0.5, 0, 0, 0], [0, 0, 0, 0], [9, 9, 9, 9]]]),
    }
    logits = np.float32([[[0, 2, 0], [1, 0, 0], [0, 0, 0]]])
    expected = np.mean([math.log(2 + math.exp(2)) - 2, math.log(math.exp(1) + 2) - 1])
    assert float(losses.class_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)
    deltas = np.full((1, 3, 3, 4), 7.0, np.float32)
    deltas[0, 0, 1] = [0.5, 2.0, 0.5, 0]
    # 0 + (2 - 0.5) + 0.5 * 0.25 + 0, over four deltas
    assert float(losses.box_loss(deltas, targets)) == pytest.approx((1.5 + 0.125) / 4, rel=1e-5)


def test_mask_loss_is_that_of_the_own_class_in_the_region():
    """A region on the left half of an object whose left half is its mask wants ones everywhere, as its class alone."""
    batch = sky([[0, 0, 20, 20]], [2])
    batch["mask"][..., 28:] = 0
    shift = np.float32([0, 0, 1, 1])
    targets = {
        "roi": (np.float32([[[0, 0, 20, 9]]]) - shift) / 63,
        "index": np.int32([[0]]),
        "class": np.int32([[2]]),
        "counts": np.ones((1, 1), np.float32),
    }
    logits = np.zeros((1, 1, 4, 4, 3), np.float32)
    logits[..., 1], logits[..., 2] = -50, 3.0
    assert float(losses.mask_loss(logits, targets, batch)) == pytest.approx(math.log1p(math.exp(-3)), rel=1e-4)


def test_losses_are_finite_with_and_without_objects(paper_config):
    """An image without objects teaches the RPN what sky is, and the heads nothing."""
    from mrcnn_files import enliven

    from surveycat.mrcnn.weights import make_network

    training = dataclasses.replace(paper_config.training, rois_per_image=12, proposals=40)
    network = enliven(make_network(dataclasses.replace(paper_config, training=training)), 2)
    rng = np.random.default_rng(0)
    side = paper_config.tile_size
    batch = sky([[100, 100, 140, 150], [30, 40, 60, 70]], [1, 2], side)
    batch["image"] = rng.integers(0, 255, (1, side, side, 3), np.uint8)
    batch["anchor_draw"] = rng.random((1, len(network.anchors)), np.float32)
    batch["region_draw"] = rng.random((1, 40), np.float32)
    values = {name: float(value) for name, value in losses.paper_losses(network, batch).items()}
    assert set(values) == set(losses.TERMS) and np.isfinite(list(values.values())).all()
    assert values["rpn_class"] > 0 and values["rpn_bbox"] > 0
    batch["valid"][:] = 0
    values = {name: float(value) for name, value in losses.paper_losses(network, batch).items()}
    assert values["rpn_class"] > 0
    assert values["rpn_bbox"] == values["mrcnn_class"] == values["mrcnn_bbox"] == values["mrcnn_mask"] == 0
