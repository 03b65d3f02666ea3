"""Several files that are the bands of one image, brought to the pixels of one of them.

The images of one field in g, r and i seldom share their pixels: in SDSS they lie ten rows apart. Here the band
that gives positions (r, or the middle one) keeps its pixels, and the others are resampled to them, chunk by
chunk, when a chunk is first read. Chunks lie on a fixed grid, so that every window sees the same values.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surveycat.auxiliary import attach, open_mask
from surveycat.errors import ImageError, OptionError
from surveycat.raster import WAVELENGTH_NM, file_key, without_padding
from surveycat.readers import is_fits, open_raster, split_extension
from surveycat.scratch import Scratch
from surveycat.wcs import pixel_scale_of, pixel_to_sky, quiet, sky_to_pixel

__all__ = ["BandRaster", "Bands", "gather", "open_bands", "reference_band", "reference_of"]

CHUNK = 512  # pixels
MARGIN = 16  # pixels around what a chunk needs: cubic splines reach that far
CACHED = 64  # chunks of 1 MB that are kept, at least; a row of them in a wide image
SAME_GRID = 0.01  # pixels by which two WCS may differ and still count as one grid
LEAST_OVERLAP = 0.5  # of the reference image, for files to be taken as its bands unasked
HOW_TO = "name them from the first file to the last, for example --bands i,r,g"


@dataclass(frozen=True)
class Bands:
    """Files that are the bands of one image.

    Parameters
    ----------
    paths : tuple of str
        One FITS image each.
    names : tuple of str
        Of the bands, in the same order.
    """

    paths: tuple
    names: tuple

    @property
    def reference(self):
        """Path of the band whose pixels are those of the image."""
        return self.paths[self.names.index(reference_band(in_colour_order(self.names)))]

    def __str__(self):
        return ", ".join(Path(path).name for path in self.paths)

    def absolute(self):
        """The same with absolute paths."""
        return Bands(tuple(str(Path(path).absolute()) for path in self.paths), self.names)

    @property
    def key(self):
        """Text that changes when one of the files does."""
        files = zip(self.paths, self.names, strict=True)
        return "|".join(f"{file_key(split_extension(path)[0])}{path}{name}" for path, name in files)


def reference_band(names):
    """Choose the band that gives pixels, positions and shapes: r, or the middle one where none is named so.

    Parameters
    ----------
    names : sequence of str
        In the order of their colours.

    Returns
    -------
    str
        One of them.
    """
    return "r" if "r" in names else names[len(names) // 2]


def reference_of(image):
    """Choose the reference band of an image.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        The image.

    Returns
    -------
    str
        Name of one of ``image.bands``. The r band of a colour picture is its green channel.
    """
    return reference_band(image.bands[::-1])


def in_colour_order(names):
    """Sort bands from red to blue where all their wavelengths are known; else leave them as they are."""
    names = list(names)
    if not set(names) <= set(WAVELENGTH_NM):
        return names
    return sorted(names, key=WAVELENGTH_NM.get, reverse=True)


# Which files belong together ------------------------------------------------------------------------------


def gather(images, bands="auto"):
    """Find out whether several inputs are the bands of one image.

    Parameters
    ----------
    images : list of path or ndarray
        What the user gives.
    bands : str or sequence of str
        ``"auto"``: FITS files are the bands of one image if their filters differ and they show the same sky.
        ``"none"``: each is an image by itself. Else the names of the bands, in the order of the files.

    Returns
    -------
    images : list
        The same, or a list of one `Bands`.
    notes : list of str
        What was decided and how to have it otherwise.

    Raises
    ------
    OptionError
        Names that do not fit the files.
    """
    if bands == "none":
        return images, []
    if bands == "auto":
        return _guess(images)
    names = tuple(re.split(r"[\s,]+", bands.strip()) if isinstance(bands, str) else bands)
    _check_names(names, images)
    return [Bands(tuple(str(image) for image in images), names)], []


def _check_names(names, images):
    text = ",".join(names)
    if len(names) != len(images):
        raise OptionError(f"bands {text!r} names {len(names)} bands, there are {len(images)} files: {HOW_TO}")
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name) for name in names):
        raise OptionError(f"bands {text!r} must be different names of letters and digits: {HOW_TO}")
    if any(isinstance(image, np.ndarray) for image in images):
        raise OptionError(f"bands {text!r} are given with an array: bands are FITS files")


def _guess(images):
    if len(images) < 2 or not all(not isinstance(image, np.ndarray) and is_fits(image) for image in images):
        return images, []
    scratch = Scratch()
    try:
        rasters = [open_raster(image, scratch) for image in images]
        names = [raster.bands[0] for raster in rasters]
        if any(len(raster.bands) > 1 or raster.wcs is None for raster in rasters) or not _same_sky(rasters):
            return images, []
    finally:
        scratch.close()
    if "image" in names or len(set(names)) < len(names):
        said = ", ".join(names).replace("image", "none")
        return images, [
            f"{len(images)} files show the same sky, but their FILTER keywords ({said}) do not tell bands apart: each "
            "is searched by itself; --bands with their names, such as i,r,g, makes them one image"
        ]
    found = Bands(tuple(str(image) for image in images), tuple(names))
    note = f"{found} are taken as the bands {', '.join(names)} of one image, in the pixels of "
    return [found], [f"{note}{Path(found.reference).name}; --bands none searches each by itself"]


def _same_sky(rasters):
    """Whether each image shows at least half of the first."""
    height, width = rasters[0].shape
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)))
    places = pixel_to_sky(rasters[0].wcs, x, y)
    for raster in rasters[1:]:
        column, row = sky_to_pixel(raster.wcs, *places)
        inside = (column > -0.5) & (column < raster.shape[1]) & (row > -0.5) & (row < raster.shape[0])
        if inside.mean() < LEAST_OVERLAP:
            return False
    return True


# Pixels ---------------------------------------------------------------------------------------------------


def open_bands(bands, scratch, mask=(), weights=()):
    """Open the bands of an image.

    Parameters
    ----------
    bands : Bands
    scratch : `~surveycat.scratch.Scratch`
    mask, weights : list of str
        As `~surveycat.auxiliary.auxiliary_paths` gives them: one mask on the pixels of the reference band, one weight
        for each file of `bands`.

    Returns
    -------
    BandRaster

    Raises
    ------
    ImageError
        A file that cannot be read or is not one band of linear data, or bands that do not show the same sky.
    OptionError
        Another number of weights than of bands.
    """
    if weights and len(weights) != len(bands.paths):
        raise OptionError(
            f"{len(weights)} weights ({', '.join(weights)}) for {len(bands.paths)} bands: give one for each file of "
            f"{', '.join(bands.paths)}, in this order"
        )
    opened = {name: _open_band(path, scratch) for path, name in zip(bands.paths, bands.names, strict=True)}
    for path, name, weight in zip(bands.paths, bands.names, weights, strict=bool(weights)):
        opened[name] = attach(opened[name], path, [], [weight], scratch)
    names = in_colour_order(bands.names)
    paths = dict(zip(bands.names, bands.paths, strict=True))
    reference = opened[reference_band(names)]
    placed = [_on_grid(opened[name], reference, paths[name], bands.reference) for name in names]
    notes = [f"band {name}: {note}" for name in names for note in opened[name].notes]
    if len(names) > 3:
        notes.append(f"of {len(names)} bands, {', '.join(names[plane] for plane in shown(names))} make the picture")
    masks = [open_mask(path, reference.shape, bands.reference, scratch) for path in mask]
    return BandRaster(placed, tuple(names), reference, tuple(notes), masks[0] if masks else None)


def _open_band(path, scratch):
    raster = open_raster(path, scratch)
    if raster.picture or len(raster.bands) > 1:
        kind = "a picture" if raster.picture else f"{len(raster.bands)} planes"
        raise ImageError(f"{path} is {kind}, not one band of an image: give one FITS image per band")
    return without_padding(raster)


def shown(names):
    """Numbers of the bands that are shown as R, G and B: i, r, g if they are there, else spread over all."""
    if {"i", "r", "g"} <= set(names):
        return [names.index(name) for name in "irg"]
    return sorted({0, len(names) // 2, len(names) - 1}) if len(names) > 3 else list(range(len(names)))


def _on_grid(raster, reference, path, reference_path):
    """Bring a band to the pixels of the reference."""
    if raster is reference:
        return raster
    if raster.wcs is None or reference.wcs is None:
        if raster.shape != reference.shape:
            sizes = " and ".join(f"{width} x {height}" for height, width in (raster.shape, reference.shape))
            raise ImageError(
                f"{path} and {reference_path} have {sizes} pixels and no WCS to bring them together: align them first"
            )
        return raster
    if not _same_sky([reference, raster]):
        raise ImageError(
            f"{path} does not show the sky of {reference_path}, of which it should be a band: give bands of one field"
        )
    x, y = np.meshgrid(np.linspace(0, reference.shape[1] - 1, 5), np.linspace(0, reference.shape[0] - 1, 5))
    column, row = sky_to_pixel(raster.wcs, *pixel_to_sky(reference.wcs, x.ravel(), y.ravel()))
    away = np.hypot(column - x.ravel(), row - y.ravel())
    same = raster.shape == reference.shape and np.nanmax(away) < SAME_GRID
    return raster if same else _Resampled(raster, reference)


class _Resampled:
    """One band in the pixels of another image.

    Parameters
    ----------
    raster : `~surveycat.raster.Raster`
        The band as it is stored.
    reference : `~surveycat.raster.Raster`
        The image whose pixels are wanted.
    """

    def __init__(self, raster, reference):
        self._raster, self._reference, self.calibration = raster, reference, raster.calibration
        scales = [pixel_scale_of(each.wcs, each.shape) for each in (reference, raster)]
        self._area = np.float32((scales[0] / scales[1]) ** 2)  # flux per pixel grows with the pixel
        cached = max(CACHED, 2 * -(-reference.shape[1] // CHUNK))
        self._chunk = functools.lru_cache(cached)(self._resample)
        self._weight_chunk = functools.lru_cache(cached)(self._resample_weights)

    def planes(self, box, step=1, which=None):
        """Values of a box, as `Raster.planes` gives them."""
        return self._of_chunks(self._chunk, box)[None, :, ::step]

    @property
    def weighted(self):
        """Whether there are weights."""
        return self._raster.weighted

    def weights(self, box, plane):
        """Inverse variances of a box, as `Raster.weights` gives them."""
        return self._of_chunks(self._weight_chunk, box)

    def _of_chunks(self, chunk, box):
        """A box from the chunks in which it lies."""
        y0, x0, y1, x1 = box
        values = np.empty((y1 - y0, x1 - x0), np.float32)
        for top in range(y0 // CHUNK * CHUNK, y1, CHUNK):
            for left in range(x0 // CHUNK * CHUNK, x1, CHUNK):
                a, b = max(y0, top), min(y1, top + CHUNK)
                c, d = max(x0, left), min(x1, left + CHUNK)
                values[a - y0 : b - y0, c - x0 : d - x0] = chunk(top, left)[a - top : b - top, c - left : d - left]
        return values

    def _resample(self, top, left):
        """A chunk of the reference's pixels, by cubic splines; NaN where the band has no data."""
        from reproject import reproject_interp

        bottom, right = self._end(top, left)
        out = np.full((bottom - top, right - left), np.nan, np.float32)
        box = self._needed(top, left, bottom, right)
        if box is None:
            return out
        values = self._raster.planes(box)[0]
        missing = ~np.isfinite(values)
        if missing.all():
            return out
        grid = self._reference.wcs[top:bottom, left:right]
        part = self._raster.wcs[box[0] : box[2], box[1] : box[3]]
        with quiet():
            # splines spread a NaN over everything: fill, and cut out afterwards
            filled = np.where(missing, np.median(values[~missing]), values)
            resampled, covered = reproject_interp((filled, part), grid, shape_out=out.shape, order="bicubic")
            if missing.any():
                holes, _ = reproject_interp((missing.astype(float), part), grid, shape_out=out.shape, order="bilinear")
                covered = covered * (holes < 0.01)
        good = (covered > 0) & np.isfinite(resampled)
        out[good] = resampled[good] * self._area
        return out

    def _resample_weights(self, top, left):
        """A chunk of the reference's pixels with the weight of the nearest pixel; 0 where the band has no data."""
        from reproject import reproject_interp

        bottom, right = self._end(top, left)
        out = np.zeros((bottom - top, right - left), np.float32)
        box = self._needed(top, left, bottom, right)
        if box is None:
            return out
        grid = self._reference.wcs[top:bottom, left:right]
        part = self._raster.wcs[box[0] : box[2], box[1] : box[3]]
        with quiet():
            near, covered = reproject_interp(
                (self._raster.weights(box, 0), part), grid, shape_out=out.shape, order="nearest-neighbor"
            )
        good = (covered > 0) & np.isfinite(near)
        out[good] = near[good] / self._area**2
        return out

    def _end(self, top, left):
        """Row and column after a chunk."""
        height, width = self._reference.shape
        return min(top + CHUNK, height), min(left + CHUNK, width)

    def _needed(self, top, left, bottom, right):
        """Box of the band's own pixels that a box of the reference's needs, or None."""
        x, y = np.meshgrid(np.linspace(left, right - 1, 5), np.linspace(top, bottom - 1, 5))
        column, row = sky_to_pixel(self._raster.wcs, *pixel_to_sky(self._reference.wcs, x.ravel(), y.ravel()))
        known = np.isfinite(column + row)
        if not known.any():
            return None
        height, width = self._raster.shape
        low = [max(int(np.floor(axis[known].min())) - MARGIN, 0) for axis in (row, column)]
        high = [
            min(int(np.ceil(axis[known].max())) + MARGIN + 1, size) for axis, size in ((row, height), (column, width))
        ]
        return (*low, *high) if low[0] < high[0] and low[1] < high[1] else None


class BandRaster:
    """The bands of an image in the pixels of one of them; reads like a `~surveycat.raster.Raster`.

    Parameters
    ----------
    placed : list
        Each band on the common grid.
    bands : tuple of str
        Their names, red first.
    reference : `~surveycat.raster.Raster`
        The one whose pixels are those of the image.
    notes : tuple of str
        What the user should know.
    mask : `~surveycat.auxiliary.Mask` or None
        Pixels that are taken as without data in all bands.
    """

    picture, fits, xmp, blank = False, True, b"", None

    def __init__(self, placed, bands, reference, notes, mask=None):
        self._placed, self.bands, self.notes, self.mask = placed, bands, notes, mask
        self.shape, self.wcs = reference.shape, reference.wcs
        self.continuous, self.scale, self.weighted = reference.continuous, reference.scale, reference.weighted
        self.calibration = tuple(band.calibration[0] for band in placed)
        self.shown = shown(bands)

    def planes(self, box, step=1, which=None):
        """Values of a box: as `~surveycat.raster.Raster.planes`."""
        which = range(len(self._placed)) if which is None else which
        values = np.concatenate([self._placed[plane].planes(box, step) for plane in which])
        if self.mask is not None:
            values[:, self.mask.at(box, step)] = np.nan
        return values

    def weights(self, box, plane):
        """Inverse variances of one band in a box: as `~surveycat.raster.Raster.weights`."""
        values = self._placed[plane].weights(box, 0)
        if self.mask is not None:
            values[self.mask.at(box)] = 0
        return values
