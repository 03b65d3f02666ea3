"""How finely an image is sampled, and the coarser look at one that is sampled too finely.

A network knows galaxies by their pixels: on an image with ten pixels across a star it sees none of what it was
trained on. Such an image is searched at one half, a quarter or an eighth of its resolution; everything that is
measured, and every position, stays in its own pixels.
"""

from dataclasses import dataclass

import numpy as np

from surveycat import levels
from surveycat.errors import OptionError
from surveycat.stars import stars

__all__ = ["FINEST", "Sampling", "Shrunk", "sampling_of", "shrink_level"]

FINEST = 5.0  # pixels; an image whose PSF is wider than that is shrunk
WANTED = 3.0  # pixels of FWHM; about that of SDSS
FACTORS = (1, 2, 4, 8)
STRETCHED = 1.25  # stars of a stretched picture look that much wider; measured on pictures of SDSS
NOISE_PER_FWHM = 1.9  # FWHM of the PSF over the lag at which the noise of an enlarged SDSS picture halves
LAGS = np.array([1, 2, 3, 4, 6, 8, 10, 13, 16])
LEAST_SIDE = 128  # pixels; in smaller images there is too little noise to tell
NOISE_SIDE = 1500  # pixels of the window in which the noise is looked at
STRUCTURE = 0.5  # what is still correlated by half of this at the largest lag is no noise


@dataclass(frozen=True)
class Sampling:
    """Width of the PSF of an image.

    Parameters
    ----------
    fwhm : float
        Pixels, NaN if it could not be told.
    source : str
        What says so: "stars", "noise", or "" for neither.
    """

    fwhm: float
    source: str


def sampling_of(image):
    """Measure how finely an image is sampled: by its stars, or else by how far its noise is correlated.

    Parameters
    ----------
    image : `~surveycat.image.Image`

    Returns
    -------
    Sampling
    """
    size = _size_of_stars(image)
    if np.isfinite(size):
        return Sampling(2 * size / (STRETCHED if image.picture else 1), "stars")
    # pictures come enlarged from cutout services; data seldom do, and their objects would be taken for noise
    lag = _half_lag(image) if image.picture else np.nan
    return Sampling(NOISE_PER_FWHM * lag, "noise") if np.isfinite(lag) else Sampling(np.nan, "")


def _size_of_stars(image):
    """Half-light radius of stars, pixels: from the image averaged until they fit into the aperture of `stars`."""
    size = stars(image).size
    for level in range(1, len(FACTORS)):
        if not 2 * size > FINEST * 2 ** (level - 1):
            break
        coarse = stars(_Averaged(image, level)).size
        if not np.isfinite(coarse):
            break
        size = coarse * 2**level
    return size


class _Averaged:
    """What `stars` needs of an image, averaged over blocks of 2^level x 2^level pixels."""

    def __init__(self, image, level):
        self._image, self._block = image, 2**level
        self.bands, self.picture, self.shape = image.bands, image.picture, image.level_shape(level)

    def band(self, name, box):
        """Values of one band; NaN in blocks that are not wholly there."""
        height, width = box[2] - box[0], box[3] - box[1]
        values = self._image.band(name, tuple(edge * self._block for edge in box))
        return values.reshape(height, self._block, width, self._block).mean(axis=(1, 3))


def _half_lag(image):
    """Lag in pixels at which the correlation of the sky's noise falls to one half; NaN where that is not noise."""
    box = (0, 0, *(min(size, NOISE_SIDE) for size in image.shape))
    values = image.read(box)[..., 1].astype(np.float32)
    there = ~image.blank(box)
    if not there.any():
        return np.nan
    median = np.median(values[there])
    width = 1.4826 * np.median(np.abs(values[there] - median))
    sky = there & (np.abs(values - median) <= 3 * max(width, 1))
    noise = np.where(sky, values - values[sky].mean(), 0)
    variance = (noise**2).sum() / sky.sum()
    if not variance > 0 or min(values.shape) < LEAST_SIDE:
        return np.nan
    correlation = [1.0]
    for lag in LAGS:
        both = sky[:, lag:] & sky[:, :-lag]
        correlation.append((noise[:, lag:] * noise[:, :-lag]).sum() / max(both.sum(), 1) / variance)
    below = np.flatnonzero(np.array(correlation) < STRUCTURE)
    if not len(below) or correlation[-1] > STRUCTURE / 2:
        return np.nan
    last = below[0]
    places = np.concatenate([[0], LAGS])
    return float(np.interp(STRUCTURE, correlation[last - 1 : last + 1][::-1], places[last - 1 : last + 1][::-1]))


def shrink_level(image, resample="auto"):
    """Choose the level at which an image is searched, and say why.

    Parameters
    ----------
    image : `~surveycat.image.Image`
    resample : str or int
        ``"auto"``: to a PSF of about 3 px where it is wider than 5; ``"none"``: as it is; else a factor of 1, 2, 4, 8.

    Returns
    -------
    level : int
        0 for the image as it is, k for one pixel in 2^k.
    notes : list of str

    Raises
    ------
    OptionError
        Another value of `resample`.
    """
    level = asked_level(resample)
    if level is None:
        sampling = sampling_of(image)
        if not sampling.fwhm > FINEST:
            return 0, []
        level = min(max(round(np.log2(sampling.fwhm / WANTED)), 1), len(FACTORS) - 1)
        why = f"its PSF is {sampling.fwhm:.1f} px wide (by its {sampling.source}), the network knows {WANTED:g} px"
        return level, [f"searched at 1/{2**level} of its resolution: {why}; --resample none searches it as it is"]
    return level, [f"searched at 1/{2**level} of its resolution, as --resample asks"] if level else []


def asked_level(resample):
    """Level that ``--resample`` names, None for "auto"."""
    text = str(resample).strip().lower()
    if text == "auto":
        return None
    if text == "none":
        return 0
    if text not in map(str, FACTORS):
        raise OptionError(f"resample is {resample}; give auto, none or a factor of {', '.join(map(str, FACTORS))}")
    return FACTORS.index(int(text))


@dataclass(frozen=True)
class ShrunkSource:
    """What opens a `Shrunk` in another process.

    Parameters
    ----------
    image : `~surveycat.image.ImageSource`
    level : int
    """

    image: object
    level: int

    def open(self):
        """Open the image and look at it from its level."""
        return Shrunk(self.image.open(), self.level)


class Shrunk:
    """An image whose finest level is a coarser one of another: what detection needs of an image, no more.

    Parameters
    ----------
    image : `~surveycat.image.Image`
    level : int
        Level of the image that is level 0 here.
    """

    def __init__(self, image, level):
        self._image, self._level = image, level
        self.name, self.shape = image.name, image.level_shape(level)

    @property
    def source(self):
        """What another process opens."""
        return ShrunkSource(self._image.source, self._level)

    def level_shape(self, level):
        """(h, w) of a level."""
        return levels.level_shape(self.shape, level)

    def build_levels(self):
        """Make all levels now, as `Image.build_levels`."""
        self._image.build_levels()
        self._image.read((0, 0, 1, 1), self._level)  # where a small image has no level as coarse as this one

    def read(self, box, level=0):
        """Picture of a box, as `Image.read`."""
        return self._image.read(box, level + self._level)
