"""A small network with random weights, shared by the network's tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


@pytest.fixture(scope="session")
def small_config():
    """Architecture that is quick to build, with limits small enough to be hit."""
    from surveycat.mrcnn.config import NetworkConfig

    return NetworkConfig(
        name="small",
        tile_size=128,
        widths=(8, 8, 16, 16),
        blocks_per_stage=(1, 1, 1, 1),
        pyramid_channels=8,
        proposals_before_nms=64,
        proposals_after_nms=24,
        max_detections=12,
        box_units=16,
        mask_channels=8,
        class_pool=32,
        class_widths=(4, 8),
        first_look_score=0.001,
    )


@pytest.fixture
def small_network(small_config):
    """A network with random weights and random normalisation statistics."""
    import keras

    from surveycat.mrcnn.model import MaskRCNN

    keras.utils.set_random_seed(3)
    network = MaskRCNN(small_config)
    rng = np.random.default_rng(3)
    for part in network.parts.values():
        for layer in part.layers:
            if layer.name.endswith("_bn"):
                layer.set_weights([rng.uniform(0.5, 1.5, w.shape).astype("float32") for w in layer.get_weights()])
    return network


@pytest.fixture
def tiles(small_config):
    """Five tiles of noise with bright blobs."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[: small_config.tile_size, : small_config.tile_size]
    images = rng.normal(20, 4, (5, small_config.tile_size, small_config.tile_size, 3))
    for image in images:
        for _ in range(4):
            cy, cx, width = rng.uniform(10, 118), rng.uniform(10, 118), rng.uniform(2, 12)
            image += 150 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))[..., None]
    return np.clip(images, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def paper_config():
    """The paper's architecture, thin and shallow: every rule and every kind of layer, few of them."""
    from mrcnn_files import know_shallow

    from surveycat.mrcnn.presets import MrcnnConfig

    know_shallow()
    return MrcnnConfig(
        name="thin",
        backbone="shallow",
        mean_pixel=(10.71, 15.81, 19.04),
        stem_channels=4,
        pyramid_channels=8,
        rpn_channels=8,
        proposals_before_nms=600,
        proposals_after_nms=100,
        max_detections=20,
        box_units=16,
        mask_channels=8,
    )
