"""Stitch a million detections, crowded and scattered: seconds and peak memory.

    python tests/benchmarks/stitch_million.py [--detections 1000000]

Galaxies (ellipses of 4 to 56 px, every hundredth one up to 400 px) are strewn over an image; each is seen in every
tile of its home level and the next that holds a pixel of it, 3 % of the time not, with 6 % of noise in the size
of its mask.  Scattered: 32768 x 32768 px, about 26 detections in a tile; crowded: 6336 x 6336, about 700.  Each
runs in a process of its own; the peak counts everything in it, the million detections (about 130 MB) and the
libraries included.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from surveycat.detections import Detections
from surveycat.stitch import second_looks, stitch
from surveycat.tiles import TileGrid, is_cut

IMAGE_SIDES = {"scattered": 32768, "crowded": 6336}
N_SIDES, N_SHAPES = 60, 40


def templates(rng):
    """Ellipses of N_SIDES sizes and N_SHAPES shapes, size by size; centres at the middle of their crops."""
    masks = []
    for side in np.geomspace(3, 62, N_SIDES):
        for _ in range(N_SHAPES):
            angle, ratio = rng.uniform(0, np.pi), rng.uniform(0.3, 1)
            y, x = np.mgrid[-32:33, -32:33]
            u, v = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
            masks.append(np.hypot(u, v / ratio) <= side / 2)
    n = len(masks)
    return Detections.from_masks(0, 0, np.zeros((n, 4)), 1, 0.5, masks, np.full((n, 2), -32))


def sightings(rng, grid, n):
    """Which galaxy is seen in which tile: centre and side in pixels of the tile's level, tile, level, galaxy."""
    large = rng.random(n) < 0.01
    side = np.exp(rng.uniform(np.log(4), np.log(np.where(large, 400, 56))))
    centre = rng.random((n, 2)) * grid.shape
    parts, first = [], 0
    for level in range(grid.n_levels):
        rows, columns = grid.origins(level)
        near = np.isin(level - grid.home_level(side), [0, 1]) & (side / 2**level >= 4)
        who = np.flatnonzero(near)
        at, half = centre[who] / 2**level, side[who] / 2 ** (level + 1)
        low = [np.searchsorted(o + grid.size, at[:, k] - half) for k, o in enumerate((rows, columns))]
        high = [np.searchsorted(o, at[:, k] + half) for k, o in enumerate((rows, columns))]
        for dy in range(3):
            for dx in range(3):
                row, column = low[0] + dy, low[1] + dx
                seen = (row < high[0]) & (column < high[1]) & (rng.random(len(who)) > 0.03)
                tile = first + row[seen] * len(columns) + column[seen]
                parts.append((who[seen], tile, np.full(seen.sum(), level), at[seen], side[who[seen]] / 2**level))
        first += len(rows) * len(columns)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def make(image_side, n_detections, seed=0):
    """`n_detections` detections in tiles of a square image, in random order, and the grid."""
    rng = np.random.default_rng(seed)
    grid = TileGrid((image_side, image_side))
    # A galaxy is seen about 2.2 times; what is too many is left out.
    who, tile, level, at, side = sightings(rng, grid, n_detections)
    galaxies = who.max() + 1
    wanted = who < galaxies * n_detections / len(who)
    keep = rng.permutation(np.flatnonzero(wanted))
    who, tile, level, at, side = (column[keep] for column in (who, tile, level, at, side))
    noisy = side * np.exp(rng.normal(0, 0.06, len(side)))
    size = np.clip(np.rint(np.log(noisy / 3) / np.log(62 / 3) * (N_SIDES - 1)), 0, N_SIDES - 1).astype(int)
    shape = np.random.default_rng(1).integers(0, N_SHAPES, galaxies)[who]
    y, x = np.rint(at).astype(int).T
    found = templates(rng).select(size * N_SHAPES + shape).shift(y, x, tile, level)
    box = found.mask_box
    tile_box = grid.boxes(tile)
    shapes = np.array([grid.level_shape(k) for k in range(grid.n_levels)])[level]
    away = (box[:, :2] + box[:, 2:] - tile_box[:, :2] - tile_box[:, 2:]) / 2
    score = rng.random(len(found))
    return found.replace(
        box=box, score=score, cut=is_cut(box, tile_box, shapes), centre_distance=np.hypot(*away.T)
    ), grid


def measure(name, n_detections):
    """One row of the table, in this process."""
    found, grid = make(IMAGE_SIDES[name], n_detections)
    before = peak()
    start, cpu = time.perf_counter(), time.process_time()
    objects = stitch(found, grid)
    looks = second_looks(objects, grid)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{name:10} {len(found):9,d} detections in {len(grid):6,d} tiles -> {len(objects):8,d} objects, "
        f"{len(looks):6,d} second looks: {seconds:5.1f} s ({cpu:.1f} s of CPU), "
        f"peak {peak():5.0f} MiB (before: {before:.0f} MiB)",
        flush=True,
    )


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detections", type=int, default=1_000_000)
    parser.add_argument("--only", choices=IMAGE_SIDES)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.detections)
    else:
        for name in IMAGE_SIDES:
            command = [sys.executable, __file__, "--only", name, "--detections", str(options.detections)]
            subprocess.run(command, check=True)
