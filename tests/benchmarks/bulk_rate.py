"""End-to-end rate of a bulk run, JPEG files to Parquet dataset, beside the rate of the bare network in the same run.

    python tests/benchmarks/bulk_rate.py ../shared/data/fields --cutouts 5120 --workers 0 1 2

Cutouts are windows of 256 px of real SDSS fields, at positions as dense on the sky as those of Galaxy Zoo 2: how many
partitions there are to write depends on that (`--density`). The bare network runs on the same pictures, decoded before,
in turn before and after each run, so that a machine whose speed drifts does not decide the ratio. Processor time is
given beside wall-clock time: on a machine that others use, its ratio is the one to believe. The time that a run needs
to start (loading the network, in workers too) is in its figures.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from surveycat.bulk import _write_part, bulk
from surveycat.cutouts import Folder
from surveycat.dataset import Store
from surveycat.dispatch import loaded
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.outcome import Job, Outcome, _described, _picture, _tile_size
from surveycat.skyserver import SCALE
from surveycat.targets import read_targets

PAPER = 27.0  # cutouts per second, on eight GPUs
DENSITY = 30.0  # targets per square degree: 243,500 of Galaxy Zoo 2 on the 8,000 of its part of SDSS


def make_cutouts(fields, folder, n, density=DENSITY):
    """Write n windows of the fields as JPEG, and their list, of so many per square degree near the equator."""
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(Path(fields).glob("sdss_*/field.jpg"))]
    rng = np.random.default_rng(1)
    lines, side = ["objid,ra,dec"], np.sqrt(n / density)
    for i in range(n):
        picture = pictures[i % len(pictures)]
        y, x = (int(rng.integers(0, side - 256)) for side in picture.shape[:2])
        Image.fromarray(picture[y : y + 256, x : x + 256]).save(folder / f"{i}.jpg", quality=92)
        lines.append(f"{i},{180 + rng.uniform(0, side):.6f},{rng.uniform(0, side):.6f}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


class Clock:
    """Wall-clock and processor time since it was made, that of worker processes that have ended included."""

    def __init__(self):
        self.start = self.now()

    @staticmethod
    def now():
        """Give both in seconds."""
        times = os.times()
        return np.array([times.elapsed, times.user + times.system + times.children_user + times.children_system])

    def per(self, n):
        """Give both in ms per item."""
        return (self.now() - self.start) * 1e3 / n


def bare_network(detector, tiles):
    """Time the network alone on batches of tiles."""
    size = detector.batch_size
    detector(tiles[:size], 0.5)
    clock = Clock()
    for start in range(0, len(tiles), size):
        detector(tiles[start : start + size], 0.5)
    return clock.per(len(tiles))


def stages(job, targets, detector, n, folder):
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
    store = Store(folder / "stages", {})
    _write_part([Outcome(i, each) for i, each in enumerate(columns)], pending, {}, store, n, 0)
    write = clock.per(n)
    clock = Clock()
    store.publish(pending, [], [], 4, {})
    store.close()
    return {"read and decode": decode, "stitch and measure": measure, "write": write, "publish": clock.per(n)}


def end_to_end(listed, folder, n, workers):
    """Time a whole run."""
    clock = Clock()
    counts = bulk(listed, folder, folder / f"out{workers}", workers=workers)["counts"]
    return clock.per(n), counts


def report(what, cost, bare):
    """Print the rate of a whole run beside that of the bare network before and after it."""
    bare = np.mean(bare, axis=0)
    print(f"{what:20s} {1e3 / cost[0]:6.1f} per s {cost[1]:7.1f} ms of processor each; the bare network beside it "
          f"{1e3 / bare[0]:6.1f} per s, {bare[1]:.1f} ms")  # fmt: skip
    print(f"    ratio to the bare network: {bare[0] / cost[0]:.2f} by the clock, {bare[1] / cost[1]:.2f} by processor")
    print(f"    ratio to the paper's {PAPER:g} per s on eight GPUs: {1e3 / cost[0] / PAPER:.2f}", flush=True)


def main():
    """Print the rates."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("fields", help="folder with sdss_*/field.jpg")
    arguments.add_argument("--cutouts", type=int, default=5120)
    arguments.add_argument("--workers", type=int, nargs="+", default=[0])
    arguments.add_argument("--density", type=float, default=DENSITY, help="targets per square degree")
    options = arguments.parse_args()
    spec = DetectorSpec()
    detector = loaded(spec)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        listed = make_cutouts(options.fields, folder, options.cutouts, options.density)
        targets, job = read_targets(listed), Job(Folder(f"{folder}/{{id}}.jpg"), (None, None), SCALE, spec, 0.5)
        sample = np.stack([_picture(job, targets.one(i)).pixels for i in range(min(256, len(targets)))])
        for name, cost in stages(job, targets, detector, len(sample), folder).items():
            print(f"{name:20s}              {cost[1]:7.1f} ms of processor each")
        bare = [bare_network(detector, sample)]
        for workers in options.workers:
            cost, counts = end_to_end(listed, folder, options.cutouts, workers)
            bare.append(bare_network(detector, sample))
            report(f"{workers} workers" if workers else "in one process", cost, bare[-2:])
    print(f"{options.cutouts} cutouts, {counts}")


if __name__ == "__main__":
    main()
