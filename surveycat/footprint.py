"""The pixels of one object, and the outline around them.

The *footprint* of an object is the largest part of its mask (parts hang together by sides, not by corners),
holes filled, cut to the image. Every number of a row refers to it. Its outline runs along the edges of
pixels, half a pixel outside of their centres, so that the area of the polygon is the number of pixels and
its centroid theirs::

    mask [[1, 1],      outline, as x: -0.5  1.5  1.5  0.5  0.5 -0.5
          [1, 0]]               as y: -0.5 -0.5  0.5  0.5  1.5  1.5     area 3
"""

from dataclasses import dataclass

import numpy as np

from surveycat.detections import largest_part

__all__ = ["Footprint", "outline"]


@dataclass(frozen=True)
class Footprint:
    """The pixels of one object, on the grid of the level that gave its mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        One part without holes and without empty rows or columns at its border.
    y0, x0 : int
        Place of the mask's first pixel, in pixels of its level.
    level : int
        Its pixels are blocks of 2^level pixels of the image.
    shape : tuple of int
        (height, width) of the image. The last blocks of a level may reach beyond it.
    """

    mask: np.ndarray
    y0: int
    x0: int
    level: int
    shape: tuple

    @classmethod
    def from_mask(cls, mask, origin, level, shape):
        """Take the largest part of a mask, fill its holes, cut it to the image.

        Parameters
        ----------
        mask : ndarray of bool, shape (h, w)
            Mask in pixels of `level`; it may reach outside of the image.
        origin : tuple of int
            (y0, x0) of its first pixel, in pixels of `level`.
        level : int
            Level of the mask.
        shape : tuple of int
            (height, width) of the image.

        Returns
        -------
        Footprint or None
            None if no pixel of the mask lies in the image.
        """
        y0, x0, level = int(origin[0]), int(origin[1]), int(level)
        height, width = (-(-n // 2**level) for n in shape)
        mask = np.asarray(mask, bool)
        mask = mask[max(0, -y0) : max(0, height - y0), max(0, -x0) : max(0, width - x0)]
        if not mask.any():
            return None
        mask = _without_holes(largest_part(mask))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(mask, max(y0, 0) + int(rows[0]), max(x0, 0) + int(columns[0]), level, tuple(shape))

    @property
    def box(self):
        """Pixels of the image that it spans: [y0, x0, y1, x1), half-open, cut to the image."""
        block, (height, width) = 2**self.level, self.mask.shape
        y1, x1 = (self.y0 + height) * block, (self.x0 + width) * block
        return self.y0 * block, self.x0 * block, min(y1, self.shape[0]), min(x1, self.shape[1])

    @property
    def outline(self):
        """Corners (x, y) in pixels of the image: float arrays, counter-clockwise with x right and y up."""
        x, y = outline(self.mask)
        block = 2**self.level
        x = np.minimum((self.x0 + x) * block, self.shape[1]) - 0.5
        y = np.minimum((self.y0 + y) * block, self.shape[0]) - 0.5
        return x, y

    def on_grid(self, box, level):
        """Paint the footprint on a window.

        Parameters
        ----------
        box : tuple of int
            Window [y0, x0, y1, x1) in pixels of `level`; it may hold a part of the footprint, or nothing of it.
        level : int
            Level of the window. On a coarser one than the footprint's own, pixels are painted that hold any of it.

        Returns
        -------
        ndarray of bool, shape (y1 - y0, x1 - x0)
            True on the footprint.
        """
        if level > self.level:
            step = 2 ** (level - self.level)
            fine = self.on_grid(tuple(edge * step for edge in box), self.level)
            return fine.reshape(box[2] - box[0], step, box[3] - box[1], step).any(axis=(1, 3))
        block = 2 ** (self.level - level)
        grid = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
        rows, columns = np.arange(box[0], box[2]) // block - self.y0, np.arange(box[1], box[3]) // block - self.x0
        in_y, in_x = (rows >= 0) & (rows < self.mask.shape[0]), (columns >= 0) & (columns < self.mask.shape[1])
        grid[np.ix_(in_y, in_x)] = self.mask[np.ix_(rows[in_y], columns[in_x])]
        return grid


def _without_holes(mask):
    """Fill what the outside cannot reach by sides of pixels: the part then has one outline that never touches
    itself."""
    from scipy import ndimage

    labels, n_parts = ndimage.label(~_framed(mask))
    if n_parts == 1:
        return mask
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _framed(mask):
    """The mask in a frame of pixels without it, one wide: `numpy.pad` takes longer than the work on it."""
    framed = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    framed[1:-1, 1:-1] = mask
    return framed


def outline(mask):
    """Walk around a mask along the edges of its pixels.

    Every corner of the outline has an odd number of mask pixels around it. Sorted by rows, corners pair up
    to the horizontal edges, sorted by columns to the vertical ones; the walk alternates between the two.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        One part (by sides of pixels) without holes, as in a `Footprint`.

    Returns
    -------
    x, y : ndarray of int, shape (n,)
        Corners in edge coordinates: the first pixel spans 0 to 1. Straight runs have no corners in between.
        The order is counter-clockwise with x to the right and y up.
    """
    ones = _framed(mask).view(np.int8)
    y, x = np.nonzero((ones[:-1, :-1] + ones[1:, :-1] + ones[:-1, 1:] + ones[1:, 1:]) & 1)
    partners = np.arange(len(x)) ^ 1
    by_column = np.lexsort((y, x))
    beside, above = partners.tolist(), np.empty_like(partners)
    above[by_column] = by_column[partners]
    above = above.tolist()
    walk, corner = [], 0
    while True:
        walk += (corner, beside[corner])
        corner = above[beside[corner]]
        if corner == 0:
            return x[walk], y[walk]
