"""Averaged runs: the class head lies between two, all else stays."""

import numpy as np
import pytest

from surveycat.mrcnn.config import NetworkConfig
from surveycat.mrcnn.model import MaskRCNN
from surveycat.mrcnn.weights import save_arrays
from training.average import average
from training.classes import read_run


def run(folder, **changes):
    """A run folder with a small random network."""
    config = NetworkConfig(widths=(4, 4, 8, 8), pyramid_channels=8, box_units=8, mask_channels=8, **changes)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    save_arrays(MaskRCNN(config), folder / "checkpoint.h5", dtype="float32")
    return folder


def values(folder, part):
    """Arrays of a part of a run's network."""
    return [np.asarray(variable.value) for variable in read_run(folder).parts[part].weights]


def test_only_the_class_head_is_averaged(tmp_path):
    """The first look stays the second's, to the bit: its boxes are what the head was trained on."""
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    average(first, second, 0.75, tmp_path / "out")
    heads = zip(*(values(one, "class_head") for one in (first, second, tmp_path / "out")), strict=True)
    for one, two, mean in heads:
        np.testing.assert_allclose(mean, 0.25 * one + 0.75 * two, atol=1e-6)
    for two, kept in zip(values(second, "backbone"), values(tmp_path / "out", "backbone"), strict=True):
        np.testing.assert_array_equal(kept, two)


def test_heads_of_two_kinds_are_refused(tmp_path):
    """Arrays of different shapes are not broadcast into one another."""
    first, second = run(tmp_path / "a"), run(tmp_path / "b", class_widths=(8, 8, 8, 8))
    with pytest.raises(ValueError, match="differ in their arrays"):
        average(first, second, 0.5, tmp_path / "out")
