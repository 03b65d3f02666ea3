"""The same weights give the same detections on every backend of Keras that is installed.

TensorFlow is always there; JAX and torch are tested where they are, each in a process of its own, since a process has
one backend for life.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from mrcnn_files import arrays_of, enliven, write_mrcnn

from surveycat.mrcnn.weights import make_network, preset_folder

SCRIPT = pathlib.Path(__file__).with_name("backend_answers.py")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(paper_config, tmp_path_factory):
    """A weights file of the thin paper's network with biases that spread its scores, and its configuration."""
    folder = tmp_path_factory.mktemp("backends")
    network = enliven(make_network(paper_config), 11)
    write_mrcnn(folder / "thin.h5", arrays_of(network))
    (folder / "config.json").write_text(paper_config.to_json())
    return folder


def answers(weights, backend):
    """What a backend says."""
    out = weights / f"{backend}.npz"
    if not out.exists():
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, SCRIPT, weights / "thin.h5", weights / "config.json", out]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        assert result.returncode == 0, result.stderr[-2000:]
    with np.load(out) as file:
        assert file["backend"] == backend
        return dict(file)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_says_the_same(weights, backend):
    """Scores within 1e-3, boxes and masks within what rounding does to them, in the same order."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: its detections were NOT compared")
    theirs = answers(weights, backend)
    expected = answers(weights, "tensorflow")
    with np.load(preset_folder("compact") / "golden.npz") as golden:
        expected |= {f"compact_{key}": golden[key] for key in ("box", "score", "p_spiral", "area")}
    for network, least in (("compact", 3), ("thin", 15)):
        assert len(expected[f"{network}_score"]) >= least and np.ptp(expected[f"{network}_score"]) > 0.01
        for key, limit in (("score", 1e-3), ("p_spiral", 1e-3), ("box", 0.1), ("area", 4)):
            name = f"{network}_{key}"
            assert theirs[name].shape == expected[name].shape, name
            np.testing.assert_allclose(theirs[name], expected[name], atol=limit, rtol=0, err_msg=name)
