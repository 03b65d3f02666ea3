"""Where the tiles are: pure integer geometry, no pixels.

The image is cut into square tiles that overlap, on a ladder of levels: level k is the image block-averaged by
``2**k``, up to the first level that fits into one tile.  The promise on which the stitching rests:

    every object whose larger side, in pixels of the level, is at most `TileGrid.reach` lies in at least one
    tile of that level with `margin` to spare on every side that is not a side of the image.

So an object that small is never glued together from pieces: one tile shows all of it.  A larger object is
that small on a coarser level.  Each size has exactly one *home* level:

    level 0               larger side at most ``reach``                          (56 px for tiles 256/64)
    level k, 0 < k < top  more than ``reach / 2``, at most ``reach``, in its own pixels
    top level             everything larger
"""

from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import numpy as np

from surveycat.errors import OptionError

#: Least distance, in pixels, between an object and a tile edge for the object to count as whole.
MARGIN = 4
#: The same as a share of the object's larger side: what is large needs more room.
MARGIN_SHARE = 1 / 14
#: A second look shows its object in at most this share of the tile's side.
LOOK_SHARE = 0.75
#: Share of a tile's side, and of its overlap with the next, of the windows a capped tile is run again as.
WINDOW_SIZE, WINDOW_OVERLAP = 160 / 256, 64 / 256

_SMALLEST_OVERLAP = 4 * MARGIN


@dataclass(frozen=True)
class Tile:
    """A square window on one level of the image.

    Parameters
    ----------
    index : int
        Its number: 0 to N - 1 for the tiles of the grid, N and more for second looks, negative for the
        windows of a capped tile (see `sub_windows`).
    level : int
        Level it lies on.
    y0, x0 : int
        First row and column, pixels of the level.  May be negative, and the tile may reach past the image.
    size : int
        Side in pixels of the level.
    """

    index: int
    level: int
    y0: int
    x0: int
    size: int

    @property
    def box(self):
        """``(y0, x0, y1, x1)``, half-open, pixels of the level."""
        return self.y0, self.x0, self.y0 + self.size, self.x0 + self.size

    def padded(self, size):
        """The tile of side `size` with this one in its middle, under the same index.

        This is what a network of a fixed input size is shown for a smaller window: real pixels all round.
        """
        grow = (size - self.size) // 2
        return Tile(self.index, self.level, self.y0 - grow, self.x0 - grow, size)


def sub_windows(tile):
    """The four overlapping windows as which a tile that hit a cap is run again.

    For a tile of 256 px they are 160 px wide and overlap by 64 px, so that what is at home on the level is
    whole in at least one of them, as in the grid itself.  To the stitching they are tiles like any other.
    What the tile itself showed before it hit the cap stays valid beside them, for an object larger than a
    window is whole only there.

    Parameters
    ----------
    tile : Tile
        A tile of the grid or a second look.

    Returns
    -------
    list of Tile
        Four tiles on the same level, row by row.  Their indices are negative and tell the parent
        (`parent_index`).
    """
    size = round(tile.size * WINDOW_SIZE)
    corners = (0, tile.size - size)
    origins = [(tile.y0 + dy, tile.x0 + dx) for dy in corners for dx in corners]
    return [Tile(-(4 * tile.index + i + 1), tile.level, y0, x0, size) for i, (y0, x0) in enumerate(origins)]


def parent_index(index):
    """Index of the tile that `index` is a window of; a tile that is no such window is its own parent.

    Parameters
    ----------
    index : int or int ndarray
        Tile indices, negative for windows.

    Returns
    -------
    int64 ndarray
        Indices of whole tiles, same shape.
    """
    index = np.asarray(index, dtype=np.int64)
    return np.where(index < 0, (-index - 1) // 4, index)


def margin(side):
    """Distance from a tile edge below which an object of larger side `side` counts as cut (rule 1).

    Parameters
    ----------
    side : float or ndarray
        Larger side in pixels of the level.

    Returns
    -------
    float ndarray
        ``max(4, side / 14)``, pixels of the level.
    """
    return np.maximum(MARGIN, np.asarray(side, dtype=float) * MARGIN_SHARE)


def is_cut(box, tile_box, level_shape):
    """Which boxes come too near to an edge of their tile (rule 1).

    An edge of the tile that lies on, or beyond, an edge of the image cuts nothing.

    Parameters
    ----------
    box : (N, 4) array
        ``y0, x0, y1, x1``, half-open, pixels of the level.
    tile_box : (N, 4) or (4,) array
        The tile each box was seen in, same units.
    level_shape : (N, 2) or (2,) array
        Rows and columns of the level.

    Returns
    -------
    bool ndarray, shape (N,)
    """
    box, tile_box = np.asarray(box, dtype=float), np.asarray(tile_box)
    low, high = box[:, :2], box[:, 2:]
    tile_low, tile_high = tile_box[..., :2], tile_box[..., 2:]
    room = margin((high - low).max(axis=1, initial=0))[:, None]
    near_low = (tile_low > 0) & (low - tile_low < room)
    near_high = (tile_high < np.asarray(level_shape)) & (tile_high - high < room)
    return (near_low | near_high).any(axis=1)


@dataclass(frozen=True)
class TileGrid:
    """All tiles of an image, level by level.

    Neighbours on a level overlap by `overlap` pixels, or more: the last tile of a row or column is shifted
    inward, to end with the image.  A level smaller than a tile is one tile at (0, 0), which then reaches past
    the image.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the image.
    size : int
        Side of a tile in pixels.
    overlap : int
        Least overlap of neighbours in pixels, at least 16 and less than `size`.
    shift : (int, int)
        Takes this many pixels off the first step in y and x, so that all later seams move; 0 <= shift <
        size - overlap.  For testing that nothing depends on where the seams are.

    Raises
    ------
    OptionError
        For values out of range.
    """

    shape: tuple
    size: int = 256
    overlap: int = 64
    shift: tuple = (0, 0)
    _first: np.ndarray = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self):
        shape = _two_ints("image shape", self.shape, 1)
        object.__setattr__(self, "shape", shape)
        if not _is_int(self.size) or self.size < 2 * _SMALLEST_OVERLAP:
            raise OptionError(f"tile size {self.size!r} px: use a whole number, {2 * _SMALLEST_OVERLAP} or more")
        if not _is_int(self.overlap) or not _SMALLEST_OVERLAP <= self.overlap < self.size:
            raise OptionError(
                f"tile overlap {self.overlap!r} px: use a whole number from {_SMALLEST_OVERLAP} "
                f"to {self.size - 1}, less than the tile size {self.size}"
            )
        shift = _two_ints("grid shift", self.shift, 0)
        if max(shift) >= self.step:
            raise OptionError(f"grid shift {shift}: use less than the step between tiles, {self.step} px")
        object.__setattr__(self, "shift", shift)
        counts = [len(y) * len(x) for y, x in map(self.origins, range(self.n_levels))]
        object.__setattr__(self, "_first", np.concatenate([[0], np.cumsum(counts)]))

    @property
    def step(self):
        """Pixels from one tile to the next."""
        return self.size - self.overlap

    @cached_property
    def reach(self):
        """Largest side, in pixels of a level, that is whole in some tile wherever the object lies.

        An object of side s that needs room m on both sides is whole in one of two neighbours if
        ``s + 2 m <= overlap``; m is 4 px up to a side of 56 px and s / 14 above it.
        """
        return min(self.overlap - 2 * MARGIN, int(self.overlap / (1 + 2 * MARGIN_SHARE)))

    @cached_property
    def n_levels(self):
        """Number of levels: the last, the top, is the first that fits into one tile."""
        level = 0
        while max(self.level_shape(level)) > self.size:
            level += 1
        return level + 1

    def level_shape(self, level):
        """Rows and columns of the image block-averaged by ``2**level``; the last block may be ragged."""
        return tuple(-(-n // 2**level) for n in self.shape)

    def origins(self, level):
        """First rows and first columns of the tiles of a level.

        Returns
        -------
        y0, x0 : int64 ndarray
            Ascending; the tiles are all pairs of the two.
        """
        rows, columns = self.level_shape(level)
        return (
            _axis_origins(rows, self.size, self.step, self.shift[0]),
            _axis_origins(columns, self.size, self.step, self.shift[1]),
        )

    def __len__(self):
        return int(self._first[-1])

    def tiles(self):
        """All tiles, level 0 first, row by row; their indices run from 0 to ``len(grid) - 1``.

        Yields
        ------
        Tile
        """
        index = 0
        for level in range(self.n_levels):
            rows, columns = self.origins(level)
            for y0 in rows.tolist():
                for x0 in columns.tolist():
                    yield Tile(index, level, y0, x0, self.size)
                    index += 1

    def tile(self, index):
        """The tile of the grid with this index.

        Raises
        ------
        IndexError
            If the grid has no such tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of a grid with {len(self)} tiles")
        level = int(np.searchsorted(self._first, index, side="right")) - 1
        rows, columns = self.origins(level)
        row, column = divmod(int(index - self._first[level]), len(columns))
        return Tile(int(index), level, int(rows[row]), int(columns[column]), self.size)

    def level_of(self, index):
        """Levels of tiles of the grid, int64 array of the shape of `index`."""
        return np.searchsorted(self._first, np.asarray(index), side="right") - 1

    def boxes(self, index):
        """Boxes of tiles of the grid.

        Parameters
        ----------
        index : (N,) int array
            Tile indices, each in 0 to ``len(grid) - 1``.

        Returns
        -------
        (N, 4) int64 ndarray
            ``y0, x0, y1, x1`` in pixels of each tile's level.
        """
        index = np.asarray(index, dtype=np.int64)
        boxes = np.empty((len(index), 4), dtype=np.int64)
        levels = self.level_of(index)
        for level in np.unique(levels):
            rows, columns = self.origins(level)
            chosen = levels == level
            row, column = np.divmod(index[chosen] - self._first[level], len(columns))
            corner = np.stack([rows[row], columns[column]], axis=1)
            boxes[chosen] = np.concatenate([corner, corner + self.size], axis=1)
        return boxes

    def home_level(self, side):
        """Home level of objects.

        Parameters
        ----------
        side : float or ndarray
            Larger side of the object's box, in pixels of level 0.

        Returns
        -------
        int64 ndarray
            The finest level on which the side is at most `reach`, or the top level.
        """
        return self._finest_level(side, self.reach)

    def endless_home_level(self, side):
        """Home level of objects if there were no top level: larger ones have a higher one, whatever the image's size.

        Parameters
        ----------
        side : float or ndarray
            Larger side of the object's box, in pixels of level 0.

        Returns
        -------
        int64 ndarray
            The finest level, of all there could be, on which the side is at most `reach`.
        """
        return _finest_level(side, self.reach)

    def look_level(self, side):
        """Finest level on which a box of larger side `side` (level-0 pixels) takes at most 3/4 of a tile.

        Parameters
        ----------
        side : float or ndarray
            Larger side of the object's box, in pixels of level 0.

        Returns
        -------
        int64 ndarray
            That level, or the top level where there is none.
        """
        return self._finest_level(side, LOOK_SHARE * self.size)

    def _finest_level(self, side, limit):
        """Finest level on which a side, given in pixels of level 0, is at most `limit`, or the top level."""
        return np.minimum(_finest_level(side, limit), self.n_levels - 1)

    def centred_tile(self, index, level, y, x):
        """A tile on `level` with edge coordinates (`y`, `x`) in its middle, moved to lie inside the image.

        Parameters
        ----------
        index : int
            Index to give it.
        level : int
            Its level.
        y, x : float
            Middle of the box to be centred on, half-open edge coordinates in pixels of the level.

        Returns
        -------
        Tile
            At (0, ...) where the level is smaller than a tile.
        """
        rows, columns = self.level_shape(level)
        y0 = max(0, min(round(float(y) - self.size / 2), rows - self.size))
        x0 = max(0, min(round(float(x) - self.size / 2), columns - self.size))
        return Tile(index, int(level), y0, x0, self.size)

    def n_tiles(self, box, level):
        """In how many tiles of its level each box is whole.

        Parameters
        ----------
        box : (N, 4) array
            ``y0, x0, y1, x1``, half-open, pixels of each box's level.
        level : (N,) int array
            Level whose tiles are counted.

        Returns
        -------
        (N,) int64 ndarray
        """
        box, level = np.asarray(box, dtype=float), np.asarray(level)
        count = np.ones(len(box), dtype=np.int64)
        for k in np.unique(level):
            chosen = np.flatnonzero(level == k)
            count[chosen] = self._n_tiles_on(box[chosen], int(k))
        return count

    def _n_tiles_on(self, box, level):
        room = margin((box[:, 2:] - box[:, :2]).max(axis=1, initial=0))
        count = 1
        for axis, origins in enumerate(self.origins(level)):
            # The low side of the first tile and the high side of the last are the image's: they cut nothing.
            last = np.maximum(box[:, axis] - room, origins[0])
            first = np.minimum(box[:, axis + 2] + room - self.size, origins[-1])
            n = np.searchsorted(origins, last, side="right") - np.searchsorted(origins, first, side="left")
            count = count * np.maximum(n, 0)
        return count


def _finest_level(side, limit):
    """Finest of endless levels on which a side, given in pixels of level 0, is at most `limit`."""
    side = np.maximum(np.asarray(side, dtype=float), 1)
    return np.maximum(np.ceil(np.log2(side / limit)), 0).astype(np.int64)


def _axis_origins(n, size, step, shift):
    last = max(n - size, 0)
    regular = np.arange(step - shift, last, step, dtype=np.int64)
    return np.unique(np.concatenate([[0], regular, [last]]).astype(np.int64))


def _is_int(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _two_ints(name, values, least):
    values = tuple(values)
    if len(values) != 2 or not all(_is_int(v) and v >= least for v in values):
        raise OptionError(f"{name} {values!r}: use two whole numbers (y, x), each at least {least}")
    return tuple(int(v) for v in values)
