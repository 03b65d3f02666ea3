"""Artificial galaxies and stars, and an image to which their light was added.

Light is added linearly. FITS data are linear; a picture is turned back to light by undoing the stretch of SDSS's own
pictures, gets the new light, and is stretched again, only where light was added. Light of a picture is in units of
white: the brightness that the stretch shows as 256 counts where it is faint.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from surveycat.errors import ImageError, OptionError
from surveycat.stretch import NANOMAGGY_BRIGHTNESS, NONLINEARITY, AsinhStretch

__all__ = [
    "AlteredRaster",
    "Psf",
    "Stamp",
    "altered_picture",
    "light_of_picture",
    "measure_psf",
    "real_galaxy",
    "sersic",
]

WHITE = 256.0
BURNT = 250  # counts; what is brighter is white, and light added to it is not seen
PSF_SIDE = 25  # pixels of the stack of stars
MIN_STARS = 5
MOST_STARS = 60
BETA = 3.0  # of the Moffat profile, where the seeing is given and not measured
REACH = 6.0  # half-light radii at which a galaxy ends
FINE = 5, 31  # parts of a pixel in each direction for the profiles of galaxies: least and most
PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


# Pictures and light ---------------------------------------------------------------------------------------


def light_of_picture(picture):
    """Undo the stretch of SDSS's pictures (Lupton et al. 2004; softening 2.25 on the sum of the channels).

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)

    Returns
    -------
    ndarray of float32, shape (3, h, w)
        Light in units of white; what was clipped stays so.
    """
    counts = np.moveaxis(np.where(picture > 0, picture + np.float32(0.5), np.float32(0)), -1, 0) / WHITE
    total = NONLINEARITY * np.maximum(counts.sum(axis=0), 1e-6)
    return counts * (np.sinh(total) / total)


def altered_picture(picture, added):
    """Add light to a picture.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)
    added : ndarray of float32, shape (3, h, w)
        Light in units of white, i, r, g.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        Pixels without added light, and burnt-out ones, are as they were.
    """
    ones = np.ones(3, np.float32)
    stretched = AsinhStretch(0 * ones, ones, gain=ones).render(light_of_picture(picture) + added)
    same = (added.max(axis=0) <= 0) | (picture.max(axis=-1) >= BURNT)
    return np.where(same[..., None], picture, stretched)


# The point spread function --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Psf:
    """An elliptical Moffat profile of total light 1.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum, pixels: geometric mean of both axes.
    beta : float
        Exponent (Moffat 1969).
    ratio : float
        Minor over major axis.
    angle : float
        Of the major axis from +x towards +y, radians.
    """

    fwhm: float
    beta: float = BETA
    ratio: float = 1.0
    angle: float = 0.0

    def at(self, y, x, shape):
        """Light in the pixels of a grid.

        Parameters
        ----------
        y, x : float
            Centre, pixels of the grid.
        shape : tuple of int
            (h, w).

        Returns
        -------
        ndarray of float32, shape (h, w)
            Mean over 3 x 3 points of each pixel.
        """
        total = np.zeros(shape)
        steps = (-1 / 3, 0, 1 / 3)
        for dy in steps:
            for dx in steps:
                rows, columns = np.arange(shape[0])[:, None] + dy - y, np.arange(shape[1]) + dx - x
                total += self._profile(rows, columns)
        return (total / 9).astype(np.float32)

    def _profile(self, dy, dx):
        width = self.fwhm / 2 / np.sqrt(2 ** (1 / self.beta) - 1)
        along = dx * np.cos(self.angle) + dy * np.sin(self.angle)
        across = dy * np.cos(self.angle) - dx * np.sin(self.angle)
        square = (along**2 * self.ratio + across**2 / self.ratio) / width**2
        return (self.beta - 1) / (np.pi * width**2) * (1 + square) ** -self.beta

    @cached_property
    def half_light_radius(self):
        """float : of the round profile, pixels."""
        width = self.fwhm / 2 / np.sqrt(2 ** (1 / self.beta) - 1)
        return width * np.sqrt(0.5 ** (1 / (1 - self.beta)) - 1)

    def reach(self, flux, noise):
        """Pixels from the centre to where a star of this flux falls below a tenth of the noise, 8 at least."""
        width = self.fwhm / 2 / np.sqrt(2 ** (1 / self.beta) - 1)
        peak = flux * (self.beta - 1) / (np.pi * width**2)
        square = max(peak / max(0.1 * noise, 1e-30), 1.0) ** (1 / self.beta) - 1
        return int(np.clip(np.ceil(width * np.sqrt(square)), 8, 200))


def measure_psf(light, brightest=np.inf):
    """Measure the point spread function from the stars of an image.

    Parameters
    ----------
    light : ndarray, shape (h, w)
        Linear light of one band; NaN where there is none.
    brightest : float
        Peaks above this, sky included, are burnt out.

    Returns
    -------
    Psf or None
        Least-squares fit to the median of stars that stand alone; None if there are fewer than 5.

    Notes
    -----
    Stars are the peaks of the commonest sharpness: sorted by the light within 1.5 px over that within 5 px, nothing
    is sharper than a star but a defect, and of the sharp ones they are the most.
    """
    from scipy import ndimage, optimize

    finite = np.isfinite(light)
    sky = float(np.median(light[finite]))
    above = np.where(finite, light - sky, 0.0).astype(np.float32)
    smooth = ndimage.gaussian_filter(above, 1.0)
    noise = 1.4826 * float(np.median(np.abs(smooth[finite] - np.median(smooth[finite]))))
    half = PSF_SIDE // 2
    peaks = (smooth == ndimage.maximum_filter(smooth, PSF_SIDE)) & (smooth > 60 * noise)
    peaks &= ndimage.maximum_filter(np.where(finite, light, np.inf), 5) < brightest
    rows, columns = np.nonzero(peaks[half:-half, half:-half])
    crops = [above[y : y + PSF_SIDE, x : x + PSF_SIDE] for y, x in zip(rows, columns, strict=True)]
    if len(crops) < MIN_STARS:
        return None
    distance = np.hypot(*(np.indices((PSF_SIDE, PSF_SIDE)) - half))
    inner, outer = distance <= 2, distance <= 6
    sharp = np.array([crop[inner].sum() / max(crop[outer].sum(), 1e-30) for crop in crops])
    chosen = np.flatnonzero(_commonest(sharp))[:MOST_STARS]
    if len(chosen) < MIN_STARS:
        return None
    centred = [_centred(crops[i], outer) for i in chosen]
    stack = np.median(centred, axis=0)

    # Without bounds, and with two components of the ellipticity: a fit is stuck at bounds, and where a star is round
    # and has no angle.
    def model(log_fwhm, log_beta, along, across):
        ratio, angle = np.exp(-np.hypot(along, across)), np.arctan2(across, along) / 2
        return Psf(np.exp(log_fwhm), 1 + np.exp(log_beta), ratio, angle)

    def misfit(p):
        return (p[4] * model(*p[:4]).at(half, half, stack.shape) - stack).ravel() / stack.max()

    fit = optimize.least_squares(misfit, [np.log(3.0), np.log(BETA - 1), 0.0, 0.0, 1.0], method="lm")
    found = model(*fit.x[:4])
    return Psf(*(float(value) for value in (found.fwhm, found.beta, found.ratio, found.angle)))


def _commonest(sharp):
    """Which values lie within 6 % of the one that most others are near to, among the sharper three quarters."""
    candidates = sharp[sharp >= np.quantile(sharp, 0.25)]
    near = np.abs(sharp - candidates[:, None]) < 0.06 * candidates[:, None]
    return near[np.argmax(near.sum(axis=1))]


def _centred(crop, aperture):
    """A star moved to the middle of its crop, by the centroid that concentrations use, and scaled to a light of 1."""
    from scipy import ndimage

    from surveycat.centroid import windowed_centroid
    from surveycat.stars import CORE_RADIUS

    half = PSF_SIDE // 2
    x, y = windowed_centroid(np.maximum(crop, 0), half, half, CORE_RADIUS)
    moved = ndimage.shift(crop, (half - y, half - x), order=3, mode="nearest")
    return moved / max(moved[aperture].sum(), 1e-30)


# Galaxies -------------------------------------------------------------------------------------------------


def sersic(index, radius, ratio, angle, half):
    """Profile of a galaxy (Sersic 1963), total light 1.

    Parameters
    ----------
    index : float
        Sersic index n: 1 for a disk, 4 for an elliptical.
    radius : float
        Half-light radius along the major axis, pixels.
    ratio : float
        Minor over major axis.
    angle : float
        Of the major axis from +x towards +y, radians.
    half : int
        The grid has 2 half + 1 pixels a side; the galaxy is in the middle of the middle one.

    Returns
    -------
    ndarray of float32, shape (2 half + 1, 2 half + 1)
        Mean over 5 x 5 points of each pixel, over more where it is narrow. It ends at 6 half-light radii.
    """
    from scipy.special import gammaincinv

    parts = int(np.clip(6 / (radius * ratio), *FINE)) // 2 * 2 + 1  # small and narrow ones need more
    step = (np.arange((2 * half + 1) * parts) + 0.5) / parts - half - 0.5
    dy, dx = step[:, None], step
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    mean = 0.38 / parts  # distance from the middle of a square, so that the point there stands for its square
    distance = np.sqrt(along**2 + (across / ratio) ** 2 + mean**2) / radius
    profile = np.exp(-gammaincinv(2 * index, 0.5) * distance ** (1 / index)) * (distance <= REACH)
    light = profile.reshape(2 * half + 1, parts, 2 * half + 1, parts).mean(axis=(1, 3))
    return (light / light.sum()).astype(np.float32)


def real_galaxy(path, radius, rng):
    """A real galaxy from a cutout with the galaxy in its middle, shrunk to a given size.

    Parameters
    ----------
    path : path-like
        JPEG, PNG or TIFF in the stretch of SDSS's pictures.
    radius : float
        Half-light radius wanted, pixels; a galaxy is never enlarged.
    rng : `numpy.random.Generator`
        Turns and mirrors it.

    Returns
    -------
    light : ndarray of float32, shape (3, h, w)
        Channels i, r, g; light of the middle one 1 in total.
    radius : float
        Half-light radius, pixels.

    Raises
    ------
    ImageError
        If it is no picture, or nothing stands out in its middle.
    """
    from PIL import Image
    from scipy import ndimage

    from surveycat.centroid import half_light_radius

    try:
        with Image.open(path) as picture:
            light = light_of_picture(np.asarray(picture.convert("RGB")))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(
            f"{path} cannot be read as a picture of a galaxy ({error}); take it out of the folder"
        ) from error
    rim = np.concatenate([light[:, 0], light[:, -1], light[:, :, 0], light[:, :, -1]], axis=1)
    light = light - np.median(rim, axis=1)[:, None, None]
    smooth = ndimage.gaussian_filter(light.sum(axis=0), 2.0)
    noise = 1.4826 * float(np.median(np.abs(rim.sum(axis=0) - np.median(rim.sum(axis=0)))))
    labels, _ = ndimage.label(smooth > max(1.5 * noise, 1e-3))
    middle = labels[labels.shape[0] // 2, labels.shape[1] // 2]
    if not middle:
        raise ImageError(f"{path} shows nothing in its middle; take it out of the folder")
    mask = ndimage.gaussian_filter((labels == middle).astype(np.float32), 2.0)
    light = np.maximum(light, 0) * np.clip(2 * mask - 0.2, 0, 1)
    y, x = ndimage.center_of_mass(light[1])
    own = half_light_radius(light[1], x, y)
    factor = min(radius / own, 1.0)
    shape = [max(3, round(size * factor)) for size in light.shape[1:]]
    planes = [np.asarray(Image.fromarray(plane).resize(shape[::-1], Image.Resampling.BOX)) for plane in light]
    turned = np.rot90(np.stack(planes), rng.integers(4), axes=(1, 2))
    turned = turned[:, :, ::-1] if rng.random() < 0.5 else turned
    return (turned / turned[1].sum()).astype(np.float32), own * factor


def galaxy_files(folder):
    """Pictures in a folder and below, sorted.

    Raises
    ------
    OptionError
        If there is none.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise OptionError(f"cutouts is {folder}, where there are no pictures; name a folder of JPEG or PNG cutouts")
    return files


def blur_margin(fwhm):
    """Pixels around light that its image through a point spread function of this width takes."""
    return int(np.ceil(3 * fwhm))


def blurred(light, psf, y=0.0, x=0.0, margin=None):
    """Light as seen through a point spread function, on a grid with a margin around it.

    Parameters
    ----------
    light : ndarray, shape (h, w)
    psf : Psf
    y, x : float, optional
        Pixels by which the light is moved; exact also where it is narrower than a pixel.
    margin : int, optional
        Pixels around the light, m; `blur_margin` of the PSF by default.

    Returns
    -------
    ndarray of float32, shape (h + 2 m, w + 2 m)
    """
    from scipy.signal import fftconvolve

    margin = blur_margin(psf.fwhm) if margin is None else margin
    kernel = psf.at(margin + y, margin + x, (2 * margin + 1, 2 * margin + 1))
    return np.maximum(fftconvolve(light, kernel / kernel.sum(), mode="full"), 0).astype(np.float32)


# An altered image -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stamp:
    """Light to be added.

    Parameters
    ----------
    y0, x0 : int
        Place of its first pixel.
    light : ndarray of float32, shape (P, h, w)
        In each plane, in units of the image (of white for a picture).
    """

    y0: int
    x0: int
    light: np.ndarray

    def part(self, box):
        """Slices in the window and in the stamp of what they share, or None."""
        y0, x0, y1, x1 = box
        top, left = max(self.y0, y0), max(self.x0, x0)
        bottom, right = min(self.y0 + self.light.shape[1], y1), min(self.x0 + self.light.shape[2], x1)
        if bottom <= top or right <= left:
            return None
        here = np.s_[:, top - y0 : bottom - y0, left - x0 : right - x0]
        return here, np.s_[:, top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0]


class AlteredRaster:
    """The pixels of an image with the light of stamps added; reads like the raster it wraps.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
        What is behind.
    stamps : list of Stamp
        Placed in pixels of the raster.
    """

    def __init__(self, raster, stamps):
        self._raster, self._stamps = raster, stamps

    def __getattr__(self, name):
        return getattr(self._raster, name)

    def planes(self, box, step=1, which=None):
        """Linear values of a box, as `Raster.planes` gives them, and the added light."""
        values = self._raster.planes(box, step, which)
        if not any(stamp.part(box) for stamp in self._stamps):
            return values
        added = np.zeros((len(self._raster.bands), box[2] - box[0], box[3] - box[1]), np.float32)
        for stamp in self._stamps:
            place = stamp.part(box)
            if place is not None:
                added[place[0]] += stamp.light[place[1]]
        return values + (added if which is None else added[which])[:, :, ::step]


def altered(image, stamps):
    """The image with the light of stamps added: same stretch, same sky, same place.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Open image.
    stamps : list of Stamp
        Placed in pixels of this image.

    Returns
    -------
    `~surveycat.image.Image`
        For this process only; close it after use.
    """
    dy, dx = image.offset
    stamps = [replace(stamp, y0=stamp.y0 + dy, x0=stamp.x0 + dx) for stamp in stamps]
    raster = image.raster
    if not image.picture:
        return image.with_raster(AlteredRaster(raster, stamps))
    pixels = np.array(raster.array)
    for stamp in stamps:
        place = stamp.part((0, 0, *raster.shape))
        if place is not None:
            (_, rows, columns), inside = place
            pixels[rows, columns] = altered_picture(pixels[rows, columns], stamp.light[inside])
    return image.with_raster(replace(raster, array=pixels))


def units_per_nanomaggy(image):
    """Units of the image that a nanomaggy gives in each plane, by name of the band; NaN where it is not known.

    A picture has no zero point: the values are those of SDSS's own pictures, whose colours are assumed.
    """
    if image.picture:
        return dict(zip(("i", "r", "g"), NANOMAGGY_BRIGHTNESS[3].tolist(), strict=True))
    worth = image.calibration
    return {band: 1 / worth[band].nanomaggy if band in worth else np.nan for band in image.bands}
