"""Match a million positions with a million others, beside astropy's match_to_catalog_sky: seconds and peak memory.

    python tests/benchmarks/match_million.py [--rows 1000000] [--radius 2]

Positions lie all over the sky, or crowded in 10 x 10 degrees (10,000 in a square degree); 80 % of the second list are
those of the first, moved by 0.3 arcsec rms.  `pairs` is our search with its choice of one partner each, `match` the
whole of `surveycat match` from one Parquet file to another, and `astropy` its search for the nearest neighbour, which
chooses nothing.  Each runs in a process of its own; the peak counts everything in it, the libraries included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = ("pairs", "match", "astropy")


def positions(n, crowded, seed=0):
    """Two lists of (ra, dec) in degrees."""
    rng = np.random.default_rng(seed)
    ra = 180 + rng.uniform(-5, 5, n) if crowded else rng.uniform(0, 360, n)
    dec = rng.uniform(-5, 5, n) if crowded else np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    common = rng.random(n) < 0.8
    moved = rng.normal(0, 0.3 / 3600, (2, n))
    other_ra = np.where(common, ra + moved[0] / np.maximum(np.cos(np.radians(dec)), 1e-3), rng.permutation(ra))
    other_dec = np.where(common, np.clip(dec + moved[1], -90, 90), rng.permutation(dec))
    order = rng.permutation(n)
    return (ra, dec), (other_ra[order] % 360, other_dec[order])


def by_pairs(here, there, radius):
    from surveycat.pairs import find_pairs, one_to_one

    return len(one_to_one(find_pairs(*here, *there, radius)))


def by_astropy(here, there, radius):
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    here, there = (SkyCoord(*each, unit="deg") for each in (here, there))
    _, apart, _ = here.match_to_catalog_sky(there)
    return int((apart <= radius * u.arcsec).sum())


def by_match(here, there, radius):
    import surveycat

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.parquet" for name in ("a", "b", "m")]
        for path, (ra, dec) in zip(paths, (here, there), strict=False):
            write(path, ra, dec)
        start = time.perf_counter()
        result = surveycat.match(*paths, radius=radius)
        print(f"    (without making the inputs: {time.perf_counter() - start:.1f} s)")
        return result.meta["match"]["n_matched"]


def write(path, ra, dec):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"objid": np.arange(len(ra)), "ra": ra, "dec": dec}), path)


def measure(way, crowded, rows, radius):
    """One row of the table, in this process."""
    here, there = positions(rows, crowded)
    start = time.perf_counter()
    found = {"pairs": by_pairs, "match": by_match, "astropy": by_astropy}[way](here, there, radius)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    busy = resource.getrusage(resource.RUSAGE_SELF)
    where = "crowded" if crowded else "all sky"
    print(
        f"{way:8} {where:8} {rows:,} x {rows:,}: {found:8,d} partners, {seconds:5.1f} s "
        f"({busy.ru_utime + busy.ru_stime:.1f} s of processor time), peak {peak:5.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--radius", type=float, default=2.0)
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--crowded", action="store_true")
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.crowded, options.rows, options.radius)
    else:
        for crowded in ([], ["--crowded"]):
            for way in WAYS:
                size = ["--rows", str(options.rows), "--radius", str(options.radius)]
                subprocess.run([sys.executable, __file__, "--only", way, *crowded, *size], check=True)
