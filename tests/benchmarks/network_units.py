"""Cost of the whole network per tile, in units of one ResNet-50 forward pass, measured in the same run.

The unit is `keras.applications.ResNet50` without its top on 256 x 256 px, batch 8, compiled, same threads. The two are
timed in turn, so that a machine whose speed drifts does not decide the ratio.

Example: python tests/benchmarks/network_units.py examples/field.jpg
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import resource
import sys
import time

import keras
import numpy as np

from surveycat.image import open_image
from surveycat.mrcnn.backend import compiled
from surveycat.mrcnn.detector import load_detector
from surveycat.tiles import TileGrid

ROUNDS = 12


def seconds(function):
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(path, weights="compact"):
    """Print the ratios for the level-0 tiles of an image."""
    with open_image(path) as image:
        tiles = [tile for tile in TileGrid(image.shape).tiles() if tile.level == 0]
        pixels = np.stack([image.read(tile.box, tile.level) for tile in tiles])
    pixels = pixels[: len(pixels) // 8 * 8]
    detector = load_detector(weights)
    resnet = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(256, 256, 3))
    unit_pass = compiled(lambda batch: resnet(batch, training=False))
    batch = pixels[:8].astype(np.float32)
    found = detector(pixels, 0.5)
    unit_pass(batch)
    units, network = [], []
    for _ in range(ROUNDS):
        units.append(np.median([seconds(lambda: unit_pass(batch)) for _ in range(3)]) / 8)
        network.append(seconds(lambda: detector(pixels, 0.5)) / len(pixels))
    ratio = np.array(network) / np.array(units)
    print(f"{len(pixels)} tiles, {len(found) / len(pixels):.1f} detections a tile")
    print(f"unit {1e3 * np.median(units):.1f} ms; network {1e3 * np.median(network):.1f} ms a tile")
    print(f"units per tile: median {np.median(ratio):.3f}, {ratio.min():.3f} to {ratio.max():.3f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
