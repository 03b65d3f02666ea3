"""Files beside the catalogue: DS9 regions, a segmentation map, and the area of the sky that was searched.

All are made from the catalogue's outlines and the image's WCS, when the image has been measured. Each file appears
whole or not at all.
"""

import importlib.util

import numpy as np

from surveycat.catalog import atomic_write
from surveycat.errors import OutputError
from surveycat.preview import COLOURS

__all__ = ["SUFFIXES", "check_needs", "paint_rows", "write_moc", "write_regions", "write_segmap"]

SUFFIXES = {"regions": (".reg",), "segmap": (".fits", ".fz"), "moc": (".fits", ".json")}
NEEDS = {"regions": "regions", "moc": "mocpy"}
STRIP_ROWS = 512
TILE = 256  # pixels; side of the compressed tiles of a segmentation map
MOC_CELLS = 256  # the longer side of an image is about that many cells of its MOC
MOC_COARSEST = 211_076  # arcsec; side of the cells of order 0
MOC_DEEPEST = 20  # order with cells of 0.2 arcsec


def check_needs(kind):
    """Refuse a file for which a package is missing, before the work.

    Parameters
    ----------
    kind : {"regions", "segmap", "moc"}

    Raises
    ------
    OutputError
        It says how to install what is missing.
    """
    package = NEEDS.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise OutputError(f"--{kind} needs the package {package}, which is not installed: pip install {package}")


# DS9 regions ----------------------------------------------------------------------------------------------


def write_regions(table, image, path):
    """Write outlines as DS9 regions: on the sky (ICRS) if the image has a position, else in pixels.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Catalogue; its outlines are in pixels of `image`.
    image : `~surveycat.image.Image`
    path : path-like
        ``.reg`` file; replaced if it exists. Each polygon carries the object's id as text and the colour of its class.
    """
    from regions import Regions

    shapes = _sky_polygons(table) if "s_region" in table.colnames else _pixel_polygons(table)
    for shape, number, kind in zip(shapes, table["id"], table["class"], strict=True):
        if shape is not None:
            shape.meta["text"] = str(number)
            shape.visual["color"] = f"#{''.join(f'{part:02x}' for part in COLOURS[str(kind)])}"
    regions = Regions([shape for shape in shapes if shape is not None])
    atomic_write(path, lambda partial: _save_regions(regions, partial))


def _save_regions(regions, path):
    text = regions.serialize(format="ds9") if len(regions) else "# Region file format: DS9\n"
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _sky_polygons(table):
    """Polygons on the sky; None for an outline that reaches beyond it."""
    from astropy.coordinates import SkyCoord
    from regions import PolygonSkyRegion

    shapes = []
    for text in table["s_region"]:
        numbers = np.array(str(text).split()[2:], float).reshape(-1, 2)
        corners = SkyCoord(*numbers.T, unit="deg") if len(numbers) else None
        shapes.append(corners if corners is None else PolygonSkyRegion(corners))
    return shapes


def _pixel_polygons(table):
    from regions import PixCoord, PolygonPixelRegion

    corners = zip(table["footprint_x"], table["footprint_y"], strict=True)
    return [PolygonPixelRegion(PixCoord(np.asarray(x, float), np.asarray(y, float))) for x, y in corners]


# Segmentation map -----------------------------------------------------------------------------------------


def write_segmap(table, image, path):
    """Write a segmentation map: each pixel holds the id of its object, 0 the sky.

    Where footprints overlap the smaller one is on top.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Catalogue; its outlines are in pixels of `image`.
    image : `~surveycat.image.Image`
    path : path-like
        FITS file with tile-compressed integers in extension 1 and the image's WCS; replaced if it exists.
    """
    from astropy.io import fits

    labels = image.scratch.array(
        f"{image.key}-segmentation-{len(table)}", image.shape, np.int32, lambda: _strips(table, image.shape)
    )
    header = fits.Header() if image.wcs is None else image.wcs.to_header(relax=True)
    header["BUNIT"] = ("", "id of the object in the catalogue, 0 is sky")
    tile = tuple(min(TILE, size) for size in image.shape)
    hdu = fits.CompImageHDU(labels, header, name="SEGMAP", compression_type="GZIP_2", tile_shape=tile)
    atomic_write(path, lambda partial: fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(partial, overwrite=True))


def _strips(table, shape):
    for y in range(0, shape[0], STRIP_ROWS):
        yield paint_rows(table, y, min(y + STRIP_ROWS, shape[0]), shape[1])


def paint_rows(table, y0, y1, width):
    """Paint the objects on some rows of an image.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Catalogue.
    y0, y1 : int
        First row, and the one after the last.
    width : int
        Of the image.

    Returns
    -------
    ndarray of int32, shape (y1 - y0, width)
        Ids, exactly on the pixels inside of the outlines.
    """
    labels = np.zeros((y1 - y0, width), np.int32)
    top, bottom = (np.asarray(getattr(table[name], "value", table[name])) for name in ("y_min", "y_max"))
    area = np.asarray(getattr(table["area_pix"], "value", table["area_pix"]))
    touched = np.flatnonzero((top < y1) & (bottom > y0))
    for row in touched[np.argsort(-area[touched], kind="stable")]:
        x = np.rint(np.asarray(table["footprint_x"][row], float) + 0.5).astype(int)  # edges of pixels
        y = np.rint(np.asarray(table["footprint_y"][row], float) + 0.5).astype(int)
        inside, left = _inside(x, y, y0, y1)
        labels[:, left : left + inside.shape[1]][inside] = table["id"][row]
    return labels


def _inside(x, y, y0, y1):
    """Pixels between the vertical edges of an outline on rows y0 to y1, and their first column."""
    left, right = x.min(), x.max()
    crossings = np.zeros((y1 - y0, right - left + 1), np.int8)
    for x_edge, start, stop in zip(x, y, np.roll(y, -1), strict=True):
        low, high = max(min(start, stop), y0), min(max(start, stop), y1)
        if low < high:  # horizontal edges cross no row
            crossings[low - y0 : high - y0, x_edge - left] ^= 1
    return np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1].astype(bool), left


# Area searched --------------------------------------------------------------------------------------------


def write_moc(image, failed, path):
    """Write the area that was searched as a MOC: where the image has data and its tiles did not fail.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        With a position on the sky.
    failed : list of `~surveycat.tiles.Tile`
        Tiles that could not be searched.
    path : path-like
        ``.fits`` or ``.json``; replaced if it exists.
    """
    import astropy.units as u
    from mocpy import MOC

    step = max(image.shape) / MOC_CELLS
    cell_arcsec = max(step * image.pixel_scale, 1e-3)
    order = int(np.clip(np.floor(np.log2(MOC_COARSEST / cell_arcsec)), 0, MOC_DEEPEST))
    rows, columns = (np.unique(np.arange(0.5, size, max(step / 2, 1)).astype(int)) for size in image.shape)
    searched = np.array([~image.blank((y, 0, y + 1, image.shape[1]))[0, columns] for y in rows.tolist()])
    for tile in failed:
        y0, x0, y1, x1 = (edge * 2**tile.level for edge in tile.box)
        searched &= ~(((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1)))
    y, x = np.nonzero(searched)
    ra, dec = image.pixel_to_sky(columns[x], rows[y])
    on_sky = np.isfinite(ra + dec)
    moc = MOC.from_lonlat(ra[on_sky] * u.deg, dec[on_sky] * u.deg, max_norder=order)
    kind = "json" if str(path).endswith(".json") else "fits"
    atomic_write(path, lambda partial: moc.save(partial, format=kind, overwrite=True))
