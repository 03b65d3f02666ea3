"""Train what finds galaxies, boxes and masks, on composed scenes; stop and resume at any moment.

The class head comes after it and by itself: `training.classes`.

Example: python -m training.train --scenes SCENES --out runs/first --steps 20000

The run folder holds ``checkpoint.h5`` (weights), ``optimizer.npz`` (its state and the step), ``log.jsonl`` (losses). A
second call with the same folder goes on where the first stopped. `--start PRESET` begins from existing weights.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
import time

import keras
import numpy as np
from keras import ops

from surveycat.mrcnn.config import NetworkConfig
from surveycat.mrcnn.losses import training_losses
from surveycat.mrcnn.model import MaskRCNN
from surveycat.mrcnn.weights import load_arrays, save_arrays
from training.command import exit_code
from training.loader import batches

LOSS_WEIGHTS = {"rpn_score": 1.0, "rpn_box": 0.5, "score": 1.0, "box": 0.5, "mask": 1.0}


class LastValue(keras.metrics.Metric):
    """A metric that reports the value of the last step only."""

    def __init__(self, name):
        super().__init__(name=name)
        self.last = self.add_weight(name="last", initializer="zeros")

    def update_state(self, value):
        """Take one value.

        Parameters
        ----------
        value : tensor, shape ()
            The value.
        """
        self.last.assign(ops.cast(value, "float32"))

    def result(self):
        """Return the last value.

        Returns
        -------
        tensor, shape ()
            The value.
        """
        return self.last


class Trainer(keras.Model):
    """Parts of a network as a Keras model whose output is their losses: runs on every backend.

    Parameters
    ----------
    parts : list of keras.Model
        What is trained.
    losses : callable
        Batch (dict of arrays) to a dict of losses.
    loss_weights : dict of str to float
        Weight of each of them in the sum that is minimised.
    """

    def __init__(self, parts, losses, loss_weights):
        super().__init__(name="trainer")
        self.parts = parts  # tracked by Keras, so that they are trained
        self.losses_of = losses
        self.loss_weights_of = loss_weights
        self.terms = {name: LastValue(name) for name in loss_weights}

    def call(self, batch):
        return self.losses_of(batch)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return sum(weight * y_pred[name] for name, weight in self.loss_weights_of.items())

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        for name, term in self.terms.items():
            term.update_state(y_pred[name])
        return {name: term.result() for name, term in self.terms.items()}


def compile_trainer(trainer, peak, steps, warmup):
    """Give a trainer AdamW with warm-up and cosine decay.

    Parameters
    ----------
    trainer : Trainer
        Is compiled, and its optimizer built.
    peak : float
        Largest learning rate.
    steps, warmup : int
        Length of the run and of its warm-up.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        peak / 20, decay_steps=max(steps - warmup, 1), alpha=0.002, warmup_target=peak, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=5.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    trainer.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    optimizer.build(trainer.trainable_variables)


def save_checkpoint(folder, network, optimizer):
    """Write weights and optimizer state, each file whole or not at all.

    Parameters
    ----------
    folder : pathlib.Path
        Run folder.
    network : MaskRCNN
        The network.
    optimizer : keras.optimizers.Optimizer
        Its optimizer.
    """
    state = {f"v{i}": np.asarray(variable.value) for i, variable in enumerate(optimizer.variables)}
    beside = folder / ".optimizer.npz"
    np.savez(beside, **state)
    save_arrays(network, folder / "checkpoint.h5", dtype="float32")
    os.replace(beside, folder / "optimizer.npz")


def restore_checkpoint(folder, network, optimizer):
    """Read what `save_checkpoint` wrote.

    Parameters
    ----------
    folder : pathlib.Path
        Run folder.
    network : MaskRCNN
        The network.
    optimizer : keras.optimizers.Optimizer
        Its optimizer, built.

    Returns
    -------
    int
        The step to go on from; 0 where there is no checkpoint.
    """
    if not (folder / "optimizer.npz").exists():
        return 0
    load_arrays(network, folder / "checkpoint.h5")
    with np.load(folder / "optimizer.npz") as state:
        for i, variable in enumerate(optimizer.variables):
            variable.assign(state[f"v{i}"])
    return int(optimizer.iterations.value)


def fit(trainer, network, source, out, first, steps, save_every=500, validate=None, say_every=100, after=0):
    """Train to a number of steps, with a log and checkpoints.

    Parameters
    ----------
    trainer : Trainer
        Compiled.
    network : MaskRCNN
        What checkpoints hold, whole.
    source : iterator of dict
        Batches.
    out : pathlib.Path
        Run folder.
    first, steps : int
        The step to go on from, the last step.
    save_every : int
        Steps between checkpoints.
    validate : callable, optional
        Called after each checkpoint; returns figures (dict) for the log.
    say_every : int
        Steps between lines of the log.
    after : int
        Steps of other runs that follow: the time left counts them.
    """
    began, sums, count = time.monotonic(), {}, 0
    with open(out / "log.jsonl", "a") as log:

        def say(line):
            print(json.dumps(line), file=log, flush=True)
            print(" ".join(f"{name} {value}" for name, value in line.items()), flush=True)

        for step in range(first + 1, steps + 1):
            values = trainer.train_on_batch(next(source), return_dict=True)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += 1
            if step % say_every == 0:
                rate = (step - first) / (time.monotonic() - began)
                means = {name: round(value / count, 4) for name, value in sums.items()}
                left = round((steps + after - step) / rate / 60, 1)
                say({"step": step, **means, "steps_per_s": round(rate, 2), "minutes_left": left})
                sums, count = {}, 0
            if step % save_every == 0 or step == steps:
                save_checkpoint(out, network, trainer.optimizer)
                if validate is not None:
                    say({"step": step, **validate()})


def train(scenes, out, steps, batch_size, peak, warmup, start=None, heads_only=False, seed=0):
    """Train boxes and masks, from the last checkpoint of `out` if there is one.

    Parameters
    ----------
    scenes, out : path
        Folder with shards; run folder.
    steps, batch_size, warmup : int
        Steps in all; scenes a step; steps of warm-up.
    peak : float
        Largest learning rate.
    start : path, optional
        HDF5 file with the weights to begin from.
    heads_only : bool
        Leave the backbone as it is: for fine-tuning what is already good.
    seed : int
        Of weights, order and augmentation.
    """
    out = pathlib.Path(out)
    keras.utils.set_random_seed(seed)
    config = NetworkConfig()
    network = MaskRCNN(config)
    if start:
        load_arrays(network, start)
    left_alone = {"class_head", "backbone"} if heads_only else {"class_head"}
    parts = [part for name, part in network.parts.items() if name not in left_alone]
    trainer = Trainer(parts, functools.partial(training_losses, network, heads_only=heads_only), LOSS_WEIGHTS)
    compile_trainer(trainer, peak, steps, warmup)
    first = restore_checkpoint(out, network, trainer.optimizer)
    source = batches(scenes, "train", batch_size, seed + first)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(config.to_json())
    fit(trainer, network, source, out, first, steps)


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--start")
    parser.add_argument("--heads-only", action="store_true", help="leave the backbone as it is")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    return exit_code(lambda: train(**given))


if __name__ == "__main__":
    sys.exit(main())
