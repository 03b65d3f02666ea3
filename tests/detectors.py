"""Detectors that stand in for the network where only what surrounds it is tested. They pickle."""

import os
import time

import numpy as np
from scipy import ndimage

from surveycat.detections import Detections

BAD = (255, 0, 255)  # a colour that some of them cannot stand


class BlobDetector:
    """Finds everything brighter than a threshold; what is bluer than red is a spiral.

    Parameters
    ----------
    threshold : float
        Grey level.
    min_area : int
        Least number of pixels.
    smooth : float
        Sigma of a Gaussian filter, applied first.
    most : int
        A tile with more blobs than this hits the cap: the surplus is dropped.
    """

    batch_size = 4

    def __init__(self, threshold=40, min_area=12, smooth=0.0, most=1000):
        self.threshold, self.min_area, self.smooth, self.most = threshold, min_area, smooth, most

    def __call__(self, pixels, min_score):
        parts = [self._in_tile(number, tile) for number, tile in enumerate(pixels)]
        return Detections.concatenate(parts)

    def _in_tile(self, number, tile):
        colour = ndimage.gaussian_filter(tile.astype(np.float32), (self.smooth, self.smooth, 0))
        labels, _ = ndimage.label(colour.mean(axis=2) > self.threshold)
        blobs = [(n, where) for n, where in enumerate(ndimage.find_objects(labels), 1)]
        masks = [(labels[where] == n, where) for n, where in blobs]
        masks = [(mask, where) for mask, where in masks if mask.sum() >= self.min_area]
        capped, masks = len(masks) > self.most, masks[: self.most]
        means = np.array([tile[where][mask].mean(axis=0) for mask, where in masks]).reshape(-1, 3)
        return Detections.from_masks(
            tile=number,
            level=0,
            box=[[y.start, x.start, y.stop, x.stop] for _, (y, x) in masks],
            score=0.9,
            p_spiral=np.where(means[:, 2] > means[:, 0], 0.8, 0.2),
            masks=[mask for mask, _ in masks],
            mask_origin=[[y.start, x.start] for _, (y, x) in masks],
            capped=[number] if capped else [],
        )


class Spec:
    """Says how to load a detector, as `DetectorSpec` does."""

    def load(self):
        """Give the detector."""
        return BlobDetector()


class Choking(BlobDetector):
    """Raises on a tile that shows the bad colour."""

    def __call__(self, pixels, min_score):
        if (pixels == BAD).all(axis=-1).any():
            self.choke()
        return super().__call__(pixels, min_score)

    def choke(self):
        """Fail as a network does."""
        raise ValueError("cannot stand this colour")


class Dying(Choking):
    """Takes its process with it on the bad colour."""

    def choke(self):
        """End the process at once, as one that is killed for its memory."""
        os._exit(1)


class Hanging(Choking):
    """Never comes back from the bad colour."""

    def choke(self):
        """Sleep longer than any test waits."""
        time.sleep(3600)
