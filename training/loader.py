"""Scenes on disk to batches: shards in random groups, flips, rotations, noise, grey copies, jittered boxes."""

import pathlib
import queue
import threading

import numpy as np

from surveycat.contrast import as_shown
from surveycat.errors import OptionError

MAX_OBJECTS = 24
TILE = 256


def read_shard(path):
    """Scenes of one shard as a list of records.

    Parameters
    ----------
    path : pathlib.Path
        A file that `training.scenes` wrote.

    Returns
    -------
    list of dict
        ``image`` (T, T, 3) uint8, as a network is shown it, ``ignore`` (T, T) bool, ``box`` (n, 4), ``mask``
        (n, 56, 56) uint8, ``p_spiral``, ``class_weight``, ``area`` (n,), ``kind``, ``level``.
    """
    with np.load(path) as shard:
        ends = np.cumsum(shard["count"])
        parts = {
            name: np.split(shard[key], ends[:-1])
            for name, key in {
                "box": "box",
                "mask": "mask56",
                "p_spiral": "p_spiral",
                "class_weight": "class_weight",
                "area": "area",
            }.items()
        }
        ignore = np.unpackbits(shard["ignore"], axis=-1).astype(bool)
        images, kind, level = shard["image"], shard["kind"], shard["level"]
    return [
        {
            "image": as_shown(images[i]),
            "ignore": ignore[i],
            "kind": int(kind[i]),
            "level": int(level[i]),
            **{name: values[i] for name, values in parts.items()},
        }
        for i in range(len(images))
    ]


def flip_and_turn(scene, rng):
    """One of the eight orientations of a scene, at random (the paper's augmentation, section 3.4).

    Parameters
    ----------
    scene : dict
        As `read_shard` gives it.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    dict
        The turned scene.
    """
    return turned(scene, rng.random() < 0.5, rng.integers(4))


def turned(scene, flip, quarters):
    """A scene, mirrored or not, and turned.

    Parameters
    ----------
    scene : dict
        As `read_shard` gives it.
    flip : bool
        Whether left and right change places first.
    quarters : int
        Quarter turns counter-clockwise.

    Returns
    -------
    dict
        The turned scene.
    """
    image, ignore, mask, box = scene["image"], scene["ignore"], scene["mask"], scene["box"]
    if flip:
        image, ignore, mask = image[:, ::-1], ignore[:, ::-1], mask[:, :, ::-1]
        box = np.stack([box[:, 0], TILE - box[:, 3], box[:, 2], TILE - box[:, 1]], axis=1)
    for _ in range(quarters):
        image, ignore, mask = np.rot90(image), np.rot90(ignore), np.rot90(mask, axes=(1, 2))
        # counter-clockwise: row = T - old column, column = old row
        box = np.stack([TILE - box[:, 3], box[:, 0], TILE - box[:, 1], box[:, 2]], axis=1)
    return {**scene, "image": image, "ignore": ignore, "mask": mask, "box": box}


def shift(scene, rng, most=8):
    """A scene moved by a few px, where no object meets the border by it: what is found must not depend on the grid.

    Parameters
    ----------
    scene : dict
        As `read_shard` gives it.
    rng : numpy.random.Generator
        Source of randomness.
    most : int
        Largest shift along each axis, px.

    Returns
    -------
    dict
        The moved scene; what moves in is sky of the median colour, and ignored.
    """
    box = scene["box"]
    low = np.floor(box[:, :2]).min(axis=0, initial=TILE)
    high = TILE - np.ceil(box[:, 2:]).max(axis=0, initial=0)
    # an object that is cut by the border stays cut by it
    least, largest = np.maximum(-low, -most), np.minimum(high, most)
    still = (low <= 0) | (high <= 0)
    dy, dx = np.where(still, 0, rng.integers(np.minimum(least, 0), np.maximum(largest, 0) + 1)).astype(int)
    image, ignore = np.empty_like(scene["image"]), np.ones_like(scene["ignore"])
    image[:] = np.median(scene["image"].reshape(-1, 3), axis=0)
    to = np.s_[max(dy, 0) : TILE + min(dy, 0), max(dx, 0) : TILE + min(dx, 0)]
    of = np.s_[max(-dy, 0) : TILE + min(-dy, 0), max(-dx, 0) : TILE + min(-dx, 0)]
    image[to], ignore[to] = scene["image"][of], scene["ignore"][of]
    return {**scene, "image": image, "ignore": ignore, "box": box + np.float32([dy, dx, dy, dx])}


def degrade(image, rng, strong=0.08):
    """Additive noise in half of the scenes, grey copies of some.

    Parameters
    ----------
    image : ndarray of uint8, shape (T, T, 3)
        Pixels.
    rng : numpy.random.Generator
        Source of randomness.
    strong : float
        Share of scenes with the noise of the paper's figure 18 instead of that of other exposures, below 0.5.

    Returns
    -------
    ndarray of uint8, shape (T, T, 3)
        Degraded pixels.
    """
    pixels = image.astype(np.float32)
    if rng.random() < 0.12:
        weights = rng.dirichlet((1.0, 1.0, 1.0)) if rng.random() < 0.5 else np.eye(3)[rng.integers(3)]
        pixels = np.repeat(pixels @ weights.astype(np.float32)[:, None], 3, axis=2)
    draw = rng.random()
    if draw < 0.5:
        sigma = rng.uniform(5.0, 80.0) if draw < strong else rng.uniform(0.0, 5.0)
        pixels = pixels + sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def jitter(boxes, rng, move=0.05, scale=0.08):
    """Boxes as an imperfect detector would give them.

    Parameters
    ----------
    boxes : ndarray, shape (n, 4)
        True boxes, px.
    rng : numpy.random.Generator
        Source of randomness.
    move, scale : float
        By how much of their size boxes are moved and scaled (rms).

    Returns
    -------
    ndarray of float32, shape (n, 4)
        The boxes.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size * (0.5 + move * rng.standard_normal(size.shape))
    half = 0.5 * size * np.exp(scale * rng.standard_normal(size.shape))
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def make_batch(scenes, rng, rois=5):
    """Augmented scenes as the arrays that `surveycat.mrcnn.losses.training_losses` takes.

    Parameters
    ----------
    scenes : list of dict
        As `read_shard` gives them.
    rng : numpy.random.Generator
        Source of randomness.
    rois : int
        Objects a scene whose mask is learnt in this step.

    Returns
    -------
    dict of ndarray
        The batch.
    """
    count = len(scenes)
    batch = {
        "image": np.zeros((count, TILE, TILE, 3), np.uint8),
        "ignore": np.zeros((count, TILE, TILE), np.uint8),
        "box": np.zeros((count, MAX_OBJECTS, 4), np.float32),
        "valid": np.zeros((count, MAX_OBJECTS), np.float32),
        "mask": np.zeros((count, MAX_OBJECTS, 56, 56), np.uint8),
        "roi": np.tile(np.float32([100, 100, 130, 130]), (count, rois, 1)),
        "roi_index": np.zeros((count, rois), np.int32),
        "roi_valid": np.zeros((count, rois), np.float32),
    }
    for i, scene in enumerate(scenes):
        scene = flip_and_turn(shift(scene, rng), rng)
        n = min(len(scene["box"]), MAX_OBJECTS)
        batch["image"][i] = degrade(scene["image"], rng)
        batch["ignore"][i] = scene["ignore"]
        for name in ("box", "mask"):
            batch[name][i, :n] = scene[name][:n]
        batch["valid"][i, :n] = 1
        order = rng.permutation(n)[:rois]
        batch["roi"][i, : len(order)] = jitter(scene["box"][order], rng)
        batch["roi_index"][i, : len(order)] = order
        batch["roi_valid"][i, : len(order)] = 1
    return batch


def prefetched(source, size, patience=600.0):
    """Items that a thread prepares beside the training.

    Parameters
    ----------
    source : iterator
        Endless; what it raises is raised where the items are taken.
    size : int
        Items that wait at most.
    patience : float
        Seconds that one item may take.

    Yields
    ------
    object
        The items of `source`, in order.
    """
    ready = queue.Queue(maxsize=size)

    def produce():
        try:
            for item in source:
                ready.put((item, None))
        except Exception as error:  # of any kind: it is raised again by whoever waits for the next item
            ready.put((None, error))

    threading.Thread(target=produce, daemon=True).start()
    while True:
        item, error = ready.get(timeout=patience)
        if error is not None:
            raise error
        yield item


def batches(folder, split, batch_size, seed, group=6):
    """Endless batches, prepared by a thread beside the training.

    Parameters
    ----------
    folder : path
        Where the shards are; shards that appear later are found in the next pass.
    split : str
        ``train`` or ``val``.
    batch_size, seed : int
        Scenes a batch; seed of all randomness.
    group : int
        Shards held in memory and mixed at a time.

    Yields
    ------
    dict of ndarray
        Batches as `make_batch` builds them.

    Raises
    ------
    OptionError
        If there are no shards, or too few scenes for a batch.
    """
    return prefetched(_batches(pathlib.Path(folder), split, batch_size, np.random.default_rng(seed), group), 8)


def _batches(folder, split, batch_size, rng, group):
    """Endless batches of the shards that there are."""
    while True:
        shards, made = sorted(folder.glob(f"scenes_{split}_*.npz")), 0
        rng.shuffle(shards)
        for start in range(0, len(shards), group):
            scenes = [scene for path in shards[start : start + group] for scene in read_shard(path)]
            order = rng.permutation(len(scenes))
            for first in range(0, len(order) - batch_size + 1, batch_size):
                yield make_batch([scenes[i] for i in order[first : first + batch_size]], rng)
                made += 1
        if not made:
            raise OptionError(f"{folder} has no {batch_size} scenes in files scenes_{split}_*.npz; compose some first")
