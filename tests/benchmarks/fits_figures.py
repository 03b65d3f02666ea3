"""How good is a catalogue from linear bands? Positions, fluxes, stars, and the same sky as a picture, from real frames.

    python tests/benchmarks/fits_figures.py --catalogues build/fits --out figures.json

The catalogues are made in the folder, or read where it has them already. Peers are the LSST pipeline's detections,
photutils on the same pixels, and astropy's WCS on the same header; truth is in the lists of galaxies and stars.

The sky of fpC frames is of whole counts: a median of it steps by one, a sixth of its noise and a tenth of the flux of a
galaxy of r = 20. So photutils gets the clipped mean as estimator of the sky, with what it detects masked.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.stats import SigmaClip, mad_std
from astropy.table import QTable
from astropy.wcs import WCS
from catalogues import options, polygons, rate, report, said
from photutils.aperture import ApertureStats, CircularAnnulus, CircularAperture, aperture_photometry
from photutils.background import Background2D, MeanBackground
from photutils.segmentation import SegmentationImage, SourceCatalog, detect_sources
from PIL import Image
from shapely import Polygon, contains_xy

import surveycat
from surveycat.calibration import calibration
from surveycat.wcs import quiet
from training.evaluation.fields import RADIUS, SURE, distances, epoch_figures, nearest, place, read_truth

FRAMES = {
    "run4192": ("sdss_351.65+0.10_run4192", "fpC-004192-{}4-0300.fit.gz"),
    "run6377": ("sdss_351.65+0.10_run6377", "fpC-006377-{}4-0399.fit.gz"),
    "m2": ("sdss_323.34-0.73_m2", "frame-{}-002583-2-0136.fits.fz"),
    "ngc6976": ("sdss_313.17-5.69_ngc6976", "{}.fits.bz2"),
}
EPOCHS = ("run4192", "run6377")
TWINS = ("run4192", "run6377", "ngc6976")  # with a picture of the same sky
SKY_BOX = 128  # pixels; of photutils' sky
COARSE = 3  # pixels of the picture of ngc6976 in one of its bands
RESAMPLE = 4  # of `surveycat run`, nearest to that
WINDOW = 30  # pixels around a footprint that photutils sees
ALONE = 30.0  # pixels to the nearest other source, for a galaxy that counts as isolated
STAR_RADIUS, STAR_SKY = 12.0, (18.0, 28.0)  # pixels; an aperture with all of a star's light, and a ring of sky
STARS_TIED = (15.5, 18.5)  # magnitudes of the stars that tell the zero point
MAGNITUDES = (16.0, 18.0, 19.0, 19.5, 20.0, 20.5)


class Frame:
    """One field: its files, its catalogue, the pixels of its r band.

    Parameters
    ----------
    name : str
        Of `FRAMES`.
    asked : argparse.Namespace
        Options of the command line.
    """

    def __init__(self, name, asked):
        folder, pattern = FRAMES[name]
        self.folder = asked.data / "fields" / folder
        self.r = self.folder / pattern.format("r")
        self._name, self._asked = name, asked
        self._bands = [self.folder / pattern.format(band) for band in "irg"]

    def catalogue(self):
        """From the linear bands; those of ngc6976 do not say which they are."""
        return self._made("fits", self._bands, bands="i,r,g")

    def of_picture(self, resample="auto"):
        """From the picture of the same sky."""
        kind = "jpg" if resample == "auto" else f"jpg_at_{resample}"
        return self._made(kind, self.folder / "field.jpg", wcs=self.folder / "wcs.hdr", resample=resample)

    def of_shrunk_picture(self, factor):
        """From the picture averaged over blocks, whose rows and columns that fill no block are left out."""
        path = self.folder / "field.jpg"
        with Image.open(path) as picture:
            small = np.asarray(picture.convert("RGB").crop((0, 0, *blocks(picture.size, factor))).reduce(factor))
        with quiet():
            wcs = WCS(fits.Header.fromtextfile(self.folder / "wcs.hdr"))[::factor, ::factor]
        return self._made(f"jpg{factor}", small, wcs=wcs)

    def _made(self, kind, images, **options):
        path = self._asked.catalogues / f"{self._name}_{kind}.parquet"
        if path.exists():
            return QTable(surveycat.read(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        return surveycat.run(images, path, weights=self._asked.weights, **options)

    def pixels(self):
        """The r band as astropy reads it, and its header."""
        with quiet(), fits.open(self.r) as hdus:
            hdu = next(hdu for hdu in hdus if hdu.data is not None)
            return np.asarray(hdu.data, float), hdu.header


def blocks(size, factor):
    """Size of the whole blocks of an image."""
    return [side // factor * factor for side in size]


# Positions ------------------------------------------------------------------------------------------------


def against_lsst(table, detections):
    """Distance to the LSST pipeline's detections in the same pixels, for rows that have one within 2 arcsec."""
    distance, _ = nearest(*place(table), detections["x"], detections["y"])
    return median(distance[distance <= RADIUS])


def against_photutils(table, data):
    """Distance to photutils' centroids from the same pixels, mask and sky: of the same kind, windowed and isophotal.

    Its windowed centroid of an object hundreds of pixels wide may leave the window, and is NaN then: such rows are
    counted, not compared.
    """
    windowed, isophotal = [], []
    for row in table:
        source, corner = cut_out(row, data)
        for found, theirs, names in (
            (windowed, source.centroid_win, "x y"),
            (isophotal, source.centroid, "x_iso y_iso"),
        ):
            ours = [row[name].value for name in names.split()]
            found.append(np.hypot(*(np.ravel(theirs) + corner - ours)))
    alone = ~overlapping(table)
    return {
        "windowed_px": round(float(np.nanmedian(windowed)), 4),
        "rows_without_windowed_centroid_of_photutils": int(np.isnan(windowed).sum()),
        "isophotal_px": median(isophotal),
        "isophotal_largest_px_without_overlap": round(float(np.max(np.array(isophotal)[alone])), 6),
        "rows_without_overlap": int(alone.sum()),
    }


def overlapping(table):
    """Rows whose footprint shares pixels with another's: of each only one has it, which photutils cannot know."""
    shapes = polygons(table)
    one, two = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[one], shapes[two])) > 0
    return np.isin(np.arange(len(shapes)), one[(one != two) & shared])


def cut_out(row, data):
    """Source of photutils in a window around the footprint of a row, and the window's first pixel (x, y)."""
    x0, y0, x1, y1 = (int(row[name].value) for name in ("x_min", "y_min", "x_max", "y_max"))
    left, top = max(0, x0 - WINDOW), max(0, y0 - WINDOW)
    window = data[top : y1 + WINDOW, left : x1 + WINDOW] - float(row["sky_r"])
    y, x = np.indices(window.shape)
    outline = np.column_stack([row["footprint_x"], row["footprint_y"]]) - [left, top]
    mask = contains_xy(Polygon(outline), x, y)
    source = SourceCatalog(window, SegmentationImage(mask.astype(np.int32)), mask=~np.isfinite(window))
    return source, np.array([left, top])


def against_astropy(table, header):
    """Largest distance, arcsec, from where astropy's WCS of the same header has the same pixels."""
    with quiet():
        theirs = WCS(header).pixel_to_world(*place(table)).icrs
    return round(float(SkyCoord(table["ra"], table["dec"]).separation(theirs).arcsec.max()), 6)


# Fluxes ---------------------------------------------------------------------------------------------------


def kron_by_photutils(data):
    """Sources of photutils in a frame, found without us: x, y, Kron flux."""
    estimator, mask = MeanBackground(), np.zeros(data.shape, bool)
    for _ in range(2):  # the second time without what was found the first
        above = data - Background2D(data, SKY_BOX, mask=mask, bkg_estimator=estimator, exclude_percentile=80).background
        found = detect_sources(above, 2.0 * mad_std(above[~mask]), n_pixels=5)
        mask = found.make_source_mask(size=11)
    sources = SourceCatalog(above, found)
    return np.asarray(sources.x_centroid), np.asarray(sources.y_centroid), np.asarray(sources.kron_flux)


def flux_ratio(table, sources, detections, galaxies):
    """Our r flux over photutils' for isolated galaxies: the median, and how many."""
    apart = distances(galaxies["x"], galaxies["y"], detections["x"], detections["y"])
    alone = ((apart > RADIUS) & (apart < ALONE)).sum(axis=1) == 0
    chosen = galaxies[alone & (galaxies["edge_px"] > ALONE)]
    x, y, flux = sources
    our_gap, ours = nearest(chosen["x"], chosen["y"], *place(table))
    their_gap, theirs = nearest(chosen["x"], chosen["y"], x, y)
    both = (our_gap <= RADIUS) & (their_gap <= RADIUS)
    ratio = np.asarray(table["flux_kron_r"])[ours[both]] / flux[theirs[both]]
    return {"median": round(float(np.median(ratio)), 4), "galaxies": int(both.sum())}


def zero_point_offset(data, header, stars):
    """Magnitudes of a frame less those of the star list, by the header's zero point: the median of clean stars."""
    low, high = STARS_TIED
    chosen = stars[(stars["psfmag_r"] > low) & (stars["psfmag_r"] < high) & (stars["saturated"] == 0)]
    gap = distances(chosen["x"], chosen["y"], stars["x"], stars["y"])
    chosen = chosen[((gap > 0) & (gap < ALONE)).sum(axis=1) == 0]
    chosen = chosen[chosen["edge_px"] > ALONE]
    places = chosen[["x", "y"]].to_numpy()
    sky = ApertureStats(data, CircularAnnulus(places, *STAR_SKY), sigma_clip=SigmaClip(3)).mean
    aperture = CircularAperture(places, STAR_RADIUS)
    counts = np.asarray(aperture_photometry(data, aperture)["aperture_sum"]) - sky * aperture.area
    magnitude = 22.5 - 2.5 * np.log10(counts * calibration(header).nanomaggy)
    return float(np.median(magnitude - chosen["psfmag_r"].to_numpy())), len(chosen)


def epochs_agree(tables, offsets, truths):
    """Difference of r between the epochs for the galaxies of the list, as the headers have it and tied to the stars."""
    found = []
    for table, truth in zip(tables, truths, strict=True):
        galaxies = truth["galaxies"]
        galaxies = galaxies[galaxies["edge_px"] > ALONE]
        gap, row = nearest(galaxies["x"], galaxies["y"], *place(table))
        magnitude = np.where(gap <= RADIUS, np.asarray(table["mag_r"].value, float)[row], np.nan)
        found.append(pd.DataFrame({"ours": magnitude, "list": galaxies["petromag_r"].to_numpy()}, galaxies["id"]))
    both = found[0].join(found[1].add_suffix("_2"), how="inner").dropna()
    bare = (both["ours"] - both["ours_2"]).to_numpy()
    tied = bare - (offsets[0] - offsets[1])
    figures = {"galaxies": len(both), "median_by_header": signed_median(bare), "median_tied": signed_median(tied)}
    for low, high in zip(MAGNITUDES[:-1], MAGNITUDES[1:], strict=True):
        part = tied[(both["list"] >= low) & (both["list"] < high)]
        scatter = 1.4826 * np.median(np.abs(part - np.median(part))) / np.sqrt(2)
        figures[f"scatter_of_one_epoch_{low:g}-{high:g}"] = f"{scatter:.3f} mag ({len(part)})"
    return figures


# The same sky as a picture --------------------------------------------------------------------------------


def twins(one, two):
    """Share of the sure rows of one catalogue that the other has too, and of these with the same class."""
    sure = one[np.asarray(one["score"]) > SURE]
    row, apart, _ = SkyCoord(sure["ra"], sure["dec"]).match_to_catalog_sky(SkyCoord(two["ra"], two["dec"]))
    common = apart.arcsec <= 2
    same = np.asarray(sure["class"])[common] == np.asarray(two["class"])[row[common]]
    return common, same


def agreement(linear, picture):
    """Common share and same class, from either side and of both together."""
    sides = {"of_linear": twins(linear, picture), "of_picture": twins(picture, linear)}
    sides["of_both"] = tuple(np.concatenate(parts) for parts in zip(*sides.values(), strict=True))
    return {
        f"{what}_{name}": rate(hit.sum(), hit.size)
        for name, side in sides.items()
        for what, hit in zip(("common", "same_class"), side, strict=True)
    }


# All of it ------------------------------------------------------------------------------------------------


def median(values):
    """Median of distances, px."""
    return round(float(np.median(values)), 4)


def signed_median(values):
    """Median of differences of magnitude."""
    return round(float(np.median(values)), 4)


def tell(figures, depth=0):
    """Print figures, one a line."""
    for name, value in figures.items():
        if isinstance(value, dict) and "hits" not in value:
            print("  " * depth + name)
            tell(value, depth + 1)
        else:
            print("  " * depth + f"{name}: {said(value) if isinstance(value, dict) else value}")


def main():
    """Make the catalogues, compare, print."""
    parser = options(__doc__)
    parser.add_argument("--catalogues", type=Path, default=Path("build/fits_figures"), help="folder for catalogues")
    asked = parser.parse_args()
    frames = {name: Frame(name, asked) for name in FRAMES}
    tables = {name: frame.catalogue() for name, frame in frames.items()}
    truths, offsets, figures = {name: read_truth(frames[name].folder) for name in EPOCHS}, [], {}
    for name in ("run4192", "run6377", "m2"):
        table, (data, header) = tables[name], frames[name].pixels()
        figures[name] = {
            "rows": len(table),
            "photutils": against_photutils(table, data),
            "astropy_largest_arcsec": against_astropy(table, header),
        }
        if name in EPOCHS:
            truth = truths[name]
            offset, count = zero_point_offset(data, header, truth["stars"])
            offsets.append(offset)
            figures[name] |= {
                "lsst_px": against_lsst(table, truth["lsst_detections_r"]),
                "kron_over_photutils": flux_ratio(
                    table, kron_by_photutils(data), truth["lsst_detections_r"], truth["galaxies"]
                ),
                "zero_point_from_stars": f"{offset:+.4f} mag ({count} stars)",
                **epoch_figures(*place(table), truth),
            }
    figures["epochs"] = epochs_agree([tables[name] for name in EPOCHS], offsets, [truths[name] for name in EPOCHS])
    for name in TWINS:
        figures[f"{name}_as_picture"] = agreement(tables[name], frames[name].of_picture())
    coarse = frames["ngc6976"].of_shrunk_picture(COARSE)
    figures[f"ngc6976_as_picture_shrunk_{COARSE}_times"] = agreement(tables["ngc6976"], coarse)
    searched = frames["ngc6976"].of_picture(RESAMPLE)
    figures[f"ngc6976_as_picture_with_resample_{RESAMPLE}"] = agreement(tables["ngc6976"], searched)
    tell(figures)
    report(figures, asked.out)


if __name__ == "__main__":
    main()
