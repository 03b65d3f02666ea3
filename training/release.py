"""Turn a training run into a preset folder: calibrated, with checksums and a golden tile.

Example: python -m training.release --run runs/first --scenes SCENES --out weights/compact
"""

import argparse
import dataclasses
import pathlib

import numpy as np
from scipy.optimize import minimize

from surveycat.mrcnn.config import Calibration, NetworkConfig
from surveycat.mrcnn.detector import Detector, check_golden, write_golden
from surveycat.mrcnn.model import MaskRCNN, fold_batch_norm
from surveycat.mrcnn.weights import load_arrays, load_network, save_arrays, write_sums
from training.loader import read_shard


def fit_calibration(logit, target, weight=None):
    """Scale and bias that turn logits into probabilities (Platt 1999), by maximum likelihood.

    Parameters
    ----------
    logit, target : ndarray, shape (N,)
        Raw logits; wanted probabilities, 0 to 1.
    weight : ndarray, shape (N,), optional
        Weights.

    Returns
    -------
    scale, bias : float
        Probability = sigmoid(scale * logit + bias).
    """
    weight = np.ones_like(logit) if weight is None else weight

    def loss(parameters):
        z = parameters[0] * logit + parameters[1]
        return np.average(np.logaddexp(0.0, z) - target * z, weights=weight)

    return tuple(float(value) for value in minimize(loss, (1.0, 0.0), method="Nelder-Mead").x)


def box_iou(first, second):
    """IoU of every pair of boxes, shape (N, M), from shapes (N, 4) and (M, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area = [np.prod(np.maximum(one[:, 2:] - one[:, :2], 0.0), axis=-1) for one in (first, second)]
    return inter / np.maximum(area[0][:, None] + area[1][None] - inter, 1e-6)


def judged(detector, scenes):
    """Every first-look detection in scenes with known truth, and what it is.

    Parameters
    ----------
    detector : Detector
        Uncalibrated, so that its probabilities give back the logits.
    scenes : list of dict
        From `training.loader.read_shard`.

    Returns
    -------
    dict of ndarray
        ``logit``, ``is_galaxy`` of the detections that count; ``spiral_logit``, ``p_spiral`` and ``class_weight``
        of the galaxies among them.
    """
    rows = {name: [] for name in ("logit", "is_galaxy", "spiral_logit", "p_spiral", "class_weight")}
    for start in range(0, len(scenes), 8):
        part = scenes[start : start + 8]
        found = detector(np.stack([scene["image"] for scene in part]), 0.0)
        for i, scene in enumerate(part):
            mine = found.select(found.tile == i)
            _judge(mine, scene, rows)
    return {name: np.concatenate(values) for name, values in rows.items()}


def _judge(found, scene, rows):
    if not len(found):
        return
    centre = np.clip(0.5 * (found.box[:, :2] + found.box[:, 2:]), 0, 255).astype(int)
    ignored = scene["ignore"][centre[:, 0], centre[:, 1]]
    iou = box_iou(found.box, scene["box"]) if len(scene["box"]) else np.zeros((len(found), 1))
    best, which = iou.max(axis=1), iou.argmax(axis=1)
    hit = best >= 0.5
    counts = hit | ((best < 0.3) & ~ignored)
    logit = np.log(found.score) - np.log1p(-found.score)
    rows["logit"].append(logit[counts])
    rows["is_galaxy"].append(hit[counts].astype(float))
    spiral = np.log(found.p_spiral) - np.log1p(-found.p_spiral)
    rows["spiral_logit"].append(spiral[hit])
    rows["p_spiral"].append(scene["p_spiral"][which[hit]] if hit.any() else np.zeros(0))
    rows["class_weight"].append(scene["class_weight"][which[hit]] if hit.any() else np.zeros(0))


def calibrate(network, scenes):
    """Fit the calibration of a network on validation scenes.

    Parameters
    ----------
    network : MaskRCNN
        Folded.
    scenes : list of dict
        From `training.loader.read_shard`.

    Returns
    -------
    Calibration
        The fit.
    """
    rows = judged(Detector(network), scenes)
    score = fit_calibration(rows["logit"], rows["is_galaxy"])
    known = rows["class_weight"] > 0
    spiral = fit_calibration(rows["spiral_logit"][known], rows["p_spiral"][known], rows["class_weight"][known])
    return Calibration(*score, *spiral)


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


def release(run, scenes, out, count=512):
    """Calibrate the last checkpoint of a run and write it as a preset.

    Parameters
    ----------
    run, scenes, out : path
        Run folder of `training.train`, folder with validation shards, preset folder.
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
    val = [scene for path in shards for scene in read_shard(path)][:count]
    config = dataclasses.replace(config, calibration=calibrate(folded, val))
    print(config.calibration)
    crowded = max(val[:64], key=lambda scene: (scene["kind"] == 0) * min(len(scene["box"]), 8))
    write_preset(network, config, out, crowded["image"])


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--scenes", required=True)
    parser.add_argument("--out", required=True)
    release(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
