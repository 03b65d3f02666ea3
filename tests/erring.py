"""Scenes of galaxies with companions and false knots, and a detector that errs: what the seam rule has to live with.

Scenes hold ellipses of 10 to 1000 px, companions on the larger ones, and false knots that only the finest level
sees.  The detector misses 3 % in each tile, is 6 % off in the size of each mask, and unsteady at tile borders: of
what reaches past the tile it shows a piece only half of the time, and a piece of under a fifth never.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from mask_detector import catalogue
from masks import ellipse

from surveycat.detections import Detections
from surveycat.tiles import TileGrid

MISSED, SIZE_NOISE, PIECE_SHOWN, LEAST_PIECE, LEAST_SIDE = 0.03, 0.06, 0.5, 0.2, 6
KNOT_SEEN = 0.6


def paint(rng, side):
    """Galaxies that do not overlap, companions and knots on them: ``kind, y, x, side, ratio, angle`` each."""
    hosts = []
    for _ in range(60 * side**2 // 2048**2 + 10):
        size = np.exp(rng.uniform(np.log(10), np.log(min(1000, 0.5 * side))))
        y, x = rng.uniform(size / 2, side - size / 2, 2)
        if all(np.hypot(y - h[1], x - h[2]) > 0.55 * (size + h[3]) for h in hosts):
            kind = "small" if size <= 56 else "middle" if size <= 192 else "large"
            hosts.append((kind, y, x, size, rng.uniform(0.6, 1), rng.uniform(0, np.pi)))
    inner = []
    for _, y, x, size, *_ in [h for h in hosts if h[3] > 112]:
        for kind, chance, share in (("companion", 0.6, 0.18), ("knot", 0.6, 0.06)):
            if rng.random() < chance:
                turn, away = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.12, 0.25)
                small = np.clip(size * share * rng.uniform(0.7, 1.3), 9, 100)
                at = y + away * np.sin(turn), x + away * np.cos(turn)
                inner.append((kind, *at, small, rng.uniform(0.6, 1), rng.uniform(0, np.pi)))
    return hosts + inner


@dataclass
class ErringDetector:
    """See the module; knots are seen on level 0 alone, and there 60 % of the time."""

    galaxies: list
    rng: np.random.Generator

    def __call__(self, tile):
        scale = 2**tile.level
        masks, origins, who = [], [], []
        for k, (kind, y, x, side, ratio, angle) in enumerate(self.galaxies):
            at = np.array([y, x]) / scale - [tile.y0, tile.x0]
            size = side / scale
            outside = np.any(at + size / 2 < 0) or np.any(at - size / 2 > tile.size)
            if outside or size < LEAST_SIDE or not self.seen(kind, tile):
                continue
            whole = ellipse(size * np.exp(self.rng.normal(0, SIZE_NOISE)), ratio, angle)
            corner = np.rint(at).astype(int) - np.array(whole.shape) // 2
            low = np.clip(-corner, 0, whole.shape)
            high = np.clip(tile.size - corner, 0, whole.shape)
            part = whole[low[0] : high[0], low[1] : high[1]]
            share = part.sum() / whole.sum()
            if share == 1 or (share > LEAST_PIECE and self.rng.random() < PIECE_SHOWN):
                masks.append(part)
                origins.append(corner + low)
                who.append(k)
        n = len(masks)
        found = Detections.from_masks(0, 0, np.zeros((n, 4)), self.rng.uniform(0.5, 1, n), who, masks, origins)
        return found.replace(box=found.mask_box)

    def seen(self, kind, tile):
        """Whether it is noticed in this tile."""
        if kind == "knot":
            return tile.level == 0 and self.rng.random() < KNOT_SEEN
        return self.rng.random() > MISSED


def simulate(scenes, side, seed):
    """Counts over some scenes: all, lost and doubled of each kind, and the knots that were kept."""
    total = Counter()
    for scene in range(scenes):
        rng = np.random.default_rng([seed, scene])
        galaxies = paint(rng, side)
        objects = catalogue(ErringDetector(galaxies, rng), TileGrid((side, side)))
        rows = np.bincount(np.rint(objects.detections.p_spiral).astype(int), minlength=len(galaxies))
        for (kind, *_), n in zip(galaxies, rows.tolist(), strict=True):
            total[kind] += 1
            total["doubled"] += n > 1
            total[f"{kind} kept"] += n > 0
            total[f"{kind} lost"] += n == 0
    return total
