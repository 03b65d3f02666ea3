"""From numbers to the 8-bit colours that the network knows.

FITS images are shown as SkyServer shows SDSS frames (Lupton et al. 2004): an asinh of the brightness summed
over the bands, which keeps hue. Sky level and noise are those of the whole image, so that tiles agree: the sky is
the median in boxes of `BOX` pixels, where bright objects fill one that of its neighbours, and is interpolated.
"""

import functools
import io
from dataclasses import dataclass

import numpy as np

from surveycat.wcs import SDSS_SCALE, pixel_scale_of

__all__ = [
    "AsinhStretch",
    "Background",
    "as_jpeg",
    "background_of",
    "sample_pixels",
    "sky_statistics",
    "stretch_for",
    "whole_blocks",
]

# Brightness of one sigma of sky noise in R, G, B and in grey. SDSS frames have a noise of 0.05, 0.031 and
# 0.021 nanomaggies per pixel in i, r and g (measured on runs 4192 and 2583), and their JPEGs multiply by
# 0.4 x [5, 6.5, 9] per nanomaggy.
NOISE_BRIGHTNESS = {3: np.array([0.100, 0.080, 0.075], np.float32), 1: np.array([0.080], np.float32)}
NANOMAGGY_BRIGHTNESS = {3: np.array([2.0, 2.6, 3.6], np.float32), 1: np.array([2.6], np.float32)}
NONLINEARITY = 2.25  # that of SDSS's frame JPEGs
SIMILAR_DEPTH = 2.5  # factor in noise from SDSS within which brightness is that of the flux, not of the noise
BOX = 512  # pixels; side of the boxes in which the sky is measured
BOX_STEP = 2  # every other row and column of a box is read
CROWDED = 1.5  # a box with this many times the usual noise is full of objects
GRAIN = 251  # pixels after which the noise repeats that fills blank regions: no multiple of a tile's step
BRIGHTEST = 1e6  # scaled brightness, far above white

JPEG_QUALITY = 92
JPEG_BLOCK = 16  # pixels: one block of 8 x 8 of the colours, which are halved

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
        grey), 2 (shown as R and B, their mean as G) or 3 (shown as R, G, B).
    background : Background or None
        Sky that varies over the image; None where it is `sky` everywhere.
    gain : ndarray of float32, shape (P,), or None
        Brightness of one unit of each plane; None for that of `NOISE_BRIGHTNESS`.
    """

    sky: np.ndarray
    noise: np.ndarray
    background: object = None
    gain: object = None

    def render(self, planes, box=None):
        """Picture of a window.

        Parameters
        ----------
        planes : ndarray of float32, shape (P, h, w)
            NaN is shown as sky with its noise: the network trusts less in galaxies next to what is plain black.
        box : tuple of int or None
            ``(y0, x0, y1, x1)`` of the window, for the sky there; None for the sky of the whole image.

        Returns
        -------
        ndarray of uint8, shape (h, w, 3)

        Notes
        -----
        With x the scaled planes and I their sum (three times the plane for grey), a pixel is
        ``x asinh(b I) / (b I)``, and black where I is not above 0 (Lupton et al. 2004: half of the sky's noise is,
        which makes it less grey than planes without their negative values would); colours of which a channel passes 1
        are divided by their largest channel, as in ``djs_rgb_make`` of SDSS's idlutils.
        """
        gain = _for_planes(NOISE_BRIGHTNESS, len(planes)) / self.noise if self.gain is None else self.gain
        varies = self.background is not None and box is not None
        x = planes - (self.background.at(box) if varies else self.sky[:, None, None])
        missing = np.isnan(x)
        if missing.any():
            x[missing] = (self.noise[:, None, None] * _grain(box or (0, 0, *x.shape[1:]), len(x)))[missing]
        x *= gain[:, None, None]
        if len(planes) == 2:
            x = np.stack([x[0], x.mean(axis=0), x[1]])
        np.clip(x, -BRIGHTEST, BRIGHTEST, out=x)
        total = x.sum(axis=0)
        total *= NONLINEARITY * (3 // len(x))
        lit = total > 0
        np.maximum(total, 1e-6, out=total)  # where asinh(t) / t is 1
        np.maximum(x, 0, out=x)
        x *= lit * (np.arcsinh(total) / total)
        x *= 256 / np.maximum(x.max(axis=0), 1)
        colour = np.moveaxis(np.minimum(x, 255).astype(np.uint8), 0, -1)
        return np.broadcast_to(colour, (*colour.shape[:2], 3))


def _grain(box, n):
    """Noise of unit width for n planes of a window, the same for every window that shows a pixel."""
    rows, columns = (np.arange(low, high) % GRAIN for low, high in zip(box[:2], box[2:], strict=True))
    return _noise_field()[:n, rows[:, None], columns]


@functools.cache
def _noise_field():
    return np.random.default_rng(0).standard_normal((3, GRAIN, GRAIN), np.float32)


def _for_planes(brightness, n):
    """Brightness of each of n planes: of two, the outer ones of three."""
    return brightness[3][[0, 2]] if n == 2 else brightness[n]


@dataclass(frozen=True, eq=False)
class Background:
    """Level and noise of the sky, box by box.

    Parameters
    ----------
    level, noise : ndarray of float32, shape (P, ny, nx)
        Median and standard deviation of the sky in each box of each plane.
    shape : tuple of int
        (H, W) of the image, over which the boxes are spread evenly.
    """

    level: np.ndarray
    noise: np.ndarray
    shape: tuple

    def at(self, box):
        """Level of the sky in a window, interpolated between the centres of boxes, constant beyond them.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)`` inside the image.

        Returns
        -------
        ndarray of float32, shape (P, y1 - y0, x1 - x0)
        """
        rows = _weights(box[0], box[2], self.shape[0], self.level.shape[1])
        columns = _weights(box[1], box[3], self.shape[1], self.level.shape[2])
        return rows @ self.level @ columns.T


def _weights(start, stop, size, n):
    """Weights of n boxes along an axis of an image in pixels from start to stop: shape (stop - start, n)."""
    place = (np.arange(start, stop) + 0.5) * n / size - 0.5
    return np.maximum(1 - np.abs(np.clip(place, 0, n - 1)[:, None] - np.arange(n)), 0).astype(np.float32)


def background_of(raster, which):
    """Measure the sky of an image in boxes.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
        Linear data.
    which : list of int
        Planes to measure.

    Returns
    -------
    Background
        Where a box has no data, or is so full of objects that its noise is far above that of others, the level is that
        of the nearest boxes that can be trusted; a median over 3 x 3 boxes follows. NaN if there is no data at all.

    Notes
    -----
    The mesh is that of ``Background2D`` of photutils and of ``sep.Background``, with which it agrees on an open field.
    Those take the whole image at once, where this reads some rows at a time; sep does not give its mesh, from which
    strips could be joined without seams; and both take the light of a globular cluster for sky, since the medians of
    its boxes are clipped but never doubted.
    """
    edges = [np.linspace(0, size, max(1, round(size / BOX)) + 1).astype(int) for size in raster.shape]
    figures = np.full((2, len(which), len(edges[0]) - 1, len(edges[1]) - 1), np.nan, np.float32)
    for row, (y0, y1) in enumerate(zip(edges[0][:-1], edges[0][1:], strict=True)):
        strips = [
            raster.planes((y, 0, min(y + SAMPLE_ROWS, y1), raster.shape[1]), BOX_STEP, which)[:, ::BOX_STEP]
            for y in range(y0, y1, SAMPLE_ROWS)
        ]
        values = _between_steps(np.concatenate(strips, axis=1), raster)
        for column, (x0, x1) in enumerate(zip(edges[1][:-1], edges[1][1:], strict=True)):
            for plane, part in enumerate(values[:, :, -(-x0 // BOX_STEP) : -(-x1 // BOX_STEP)]):
                if np.isfinite(part).any():
                    figures[:, plane, row, column] = sky_statistics(part.ravel(), raster.continuous)
    level, noise = figures
    for plane in range(len(which)):
        _mend(level[plane], noise[plane])
    return Background(level, noise, raster.shape)


def _between_steps(values, raster):
    """Spread whole numbers evenly over their step, always the same way, so that a median can lie between them."""
    if raster.continuous:
        return values
    return values + np.float32(raster.scale) * np.random.default_rng(0).uniform(-0.5, 0.5, values.shape)


def _mend(level, noise):
    """Give boxes without sky the level of their neighbours, in place."""
    from scipy import ndimage

    if level.size == 1 or not np.isfinite(level).any():
        return
    good = np.isfinite(level) & (noise <= CROWDED * np.nanmedian(noise))
    nearest = ndimage.distance_transform_edt(~good, return_distances=False, return_indices=True)
    level[:] = ndimage.median_filter(level[tuple(nearest)], 3, mode="nearest")


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
    if sample.size == 0:
        return None, None
    if raster.picture:
        return None, np.median(sample, axis=1)
    sample = sample[raster.shown]
    figures = np.array([sky_statistics(plane, raster.continuous) for plane in sample], np.float32)
    background = background_of(raster, raster.shown) if max(raster.shape) > BOX else None
    if background is not None:
        noise = np.nanmedian(background.noise, axis=(1, 2))
        figures[:, 1] = np.where(noise > 0, noise, figures[:, 1])
    stretch = AsinhStretch(*figures.T, background, _gain(raster, figures[:, 1]))
    return stretch, np.median(stretch.render(sample[:, None, :])[0], axis=0)


def _gain(raster, noise):
    """Brightness of one unit of each plane that is shown, None where the zero points are not known.

    Colours follow the zero points. So does brightness, by the area of a pixel on the sky, where the noise is about
    that of SDSS; a deeper or shallower image is shown with the noise of SDSS, for that is what the network knows.
    """
    worth = np.array(
        [raster.calibration[plane].nanomaggy for plane in raster.shown] if raster.calibration else [np.nan]
    )
    if raster.wcs is None or not np.isfinite(worth).all():
        return None
    gain = _for_planes(NANOMAGGY_BRIGHTNESS, len(worth)) * worth.astype(np.float32)
    gain *= np.float32((SDSS_SCALE / pixel_scale_of(raster.wcs, raster.shape)) ** 2)
    depth = np.median(gain * noise / _for_planes(NOISE_BRIGHTNESS, len(worth)))
    return gain if 1 / SIMILAR_DEPTH < depth < SIMILAR_DEPTH else gain / depth


def as_jpeg(picture):
    """What is left of a picture after it was stored as a JPEG.

    The pictures on which networks are trained were JPEGs, which smooth the colours of noise over 2 x 2 pixels and
    blocks of 8 x 8. Compressed in the same way, FITS images of SDSS give the catalogue that their JPEGs give, and
    fewer stars are taken for galaxies.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)
        Aligned to blocks of `JPEG_BLOCK` pixels; see `whole_blocks`.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(buffer))


def whole_blocks(box, shape):
    """Widen a box to whole blocks of a JPEG and by one block more, for decoders smooth the colours between blocks.

    Parameters
    ----------
    box : tuple of int
        ``(y0, x0, y1, x1)`` inside the image.
    shape : tuple of int
        (H, W) of the image.

    Returns
    -------
    tuple of int
        The wider box, inside the image.
    """
    low = [max((edge // JPEG_BLOCK - 1) * JPEG_BLOCK, 0) for edge in box[:2]]
    high = [min((-(-edge // JPEG_BLOCK) + 1) * JPEG_BLOCK, size) for edge, size in zip(box[2:], shape, strict=True)]
    return (*low, *high)


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
