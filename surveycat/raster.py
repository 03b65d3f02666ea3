"""An opened image: its pixels as stored, and what the file says about itself."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from surveycat.errors import ImageError

__all__ = ["RGB_BANDS", "STRIP_ROWS", "WAVELENGTH_NM", "Raster", "array_raster", "file_key", "without_padding"]

RGB_BANDS = ("i", "r", "g")
WAVELENGTH_NM = {
    "U": 365, "u": 354, "B": 445, "g": 477, "V": 551, "r": 623, "R": 658, "i": 762, "I": 806, "z": 913, "y": 1000,
    "Y": 1020, "J": 1235, "H": 1662, "K": 2159,
}  # fmt: skip
STRIP_ROWS = 256  # rows that are decoded at a time
PADDING_ROWS = 64  # rows in which padding is looked for
LEAST_PADDING = 0.01  # share of zeros that is taken for padding


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels as stored, in memory or memory-mapped; the readers make it.

    Parameters
    ----------
    array : ndarray
        uint8, shape (H, W, 3) for a picture; shape (P, H, W) with P 1 or 3 and any number type otherwise.
    picture : bool
        Whether the array is a picture, to be shown as it is.
    bands : tuple of str
        Name of each channel (in the order R, G, B) or plane.
    scale, zero : float
        Value = stored * scale + zero.
    blank : int or None
        The stored value that means no data.
    wcs : `~astropy.wcs.WCS` or None
        From the FITS header.
    xmp : bytes
        XMP packet, in which AVM tags are kept.
    fits : bool
        Whether the file is FITS, in which rows are counted upwards.
    notes : tuple of str
        What the user should know.
    calibration : tuple of `~surveycat.calibration.Calibration`
        What a unit is worth in each plane; empty for a picture.
    mask : `~surveycat.auxiliary.Mask` or None
        Pixels that are taken as without data.
    weight : `~surveycat.auxiliary.Weight` or None
        Inverse variances; what has none is taken as without data.
    padded : bool
        Whether 0 means no data; see `without_padding`.
    """

    array: np.ndarray
    picture: bool
    bands: tuple = RGB_BANDS
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None
    wcs: object = None
    xmp: bytes = b""
    fits: bool = False
    notes: tuple = ()
    calibration: tuple = ()
    mask: object = None
    weight: object = None
    padded: bool = False

    @property
    def shape(self):
        """(H, W) in pixels."""
        return self.array.shape[:2] if self.picture else self.array.shape[1:]

    @property
    def shown(self):
        """Numbers of the planes that make the picture, R, G, B: all."""
        return list(range(len(self.bands)))

    @property
    def continuous(self):
        """Whether the stored numbers are floating-point."""
        return self.array.dtype.kind == "f"

    @property
    def weighted(self):
        """Whether there are weights."""
        return self.weight is not None

    @property
    def scaled(self):
        """Whether values differ from what is stored."""
        return (self.scale, self.zero) != (1.0, 0.0)

    def planes(self, box, step=1, which=None):
        """Linear values of a box.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)``, inside the image.
        step : int
            Take every step-th column only.
        which : list of int or None
            Numbers of the planes to read; None for all.

        Returns
        -------
        ndarray of float32, shape (P, y1 - y0, ceil((x1 - x0) / step))
            NaN where there is no data, or where it is infinite.
        """
        values = self._stored(box, step, which)
        if self.mask is not None:
            values[:, self.mask.at(box, step)] = np.nan
        if self.weight is not None:
            for place, plane in enumerate(range(len(self.bands)) if which is None else which):
                values[place][self.weight.at(box, plane, step) == 0] = np.nan
        return values

    def weights(self, box, plane):
        """Inverse variances of one plane in a box where it is `weighted`: float32, 0 where there is no data."""
        values = self.weight.at(box, plane)
        if self.mask is not None:
            values[self.mask.at(box)] = 0
        return values

    def _stored(self, box, step, which):
        """What `planes` gives, from the image's own file."""
        y0, x0, y1, x1 = box
        if self.picture:
            planes = np.moveaxis(self.array[y0:y1, x0:x1:step], -1, 0)
            return (planes if which is None else planes[which]).astype(np.float32)
        raw = self.array[slice(None) if which is None else which, y0:y1, x0:x1:step]
        with np.errstate(over="ignore"):  # float64 beyond the range of float32 becomes infinite, then NaN
            values = (raw * self.scale + self.zero if self.scaled else raw).astype(np.float32)
        if self.continuous:
            values[np.isinf(values)] = np.nan
        if self.blank is not None:
            values[raw == self.blank] = np.nan
        if self.padded:
            values[values == 0] = np.nan
        return values


def without_padding(raster):
    """Take zeros for what they are around the sky of many mosaics: no data.

    Parameters
    ----------
    raster : Raster
        An image; not a mask or weights, whose zeros have a meaning.

    Returns
    -------
    Raster
        The same, or with `Raster.padded` set and a note: for floating-point numbers, of which next to none are 0 by
        chance, where zeros lie side by side, and where the other pixels are those of a sky: some are negative, or 0 is
        far below nearly all. Around the objects of a simulation without noise 0 is the sky.
    """
    if raster.picture or not raster.continuous:
        return raster
    height, width = raster.shape
    rows = np.unique(np.linspace(0, height - 1, PADDING_ROWS).astype(int)).tolist()
    values = np.concatenate([raster.planes((y, 0, y + 1, width)) for y in rows], axis=1)
    zero, others = values == 0, values[(values != 0) & np.isfinite(values)]
    if width < 2 or zero.mean() < LEAST_PADDING or not others.size:
        return raster
    together = zero[..., 1:][zero[..., :-1]].mean() > 0.9
    negative, least, median = (others < 0).mean(), np.quantile(others, 0.01), np.median(others)
    if not together or not (negative > 0.05 or least > 0.5 * median > 0):
        return raster
    note = f"{zero.mean():.0%} of its pixels are exactly 0, side by side: they are taken as without data"
    return replace(raster, padded=True, notes=(*raster.notes, note))


def array_raster(array):
    """Check an array from a caller and wrap it.

    Parameters
    ----------
    array : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    Raster

    Raises
    ------
    ImageError
        Another shape or type.
    """
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise ImageError(
            f"array of shape {array.shape} and type {array.dtype} is not an (H, W, 3) uint8 RGB image: "
            "convert it, or save it as FITS"
        )
    return Raster(array, picture=True)


def file_key(path):
    """Name for what is made of a file, which changes when the file does."""
    stat = path.stat()
    text = f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
