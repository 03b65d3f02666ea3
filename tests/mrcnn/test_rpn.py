"""Anchors lie where the head's outputs say they do, and proposals are what the logits ask for."""

import numpy as np
from keras import ops

from surveycat.mrcnn.config import NetworkConfig
from surveycat.mrcnn.rpn import build_rpn_head, make_anchors, propose


def test_anchors_follow_the_order_of_the_head():
    """Level by level, row by row, ratio by ratio: the head's flattened output pairs with them."""
    config = NetworkConfig()
    anchors = make_anchors(config)
    per_level = [(256 // stride) ** 2 * 3 for stride in config.strides]
    assert len(anchors) == sum(per_level)
    centre = 0.5 * (anchors[:, :2] + anchors[:, 2:])
    np.testing.assert_allclose(centre[:3], 2.0)  # three ratios at the first cell of stride 4
    np.testing.assert_allclose(centre[3], (2.0, 6.0))  # then the next column
    np.testing.assert_allclose(centre[3 * 64], (6.0, 2.0))  # then the next row
    size = anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(np.sqrt(size[0].prod()), config.anchor_sides[0], rtol=1e-5)
    np.testing.assert_allclose(size[2, 0] / size[2, 1], config.anchor_ratios[2], rtol=1e-5)


def test_head_flattens_cells_before_ratios(small_config):
    """A logit planted in one cell and ratio comes out at that anchor's place."""
    head = build_rpn_head(small_config)
    kernel, bias = head.get_layer("rpn_conv").get_weights()
    head.get_layer("rpn_conv").set_weights([np.abs(kernel), bias])  # so that no ReLU hides a cell
    ratios = len(small_config.anchor_ratios)
    level = np.zeros((1, 8, 8, small_config.pyramid_channels), "float32")
    level[0, 3, 5] = 1.0
    base, _ = head(np.zeros_like(level))
    logits, _ = head(level)
    changed = np.nonzero(np.abs(ops.convert_to_numpy(logits - base))[0] > 1e-7)[0]
    cells = {(index // ratios // 8, index // ratios % 8) for index in changed}
    assert cells == {(y, x) for y in (2, 3, 4) for x in (4, 5, 6)}


def test_proposals_are_the_best_anchors_without_doubles(small_config):
    """With zero deltas the proposals are the clipped anchors with the largest logits, best first."""
    anchors = make_anchors(small_config)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, len(anchors))).astype("float32")
    boxes, kept = propose(
        ops.convert_to_tensor(logits), ops.zeros((2, len(anchors), 4)), ops.convert_to_tensor(anchors), small_config
    )
    kept, boxes = ops.convert_to_numpy(kept), ops.convert_to_numpy(boxes)
    assert (np.diff(kept, axis=1) <= 0).all()
    for b in range(2):
        assert kept[b, 0] == logits[b].max()
        np.testing.assert_allclose(
            boxes[b, 0], np.clip(anchors[logits[b].argmax()], 0, small_config.tile_size), atol=1e-3
        )
