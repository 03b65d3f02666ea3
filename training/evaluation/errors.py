"""The worst errors on the test cutouts, as one picture to be looked at, with what can be measured of their causes."""

import pathlib

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from training import stamps
from training.evaluation.composed import full_masks
from training.evaluation.cutouts import native_cutouts, seen_cutouts
from training.evaluation.fields import contact_sheet
from training.evaluation.figures import confusion
from training.evaluation.tiles import central, look

COUNT = 40
SIDE = 192
VERDICTS = pathlib.Path(__file__).parent / "verdicts.csv"  # of eyes: id; label or model is wrong, or undecidable; cause
UNDECIDED = 0.35, 0.65  # vote fractions of a galaxy on which people did not agree
SMALL_SIDE = 30.0  # px of the longer side of its mask at native scale, under which arms are hardly seen
THIN = 0.4  # axis ratio of what is seen edge-on
NEAR = 0.25  # reach of a galaxy beyond its mask, in units of the mask's longer side


def worst(frame):
    """All errors on confident rows, the worst first: galaxies missed, then classes by how sure the wrong one was.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `cutouts.look_at_cutouts`.

    Returns
    -------
    pandas.DataFrame
        Those rows with ``error`` (text) and ``badness``.
    """
    frame = frame[(frame["confident"] == 1) & frame["label"].isin(["spiral", "elliptical"])]
    is_spiral = frame["label"] == "spiral"
    wrong = np.where(is_spiral, 1 - frame["p_spiral"], frame["p_spiral"])  # NaN where missed
    frame = frame.assign(
        badness=np.where(frame["found"], wrong, 2.0),
        error=np.where(
            frame["found"], np.where(is_spiral, "spiral missed as E", "elliptical taken for S"), "not found"
        ),
    )
    return frame[frame["badness"] > 0.5].sort_values("badness", ascending=False, kind="stable")


def section(subject, page):
    """The 40 worst errors on confident test cutouts, as one picture; all disagreements as a table to be judged."""
    frame = seen_cutouts(subject)
    bad = worst(frame)
    bad = bad.assign(measured=[", ".join(causes(row)) for row in bad.to_dict("records")])
    judged = pd.read_csv(VERDICTS, dtype={"id": str})
    shown = bad.head(COUNT)
    if page.folder is not None:
        caption = (
            f"The {COUNT} worst errors: native pixels, enlarged, with the outline of what was found; label and vote, "
            f"what was said, what was measured, and what eyes said ({VERDICTS.name})"
        )
        page.picture("worst", caption, errors_sheet(subject.detector, shown, judged))
    columns = ["id", "set", "label", "p_features", "p_smooth", "p_spiral", "score", "error", "measured"]
    page.table("all", bad[[*columns, "a_2sigma_arcsec"]], "All errors on confident rows")
    each = bad["measured"].str.split(", ").explode()
    return {
        "errors": {str(name): int(count) for name, count in bad["error"].value_counts().items()},
        "measured_causes": {str(name): int(count) for name, count in each.value_counts().items()},
        "after_looking": after_looking(frame, judged),
        "not_looked_at": int((~bad["id"].isin(judged["id"])).sum()),
    }


def causes(row):
    """What can be measured about an error: it may be why, and it need not be.

    Parameters
    ----------
    row : dict
        Of `worst`.

    Returns
    -------
    list of str
        Of "undecided vote", "no votes", "no clear galaxy" (its mask cannot be drawn), "small", "edge-on", "neighbour"
        and "star" (within or near the mask); "none of these" for none.
    """
    found = []
    votes = row["p_features"] / (row["p_features"] + row["p_smooth"])
    if not np.isfinite(votes):
        found.append("no votes")
    elif UNDECIDED[0] < votes < UNDECIDED[1]:
        found.append("undecided vote")
    stamp = stamps.make_stamp({**row, "target": 0.5, "class_weight": 0.0})
    return [*found, *(["no clear galaxy"] if isinstance(stamp, str) else surroundings(stamp))] or ["none of these"]


def surroundings(stamp):
    """Causes that a galaxy's size, shape and neighbours may be.

    Parameters
    ----------
    stamp : dict
        From `stamps.make_stamp`: ``labels`` and ``side``.

    Returns
    -------
    list of str
        Of "small", "edge-on", "neighbour", "star".
    """
    kinds, mask = stamp["labels"] % 8, stamp["labels"] == stamps.CENTRAL
    spread = np.cov(np.argwhere(mask).T)
    ratio = np.sqrt(np.divide(*np.linalg.eigvalsh(spread)))
    near = ndimage.distance_transform_edt(~mask) <= NEAR * stamp["side"]
    parts = {
        "small": stamp["side"] < SMALL_SIDE,
        "edge-on": ratio < THIN,
        "neighbour": (near & np.isin(kinds, (stamps.GALAXY, stamps.DOUBTFUL))).any(),
        "star": (near & (kinds == stamps.STAR)).any(),
    }
    return [name for name, there in parts.items() if there]


def errors_sheet(detector, rows, judged):
    """A `contact_sheet` of errors: the galaxy and the outline of what was found, its label, what was said, causes.

    Parameters
    ----------
    detector : Detector
        The detector, which looks once more for the outlines.
    rows : pandas.DataFrame
        Of `worst`, with ``measured``.
    judged : pandas.DataFrame
        ``id``, ``verdict`` and ``cause`` of those that were looked at.

    Returns
    -------
    PIL.Image.Image
        The sheet; the last line of each is left free for a verdict.
    """
    said = dict(zip(judged["id"], judged["verdict"] + ": " + judged["cause"], strict=True))
    cells = []
    images = list(native_cutouts(rows))
    for row, image, found in zip(rows.itertuples(), images, look(detector, images), strict=True):
        vote = f"vote S {row.p_features:.2f}" if np.isfinite(row.p_features) else "no vote"
        answer = f"said S {row.p_spiral:.2f}, score {row.score:.2f}" if row.found else "not found"
        lines = (str(row.id), f"{row.label}, {vote}", answer, row.measured, said.get(str(row.id), ""))
        cells.append((outlined(image, found), *lines))
    return contact_sheet(cells, SIDE)


def outlined(image, found):
    """A cutout enlarged to the sheet's side, with the outline of the detection at its centre.

    Parameters
    ----------
    image : ndarray of uint8, shape (n, n, 3)
        Cutout.
    found : Detections
        Of it.

    Returns
    -------
    PIL.Image.Image
        The picture.
    """
    picture = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    best = central(found, image.shape[0])
    if best is None:
        return picture
    mask = full_masks(found.select(np.arange(len(found)) == best))[0][: image.shape[0], : image.shape[1]]
    large = np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    edge = Image.fromarray(large & ~ndimage.binary_erosion(large))
    ImageDraw.Draw(picture).bitmap((0, 0), edge.convert("L"), fill=(255, 220, 0))
    return picture


def after_looking(frame, verdicts):
    """Accuracy on confident rows after disagreements were looked at.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `cutouts.look_at_cutouts`.
    verdicts : pandas.DataFrame
        ``id`` and ``verdict``: label (it is wrong), model (it is wrong), undecidable (the row does not count).

    Returns
    -------
    dict
        Number of each verdict on rows that disagree, and the class figures with labels mended and undecidable rows
        left out.
    """
    said = verdicts.set_index("id")["verdict"]
    frame = frame[frame["found"] & (frame["confident"] == 1) & frame["label"].isin(["spiral", "elliptical"])]
    verdict = frame["id"].astype(str).map(said)
    is_spiral = (frame["label"] == "spiral") ^ (verdict == "label")
    decided = verdict != "undecidable"
    disagrees = (frame["label"] == "spiral") != (frame["p_spiral"] > 0.5)
    counts = {str(name): int(count) for name, count in verdict[disagrees].value_counts().items()}
    return {"verdicts": counts, **confusion(is_spiral[decided], frame["p_spiral"][decided] > 0.5)}
