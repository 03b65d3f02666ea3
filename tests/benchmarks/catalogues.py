"""What the benchmarks on real images share: rates with intervals, doubles, seams, options, reports."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from astropy.stats import binom_conf_interval

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import surveycat

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SAME_IOU = 0.5  # as in the seam rule


def options(description):
    """Command line that all of them have: which weights, where the data are, where figures go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--weights", default=str(ROOT / "weights" / "compact"), help="preset or folder")
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data folder")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


def rate(hits, total):
    """A rate with its 95 % interval (Wilson).

    Parameters
    ----------
    hits, total : int
        Successes and trials.

    Returns
    -------
    dict
        ``value``, ``low``, ``high`` (None without trials), ``hits``, ``total``.
    """
    hits, total = int(hits), int(total)
    if not total:
        return {"value": None, "low": None, "high": None, "hits": 0, "total": 0}
    low, high = binom_conf_interval(hits, total, confidence_level=0.95, interval="wilson")
    values = {"value": hits / total, "low": float(low), "high": float(high)}
    return {name: round(value, 4) for name, value in values.items()} | {"hits": hits, "total": total}


def said(figure):
    """A rate as text."""
    if figure["value"] is None:
        return "no trials"
    return (
        f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f}) = {figure['hits']} of {figure['total']}"
    )


def search(image, weights, **where):
    """Catalogue of an image as a `~pandas.DataFrame`, one row for each galaxy, without units."""
    table = surveycat.run(image, weights=weights, **where)
    return pd.DataFrame({name: list(np.asarray(table[name])) for name in table.colnames})


def polygons(table):
    """Footprints of all rows as an array of shapely polygons, pixels."""
    pairs = zip(table["footprint_x"], table["footprint_y"], strict=True)
    return np.array([shapely.Polygon(np.column_stack([x, y])) for x, y in pairs], dtype=object)


def doubles(table):
    """Pairs of rows that are one object: footprints with an IoU of at least 0.5.

    Returns
    -------
    list of (int, int)
        Positions in the table.
    """
    shapes = polygons(table)
    if not len(shapes):
        return []
    one, two = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    one, two = one[one < two], two[one < two]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[two]))
    same = shared >= SAME_IOU * (shapely.area(shapes[one]) + shapely.area(shapes[two]) - shared)
    return list(zip(one[same].tolist(), two[same].tolist(), strict=True))


def seams(grid, level):
    """Rows and columns, edge coordinates in pixels of the level, of the tiles' edges inside the image."""
    return [
        np.setdiff1d(np.concatenate([origins, origins + grid.size]), [0, n])
        for origins, n in zip(grid.origins(level), grid.level_shape(level), strict=True)
    ]


def near(lines, values):
    """Distance of each value from the nearest line; infinite where there is none."""
    if not len(lines):
        return np.full(np.shape(values), np.inf)
    return np.abs(np.asarray(values, dtype=float)[..., None] - lines).min(axis=-1)


def outline_on_seams(row, grid, moved=0):
    """Share of a row's outline that lies on the edges of tiles of its level, or on lines `moved` from those."""
    level = int(row["level"])
    rows, columns = (lines + moved for lines in seams(grid, level))
    # Outlines run along the edges of pixels of their level, and so do the edges of tiles.
    x, y = ((np.asarray(row[f"footprint_{axis}"], dtype=float) + 0.5) / 2**level for axis in "xy")
    length = np.abs(np.diff(x, append=x[0])) + np.abs(np.diff(y, append=y[0]))
    across = np.diff(y, append=y[0]) == 0
    on_seam = np.where(across, near(rows, y), near(columns, x)) < 0.5
    return float(length[on_seam].sum() / length.sum())


def report(figures, out):
    """Write the figures to a JSON file, if one is wanted."""
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {out}")
