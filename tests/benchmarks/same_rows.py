"""Does the catalogue of a field depend on who did the work, in which order, and with which accidents?  Real weights.

    python tests/benchmarks/same_rows.py ../shared/data/fields/sdss_351.65+0.10_run4192/field.jpg [--kills 10]

The field is searched in one process, by 2 and 4 workers, with its tiles in random order, with a worker killed half-way,
and with the whole run killed at random moments and resumed, each time with no finished batch lost. Each time the rows
must be those of the first run: text and integers equal, floats within 1e-4.  No run may take longer than ``--limit``.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mosaic_memory import private_mib, processes
from test_pipeline import same_rows

import surveycat
from surveycat import catalog, pipeline
from surveycat.unfinished import partial_folder

TOLERANCE = 1e-4


def command(options, out, workers):
    """The run as a command of its own."""
    words = [sys.executable, "-m", "surveycat", "run", options.image, "--out", out, "--resume", "--workers", workers]
    words += ["--weights", options.weights, "--ra", 0, "--dec", 0]
    return [str(word) for word in words + (["--region", options.region] if options.region else [])]


def finished(out):
    """How many batches of an unfinished run are done."""
    return len(list(partial_folder(out).glob("*/batch-*.npz")))


class Run:
    """A run as a process group of its own, which ends in time or is ended."""

    def __init__(self, options, out, workers):
        self.out, self.limit = out, options.limit
        self.process = subprocess.Popen(command(options, out, workers), start_new_session=True)
        self.end = time.monotonic() + self.limit

    def runs_until(self, condition):
        """Wait until a condition holds; false if the run went well to its end before."""
        while self.process.poll() is None:
            if condition():
                return True
            if time.monotonic() > self.end:
                self.kill()
                sys.exit(f"{self.process.args} did not end in {self.limit:g} s")
            time.sleep(0.02)
        if self.process.returncode:
            sys.exit(f"{self.process.args} ended with {self.process.returncode}")
        return False

    def finish(self):
        """Wait for the end; gives the most batches that were done before it."""
        most = 0

        def look():
            nonlocal most
            most = max(most, finished(self.out))

        self.runs_until(look)
        return most

    def kill(self):
        """End it at once, with all its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def by_workers(options, out, n_batches, workers):
    """An undisturbed run."""
    Run(options, out, workers).finish()
    return ""


def shuffled(options, out, n_batches):
    """Tiles in random order, in this process."""

    def detect(image, tiles, *arguments, **keywords):
        tiles = np.random.default_rng(0).permutation(np.array(list(tiles), dtype=object))
        return pipeline_detect(image, tiles.tolist(), *arguments, **keywords)

    pipeline_detect = pipeline.detect
    with patch.object(pipeline, "detect", detect):
        surveycat.run(options.image, out, weights=options.weights, region=options.region, ra=0, dec=0)
    return ""


def worker_killed(options, out, n_batches):
    """Two workers, of which one is killed when half of the batches are done."""
    run = Run(options, out, 2)
    if not run.runs_until(lambda: finished(out) >= max(1, n_batches // 2)):
        sys.exit("the run ended before half of its batches were done")
    # The workers hold the network: they are the two largest of the processes that the run has started.
    victim = max(processes(run.process.pid)[1:], key=private_mib)
    os.kill(victim, signal.SIGKILL)
    run.finish()
    return f"process {victim} killed"


def killed(options, out, n_batches):
    """The whole run killed again and again, each time at a random moment between two batches or in one."""
    rng, done = np.random.default_rng(options.seed), []
    for _ in range(options.kills):
        run = Run(options, out, 0)
        enough = finished(out) + rng.integers(0, max(2, 2 * n_batches // (options.kills + 1)))
        if not run.runs_until(lambda enough=enough: finished(out) >= enough):
            break
        time.sleep(rng.uniform(0, 1))
        run.kill()
        if out.exists():  # it ended in that second
            break
        done.append(finished(out))
    if done != sorted(done):
        sys.exit(f"finished batches were lost: {done}")
    if not out.exists():
        Run(options, out, 0).finish()
    return f"killed {len(done)} times, with {done} of about {n_batches} batches done"


WAYS = {
    "2-workers": partial(by_workers, workers=2),
    "4-workers": partial(by_workers, workers=4),
    "shuffled": shuffled,
    "worker-killed": worker_killed,
    "killed": killed,
}


def main():
    """Search again and again, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--region", help="part of the image: x0,y0,x1,y1")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800, help="seconds that any one run may take")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        n_batches = Run(options, folder / "first.parquet", 0).finish()
        first = catalog.read(folder / "first.parquet")
        print(f"one process: {len(first)} rows, about {n_batches} batches", flush=True)
        for name in options.only:
            out = folder / f"{name}.parquet"
            said = WAYS[name](options, out, n_batches)
            same_rows(first, catalog.read(out), TOLERANCE)
            print(f"{name}: the same {len(first)} rows {said and f'({said})'}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
