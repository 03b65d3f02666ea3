"""Where the time of `surveycat run` goes: seconds of each stage on one field, tiles a second, peak memory.

The stages are the steps of `surveycat.pipeline.search`; a first run on the same field warms caches and compiles, the
second is measured, and the bare network on the same tiles stands beside it.

Example: python tests/benchmarks/run_field.py ../shared/data/fields/sdss_351.65+0.10_run4192/field.jpg
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cProfile
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from surveycat.image import open_image
from surveycat.mrcnn.detector import load_detector
from surveycat.pipeline import run
from surveycat.tiles import TileGrid

STAGES = {
    "open": ("image.py", "open_image"),
    "network": ("detector.py", "__call__"),
    "stitch": ("stitch.py", "stitch"),
    "choose second looks": ("stitch.py", "second_looks"),
    "confirm": ("stitch.py", "confirm"),
    "measure": ("measure.py", "measure"),
    "write": ("catalog.py", "write"),
}


def main(path, weights="compact"):
    """Print the table."""
    out = Path(tempfile.mkdtemp()) / "catalogue.parquet"
    position = {"ra": 351.65, "dec": 0.10}
    run(path, out, weights=weights, **position)
    profile = cProfile.Profile()
    start = time.perf_counter()
    profile.enable()
    table = run(path, out, weights=weights, overwrite=True, **position)
    profile.disable()
    seconds = time.perf_counter() - start
    with open_image(path) as image:
        tiles = list(TileGrid(image.shape).tiles())
        pixels = np.stack([image.read(tile.box, tile.level) for tile in tiles])
    detector = load_detector(weights)
    start = time.perf_counter()
    detector(pixels, 0.5)
    bare = (time.perf_counter() - start) / len(tiles)
    print(
        f"{len(table)} rows; {len(tiles)} tiles and second looks in {seconds:.1f} s: {len(tiles) / seconds:.1f} tiles/s"
    )
    print(f"the bare network: {1 / bare:.1f} tiles/s")
    spent = {}
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
        for stage, (module, function) in STAGES.items():
            if Path(file).name == module and name == function:
                spent[stage] = spent.get(stage, 0.0) + cumulative
    for stage in STAGES:
        print(f"{stage:20s} {spent.get(stage, 0.0):6.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
