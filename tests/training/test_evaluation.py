"""The evaluation measures what it says: answers known beforehand get the figures that they deserve."""

import json

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.table import QTable
from detectors import BlobDetector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training import evaluate as command
from training import scenes, stamps
from training.evaluation import centroids, composed, errors, fields, figures, response, subject
from training.evaluation.cutouts import look_at_cutouts, native_cutouts, read_cutouts
from training.evaluation.report import Page, write_report
from training.evaluation.tiles import look

TILE = composed.TILE


# Figures --------------------------------------------------------------------------------------------------


def test_confusion_matrix_by_hand():
    """3 spirals of which 2 are said so, 2 ellipticals of which 1 is: all figures follow."""
    found = figures.confusion([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert found["matrix"] == [[2, 1], [1, 1]]
    assert found["accuracy"]["value"] == 0.6
    assert found["spiral_precision"]["hits"] == 2 and found["spiral_precision"]["total"] == 3
    assert found["spiral_f1"] == pytest.approx(2 / 3, abs=1e-4) and found["elliptical_f1"] == 0.5


def test_calibration_error_of_known_answers():
    """Answers right as often as they say have none; answers of 0.9 that are right half of the time have 0.4."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 40_000)
    fair = figures.reliability(p, rng.random(len(p)) < p)
    assert figures.expected_calibration_error(fair) < 0.01
    boast = figures.reliability(np.full(1000, 0.9), np.arange(1000) % 2 == 0)
    assert figures.expected_calibration_error(boast) == pytest.approx(0.4, abs=0.03)


def test_outliers_are_cut_and_deviation_is_about_the_median():
    """One wild row does not count; MAD is not scaled."""
    values = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]] * 30 + [[500.0, 1.0]])
    kept = figures.without_outliers(values)
    assert len(kept) == 90
    assert figures.median_absolute_deviation(kept).tolist() == [1.0, 0.0]


def test_rates_by_count_each_once():
    """Bins are half-open, and what is NaN is in none."""
    rates = figures.rates_by([1, 2, 2.5, 3, np.nan], [True, False, True, True, True], (1, 2, 3))
    assert [(one["hits"], one["total"]) for one in rates.values()] == [(1, 1), (1, 2)]


# Composed scenes ------------------------------------------------------------------------------------------


def disc(y, x, radius):
    """A round mask in a tile."""
    yy, xx = np.mgrid[:TILE, :TILE]
    return np.hypot(yy - y, xx - x) < radius


def scene(*galaxies):
    """Truth of a scene with round galaxies (y, x, radius, spiral); the right half of it is ignored."""
    canvas = scenes.Canvas(np.zeros((1, 1, 3), np.float32), 0.02, 256.0, image=np.zeros((TILE, TILE, 3), np.uint8))
    for y, x, radius, spiral in galaxies:
        mask = disc(radius + 2, radius + 2, radius)[: 2 * radius + 5, : 2 * radius + 5]
        total = mask.astype(np.float32)
        canvas.items.append(scenes.Item(y - radius - 2, x - radius - 2, mask, total, float(spiral), 1.0, True, 0))
    canvas.ignore[:, 200:] = True
    return composed.truth(canvas)


def boxes_of(masks):
    """Boxes of masks."""
    edges = [(np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))) for mask in masks]
    return np.array([(y[0], x[0], y[-1] + 1, x[-1] + 1) for y, x in edges], float)


def test_truth_knows_overlap_and_cut():
    """Of three galaxies two overlap and one is cut; one of less than 10 px is not asked for, but ignored."""
    true = scene((60, 60, 20, 1), (60, 95, 20, 0), (180, 0, 15, 1), (120, 150, 4, 1))
    assert true["overlapping"].tolist() == [True, True, False]
    assert true["cut"].tolist() == [False, False, True]
    assert true["is_spiral"].tolist() == [True, False, True]
    assert true["gap"][:2] == pytest.approx([35 / 40, 35 / 40], abs=0.02)
    assert true["ignore"][120, 150] and not true["ignore"][60, 60]


def test_perfect_answer_has_full_marks_and_errors_cost():
    """mAP is 1 for the truth itself; a wrong class costs the two-class one only; a false one costs both."""
    true = scene((60, 60, 20, 1), (60, 130, 20, 0), (180, 60, 15, 1))
    sure = np.full(3, 0.9)

    def marks(p_spiral, masks=true["masks"], score=sure):
        coco = composed.Coco()
        coco.add(true, masks, boxes_of(masks), score, p_spiral)
        return [coco.average_precision(kind, by)["mAP50:95"] for kind in ("segm", "bbox") for by in (True, False)]

    right = np.array([0.9, 0.1, 0.9])
    assert marks(right) == [1.0, 1.0, 1.0, 1.0]
    wrong_class = marks(np.array([0.9, 0.9, 0.9]))
    assert wrong_class[0] < 0.6 and wrong_class[1] == 1.0
    false = np.concatenate([disc(200, 150, 12)[None], true["masks"]])
    assert marks(np.array([0.95, *right]), false, np.array([0.99, *sure]))[1] < 0.9


def test_what_lies_on_ignored_pixels_does_not_count():
    """A detection there is neither right nor wrong, one of a true galaxy counts wherever it is."""
    true = scene((60, 60, 20, 1), (60, 195, 20, 1))
    masks = np.stack([true["masks"][1], disc(150, 230, 10), disc(150, 100, 10)])
    iou = composed.mask_iou(masks, true["masks"])
    assert composed.counting(masks, iou, true["ignore"]).tolist() == [True, False, True]


def test_unlabelled_objects_are_ignored_out_to_their_isophote():
    """A listed core of a galaxy of the sky: all of its light is ignored, a star beside it is not."""
    yy, xx = np.mgrid[:TILE, :TILE]
    galaxy = 2.0 * np.exp(-np.hypot(yy - 100, xx - 100) / 5.0)
    star = 2.0 * np.exp(-np.hypot(yy - 100, xx - 150) / 2.0)
    canvas = scenes.Canvas(np.zeros((1, 1, 3), np.float32), 0.1, 256.0)
    core = galaxy[90:111, 90:111] > 0.5
    canvas.items.append(scenes.Item(90, 90, core, galaxy[90:111, 90:111], 0.5, 0.0, True, scenes.SKY_GALAXY))
    composed.set_aside(canvas, galaxy + star)
    isophote = galaxy > 1.25 * 0.1
    assert core.sum() < 0.4 * isophote.sum()
    assert (canvas.ignore & isophote).sum() > 0.9 * isophote.sum()
    assert not canvas.ignore[100, 150] and canvas.ignore.sum() < 1.3 * isophote.sum()
    canvas.image = np.zeros((TILE, TILE, 3), np.uint8)
    true = composed.truth(canvas)
    assert len(true["masks"]) == 0
    assert not composed.counting(isophote[None], np.zeros((1, 0)), true["ignore"]).any()


def test_what_nobody_sees_is_not_asked_for():
    """Lost in the noise, or with less than 10 px inside of the picture: ignored, neither missed nor found."""
    large, small = disc(20, 20, 12)[:41, :41], disc(20, 20, 6)[:41, :41]
    plain = scenes.Item(40, 140, large, 0.5 * large.astype(np.float32), 1.0, 1.0)
    faint = scenes.Item(40, 40, large, 0.15 * large.astype(np.float32), 1.0, 1.0)
    corner = scenes.Item(-19, -19, small, 0.5 * small.astype(np.float32), 1.0, 1.0)
    canvas = scenes.Canvas(np.zeros((1, 1, 3), np.float32), 0.02, 256.0, image=np.zeros((TILE, TILE, 3), np.uint8))
    canvas.items += [plain, faint, corner]
    true = composed.truth(canvas)
    assert len(true["masks"]) == 1 and true["masks"][0, 60, 160]
    assert true["ignore"][60, 60] and true["ignore"][1, 1]
    canvas.noise = 0.01
    assert len(composed.truth(canvas)["masks"]) == 2


def test_companions_leave_a_stamp_and_the_galaxy_stays():
    """A companion beside a galaxy is replaced by what lies opposite; outside of its circle nothing changes."""
    yy, xx = np.mgrid[:80, :90]
    alone = np.repeat(np.exp(-np.hypot(yy - 40, xx - 44) / 9.0)[..., None], 3, axis=2).astype(np.float32)
    both = alone + 0.4 * np.exp(-(((yy - 55) ** 2 + (xx - 60) ** 2) / 18.0))[..., None].astype(np.float32)

    class Stamps:
        table = {"id": np.array(["a", "b"]), "scale": np.array([0.5, 0.5])}

        @staticmethod
        def stamp(index):
            return both, np.ones(both.shape[:2], bool)

    companions = pd.DataFrame({"id": ["a"], "dy_arcsec": [7.5], "dx_arcsec": [8.0], "radius_arcsec": [5.0]})
    clean = composed.CleanStamps(Stamps(), companions)
    assert np.abs(clean.stamp(0)[0] - alone).max() < 0.02 < np.abs(both - alone).max()
    far = np.hypot(yy - 55, xx - 60) > 12
    assert np.array_equal(clean.stamp(0)[0][far], both[far])
    assert np.array_equal(clean.stamp(1)[0], both)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_pairs_use_each_once_and_the_best_first(rows, columns, seed):
    """No detection and no galaxy is in two pairs, none left over could still be paired."""
    iou = np.random.default_rng(seed).random((rows, columns))
    pairs = composed.pair_off(iou)
    assert len({row for row, _ in pairs}) == len(pairs) == len({column for _, column in pairs})
    values = [iou[pair] for pair in pairs]
    assert values == sorted(values, reverse=True)
    left = np.delete(np.delete(iou, [row for row, _ in pairs], 0), [column for _, column in pairs], 1)
    assert (left < 0.5).all()


def test_mask_iou_is_that_of_pixels():
    """Against the definition."""
    masks = np.stack([disc(50, 50, 20), disc(60, 55, 25), disc(200, 200, 5)])
    iou = composed.mask_iou(masks, masks[:2])
    for i, one in enumerate(masks):
        for j, two in enumerate(masks[:2]):
            assert iou[i, j] == pytest.approx((one & two).sum() / (one | two).sum())


# Cutouts --------------------------------------------------------------------------------------------------


def test_noise_response_of_a_detector_that_noise_blinds(shared_data):
    """Galaxies that are lost under noise, and classes that change, are counted against the plain pictures."""
    frame = read_cutouts(shared_data, "test").head(12)
    detector = BlobDetector(threshold=60, smooth=2.0)
    plain = look_at_cutouts(detector, frame)
    assert plain["found"].mean() > 0.5
    dark = look_at_cutouts(detector, frame, (image // 64 for image in native_cutouts(frame)))
    assert not dark["found"].any()
    assert response.unchanged(plain, plain)["value"] == 1.0
    assert response.unchanged(plain, dark)["total"] == 0
    turned = plain.assign(p_spiral=1 - plain["p_spiral"])
    assert response.unchanged(plain, turned)["hits"] == 0
    noisy = response.add_noise(np.full((64, 64, 3), 128, np.uint8), 25.5, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(25.5, rel=0.05)


def test_time_that_is_over_leaves_out_the_rest():
    """What could not be looked at is missing from the answer: totals say so."""
    seen = list(look(BlobDetector(), [np.zeros((30, 30, 3), np.uint8)] * 10, stop=lambda: True))
    assert len(seen) == BlobDetector.batch_size


def test_variants_change_what_they_say():
    """A band alone is grey, half the gain is darker, a coarser scale is smaller."""
    image = np.random.default_rng(0).integers(20, 120, (64, 64, 3), np.uint8)
    for group, changes in response.VARIANTS.items():
        for name, change in changes.items():
            out = change(image)
            assert out.dtype == np.uint8 and out.shape[2] == 3, (group, name)
    assert response.VARIANTS["stretch"]["asinh, half the gain"](image).mean() < image.mean()
    assert response.VARIANTS["pixel scale"]["1/2, level 1"](image).shape == (32, 32, 3)
    assert np.array_equal(response.VARIANTS["single band"]["r"](image)[..., 2], image[..., 1])


def test_centroid_is_photutils_on_the_same_pixels():
    """The windowed centroid of the whole line is that of photutils, to a fiftieth of a pixel."""
    yy, xx = np.mgrid[:120, :120]
    light = 150 * np.exp(-((yy - 61.3) ** 2 / 60 + (xx - 58.2) ** 2 / 110))
    image = np.repeat((12 + light)[..., None], 3, axis=2).astype(np.uint8)
    (found,) = look(BlobDetector(threshold=30), [image])
    row = centroids.central_row(image, found)
    assert (row["x"].value, row["y"].value) == (pytest.approx(58.2, abs=0.1), pytest.approx(61.3, abs=0.1))
    difference = centroids.against_photutils(image, row)
    assert abs(difference["windowed_dx"]) < 0.02 and abs(difference["windowed_dy"]) < 0.02


def test_worst_errors_come_first_and_verdicts_mend_labels():
    """Missed galaxies, then classes by how sure they were; a label judged wrong counts as right."""
    frame = pd.DataFrame(
        {
            "id": list("abcd"),
            "label": ["spiral", "spiral", "elliptical", "elliptical"],
            "confident": 1,
            "found": [True, False, True, True],
            "p_spiral": [0.4, np.nan, 0.95, 0.1],
        }
    )
    assert errors.worst(frame)["id"].tolist() == ["b", "c", "a"]
    # d disagreed with its label when it was looked at, and does no more
    verdicts = pd.DataFrame({"id": ["c", "a", "d"], "verdict": ["label", "undecidable", "model"]})
    after = errors.after_looking(frame, verdicts)
    assert after["accuracy"]["value"] == 1.0
    assert after["verdicts"] == {"label": 1, "undecidable": 1}


def test_causes_are_what_is_around_a_galaxy():
    """A thin small galaxy with a star at its side; a round large one with a galaxy in reach, and one out of reach."""
    yy, xx = np.mgrid[:120, :120]
    thin = np.where(((yy - 60) / 4) ** 2 + ((xx - 60) / 14) ** 2 < 1, stamps.CENTRAL, 0)
    thin[66:69, 60:63] = stamps.STAR
    assert errors.surroundings({"labels": thin, "side": 28}) == ["small", "edge-on", "star"]
    round_one = np.where(np.hypot(yy - 60, xx - 60) < 20, stamps.CENTRAL, 0)
    round_one[60:64, 110:114] = stamps.GALAXY
    assert errors.surroundings({"labels": round_one, "side": 40}) == []
    round_one[60:64, 84:88] = 8 + stamps.GALAXY
    assert errors.surroundings({"labels": round_one, "side": 40}) == ["neighbour"]


# Fields ---------------------------------------------------------------------------------------------------

EPOCH = "sdss_351.65+0.10_run4192"


def test_field_figures_of_known_catalogues(shared_data):
    """The list of galaxies itself is complete and has no star; a list of stars has all stars and no galaxy."""
    truth = fields.read_truth(shared_data / "fields" / EPOCH)
    galaxies, stars = truth["galaxies"], truth["stars"]
    perfect = fields.epoch_figures(galaxies["x"].to_numpy(), galaxies["y"].to_numpy(), truth)
    assert perfect["galaxies_brighter_than_20.5"]["value"] == 1.0
    assert perfect["stars_catalogued_brighter_than_20.0"]["hits"] == 0
    wrong = fields.epoch_figures(stars["x"].to_numpy(), stars["y"].to_numpy(), truth)
    assert wrong["galaxies_brighter_than_19.5"]["value"] < 0.1
    assert wrong["stars_catalogued_brighter_than_19.0"]["value"] > 0.9
    assert wrong["stars_catalogued_by_magnitude"]["18-19"]["value"] > 0.9
    none = fields.epoch_figures(np.empty(0), np.empty(0), truth)
    assert none["galaxies_brighter_than_20.5"]["hits"] == none["stars_catalogued_brighter_than_20.0"]["hits"] == 0


def test_rows_are_named_by_what_is_there(shared_data):
    """Rows on galaxies, stars, saturated stars and empty sky are told apart."""
    truth = fields.read_truth(shared_data / "fields" / EPOCH)
    galaxy = truth["galaxies"].iloc[0]
    saturated = truth["stars"][truth["stars"]["saturated"] == 1].iloc[0]
    faint = truth["stars"][(truth["stars"]["saturated"] == 0) & (truth["stars"]["psfmag_r"] > 18)].iloc[0]
    x, y = ([one[axis] for one in (galaxy, saturated, faint)] for axis in "xy")
    count = len(x)
    table = QTable({"id": np.arange(count), "score": np.ones(count), "class": ["spiral"] * count})
    for name, values in (("x", x), ("y", y)):
        table[name] = values * u.pix
        table[f"{name}_min"], table[f"{name}_max"] = ((np.array(values) + d) * u.pix for d in (-5, 5))
    kinds = fields.what_rows_are(table, truth)["what"].tolist()
    assert kinds == ["galaxy", "halo", "star"]
    assert fields.what_rows_are(table, truth)["magnitude"][0] == galaxy["petromag_r"]


def test_rows_on_an_object_count_for_the_nearest_one():
    """Two rows on one galaxy are two, a row between two counts once."""
    objects = pd.DataFrame({"x": [50.0, 70.0], "y": [50.0, 50.0], "r50_px": [20.0, 20.0]})
    assert fields.rows_on(objects, np.array([48.0, 55.0, 62.0]), np.array([50.0, 50.0, 50.0])).tolist() == [2, 1]
    assert fields.rows_on(objects, np.empty(0), np.empty(0)).tolist() == [0, 0]


def test_sep_baseline_is_the_known_one(shared_data):
    """What a user would do instead finds most galaxies, and a large part of the stars with them."""
    path = shared_data / "fields" / EPOCH
    truth = fields.read_truth(path)
    x, y, radius = fields.sep_objects(path / "field.jpg")
    cut = fields.best_cut(x, y, radius, truth)
    found = fields.epoch_figures(x[radius > cut], y[radius > cut], truth)
    assert found["galaxies_brighter_than_19.5"]["value"] >= 0.95
    assert 0.2 < found["stars_catalogued_brighter_than_19.0"]["value"] < 0.95


# The command ----------------------------------------------------------------------------------------------


def test_sections_can_be_run_one_by_one(shared_data, tmp_path, monkeypatch):
    """Figures of one section stay when another is run with the same weights; one page shows both, with plots."""
    detector = BlobDetector(threshold=60, smooth=1.0)
    detector.weights_id, detector.sha256 = "blobs", "one"
    monkeypatch.setattr(subject, "load_detector", lambda weights: detector)
    options = {"out": tmp_path, "report": tmp_path / "report", "limit": 12}
    command.evaluate("blobs", shared_data, only=["cutouts"], **options)
    metrics = command.evaluate("blobs", shared_data, only=["errors"], **options)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["cutouts"]["central_galaxy_detected"]["total"] == 12
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## cutouts" in page and "## errors" in page
    for name in ("cutouts_reliability.png", "errors_worst.png"):
        assert f"({name})" in page
        with Image.open(tmp_path / "report" / name) as picture:
            assert min(picture.size) > 100
    detector.sha256 = "two"
    metrics = command.evaluate("blobs", shared_data, only=["errors"], **options)
    assert "cutouts" not in metrics
    assert "## cutouts" not in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(ValueError, match="no section colours"):
        command.evaluate("blobs", shared_data, only=["colours"], **options)


def test_page_without_folder_takes_nothing(tmp_path):
    """Without a report nothing is drawn."""
    page = Page(None, "name")
    page.plot("plot", "caption", lambda axes: axes.fail())
    page.finish({}, {}, 0.0)
    assert (
        write_report(tmp_path, {}, {"weights": "w", "sha256": "s", "commit": "c"}).read_text().startswith("# surveycat")
    )
