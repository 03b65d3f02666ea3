"""`Detections`: what was found in tiles, as columns of equal length.

A mask is kept as a crop just large enough for its pixels, its bits packed row after row into whole bytes; the
bytes of all masks lie end to end.  A million detections of galaxies take about 150 MB, they pickle small, and
most questions (area, extent, set pixels) are answered for all of them by array operations.
"""

import os
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from surveycat.errors import OutputError
from surveycat.tiles import is_cut

#: Bumped when the layout of a saved file changes; a file of another layout is refused.
FILE_VERSION = 1

_COLUMNS = {
    "tile": (np.int64, ()),
    "level": (np.int16, ()),
    "box": (np.float32, (4,)),
    "score": (np.float32, ()),
    "p_spiral": (np.float32, ()),
    "cut": (np.bool_, ()),
    "centre_distance": (np.float32, ()),
    "mask_origin": (np.int32, (2,)),
    "mask_shape": (np.int32, (2,)),
}
# Bytes of mask handled at once where a step needs an index per byte or per pixel.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found, one row per detection and tile.

    A detector answers in pixels of the tiles it was given, with ``tile`` the position in the batch and
    ``level`` 0; `place` turns that into pixels of the image's levels.  Make one with `from_masks`, `empty` or
    `load`.

    Parameters
    ----------
    tile : (N,) int64 ndarray
        Index of the tile.
    level : (N,) int16 ndarray
        Level of the tile.  All pixels below are pixels of that level, ``2**level`` image pixels wide.
    box : (N, 4) float32 ndarray
        The network's box ``y0, x0, y1, x1`` before it was clipped to the tile, half-open edge coordinates.
    score : (N,) float32 ndarray
        Probability that it is a galaxy.
    p_spiral : (N,) float32 ndarray
        Probability that it is a spiral, given that it is a galaxy.
    cut : (N,) bool ndarray
        Too near to an edge of its tile to be complete (`flag_cut`).
    centre_distance : (N,) float32 ndarray
        Distance of the box's centre from that of the tile, pixels.
    mask_origin, mask_shape : (N, 2) int32 ndarray
        First row and column of the mask's crop, and its height and width.
    bits : uint8 ndarray
        The crops, row-major, packed (`numpy.packbits`), each one filled up to whole bytes, end to end.
    offsets : (N + 1,) int64 ndarray
        Crop i is ``bits[offsets[i]:offsets[i + 1]]``.
    capped : int64 ndarray
        Sorted indices of tiles in which the detector hit a cap and so may have missed something.
    """

    tile: np.ndarray
    level: np.ndarray
    box: np.ndarray
    score: np.ndarray
    p_spiral: np.ndarray
    cut: np.ndarray
    centre_distance: np.ndarray
    mask_origin: np.ndarray
    mask_shape: np.ndarray
    bits: np.ndarray
    offsets: np.ndarray
    capped: np.ndarray

    def __post_init__(self):
        n = len(self.offsets) - 1
        for name, (dtype, shape) in _COLUMNS.items():
            column = np.asarray(getattr(self, name), dtype=dtype)
            if column.shape != (n, *shape):
                raise ValueError(f"column {name} has shape {column.shape}, expected {(n, *shape)}")
            object.__setattr__(self, name, column)
        object.__setattr__(self, "capped", np.unique(np.asarray(self.capped, dtype=np.int64)))

    def __len__(self):
        return len(self.offsets) - 1

    @classmethod
    def empty(cls, capped=()):
        """No detections; `capped` as in the class."""
        columns = {name: np.empty((0, *shape), dtype) for name, (dtype, shape) in _COLUMNS.items()}
        return cls(**columns, bits=np.empty(0, np.uint8), offsets=np.zeros(1, np.int64), capped=capped)

    @classmethod
    def from_masks(
        cls,
        tile,
        level,
        box,
        score,
        p_spiral,
        masks,
        mask_origin,
        *,
        cut=False,
        centre_distance=0.0,
        capped=(),
    ):
        """Detections from a list of masks.

        Parameters
        ----------
        tile, level, score, p_spiral, cut, centre_distance : scalar or (N,) array
            Columns as in the class; a scalar holds for all.
        box : (N, 4) array
            Boxes.
        masks : sequence of N 2-D bool arrays
            Each may have empty rows and columns at its edges: they are trimmed off.
        mask_origin : (N, 2) array
            Row and column of each mask's first pixel.
        capped : sequence of int
            Tiles that hit a cap.

        Returns
        -------
        Detections
        """
        n = len(masks)
        origin = np.asarray(mask_origin, dtype=np.int64).reshape(n, 2)
        shape = np.array([mask.shape for mask in masks], dtype=np.int64).reshape(n, 2)
        flat = np.concatenate([np.ravel(mask) for mask in masks]) if n else np.empty(0, bool)
        which, y, x = unravel(flat.astype(bool, copy=False), shape, shape.prod(axis=1))
        packed = pack(which, y + origin[which, 0], x + origin[which, 1], n)
        columns = dict(tile=tile, level=level, score=score, p_spiral=p_spiral, cut=cut)
        columns["centre_distance"] = centre_distance
        columns = {name: np.broadcast_to(values, n) for name, values in columns.items()}
        return cls(**columns, box=np.reshape(box, (n, 4)), **packed, capped=capped)

    @property
    def area(self):
        """Number of mask pixels, (N,) int64 ndarray."""
        total = np.zeros(len(self), dtype=np.int64)
        for start, stop in _block_edges(self.offsets):
            ones = np.bitwise_count(self.bits[self.offsets[start] : self.offsets[stop]])
            summed = np.concatenate([[0], np.cumsum(ones, dtype=np.int64)])
            total[start:stop] = np.diff(summed[self.offsets[start : stop + 1] - self.offsets[start]])
        return total

    @property
    def mask_box(self):
        """Extent ``y0, x0, y1, x1`` of each mask, half-open, (N, 4) int64 ndarray."""
        origin = self.mask_origin.astype(np.int64)
        return np.concatenate([origin, origin + self.mask_shape], axis=1)

    @property
    def extent(self):
        """Box and mask together, ``y0, x0, y1, x1``, half-open, (N, 4) float64 ndarray."""
        mask_box = self.mask_box
        low = np.minimum(self.box[:, :2], mask_box[:, :2])
        return np.concatenate([low, np.maximum(self.box[:, 2:], mask_box[:, 2:])], axis=1)

    @property
    def side(self):
        """Larger side of each `extent`, pixels of its level, (N,) float64 ndarray."""
        extent = self.extent
        return (extent[:, 2:] - extent[:, :2]).max(axis=1, initial=0)

    def mask(self, i):
        """Crop of detection `i`: 2-D bool ndarray with its corner at ``mask_origin[i]``."""
        h, w = (int(n) for n in self.mask_shape[i])
        bits = self.bits[self.offsets[i] : self.offsets[i + 1]]
        return np.unpackbits(bits, count=h * w).reshape(h, w).astype(bool)

    def pixels(self, index=None):
        """Coordinates of all mask pixels of some detections.

        Needs about 30 bytes for each pixel of the crops: ask for large sets piece by piece.

        Parameters
        ----------
        index : (M,) int array, optional
            Which detections; all by default.

        Returns
        -------
        which : int64 ndarray
            Position in `index` of the detection that each pixel belongs to, ascending.
        y, x : int64 ndarray
            Row and column in the image's level, row-major within a detection.
        """
        index = np.arange(len(self)) if index is None else np.asarray(index)
        sizes = np.diff(self.offsets)[index]
        flat = np.unpackbits(_gather(self.bits, self.offsets[:-1][index], sizes)).view(bool)
        which, y, x = unravel(flat, self.mask_shape[index], sizes * 8)
        origin = self.mask_origin[index]
        return which, y + origin[which, 0], x + origin[which, 1]

    def select(self, index):
        """The detections at `index` (ints, in that order, or a bool for each); `capped` is kept whole."""
        index = np.arange(len(self))[index]
        sizes = np.diff(self.offsets)[index]
        return Detections(
            **{name: getattr(self, name)[index] for name in _COLUMNS},
            bits=_gather(self.bits, self.offsets[:-1][index], sizes),
            offsets=_ends(sizes),
            capped=self.capped,
        )

    def replace(self, **columns):
        """A copy with some columns replaced."""
        return replace(self, **columns)

    @staticmethod
    def concatenate(parts):
        """All detections of a sequence of `Detections`, in that order."""
        parts = list(parts)
        if not parts:
            return Detections.empty()
        names = (*_COLUMNS, "bits", "capped")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        offsets = _ends(np.concatenate([np.diff(part.offsets) for part in parts]))
        return Detections(**joined, offsets=offsets)

    def shift(self, dy, dx, tile, level):
        """The same detections, moved, as found in `tile` on `level`.

        Parameters
        ----------
        dy, dx : int or (N,) int array
            Pixels to add to rows and columns.
        tile, level : int or (N,) int array
            New tile index and level.

        Returns
        -------
        Detections
            With `capped` unchanged.
        """
        n = len(self)
        offset = np.stack([np.broadcast_to(dy, n), np.broadcast_to(dx, n)], axis=1)
        return replace(
            self,
            tile=np.broadcast_to(tile, n),
            level=np.broadcast_to(level, n),
            box=self.box + np.tile(offset, 2).astype(np.float32),
            mask_origin=self.mask_origin + offset,
        )

    def place(self, tiles, extent):
        """A detector's answer about a batch of tiles, in pixels of the image.

        Parameters
        ----------
        tiles : sequence of Tile
            The batch: detection i was found in ``tiles[self.tile[i]]``.
        extent : object with a method ``level_shape(level)``
            The image or the grid.

        Returns
        -------
        Detections
            With tile indices, levels, `cut` and `centre_distance` filled in.
        """
        if not tiles:
            return self
        geometry = np.array([[t.index, t.level, t.y0, t.x0, t.size] for t in tiles], dtype=np.int64)
        index, level, y0, x0, _ = geometry[self.tile].T
        moved = self.shift(y0, x0, np.arange(len(tiles))[self.tile], level)
        found = flag_cut(moved, tiles, extent)
        return replace(found, tile=index, capped=geometry[self.capped, 0])

    def save(self, path):
        """Write to a ``.npz`` file that appears whole or not at all.

        Parameters
        ----------
        path : str or Path
            The file; an existing one is replaced.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        try:
            with open(beside, "wb") as file:
                np.savez(file, version=FILE_VERSION, **columns)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            reason = error.strerror or error
            raise OutputError(f"cannot write {path}: {reason}; make room or choose another place") from error

    @classmethod
    def load(cls, path):
        """Read a file that `save` wrote; every byte is verified by its checksum.

        Parameters
        ----------
        path : str or Path
            The file.

        Returns
        -------
        Detections

        Raises
        ------
        OutputError
            If it is missing, damaged or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            version = int(columns.pop("version"))
            if version != FILE_VERSION:
                raise OutputError(f"{path} has layout {version}, not {FILE_VERSION}: remove it and run again")
            found = cls(**columns)
            if found.offsets[0] != 0 or found.offsets[-1] != len(found.bits):
                raise ValueError("its masks are incomplete")
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise OutputError(f"{path} cannot be read ({error}): remove it and run again") from error
        return found


def flag_cut(found, tiles, extent):
    """Fill in `cut` and `centre_distance` (rule 1 of the seam rule).

    A detection is cut if its box before clipping, or its mask, comes nearer than `tiles.margin` to an edge of
    its tile that is not an edge of the image.

    Parameters
    ----------
    found : Detections
        In pixels of the levels, with ``tile`` the position in `tiles`.
    tiles : sequence of Tile
        The tiles they were found in.
    extent : object with a method ``level_shape(level)``
        The image or the grid.

    Returns
    -------
    Detections
    """
    if not len(found):
        return found
    seen_in = np.array([t.box for t in tiles], dtype=np.int64)[found.tile]
    shapes = np.array([extent.level_shape(t.level) for t in tiles], dtype=np.int64)[found.tile]
    centre = (found.box[:, :2] + found.box[:, 2:]) / 2
    away = centre - (seen_in[:, :2] + seen_in[:, 2:]) / 2
    return replace(found, cut=is_cut(found.extent, seen_in, shapes), centre_distance=np.hypot(*away.T))


def largest_part(mask):
    """Keep the largest part of a mask; pixels that touch by a corner only do not hang together.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        A mask, with at least one pixel.

    Returns
    -------
    ndarray of bool, shape (h, w)
        The first of several parts that are the largest; the mask itself if it is in one piece.
    """
    from scipy import ndimage

    labels, n_parts = ndimage.label(mask)
    if n_parts == 1:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def pack(which, y, x, n):
    """Bit-packed crops from pixel coordinates.

    Parameters
    ----------
    which : (P,) int array
        Which of the `n` masks each pixel belongs to; ascending.
    y, x : (P,) int array
        Rows and columns, each pixel at most once.
    n : int
        Number of masks; one without pixels gets an empty crop.

    Returns
    -------
    dict
        The columns ``mask_origin``, ``mask_shape``, ``bits`` and ``offsets`` of `Detections`.
    """
    origin, shape = np.zeros((n, 2), np.int64), np.zeros((n, 2), np.int64)
    if len(which):
        first = np.flatnonzero(np.diff(which, prepend=-1))
        present = which[first]
        for axis, values in enumerate((y, x)):
            origin[present, axis] = np.minimum.reduceat(values, first)
            shape[present, axis] = np.maximum.reduceat(values, first) + 1 - origin[present, axis]
    offsets = _ends(-(-shape.prod(axis=1) // 8))
    flat = np.zeros(offsets[-1] * 8, dtype=bool)
    flat[offsets[which] * 8 + (y - origin[which, 0]) * shape[which, 1] + x - origin[which, 1]] = True
    return dict(mask_origin=origin, mask_shape=shape, bits=np.packbits(flat), offsets=offsets)


def unravel(flat, shape, sizes):
    """Rows and columns of the True values of flattened crops that lie end to end, `sizes` values each."""
    starts = _ends(sizes)
    at = np.flatnonzero(flat)
    which = np.repeat(np.arange(len(sizes)), np.diff(np.searchsorted(at, starts)))
    y, x = np.divmod(at - starts[which], np.asarray(shape, dtype=np.int64)[which, 1])
    return which, y, x


def _ends(sizes):
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _gather(values, starts, sizes):
    """``values[start:start + size]`` for each start and size, end to end."""
    offsets = _ends(sizes)
    out = np.empty(offsets[-1], dtype=values.dtype)
    for first, last in _block_edges(offsets):
        low, high = offsets[first], offsets[last]
        jump = np.repeat(starts[first:last] - offsets[first:last], sizes[first:last])
        out[low:high] = values[jump + np.arange(low, high)]
    return out


def _block_edges(offsets):
    """Consecutive ranges of items with about `_BLOCK` values each (one item may be larger)."""
    n = len(offsets) - 1
    first = 0
    while first < n:
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), n)
        yield first, last
        first = last
