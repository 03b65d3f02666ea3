"""Average the class heads of two runs of which one began from the other: better on both kinds of pictures than either.

Example: python -m training.average --first runs/cutouts --second runs/scenes --share 0.75 --out runs/averaged

Fine-tuned weights and those from which they began lie in one basin, so that a point between them is a network too, and
often one that keeps what each is good at (Wortsman et al. 2022, section 3, equation 1).
"""

import argparse
import pathlib
import sys

from surveycat.mrcnn.weights import save_arrays
from training.classes import read_run
from training.command import exit_code


def average(first, second, share, out):
    """Write a run whose class head lies between those of two runs; all else is the second's.

    Parameters
    ----------
    first, second, out : path
        Run folders; the last is made.
    share : float
        Of the second, 0 to 1.

    Raises
    ------
    ValueError
        If the two heads have not the same arrays.
    """
    heads = [read_run(run).parts["class_head"] for run in (first, second)]
    shapes = [[tuple(variable.shape) for variable in head.weights] for head in heads]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the class heads of {first} and {second} differ in their arrays: average runs of one kind")
    network = read_run(second)
    for variable, one, two in zip(network.parts["class_head"].weights, *(h.weights for h in heads), strict=True):
        variable.assign((1 - share) * one.value + share * two.value)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text((pathlib.Path(second) / "config.json").read_text())
    save_arrays(network, out / "checkpoint.h5", dtype="float32")


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", required=True)
    parser.add_argument("--second", required=True)
    parser.add_argument("--share", type=float, required=True, help="of the second, 0 to 1")
    parser.add_argument("--out", required=True)
    given = vars(parser.parse_args(arguments))
    return exit_code(lambda: average(**given))


if __name__ == "__main__":
    sys.exit(main())
