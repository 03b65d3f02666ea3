"""Where an image was searched, and where not: a map with a pixel for each pixel of the image, as FITS.

Each value is a sum of the bits in `BITS`, which the file's header explains, too. The map is made strip by strip and
tile-compressed, so that neither memory nor disk (a few MB for a mosaic of 32768 x 32768) grows much with the image;
at the scale of the image itself nothing has to be said of pixels that are only in part searched or blank.
"""

import hashlib

import numpy as np

from surveycat.catalog import atomic_write
from surveycat.scratch import Scratch
from surveycat.tiles import TileGrid, parent_index, sub_windows

__all__ = ["BITS", "FORMATS", "capped_tiles", "coverage_strips", "write_coverage"]

BITS = {
    "seen": (1, "in a full-resolution tile that was searched"),
    "failed": (2, "in a tile, of any level, that failed"),
    "blank": (4, "no data in the image"),
    "capped": (8, "more objects in a tile than can be told"),
}
FORMATS = (".fits", ".fz")
STRIP_PIXELS = 2**21
SEEN, FAILED, BLANK, CAPPED = (value for value, _ in BITS.values())


def capped_tiles(capped, tiles):
    """Find the tiles, or windows of them, in which a limit was reached to the end.

    Parameters
    ----------
    capped : (N,) int ndarray
        Their indices, as in `~surveycat.detections.Detections`.
    tiles : iterable of `~surveycat.tiles.Tile`
        All tiles that were searched.

    Returns
    -------
    list of `~surveycat.tiles.Tile`
    """
    parents = {tile.index: tile for tile in tiles}
    found = []
    for index, parent in zip(capped.tolist(), parent_index(capped).tolist(), strict=True):
        near = [parents[parent], *sub_windows(parents[parent])]
        found += [tile for tile in near if tile.index == index]
    return found


def coverage_strips(image, failed, capped):
    """Make the map strip by strip.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Open image.
    failed, capped : list of `~surveycat.tiles.Tile`
        Tiles of any level that could not be searched, and in which a limit was reached.

    Yields
    ------
    ndarray of uint8, shape (n, W)
        Rows of the map, in order.
    """
    grid = TileGrid(image.shape)
    rows, columns = (origins.tolist() for origins in grid.origins(0))
    lost = {(tile.y0, tile.x0) for tile in failed if tile.level == 0 and tile.size == grid.size and tile.index >= 0}
    height, width = image.shape
    n_rows = max(STRIP_PIXELS // width, 1)
    for y in range(0, height, n_rows):
        strip = np.zeros((min(n_rows, height - y), width), np.uint8)
        for y0 in rows:
            if y0 < y + len(strip) and y0 + grid.size > y:
                for x0 in columns:
                    if (y0, x0) not in lost:
                        _paint(strip, y, (y0, x0, y0 + grid.size, x0 + grid.size), SEEN)
        for tiles, bit in ((failed, FAILED), (capped, CAPPED)):
            for tile in tiles:
                _paint(strip, y, [side * 2**tile.level for side in tile.box], bit)
        strip[image.blank((y, 0, y + len(strip), width))] |= BLANK
        yield strip


def _paint(strip, y, box, bit):
    """Set a bit inside a box of the image, in the strip of it that begins at row y."""
    y0, x0, y1, x1 = box
    strip[max(y0 - y, 0) : max(y1 - y, 0), max(x0, 0) : max(x1, 0)] |= bit


def write_coverage(path, image, failed, capped, scratch):
    """Write the map as tile-compressed FITS, with the image's WCS.

    Parameters
    ----------
    path : path-like
        The file, which appears whole or not at all; an existing one is replaced.
    image, failed, capped
        As for `coverage_strips`.
    scratch : path-like
        Folder for a large map before it is compressed.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from astropy.io import fits

    where = [(tile.level, *tile.box) for tile in (*failed, *capped)]
    name = f"coverage-{hashlib.sha256(repr((image.offset, where, len(failed))).encode()).hexdigest()[:16]}"
    data = Scratch(scratch).array(name, image.shape, np.uint8, lambda: coverage_strips(image, failed, capped))
    side = [min(256, length) for length in image.shape]
    hdu = fits.CompImageHDU(data, _header(image), name="COVERAGE", compression_type="RICE_1", tile_shape=side)
    atomic_write(path, lambda beside: fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(beside, overwrite=True))


def _header(image):
    """Say what the bits mean, which image it is, and where it lies."""
    from astropy.io import fits

    header = fits.Header() if image.wcs is None else image.wcs.to_header(relax=True)
    header["INPUT"] = image.name.encode("ascii", "replace").decode()  # all that FITS allows
    for number, (name, (_, meaning)) in enumerate(BITS.items()):
        header[f"BIT{number}"] = name, meaning
    header["LTV1"], header["LTV2"] = -image.offset[1], -image.offset[0]
    header.comments["LTV1"] = "map = image + LTV: where a region lies in it"
    header.add_comment("Each pixel is a sum of bits: " + ", ".join(f"{bit} {name}" for name, (bit, _) in BITS.items()))
    return header
