"""Pictures that fit into a tile: padding them, asking a detector about them, and what lies at their centre."""

import numpy as np

from surveycat.contrast import as_shown

TILE = 256


def as_tile(image):
    """An image smaller than a tile, padded by its median colour as the tiler does.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        At most 256 px a side.

    Returns
    -------
    ndarray of uint8, shape (256, 256, 3)
        The tile; the image is in its first rows and columns.
    """
    tile = np.empty((TILE, TILE, 3), np.uint8)
    tile[:] = np.median(image.reshape(-1, 3), axis=0)
    tile[: image.shape[0], : image.shape[1]] = image
    return tile


def look(detector, images, min_score=0.5, stop=lambda: False):
    """Run a detector on pictures, batch by batch, shown to it as `surveycat.run` shows them.

    Parameters
    ----------
    detector : Detector
        The detector.
    images : iterable of ndarray of uint8, shape (h, w, 3)
        At most 256 px a side; a generator keeps memory small.
    min_score : float
        Least score.
    stop : callable
        Asked after each batch whether the rest is to be left out.

    Yields
    ------
    Detections
        Of one picture after the other.
    """
    batch = []
    for image in images:
        batch.append(as_tile(as_shown(image)))
        if len(batch) == detector.batch_size:
            yield from _one_batch(detector, batch, min_score)
            batch = []
            if stop():
                return
    if batch:
        yield from _one_batch(detector, batch, min_score)


def _one_batch(detector, tiles, min_score):
    found = detector(np.stack(tiles), min_score)
    for i in range(len(tiles)):
        yield found.select(found.tile == i)


def central(found, side):
    """Index of the detection whose box holds the centre of the image and is centred nearest to it; None if none does.

    Parameters
    ----------
    found : Detections
        Of one image.
    side : int
        Side of the image, px.

    Returns
    -------
    int or None
        The index.
    """
    middle = side / 2
    holds = np.all((found.box[:, :2] <= middle) & (found.box[:, 2:] >= middle), axis=1)
    if not holds.any():
        return None
    distance = np.hypot(*(0.5 * (found.box[:, :2] + found.box[:, 2:]) - middle).T)
    return int(np.argmin(np.where(holds, distance, np.inf)))
