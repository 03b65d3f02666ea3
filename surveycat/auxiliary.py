"""Images that go with an image: a mask of bad pixels, and weights that say how sure the others are.

Both are FITS images on the pixels of the image that they go with. What is masked, and what has no weight above 0,
is blank, as NaN is. With several bands there is one mask, on the pixels of the image (those of the reference band),
and one weight for each band, on the pixels of that band's own file, with which it is brought to those of the image.
"""

import os
from dataclasses import replace

import numpy as np

from surveycat.errors import ImageError, OptionError
from surveycat.readers import is_fits, open_raster, split_extension

__all__ = ["Mask", "Weight", "attach", "auxiliary_paths", "open_mask", "weight_notes"]

NOISE_FACTOR = 2.0  # between the noise by the weights and that of the sky, above which it is said
NOISE_ROWS = 16  # of the image, in which weights are looked at for that: each may need chunks of a band resampled
HOW_TO = {
    "mask": "give a FITS image that is 0 on good pixels",
    "weight": "give a FITS image of inverse variances (the network's are --weights)",
}


class Mask:
    """Which pixels are bad.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
        0 on good pixels, anything else (NaN, too) on bad ones; of several planes, any may say so.
    """

    def __init__(self, raster):
        self._raster = raster

    def at(self, box, step=1):
        """Bad pixels of a box.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)``, inside the image.
        step : int
            Take every step-th column only.

        Returns
        -------
        ndarray of bool, shape (y1 - y0, ceil((x1 - x0) / step))
        """
        return (self._raster.planes(box, step) != 0).any(axis=0)


class Weight:
    """How sure the pixels are.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
        Inverse variances, in units of the image to the power of -2: one plane for all of the image's, or one for each.
    """

    def __init__(self, raster):
        self._raster = raster

    def at(self, box, plane, step=1):
        """Weights of one plane of the image in a box.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)``, inside the image.
        plane : int
            Number of the plane.
        step : int
            Take every step-th column only.

        Returns
        -------
        ndarray of float32, shape (y1 - y0, ceil((x1 - x0) / step))
            0 where they say nothing of a pixel: where they are negative, NaN or infinite, too.
        """
        which = [plane if len(self._raster.bands) > 1 else 0]
        values = self._raster.planes(box, step, which)[0]
        return np.where(values > 0, values, np.float32(0))  # NaN is not above 0


def auxiliary_paths(mask, weight):
    """All files that go with an image.

    Parameters
    ----------
    mask : path-like or None
    weight : path-like, sequence of path-like or None

    Returns
    -------
    masks, weights : list of str
        Of one path at most, and of one for each band.

    Raises
    ------
    OptionError
        Something that is not a path.
    """
    several = weight if isinstance(weight, (list, tuple)) else [weight]
    kinds = ("mask", [mask]), ("weight", several)
    return tuple([_path(kind, path) for path in paths if path is not None] for kind, paths in kinds)


def _path(kind, value):
    try:
        return os.fspath(value)
    except TypeError as error:
        raise OptionError(f"{kind} is of type {type(value).__name__}, not a file's name: {HOW_TO[kind]}") from error


def open_mask(path, shape, image, scratch):
    """Open a mask.

    Parameters
    ----------
    path : str
    shape : tuple of int
        (H, W) of the image.
    image : str
        What the image is called.
    scratch : `~surveycat.scratch.Scratch`
        Where a large mask goes when it is unpacked.

    Returns
    -------
    Mask

    Raises
    ------
    ImageError
        It cannot be read, is not FITS, or does not have the image's pixels.
    """
    return Mask(_open("mask", path, shape, image, scratch))


def attach(raster, image, mask, weights, scratch):
    """Give an image its mask and its weights.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
        The image.
    image : str
        What it is called.
    mask, weights : list of str
        As `auxiliary_paths` gives them.
    scratch : `~surveycat.scratch.Scratch`

    Returns
    -------
    `~surveycat.raster.Raster`

    Raises
    ------
    ImageError
        As `open_mask`; or weights for a picture, or of other planes than the image's.
    OptionError
        More than one weight.
    """
    if len(weights) > 1:
        raise OptionError(
            f"{len(weights)} weights ({', '.join(weights)}) for {image}: give one, or name the bands' files"
        )
    for path in mask:
        raster = replace(raster, mask=open_mask(path, raster.shape, image, scratch))
    for path in weights:
        if raster.picture:
            raise ImageError(
                f"--weight {path} is given for {image}, a picture, whose errors are not measured: leave it out, or "
                "give what is bad as --mask"
            )
        opened = _open("weight", path, raster.shape, image, scratch)
        if len(opened.bands) > 1 and opened.bands != raster.bands:
            planes = [", ".join(each.bands) for each in (opened, raster)]
            raise ImageError(
                f"{path} has the planes {planes[0]}, {image} has {planes[1]}: give the same, in this order"
            )
        raster = replace(raster, weight=Weight(opened))
    return raster


def _open(kind, path, shape, image, scratch):
    """Open a mask or weight on the pixels of an image."""
    if split_extension(path)[0].is_file() and not is_fits(path):
        raise ImageError(f"--{kind} {path} is not FITS: {HOW_TO[kind]}")
    try:
        raster = open_raster(path, scratch)
    except ImageError as error:
        raise ImageError(f"--{kind} {error}; {HOW_TO[kind]}") from error
    if raster.shape != tuple(shape):
        sizes = [f"{width} x {height}" for height, width in (raster.shape, shape)]
        raise ImageError(f"--{kind} {path} has {sizes[0]} pixels, {image} has {sizes[1]}: give one on the same pixels")
    return raster


def weight_notes(raster, noise):
    """Compare weights with the noise of the sky: maps of rms, of variance or of exposure are taken for weights, too.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster` or `~surveycat.bands.BandRaster`
    noise : ndarray, shape (P,)
        Of the sky in each plane that is shown.

    Returns
    -------
    list of str
        What the user should know.
    """
    if not raster.weighted:
        return []
    height, width = raster.shape
    rows = np.unique(np.linspace(0, height - 1, NOISE_ROWS).astype(int)).tolist()
    notes = []
    for plane, scatter in zip(raster.shown, noise.tolist(), strict=True):
        found = np.concatenate([raster.weights((y, 0, y + 1, width), plane) for y in rows])
        found = found[found > 0]
        expected = 1 / np.sqrt(np.median(found)) if len(found) else np.nan
        if not 1 / NOISE_FACTOR <= expected / scatter <= NOISE_FACTOR:
            notes.append(
                f"the weights of {raster.bands[plane]} say that its pixels scatter by {expected:.3g}, its sky scatters "
                f"by {scatter:.3g}: are they inverse variances in units of the image? Errors follow them"
            )
    return notes
