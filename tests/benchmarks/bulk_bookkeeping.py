"""What a bulk run costs besides pictures and network: a list of 243,480 positions, interrupted in the middle.

    python tests/benchmarks/bulk_bookkeeping.py --targets 243480

Pictures, network and measurement are replaced by two made-up galaxies per target. All else is the real thing: reading
the list, parts on the disk, resume, primaries, HEALPix partitions, manifest, counts. Prints seconds and peak memory.
"""

import argparse
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


def main():
    """Time it."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--targets", type=int, default=243_480)
    n = arguments.parse_args().targets
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_list(folder / "list.csv", n)
        print(f"peak memory before {peak():.0f} MB, the list not read yet")
        started, cpu = time.perf_counter(), time.process_time()
        options = {"images": folder, "out": folder / "out", "keep": ["gz2class"], "detector": BlobDetector()}
        MODULE.outcomes = stub(n // 2)
        try:
            MODULE.bulk(folder / "list.csv", **options)
        except Stop:
            print(f"interrupted half way after {time.perf_counter() - started:.1f} s, {peak():.0f} MB")
        MODULE.outcomes = stub(-1)
        manifest = MODULE.bulk(folder / "list.csv", **options, resume=True)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        size = sum(path.stat().st_size for path in (folder / "out").rglob("*.parquet")) / 1e6
    counts = manifest["counts"]
    assert counts["targets"] == counts["detected"] == n and counts["detections"] == 2 * n
    print(f"{n} targets, {counts['detections']} rows in {len(manifest['partitions'])} partitions, {size:.0f} MB")
    print(f"{seconds:.1f} s ({cpu:.1f} s of processor), {1e3 * seconds / n:.2f} ms per target, peak {peak():.0f} MB")


def peak():
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
