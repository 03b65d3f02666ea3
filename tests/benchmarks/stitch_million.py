"""Stitch a million detections, crowded and scattered, second looks and all: seconds and peak memory.

    python tests/benchmarks/stitch_million.py [--detections 1000000]

Galaxies (ellipses of 4 to 56 px, every hundredth one up to 400 px) are strewn over an image; each is seen in every
tile of its home level and the next that holds a pixel of it, 3 % of the time not, with 6 % of noise in the size
of its mask.  Scattered: 32768 x 32768 px, about 26 detections in a tile; crowded: 6336 x 6336, about 700.  A second
look shows the 48 galaxies nearest to its middle, as many as the network gives.  Each runs in a process of its own; the
peak counts everything in it, the million detections (about 130 MB), those of the looks and the libraries included.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
from scipy.spatial import cKDTree

from surveycat.detections import Detections
from surveycat.stitch import confirm, second_looks, stitch
from surveycat.tiles import TileGrid, is_cut

IMAGE_SIDES = {"scattered": 32768, "crowded": 6336}
N_SIDES, N_SHAPES = 60, 40
MISSED, SIZE_NOISE, IN_A_LOOK, LEAST_SIDE = 0.03, 0.06, 48, 4


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


class Sky:
    """Galaxies strewn over a square image, and what a detector says of them.

    Parameters
    ----------
    image_side : int
        Pixels.
    n : int
        Number of galaxies.
    seed : int, optional
        Of everything that is random.
    """

    def __init__(self, image_side, n, seed=0):
        self.rng = np.random.default_rng(seed)
        self.grid = TileGrid((image_side, image_side))
        large = self.rng.random(n) < 0.01
        self.side = np.exp(self.rng.uniform(np.log(4), np.log(np.where(large, 400, 56))))
        self.centre = self.rng.random((n, 2)) * self.grid.shape
        self.shape = self.rng.integers(0, N_SHAPES, n)
        self.templates = templates(self.rng)

    def in_grid(self):
        """Which galaxy is seen in which tile of the grid: galaxy, tile, level."""
        parts, first = [], 0
        for level in range(self.grid.n_levels):
            rows, columns = self.grid.origins(level)
            near = np.isin(level - self.grid.home_level(self.side), [0, 1])
            who = np.flatnonzero(near & (self.side / 2**level >= LEAST_SIDE))
            at, half = self.centre[who] / 2**level, self.side[who] / 2 ** (level + 1)
            low = [np.searchsorted(o + self.grid.size, at[:, k] - half) for k, o in enumerate((rows, columns))]
            high = [np.searchsorted(o, at[:, k] + half) for k, o in enumerate((rows, columns))]
            for dy in range(3):
                for dx in range(3):
                    row, column = low[0] + dy, low[1] + dx
                    seen = (row < high[0]) & (column < high[1]) & (self.rng.random(len(who)) > MISSED)
                    tile = first + row[seen] * len(columns) + column[seen]
                    parts.append((who[seen], tile, np.full(seen.sum(), level)))
            first += len(rows) * len(columns)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def detections(self, n):
        """About `n` detections in tiles of the grid, in random order."""
        who, tile, level = self.in_grid()
        # A galaxy is seen about 2.2 times; what is too many is left out.
        wanted = who < len(self.side) * n / len(who)
        keep = self.rng.permutation(np.flatnonzero(wanted))
        return self.seen(who[keep], tile[keep], level[keep], self.grid.boxes(tile[keep]))

    def looks(self, tiles):
        """What is seen in second looks."""
        levels = np.array([tile.level for tile in tiles])
        boxes, index = np.array([tile.box for tile in tiles]), np.array([tile.index for tile in tiles])
        parts = []
        for level in np.unique(levels):
            who = np.flatnonzero(self.side / 2.0**level >= LEAST_SIDE)
            chosen = np.flatnonzero(levels == level)
            middle = (boxes[chosen, :2] + boxes[chosen, 2:]) / 2
            tree, reach = cKDTree(self.centre[who] / 2.0**level), self.grid.size / 2
            _, near = tree.query(middle, k=IN_A_LOOK, p=np.inf, distance_upper_bound=reach)
            which, slot = np.nonzero(near < len(who))
            kept = self.rng.random(len(which)) > MISSED
            parts.append((who[near[which[kept], slot[kept]]], chosen[which[kept]]))
        who, tile = (np.concatenate(column) for column in zip(*parts, strict=True))
        return self.seen(who, index[tile], levels[tile], boxes[tile])

    def seen(self, who, tile, level, tile_box):
        """Detections of galaxies in tiles, with noise in their size."""
        noisy = self.side[who] / 2.0**level * np.exp(self.rng.normal(0, SIZE_NOISE, len(who)))
        size = np.clip(np.rint(np.log(noisy / 3) / np.log(62 / 3) * (N_SIDES - 1)), 0, N_SIDES - 1).astype(int)
        y, x = np.rint(self.centre[who] / 2.0 ** level[:, None]).astype(int).T
        found = self.templates.select(size * N_SHAPES + self.shape[who]).shift(y, x, tile, level)
        box = found.mask_box
        shapes = np.array([self.grid.level_shape(k) for k in range(self.grid.n_levels)])[level]
        away = (box[:, :2] + box[:, 2:] - tile_box[:, :2] - tile_box[:, 2:]) / 2
        columns = dict(score=self.rng.random(len(found)), cut=is_cut(box, tile_box, shapes))
        return found.replace(box=box, centre_distance=np.hypot(*away.T), **columns)


class Watch:
    """Seconds, and seconds of CPU, spent in calls."""

    def __init__(self):
        self.seconds, self.cpu = 0.0, 0.0

    def __call__(self, function, *arguments):
        """Call a function and add the time it takes."""
        start, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments)
        self.seconds += time.perf_counter() - start
        self.cpu += time.process_time() - cpu
        return result

    def __str__(self):
        return f"{self.seconds:.1f} s ({self.cpu:.1f} s of CPU)"


def measure(name, n_detections):
    """One row of the table, in this process."""
    sky = Sky(IMAGE_SIDES[name], n_detections)
    found = sky.detections(n_detections)
    before = peak()
    stitching, confirming = Watch(), Watch()
    objects = stitching(stitch, found, sky.grid)
    n_tiles = n_looks = n_rounds = 0
    while tiles := confirming(second_looks, objects, sky.grid):
        looks = sky.looks(tiles)
        objects = confirming(confirm, objects, looks, sky.grid)
        n_tiles, n_looks, n_rounds = n_tiles + len(tiles), n_looks + len(looks), n_rounds + 1
    print(
        f"{name:10}{len(found):,} detections in {len(sky.grid):,} tiles: stitch {stitching}; "
        f"{n_looks:,} detections in {n_tiles:,} second looks, {n_rounds} rounds: confirm {confirming}; "
        f"{len(objects):,} objects; peak {peak():.0f} MiB (before: {before:.0f} MiB)",
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
