"""Objects where the data end: their outlines are cut to the pixels that have data, and they are marked.

The network sees noise where there are no data, and draws the masks of what it finds over the edge. What is more than
half beyond the edge was guessed, not seen. Blank pixels that an object surrounds stay inside of its outline.
"""

from dataclasses import replace

import numpy as np

from surveycat.detections import Detections
from surveycat.stitch import EDGE_TRUNCATED

__all__ = ["cut_to_data"]

MOST_BLANK = 0.5  # share of a mask, and of a pixel of a coarse level, above which it counts as blank
MAX_STRIP = 2**22  # pixels that are read at once


def cut_to_data(objects, image):
    """Cut masks to the pixels that have data, leave out what is mostly blank, and flag what touches a blank pixel.

    Parameters
    ----------
    objects : `~surveycat.stitch.Objects`
        In pixels of the image's levels.
    image : `~surveycat.image.Image`
        Its blank pixels are read in a window around each object.

    Returns
    -------
    `~surveycat.stitch.Objects`
        In the same order; those that touch blank pixels have the flag ``edge_truncated``.
    """
    if not image.may_be_blank:
        return objects
    found = objects.detections
    whole, touching = {}, np.zeros(len(found), bool)
    for i in range(len(found)):
        blank, mostly = _blank_around(found, i, image)
        if not blank.any():
            continue
        mask = found.mask(i)
        touching[i] = (_grown(mask) & blank).any()
        if touching[i]:
            whole[i] = mask & ~mostly[1:-1, 1:-1]
    if not whole:
        return objects
    area = found.area
    kept = np.array([i not in whole or whole[i].sum() > MOST_BLANK * area[i] for i in range(len(found))])
    flags = objects.flags | np.where(touching, EDGE_TRUNCATED, 0).astype(np.int32)
    return replace(objects, detections=_with_masks(found, whole), flags=flags).select(kept)


def _blank_around(found, i, image):
    """Which pixels hold a blank one, and which are mostly blank, on a mask's level and up to one pixel around it.

    What is outside of the image is not blank here: that an object lies at its border is known already.
    """
    level = int(found.level[i])
    block = 2**level
    y0, x0, y1, x1 = (int(edge) + step for edge, step in zip(found.mask_box[i], (-1, -1, 1, 1), strict=True))
    rows = max(1, MAX_STRIP // (block**2 * (x1 - x0)))
    strips = [
        image.blank((top * block, x0 * block, min(top + rows, y1) * block, x1 * block))
        .reshape(-1, block, x1 - x0, block)
        .mean(axis=(1, 3), dtype=np.float32)
        for top in range(y0, y1, rows)
    ]
    inside = _share_inside(y0, y1, block, image.shape[0])[:, None] * _share_inside(x0, x1, block, image.shape[1])
    blank = np.concatenate(strips) - (1 - inside)
    return blank > 0, blank > MOST_BLANK * inside


def _share_inside(start, stop, block, size):
    """Share of each block of pixels along an axis that lies inside of the image."""
    edges = np.clip(np.arange(start, stop + 1) * block, 0, size)
    return np.diff(edges).astype(np.float32) / block


def _grown(mask):
    """A mask with a pixel around it, in all eight directions."""
    from scipy import ndimage

    return ndimage.binary_dilation(np.pad(mask, 1), np.ones((3, 3), bool))


def _with_masks(found, masks):
    """The detections with other masks at some places: {place: mask of the same shape}."""
    places = np.array(list(masks))
    others = np.setdiff1d(np.arange(len(found)), places)
    columns = {name: getattr(found, name)[places] for name in ("tile", "level", "box", "score", "p_spiral", "cut")}
    changed = Detections.from_masks(
        **columns,
        masks=list(masks.values()),
        mask_origin=found.mask_origin[places],
        centre_distance=found.centre_distance[places],
        capped=found.capped,
    )
    joined = Detections.concatenate([changed, found.select(others)])
    return joined.select(np.argsort(np.concatenate([places, others])))
