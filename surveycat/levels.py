"""Coarse copies of an image: level k is the average of blocks of 2^k x 2^k pixels.

::

    level 0   0 1 2 3 4 5 6        7 pixels
    level 1   0-1 2-3 4-5 6        4; the last block averages what it has
    level 2   0---3   4---6        2; pixel 6 has its weight of one, not that of a whole block

Each level is made from the one below, strip by strip.
"""

import numpy as np

__all__ = ["FINE", "halve", "level_shape"]

FINE = 256  # levels are kept in steps of 1/256 of a count, so that rounding does not add up
STRIP_PIXELS = 2**21  # read at a time, so that memory does not grow with the width of an image


def level_shape(shape, level):
    """Size of a level.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the image.
    level : int

    Returns
    -------
    tuple of int
        (h, w): the image's size divided by 2^level and rounded up.
    """
    step = 2**level
    return -(-shape[0] // step), -(-shape[1] // step)


def halve(read, shape, level, strip_pixels=STRIP_PIXELS):
    """Average the pixels of a level two by two.

    Parameters
    ----------
    read : callable
        ``read(y0, y1)`` gives rows of `level` as an array (y1 - y0, w, 3), of any number type.
    shape : tuple of int
        (H, W) of level 0, which says how much of the last block of `level` is there.
    level : int
        The level to start from.
    strip_pixels : int
        Pixels to read at a time, or two rows if these are more.

    Yields
    ------
    ndarray of float32, shape (n, ceil(w / 2), 3)
        Rows of `level` + 1, in order.
    """
    height, width = level_shape(shape, level)
    n_rows = max(strip_pixels // width // 2, 1) * 2
    last_row, last_column = (_last_weight(n, level) for n in shape)
    for y in range(0, height, n_rows):
        end = min(y + n_rows, height)
        strip = np.asarray(read(y, end), np.float32)
        strip = _mean_of_pairs(strip, last_row if end == height else 1.0)
        yield _mean_of_pairs(strip.swapaxes(0, 1), last_column).swapaxes(0, 1)


def _last_weight(n, level):
    """How much of the last block of a level lies in an image of n pixels: more than 0, at most 1."""
    step = 2**level
    return (n - (-(-n // step) - 1) * step) / step


def _mean_of_pairs(array, last):
    """Mean of neighbours along the first axis, where the last one has less weight; an odd one stays."""
    if len(array) % 2:
        array, last = np.concatenate([array, array[-1:]]), 1.0
    first, second = array[0::2], array[1::2]
    mean = (first + second) * np.float32(0.5)
    mean[-1] = (first[-1] + np.float32(last) * second[-1]) / np.float32(1 + last)
    return mean
