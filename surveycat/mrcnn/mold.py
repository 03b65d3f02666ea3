"""Images of any size into the square input of an ``mrcnn`` network, and its answers back, as that package does it."""

import numpy as np

from surveycat.errors import OptionError
from surveycat.mrcnn.masks import resize


def mold(image, side, mode="square", corner=None):
    """Image to the square that a network reads.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        Image.
    side : int
        Side of the square, px.
    mode : str
        ``square``: resized so that the longer side fits, and padded with zeros; ``crop``: resized only if it is too
        small, and cut.
    corner : tuple of int, optional
        First row and column of the cut, px of the image after resizing; the middle by default (training takes them
        at random).

    Returns
    -------
    molded : ndarray of uint8, shape (side, side, 3)
        The square.
    window : ndarray of int, shape (4,)
        ``[y0, x0, y1, x1)``: the part of the square that is image, px.

    Raises
    ------
    OptionError
        If the mode is neither, or the cut leaves the image.
    """
    if mode not in ("square", "crop"):
        raise OptionError(f"resize mode is {mode!r}: choose 'square' or 'crop'")
    scale = max(1.0, side / min(image.shape[:2]))
    if mode == "square":
        scale = min(scale, side / max(image.shape[:2]))
    height, width = (round(length * scale) for length in image.shape[:2])
    if scale != 1.0:
        image = resize(image, height, width).astype(np.uint8)  # truncated, not rounded
    if mode == "crop":
        y, x = corner or ((height - side) // 2, (width - side) // 2)
        if not (0 <= y <= height - side and 0 <= x <= width - side):
            raise OptionError(f"corner ({y}, {x}) leaves no {side} px in {height} x {width}: choose a smaller one")
        return image[y : y + side, x : x + side], np.array([0, 0, side, side])
    top, left = (side - height) // 2, (side - width) // 2
    molded = np.zeros((side, side, 3), np.uint8)
    molded[top : top + height, left : left + width] = image
    return molded, np.array([top, left, top + height, left + width])


def unmold(boxes, window, shape):
    """Boxes in a square to pixels of the image it was molded from.

    Parameters
    ----------
    boxes : ndarray, shape (N, 4)
        Boxes, normalised to the square.
    window : ndarray, shape (4,)
        Part of the square that is image, normalised.
    shape : tuple of int
        Height and width of the image, px.

    Returns
    -------
    ndarray of int32, shape (N, 4)
        ``[y0, x0, y1, x1)``; some may be empty.
    """
    start, extent = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    last = np.tile(np.array(shape[:2]) - 1, 2)
    return np.around((boxes - start) / extent * last + (0, 0, 1, 1)).astype(np.int32)
