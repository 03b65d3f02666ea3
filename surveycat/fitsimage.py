"""FITS images with 2 axes or 3 planes: memory-mapped, or unpacked once if they are compressed."""

import re
import shutil
from dataclasses import replace

import numpy as np

from surveycat.calibration import calibration
from surveycat.errors import ImageError
from surveycat.raster import RGB_BANDS, STRIP_ROWS, WAVELENGTH_NM, Raster, file_key
from surveycat.wcs import has_position, header_wcs, one_line, quiet

__all__ = ["packed_reader", "read_fits"]

DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
WAVELENGTH_ORDER = "ugrizyJHK"


def packed_reader(opener):
    """Reader of FITS in a compressed file, unpacked once: a window would unpack all before it each time.

    Parameters
    ----------
    opener : callable
        `gzip.open` or `bz2.open`.

    Returns
    -------
    callable
        With the parameters of `read_fits`.
    """

    def read(path, extension, scratch):
        def unpack(file):
            with opener(path) as packed:
                shutil.copyfileobj(packed, file, 2**20)

        with opener(path) as packed:
            if packed.read(6) != b"SIMPLE":
                raise ImageError(f"{path} is compressed, and what is in it is not FITS: unpack it first")
        unpacked = scratch.file(f"{file_key(path)}-unpacked.fits", unpack)
        return read_fits(unpacked, extension, scratch, name=path)

    return read


def read_fits(path, extension, scratch, name=None):
    """Open an image in a FITS file.

    Parameters
    ----------
    path : `~pathlib.Path`
    extension : str or None
        Number or name (``SCI``, ``SCI,2``) of the extension. None: the first image with a position on the
        sky, else the first image.
    scratch : `~surveycat.scratch.Scratch`
        Where a large image goes when it is unpacked.
    name : path-like or None
        What the user calls the file, where that is not its path.

    Returns
    -------
    `~surveycat.raster.Raster`

    Raises
    ------
    ImageError
        No such image, or one that is truncated. What astropy raises on damaged files passes.
    """
    from astropy.io import fits

    name = path if name is None else name
    try:
        with quiet(), fits.open(path, memmap=True, do_not_scale_image_data=True) as hdus:
            index, notes = _choose(name, hdus, extension)
            raster = _open_hdu(name, path, hdus, index, scratch)
    except fits.VerifyError as error:
        raise ImageError(f"{name} has a FITS header that cannot be read ({one_line(error)}): mend it") from error
    if path.stat().st_size % 2880:
        notes = (*notes, "the FITS file is not padded to whole blocks, but all of the image is there")
    return replace(raster, fits=True, notes=(*notes, *raster.notes))


def _open_hdu(name, path, hdus, index, scratch):
    from astropy.io import fits

    hdu = hdus[index]
    header, shape = hdu.header, _image_shape(hdu)
    wcs, wcs_notes = header_wcs(header, hdus)
    if isinstance(hdu, fits.CompImageHDU):
        array = _unpacked(hdu, shape, f"{file_key(path)}-{index}", scratch)
    else:
        array = _mapped(name, path, hdu, shape)
    raster, notes = _in_colour_order(_as_stored(array, header), header)
    notes = [*(f"FITS header: {note}" for note in wcs_notes), *notes]
    if raster.array.dtype == np.uint8 and raster.blank is None and not raster.scaled:
        raster = _as_picture(raster)
        notes.append("8-bit FITS is taken as a picture: no stretch is applied")
    worth = () if raster.picture else (_calibration(hdus, header),) * len(raster.bands)
    return replace(raster, wcs=wcs, notes=tuple(notes), calibration=worth)


def _calibration(hdus, header):
    """Zero point from the image's own header, or else from the primary one."""
    own = calibration(header)
    return own if own.source else calibration(hdus[0].header)


# --- which image ---


def _choose(name, hdus, extension):
    """Index of the image to open, and notes."""
    usable = [index for index, hdu in enumerate(hdus) if _image_shape(hdu) is not None]
    if extension is not None:
        return _named(name, hdus, extension, usable), ()
    if not usable:
        raise ImageError(f"{name} has no image with 2 axes or 3 planes, only {_contents(hdus)}: give another file")
    on_sky = [index for index in usable if has_position(hdus[index].header)]
    index = (on_sky or usable)[0]
    if len(usable) == 1:
        return index, ()
    label = _label(index, hdus[index])
    return index, (f"{label} of {len(usable)} images in the file is searched; [N] after the name takes another",)


def _named(name, hdus, extension, usable):
    key = int(extension) if extension.isdecimal() else extension
    match = re.fullmatch(r"(.+?)\s*,\s*(\d+)", extension)
    if match is not None:
        key = match[1], int(match[2])
    try:
        index = hdus.index_of(key)
    except KeyError as error:
        raise ImageError(f"{name} has no extension [{extension}], only {_contents(hdus)}: name one of these") from error
    if index not in usable:
        raise ImageError(f"{name}[{extension}] is not an image with 2 axes or 3 planes; the file has {_contents(hdus)}")
    return index


def _contents(hdus):
    """What is in a file, in words."""
    text = ", ".join(f"{_label(index, hdu)} {_describe(hdu)}" for index, hdu in enumerate(hdus))
    return text if len(text) <= 300 else text[:297] + "..."


def _label(index, hdu):
    extname = " ".join(hdu.name.split())
    return f"[{index}]" if extname in ("", "PRIMARY") else f"[{index}] {extname}"


def _describe(hdu):
    if hdu.header.get("GROUPS", False):
        return "random groups"
    if not hdu.is_image:
        return "table"
    return " x ".join(map(str, hdu.shape[::-1])) if hdu.shape else "empty"


def _image_shape(hdu):
    """Shape (P, H, W) of an image that can be searched, or None."""
    if not hdu.is_image or hdu.header.get("GROUPS", False):
        return None
    shape = tuple(hdu.shape)
    while len(shape) > 3 and 1 in shape[:-2]:
        axis = shape.index(1)
        shape = shape[:axis] + shape[axis + 1 :]
    if len(shape) == 2:
        shape = (1, *shape)
    return shape if len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0 else None


# --- pixels ---


def _as_stored(array, header):
    blank = header.get("BLANK") if array.dtype.kind != "f" else None
    return Raster(
        array,
        picture=False,
        bands=RGB_BANDS if len(array) == 3 else (_filter_name(header),),
        scale=float(header.get("BSCALE", 1.0)),
        zero=float(header.get("BZERO", 0.0)),
        blank=None if blank is None else int(blank),
    )


def _mapped(name, path, hdu, shape):
    """Uncompressed data, memory-mapped: astropy would read the whole of scaled integers."""
    dtype = np.dtype(DTYPES[hdu.header["BITPIX"]])
    start = hdu.fileinfo()["datLoc"]
    there = max(path.stat().st_size - start, 0)
    needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if there < needed:
        raise ImageError(f"{name} is truncated: {there} of {needed} bytes of its image are there; fetch it again")
    return np.memmap(path, dtype, "r", start, shape)


def _unpacked(hdu, shape, key, scratch):
    """Tile-compressed data, unpacked once by sections: a window would unpack whole rows each time."""
    dtype = np.dtype(DTYPES[hdu.header["BITPIX"]]).newbyteorder("=")
    n_rows = max(STRIP_ROWS, hdu.tile_shape[-2])

    def strips():
        for plane in np.ndindex(hdu.shape[:-2]):
            for y in range(0, shape[1], n_rows):
                yield hdu.section[(*plane, slice(y, y + n_rows))].astype(dtype)

    return scratch.array(f"{key}-sections", shape, dtype, strips)


def _as_picture(raster):
    array, bands = np.moveaxis(raster.array, 0, -1), raster.bands
    if len(bands) == 1:
        array, bands = np.broadcast_to(array, (*raster.shape, 3)), RGB_BANDS
    return replace(raster, array=array, picture=True, bands=bands)


# --- bands ---


def _filter_name(header):
    """The letter of a broad band ("r" in "r", "r.MP9601" or "SDSS r"), a name of Hubble's filters, or "image"."""
    said = " ".join(str(header.get(key, "")) for key in ("FILTER", "FILTER1", "FILTER2"))
    hubble = re.search(r"\bF\d{3,4}[A-Z]+\d?\b", said)
    if hubble:
        return hubble[0]
    words = re.split(r"[\s.,_]+", str(header.get("FILTER", "")).strip())
    letters = [word[0] for word in words if re.fullmatch(f"[{''.join(WAVELENGTH_NM)}]'?", word)]
    return letters[0] if len(letters) == 1 else "image"


def _in_colour_order(raster, header):
    """Planes as R, G, B, and a note: red first where the header names bands, else as stored."""
    if len(raster.array) == 1:
        return raster, []
    bands = str(header.get("BANDS", "")).strip()
    if len(bands) != 3 or not set(bands) <= set(WAVELENGTH_ORDER):
        return raster, ["the three planes are taken as R, G, B (i, r, g)"]
    ranks = [WAVELENGTH_ORDER.index(band) for band in bands]
    if ranks == sorted(ranks):
        raster, bands = replace(raster, array=raster.array[::-1]), bands[::-1]
    return replace(raster, bands=tuple(bands)), [f"bands {', '.join(bands)} are shown as R, G, B"]
