"""Masks in the frame of their boxes to pixels: as the compact network means them, and as ``mrcnn`` does."""

import numpy as np


def paste_masks(logits, boxes, tile_size):
    """Masks in the frame of their boxes to pixels of the tile.

    Parameters
    ----------
    logits : ndarray, shape (N, M, M)
        Mask logits.
    boxes : ndarray, shape (N, 4)
        Boxes, px.
    tile_size : int
        Side of the tile, px; masks are clipped to it.

    Returns
    -------
    crops : list of ndarray of bool, shape (h, w)
        The masks, each cropped to its box.
    origins : ndarray of int32, shape (N, 2)
        Row and column of each crop's first pixel.
    """
    low = np.clip(np.floor(boxes[:, :2]), 0, tile_size - 1).astype(np.int32)
    high = np.clip(np.ceil(boxes[:, 2:]), low + 1, tile_size).astype(np.int32)
    crops = []
    for logit, box, start, end in zip(logits, boxes, low, high, strict=True):
        rows = _interpolation(start[0], end[0], box[0], box[2], logit.shape[0])
        columns = _interpolation(start[1], end[1], box[1], box[3], logit.shape[1])
        crops.append(rows @ logit @ columns.T > 0.0)
    return crops, low


def _interpolation(start, end, low, high, samples):
    """Matrix (pixels, samples) that interpolates linearly from mask samples to the pixels start..end-1."""
    position = (np.arange(start, end) + 0.5 - low) / max(high - low, 1e-3) * samples - 0.5
    position = np.clip(position, 0.0, samples - 1.0)
    below = np.minimum(np.floor(position).astype(int), samples - 2)
    part = position - below
    matrix = np.zeros((len(position), samples), np.float32)
    index = np.arange(len(position))
    matrix[index, below] = 1 - part
    matrix[index, below + 1] = part
    return matrix


def paste_rounded(logits, boxes, tile_size):
    """Masks to pixels as the ``mrcnn`` package does it: in rounded boxes, fading to zero at their border.

    Parameters
    ----------
    logits : ndarray, shape (N, M, M)
        Mask logits.
    boxes : ndarray, shape (N, 4)
        Boxes within the tile, px.
    tile_size : int
        Side of the tile, px; or its height and width.

    Returns
    -------
    crops : list of ndarray of bool, shape (h, w)
        The masks, each cropped to its box; of no pixels where the rounded box is empty.
    origins : ndarray of int32, shape (N, 2)
        Row and column of each crop's first pixel.
    """
    boxes = np.clip(np.around(boxes), 0, np.tile(np.broadcast_to(tile_size, 2), 2)).astype(np.int32)
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    crops = [
        resize(probability, *size) >= 0.5 if size.all() else np.zeros(size, bool)
        for probability, size in zip(probabilities, sizes, strict=True)
    ]
    return crops, boxes[:, :2]


def resize(image, height, width):
    """Resize by linear interpolation, pixel centres aligned, zero outside the image.

    Parameters
    ----------
    image : ndarray, shape (H, W, ...)
        Image or mask; nothing is averaged where it shrinks.
    height, width : int
        New size, px.

    Returns
    -------
    ndarray of float64, shape (height, width, ...)
        The resized image.
    """
    from scipy.ndimage import zoom

    # the function behind scikit-image's resize, which the package used: even its rounding matters, see `mold`
    factors = [1 / (length / new) for length, new in zip(image.shape, (height, width), strict=False)]
    factors += [1] * (image.ndim - 2)
    return zoom(image.astype(np.float64), factors, order=1, mode="grid-constant", grid_mode=True)


def distinct(crops, origins, tile, score, iou=0.5, concentric_iou=0.4):
    """Which masks are of objects of their own: two of one tile with much in common are one, whatever their boxes say.

    Less in common is enough if each holds the other's centroid: a faint galaxy is often outlined once with and once
    without what lies around it, while of two galaxies one lies at the other's end.

    Parameters
    ----------
    crops : list of ndarray of bool, shape (h, w)
        Masks, each cropped.
    origins : ndarray of int, shape (N, 2)
        Row and column of each crop's first pixel.
    tile : ndarray of int, shape (N,)
        The tile of each.
    score : ndarray, shape (N,)
        The worse of two goes.
    iou : float
        Intersection over union of the masks from which two are one.
    concentric_iou : float
        The same for two of which each holds the other's centroid.

    Returns
    -------
    ndarray of bool, shape (N,)
        True for those that stay.
    """
    masks = list(zip(crops, origins, strict=True))
    keep = np.ones(len(crops), bool)
    order = np.argsort(-np.asarray(score), kind="stable")
    for place, i in enumerate(order):
        rivals = order[:place]
        for j in rivals[keep[rivals] & (tile[rivals] == tile[i])]:
            common = _iou(masks[i], masks[j])
            if common >= iou or (common >= concentric_iou and _concentric(masks[i], masks[j])):
                keep[i] = False
                break
    return keep


def _iou(first, second):
    """Intersection over union of two masks, each given as crop and origin; 0 for empty ones."""
    shared = _shared(*first, *second)
    return shared / (first[0].sum() + second[0].sum() - shared) if shared else 0.0


def _concentric(first, second):
    """Whether each of two masks, given as crop and origin, holds the pixel nearest to the other's centroid."""
    return _holds_middle(first, second) and _holds_middle(second, first)


def _holds_middle(mask, other):
    (crop, origin), (other_crop, other_origin) = mask, other
    y, x = np.rint(np.argwhere(other_crop).mean(axis=0) + other_origin).astype(int) - origin
    return 0 <= y < crop.shape[0] and 0 <= x < crop.shape[1] and bool(crop[y, x])


def _shared(first, first_origin, second, second_origin):
    """Number of pixels that two cropped masks have in common."""
    low = np.maximum(first_origin, second_origin)
    high = np.minimum(first_origin + np.array(first.shape), second_origin + np.array(second.shape))
    if (high <= low).any():
        return 0
    parts = [
        mask[tuple(slice(*ends) for ends in zip(low - origin, high - origin, strict=True))]
        for mask, origin in ((first, first_origin), (second, second_origin))
    ]
    return int(np.logical_and(*parts).sum())
