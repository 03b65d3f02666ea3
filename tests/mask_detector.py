"""Detectors for tests that know the truth: a list of masks, seen perfectly or imperfectly.

They answer about the box of a tile, not about its pixels: a `Tile` goes in, `Detections` in pixels of that tile
come out, clipped to it, as from a network.  `look_at` does for them what dispatch does for a network.
"""

from dataclasses import dataclass, field

import numpy as np

from surveycat.detections import Detections


def look_at(detector, tiles, grid):
    """Ask `detector` about each tile; detections in pixels of the image's levels, as the stitching wants them."""
    return Detections.concatenate([detector(tile).place([tile], grid) for tile in tiles])


def catalogue(detector, grid, found=None):
    """The whole line from tiles to objects."""
    from surveycat.stitch import confirm, second_looks, stitch

    objects = stitch(look_at(detector, grid.tiles(), grid) if found is None else found, grid)
    while looks := second_looks(objects, grid):
        objects = confirm(objects, look_at(detector, looks, grid), grid)
    return objects


def reduce_mask(mask, origin, level):
    """A mask on a coarser level: coarse pixels of which it covers at least half; mask and origin."""
    if level == 0:
        return mask, np.asarray(origin)
    step = 2**level
    low = np.asarray(origin) // step
    high = -(-(np.asarray(origin) + mask.shape) // step)
    padded = np.zeros((high - low) * step, dtype=bool)
    y, x = origin - low * step
    padded[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    rows, columns = high - low
    covered = padded.reshape(rows, step, columns, step).sum(axis=(1, 3))
    return covered * 2 >= step**2, low


@dataclass
class MaskDetector:
    """Sees every mask in every tile that holds a pixel of it, exactly.

    Parameters
    ----------
    masks : list of 2-D bool ndarray
        May overlap and nest.
    origins : (N, 2) array of int
        First row and column of each, pixels of level 0.
    scores : (N,) array
        One for each.

    Notes
    -----
    The position of a mask in the list is given out as `p_spiral`, so that a test can tell which one an object is.
    """

    masks: list
    origins: np.ndarray
    scores: np.ndarray
    _levels: dict = field(default_factory=dict, repr=False)

    def level(self, k):
        """All masks on level k, their lower and upper corners."""
        if k not in self._levels:
            pairs = [reduce_mask(m, o, k) for m, o in zip(self.masks, self.origins, strict=True)]
            low = np.array([o for _, o in pairs]).reshape(-1, 2)
            shape = np.array([m.shape for m, _ in pairs]).reshape(-1, 2)
            self._levels[k] = [m for m, _ in pairs], low, low + shape
        return self._levels[k]

    def __call__(self, tile):
        masks, low, high = self.level(tile.level)
        corner = np.array([tile.y0, tile.x0])
        near = np.flatnonzero(((low < corner + tile.size) & (high > corner)).all(axis=1))
        start = np.maximum(low[near], corner)
        stop = np.minimum(high[near], corner + tile.size)
        crops = [
            masks[i][y0 - low[i, 0] : y1 - low[i, 0], x0 - low[i, 1] : x1 - low[i, 1]]
            for i, (y0, x0), (y1, x1) in zip(near, start, stop, strict=True)
        ]
        found = Detections.from_masks(0, 0, np.zeros((len(near), 4)), self.scores[near], near, crops, start - corner)
        found = found.select(found.area > 0)
        return found.replace(box=found.mask_box)
