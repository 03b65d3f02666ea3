"""Any image, opened once and read by windows.

An `Image` gives pixels of any level by box, and knows its place on the sky, whatever file it came from.
Pixels are ``image[y, x, channel]``, 0-based, rows as stored; boxes are ``(y0, x0, y1, x1)``, half-open;
channels are i, r, g.
"""

import hashlib
import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from surveycat import levels, sky, wcs
from surveycat.auxiliary import attach, auxiliary_paths, weight_notes
from surveycat.bands import Bands, open_bands
from surveycat.errors import ImageError, OptionError
from surveycat.raster import array_raster, file_key, without_padding
from surveycat.readers import open_raster, split_extension
from surveycat.region import overlap, parse_region
from surveycat.scratch import Scratch
from surveycat.stretch import as_jpeg, sample_pixels, stretch_for, whole_blocks

__all__ = ["Image", "ImageSource", "open_image", "parse_region"]

TILE = 256  # the coarsest level is the first that fits into a tile of this size
WIDEST = 8192  # pixels rendered at a time; a JPEG has at most 65,535
BURNT, MOST_BURNT = 250, 0.2  # counts, and the share of pixels above which a picture is burnt out
NOISE_SIDE = 256  # pixels after which the noise repeats that is shown outside of linear data
MOST_NOISE = 30  # counts; the noise of a picture of the sky is below 20
BRIGHT_SKY = 150  # counts: a picture with a sky like this is a negative


@dataclass(frozen=True, eq=False)
class ImageSource:
    """What is needed to open an image: small, picklable, the same in every process.

    Parameters
    ----------
    image : path-like, `~surveycat.bands.Bands` or ndarray
        JPEG, PNG, TIFF, FITS with 2 axes or 3 planes (also packed, or ``image.fits[1]``), several FITS files that
        are bands of one image, or an (H, W, 3) uint8 array.
    wcs : path-like, `~astropy.wcs.WCS` or None
        A WCS, or a file with one (FITS, ``.hdr``, ``.wcs``).
    ra, dec : float or None
        ICRS degrees of pixel (W/2, H/2) of a north-up image, as SkyServer makes them.
    pixel_scale : float or None
        Arcsec per pixel. Default: that of the file, else 0.396127.
    rotation : float
        With `ra` and `dec`: degrees from "up" counter-clockwise to north (the position angle of "up" is minus
        this).
    scratch : path-like or None
        Folder for what does not fit into memory, which processes share and which is not removed. None: a
        temporary one.
    region : tuple of int or None
        Box ``(y0, x0, y1, x1)`` to which the image is limited.
    mask : path-like or None
        FITS image on the same pixels: what is not 0 there is blank here.
    weight : path-like, sequence of path-like or None
        FITS image of inverse variances on the same pixels, of each file of `~surveycat.bands.Bands` one: what has no
        weight above 0 is blank.
    """

    image: object
    wcs: object = None
    ra: float | None = None
    dec: float | None = None
    pixel_scale: float | None = None
    rotation: float = 0.0
    scratch: object = None
    region: tuple | None = None
    mask: object = None
    weight: object = None

    def open(self):
        """Open the image; close it after use, or use it in a ``with`` statement.

        Returns
        -------
        Image

        Raises
        ------
        ImageError, PositionError, OptionError
            It cannot be opened as asked for.
        """
        scratch = Scratch(self.scratch)
        try:
            image = self._open(scratch)
            return image if self.region is None else image.region(self.region, owner=True)
        except BaseException:
            scratch.close()
            raise

    def _open(self, scratch):
        auxiliary = auxiliary_paths(self.mask, self.weight)
        if isinstance(self.image, np.ndarray):
            raster, path = attach(array_raster(self.image), "the array", *auxiliary, scratch), None
        elif isinstance(self.image, Bands):
            raster = open_bands(self.image, scratch, *auxiliary)
            path = split_extension(self.image.reference)[0]
        else:
            opened = without_padding(open_raster(self.image, scratch))
            raster = attach(opened, str(self.image), *auxiliary, scratch)
            path = split_extension(self.image)[0]
        given = self.wcs, self.ra, self.dec, self.pixel_scale, self.rotation
        return Image(replace(self, region=None), raster, sky.locate(raster, path, *given), scratch)


def open_image(
    image, wcs=None, ra=None, dec=None, pixel_scale=None, rotation=0.0, scratch=None, *, mask=None, weight=None
):
    """Open an image from a path or an array.

    Parameters
    ----------
    image, wcs, ra, dec, pixel_scale, rotation, scratch, mask, weight
        As in `ImageSource`.

    Returns
    -------
    Image
        A context manager, which removes its temporary files at the end.

    Raises
    ------
    ImageError
        Missing, damaged, not an image, or not of a kind that can be searched.
    PositionError
        A position or WCS that cannot be used.
    """
    return ImageSource(image, wcs, ra, dec, pixel_scale, rotation, scratch, mask=mask, weight=weight).open()


def _sha256_of(paths):
    """Hash of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(split_extension(path)[0], "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _oddities(raster, sky):
    """Say in what a picture is far from those on which networks are trained."""
    if not raster.picture:
        return []
    found = []
    if sky.mean() > BRIGHT_SKY:
        found.append(f"the sky is bright ({sky.mean():.0f} of 255): if this is a negative, invert it first")
        return found
    green = sample_pixels(raster)[1]
    burnt = float((green >= BURNT).mean())
    noise = 1.4826 * float(np.median(np.abs(green - np.median(green))))
    if burnt > MOST_BURNT:
        found.append(f"{burnt:.0%} of the pixels are white: no shapes are left in them")
    if noise > MOST_NOISE:
        found.append(f"its pixels scatter by {noise:.0f} of 255 about their median: noise, or no sky at all")
    return found


class Image:
    """An open image; made by `open_image`.

    Parameters
    ----------
    source : ImageSource
    raster : `~surveycat.raster.Raster`
    placement : `~surveycat.sky.Placement`
    scratch : `~surveycat.scratch.Scratch`

    Attributes
    ----------
    shape : tuple of int
        (H, W).
    offset : tuple of int
        (y0, x0) of pixel (0, 0) in the whole image; not (0, 0) for a region.
    wcs : `~astropy.wcs.WCS` or None
        In this image's pixels. `pixel_to_sky` minds frames, swapped axes and distortions.
    wcs_source : {"file", "radec", "header", "avm", "sidecar"} or None
    pixel_scale : float or None
        Arcsec per pixel.
    notes : list of str
        What the user should know, for the log.
    oddities : list of str
        In what the image is far from all on which networks are trained; empty for most.
    """

    def __init__(self, source, raster, placement, scratch):
        self._source, self._raster, self._scratch, self._owner = source, raster, scratch, True
        self._stretch, self._sky = stretch_for(raster)
        if self._sky is None:
            left_out = ", masked or without weight" if any(self._auxiliary) else ""
            raise ImageError(
                f"{self.name} has no data: all pixels are NaN, infinite or BLANK{left_out}; give another image"
            )
        self.shape, self.offset = raster.shape, (0, 0)
        self.wcs, self.wcs_source, self.pixel_scale = placement.wcs, placement.source, placement.pixel_scale
        self.notes = [*raster.notes, *placement.notes]
        if not raster.picture:
            self.notes += weight_notes(raster, self._stretch.noise)
        self._levels = {}
        self.oddities = _oddities(raster, self._sky)
        self.notes += [f"{oddity}; all rows are flagged outside_domain" for oddity in self.oddities]

    def __repr__(self):
        size = f"{self.shape[1]} x {self.shape[0]}"
        return f"<Image {self.name}: {size} pixels, position from {self.wcs_source}>"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Let go of the levels and remove temporary files."""
        self._levels = {}
        if self._owner:
            self._scratch.close()

    # --- what it is ---

    @property
    def name(self):
        """Name of the file without its folder, of all files of bands, or "array"."""
        image = self._source.image
        if isinstance(image, Bands):
            return str(image)
        return "array" if isinstance(image, np.ndarray) else Path(image).name

    @property
    def source(self):
        """`ImageSource` with which another process opens this image, using the same scratch folder."""
        image, scratch = self._source.image, self._scratch
        if isinstance(image, Bands):
            image = image.absolute()
        elif not isinstance(image, np.ndarray):
            image = str(Path(image).absolute())
        elif scratch.shared is not None:  # so that pixels do not travel with every task
            name = f"array-{self.sha256[:16]}.npy"
            pixels = image
            image = str(scratch.file(name, lambda file: np.save(file, pixels, allow_pickle=False)))
        mask, weights = ([str(Path(path).absolute()) for path in paths] for paths in self._auxiliary)
        return replace(
            self._source, image=image, scratch=scratch.shared, mask=mask[0] if mask else None, weight=weights
        )

    @property
    def _auxiliary(self):
        """Paths of masks and of weights."""
        return auxiliary_paths(self._source.mask, self._source.weight)

    @cached_property
    def sha256(self):
        """Hash of the input: of the bytes of its file, of all files of bands one after the other, or of the array."""
        image = self._source.image
        if isinstance(image, np.ndarray):
            return hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
        return _sha256_of(image.paths if isinstance(image, Bands) else (image,))

    @cached_property
    def auxiliary(self):
        """What goes with the image: names and hashes of files, by "mask" and "weight"; empty for most images."""
        both = zip(("mask", "weight"), self._auxiliary, strict=True)
        return {
            kind: {"name": ", ".join(Path(path).name for path in paths), "sha256": _sha256_of(paths)}
            for kind, paths in both
            if paths
        }

    @property
    def n_levels(self):
        """Number of levels up to the first that fits into a tile of 256 pixels, level 0 included."""
        level = 0
        while max(self.level_shape(level)) > TILE:
            level += 1
        return level + 1

    def level_shape(self, level):
        """(h, w) of a level: the size of the image divided by 2^level and rounded up."""
        return levels.level_shape(self.shape, level)

    @property
    def bands(self):
        """Names of the bands, blue to red: ``["g", "r", "i"]`` for a picture."""
        return list(self._raster.bands[::-1])

    @property
    def calibration(self):
        """`~surveycat.calibration.Calibration` by name of the band; empty for a picture."""
        return dict(zip(self._raster.bands, self._raster.calibration, strict=False))

    @property
    def picture(self):
        """Whether it is an 8-bit picture (JPEG, PNG, TIFF, array, 8-bit FITS) and has no linear data."""
        return self._raster.picture

    # --- pixels ---

    def read(self, box, level=0):
        """Picture of a box.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)`` in pixels of the level; outside the image is the colour of its sky, for linear data
            with its noise.
        level : int
            0 for the pixels as they are, k for blocks of 2^k x 2^k averaged.

        Returns
        -------
        ndarray of uint8, shape (y1 - y0, x1 - x0, 3)
        """
        picture = np.empty((box[2] - box[0], box[3] - box[1], 3), np.uint8)
        inside, target = overlap(box, self.level_shape(level))
        if inside is None or target != (0, 0, *picture.shape[:2]):
            picture[:] = self._beyond(box, level)
        if inside is not None:
            picture[target[0] : target[2], target[1] : target[3]] = self._picture(inside, level)
        return picture

    def blank(self, box):
        """Where there is no data.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)`` of level 0.

        Returns
        -------
        ndarray of bool, shape (y1 - y0, x1 - x0)
            True where all planes are NaN, infinite, BLANK, masked or without weight, and outside the image.
        """
        blank = np.ones((box[2] - box[0], box[3] - box[1]), bool)
        inside, target = overlap(box, self.shape)
        if inside is not None:
            view = blank[target[0] : target[2], target[1] : target[3]]
            view[:] = np.isnan(self._planes(inside)).all(axis=0) if self.may_be_blank else False
        return blank

    @property
    def may_be_blank(self):
        """Whether there may be pixels without data inside the image: there are none in a picture without a mask."""
        return not self._raster.picture or self._raster.mask is not None

    def band(self, name, box):
        """Linear data of one band.

        Parameters
        ----------
        name : str
            One of `bands`.
        box : tuple of int
            ``(y0, x0, y1, x1)`` of level 0.

        Returns
        -------
        ndarray of float32, shape (y1 - y0, x1 - x0)
            As in the FITS file (BZERO and BSCALE applied), or 0 to 255 for a picture; NaN where there is no
            data, and outside the image.
        """
        values = np.full((box[2] - box[0], box[3] - box[1]), np.nan, np.float32)
        inside, target = overlap(box, self.shape)
        if inside is not None:
            plane = self._raster.bands.index(name)
            values[target[0] : target[2], target[1] : target[3]] = self._planes(inside, [plane])[0]
        return values

    def weight(self, name, box):
        """Inverse variances of one band, as ``--weight`` gives them.

        Parameters
        ----------
        name : str
            One of `bands`.
        box : tuple of int
            ``(y0, x0, y1, x1)`` of level 0.

        Returns
        -------
        ndarray of float32, shape (y1 - y0, x1 - x0), or None
            0 where there is no data, and outside the image. None without such a file.
        """
        if not self._raster.weighted:
            return None
        weights = np.zeros((box[2] - box[0], box[3] - box[1]), np.float32)
        inside, target = overlap(box, self.shape)
        if inside is not None:
            plane = self._raster.bands.index(name)
            found = self._raster.weights(self._in_raster(inside), plane)
            weights[target[0] : target[2], target[1] : target[3]] = found
        return weights

    def build_levels(self):
        """Make all levels now, so that other processes with the same scratch folder find them."""
        if self.n_levels > 1:
            self._level(self.n_levels - 1)

    def region(self, box, owner=False):
        """The image limited to a box, with the stretch and sky colour of the whole.

        Parameters
        ----------
        box : tuple of int
            ``(y0, x0, y1, x1)`` inside this image; see `parse_region`.
        owner : bool
            Whether closing the region closes this image too.

        Returns
        -------
        Image
            Its pixels and WCS are those of the box; its `offset` is the box's origin in the whole image.
        """
        y0, x0, y1, x1 = box
        if overlap(box, self.shape)[0] != (y0, x0, y1, x1):
            raise OptionError(f"region {box} (y0, x0, y1, x1) is not inside {self.shape} (rows, columns)")
        view = object.__new__(Image)
        view.__dict__.update(self.__dict__, _levels={}, _owner=owner and self._owner, notes=list(self.notes))
        view.shape = (y1 - y0, x1 - x0)
        view.offset = (y0 + self.offset[0], x0 + self.offset[1])
        view._source = replace(self._source, region=view._in_raster((0, 0, *view.shape)))
        if self.wcs is not None:
            view.wcs = self.wcs.slice((slice(y0, y1), slice(x0, x1)))
        return view

    @property
    def raster(self):
        """`~surveycat.raster.Raster` behind the image, of the whole where this is a region."""
        return self._raster

    def with_raster(self, raster):
        """The image with other pixels of the same shape, with the stretch and sky colour of this one.

        Parameters
        ----------
        raster : `~surveycat.raster.Raster`
            Reads like the one that the image has.

        Returns
        -------
        Image
            For this process only: its `source` is still that of this image. Close it after use.
        """
        view = object.__new__(Image)
        view.__dict__.update(self.__dict__, _raster=raster, _levels={}, _scratch=Scratch(), _owner=True)
        return view

    def _in_raster(self, box):
        """A box of this image in pixels of the raster, of which it may be a region."""
        dy, dx = self.offset
        return box[0] + dy, box[1] + dx, box[2] + dy, box[3] + dx

    def _planes(self, box, which=None):
        return self._raster.planes(self._in_raster(box), which=which)

    def _beyond(self, box, level):
        """What is shown outside of the image, for a box."""
        if self._raster.picture:
            return np.rint(self._sky)
        if level:
            return np.rint(self._noise.mean(axis=(0, 1)))
        y0, x0, y1, x1 = self._in_raster(box)
        rows, columns = np.arange(y0, y1) % NOISE_SIDE, np.arange(x0, x1) % NOISE_SIDE
        return self._noise[rows[:, None], columns]

    @cached_property
    def _noise(self):
        """Picture of sky with the noise of linear data: shape (NOISE_SIDE, NOISE_SIDE, 3)."""
        nothing = np.full((len(self._stretch.noise), NOISE_SIDE, NOISE_SIDE), np.nan, np.float32)
        return as_jpeg(self._stretch.render(nothing))

    def _picture(self, box, level):
        """Picture of a box inside a level."""
        y0, x0, y1, x1 = box if level else self._in_raster(box)
        if level:
            fine = self._level(level)[y0:y1, x0:x1].astype(np.uint32)
            return ((fine + levels.FINE // 2) // levels.FINE).astype(np.uint8)
        if not self._raster.picture:
            return self._rendered((y0, x0, y1, x1))
        picture, mask = self._raster.array[y0:y1, x0:x1], self._raster.mask
        if mask is None:
            return picture
        return np.where(mask.at((y0, x0, y1, x1))[..., None], np.rint(self._sky).astype(np.uint8), picture)

    def _rendered(self, box):
        """Linear data of a box of the raster as a picture, through the blocks of a JPEG that begins at pixel (0, 0)."""
        y0, x0, y1, x1 = box
        picture = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        for left in range(x0, x1, WIDEST):
            right = min(left + WIDEST, x1)
            around = whole_blocks((y0, left, y1, right), self._raster.shape)
            planes = self._raster.planes(around, which=self._raster.shown)
            shown = as_jpeg(self._stretch.render(planes, around))
            top, first = y0 - around[0], left - around[1]
            picture[:, left - x0 : right - x0] = shown[top : top + y1 - y0, first : first + right - left]
        return picture

    # --- levels ---

    def _level(self, level):
        """A level above 0 in steps of 1/256 of a count: uint16, shape (h, w, 3)."""
        if level not in self._levels:
            shape, name = (*self.level_shape(level), 3), f"{self.key}-level{level}"
            self._levels[level] = self._scratch.array(name, shape, np.uint16, lambda: self._average(level - 1))
        return self._levels[level]

    def _average(self, level):
        """Strips of the next coarser level than the given one."""
        width = self.shape[1]
        if level == 0:
            strips = levels.halve(lambda y0, y1: self._picture((y0, 0, y1, width), 0), self.shape, 0)
            return (np.rint(strip * levels.FINE).astype(np.uint16) for strip in strips)
        below = self._level(level)
        strips = levels.halve(lambda y0, y1: below[y0:y1], self.shape, level)
        return (np.rint(strip).astype(np.uint16) for strip in strips)

    @property
    def scratch(self):
        """`~surveycat.scratch.Scratch` for what is made of this image; it lives as long as the image is open."""
        return self._scratch

    @property
    def key(self):
        """Name of this image and box in scratch."""
        image = self._source.image
        if isinstance(image, np.ndarray):
            text = self.sha256
        elif isinstance(image, Bands):
            text = image.key
        else:
            path, extension = split_extension(image)
            text = f"{file_key(path)}|{extension}"
        for path in itertools.chain(*self._auxiliary):
            text += f"|{file_key(split_extension(path)[0])}|{path}"
        return hashlib.sha256(f"{text}|{self.offset}|{self.shape}".encode()).hexdigest()[:16]

    # --- sky ---

    def pixel_to_sky(self, x, y):
        """ICRS (ra, dec) in degrees of 0-based columns and rows of this image; it must have a WCS."""
        return wcs.pixel_to_sky(self.wcs, x, y)

    def sky_to_pixel(self, ra, dec):
        """0-based columns and rows (x, y) in this image of ICRS degrees; it must have a WCS."""
        return wcs.sky_to_pixel(self.wcs, ra, dec)
