"""Boxes moved onto the light in them: what the class head sees must not depend on where the grid of tiles lies."""

import numpy as np

FAINTEST = 6.0  # counts above the sky, summed over the channels, that are light and not noise
ROUNDS = 4


def centre_boxes(tiles, tile, boxes):
    """Move each box to the centroid of its light under a Gaussian window of a fifth of its side.

    Boxes of one galaxy from two tiles differ by about a pixel, their windowed centroids (as XWIN_IMAGE of SExtractor)
    by a few hundredths of one.

    Parameters
    ----------
    tiles : ndarray of uint8, shape (B, T, T, 3)
        A batch of tiles.
    tile : ndarray of int, shape (N,)
        The tile of each box.
    boxes : ndarray of float32, shape (N, 4)
        Boxes, px.

    Returns
    -------
    ndarray of float32, shape (N, 4)
        Boxes of the same sizes; where the light would move one by more than a quarter of its side it stays.
    """
    # every third pixel gives the sky well enough
    sky = np.median(_total(tiles[:, ::3, ::3]), axis=(1, 2)) + FAINTEST
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size
    moved = np.array([_centroid(tiles[t], sky[t], c, s) for t, c, s in zip(tile, centre, size, strict=True)])
    moved = moved.reshape(centre.shape)
    centre = np.where((np.abs(moved - centre) <= 0.25 * size).all(axis=1, keepdims=True), moved, centre)
    return np.concatenate([centre - 0.5 * size, centre + 0.5 * size], axis=1).astype(np.float32)


def _centroid(pixels, sky, centre, size):
    """Windowed centroid of the light in a box, from its centre; NaN where there is no light."""
    side = float(size.max())
    reach = int(0.5 * side) + 3  # 2.5 sigma of the window
    first = np.maximum(centre.astype(int) - reach, 0)
    window = pixels[first[0] : int(centre[0]) + reach + 1, first[1] : int(centre[1]) + reach + 1]
    light = np.maximum(_total(window) - sky, 0.0)
    # pixel i spans i to i + 1 in the coordinates of boxes
    rows = (first[0] + 0.5 + np.arange(light.shape[0])).astype(np.float32)
    columns = (first[1] + 0.5 + np.arange(light.shape[1])).astype(np.float32)
    sharpness = -0.5 / max(side / 5.0, 1.5) ** 2
    y, x = centre
    for _ in range(ROUNDS):
        along, across = np.exp(sharpness * (rows - y) ** 2), np.exp(sharpness * (columns - x) ** 2)
        by_column = along @ light
        total = by_column @ across
        if not total > 0:
            return np.nan, np.nan
        step_y = (along * (rows - y)) @ (light @ across) / total
        step_x = by_column @ (across * (columns - x)) / total
        y, x = y + 2 * step_y, x + 2 * step_x
    return y, x


def _total(pixels):
    """Sum over the three channels, several times faster than `sum` over so short an axis."""
    return pixels[..., 0].astype(np.float32) + pixels[..., 1] + pixels[..., 2]
