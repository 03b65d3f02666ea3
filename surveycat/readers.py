"""Image files of every kind that surveycat opens, told apart by their first bytes and not by their names."""

import bz2
import gzip
import re
import struct
import zlib
from pathlib import Path

from surveycat.errors import ImageError
from surveycat.fitsimage import packed_reader, read_fits
from surveycat.pictures import read_npy, read_picture
from surveycat.wcs import one_line

__all__ = ["is_fits", "open_raster", "split_extension"]

READERS = {
    "JPEG": read_picture,
    "PNG": read_picture,
    "TIFF": read_picture,
    "FITS": read_fits,
    "gzip": packed_reader(gzip.open),
    "bzip2": packed_reader(bz2.open),
    "npy": read_npy,
}
MAGIC = [
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"SIMPLE", "FITS"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\x93NUMPY", "npy"),
]
WITH_EXTENSIONS = ("FITS", "gzip", "bzip2")
OTHER_FORMATS = [
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP"),
    (b"\0\0\0\x0cjP", "a JPEG 2000"),
    (b"BM", "a BMP"),
    (b"PK\x03\x04", "a zip"),
    (b"\x1f\x9d", "a compress (.Z)"),
    (b"%PDF", "a PDF"),
    (b"\xfd7zXZ", "an xz"),
]
# what Pillow, astropy and the decompressors raise on damaged files
READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
)


def open_raster(path, scratch):
    """Open an image file.

    Parameters
    ----------
    path : path-like
        JPEG, PNG, TIFF, FITS (also ``.gz``, ``.bz2``, ``.fz``; ``image.fits[1]`` or ``image.fits[SCI]`` name
        an extension), or a ``.npy`` file with an (H, W, 3) uint8 array.
    scratch : `~surveycat.scratch.Scratch`
        Where large decoded arrays go.

    Returns
    -------
    `~surveycat.raster.Raster`

    Raises
    ------
    ImageError
        Not an image that can be searched; the message names the file, what is wrong with it, and the way out.
    """
    path, extension = split_extension(path)
    kind = _kind(path)
    if path.suffix.lower() in (".hdr", ".wcs"):
        raise ImageError(f"{path} is a header without an image; give the image, and this with --wcs")
    if extension is not None and kind not in WITH_EXTENSIONS:
        raise ImageError(f"{path}[{extension}]: a {kind} file has no extensions; give {path} alone")
    try:
        return READERS[kind](path, extension, scratch)
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory: cut it up, or give it as FITS") from error
    except READ_ERRORS as error:
        raise ImageError(f"{path} is a damaged or truncated {kind} file ({one_line(error)}): fetch it again") from error


def split_extension(path):
    """Split ``image.fits[1]``.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    path : `~pathlib.Path`
    extension : str or None
        What stands in the brackets; None without them, or where the brackets belong to the name of a file.
    """
    path = Path(path)
    match = re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(path))
    if match is None or path.exists():
        return path, None
    return Path(match[1]), match[2].strip()


def is_fits(path):
    """Whether a file is FITS, packed or not, by its first bytes; what does not exist is not.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    bool
    """
    try:
        return _kind(split_extension(path)[0]) in WITH_EXTENSIONS
    except ImageError:  # opening it says what it is
        return False


def _kind(path):
    head = _head(path)
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    raise ImageError(f"{path} is {_what_else(head)}; surveycat reads JPEG, PNG, TIFF and FITS images")


def _head(path):
    if path.is_dir():
        raise ImageError(f"{path} is a folder: give an image file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist: check the name and the folder") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be opened ({one_line(error)}): check its name and permissions") from error
    if not head:
        raise ImageError(f"{path} is empty (0 bytes): fetch it again")
    return head


def _what_else(head):
    for magic, kind in OTHER_FORMATS:
        if head.startswith(magic):
            return f"{kind} file, which cannot be searched"
    text = head.decode("latin-1")
    if text.lstrip().lower().startswith(("<!doctype", "<html", "<?xml", "<head")):
        return "not an image but HTML, perhaps the page of a failed download"
    if text.startswith("version https://git-lfs"):
        return "not an image but a Git LFS pointer (run git lfs pull)"
    if all(character.isprintable() or character in "\r\n\t" for character in text):
        return f"not an image but text ({' '.join(text.split())[:40]!r})"
    return f"not an image of a known kind (it starts with bytes {head[:8].hex(' ')})"
