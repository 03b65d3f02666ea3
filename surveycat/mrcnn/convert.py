"""Preset folders: make one from a file of the ``mrcnn`` package, list what is there, check it."""

import dataclasses
import logging
import os
import pathlib
import shutil

import numpy as np

from surveycat import __version__
from surveycat.errors import OptionError, OutputError, WeightsError
from surveycat.mrcnn.presets import PRESETS, installed_presets, read_config
from surveycat.quiet import start_backend

__all__ = ["check_preset", "convert", "list_presets"]

GOLDEN_ROWS = 8  # detections of a golden tile at most: enough to prove a load

log = logging.getLogger(__name__)


def convert(path, out, preset, partial=False, image=None):
    """Make a preset folder of a weights file of ``mrcnn``.

    The arrays are checked one by one, and what the network says of one tile is recorded, so that every later load,
    on whichever backend, can be compared with this one.

    Parameters
    ----------
    path : path
        The ``.h5`` file.
    out : path
        The folder, which appears whole or not at all.
    preset : str
        Name of the network's configuration in `surveycat.mrcnn.presets.PRESETS`.
    partial : bool
        Leave out the heads that depend on the number of classes where the file has another: to train on, not to run.
    image : path, optional
        A picture with galaxies in its middle, for the golden tile; the one of the compact network by default.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    WeightsError
        If the file does not fit, or the network finds nothing on the golden tile.
    OutputError
        If the folder exists.
    """
    start_backend()
    from surveycat.mrcnn.mrcnn_file import load_mrcnn
    from surveycat.mrcnn.weights import make_network, sha256_of

    _refuse_existing(out)
    network = make_network(preset_config(preset))
    untrained = load_mrcnn(network, path, partial)
    config = dataclasses.replace(network.config, name=pathlib.Path(out).name, untrained=untrained)
    card = _card(config, preset, pathlib.Path(path).name, sha256_of(path))
    return write_preset(network, config, out, card, image)


def _refuse_existing(out):
    """A folder that exists is never written over."""
    if pathlib.Path(out).exists():
        raise OutputError(f"{out} exists: give the folder another name, or remove it")


def write_preset(network, config, out, card, image=None):
    """Make a preset folder of a network.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network, its normalisations not folded.
    config : MrcnnConfig
        What the folder says of it.
    out : path
        The folder, which appears whole or not at all.
    card : str
        What a reader of it should know.
    image : path, optional
        As `convert` takes it.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    WeightsError
        If the network finds nothing on the golden tile.
    OutputError
        If the folder exists.
    """
    from surveycat.mrcnn.detector import Detector, check_golden, write_golden
    from surveycat.mrcnn.weights import load_network, save_arrays, write_sums

    _refuse_existing(out)
    out = pathlib.Path(out)
    tile = _tile(image, network.config.tile_size)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        (beside / "config.json").write_text(config.to_json())
        (beside / "CARD.md").write_text(card)
        save_arrays(network, beside / "model.weights.h5", dtype="float32")
        detector = Detector(load_network(beside), batch_size=1)
        write_golden(detector, beside / "golden.npz", tile, _golden_score(detector, tile))
        write_sums(beside)
        check_golden(detector, beside / "golden.npz")
        os.replace(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def preset_config(name):
    """Configuration of a network that an ``.h5`` file of ``mrcnn`` can be for.

    Parameters
    ----------
    name : str or None
        Its name.

    Returns
    -------
    MrcnnConfig
        The configuration.

    Raises
    ------
    OptionError
        If there is no such name.
    """
    if name not in PRESETS:
        said = "needs a preset" if name is None else f"has no preset {name!r}"
        raise OptionError(
            f"an .h5 file says not which network it is for and {said}: give one of {', '.join(PRESETS)}, or make a "
            "folder of it first (surveycat weights convert)"
        )
    return PRESETS[name]


def _tile(image, side):
    """The tile in the middle of a picture, or the golden tile of the compact network."""
    from surveycat.image import open_image
    from surveycat.mrcnn.weights import preset_folder

    if image is None:
        with np.load(preset_folder("compact") / "golden.npz") as golden:
            return golden["tile"]
    with open_image(image) as whole:
        if min(whole.shape) < side:
            raise OptionError(
                f"{image} has {whole.shape[0]} x {whole.shape[1]} px: the golden tile needs {side} x {side}"
            )
        y, x = ((length - side) // 2 for length in whole.shape)
        return whole.read((y, x, y + side, x + side), 0)


def _golden_score(detector, tile):
    """The least score of the rows of a golden tile: in the widest gap, so that no backend's rounding moves a row."""
    score = np.sort(detector(tile[None], 0.0).score)[::-1][: GOLDEN_ROWS + 1]  # of those that have a mask
    if not len(score):
        raise WeightsError("the network finds nothing on the golden tile: give a picture with galaxies (--image)")
    below = np.append(score[1:], 0.0)[:GOLDEN_ROWS]
    widest = np.argmax(score[:GOLDEN_ROWS] - below)
    return float((score[widest] + below[widest]) / 2)


def _card(config, preset, source, sha256):
    """What a reader of the folder should know."""
    lines = [
        f"# {config.name}",
        "",
        f"Weights of `{source}` (SHA-256 {sha256}), converted by surveycat {__version__} for the preset `{preset}`:",
        f"{config.backbone}, classes {', '.join(config.classes)} and background. The file was made elsewhere; nothing",
        "was trained, calibrated or measured here. `golden.npz` records what the network answered when converted.",
    ]
    if config.untrained:
        lines += ["", f"Not in the file, and still random: {', '.join(config.untrained)}. Train them before use."]
    return "\n".join(lines) + "\n"


def list_presets():
    """What ``--weights`` and ``--preset`` can name.

    Returns
    -------
    list of tuple of str
        Name, and one line about it.
    """
    rows = []
    for name, folder in installed_presets().items():
        size = (folder / "model.weights.h5").stat().st_size / 2**20
        rows.append((name, f"{_about(read_config((folder / 'config.json').read_text()))}; installed, {size:.1f} MiB"))
    way = "no weights here: bring an mrcnn file, run --weights FILE.h5 --preset"
    return rows + [(name, f"{_about(config)}; {way} {name}") for name, config in PRESETS.items()]


def _about(config):
    """A network in a few words."""
    classes = getattr(config, "classes", ("spiral", "elliptical"))
    return f"{config.backbone} Mask R-CNN, {' | '.join(classes)}, {config.tile_size} px"


def check_preset(name):
    """Prove a preset folder: checksums, every array, and the golden tile.

    Parameters
    ----------
    name : str or path
        Preset that is installed, or a folder.

    Returns
    -------
    str
        One line that says what was proven.

    Raises
    ------
    WeightsError
        If anything differs.
    """
    start_backend()
    from surveycat.mrcnn.detector import prove
    from surveycat.mrcnn.weights import preset_folder

    detector = prove(preset_folder(name), batch_size=1)
    untrained = getattr(detector.network.config, "untrained", ())
    left = f"; still to be trained: {', '.join(untrained)}" if untrained else ""
    return f"{name}: checksums, arrays and golden tile are right (SHA-256 {detector.sha256[:12]}...){left}"
