"""Started by test_backends.py, one process for each backend: what both kinds of network say of one tile.

Arguments: a weights file of the thin network, its configuration, and where to write the answers (.npz).
"""

import pathlib
import sys

import keras
import numpy as np
from mrcnn_files import know_shallow

from surveycat.mrcnn.detector import golden_answer, load_detector
from surveycat.mrcnn.presets import PRESETS, read_config
from surveycat.mrcnn.weights import preset_folder


def main(weights, config, out):
    """Write the answers of the compact and of the thin network, and the name of the backend."""
    know_shallow()
    PRESETS["thin"] = read_config(pathlib.Path(config).read_text())
    with np.load(preset_folder("compact") / "golden.npz") as golden:
        tile, min_score = golden["tile"], float(golden["min_score"])
    compact = golden_answer(load_detector("compact", 1)(tile[None], min_score))
    thin = golden_answer(load_detector(weights, 1, "thin")(tile[None], 0.0))
    answers = {
        f"{name}_{key}": value for name, one in (("compact", compact), ("thin", thin)) for key, value in one.items()
    }
    np.savez(out, backend=keras.backend.backend(), **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
