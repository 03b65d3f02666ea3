"""Turn a training run into a preset folder: calibrated, with checksums and a golden tile.

Example: python -m training.release --run runs/first --scenes SCENES --out weights/compact
"""

import argparse
import dataclasses
import pathlib
import sys

import numpy as np
from scipy.optimize import minimize

from surveycat.mrcnn.config import Calibration, NetworkConfig
from surveycat.mrcnn.detector import Detector, check_golden, write_golden
from surveycat.mrcnn.model import MaskRCNN, fold_batch_norm
from surveycat.mrcnn.weights import load_arrays, load_network, save_arrays, write_sums
from training.command import exit_code
from training.evaluation.cutouts import look_at_cutouts, read_cutouts
from training.loader import read_shard
from training.scenes import DEEP

# Galaxies brighter than r = 20.5 in a tile of 256 px at 0.396"/px: 2,800 a square degree (Yasuda et al. 2001).
SKY_GALAXIES = 2.2
# Where the box head is less sure than this its logit changes with the grid by as much as from object to object (1.1 rms
# on a field of the training sky; the class head's by 0.2): beyond, only the class head can make a galaxy sure.
BOX_MOST = 1.0


def fit_logistic(logits, target, importance=None):
    """Weights and bias that turn logits into a probability, by maximum likelihood (Platt 1999).

    Parameters
    ----------
    logits : ndarray, shape (N, K)
        One or more raw logits.
    target : ndarray, shape (N,)
        Wanted probabilities, 0 to 1.
    importance : ndarray, shape (N,), optional
        How much each row counts.

    Returns
    -------
    list of float
        K weights and the bias: probability = sigmoid(logits @ weights + bias).
    """
    columns = np.column_stack([logits, np.ones(len(logits))])

    def loss(parameters):
        z = columns @ parameters
        return np.average(np.logaddexp(0.0, z) - target * z, weights=importance)

    return [float(value) for value in minimize(loss, np.zeros(columns.shape[1]), method="BFGS").x]


def box_iou(first, second):
    """IoU of every pair of boxes, shape (N, M), from shapes (N, 4) and (M, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area = [np.prod(np.maximum(one[:, 2:] - one[:, :2], 0.0), axis=-1) for one in (first, second)]
    return inter / np.maximum(area[0][:, None] + area[1][None] - inter, 1e-6)


def judge_scenes(detector, scenes):
    """Every first-look detection in scenes with known truth: its two logits, and whether it is a galaxy.

    Parameters
    ----------
    detector : Detector
        The detector.
    scenes : list of dict
        From `training.loader.read_shard`.

    Returns
    -------
    logits : ndarray, shape (N, 2)
        Box head's and class head's, of the detections that count.
    is_galaxy : ndarray of bool, shape (N,)
        What they are.
    """
    logits, is_galaxy = [], []
    for start in range(0, len(scenes), detector.batch_size):
        part = scenes[start : start + detector.batch_size]
        raw = detector.look(np.stack([scene["image"] for scene in part]))
        for i, scene in enumerate(part):
            mine = raw.tile == i
            hit, counts, _ = judge(raw.box[mine], scene)
            logits.append(np.column_stack([raw.box_logit[mine], raw.galaxy_logit[mine]])[counts])
            is_galaxy.append(hit[counts])
    return np.concatenate(logits), np.concatenate(is_galaxy)


def judge(boxes, scene):
    """Which boxes are galaxies of a scene, and which count at all.

    Parameters
    ----------
    boxes : ndarray, shape (N, 4)
        Detections, px.
    scene : dict
        From `training.loader.read_shard`.

    Returns
    -------
    hit, counts : ndarray of bool, shape (N,)
        IoU of 0.5 with a true box; that, or no true box near and not on something to ignore.
    index : ndarray of int, shape (N,)
        The true box with the largest IoU.
    """
    centre = np.clip(0.5 * (boxes[:, :2] + boxes[:, 2:]), 0, 255).astype(int)
    ignored = scene["ignore"][centre[:, 0], centre[:, 1]]
    overlaps = box_iou(boxes, scene["box"])
    best = overlaps.max(axis=1, initial=0.0)
    index = overlaps.argmax(axis=1) if len(scene["box"]) else np.zeros(len(boxes), int)
    return best >= 0.5, (best >= 0.5) | ((best < 0.3) & ~ignored), index


def judge_cutouts(detector, data):
    """Spiral logit and label of the central galaxies of the validation cutouts.

    Parameters
    ----------
    detector : Detector
        The detector.
    data : pathlib.Path
        Shared data folder.

    Returns
    -------
    logits, is_spiral : ndarray, shape (N, 1), (N,)
        Of the galaxies that were found and are labelled.
    """
    frame = read_cutouts(data, "val")
    frame = look_at_cutouts(detector, frame[frame["label"].isin(["spiral", "elliptical"])].reset_index(drop=True))
    frame = frame[frame["found"]]
    p_spiral = frame["p_spiral"].to_numpy()
    logits = np.log(p_spiral) - np.log1p(-p_spiral)
    return logits[:, None], (frame["label"] == "spiral").to_numpy(float)


def calibrate(network, scenes, data):
    """Fit the calibration of a network on validation data: scores on scenes, classes on cutouts.

    Parameters
    ----------
    network : MaskRCNN
        Folded, with the neutral `Calibration`.
    scenes : list of dict
        From `training.loader.read_shard`.
    data : pathlib.Path
        Shared data folder.

    Returns
    -------
    Calibration
        The fit.
    """
    detector = Detector(network)
    logits, is_galaxy = judge_scenes(detector, scenes)
    logits[:, 0] = np.minimum(logits[:, 0], BOX_MOST)
    box, galaxy, bias = fit_logistic(logits, is_galaxy)
    # scenes hold more galaxies than the sky among the same stars: odds go with the density (Saerens et al. 2002)
    bias += np.log(SKY_GALAXIES / np.mean([len(scene["box"]) for scene in scenes]))
    # where the box head says no, the class head says yes so loudly in one of 50 cases
    most = float(np.quantile(logits[logits[:, 0] < 0, 1], 0.98))
    spiral, is_spiral = judge_cutouts(detector, data)
    # as if both classes were as frequent: the mix of the cutouts is not that of anybody's sky
    importance = np.where(is_spiral == 1, 0.5 / is_spiral.mean(), 0.5 / (1 - is_spiral.mean()))
    return Calibration(box, galaxy, float(bias), BOX_MOST, most, *fit_logistic(spiral, is_spiral, importance))


def write_preset(network, config, folder, tile):
    """Write a preset folder and load it again as a user would.

    Parameters
    ----------
    network : MaskRCNN
        Not folded.
    config : NetworkConfig
        With its calibration.
    folder : path
        The preset folder; existing files are replaced.
    tile : ndarray of uint8, shape (T, T, 3)
        The golden tile: a training or validation scene.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    save_arrays(network, folder / "model.weights.h5")
    detector = Detector(load_network(folder))  # through the file: float16 is what users run
    write_golden(detector, folder / "golden.npz", tile)
    write_sums(folder)
    check_golden(detector, folder / "golden.npz")


def release(run, scenes, data, out, count=768):
    """Calibrate the last checkpoint of a run and write it as a preset.

    Parameters
    ----------
    run, scenes, data, out : path
        Run folder of `training.train`, folder with validation shards, shared data folder, preset folder.
    count : int
        Validation scenes to calibrate on.
    """
    run = pathlib.Path(run)
    config = NetworkConfig.from_json((run / "config.json").read_text())
    config = dataclasses.replace(config, name=pathlib.Path(out).name, calibration=Calibration())
    network = MaskRCNN(config)
    load_arrays(network, run / "checkpoint.h5")
    folded = MaskRCNN(config)
    folded.parts = {name: fold_batch_norm(part) for name, part in network.parts.items()}
    shards = sorted(pathlib.Path(scenes).glob("scenes_val_*.npz"))
    # the deep pictures have another density of galaxies, and stars, than the sky that scores are calibrated for
    val = [scene for path in shards for scene in read_shard(path) if scene["kind"] != DEEP][:count]
    config = dataclasses.replace(config, calibration=calibrate(folded, val, pathlib.Path(data)))
    print(config.calibration)
    crowded = max(val[:64], key=lambda scene: (scene["kind"] == 0) * min(len(scene["box"]), 8))
    write_preset(network, config, out, crowded["image"])


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--scenes", required=True)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", required=True)
    given = vars(parser.parse_args(arguments))
    return exit_code(lambda: release(**given))


if __name__ == "__main__":
    sys.exit(main())
