"""What a bulk run costs besides pictures and network: a list of 243,480 positions, interrupted in the middle.

    python tests/benchmarks/bulk_bookkeeping.py --targets 243480

Pictures, network and measurement are replaced by two made-up galaxies per target. All else is the real thing: reading
the list, parts on the disk, resume in another process, primaries, HEALPix partitions, manifest, counts. Prints seconds
and peak memory; where the disk is slow, most seconds are its own (``TMPDIR=/dev/shm`` leaves it out).
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from detectors import BlobDetector

import surveycat.bulk  # noqa: F401  # imports are not to be timed
from surveycat.cutouts import Picture
from surveycat.outcome import Outcome, _measured, _with_target

MODULE = sys.modules["surveycat.bulk"]


class Stop(Exception):
    """Ends the first half of the run."""


def write_list(path, n):
    """Write a list of n positions in the footprint of SDSS."""
    rng = np.random.default_rng(0)
    ra = rng.uniform(110, 260, n)
    dec = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-3)), np.sin(np.radians(65)), n)))
    with open(path, "w") as file:
        file.write("dr7objid,ra,dec,gz2class\n")
        places = enumerate(zip(ra, dec, strict=True), start=587722981741363294)
        file.writelines(f"{name},{a:.6f},{d:.6f},Sb\n" for name, (a, d) in places)


def stub(stop_after):
    """Give what stands in for pictures, network and measurement."""
    pixels = np.zeros((1, 256, 256, 3), np.uint8)
    pixels[0, 120:136, 120:136] = 200
    pixels[0, 30:44, 60:74] = 200
    picture = Picture("", pixels[0], 0.0, 0.0, 128.0, 128.0, (0.396127, 0.396127))
    columns = _with_target(_measured(BlobDetector()(pixels, 0.5), picture), 0.0, 0.0, picture)

    def outcomes(job, pending):
        offset = columns["ra"] - 360 * (columns["ra"] > 180)
        for number in range(len(pending)):
            if number == stop_after:
                raise Stop
            ra = np.mod(pending.ra[number] + offset / np.cos(np.radians(pending.dec[number])), 360)
            yield Outcome(number, {**columns, "ra": ra, "dec": pending.dec[number] + columns["dec"]})

    return outcomes


def run(listed, out, stop_after):
    """Run up to a number of targets, or to the end, and say what it took."""
    before, started = used(), time.perf_counter()
    MODULE.outcomes = stub(stop_after)
    options = {"images": out.parent, "out": out, "keep": ["gz2class"], "detector": BlobDetector(), "resume": True}
    with contextlib.suppress(Stop):
        MODULE.bulk(listed, **options)
    seconds, (cpu, peak) = time.perf_counter() - started, used()
    what = "to the end" if stop_after < 0 else f"interrupted after {stop_after} targets"
    print(f"{what}: {seconds:.1f} s, {cpu - before[0]:.1f} s of processor, peak {peak:.0f} MB, {before[1]:.0f} before")


def used():
    """Processor seconds of this process so far, and its peak memory in MB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    """Run in two processes, as after an interruption."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--targets", type=int, default=243_480)
    n = arguments.parse_args().targets
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_list(folder / "list.csv", n)
        for stop_after in (n // 2, -1):
            process = context.Process(target=run, args=(folder / "list.csv", folder / "out", stop_after))
            process.start()
            process.join()
        manifest = json.loads((folder / "out" / "manifest.json").read_text())
        size = sum(path.stat().st_size for path in (folder / "out").rglob("*.parquet")) / 1e6
    counts = manifest["counts"]
    assert counts["targets"] == counts["detected"] == n and counts["detections"] == 2 * n
    print(f"{n} targets, {counts['detections']} rows in {len(manifest['partitions'])} partitions, {size:.0f} MB")


if __name__ == "__main__":
    main()
