"""The worst errors on the test cutouts, as one picture to be looked at."""

import numpy as np
import pandas as pd
from PIL import Image

from training.evaluation.cutouts import native_cutout, seen_cutouts
from training.evaluation.fields import contact_sheet
from training.evaluation.figures import confusion

COUNT = 40
SIDE = 144
VERDICTS = "verdicts.csv"  # what eyes said of disagreements: id, verdict (label, model, undecidable), cause


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
    page.picture("worst", f"The {COUNT} worst errors: native pixels, enlarged", errors_sheet(bad.head(COUNT)))
    columns = ["id", "set", "label", "p_features", "p_smooth", "p_spiral", "score", "error", "a_2sigma_arcsec"]
    page.table("all", bad[columns], "All errors on confident rows")
    figures = {"errors": {str(name): int(count) for name, count in bad["error"].value_counts().items()}}
    verdicts = page.folder and page.folder / VERDICTS
    if verdicts and verdicts.exists():
        figures["after_looking"] = after_looking(frame, pd.read_csv(verdicts, dtype={"id": str}))
    return figures


def errors_sheet(rows):
    """A `contact_sheet` of errors with their labels, votes and answers."""
    cells = []
    for row in rows.itertuples():
        picture = Image.fromarray(native_cutout(row.path, row.pixel_scale_arcsec))
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        vote = f"vote S {row.p_features:.2f}" if row.votes_source == "kaggle" else "no vote"
        said = f"said p(S) {row.p_spiral:.2f}" if row.found else "not found"
        cells.append((picture, str(row.id), f"{row.label}, {vote}", said))
    return contact_sheet(cells, SIDE)


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
        Number of each verdict, and the class figures with labels mended and undecidable rows left out.
    """
    said = verdicts.set_index("id")["verdict"]
    frame = frame[frame["found"] & (frame["confident"] == 1) & frame["label"].isin(["spiral", "elliptical"])]
    verdict = frame["id"].astype(str).map(said)
    is_spiral = (frame["label"] == "spiral") ^ (verdict == "label")
    decided = verdict != "undecidable"
    counts = {str(name): int(count) for name, count in verdicts["verdict"].value_counts().items()}
    return {"verdicts": counts, **confusion(is_spiral[decided], frame["p_spiral"][decided] > 0.5)}
