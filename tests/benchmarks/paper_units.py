"""Cost of the paper's network per tile with 1000 proposals, in the units of network_units.py, measured in the same run.

ResNet-50 and ResNet-101, at 20 and at 100 detections per tile, masks pasted. Weights are random (or those of an `mrcnn`
file for a ResNet-50), scaled so that all values stay of the order of 1: then every tile has as many detections as fit.
Given are ratios of processor time (all threads) and of wall-clock time; on a busy machine the former is the steadier.

Example: python tests/benchmarks/paper_units.py examples/field.jpg
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import itertools
import resource
import sys
import time

import keras
import numpy as np

from surveycat.image import open_image
from surveycat.mrcnn.backend import compiled
from surveycat.mrcnn.detector import Detector
from surveycat.mrcnn.mrcnn_file import load_mrcnn
from surveycat.mrcnn.presets import PRESETS
from surveycat.mrcnn.weights import make_network
from surveycat.tiles import TileGrid

TILES, BATCH = 4, 4
ROUNDS = int(os.environ.get("ROUNDS", 3))


def seconds(function, *arguments):
    """Processor time and wall-clock time of one call."""
    start = time.process_time(), time.perf_counter()
    function(*arguments)
    return time.process_time() - start[0], time.perf_counter() - start[1]


def network_of(backbone, path=None):
    """A network of the paper's two-class configuration, as it runs."""
    keras.utils.set_random_seed(1)
    config = dataclasses.replace(PRESETS["mask-galaxy-2class"], backbone=backbone, first_look_score=0.0)
    network = make_network(config)
    if path and backbone == "resnet50":
        load_mrcnn(network, path)
    else:
        for layer in network.parts["backbone"].layers:  # the sum of many blocks must not grow from block to block
            if layer.name.endswith("branch2c") and layer.name.startswith("bn"):
                layer.gamma.assign(0.2 * np.ones(layer.gamma.shape))
    network.fold()
    return network


def main(path, weights=None):
    """Print the ratios for some tiles of an image."""
    with open_image(path) as image:
        tiles = [tile for tile in TileGrid(image.shape).tiles() if tile.level == 0][:TILES]
        pixels = np.stack([image.read(tile.box, tile.level) for tile in tiles])
    resnet = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(256, 256, 3))
    unit_pass = compiled(lambda batch: resnet(batch, training=False))
    batch = pixels.astype(np.float32)
    unit_pass(batch)
    networks = [network_of(backbone, weights) for backbone in ("resnet50", "resnet101")]
    for most, network in itertools.product((20, 100), networks):
        network.config = dataclasses.replace(network.config, max_detections=most)
        detector = Detector(network, BATCH)
        detector(pixels, 0.0)
        found = detector.find(pixels).tile
        times = np.array([(seconds(unit_pass, batch), seconds(detector, pixels, 0.0)) for _ in range(ROUNDS)])
        processor, wall = np.median(times[:, 1] / times[:, 0], axis=0)
        unit, tile = 1e3 * np.median(times[..., 0], axis=0) / TILES
        print(
            f"{network.config.backbone}, {len(found) / TILES:.0f} detections a tile: {processor:.2f} units of "
            f"processor time (unit {unit:.0f} ms, tile {tile:.0f} ms), {wall:.2f} of wall-clock time",
            flush=True,
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
