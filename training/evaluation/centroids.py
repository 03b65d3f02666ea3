"""Centroids against the catalogue's positions and against photutils (the paper's Table 4 and Figure 16)."""

import numpy as np
import pandas as pd
from scipy import ndimage

from surveycat.image import open_image
from surveycat.measure import unstretched
from surveycat.photometry import sky_and_noise
from surveycat.pipeline import search
from training.evaluation import plots
from training.evaluation.cutouts import NATIVE_SCALE, found_in_cutouts, native_cutouts
from training.evaluation.figures import median_absolute_deviation, without_outliers


def section(subject, page):
    """Centroids: offset from the position asked for (Table 4, Fig. 16), and from photutils on the same pixels."""
    frame, _, everything = found_in_cutouts(subject)
    rows = []
    for found, image, (_, galaxy) in zip(everything, native_cutouts(frame), frame.iterrows(), strict=False):
        if subject.out_of_time:
            break
        row = central_row(image, found)
        if row is not None:
            # pictures of large galaxies are coarser than native
            factor = galaxy["size_px"] * galaxy["pixel_scale_arcsec"] / NATIVE_SCALE / image.shape[1]
            factor = max(factor, 1.0) if image.shape[1] == 256 else 1.0
            rows.append(
                {
                    "id": galaxy["id"],
                    "source": galaxy["set"],
                    "dx": (row["x"].value - image.shape[1] / 2) * factor,
                    "dy": (row["y"].value - image.shape[0] / 2) * factor,
                    **against_photutils(image, row),
                }
            )
    table = pd.DataFrame(rows)
    page.table("offsets", table)
    figures = {"found": len(table), "looked_at": len(everything)}
    if not len(table):
        return figures
    for source, part in table.groupby("source"):
        offset = part[["dx", "dy"]].to_numpy()
        figures[source] = table_4(offset)
        page.plot(
            f"offsets_{source}",
            f"Centroid less the position of the picture, {source}, native px (Fig. 16)",
            plots.histogram,
            {"x": without_outliers(offset)[:, 0], "y": without_outliers(offset)[:, 1]},
            "offset, px",
        )
    for name in ("windowed", "flux_weighted"):
        difference = table[[f"{name}_dx", f"{name}_dy"]].to_numpy()
        figures[f"photutils_{name}"] = {
            "median_distance": _rounded(np.nanmedian(np.hypot(*difference.T))),
            "median_x": _rounded(np.nanmedian(difference[:, 0])),
            "median_y": _rounded(np.nanmedian(difference[:, 1])),
        }
    return figures


def table_4(offset):
    """Median, MAD, mean and standard deviation in x and y after the 5-sigma cut.

    Parameters
    ----------
    offset : ndarray, shape (N, 2)
        (dx, dy) in native px.

    Returns
    -------
    dict
        The figures.
    """
    kept = without_outliers(offset)
    figures = {"count": len(offset), "after_cut": len(kept)}
    for i, axis in enumerate("xy"):
        figures |= {
            f"median_{axis}": _rounded(np.median(kept[:, i])),
            f"mad_{axis}": _rounded(median_absolute_deviation(kept[:, i])),
            f"mean_{axis}": _rounded(kept[:, i].mean()),
            f"sigma_{axis}": _rounded(kept[:, i].std()),
        }
    return figures


def _rounded(value):
    return round(float(value), 3)


def central_row(image, found):
    """The catalogue's row of the galaxy at the centre of a picture, made by the whole line from what was found.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        At most 256 px a side: one tile.
    found : Detections
        Of that tile, as the detector gives them.

    Returns
    -------
    Row or None
        None if no footprint's box holds the centre.
    """
    first = found.replace(tile=np.zeros(len(found)))
    with open_image(image) as picture:
        table, _ = search(picture, lambda pixels, min_score: first)
    middle = image.shape[1] / 2, image.shape[0] / 2
    holds = (
        (table["x_min"].value <= middle[0])
        & (table["x_max"].value > middle[0])
        & (table["y_min"].value <= middle[1])
        & (table["y_max"].value > middle[1])
    )
    distance = np.hypot(table["x"].value - middle[0], table["y"].value - middle[1])
    return table[int(np.argmin(np.where(holds, distance, np.inf)))] if holds.any() else None


def against_photutils(image, row):
    """Our centroid less those of photutils on the same pixels and mask.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        Picture; the second channel is measured.
    row : Row
        Of the catalogue.

    Returns
    -------
    dict
        ``windowed_dx``, ``windowed_dy`` (its `centroid_win`, as SExtractor's XWIN), ``flux_weighted_dx``, ``_dy``.
    """
    from photutils.segmentation import SegmentationImage, SourceCatalog
    from shapely import Polygon, contains_xy

    y, x = np.indices(image.shape[:2])
    outline = np.column_stack([row["footprint_x"], row["footprint_y"]])
    mask = contains_xy(Polygon(outline), x, y)
    values = image[..., 1].astype(float)
    beyond = ~ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=3)  # where our measurement takes its sky
    light = np.maximum(unstretched(values - sky_and_noise(values, beyond)[0]), 0) * mask
    source = SourceCatalog(light, SegmentationImage(mask.astype(np.int32)))
    ours = np.array([float(row[axis].value) for axis in "xy"])
    differences = {}
    for name, theirs in (("windowed", source.centroid_win), ("flux_weighted", source.centroid)):
        dx, dy = ours - np.ravel(theirs)
        differences |= {f"{name}_dx": dx, f"{name}_dy": dy}
    return differences
