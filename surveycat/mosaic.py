"""A field of any size from SkyServer, as one picture that knows where it is on the sky.

The field is a TAN image, north up and east left. It is cut into blocks; for each a cutout is fetched that covers it,
centred on the block. Away from the centre of the field north is not straight up, so a cutout lies askew on the block:
its pixels are interpolated, each one's place on the sky being computed exactly::

    field (TAN)                      a cutout is asked for at the centre c of a block,
    +---------+---------+            large enough to hold the block however it is turned
    |         |   /---__|
    |         |  /  c  /|
    +---------+ /__   / +
    |         |    ---  |
    +---------+---------+

Which cutout gives a pixel depends on its position alone. A field that one cutout covers is that cutout, untouched.
"""

import contextlib
import io
import logging
import math
import os
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from surveycat import catalog
from surveycat.errors import OptionError, OutputError, OutsideFootprint, PositionError
from surveycat.skyserver import ALL_BLACK, SCALE, SCALES, SIZES, SkyServer
from surveycat.wcs import pixel_to_sky, tan_wcs

__all__ = ["avm_packet", "fetch", "with_xmp"]

BLOCK = 1400  # pixels; its diagonal, and what the projection adds, fit into the largest cutout
MARGIN = 8  # pixels that interpolation needs around a block
SAME = 0.1  # pixels by which one cutout may differ from the TAN image that it stands for
LARGEST_ANGLE = 20.0  # degrees; beyond, a TAN image is no longer a picture of the sky
LARGEST_JPEG = 65_500  # pixels
IN_MEMORY = 2**28  # bytes; larger fields are put together in a file
FORMATS = (".jpg", ".jpeg", ".png", ".fits")

log = logging.getLogger(__name__)


def fetch(ra, dec, size, out, *, pixel_scale=SCALE, service=None, overwrite=False, progress=None):
    """Fetch a field and write it as one picture with its WCS.

    Parameters
    ----------
    ra, dec : float
        ICRS degrees of the centre: 0-based pixel (W/2, H/2).
    size : float or (float, float)
        Width and height, arcmin.
    out : path-like
        ``.jpg`` and ``.png`` carry the WCS as AVM tags, ``.fits`` (planes i, r, g as stored by SkyServer, 8 bits) in
        its header. The file appears whole or not at all.
    pixel_scale : float, optional
        Arcsec per pixel.
    service : `~surveycat.skyserver.SkyServer`, optional
        Whom to ask.
    overwrite : bool, optional
        Whether an existing file may be replaced.
    progress : callable, optional
        Called with "cutouts", the number done and their total.

    Returns
    -------
    dict
        ``path``, ``shape`` (H, W), ``wcs``, ``cutouts`` (how many), ``black`` (share of the field without an image).

    Raises
    ------
    PositionError, OptionError, OutputError
        A value that cannot be used.
    OutsideFootprint
        If no part of the field has an image.
    ServiceError
        If a cutout could not be had.
    """
    out = catalog.check_output(out, overwrite, known=FORMATS)
    shape = _checked_shape(ra, dec, size, pixel_scale, out)
    wcs = tan_wcs(shape, ra, dec, pixel_scale)
    with contextlib.nullcontext(service) if service else contextlib.closing(SkyServer()) as service:
        count, black = _fetch(wcs, shape, pixel_scale, out, service, progress)
    if black > 0:
        log.warning("%.1f %% of the field has no image in SDSS and is black", 100 * black)
    return {"path": out, "shape": shape, "wcs": wcs, "cutouts": count, "black": black}


def _fetch(wcs, shape, pixel_scale, out, service, progress):
    """Fetch what a field is made of and write it; gives the number of cutouts and the share that stayed black."""
    if _is_one_cutout(shape, pixel_scale):
        cutout = service.cutout(*map(float, wcs.wcs.crval), shape[1], shape[0], pixel_scale)
        _save(cutout.pixels, wcs, out, cutout.data)
        return 1, cutout.black
    with _canvas(shape) as pixels:
        count, black = _fill(pixels, wcs, pixel_scale, service, progress)
        _save(pixels, wcs, out)
    return count, black


def _checked_shape(ra, dec, size, pixel_scale, out):
    """Give (H, W) of a field, or refuse it."""
    width, height = (size, size) if np.isscalar(size) else size
    if not (0 <= ra < 360 and -90 <= dec <= 90):
        raise PositionError(f"position ra {ra} dec {dec} is not on the sky; give 0 <= ra < 360, -90 <= dec <= 90")
    if not (0 < width <= 60 * LARGEST_ANGLE and 0 < height <= 60 * LARGEST_ANGLE):
        raise OptionError(
            f"a field of {width:g} x {height:g} arcmin; give more than 0 and at most {60 * LARGEST_ANGLE:g}"
        )
    if not SCALES[0] <= pixel_scale <= SCALES[1]:
        raise OptionError(f"pixel-scale is {pixel_scale:g} arcsec; SkyServer makes {SCALES[0]} to {SCALES[1]:g}")
    shape = tuple(max(1, round(side * 60 / pixel_scale)) for side in (height, width))
    if out.suffix.lower() in (".jpg", ".jpeg") and max(shape) > LARGEST_JPEG:
        raise OptionError(f"a JPEG of {shape[1]} x {shape[0]} pixels; they end at {LARGEST_JPEG}: write .png or .fits")
    return shape


def _is_one_cutout(shape, pixel_scale):
    """Whether one cutout is the field: SkyServer's projection is orthographic, which is TAN where it is small."""
    half = math.radians(math.hypot(*shape) / 2 * pixel_scale / 3600)
    bend = (math.tan(half) - math.sin(half)) / math.radians(pixel_scale / 3600) if half < 1 else math.inf
    return SIZES[0] <= min(shape) and max(shape) <= SIZES[1] and bend < SAME


# Many cutouts ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _canvas(shape):
    """Give an array for the field, in memory or in a temporary file."""
    if 3 * shape[0] * shape[1] <= IN_MEMORY:
        yield np.zeros((*shape, 3), np.uint8)
        return
    with tempfile.TemporaryFile(prefix="surveycat-") as file:
        _reserve(file, 3 * shape[0] * shape[1])
        yield np.memmap(file, np.uint8, "r+", shape=(*shape, 3))


def _reserve(file, n_bytes):
    """Give a file its size on the disk now: a write to a mapped file ends the process where the disk is full."""
    try:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        raise OutputError(
            f"a field of this size needs {n_bytes / 2**30:.1f} GiB in {tempfile.gettempdir()} ({error.strerror}): free "
            "space there, name another folder by the environment variable TMPDIR, or give a smaller --size"
        ) from error


def _fill(pixels, wcs, pixel_scale, service, progress):
    """Fill the field block by block; gives the number of cutouts and the share that stayed black."""
    boxes = list(_blocks(pixels.shape[:2]))
    places = {box: _place(box, wcs) for box in boxes}
    side = _cutout_side(boxes, wcs, pixel_scale, places)
    empty, last = 0, None
    asked = ((box, *places[box]) for box in boxes)
    for done, (box, cutout) in enumerate(service.cutouts(asked, width=side, height=side, scale=pixel_scale), start=1):
        y0, x0, y1, x1 = box
        if isinstance(cutout, OutsideFootprint):
            empty, last = empty + (y1 - y0) * (x1 - x0), cutout
        elif isinstance(cutout, Exception):
            raise cutout
        else:
            block = _interpolated(cutout, box, wcs)
            empty += round(cutout.black * (y1 - y0) * (x1 - x0))
            pixels[y0:y1, x0:x1] = block
        if progress:
            progress("cutouts", done, len(boxes))
    black = empty / (pixels.shape[0] * pixels.shape[1])
    if black >= ALL_BLACK and last is not None:
        raise last
    return len(boxes), black


def _blocks(shape):
    """Yield the blocks [y0, x0, y1, x1) of a field, of about equal size."""
    edges = [np.linspace(0, n, -(-n // BLOCK) + 1).round().astype(int).tolist() for n in shape]
    for y0, y1 in zip(edges[0][:-1], edges[0][1:], strict=True):
        for x0, x1 in zip(edges[1][:-1], edges[1][1:], strict=True):
            yield y0, x0, y1, x1


def _place(box, wcs):
    """Give ra, dec of the middle of a block, as floats of Python."""
    ra, dec = pixel_to_sky(wcs, (box[1] + box[3]) / 2, (box[0] + box[2]) / 2)
    return float(ra), float(dec)


def _cutout_side(boxes, wcs, pixel_scale, places):
    """Give the side of a square cutout that holds every block however it is turned, pixels."""
    reach = 0.0
    for box in boxes:
        y0, x0, y1, x1 = box
        x, y = np.array([x0, x1, x0, x1]) - 0.5, np.array([y0, y0, y1, y1]) - 0.5
        east, north = orthographic(*pixel_to_sky(wcs, x, y), *places[box])
        reach = max(reach, np.abs(east).max() / pixel_scale, np.abs(north).max() / pixel_scale)
    return min(max(2 * math.ceil(reach + MARGIN), SIZES[0]), SIZES[1])


def orthographic(ra, dec, ra0, dec0):
    """Project positions as SkyServer does (SIN; Calabretta & Greisen 2002, section 5.1.5).

    Parameters
    ----------
    ra, dec : ndarray
        ICRS degrees.
    ra0, dec0 : float
        Centre of the projection.

    Returns
    -------
    east, north : ndarray
        Arcsec.
    """
    difference, dec, dec0 = np.radians(ra - ra0), np.radians(dec), math.radians(dec0)
    east = np.cos(dec) * np.sin(difference)
    north = np.sin(dec) * math.cos(dec0) - np.cos(dec) * math.sin(dec0) * np.cos(difference)
    return np.degrees(east) * 3600, np.degrees(north) * 3600


def _interpolated(cutout, box, wcs):
    """Give the pixels of a block from a cutout that covers it (cubic splines), uint8 (h, w, 3)."""
    from scipy import ndimage

    y0, x0, y1, x1 = box
    y, x = np.mgrid[y0:y1, x0:x1]
    east, north = orthographic(*pixel_to_sky(wcs, x, y), cutout.ra, cutout.dec)
    height, width = cutout.pixels.shape[:2]
    there = np.stack([height / 2 - north / cutout.scale, width / 2 - east / cutout.scale])
    block = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    for channel in range(3):
        values = ndimage.map_coordinates(cutout.pixels[..., channel].astype(np.float32), there, order=3, mode="nearest")
        block[..., channel] = np.clip(np.rint(values), 0, 255)
    return block


# Files ----------------------------------------------------------------------------------------------------


def _save(pixels, wcs, out, data=None):
    """Write the picture in the format of its suffix; `data` is the JPEG file that it came from, if it is one."""
    suffix = out.suffix.lower()
    if suffix == ".fits":
        catalog.atomic_write(out, lambda path: _save_fits(pixels, wcs, path))
        return
    packet = avm_packet(wcs, pixels.shape)
    if suffix == ".png":
        catalog.atomic_write(out, lambda path: _save_png(pixels, packet, path))
        return
    data = data or _jpeg(pixels)
    catalog.atomic_write(out, lambda path: Path(path).write_bytes(with_xmp(data, packet)))


def _save_fits(pixels, wcs, path):
    """Write planes i, r, g; rows upwards, as FITS has them."""
    from astropy.io import fits

    header = wcs.to_header()
    height = pixels.shape[0]
    header["CRPIX2"] = height + 1 - wcs.wcs.crpix[1]
    matrix = wcs.pixel_scale_matrix * [1, -1]
    for i in (1, 2):
        for j in (1, 2):
            header[f"PC{i}_{j}"] = float(matrix[i - 1, j - 1])
    header["CDELT1"] = header["CDELT2"] = 1.0
    header["COMMENT"] = "SDSS picture from SkyServer: planes i, r, g with an asinh stretch, 8 bits"
    fits.PrimaryHDU(np.moveaxis(pixels[::-1], -1, 0), header).writeto(path, overwrite=True)


def _save_png(pixels, packet, path):
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    Image.fromarray(np.asarray(pixels)).save(path, pnginfo=info)


def _jpeg(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def with_xmp(data, packet):
    """Put an XMP packet into a JPEG file without touching its pixels.

    Parameters
    ----------
    data : bytes
        The file.
    packet : str
        The packet, up to 65,502 bytes.

    Returns
    -------
    bytes
        The file with a segment APP1 behind its first ones (XMP Specification Part 3, section 1.1.3).
    """
    place = 2
    while data[place : place + 2] == b"\xff\xe0":  # behind JFIF's own, which has to come first
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    content = b"http://ns.adobe.com/xap/1.0/\0" + packet.encode()
    return data[:place] + b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content + data[place:]


def avm_packet(wcs, shape):
    """Say in AVM tags where a picture is on the sky.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
        TAN, in rows as stored, without distortion, north up.
    shape : tuple of int
        (H, W, ...) of the picture.

    Returns
    -------
    str
        XMP packet with the spatial tags of the Astronomy Visualization Metadata standard 1.2; rows are counted from
        the bottom there.
    """
    (ra, dec), (x, y) = wcs.wcs.crval, wcs.wcs.crpix
    matrix = wcs.pixel_scale_matrix
    lists = {
        "ReferenceValue": (ra, dec),
        "ReferenceDimension": (shape[1], shape[0]),
        "ReferencePixel": (x, shape[0] + 1 - y),
        "Scale": (matrix[0, 0], -matrix[1, 1]),
    }
    words = {"CoordinateFrame": "ICRS", "Equinox": "2000", "Rotation": "0", "CoordsystemProjection": "TAN"}
    words["Quality"] = "Full"
    lines = [f"<avm:Spatial.{name}>{escape(value)}</avm:Spatial.{name}>" for name, value in words.items()]
    for name, values in lists.items():
        items = "".join(f"<rdf:li>{float(value)!r}</rdf:li>" for value in values)
        lines.append(f"<avm:Spatial.{name}><rdf:Seq>{items}</rdf:Seq></avm:Spatial.{name}>")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:avm="http://www.communicatingastronomy.org/avm/1.0/">{"".join(lines)}</rdf:Description></rdf:RDF>'
        '</x:xmpmeta><?xpacket end="w"?>'
    )
