"""Train the class head by itself: on whole cutouts, and on what the first look finds in scenes.

Example: python -m training.classes --start runs/first --scenes SCENES --data ../shared/data --out runs/first_classes

Cutouts, as they are, in other stretches and with noise, teach spiral against elliptical (vote fractions as soft
labels), scenes teach galaxy against star, halo and arm, and the class of small galaxies. Boxes are those that the
trained first look gives, so that the head sees in training what it sees in use. A head that is trained on can be half
its own teacher (``--keep 0.5``): what it says of the eight orientations of a clean cutout is what it shall say of each
of them under noise (Hinton et al. 2015, section 2). Stop and resume as with `training.train`.
"""

import argparse
import functools
import itertools
import pathlib
import sys

import keras
import numpy as np
from keras import ops
from scipy.special import expit

from surveycat.contrast import as_shown
from surveycat.errors import OptionError
from surveycat.mrcnn.centring import centre_boxes
from surveycat.mrcnn.config import NetworkConfig
from surveycat.mrcnn.detector import Detector
from surveycat.mrcnn.losses import binary_cross_entropy, weighted_mean
from surveycat.mrcnn.model import MaskRCNN, fold_batch_norm
from surveycat.mrcnn.weights import load_arrays
from training.command import exit_code
from training.evaluation.cutouts import native_cutout, read_cutouts
from training.evaluation.response import add_noise
from training.evaluation.tiles import as_tile
from training.loader import degrade, flip_and_turn, jitter, prefetched, read_shard, turned
from training.release import judge
from training.scenes import jpeg
from training.stamps import read_labels
from training.stretch import FRAME_IRG, random_stretch
from training.train import Trainer, compile_trainer, fit, restore_checkpoint

LOSS_WEIGHTS = {"spiral": 1.0, "galaxy": 1.0}
LEAST_BOX_LOGIT = -2.5  # what the box head is surer of not being a galaxy needs no second opinion
BOXES = 4  # of a scene in one step
NOISY = 0.1  # of all images have strong noise beside those that had it when they were looked at


def sample(image, boxes, is_galaxy, p_spiral, class_weight):
    """One image with boxes to judge, as `training.loader.flip_and_turn` takes it.

    Parameters
    ----------
    image : ndarray of uint8, shape (T, T, 3)
        The tile.
    boxes : ndarray, shape (n, 4)
        Boxes, px.
    is_galaxy, p_spiral, class_weight : ndarray, shape (n,)
        What is in them; the weight is 0 where the class is not known.

    Returns
    -------
    dict
        The sample.
    """
    columns = {"is_galaxy": is_galaxy, "p_spiral": p_spiral, "class_weight": class_weight}
    return {
        "image": image,
        "ignore": np.zeros((1, 1), bool),
        "mask": np.zeros((len(boxes), 1, 1), bool),
        "box": np.asarray(boxes, np.float32),
        **{name: np.asarray(values, np.float32) for name, values in columns.items()},
    }


def restretched(image, rng):
    """A picture as another survey page or program would have shown it.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        In the survey's own stretch.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        In a stretch drawn at random, compressed and decompressed, and shown as a network is shown it.
    """
    return as_shown(jpeg(random_stretch(rng).render(FRAME_IRG.invert(image)), rng))


def noisy(image, rng):
    """A picture with noise as in the paper's figure 18, as much as drowns arms or hardly any.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        The picture.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        With noise of 6 to 80 counts in each channel, as often 6 to 12 as 40 to 80.
    """
    return add_noise(image, np.exp(rng.uniform(np.log(6.0), np.log(80.0))), rng)


def cutout_samples(detector, frame, change=None):
    """Cutouts with the box of their central galaxy; those without one are left out.

    Parameters
    ----------
    detector : Detector
        With a trained first look.
    frame : pandas.DataFrame
        With ``path``, ``pixel_scale_arcsec``, ``target``, ``class_weight``.
    change : callable, optional
        What is done to each picture before it is looked at; as they are by default.

    Returns
    -------
    samples : list of dict
        From `sample`, one box each.
    rows : list of int
        The row of the frame that each comes from.
    """
    samples, rows = [], []
    paths = list(zip(frame["path"], frame["pixel_scale_arcsec"], strict=True))
    for start in range(0, len(paths), detector.batch_size):
        images = [native_cutout(path, scale) for path, scale in paths[start : start + detector.batch_size]]
        if change is not None:
            images = [change(image) for image in images]
        tiles = np.stack([as_tile(image) for image in images])
        found = detector.find(tiles, LEAST_BOX_LOGIT)
        boxes = centre_boxes(tiles, found.tile, found.box)
        for i, image in enumerate(images):
            box = central_box(boxes[found.tile == i], image.shape[0])
            if box is None:
                continue
            row = frame.iloc[start + i]
            samples.append(sample(tiles[i], box[None], [1.0], [row["target"]], [row["class_weight"]]))
            rows.append(start + i)
    return samples, rows


def central_box(boxes, side):
    """The box that holds the centre of an image and is centred nearest to it; None if none does.

    Parameters
    ----------
    boxes : ndarray, shape (n, 4)
        Boxes, px.
    side : int
        Side of the image, px.

    Returns
    -------
    ndarray, shape (4,), or None
        The box.
    """
    middle = side / 2
    holds = np.all((boxes[:, :2] <= middle) & (boxes[:, 2:] >= middle), axis=1)
    if not holds.any():
        return None
    boxes = boxes[holds]
    return boxes[np.argmin(np.hypot(*(0.5 * (boxes[:, :2] + boxes[:, 2:]) - middle).T))]


def scene_samples(detector, scenes):
    """Scenes with the boxes that the first look gives, and what each of them is.

    Parameters
    ----------
    detector : Detector
        With a trained first look.
    scenes : iterable of dict
        From `training.loader.read_shard`.

    Returns
    -------
    list of dict
        From `sample`; scenes in which nothing counts are left out.
    """
    samples, batch = [], []
    for scene in scenes:
        batch.append(scene)
        if len(batch) == detector.batch_size:
            samples += _judged(detector, batch)
            batch = []
    return samples


def _judged(detector, scenes):
    """Samples of one batch of scenes."""
    tiles = np.stack([scene["image"] for scene in scenes])
    found = detector.find(tiles, LEAST_BOX_LOGIT)
    centred = centre_boxes(tiles, found.tile, found.box)
    samples = []
    for i, scene in enumerate(scenes):
        mine = found.tile == i
        hit, counts, best = judge(found.box[mine], scene)
        boxes, hit, best = centred[mine][counts], hit[counts], best[counts]
        if not len(boxes):
            continue
        # the class of a galaxy of a dozen px is a guess: it must not drown what larger ones teach
        known = np.clip(((boxes[:, 2:] - boxes[:, :2]).max(axis=1) - 6.0) / 20.0, 0.1, 1.0) * hit
        p_spiral, weight = np.zeros(len(boxes)), np.zeros(len(boxes))
        p_spiral[hit] = scene["p_spiral"][best[hit]]
        weight[hit] = scene["class_weight"][best[hit]] * known[hit]
        samples.append(sample(scene["image"], boxes, hit, p_spiral, weight))
    return samples


def make_batch(samples, rng):
    """Turned, degraded samples with jittered boxes, as `class_losses` takes them.

    Parameters
    ----------
    samples : list of dict
        From `sample`.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    dict of ndarray
        ``image`` (B, T, T, 3); ``box`` (B, `BOXES`, 4); ``valid``, ``is_galaxy``, ``p_spiral``, ``class_weight``
        (B, `BOXES`).
    """
    count = len(samples)
    batch = {
        "image": np.stack([np.zeros_like(one["image"]) for one in samples]),
        "box": np.tile(np.float32([100, 100, 130, 130]), (count, BOXES, 1)),
        **{name: np.zeros((count, BOXES), np.float32) for name in ("valid", "is_galaxy", "p_spiral", "class_weight")},
    }
    for i, one in enumerate(samples):
        one = flip_and_turn(one, rng)
        chosen = rng.permutation(len(one["box"]))[:BOXES]
        batch["image"][i] = degrade(one["image"], rng, NOISY)
        batch["box"][i, : len(chosen)] = jitter(one["box"][chosen], rng, move=0.02)
        batch["valid"][i, : len(chosen)] = 1
        for name in ("is_galaxy", "p_spiral", "class_weight"):
            batch[name][i, : len(chosen)] = one[name][chosen]
    return batch


def batches(cutouts, scenes, cutouts_a_step, scenes_a_step, seed):
    """Endless batches of both kinds, prepared by a thread beside the training.

    Parameters
    ----------
    cutouts, scenes : list of dict
        From `cutout_samples` and `scene_samples`.
    cutouts_a_step, scenes_a_step : int
        How many of each in a batch.
    seed : int
        Of all randomness.

    Yields
    ------
    dict of ndarray
        As `make_batch` builds them, the boxes of all samples in one row: ``box`` (R, 4), ``image_index`` (R,), ...

    Raises
    ------
    OptionError
        If there are too few for a step.
    """
    if min(len(cutouts) - cutouts_a_step + 1, len(scenes)) < 1:
        raise OptionError(f"{len(cutouts)} cutouts and {len(scenes)} scenes are too few for one step; give more")
    return prefetched(_batches(cutouts, scenes, cutouts_a_step, scenes_a_step, np.random.default_rng(seed)), 6)


def _batches(cutouts, scenes, cutouts_a_step, scenes_a_step, rng):
    """Endless batches of both kinds."""
    while True:
        order = rng.permutation(len(cutouts))
        for start in range(0, len(order) - cutouts_a_step + 1, cutouts_a_step):
            whole = make_batch([cutouts[i] for i in order[start : start + cutouts_a_step]], rng)
            some = make_batch([scenes[i] for i in rng.choice(len(scenes), scenes_a_step)], rng)
            yield _joined(whole, some)


def _joined(whole, some):
    """One row of boxes: the only one of each cutout, all of each scene."""
    index = [np.arange(len(whole["image"])), len(whole["image"]) + np.repeat(np.arange(len(some["image"])), BOXES)]
    batch = {
        "image": np.concatenate([whole["image"], some["image"]]),
        "image_index": np.concatenate(index).astype(np.int32),
        "box": np.concatenate([whole["box"][:, 0], some["box"].reshape(-1, 4)]),
    }
    for name in ("valid", "is_galaxy", "p_spiral", "class_weight"):
        batch[name] = np.concatenate([whole[name][:, 0], some[name].ravel()])
    return batch


def class_losses(network, batch):
    """Loss of the class head.

    Parameters
    ----------
    network : MaskRCNN
        The network.
    batch : dict of tensor
        From `batches`.

    Returns
    -------
    dict of str to tensor, shape ()
        ``spiral``, ``galaxy``.
    """
    galaxy, spiral = network.class_outputs(
        network.view(network.normalise(batch["image"])), batch["box"], batch["image_index"], training=True
    )
    return {
        "spiral": weighted_mean(binary_cross_entropy(batch["p_spiral"], spiral), batch["class_weight"]),
        "galaxy": weighted_mean(binary_cross_entropy(batch["is_galaxy"], galaxy), batch["valid"]),
    }


def spiral_logits(network, samples):
    """What a class head says of cutouts.

    Parameters
    ----------
    network : MaskRCNN
        The network.
    samples : list of dict
        From `cutout_samples`.

    Returns
    -------
    ndarray, shape (N,)
        Spiral logits.
    """
    logits = []
    for start in range(0, len(samples), 32):
        part = samples[start : start + 32]
        view = network.view(network.normalise(np.stack([one["image"] for one in part])))
        boxes = np.concatenate([one["box"] for one in part])
        logits.append(network.class_outputs(view, boxes, np.arange(len(part), dtype=np.int32))[1])
    return np.concatenate([ops.convert_to_numpy(one) for one in logits])


def keep_opinion(network, samples, share):
    """Move the targets of clean cutouts towards what a trained class head says of them.

    Parameters
    ----------
    network : MaskRCNN
        With a trained class head, and its calibration.
    samples : list of dict
        From `cutout_samples`: ``p_spiral`` is changed. Where the class is not known the opinion is all there is,
        and the sample weighs `share`.
    share : float
        Of the opinion in the target, 0 to 1.
    """
    orientations = itertools.product((False, True), range(4))
    logits = [spiral_logits(network, [turned(one, *way) for one in samples]) for way in orientations]
    calibration = network.config.calibration
    opinion = expit(calibration.class_scale * np.mean(logits, axis=0) + calibration.class_bias)
    for one, mine in zip(samples, opinion, strict=True):
        if one["class_weight"][0] > 0:
            one["p_spiral"] = (1 - share) * one["p_spiral"] + share * mine
        else:
            one.update(p_spiral=np.float32([mine]), class_weight=np.float32([share]))


def training_cutouts(detector, frame, seed, teacher=None, share=0.0):
    """Cutouts as they are, in another stretch, and twice with noise; those of which nothing is known are left out.

    Parameters
    ----------
    detector : Detector
        With a trained first look.
    frame : pandas.DataFrame
        As `cutout_samples` takes it.
    seed : int
        Of stretches and noise.
    teacher : MaskRCNN, optional
        Whose opinion on the clean cutout counts.
    share : float
        How much, 0 to 1.

    Returns
    -------
    list of dict
        From `sample`.
    """
    clean, rows = cutout_samples(detector, frame)
    if share:
        keep_opinion(teacher, clean, share)
    frame = frame.iloc[rows].reset_index(drop=True)
    target, weight = ([float(one[name][0]) for one in clean] for name in ("p_spiral", "class_weight"))
    frame = frame.assign(target=target, class_weight=weight)
    rng = np.random.default_rng(seed)
    changes = [functools.partial(change, rng=rng) for change in (restretched, noisy, noisy)]
    copies = [cutout_samples(detector, frame, change)[0] for change in changes]
    return [one for one in itertools.chain(clean, *copies) if one["class_weight"][0] > 0]


def accuracy(network, samples, frame):
    """How often the class head is right on cutouts.

    Parameters
    ----------
    network : MaskRCNN
        The network.
    samples : list of dict
        From `cutout_samples`.
    frame : pandas.DataFrame
        Their rows, with ``label``, ``confident``, ``p_features``, ``p_smooth``.

    Returns
    -------
    dict
        ``confident`` accuracy, that of ``spirals`` and ``ellipticals`` among them, and ``votes_0.8`` where the vote
        for the label is at least 0.8.
    """
    spiral = (frame["label"] == "spiral").to_numpy()
    right = (spiral_logits(network, samples) > 0) == spiral
    sure = (frame["confident"] == 1).to_numpy()
    vote = np.where(spiral, frame["p_features"], frame["p_smooth"])
    groups = {
        "confident": sure,
        "spirals": sure & spiral,
        "ellipticals": sure & ~spiral,
        "votes_0.8": sure & (vote >= 0.8),
    }
    return {name: round(float(right[group].mean()), 4) for name, group in groups.items()}


def read_run(folder):
    """The network of a run's last checkpoint, or of a preset.

    Parameters
    ----------
    folder : path
        Run folder, or a preset.

    Returns
    -------
    MaskRCNN
        The network, not folded.
    """
    folder = pathlib.Path(folder)
    network = MaskRCNN(NetworkConfig.from_json((folder / "config.json").read_text()))
    checkpoint = folder / "checkpoint.h5"
    load_arrays(network, checkpoint if checkpoint.exists() else folder / "model.weights.h5")
    return network


def train(
    start,
    scenes,
    data,
    out,
    steps,
    peak,
    warmup,
    head=None,
    keep=0.0,
    cutouts_a_step=24,
    scenes_a_step=16,
    scene_count=9216,
    seed=0,
):
    """Train the class head, from the last checkpoint of `out` if there is one.

    Parameters
    ----------
    start, scenes, data, out : path
        Run folder with the trained first look, folder with shards, shared data folder, run folder.
    steps, warmup : int
        Steps in all, steps of warm-up.
    peak : float
        Largest learning rate.
    head : path, optional
        Run folder or preset whose class head to begin from; a new one otherwise.
    keep : float
        Share of that head's own opinion in what cutouts teach, 0 to 1.
    cutouts_a_step, scenes_a_step, scene_count : int
        Cutouts and scenes of a step; scenes in all.
    seed : int
        Of weights, order and augmentation.

    Raises
    ------
    OptionError
        If an opinion is to be kept and there is no head that has one, or there are too few samples.
    """
    if keep and not head:
        raise OptionError(f"--keep {keep}: there is no opinion to keep without --head RUN")
    out, data = pathlib.Path(out), pathlib.Path(data)
    keras.utils.set_random_seed(seed)
    network = MaskRCNN(NetworkConfig())
    for name, part in read_run(start).parts.items():
        if name != "class_head":
            network.parts[name] = part
    teacher = read_run(head) if head else None
    if teacher:
        network.parts["class_head"] = teacher.parts["class_head"]
    config = network.config
    folded = MaskRCNN(config)
    folded.parts = {name: fold_batch_norm(part) for name, part in network.parts.items()}
    detector = Detector(folded)

    labels = read_labels(data)
    labels = labels[labels["split"] == "train"].reset_index(drop=True)
    cutouts = training_cutouts(detector, labels, seed, teacher, keep)
    shards = sorted(pathlib.Path(scenes).glob("scenes_train_*.npz"))
    shards = [shards[i] for i in np.random.default_rng(seed).permutation(len(shards))]
    composed = scene_samples(detector, _first(shards, scene_count))
    val = read_cutouts(data, "val").assign(target=0.5, class_weight=1.0)
    val_samples, rows = cutout_samples(detector, val)
    print(f"{len(cutouts)} cutouts, {len(composed)} scenes, {len(val_samples)} validation cutouts", flush=True)

    trainer = Trainer([network.parts["class_head"]], functools.partial(class_losses, network), LOSS_WEIGHTS)
    compile_trainer(trainer, peak, steps, warmup)
    first = restore_checkpoint(out, network, trainer.optimizer)
    source = batches(cutouts, composed, cutouts_a_step, scenes_a_step, seed + first)
    validate = functools.partial(accuracy, network, val_samples, val.iloc[rows].reset_index(drop=True))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(config.to_json())
    fit(trainer, network, source, out, first, steps, validate=validate)


def _first(shards, count):
    """The first `count` scenes of some shards, read one after another."""
    return itertools.islice((scene for path in shards for scene in read_shard(path)), count)


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True)
    parser.add_argument("--scenes", required=True)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--head")
    parser.add_argument("--keep", type=float, default=0.0, help="share of the head's own opinion in the targets")
    parser.add_argument("--cutouts-a-step", type=int, default=24)
    parser.add_argument("--scenes-a-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--scene-count", type=int, default=9216)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    return exit_code(lambda: train(**given))


if __name__ == "__main__":
    sys.exit(main())
