"""Masks to hide galaxies behind: ellipses, wavy blobs, and random lists of them that overlap and nest."""

import numpy as np
from mask_detector import MaskDetector


def trimmed(mask):
    """A mask without empty rows and columns at its edges."""
    return mask[np.ix_(mask.any(axis=1), mask.any(axis=0))]


def ellipse(side, ratio=1.0, angle=0.0):
    """Mask of an ellipse with that longer axis, in a crop without margin."""
    return blob(side, ratio, angle)


def blob(side, ratio=1.0, angle=0.0, wave=0.0, waves=3, phase=0.0, centre=(0, 0)):
    """Mask of an ellipse whose outline waves by a share `wave` of its radius, `waves` times around it.

    Parameters
    ----------
    side : float
        Longer axis, pixels.
    ratio : float
        Shorter axis over longer one.
    angle : float
        Of the longer axis from +y towards +x, radians.
    wave, waves, phase : float, int, float
        The outline's radius is that of the ellipse times ``1 + wave cos(waves t + phase)``.
    centre : (float, float)
        Place of the middle within its pixel, y and x.

    Returns
    -------
    2-D bool ndarray
        In a crop without margin.
    """
    reach = int(np.ceil(side / 2 * (1 + wave))) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] - np.reshape(centre, (2, 1, 1))
    along = (y * np.cos(angle) + x * np.sin(angle)) / (side / 2)
    across = (x * np.cos(angle) - y * np.sin(angle)) / (side / 2 * ratio)
    limit = 1.0 if wave == 0 else 1 + wave * np.cos(waves * np.arctan2(across, along) + phase)
    return trimmed(np.hypot(along, across) <= limit)


def iou(mask, origin, other, other_origin):
    """Intersection over union of two masks with their first pixels at `origin` and `other_origin`."""
    low = np.maximum(origin, other_origin)
    high = np.minimum(origin + np.array(mask.shape), other_origin + np.array(other.shape))
    if np.any(high <= low):
        return 0.0
    pairs = ((mask, origin), (other, other_origin))
    one, two = (m[tuple(slice(*ends) for ends in zip(low - o, high - o, strict=True))] for m, o in pairs)
    shared = np.count_nonzero(one & two)
    return shared / (mask.sum() + other.sum() - shared)


def on_image(mask, origin, shape):
    """The part of a mask that lies in an image, and its origin; None if nothing does."""
    low = np.maximum(origin, 0)
    high = np.minimum(origin + np.array(mask.shape), shape)
    if np.any(high <= low):
        return None
    part = mask[tuple(slice(*ends) for ends in zip(low - origin, high - origin, strict=True))]
    if not part.any():
        return None
    return trimmed(part), low + [part.any(axis=1).argmax(), part.any(axis=0).argmax()]


def crowd(rng, shape, n, sides=(3, 1500), most_alike=0.8):
    """Detector of up to `n` blobs at random, half of them on others, cut off by the image's border where they cross it.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything.
    shape : (int, int)
        Rows and columns of the image.
    n : int
        How many are tried.
    sides : (float, float) or callable
        Smallest and largest longer axis, drawn evenly in its logarithm; or a function that draws one.
    most_alike : float
        One with a larger IoU with an earlier one is left out: the two would be one galaxy to anybody.

    Returns
    -------
    MaskDetector
        With random scores.
    """
    masks, origins = [], []
    draw = sides if callable(sides) else lambda: np.exp(rng.uniform(*np.log(sides)))
    for _ in range(n):
        wave = rng.choice([0.0, 0.15]) * rng.random()
        mask = blob(draw(), rng.uniform(0.25, 1), rng.uniform(0, np.pi), wave, rng.integers(2, 6), 6 * rng.random())
        middle = rng.random(2) * shape
        if masks and rng.random() < 0.5:
            host = rng.integers(len(masks))
            spread = rng.choice([0.0, 0.4, 1.0])
            middle = origins[host] + (0.5 + spread * (rng.random(2) - 0.5)) * masks[host].shape
        placed = on_image(mask, np.rint(middle - np.array(mask.shape) / 2).astype(int), shape)
        if placed is None or max(placed[0].shape) < 3:
            continue
        if all(iou(*placed, *pair) <= most_alike for pair in zip(masks, origins, strict=True)):
            masks.append(placed[0])
            origins.append(placed[1])
    return MaskDetector(masks, np.array(origins).reshape(-1, 2), rng.random(len(masks)))
