"""JPEG, PNG and TIFF: 8-bit RGB, decoded once."""

import warnings
from contextlib import contextmanager

import numpy as np

from surveycat.errors import ImageError
from surveycat.raster import STRIP_ROWS, Raster, array_raster, file_key

__all__ = ["read_npy", "read_picture"]

MAX_PIXELS = 2**32  # JPEG's own limit is 65,500 x 65,500; Pillow would refuse a mosaic of 13,400 x 13,400
HOW_TO_RGB = "convert it to 8-bit RGB, with Pillow: Image.open(name).convert('RGB').save('rgb.png')"
MODES = {"P": "palette", "L": "grey", "1": "black and white", "LA": "grey and alpha"}


def read_picture(path, extension, scratch):
    """Open a JPEG, PNG or TIFF file.

    Parameters
    ----------
    path : `~pathlib.Path`
    extension : None
        Pictures have none.
    scratch : `~surveycat.scratch.Scratch`
        Where a large picture goes when it is decoded.

    Returns
    -------
    `~surveycat.raster.Raster`

    Raises
    ------
    ImageError
        Other than three channels of 8 bits, or too large. What Pillow raises on damaged files passes.
    """
    with _picture_limit() as pillow, pillow.open(path, formats=["JPEG", "PNG", "TIFF"]) as image:
        width, height = image.size
        _check(path, image)
        notes = _notes(image)
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""

        def strips():
            image.load()
            for y in range(0, height, STRIP_ROWS):
                yield np.asarray(image.crop((0, y, width, min(y + STRIP_ROWS, height))))

        array = scratch.array(f"{file_key(path)}-pixels", (height, width, 3), np.uint8, strips)
    return Raster(array, picture=True, xmp=xmp.encode() if isinstance(xmp, str) else xmp, notes=notes)


def read_npy(path, extension, scratch):
    """Open an (H, W, 3) uint8 array in a ``.npy`` file, memory-mapped; see `read_picture`."""
    return array_raster(np.load(path, mmap_mode="r", allow_pickle=False))


@contextmanager
def _picture_limit():
    """Pillow with our limit on the size of pictures, and without its warnings."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check(path, image):
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path} has {width} x {height} pixels, at most {MAX_PIXELS} can be read: use FITS")
    bits = _bits(path, image)
    if bits > 8:
        raise ImageError(f"{path} has {bits} bits per channel, 8 are needed: stretch it to 8-bit RGB, or give the FITS")
    if image.mode != "RGB":
        channels = len(image.getbands())
        kind = f"{channels} channel{'s' * (channels > 1)} ({MODES.get(image.mode, image.mode)})"
        raise ImageError(f"{path} has {kind}, 3 (RGB) are needed: {HOW_TO_RGB}")


def _bits(path, image):
    """Bits per channel in the file, which Pillow's mode does not always tell."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return int(np.max(image.tag_v2.get(258, 1)))
    return 8


def _notes(image):
    notes = ()
    orientation = image.getexif().get(274, 1)
    if orientation != 1:
        notes += (f"EXIF orientation {orientation} is not applied: rows are searched as they are stored",)
    if getattr(image, "n_frames", 1) > 1:
        notes += (f"the first of {image.n_frames} pictures in the file is searched",)
    return notes
