"""Measure a preset on galaxies and fields it never saw, and write the figures beside its weights.

Example: python -m training.evaluate --weights weights/compact --data ../shared/data

Every figure is at the catalogue's default score of 0.5 and comes from the ``test`` split of the cutouts, or from fields
of which nothing was trained on. Writes ``metrics.json`` and ``CARD.md`` into the preset folder (``--out`` for another).
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np
import pandas as pd
from astropy.stats import binom_conf_interval
from PIL import Image

import surveycat
from surveycat.mrcnn.detector import load_detector

NATIVE_SCALE = 0.396127  # arcsec/px of SDSS frames and of SkyServer's scale=0.396127
TILE = 256


def fraction(hits, total):
    """A rate with its 68 % binomial interval (Wilson).

    Parameters
    ----------
    hits, total : int
        Successes and trials.

    Returns
    -------
    dict
        ``value``, ``low``, ``high``, ``hits``, ``total``; the values are None without trials.
    """
    if not total:
        return {"value": None, "low": None, "high": None, "hits": 0, "total": 0}
    low, high = binom_conf_interval(hits, total, interval="wilson")
    return {
        "value": round(hits / total, 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "hits": int(hits),
        "total": int(total),
    }


def native_cutout(path, scale):
    """A cutout shrunk to native SDSS sampling; coarser ones stay as they are.

    Parameters
    ----------
    path : path
        JPEG.
    scale : float
        Its arcsec/px.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        At most 256 px a side.
    """
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        size = min(round(picture.width * scale / NATIVE_SCALE), TILE)
        if size < picture.width:
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(picture)


def as_tile(image):
    """An image smaller than a tile, padded by its median colour as the tiler does.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        At most 256 px a side.

    Returns
    -------
    ndarray of uint8, shape (256, 256, 3)
        The tile; the image is in its first rows and columns.
    """
    tile = np.empty((TILE, TILE, 3), np.uint8)
    tile[:] = np.median(image.reshape(-1, 3), axis=0)
    tile[: image.shape[0], : image.shape[1]] = image
    return tile


def read_cutouts(data, split):
    """Rows of both label tables of a split.

    Parameters
    ----------
    data : pathlib.Path
        Shared data folder.
    split : str
        ``train``, ``val`` or ``test``.

    Returns
    -------
    pandas.DataFrame
        With ``path`` and ``set`` besides the tables' own columns; rows without a scale get the median one.
    """
    frames = []
    for name in ("gz2", "gz1"):
        frame = pd.read_csv(data / "cutouts" / name / "labels.csv", low_memory=False)
        frames.append(frame.assign(path=[data / "cutouts" / name / file for file in frame["file"]], set=name))
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[frame["split"] == split].reset_index(drop=True)
    frame["pixel_scale_arcsec"] = frame["pixel_scale_arcsec"].fillna(0.02 * 8.4 * 424.0 / frame["size_px"])
    return frame


def look_at_cutouts(detector, frame):
    """Run the detector on whole cutouts and take the detection at the centre.

    Parameters
    ----------
    detector : Detector
        The detector.
    frame : pandas.DataFrame
        From `read_cutouts`.

    Returns
    -------
    pandas.DataFrame
        The same rows with ``found``, ``score``, ``p_spiral`` (NaN where nothing is at the centre), ``side`` (px).
    """
    score, p_spiral, sides = np.full(len(frame), np.nan), np.full(len(frame), np.nan), np.zeros(len(frame))
    images = [
        native_cutout(path, scale) for path, scale in zip(frame["path"], frame["pixel_scale_arcsec"], strict=True)
    ]
    for start in range(0, len(images), detector.batch_size):
        part = images[start : start + detector.batch_size]
        found = detector(np.stack([as_tile(image) for image in part]), 0.5)
        for i, image in enumerate(part):
            mine = found.select(found.tile == i)
            sides[start + i] = image.shape[0]
            best = central(mine, image.shape[0])
            if best is not None:
                score[start + i], p_spiral[start + i] = mine.score[best], mine.p_spiral[best]
    return frame.assign(found=np.isfinite(score), score=score, p_spiral=p_spiral, side=sides)


def central(found, side):
    """Index of the detection whose box holds the centre of the image and is centred nearest to it; None if none does.

    Parameters
    ----------
    found : Detections
        Of one image.
    side : int
        Side of the image, px.

    Returns
    -------
    int or None
        The index.
    """
    middle = side / 2
    holds = np.all((found.box[:, :2] <= middle) & (found.box[:, 2:] >= middle), axis=1)
    if not holds.any():
        return None
    distance = np.hypot(*(0.5 * (found.box[:, :2] + found.box[:, 2:]) - middle).T)
    return int(np.argmin(np.where(holds, distance, np.inf)))


def class_figures(frame):
    """Class accuracy and recalls on rows whose galaxy was found and whose label is spiral or elliptical.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `look_at_cutouts`.

    Returns
    -------
    dict
        Accuracy, recall of spirals and of ellipticals.
    """
    frame = frame[frame["found"] & frame["label"].isin(["spiral", "elliptical"])]
    is_spiral, said_spiral = frame["label"] == "spiral", frame["p_spiral"] > 0.5
    right = is_spiral == said_spiral
    return {
        "accuracy": fraction(right.sum(), len(frame)),
        "spiral_recall": fraction((right & is_spiral).sum(), is_spiral.sum()),
        "elliptical_recall": fraction((right & ~is_spiral).sum(), (~is_spiral).sum()),
    }


def cutout_figures(detector, data, split="test"):
    """Detection and class figures on whole cutouts at native scale.

    Parameters
    ----------
    detector : Detector
        The detector.
    data : pathlib.Path
        Shared data folder.
    split : str
        Split.

    Returns
    -------
    dict
        The figures.
    """
    frame = look_at_cutouts(detector, read_cutouts(data, split))
    confident = frame[frame["confident"] == 1]
    voted = confident[confident["votes_source"].notna() & (confident["set"] == "gz2")]
    vote = np.where(voted["label"] == "spiral", voted["p_features"], voted["p_smooth"])
    return {
        "split": split,
        "central_galaxy_detected": fraction(frame["found"].sum(), len(frame)),
        "confident": class_figures(confident),
        "confident_with_votes": class_figures(voted),
        "vote_at_least_0.8": class_figures(voted[vote >= 0.8]),
        "galaxy_zoo_1": class_figures(confident[confident["set"] == "gz1"]),
        "calibration_error": calibration_error(frame),
    }


def calibration_error(frame, bins=10):
    """Expected calibration error of the class (Guo et al. 2017, equation 3), in bins of equal count.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `look_at_cutouts`.
    bins : int
        Bins.

    Returns
    -------
    float
        Mean difference of the majority label's probability and its rate.
    """
    frame = frame[frame["found"] & frame["label"].isin(["spiral", "elliptical"])]
    said_spiral = frame["p_spiral"] > 0.5
    confidence = np.maximum(frame["p_spiral"], 1 - frame["p_spiral"]).to_numpy()
    right = (said_spiral == (frame["label"] == "spiral")).to_numpy()
    order = np.array_split(np.argsort(confidence), bins)
    gaps = [len(part) * abs(confidence[part].mean() - right[part].mean()) for part in order]
    return round(float(np.sum(gaps) / len(frame)), 4)


def nearest(x, y, table):
    """Distance in px from each (x, y) to the nearest row of a catalogue, and that row."""
    if not len(table):
        return np.full(len(x), np.inf), np.zeros(len(x), int)
    distance = np.hypot(np.asarray(x)[:, None] - table["x"].value, np.asarray(y)[:, None] - table["y"].value)
    return distance.min(axis=1), distance.argmin(axis=1)


def inside(x, y, table):
    """Whether each point lies in the footprint of some row."""
    from shapely import Polygon, contains_xy

    hit = np.zeros(len(x), bool)
    for row in table:
        hit |= contains_xy(Polygon(np.column_stack([row["footprint_x"], row["footprint_y"]])), x, y)
    return hit


def epoch_figures(table, folder, radius=2.0 / 0.396):
    """Completeness by magnitude, and stars catalogued, of one epoch of the test field.

    Parameters
    ----------
    table : QTable
        Catalogue of its ``field.jpg``.
    folder : pathlib.Path
        With ``galaxies.csv``, ``stars.csv``, ``ambiguous.csv``.
    radius : float
        Match radius, px (2 arcsec).

    Returns
    -------
    dict
        The figures.
    """
    galaxies, stars, unclear = (pd.read_csv(folder / f"{name}.csv") for name in ("galaxies", "stars", "ambiguous"))
    distance, _ = nearest(galaxies["x"], galaxies["y"], table)
    found, magnitude = distance <= radius, galaxies["petromag_r"]
    figures = {"rows": len(table)}
    for limit in (18.5, 19.0, 19.5, 20.0, 20.5):
        figures[f"galaxies_brighter_than_{limit}"] = fraction(
            int(found[magnitude < limit].sum()), int((magnitude < limit).sum())
        )
    gap, row = nearest(stars["x"], stars["y"], table)
    on_galaxy, _ = nearest(stars["x"], stars["y"], _as_table(galaxies))
    unsure = np.any(
        np.hypot(
            stars["x"].to_numpy()[:, None] - unclear["x"].to_numpy(),
            stars["y"].to_numpy()[:, None] - unclear["y"].to_numpy(),
        )
        <= unclear["radius_px"].to_numpy(),
        axis=1,
    )
    # a row that is a real galaxy's is no star, however near the star is
    row_gap, _ = nearest(table["x"].value, table["y"].value, _as_table(galaxies))
    own = np.array([row_gap[r] > radius for r in row]) if len(table) else np.zeros(len(stars), bool)
    taken = (gap <= radius) & own & ~unsure & (on_galaxy > radius)
    for limit in (19.0, 20.0):
        usable = (stars["psfmag_r"] < limit) & (stars["saturated"] == 0)
        figures[f"stars_catalogued_brighter_than_{limit}"] = fraction(int((taken & usable).sum()), int(usable.sum()))
    return figures


def _as_table(frame):
    from astropy import units as u
    from astropy.table import QTable

    return QTable({"x": frame["x"].to_numpy() * u.pix, "y": frame["y"].to_numpy() * u.pix})


def repeats(first, second, radius_arcsec=2.0, score=0.7):
    """Objects of one epoch that the other has too.

    Parameters
    ----------
    first, second : QTable
        Catalogues of the same sky.
    radius_arcsec : float
        Match radius.
    score : float
        Objects of `first` above this score are looked for.

    Returns
    -------
    dict
        The rate.
    """
    from astropy.coordinates import SkyCoord

    sure = first[first["score"] > score]
    if not len(sure) or not len(second):
        return fraction(0, len(sure))
    _, separation, _ = SkyCoord(sure["ra"], sure["dec"]).match_to_catalog_sky(SkyCoord(second["ra"], second["dec"]))
    return fraction(int((separation.arcsec < radius_arcsec).sum()), len(sure))


def field_figures(weights, data):
    """Figures on the real fields kept for testing.

    Parameters
    ----------
    weights : str
        Preset.
    data : pathlib.Path
        Shared data folder.

    Returns
    -------
    dict
        The figures.
    """

    def catalogue(name, **options):
        folder = data / "fields" / name
        return surveycat.run(folder / "field.jpg", wcs=folder / "wcs.hdr", weights=weights, **options), folder

    tables, figures = {}, {}
    for epoch in ("run4192", "run6377"):
        tables[epoch], folder = catalogue(f"sdss_351.65+0.10_{epoch}")
        figures[epoch] = epoch_figures(tables[epoch], folder)
    first, second = tables.values()
    figures["run4192_score_0.7_repeated"] = repeats(first, second)
    figures["run6377_score_0.7_repeated"] = repeats(second, first)
    table, folder = catalogue("sdss_313.17-5.69_ngc6976")
    truth = pd.read_csv(folder / "galaxies.csv")
    truth = truth[truth["y"] >= 744]
    distance, _ = nearest(truth["x"], truth["y"], table)
    kept = table[table["y"].value >= 744]
    figures["ngc6976_rows_at_y_744"] = len(kept)
    figures["ngc6976_large_galaxies"] = fraction(int((distance < 10).sum()), len(truth))
    figures["ngc6976_rows_on_large_galaxies"] = [
        int((np.hypot(kept["x"].value - x, kept["y"].value - y) < 30).sum())
        for x, y in zip(truth["x"], truth["y"], strict=True)
    ]
    table, _ = catalogue("sdss_323.34-0.73_m2")
    figures["m2_rows_at_y_744"] = int((table["y"].value >= 744).sum())
    figures["m2_rows_in_cluster_at_y_744"] = int(((table["y"].value >= 744) & (table["x"].value < 700)).sum())
    return figures


def commit():
    """Short name of the checked-out commit, with ``+`` where files differ from it."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def evaluate(weights, data, out=None):
    """All figures of a preset, written to ``metrics.json``.

    Parameters
    ----------
    weights : str
        Preset name or folder.
    data : path
        Shared data folder.
    out : path, optional
        Folder for ``metrics.json``; the preset's own by default.

    Returns
    -------
    dict
        The figures.
    """
    data = pathlib.Path(data)
    detector = load_detector(str(weights))
    metrics = {
        "weights": detector.weights_id,
        "sha256": detector.sha256,
        "surveycat": surveycat.__version__,
        "commit": commit(),
        "data": "SDSS cutouts with Galaxy Zoo labels (split test) and SDSS fields kept for testing",
        "cutouts": cutout_figures(detector, data),
        "fields": field_figures(str(weights), data),
    }
    folder = pathlib.Path(out or weights)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/compact")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out")
    print(json.dumps(evaluate(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
