"""A small artificial survey for tests of bulk runs: a list, its cutouts as files, and what is in them."""

import csv
import multiprocessing
import sys

import numpy as np
import pyarrow.dataset
from detectors import BlobDetector
from skyserver_loopback import Loopback, Sky, jpeg

from surveycat.skyserver import SCALE

QUICK = {"backoff": 0.01, "rate": 1000, "attempts": 4, "timeout": 10}
FIRST = 1237648702966464577  # an id that floating point cannot hold


class Spec:
    """Says how to load a detector for workers."""

    batch_size = 4

    def load(self):
        """Give the detector."""
        return BlobDetector(threshold=60)


def survey(n, seed=0):
    """Give n targets (id, ra, dec) in a patch of sky, some near each other, and the sky that they are in."""
    rng = np.random.default_rng(seed)
    ra, dec = 180.0 + rng.uniform(0, 3, n), 5.0 + rng.uniform(0, 3, n)
    ra[1::5] = ra[::5][: len(ra[1::5])] + 0.006  # within the cutout of the one before
    dec[1::5] = dec[::5][: len(dec[1::5])]
    galaxies = [[a, d, rng.uniform(1.2, 2.5), rng.uniform(120, 220)] for a, d in zip(ra, dec, strict=True)]
    galaxies[2::7] = [[a, d + 0.004, s, b] for a, d, s, b in galaxies[2::7]]  # none on these targets
    return list(zip(range(FIRST, FIRST + n), ra.round(7), dec.round(7), strict=True)), Sky(galaxies)


def write_list(path, targets, **columns):
    """Write a list as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dr7objid", "ra", "dec", *columns])
        writer.writerows(zip(*zip(*targets, strict=True), *columns.values(), strict=True))
    return path


def write_cutouts(folder, targets, sky, size=256, scale=SCALE):
    """Write the cutouts of targets as files."""
    folder.mkdir(exist_ok=True)
    for name, ra, dec in targets:
        (folder / f"{name}.jpg").write_bytes(jpeg(sky.picture(ra, dec, scale, size, size)))
    return folder


def rows_of(out):
    """Give all rows of a dataset, in order of their ids."""
    table = pyarrow.dataset.dataset(out / "dataset", format="parquet").to_table()
    return table.sort_by("id")


def same_datasets(first, second):
    """Assert that two datasets hold the same rows, outcomes and partitions."""
    one, two = rows_of(first), rows_of(second)
    assert one.schema.equals(two.schema)
    for column in one.column_names:
        if pyarrow.types.is_floating(one[column].type):
            assert np.array_equal(one[column], two[column], equal_nan=True), column
        else:
            assert one[column].equals(two[column]), column
    for name in ("targets", "unmatched", "failures"):
        one, two = (pyarrow.dataset.dataset(out / f"{name}.parquet").to_table() for out in (first, second))
        key = "id" if name != "failures" else "row"
        columns = [column for column in one.column_names if column not in ("attempts", "reason")]
        assert one.select(columns).sort_by(key).equals(two.select(columns).sort_by(key)), name
    one, two = (sorted(path.relative_to(out) for path in out.glob("dataset/**/*")) for out in (first, second))
    assert one == two


def _bulk_in_a_process(listed, url, out, keep):
    from surveycat.bulk import bulk

    sys.modules["surveycat.bulk"].PART = 3
    service = {**QUICK, "base_url": url, "attempts": 8}
    bulk(listed, "skyserver", out, keep=keep, service=service, resume=True, detector=BlobDetector(threshold=60))


def killed_again_and_again(listed, sky, out, kills, keep=(), seed=3):
    """Run in processes of which all but the last are killed by SIGKILL, at a random number of requests.

    One request in ten fails, in one way or another.
    """
    random = np.random.default_rng(seed)

    def manners(kind, number, parameters):
        return random.choice(["busy-503", "refuse", "cut", "html-200"]) if random.random() < 0.1 else None

    context = multiprocessing.get_context("spawn")
    with Loopback(sky, manners) as server:
        for left in range(kills, -1, -1):
            process = context.Process(target=_bulk_in_a_process, args=(listed, server.url, out, list(keep)))
            wanted = len(server.requests) + int(random.integers(1, 9))
            process.start()
            while left and process.is_alive() and len(server.requests) < wanted:
                process.join(0.01)
            if left:
                process.kill()
            process.join(300)
        assert process.exitcode == 0
        return len(server.requests)
