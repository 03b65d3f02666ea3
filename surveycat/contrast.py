"""How much contrast a picture has, and the brighter look at one in which faint galaxies are a few counts.

The stretch of a picture is its maker's choice. Where it leaves the sky no noise that 8 bits can show, a galaxy that a
person sees at once lies within a few counts of black, and the network has met few like it. Such a picture is shown to
the network brighter; what is measured, and every position, stays that of the picture as it is.
"""

from dataclasses import dataclass

import numpy as np

from surveycat.stretch import sample_pixels

__all__ = ["Brightened", "as_shown", "brighten", "gain_of", "noise_of"]

LEAST_NOISE = 2.5  # counts of R + G + B; 99 of 100 pictures of SDSS have more than 5, those of low contrast 1.5
WANTED_NOISE = 4.5  # counts of R + G + B
MOST_GAIN = 4.0
NO_SKY = 0.05  # counts: with less the sky was cut off or painted, and says nothing of faint light
ENOUGH = 2**14  # pixels, which give the noise to a percent
CLIP, ROUNDS = 3.0, 10  # sigma beyond which a pixel is not sky
WIDE, LEAST_WIDTH = 5.0, 2.0  # of the first clipping, by the median deviation, and the least that is taken for, counts


def noise_of(pixels):
    """Scatter of the sky in R + G + B of a picture.

    Parameters
    ----------
    pixels : ndarray, shape (..., 3)
        Counts.

    Returns
    -------
    float
        Standard deviation after clipping at 3 sigma about the median: unlike the median deviation it is not 0 where
        most of the sky is black.
    """
    pixels = pixels.reshape(-1, 3)
    total = pixels[:: -(-len(pixels) // ENOUGH)].sum(axis=-1, dtype=np.float32)
    away = np.abs(total - np.median(total))
    total = total[away <= WIDE * max(1.4826 * float(np.median(away)), LEAST_WIDTH)]
    for _ in range(ROUNDS):
        near = np.abs(total - np.median(total)) <= CLIP * total.std()
        if near.all():
            break
        total = total[near]
    return float(total.std())


def gain_of(image):
    """Choose how much brighter an image is shown to the network, and say why.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Data are stretched to what the network knows anyhow: they need no gain.

    Returns
    -------
    gain : float
        1 for the picture as it is.
    notes : list of str
    """
    if not image.picture:
        return 1.0, []
    gain = _gain(noise_of(sample_pixels(image.raster).T))
    if gain == 1:
        return gain, []
    return gain, [f"its contrast is low: faint light is shown to the network {gain:.1f} times brighter"]


def _gain(noise):
    """Gain for a picture with some noise."""
    return min(WANTED_NOISE / noise, MOST_GAIN) if NO_SKY < noise < LEAST_NOISE else 1.0


def as_shown(picture):
    """Show a picture as a network sees it: brighter where its contrast is low.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        The picture itself where its contrast is not low.
    """
    gain = _gain(noise_of(picture))
    return picture if gain == 1 else brighten(picture, gain)


def brighten(picture, gain):
    """Show faint light brighter; black stays black, white stays white, and hues stay.

    Parameters
    ----------
    picture : ndarray of uint8, shape (..., 3)
    gain : float
        Of the faintest light, at least 1.

    Returns
    -------
    ndarray of uint8, shape (..., 3)
        Counts times ``gain / (1 + (gain - 1) * mean / 255)``; where a channel would pass 255 all three are divided.
    """
    mean = np.arange(3 * 255 + 1, dtype=np.float32) / (3 * 255)
    factors = gain / (1 + (gain - 1) * mean)
    bright = picture * factors[picture.sum(axis=-1, dtype=np.uint16)][..., None]
    bright /= np.maximum(bright.max(axis=-1, keepdims=True) / 255, 1)
    return np.rint(bright).astype(np.uint8)


@dataclass(frozen=True)
class BrightenedSource:
    """What opens a `Brightened` in another process.

    Parameters
    ----------
    image : object
        Source of the image as it is.
    gain : float
    """

    image: object
    gain: float

    def open(self):
        """Open the image and brighten it."""
        return Brightened(self.image.open(), self.gain)


class Brightened:
    """An image whose faint light is brighter: what detection needs of an image, no more.

    Parameters
    ----------
    image : `~surveycat.image.Image` or `~surveycat.sampling.Shrunk`
    gain : float
        As of `brighten`.
    """

    def __init__(self, image, gain):
        self._image, self._gain = image, gain
        self.name, self.shape = image.name, image.shape

    @property
    def source(self):
        """What another process opens."""
        return BrightenedSource(self._image.source, self._gain)

    def level_shape(self, level):
        """(h, w) of a level."""
        return self._image.level_shape(level)

    def build_levels(self):
        """Make all levels now, as `Image.build_levels`."""
        self._image.build_levels()

    def read(self, box, level=0):
        """Picture of a box, as `Image.read`."""
        return brighten(self._image.read(box, level), self._gain)
