"""Search mosaics of 4096 to 32768 px with two workers: peak private memory of all processes, and ms per tile.

    python tests/benchmarks/mosaic_memory.py DATA [--sides 4096 8192 16384 32768] [--network 0.1] [--folder DIR]

DATA is the folder with the real fields (``fields/sdss_*/field.jpg``): they are laid side by side, each one turned
and flipped, into a FITS file of three 8-bit planes (3.2 GB at 32768). Every run is the command itself, with two
workers and a stub for the network that finds bright blobs, so that what is measured is all the rest. With
``--network`` a random share of the batches is given to the real network, and the others to the stub.

Private memory is what is not a page of a file (`Pss_Anon` of /proc/PID/smaps_rollup: pages that processes share after
a fork count once), summed over the process and all of its descendants ten times a second, or as often as takes a tenth
of the time.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Stub:
    """Finds bright blobs, quickly; a random share of the batches goes to the real network."""

    batch_size = 8

    def __init__(self, share):
        self.share = share

    def load(self):
        """Give the detector of this process; what loads the network keeps it."""
        return self

    def __call__(self, pixels, min_score):
        from detectors import BlobDetector

        from surveycat.mrcnn.detector import load_detector

        # Which batches the network gets depends on their pixels alone, so that every run gives it the same ones.
        chosen = int(pixels.sum()) % 1000 < 1000 * self.share
        detector = load_detector() if chosen else BlobDetector(90, 25)
        return detector(pixels, min_score)


def frames(data):
    """The real fields, as arrays, in all eight orientations."""
    from PIL import Image

    for path in sorted(Path(data).glob("fields/sdss_*/field.jpg")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        for turned in (pixels, pixels.swapaxes(0, 1)):
            yield from (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1])


def write_mosaic(path, data, side):
    """Lay fields side by side into a FITS file of three planes, 8 bits."""
    from astropy.io import fits

    rng, fields = np.random.default_rng(0), list(frames(data))
    shape = (3, side, side)
    cards = [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 3), ("NAXIS1", side), ("NAXIS2", side), ("NAXIS3", 3)]
    text = fits.Header(cards).tostring(padding=True)
    with open(path, "wb") as file:
        file.write(text.encode())
        file.truncate(len(text) + -(-3 * side * side // 2880) * 2880)
    planes = np.memmap(path, np.uint8, "r+", len(text), shape)
    step = 1400  # every field covers a square of this side
    for y in range(0, side, step):
        for x in range(0, side, step):
            field = fields[rng.integers(len(fields))][: min(step, side - y), : min(step, side - x)]
            planes[:, y : y + field.shape[0], x : x + field.shape[1]] = np.moveaxis(field, -1, 0)
    planes.flush()


def processes(pid):
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # it has just ended
    return found


def private_mib(pid):
    """Private memory of a process without pages of mapped files, MiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    # Anonymous pages are what a process has for itself; shared ones (after a fork) count once by their share.
    return (values["Pss_Anon"] + values.get("SwapPss", 0)) / 1024


def measure(command):
    """Run a command; gives seconds and the peaks of the sum, of the first process and of the largest other."""
    started, peaks = time.monotonic(), np.zeros(3)
    run = subprocess.Popen(command)
    while run.poll() is None:
        before = time.monotonic()
        each = [private_mib(pid) for pid in processes(run.pid)]
        peaks = np.maximum(peaks, [sum(each), each[0], max(each[1:], default=0)])
        time.sleep(max(0.1, 9 * (time.monotonic() - before)))  # the kernel walks through all pages of the mosaic
    if run.returncode:
        sys.exit(f"{command} ended with {run.returncode}")
    return time.monotonic() - started, peaks


def search(image, out, share):
    """One run, in a process of its own."""
    import surveycat

    surveycat.run(image, out, detector=Stub(share), workers=2, overwrite=True)


def main():
    """Make the mosaics, search them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--network", type=float, default=0.0, help="Share of the batches for the real network.")
    parser.add_argument("--folder", default=".", help="Where to put mosaics and catalogues; they are removed.")
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        search(*options.search, options.network)
        return
    from surveycat import catalog
    from surveycat.tiles import TileGrid

    folder = Path(options.folder)
    print("  side   tiles    rows  seconds  ms/tile  peak MiB: all   main  worker", flush=True)
    for side in options.sides:
        image, out = folder / f"mosaic{side}.fits", folder / f"mosaic{side}.parquet"
        write_mosaic(image, options.data, side)
        own = [sys.executable, __file__, options.data, "--network", str(options.network)]
        seconds, (total, first, worker) = measure([*own, "--search", image, out])
        n_tiles, n_rows = len(TileGrid((side, side))), len(catalog.read(out))
        print(
            f"{side:6d} {n_tiles:7d} {n_rows:7d} {seconds:8.0f} {1000 * seconds / n_tiles:8.1f} "
            f"{total:14.0f} {first:6.0f} {worker:7.0f}",
            flush=True,
        )
        os.remove(image)
        os.remove(out)


if __name__ == "__main__":
    main()
