"""Whole cutouts at native scale: is the galaxy at the centre found, and is its class that of Galaxy Zoo?"""

import numpy as np
import pandas as pd
from PIL import Image

from training.evaluation.figures import confusion, expected_calibration_error, rate, rates_by, reliability
from training.evaluation.tiles import TILE, central, look

NATIVE_SCALE = 0.396127  # arcsec/px of SDSS frames and of SkyServer's scale=0.396127
VOTE_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.001)
SIZE_EDGES = (0, 16, 24, 32, 48, 64, 128)  # semi-major axis at 2 sigma, native px


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


def native_cutouts(frame):
    """Native cutouts of the rows of `read_cutouts`, one after the other."""
    return (native_cutout(path, scale) for path, scale in zip(frame["path"], frame["pixel_scale_arcsec"], strict=True))


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


def look_at_cutouts(detector, frame, images=None, stop=lambda: False):
    """Run the detector on whole cutouts and take the detection at the centre.

    Parameters
    ----------
    detector : Detector
        The detector.
    frame : pandas.DataFrame
        From `read_cutouts`.
    images : iterable of ndarray, optional
        What is shown for each row; `native_cutouts` by default.
    stop : callable, optional
        As in `tiles.look`.

    Returns
    -------
    pandas.DataFrame
        The same rows, less those left out at the end, with ``found``, ``score``, ``p_spiral`` (NaN where nothing is at
        the centre), ``side`` (px).
    """
    return answers(frame, *look_at_all(detector, frame, images, stop))


def look_at_all(detector, frame, images=None, stop=lambda: False):
    """What the detector finds in whole cutouts.

    Parameters
    ----------
    detector, frame, images, stop
        As of `look_at_cutouts`.

    Returns
    -------
    sides : list of int
        Side of each picture that was shown, px.
    found : list of Detections
        In each; shorter where the end was left out.
    """
    sides = []

    def shown():
        for image in native_cutouts(frame) if images is None else images:
            sides.append(image.shape[0])
            yield image

    return sides, list(look(detector, shown(), 0.5, stop))


def answers(frame, sides, found):
    """Rows with what was found at their centres, as `look_at_cutouts` returns them; others are left out."""
    rows = []
    for side, one in zip(sides, found, strict=False):
        best = central(one, side)
        rows.append((np.nan, np.nan) if best is None else (one.score[best], one.p_spiral[best]))
    score, p_spiral = np.array(rows, float).reshape(-1, 2).T
    seen = frame.head(len(rows))
    return seen.assign(found=np.isfinite(score), score=score, p_spiral=p_spiral, side=sides[: len(rows)])


def labelled(frame):
    """Rows whose galaxy was found and whose label is spiral or elliptical."""
    return frame[frame["found"] & frame["label"].isin(["spiral", "elliptical"])]


def class_figures(frame):
    """Confusion matrix, accuracy, precision, recall and F1 on the `labelled` rows of `look_at_cutouts`."""
    frame = labelled(frame)
    return confusion(frame["label"] == "spiral", frame["p_spiral"] > 0.5)


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
    frame = labelled(frame)
    return expected_calibration_error(reliability(frame["p_spiral"], frame["label"] == "spiral", bins))


def with_votes(frame):
    """Rows with a label and vote fractions of Galaxy Zoo 2, with the ``vote`` for their label."""
    frame = frame[frame["votes_source"].notna() & (frame["set"] == "gz2")]
    frame = frame[frame["label"].isin(["spiral", "elliptical"])]
    return frame.assign(vote=np.where(frame["label"] == "spiral", frame["p_features"], frame["p_smooth"]))


def found_in_cutouts(subject):
    """Rows of the test cutouts in random order, and what `look_at_all` gives for them, made once."""

    def make():
        frame = subject.sample(read_cutouts(subject.data, "test"))
        return frame, *look_at_all(subject.detector, frame, stop=lambda: subject.out_of_time)

    return subject.once("cutouts", make)


def seen_cutouts(subject):
    """The test cutouts with what the detector says of each."""
    return answers(*found_in_cutouts(subject))


def section(subject, page):
    """Paper's Table 3 and Figures 11 to 13, with accuracy against size and votes, and calibration."""
    from training.evaluation import plots

    frame = seen_cutouts(subject)
    figures = cutout_figures(frame)
    for name, chosen in (("confident", frame[frame["confident"] == 1]), ("all labelled", frame)):
        page.plot(
            f"confusion_{name.split()[0]}", f"Confusion matrix, {name} rows", plots.confusion, class_figures(chosen)
        )
    known = labelled(frame)
    voted = with_votes(known)
    curve = reliability(known["p_spiral"], known["label"] == "spiral")
    page.plot(
        "reliability",
        "Class probability against how often it is right (ten bins of equal count)",
        plots.reliability,
        curve,
    )
    agrees = (voted["p_spiral"] > 0.5) == (voted["label"] == "spiral")
    page.plot(
        "score_votes",
        "Score and class probability against the vote fraction of the label; agreeing and disagreeing (Figs. 12, 13)",
        plots.score_against_votes,
        voted,
        agrees,
    )
    page.plot(
        "class_votes",
        "Class accuracy against vote fraction",
        plots.rates,
        figures["accuracy_by_vote"],
        "vote",
        "accuracy",
    )
    page.plot(
        "class_size",
        "Class accuracy against size",
        plots.rates,
        figures["accuracy_by_size"],
        "semi-major axis, px",
        "accuracy",
    )
    page.table("cutouts", frame.drop(columns="path"))
    return figures


def cutout_figures(frame, split="test"):
    """Detection and class figures on whole cutouts at native scale.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `look_at_cutouts`.
    split : str
        Its split.

    Returns
    -------
    dict
        The figures.
    """
    confident = frame[frame["confident"] == 1]
    known = labelled(frame)
    voted, right = with_votes(confident), (known["p_spiral"] > 0.5) == (known["label"] == "spiral")
    all_voted = with_votes(known)
    right_voted = (all_voted["p_spiral"] > 0.5) == (all_voted["label"] == "spiral")
    size = known["a_2sigma_arcsec"] / NATIVE_SCALE
    return {
        "split": split,
        "central_galaxy_detected": rate(frame["found"]),
        "detected_by_size": rates_by(frame["a_2sigma_arcsec"] / NATIVE_SCALE, frame["found"], SIZE_EDGES),
        "all_labelled": class_figures(frame),
        "confident": class_figures(confident),
        "confident_with_votes": class_figures(voted),
        "vote_at_least_0.8": class_figures(voted[voted["vote"] >= 0.8]),
        "galaxy_zoo_1": class_figures(confident[confident["set"] == "gz1"]),
        "accuracy_by_vote": rates_by(all_voted["vote"], right_voted, VOTE_EDGES),
        "accuracy_by_size": rates_by(size, right, SIZE_EDGES),
        "mean_score_agreeing": _mean(all_voted.loc[right_voted, "score"]),
        "mean_score_disagreeing": _mean(all_voted.loc[~right_voted, "score"]),
        "calibration_error": calibration_error(frame),
    }


def _mean(values):
    return round(float(values.mean()), 4) if len(values) else None
