"""Train the paper's networks in its four stages: heads, then the trunk from stage 5, from stage 3, and all of it.

Example:
  python -m training.paper --preset mask-galaxy-2class-resnet50 --start mask_rcnn_coco.h5 --data dataset/train.json \
      --val dataset/val.json --out runs/paper

Annotations are COCO JSON, such as ``training.dataset build`` writes; pictures lie in the folder of the same name beside
them (``dataset/train``), or in ``--images``. ``--scenes`` takes a folder of scenes instead, which ``training.dataset
shards`` or `training.scenes` wrote. Weights to start from are a file of the ``mrcnn`` package, of which the heads are
left out where the number of classes differs, as in COCO's.

Each stage has a folder in the run's, with what `training.train` leaves in its own; the same command goes on where the
run stopped, within a stage too, and gives the same weights as if it had not. The last stage leaves a preset folder,
``OUT/preset``, for ``surveycat run --weights``.

The stages are those of the paper, its Table 2: heads / 5+ / 3+ / all, each with its own epochs and learning rate. The
table's numbers were not at hand: `SCHEDULE` takes the rate of its Table 1 for the heads and, for what follows, the
epochs and rates by which the ``mrcnn`` package is known to train on COCO (40 epochs of heads, 80 of upper stages at the
same rate, here shared by 5+ and 3+, 40 of all at a tenth of it); these were not checked against its source. Give others
by ``--stages``.
"""

import argparse
import functools
import pathlib
import sys
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from surveycat import __version__
from surveycat.catalog import atomic_write
from surveycat.errors import OptionError
from surveycat.mrcnn.convert import preset_config, write_preset
from surveycat.mrcnn.mrcnn_file import load_mrcnn
from surveycat.mrcnn.paper_losses import TERMS, paper_losses
from surveycat.mrcnn.weights import make_network, sha256_of, variables_by_name
from training.command import exit_code
from training.dataset import read_coco, write_shards
from training.loader import MAX_OBJECTS, TILE, flip_and_turn, read_shard
from training.train import Trainer, fit, restore_checkpoint

HEADS = ("mrcnn_", "rpn_", "fpn_")
SHARDS_AT_ONCE, STEPS_OF_SHARDS = 6, 50  # shards from which the scenes of so many steps come
VALIDATION_STEPS = 20


@dataclass(frozen=True)
class Stage:
    """A stage of training: what is trained (``heads``, ``5+``, ``4+``, ``3+``, ``all``), for how long, how fast."""

    layers: str
    epochs: int
    rate: float

    def trains(self, layer):
        """Whether a layer of this name is trained."""
        if self.layers == "all":
            return True
        first = 6 if self.layers == "heads" else int(self.layers[0])
        return layer.startswith(HEADS + tuple(f"{kind}{n}" for kind in ("res", "bn") for n in range(first, 6)))


SCHEDULE = (Stage("heads", 40, 1e-3), Stage("5+", 40, 1e-3), Stage("3+", 40, 1e-3), Stage("all", 40, 1e-4))


def parse_stages(text):
    """Stages as the command line has them.

    Parameters
    ----------
    text : str
        Such as ``heads:20:1e-3,all:40:1e-4``: layers, epochs, learning rate.

    Returns
    -------
    tuple of Stage
        The stages.

    Raises
    ------
    OptionError
        If one is not of this form.
    """
    stages = []
    for one in text.split(","):
        try:
            layers, epochs, rate = one.split(":")
            stage = Stage(layers, int(epochs), float(rate))
        except ValueError:
            stage = None
        if stage is None or stage.layers not in ("heads", "5+", "4+", "3+", "all") or stage.epochs < 1:
            raise OptionError(f"stage {one!r}: give LAYERS:EPOCHS:RATE with heads, 5+, 4+, 3+ or all, as heads:20:1e-3")
        stages.append(stage)
    return tuple(stages)


def freeze(network, stage):
    """Let a stage's layers be trained, and no others.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network.
    stage : Stage
        The stage.
    """
    for part in network.parts.values():
        for layer in part.layers:
            layer.trainable = stage.trains(layer.name)


def losses_with_decay(network, trained, batch):
    """The five losses, and what large weights cost: each array's mean square, but not of normalisations.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network.
    trained : list of keras.Variable
        The arrays that count.
    batch : dict of tensor
        As `paper_losses` takes it.

    Returns
    -------
    dict of str to tensor, shape ()
        The losses, and ``decay``.
    """
    decay = sum(ops.mean(ops.square(ops.convert_to_tensor(variable))) for variable in trained)
    return {**paper_losses(network, batch), "decay": network.config.training.weight_decay * decay}


def make_trainer(network, stage):
    """A trainer of one stage: stochastic gradient descent with momentum, each array's gradient bounded.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network, whose other layers are frozen.
    stage : Stage
        The stage.

    Returns
    -------
    Trainer
        Compiled.
    """
    freeze(network, stage)
    settings = network.config.training
    decayed = [
        variable
        for name, variable in variables_by_name(network).items()
        if stage.trains(name.split("/")[1]) and name.endswith(("kernel", "bias"))
    ]
    losses = functools.partial(losses_with_decay, network, decayed)
    trainer = Trainer(list(network.parts.values()), losses, dict.fromkeys((*TERMS, "decay"), 1.0))
    optimizer = keras.optimizers.SGD(stage.rate, momentum=settings.momentum, clipnorm=settings.gradient_norm)
    trainer.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    optimizer.build(trainer.trainable_variables)
    return trainer


def make_batch(scenes, network, rng):
    """Turned and mirrored scenes, and the random numbers of a step.

    Parameters
    ----------
    scenes : list of dict
        As `training.loader.read_shard` gives them.
    network : PaperMaskRCNN
        For its sizes and classes.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    dict of ndarray
        As `paper_losses` takes it.
    """
    count, config = len(scenes), network.config
    batch = {
        "image": np.zeros((count, TILE, TILE, 3), np.uint8),
        "ignore": np.zeros((count, TILE, TILE), np.uint8),
        "box": np.zeros((count, MAX_OBJECTS, 4), np.float32),
        "valid": np.zeros((count, MAX_OBJECTS), np.float32),
        "class": np.zeros((count, MAX_OBJECTS), np.int32),
        "mask": np.zeros((count, MAX_OBJECTS, 56, 56), np.uint8),
        "anchor_draw": rng.random((count, len(network.anchors)), dtype=np.float32),
        "region_draw": rng.random((count, config.training.proposals), dtype=np.float32),
    }
    for i, scene in enumerate(scenes):
        scene = flip_and_turn(scene, rng)
        n = min(len(scene["box"]), MAX_OBJECTS)
        batch["image"][i], batch["ignore"][i], batch["valid"][i, :n] = scene["image"], scene["ignore"], 1
        batch["box"][i, :n], batch["mask"][i, :n] = scene["box"][:n], scene["mask"][:n]
        batch["class"][i, :n] = class_numbers(scene, config.classes)[:n]
    return batch


def class_numbers(scene, classes):
    """Numbers of the classes of a scene's objects, from 1; 0 where nobody knows."""
    if len(classes) == 1:
        return np.ones(len(scene["box"]), np.int32)
    spiral, elliptical = (1 + classes.index(name) for name in ("spiral", "elliptical"))
    return np.where(scene["class_weight"] > 0, np.where(scene["p_spiral"] > 0.5, spiral, elliptical), 0)


def batches(folder, split, network, size, seed, first):
    """Endless batches, each of which depends on the number of its step alone: a run can go on anywhere.

    Parameters
    ----------
    folder : path
        With shards.
    split : {'train', 'val'}
        Which of them.
    network : PaperMaskRCNN
        For its sizes and classes.
    size, seed : int
        Scenes a step; seed of all randomness.
    first : int
        The step before the first one, counted over all stages.

    Yields
    ------
    dict of ndarray
        Batches.

    Raises
    ------
    OptionError
        If there are no shards.
    """
    paths = sorted(pathlib.Path(folder).glob(f"scenes_{split}_*.npz"))
    if not paths:
        raise OptionError(f"{folder} has no scenes_{split}_*.npz: give --data or --scenes with scenes of that split")
    block, scenes, step = None, [], first
    while True:
        if step // STEPS_OF_SHARDS != block:
            block = step // STEPS_OF_SHARDS
            order = np.random.default_rng([seed, 0, block]).permutation(len(paths))
            scenes = [scene for number in order[:SHARDS_AT_ONCE] for scene in read_shard(paths[number])]
        rng = np.random.default_rng([seed, 1, step])
        yield make_batch([scenes[i] for i in rng.integers(len(scenes), size=size)], network, rng)
        step += 1


def validation(trainer, source, steps=VALIDATION_STEPS):
    """What validates a run: mean losses over the same batches each time.

    Parameters
    ----------
    trainer : Trainer
        The trainer.
    source : iterator of dict
        Validation batches.
    steps : int
        How many are looked at.

    Returns
    -------
    callable
        Returns a dict of ``val_<loss>``.
    """
    looked_at = [next(source) for _ in range(steps)]

    def validate():
        sums = dict.fromkeys(TERMS, 0.0)
        for batch in looked_at:
            for name, value in trainer.test_on_batch(batch, return_dict=True).items():
                if name in sums:
                    sums[name] += float(value)
        return {f"val_{name}": round(value / steps, 4) for name, value in sums.items()}

    return validate


def train(network, scenes, out, stages=SCHEDULE, epoch_steps=None, size=None, seed=0, save_every=500, validate=True):
    """Train a network stage by stage, from the last checkpoint of `out` if there is one.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network with the weights to begin from.
    scenes, out : path
        Folder with shards; run folder.
    stages : sequence of Stage
        The stages.
    epoch_steps, size : int, optional
        Steps an epoch, scenes a step; those of the network's configuration by default.
    seed : int
        Of order and augmentation.
    save_every : int
        Steps between checkpoints, and validations.
    validate : bool
        Whether there are validation scenes.
    """
    settings = network.config.training
    epoch_steps, size = epoch_steps or settings.steps_per_epoch, size or settings.images_per_step
    lengths = [stage.epochs * epoch_steps for stage in stages]
    for number, (stage, steps) in enumerate(zip(stages, lengths, strict=True)):
        folder = pathlib.Path(out) / f"{number + 1}-{stage.layers}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(network.config.to_json())
        trainer = make_trainer(network, stage)
        first = restore_checkpoint(folder, network, trainer.optimizer)
        if first == steps:
            continue
        before = sum(lengths[:number])
        print(f"stage {stage.layers}: steps {first + 1} to {steps} at rate {stage.rate:g}", flush=True)
        judge = None
        if validate:
            judge = validation(trainer, batches(scenes, "val", network, size, seed, 0))
        source = batches(scenes, "train", network, size, seed, before + first)
        left = sum(lengths[number + 1 :])
        say_every = min(100, save_every)
        fit(trainer, network, source, folder, first, steps, save_every, judge, say_every, left)


def shards_of(data, images, out, split):
    """Make shards of COCO annotations in a folder, unless they are there: whole, and of these annotations."""
    annotated, done = read_coco(data), pathlib.Path(out) / f"annotations_{split}.sha256"
    digest = sha256_of(data)
    if done.exists() and done.read_text() != digest:
        raise OptionError(f"{out} has scenes of other annotations than {data}; choose another --out")
    if not done.exists():  # it is written last: an interrupted run may have left some of the shards
        write_shards(annotated, images or pathlib.Path(data).with_suffix(""), out, split)
        atomic_write(done, lambda partial: pathlib.Path(partial).write_text(digest))


def run(given):
    """Do what the command line says.

    Parameters
    ----------
    given : argparse.Namespace
        The options.

    Raises
    ------
    SurveycatError
        If an option, a file or the weights are not what they should be.
    """
    config = preset_config(given.preset)
    out = pathlib.Path(given.out)
    if bool(given.data) == bool(given.scenes):
        raise OptionError("give either --data with COCO annotations or --scenes with a folder of scenes")
    scenes = pathlib.Path(given.scenes or out / "scenes")
    for split, data, images in (("train", given.data, given.images), ("val", given.val, given.val_images)):
        if data:
            shards_of(data, images, scenes, split)
    keras.utils.set_random_seed(given.seed)
    network = make_network(config)
    if given.start:
        load_mrcnn(network, given.start, partial=True)
    stages = parse_stages(given.stages) if given.stages else SCHEDULE
    validate = bool(list(scenes.glob("scenes_val_*.npz")))
    train(network, scenes, out, stages, given.epoch_steps, given.batch_size, given.seed, given.save_every, validate)
    if not (out / "preset").exists():
        write_preset(network, config, out / "preset", card(config, given, stages))


def card(config, given, stages):
    """What a reader of the preset folder should know."""
    steps, size = given.epoch_steps or config.training.steps_per_epoch, given.batch_size
    lines = [
        f"# {config.name}, trained by surveycat {__version__}",
        "",
        f"From {given.start or 'random weights'}, on {given.data or given.scenes}, {steps} steps an epoch of "
        f"{size or config.training.images_per_step} scenes, seed {given.seed}:",
        "",
        *(f"- {stage.layers}: {stage.epochs} epochs at {stage.rate:g}" for stage in stages),
        "",
        "Scores are as the network gives them, not calibrated. `golden.npz` records what it answered after training.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="mask-galaxy-2class-resnet50", help="network, as surveycat weights lists it"
    )
    parser.add_argument("--start", help="weights file of the mrcnn package to begin from, such as COCO's")
    parser.add_argument("--data", help="COCO annotations to train on")
    parser.add_argument("--images", help="folder of their pictures")
    parser.add_argument("--val", help="COCO annotations to validate on")
    parser.add_argument("--val-images", help="folder of their pictures")
    parser.add_argument("--scenes", help="folder of scenes, instead of annotations")
    parser.add_argument("--out", required=True, help="run folder")
    parser.add_argument("--stages", help="LAYERS:EPOCHS:RATE, separated by commas")
    parser.add_argument("--epoch-steps", type=int, help="steps an epoch, if not the preset's")
    parser.add_argument("--batch-size", type=int, help="scenes a step, if not the preset's")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints and validations")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    return exit_code(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
