"""Which masks overlap, and by how much: sparse, band by band, never a frame or a matrix of all pairs.

Candidates come from an STRtree over the boxes of one band of rows.  Their masks are compared as bitmaps, rows of
64-bit words aligned with the columns of the level, so that the pixels two masks share are counted word by word.
Masks of different levels are compared at the coarser pixel size.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely

# Detections in a band, boxes looked up at once, words handled at once: together about 300 MB.
_BAND, _QUERY, _WORDS = 1 << 16, 1 << 13, 1 << 20
# Pixels of the cells, and cells along a side at most, of a map on which boxes are looked up.
_CELL, _CELLS = 32, 2048

_U8, _ONES = np.uint64(8), ~np.uint64(0)
# Bit 63 - c of word k is bit k of c: which columns of a word have a 1 in the k-th place of their number.
_COLUMN_BITS = [np.uint64(sum(1 << (63 - c) for c in range(64) if c >> k & 1)) for k in range(6)]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of detections and what their masks have in common, in pixels of the coarser level of the two.

    Parameters
    ----------
    i, j : (P,) int64 ndarray
        The two detections of each pair; each unordered pair comes once.
    shared : (P,) int64 ndarray
        Pixels in both masks.
    area_i, area_j : (P,) int64 ndarray
        Pixels in each mask.
    centred : (P,) bool ndarray
        Whether the centroid of each of the two lies in the mask of the other.
    """

    i: np.ndarray
    j: np.ndarray
    shared: np.ndarray
    area_i: np.ndarray
    area_j: np.ndarray
    centred: np.ndarray

    @property
    def iou(self):
        """Intersection over union, (P,) float64 ndarray."""
        return self.shared / (self.area_i + self.area_j - self.shared)


def overlaps(found, wanted, involving=None, between=False):
    """Compare the masks of all wanted pairs whose boxes touch, band by band.

    Parameters
    ----------
    found : Detections
        Each with at least one mask pixel.
    wanted : function of ``i, j, room`` to a bool array
        Tells which pairs are worth comparing, given their indices and the most pixels of the coarser level that
        the masks can share, going by their boxes.
    involving : (N,) bool ndarray, optional
        Only pairs with at least one of these; what touches none of them then costs next to nothing.
    between : bool, optional
        Only pairs of one of these and one that is not.

    Yields
    ------
    Overlaps
        Each unordered pair in exactly one of them.
    """
    stream = _BitStream(found.bits)
    index = np.arange(len(found)) if involving is None else _touching(found, involving)
    chosen = np.ones(len(found), dtype=bool) if involving is None else involving
    for level in np.unique(found.level[index]):
        for i, j in _candidates(found, index, int(level), wanted, chosen, between):
            if len(i):
                yield _compare(found, stream, int(level), i, j)


def iou_of(found, i, j):
    """Intersection over union of the masks of given pairs, at the coarser pixel size of the two.

    Parameters
    ----------
    found : Detections
        Each with at least one mask pixel.
    i, j : (P,) int64 ndarray
        The two detections of each pair.

    Returns
    -------
    (P,) float64 ndarray
    """
    iou, level = np.zeros(len(i)), np.maximum(found.level[i], found.level[j])
    stream = _BitStream(found.bits)
    for k in np.unique(level):
        chosen = np.flatnonzero(level == k)
        iou[chosen] = _compare(found, stream, int(k), i[chosen], j[chosen]).iou
    return iou


def _touching(found, which):
    """Indices of at least those detections whose boxes touch, on any level, one of those that `which` is true for."""
    pixel = 2.0 ** found.level[:, None]  # on a coarser level a box reaches up to one pixel of that further
    low, high = (found.mask_origin - 1) * pixel, (found.mask_origin + found.mask_shape + 1) * pixel
    start = low.min(axis=0, initial=np.inf)
    cell = max(_CELL, (high - start).max(initial=0) / _CELLS)
    low, high = ((low - start) // cell).astype(np.int64), ((high - start) // cell).astype(np.int64) + 1
    (y0, x0), (y1, x1) = low.T, high.T
    # Plus one at two corners of each box and minus one at the others: summed up twice, how many hold a cell.
    corners = np.zeros(high.max(axis=0, initial=0) + 2, dtype=np.int32)
    for y, x, value in ((y0, x0, 1), (y1, x1, 1), (y0, x1, -1), (y1, x0, -1)):
        np.add.at(corners, (y[which] + 1, x[which] + 1), value)
    taken = corners.cumsum(axis=0).cumsum(axis=1) > 0
    held = taken.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    return np.flatnonzero(held[y1, x1] - held[y0, x1] - held[y1, x0] + held[y0, x0])


def _candidates(found, index, level, wanted, chosen, between):
    """Wanted pairs at `index` of which one lies on `level` and none on a coarser one, for each band of rows."""
    index = index[found.level[index] <= level]
    low, high = _boxes_on(found, index, level)
    order = np.argsort(low[:, 0], kind="stable")
    index, low, high = index[order], low[order], high[order]
    own, chosen = found.level[index] == level, chosen[index]
    for start in range(0, len(index), _BAND):
        stop = min(start + _BAND, len(index))
        end = np.searchsorted(low[:, 0], high[start:stop, 0].max(), side="right")
        part = slice(start, end)
        band = _Band(index[part], low[part], high[part], own[part], chosen[part], stop - start)
        pairs = list(band.pairs(wanted, between))
        if pairs:
            yield np.concatenate([i for i, _ in pairs]), np.concatenate([j for _, j in pairs])


def _boxes_on(found, index, level):
    """Boxes of masks on a coarser level: lower and upper corners, rounded outward."""
    down = (level - found.level[index].astype(np.int64))[:, None]
    low = found.mask_origin[index] >> down
    return low, -(-(found.mask_origin[index] + found.mask_shape[index]) >> down)


@dataclass(frozen=True, eq=False)
class _Band:
    """Boxes sorted by their first row: the first `n` are the band, the others reach into it from below."""

    index: np.ndarray
    low: np.ndarray
    high: np.ndarray
    own: np.ndarray
    chosen: np.ndarray
    n: int

    def pairs(self, wanted, between):
        """Wanted pairs (any, own), one of the two chosen, with a member among the first `n`; each comes once."""
        sides = [(asking, target) for asking, target in self._sides(between) if len(asking) and len(target)]
        boxes = self._boxes(sides)
        for asking, target in sides:
            tree = shapely.STRtree(boxes[target])
            for first in range(0, len(asking), _QUERY):
                one, two = tree.query(boxes[asking[first : first + _QUERY]])
                one, two = asking[one + first], target[two]
                keep = (np.minimum(one, two) < self.n) & ((one < two) | ~self.own[one] | ~self.chosen[two])
                one, two = one[keep], two[keep]
                room = np.minimum(self.high[one], self.high[two]) - np.maximum(self.low[one], self.low[two])
                i, j = self.index[one], self.index[two]
                keep = wanted(i, j, room.prod(axis=1))
                yield i[keep], j[keep]

    def _boxes(self, sides):
        """Boxes as their diagonals, of those that take part alone: making them takes longer than comparing them.

        A tree compares the bounds of what it is given, and a line is made in half the time of a rectangle.
        """
        part = np.zeros(len(self.index), dtype=bool)
        for which in sides:
            part[np.concatenate(which)] = True
        boxes = np.empty(len(part), dtype=object)
        boxes[part] = shapely.linestrings(np.stack([self.low[part], self.high[part]], axis=1).astype(float))
        return boxes

    def _sides(self, between):
        """Which boxes are compared with which: two that are not chosen never meet, which in a crowd are the most."""
        own, chosen = self.own, self.chosen
        yield np.flatnonzero(chosen), np.flatnonzero(own & ~chosen if between else own)
        yield np.flatnonzero(~own & ~chosen), np.flatnonzero(own & chosen)


def _compare(found, stream, level, i, j):
    needed = np.zeros(len(found), dtype=bool)
    needed[i] = needed[j] = True
    maps = Bitmaps.of(found, stream, np.flatnonzero(needed), level)
    place = np.cumsum(needed) - 1
    a, b = place[i], place[j]
    return Overlaps(
        i,
        j,
        shared=maps.shared(a, b),
        area_i=maps.area[a],
        area_j=maps.area[b],
        centred=maps.holds_centroid(a, b) & maps.holds_centroid(b, a),
    )


class _BitStream:
    """Packed bits that can be read 64 at a time from any bit on."""

    def __init__(self, packed):
        self._bytes = np.concatenate([packed, np.zeros(9, np.uint8)])
        self._words = np.ndarray(len(packed) + 1, ">u8", self._bytes, strides=(1,))

    def read(self, bit):
        """The 64 bits from each position on, the first one the most significant."""
        byte, shift = bit >> 3, (bit & 7).astype(np.uint64)
        word = self._words[byte].astype(np.uint64)
        return (word << shift) | (self._bytes[byte + 8].astype(np.uint64) >> (_U8 - shift))


@dataclass(frozen=True, eq=False)
class Bitmaps:
    """Masks on one level as columns of 64-bit words.

    A word holds 64 pixels of a row, from a column on that is a multiple of 64, the first one as its most significant
    bit.  Mask m has `rows[m]` rows from `y0[m]` on and `columns[m]` words in each, from word column `c0[m]` on.  The
    words of a column lie together, beginning with ``words[start[m]]``.

    Parameters
    ----------
    y0, rows, c0, columns : (N,) int64 ndarray
        Where each mask lies.
    words : (W,) uint64 ndarray
        The pixels of all masks.
    """

    y0: np.ndarray
    rows: np.ndarray
    c0: np.ndarray
    columns: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, found, stream, index, level):
        """The masks of the detections at `index` on `level`, at least as coarse as theirs.

        A coarse pixel belongs to the mask if the mask covers at least half of it; where there is none, the most
        covered ones do, so that no mask vanishes.
        """
        down = level - found.level[index].astype(np.int64)
        order, parts = [], []
        for step in np.unique(down):
            chosen = np.flatnonzero(down == step)
            n_words = np.cumsum((found.mask_shape[index[chosen]] // [1, 64] + 1).prod(axis=1))
            for part in _portions(chosen, n_words):
                order.append(part)
                parts.append(cls._unpack(found, stream, index[part]).shrunk(int(step)))
        return cls._join(parts)._reordered(np.argsort(np.concatenate(order)))

    @classmethod
    def _unpack(cls, found, stream, index):
        (y0, x0), (rows, width) = found.mask_origin[index].T.astype(np.int64), found.mask_shape[index].T
        c0 = x0 >> 6
        columns = ((x0 + width - 1) >> 6) - c0 + 1
        # One entry for each column of words of a mask.
        mask, column = _count_up(columns)
        first = (c0[mask] + column) * 64
        left = np.maximum(x0[mask] - first, 0)
        right = np.minimum(x0[mask] + width[mask] - first, 64)
        bit = found.offsets[index][mask] * 8 + first + left - x0[mask]
        valid = (_ONES >> left.astype(np.uint64)) & (_ONES << (64 - right).astype(np.uint64))
        # One for each word.
        column, row = _count_up(rows[mask])
        words = stream.read(bit[column] + row * width[mask][column]) >> left.astype(np.uint64)[column]
        return cls(y0, rows.astype(np.int64), c0, columns, words & valid[column])

    @cached_property
    def start(self):
        """First word of each mask, (N,) int64 ndarray."""
        size = self.rows * self.columns
        return np.cumsum(size) - size

    @cached_property
    def _ones(self):
        return np.bitwise_count(self.words)

    @cached_property
    def area(self):
        """Pixels in each mask, (N,) int64 ndarray."""
        return np.add.reduceat(self._ones, self.start, dtype=np.int64)

    @cached_property
    def centroid(self):
        """Pixel nearest to the centroid of each mask, (N, 2) int64 ndarray."""
        mask, column = _count_up(self.columns)
        column, row = _count_up(self.rows[mask])
        ones = self._ones.astype(np.int64)
        y = np.add.reduceat(ones * row, self.start) / self.area + self.y0
        # Bit k of the column of every pixel, summed for all pixels of a word at once.
        x = sum(np.bitwise_count(self.words & bits).astype(np.int64) << k for k, bits in enumerate(_COLUMN_BITS))
        first = (_count_up(self.columns)[1] * 64)[column]
        x = np.add.reduceat(x + ones * first, self.start) / self.area + self.c0 * 64
        return np.rint(np.stack([y, x], axis=1)).astype(np.int64)

    def shared(self, a, b):
        """Number of pixels that masks a[p] and b[p] have in common, for each p."""
        total = np.zeros(len(a), dtype=np.int64)
        top = np.maximum(self.y0[a], self.y0[b])
        height = np.minimum(self.y0[a] + self.rows[a], self.y0[b] + self.rows[b]) - top
        left = np.maximum(self.c0[a], self.c0[b])
        width = np.minimum(self.c0[a] + self.columns[a], self.c0[b] + self.columns[b]) - left
        for column in range(max(0, width.max(initial=0))):
            chosen = np.flatnonzero((width > column) & (height > 0))
            for part in _portions(chosen, np.cumsum(height[chosen])):
                pair, row = _count_up(height[part])
                one = self._at(a[part], top[part], left[part] + column)[pair] + row
                two = self._at(b[part], top[part], left[part] + column)[pair] + row
                ones = np.bitwise_count(self.words[one] & self.words[two])
                total[part] += np.add.reduceat(ones, np.flatnonzero(row == 0), dtype=np.int64)
        return total

    def _at(self, mask, y, column):
        return self.start[mask] + (column - self.c0[mask]) * self.rows[mask] + y - self.y0[mask]

    def holds_centroid(self, a, b):
        """Whether mask a[p] holds the pixel nearest to the centroid of mask b[p], for each p."""
        y, x = self.centroid[b].T
        column = x >> 6
        row_fits = (y >= self.y0[a]) & (y < self.y0[a] + self.rows[a])
        inside = row_fits & (column >= self.c0[a]) & (column < self.c0[a] + self.columns[a])
        word = self.words[self._at(a[inside], y[inside], column[inside])]
        holds = np.zeros(len(a), dtype=bool)
        holds[inside] = (word << (x[inside] & 63).astype(np.uint64)) >> np.uint64(63) != 0
        return holds

    def shrunk(self, down):
        """The masks `down` levels coarser."""
        if down == 0:
            return self
        if down > 6:
            return self.shrunk(6).shrunk(down - 6)
        y0, c0 = self.y0 >> down, self.c0 >> down
        rows = ((self.y0 + self.rows - 1) >> down) - y0 + 1
        columns = ((self.c0 + self.columns - 1) >> down) - c0 + 1
        # One entry for each coarse row of a column of fine words.
        mask, column = _count_up(self.columns)
        entry, row = _count_up(rows[mask])
        mask, column = mask[entry], self.c0[mask[entry]] + column[entry]
        covered = self._padded(y0 << down, rows << down)._covered(down)
        most = np.maximum.reduceat(covered.max(axis=1), np.flatnonzero(np.diff(mask, prepend=-1)))
        enough = np.minimum(most, 4**down // 2)[mask]
        bits = np.packbits(covered >= enough[:, None], axis=1)
        value = np.zeros((len(mask), 8), dtype=np.uint8)
        value[:, : bits.shape[1]] = bits
        # Several fine words make one coarse word: each has its place in it.
        place = (column & (2**down - 1)) * (64 >> down)
        value = value.view(">u8")[:, 0].astype(np.uint64) >> place.astype(np.uint64)
        small = Bitmaps(y0, rows, c0, columns, np.zeros((rows * columns).sum(), dtype=np.uint64))
        np.bitwise_or.at(small.words, small._at(mask, y0[mask] + row, column >> down), value)
        return small

    def _padded(self, y0, rows):
        """The same masks in more rows."""
        padded = Bitmaps(y0, rows, self.c0, self.columns, np.zeros((rows * self.columns).sum(), np.uint64))
        mask, column = _count_up(self.columns)
        entry, row = _count_up(self.rows[mask])
        first = padded.start[mask] + column * rows[mask] + (self.y0 - y0)[mask]
        padded.words[first[entry] + row] = self.words
        return padded

    def _covered(self, down):
        """Pixels in each block of ``2**down`` rows and columns, (W / 2**down, 64 / 2**down) uint16 ndarray."""
        covered = np.unpackbits(self.words.astype(">u8").view(np.uint8)).reshape(-1, 64)
        for step in range(down):
            covered = covered[:, ::2] + covered[:, 1::2]
            covered = covered[::2] + covered[1::2]
            if step == 2:
                covered = covered.astype(np.uint16)
        return covered

    @staticmethod
    def _join(parts):
        names = ("y0", "rows", "c0", "columns", "words")
        return Bitmaps(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def _reordered(self, index):
        size = (self.rows * self.columns)[index]
        which, at = _count_up(size)
        words = self.words[self.start[index][which] + at]
        return Bitmaps(self.y0[index], self.rows[index], self.c0[index], self.columns[index], words)


def _count_up(sizes):
    """``0, 0, 0, 1, 1, ...`` and ``0, 1, 2, 0, 1, ...`` for sizes 3, 2, ..."""
    which = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    return which, np.arange(len(which)) - first[which]


def _portions(items, total):
    """`items` in pieces, cut where their running `total` has grown by `_WORDS`."""
    cuts = np.searchsorted(total, np.arange(_WORDS, total[-1] if len(total) else 0, _WORDS))
    return [part for part in np.split(items, np.unique(cuts)) if len(part)]
