"""The paper's networks by name: what its Table 1 says, and what follows from the architecture instead."""

import dataclasses

import numpy as np
import pytest

from surveycat.errors import WeightsError
from surveycat.mrcnn.config import NetworkConfig
from surveycat.mrcnn.presets import PRESETS, read_config

ONE, TWO = PRESETS["mask-galaxy-1class"], PRESETS["mask-galaxy-2class"]


def test_what_both_networks_share():
    """Table 1: trunk, tile, pooling, anchors, limits and mean pixel."""
    for config in (ONE, TWO):
        assert (config.backbone, config.tile_size, config.box_pool, config.max_detections) == ("resnet101", 256, 7, 400)
        assert (config.anchor_sides[0], config.anchor_sides[-1]) == (8, 128)
        assert config.mean_pixel == (10.71, 15.81, 19.04) and config.pixel_scale == 1.0
        training = config.training
        assert (training.learning_rate, training.momentum, training.roi_positive_ratio) == (1e-3, 0.9, 0.33)


@pytest.mark.parametrize(
    ("config", "classes", "resize", "rois", "iou", "mini_masks", "steps", "most"),
    [(ONE, 2, "square", 250, 0.7, False, 100, 300), (TWO, 3, "crop", 128, 0.8, True, 1000, 200)],
)
def test_where_they_differ(config, classes, resize, rois, iou, mini_masks, steps, most):
    """Table 1, row by row; background is a class there."""
    training = config.training
    assert len(config.classes) + 1 == classes and config.rpn_nms_iou == iou
    assert (training.resize_mode, training.rois_per_image, training.mini_masks) == (resize, rois, mini_masks)
    assert (training.steps_per_epoch, training.max_ground_truth) == (steps, most)


def test_strides_follow_from_the_pyramid():
    """The published 8 to 128 cannot be: the anchors must be as many as the RPN has outputs on a pyramid of 4 to 64."""
    from surveycat.mrcnn.rpn import make_anchors

    assert ONE.training.published_strides == (8, 16, 32, 64, 128) and TWO.training.published_strides == ONE.strides
    for config in (ONE, TWO):
        anchors = config.to_pixels(make_anchors(config))
        assert len(anchors) == 3 * sum((256 // stride) ** 2 for stride in (4, 8, 16, 32, 64))
        sides = np.sqrt((anchors[:, 2:] - anchors[:, :2]).prod(axis=1))
        assert np.isclose(sides.min(), 8, rtol=1e-3) and np.isclose(sides.max(), 128, rtol=1e-3)


def test_records_survive_json():
    """The record beside converted weights, tuples and records within records included; the compact one too."""
    for config in (*PRESETS.values(), dataclasses.replace(TWO, untrained=("mrcnn_mask",)), NetworkConfig()):
        assert read_config(config.to_json()) == config
    with pytest.raises(WeightsError, match="'colour'"):
        read_config('{"backbone": "resnet50", "colour": 3}')
    with pytest.raises(WeightsError, match="no record"):
        read_config("[1, 2]")
