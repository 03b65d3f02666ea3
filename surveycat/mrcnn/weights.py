"""Weights on disk: a preset folder, its checksums, and the golden tile that proves a load.

A preset folder holds ``config.json`` (the architecture), ``model.weights.h5`` (one data set for each array,
``<part>/<layer>/<variable>``), ``golden.npz`` (one tile and what the network must answer), ``metrics.json``,
``CARD.md`` and ``SHA256SUMS``.
"""

import hashlib
import os
import pathlib
import re

import h5py
import numpy as np
from keras import ops

from surveycat.errors import WeightsError
from surveycat.mrcnn.model import MaskRCNN
from surveycat.mrcnn.paper import PaperMaskRCNN
from surveycat.mrcnn.presets import PRESETS, MrcnnConfig, installed_presets, read_config

CHECKED = ("config.json", "golden.npz", "model.weights.h5")


def make_network(config):
    """A network with random weights, of the kind that a configuration describes.

    Parameters
    ----------
    config : NetworkConfig or MrcnnConfig
        Architecture and limits.

    Returns
    -------
    MaskRCNN or PaperMaskRCNN
        The network.
    """
    return (PaperMaskRCNN if isinstance(config, MrcnnConfig) else MaskRCNN)(config)


def variables_by_name(network):
    """Every variable of a network under its name on disk.

    Parameters
    ----------
    network : MaskRCNN
        The network.

    Returns
    -------
    dict of str to keras.Variable
        ``<part>/<layer>/<variable>``.
    """
    # weights of a layer, not variables: the state of a dropout's random generator is no weight
    return {
        f"{part}/{layer.name}/{variable.name}": variable
        for part, model in network.parts.items()
        for layer in model.layers
        for variable in layer.weights
        if "seed" not in variable.name
    }


def save_arrays(network, path, dtype="float16"):
    """Write the arrays of a network; the file appears whole or not at all.

    Parameters
    ----------
    network : MaskRCNN
        The network, its normalisations not folded.
    path : path
        HDF5 file.
    dtype : str
        Of the kernels; statistics of normalisations stay float32.
    """
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    compression = "gzip" if dtype == "float16" else None  # full precision is noise, which takes long and gains little
    with h5py.File(beside, "w") as file:
        for name, variable in variables_by_name(network).items():
            kind = "float32" if "_bn/" in name else dtype
            file.create_dataset(name, data=ops.convert_to_numpy(variable.value).astype(kind), compression=compression)
    os.replace(beside, path)


def load_arrays(network, path):
    """Read arrays into a network, each one checked.

    Parameters
    ----------
    network : MaskRCNN
        The network, its normalisations not folded.
    path : path
        HDF5 file that `save_arrays` wrote.

    Raises
    ------
    WeightsError
        If the file is not HDF5, or an array is missing, unknown, not finite, or of another shape: the first such
        array is named, with both shapes.
    """
    fill(variables_by_name(network), _read_arrays(path), path)


def fill(wanted, found, path):
    """Put arrays in their places, or none of them.

    Parameters
    ----------
    wanted : dict of str to keras.Variable
        The places.
    found : dict of str to ndarray
        The arrays, under the same names.
    path : path
        Where they come from.

    Raises
    ------
    WeightsError
        If an array is missing, unknown, not finite, or of another shape: the first such array is named, with both
        shapes.
    """
    for name, variable in wanted.items():
        if name not in found:
            raise WeightsError(
                f"{path}: array {name} of shape {tuple(variable.shape)} is missing: the file is for another network"
            )
        if found[name].shape != tuple(variable.shape):
            raise WeightsError(
                f"{path}: array {name} has shape {found[name].shape}, the network needs {tuple(variable.shape)}"
            )
        if not np.isfinite(found[name]).all():
            raise WeightsError(f"{path}: array {name} holds NaN or infinity: train or download it again")
    unknown = [name for name in found if name not in wanted]
    if unknown:
        raise WeightsError(f"{path}: array {unknown[0]} of shape {found[unknown[0]].shape} has no place in the network")
    for name, variable in wanted.items():
        variable.assign(found[name].astype("float32"))


def _read_arrays(path):
    """All data sets of an HDF5 file, by their full names."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(keep)
    except OSError as error:
        raise WeightsError(f"{path}: not a readable HDF5 file: restore it ({error})") from error
    return found


def sha256_of(path):
    """SHA-256 of a file.

    Parameters
    ----------
    path : path
        File.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def preset_folder(name):
    """Folder of a preset: a name that comes with the package, or a folder of the user's.

    Parameters
    ----------
    name : str or path
        ``compact``, or the path of a folder.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    WeightsError
        If there is no such preset.
    """
    if pathlib.Path(name).is_dir():
        return pathlib.Path(name)
    installed = installed_presets()
    if str(name) in PRESETS:
        raise WeightsError(f"{name} comes without weights: bring an mrcnn file, --weights FILE.h5 --preset {name}")
    if str(name) not in installed:
        image = re.search(r"\.(fits?|fts|fz)\b", str(name), re.IGNORECASE)
        ways = "; an image of inverse variances is for --weight" if image else ""
        raise WeightsError(
            f"no weights called {str(name)!r}: give a folder, an .h5 file or one of {', '.join(installed)}{ways}"
        )
    return installed[str(name)]


def check_sums(folder):
    """Compare the files of a preset with its SHA256SUMS.

    Parameters
    ----------
    folder : pathlib.Path
        Preset folder.

    Returns
    -------
    str
        SHA-256 of ``model.weights.h5``.

    Raises
    ------
    WeightsError
        If a file is missing or differs.
    """
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
    except OSError as error:
        raise WeightsError(f"{folder / 'SHA256SUMS'} cannot be read: restore the preset folder") from error
    sums = {name.strip(): digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}
    for name in CHECKED:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing: restore the preset folder")
        actual = sha256_of(folder / name)
        if actual != sums.get(name):
            raise WeightsError(
                f"{folder / name} has SHA-256 {actual[:12]}..., not {str(sums.get(name))[:12]}... as in SHA256SUMS: "
                "restore the preset folder"
            )
    return sums["model.weights.h5"]


def write_sums(folder):
    """Write SHA256SUMS of a preset folder.

    Parameters
    ----------
    folder : pathlib.Path
        Preset folder.
    """
    (folder / "SHA256SUMS").write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in CHECKED))


def load_network(folder, fold=True):
    """The network of a preset folder.

    Parameters
    ----------
    folder : pathlib.Path
        Preset folder.
    fold : bool
        Fold batch normalisation (inference); False to train on.

    Returns
    -------
    MaskRCNN
        The network with its weights.

    Raises
    ------
    WeightsError
        If a file is missing, damaged, or does not fit.
    """
    network = make_network(read_config((folder / "config.json").read_text()))
    load_arrays(network, folder / "model.weights.h5")
    if fold:
        network.fold()
    return network
