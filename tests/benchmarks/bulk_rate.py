"""End-to-end rate of a bulk run, JPEG files to Parquet dataset, beside the rate of the bare network in the same run.

    python tests/benchmarks/bulk_rate.py ../shared/data/fields --cutouts 5120 [--workers 2]

Cutouts are windows of 256 px of real SDSS fields. The bare network runs on the same pictures, decoded before, in turn
before and after the run, so that a machine whose speed drifts does not decide the ratio. Processor time is given beside
wall-clock time: on a machine that others use, its ratio is the one to believe.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from surveycat.bulk import bulk
from surveycat.cutouts import Folder
from surveycat.dataset import rows_table
from surveycat.dispatch import loaded
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.outcome import Job, _described, _picture, _tile_size
from surveycat.skyserver import SCALE
from surveycat.targets import read_targets

PAPER = 27.0  # cutouts per second, on eight GPUs


def make_cutouts(fields, folder, n):
    """Write n windows of the fields as JPEG, and their list."""
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(Path(fields).glob("sdss_*/field.jpg"))]
    rng = np.random.default_rng(1)
    lines = ["objid,ra,dec"]
    for i in range(n):
        picture = pictures[i % len(pictures)]
        y, x = (int(rng.integers(0, side - 256)) for side in picture.shape[:2])
        Image.fromarray(picture[y : y + 256, x : x + 256]).save(folder / f"{i}.jpg", quality=92)
        lines.append(f"{i},{rng.uniform(120, 240):.6f},{rng.uniform(0, 60):.6f}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


class Clock:
    """Wall-clock and processor time since it was made."""

    def __init__(self):
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def per(self, n):
        """Give both in ms per item."""
        return np.array([time.perf_counter() - self.wall, time.process_time() - self.processor]) * 1e3 / n


def bare_network(detector, tiles):
    """Time the network alone on batches of tiles."""
    size = detector.batch_size
    detector(tiles[:size], 0.5)
    clock = Clock()
    for start in range(0, len(tiles), size):
        detector(tiles[start : start + size], 0.5)
    return clock.per(len(tiles))


def stages(job, targets, detector, n):
    """Time the other stages one by one, in one thread."""
    pending = targets.select(np.arange(n))
    clock = Clock()
    pictures = [_picture(job, pending.one(i)) for i in range(n)]
    decode = clock.per(n)
    size, columns, measure = detector.batch_size, [], np.zeros(2)
    for start in range(0, n, size):
        batch = [(start + i, picture) for i, picture in enumerate(pictures[start : start + size])]
        found = detector(np.stack([picture.tile(_tile_size(detector)) for _, picture in batch]), 0.5)
        clock = Clock()
        columns += [outcome.columns for outcome in _described(job, pending, batch, found)]
        measure += clock.per(n)
    clock = Clock()
    rows_table(columns, list(range(n)))
    return {"read and decode": decode, "stitch and measure": measure, "to Arrow": clock.per(n)}


def main():
    """Print the rates."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("fields", help="folder with sdss_*/field.jpg")
    arguments.add_argument("--cutouts", type=int, default=5120)
    arguments.add_argument("--workers", type=int, default=0)
    options = arguments.parse_args()
    spec = DetectorSpec()
    detector = loaded(spec)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        listed = make_cutouts(options.fields, folder, options.cutouts)
        targets, job = read_targets(listed), Job(Folder(f"{folder}/{{id}}.jpg"), (None, None), SCALE, spec, 0.5)
        sample = np.stack([_picture(job, targets.one(i)).pixels for i in range(min(256, len(targets)))])
        bare = [bare_network(detector, sample)]
        others = stages(job, targets, detector, len(sample))
        clock = Clock()
        manifest = bulk(listed, folder, folder / "out", workers=options.workers)
        whole = clock.per(options.cutouts)
        bare.append(bare_network(detector, sample))
    bare = np.mean(bare, axis=0)
    print(f"{options.cutouts} cutouts, {manifest['counts']}, {options.workers} workers")
    print(f"bare network    {1e3 / bare[0]:7.1f} per s, {bare[1]:6.1f} ms of processor each")
    for name, cost in others.items():
        print(f"{name:20s}              {cost[1]:6.1f} ms of processor each")
    print(f"end to end      {1e3 / whole[0]:7.1f} per s, {whole[1]:6.1f} ms of processor each (start-up included)")
    print(
        f"ratio to the bare network: {bare[0] / whole[0]:.2f} by the clock, {bare[1] / whole[1]:.2f} by processor time"
    )
    print(f"ratio to the paper's {PAPER:g} per s on eight GPUs: {1e3 / whole[0] / PAPER:.2f}")


if __name__ == "__main__":
    main()
