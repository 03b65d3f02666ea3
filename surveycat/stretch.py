"""From numbers to the 8-bit colours that the network knows.

FITS images are shown as SkyServer shows SDSS frames (Lupton et al. 2004): an asinh of the brightness summed
over the bands, which keeps hue. Sky level and noise are those of the whole image, so that tiles agree.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["AsinhStretch", "sample_pixels", "sky_statistics", "stretch_for"]

# Brightness of one sigma of sky noise in R, G, B and in grey. SDSS frames have a noise of 0.05, 0.031 and
# 0.021 nanomaggies per pixel in i, r and g (measured on runs 4192 and 2583), and their JPEGs multiply by
# 0.4 x [5, 6.5, 9] per nanomaggy.
NOISE_BRIGHTNESS = {3: np.array([0.100, 0.080, 0.075], np.float32), 1: np.array([0.080], np.float32)}
NONLINEARITY = 2.25  # that of SDSS's frame JPEGs
BRIGHTEST = 1e6  # scaled brightness, far above white

N_CLIPS = 10
CLIP_SIGMA = 3.0
PADDING_SHARE = 0.05  # a value more frequent than this in continuous data is padding, not sky
SAMPLE_PIXELS = 2**20
SAMPLE_BANDS, SAMPLE_ROWS = 64, 8
STRIP_ROWS = 256


@dataclass(frozen=True)
class AsinhStretch:
    """Colour mapping with the sky level and noise of an image.

    Parameters
    ----------
    sky, noise : ndarray of float32, shape (P,)
        Median and standard deviation of the sky in each plane, in the units of the data; P is 1 (shown as
        grey) or 3 (shown as R, G, B).
    """

    sky: np.ndarray
    noise: np.ndarray

    def render(self, planes):
        """Picture of a window.

        Parameters
        ----------
        planes : ndarray of float32, shape (P, h, w)
            NaN is shown as sky.

        Returns
        -------
        ndarray of uint8, shape (h, w, 3)

        Notes
        -----
        With x the scaled planes and I their sum (three times the plane for grey), a pixel is
        ``x asinh(b I) / (b I)``; colours of which a channel passes 1 are divided by their largest channel,
        as in ``djs_rgb_make`` of SDSS's idlutils.
        """
        gain = NOISE_BRIGHTNESS[len(planes)] / self.noise
        x = planes - self.sky[:, None, None]
        x *= gain[:, None, None]
        np.fmax(x, 0, out=x)  # also where it is NaN
        np.minimum(x, BRIGHTEST, out=x)
        total = x.sum(axis=0)
        total *= NONLINEARITY * (3 // len(planes))
        np.maximum(total, 1e-6, out=total)  # where asinh(t) / t is 1
        x *= np.arcsinh(total) / total
        x *= 256 / np.maximum(x.max(axis=0), 1)
        colour = np.moveaxis(np.minimum(x, 255).astype(np.uint8), 0, -1)
        return np.broadcast_to(colour, (*colour.shape[:2], 3))


def stretch_for(raster):
    """Stretch of an image and the colour of its sky.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`

    Returns
    -------
    stretch : AsinhStretch or None
        None for a picture, which is shown as it is, and for an image without any data.
    colour : ndarray of float, shape (3,), or None
        Median of each channel as shown; None for an image without any data.
    """
    sample = sample_pixels(raster)
    if raster.picture:
        return None, np.median(sample, axis=1)
    if sample.size == 0:
        return None, None
    figures = np.array([sky_statistics(plane, raster.continuous) for plane in sample], np.float32)
    stretch = AsinhStretch(*figures.T)
    return stretch, np.median(stretch.render(sample[:, None, :])[0], axis=0)


def sample_pixels(raster):
    """Pixels from all over an image, about a million at most.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`

    Returns
    -------
    ndarray of float32, shape (P, n)
        NaN where one plane has no data and another has. n is 0 if and only if the image has no data at all.
    """
    height, width = raster.shape
    period = max(height // SAMPLE_BANDS, SAMPLE_ROWS)
    starts = range((period - SAMPLE_ROWS) // 2, height, period)
    step = -(-len(starts) * SAMPLE_ROWS * width // SAMPLE_PIXELS)
    sample = _with_data(raster, starts, SAMPLE_ROWS, step)
    if sample.shape[1] == 0:  # little data in a large frame: look everywhere
        sample = _with_data(raster, range(0, height, STRIP_ROWS), STRIP_ROWS, 1)
    return sample


def _with_data(raster, starts, n_rows, step):
    """Sample of the pixels with data in strips of n rows, in every step-th column."""
    height, width = raster.shape
    per_strip = max(SAMPLE_PIXELS // len(starts), 1)
    found = []
    for y in starts:
        strip = raster.planes((y, 0, min(y + n_rows, height), width), step)
        strip = strip.reshape(len(strip), -1)
        strip = strip[:, np.isfinite(strip).any(axis=0)]
        found.append(strip[:, :: max(-(-strip.shape[1] // per_strip), 1)])
    return np.concatenate(found, axis=1)


def sky_statistics(values, continuous=True):
    """Median and standard deviation of the sky in a sample of pixels, objects clipped away.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Pixel values; those that are not finite are left out.
    continuous : bool
        Whether the data are floating-point numbers, where a frequent value (often 0) is padding around the
        sky and not sky.

    Returns
    -------
    sky, noise : float
        ``noise`` is positive: 1 where all values are equal. (0, 1) if no value is finite.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if values.size == 0:
        return 0.0, 1.0
    sky, noise = _clipped(_without_padding(values, PADDING_SHARE) if continuous else values)
    if noise == 0:
        sky, noise = _clipped(_without_padding(values, 0.0))
    return sky, noise if noise > 0 else 1.0


def _without_padding(values, share):
    """The values without the most frequent one, if it makes up more than a share of them but not all."""
    distinct, counts = np.unique(values, return_counts=True)
    most = counts.argmax()
    if len(distinct) == 1 or counts[most] <= max(share * values.size, 1):
        return values
    return values[values != distinct[most]]


def _clipped(values):
    """Median and scaled median absolute deviation, outliers removed again and again."""
    for _ in range(N_CLIPS):
        median = np.median(values)
        noise = 1.4826 * np.median(np.abs(values - median))
        kept = values[np.abs(values - median) <= CLIP_SIGMA * noise]
        if noise == 0 or kept.size == values.size:
            break
        values = kept
    return float(median), float(noise)
