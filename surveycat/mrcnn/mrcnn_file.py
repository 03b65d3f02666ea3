"""Weights files of the ``mrcnn`` package, read array by array, without that package.

Such a file has a group for each Keras layer; the attributes ``layer_names`` and ``weight_names`` say what belongs to
the network. `load_mrcnn` puts every array in its place or refuses the file. One thing no reader can see: a *square*
array that was transposed (256 x 256 channels, say) has the right shape. Only a golden tile notices it, which
``surveycat weights convert`` makes from a file that is known to be good.
"""

import logging

import h5py

from surveycat.errors import WeightsError
from surveycat.mrcnn.weights import fill, variables_by_name

CLASS_LAYERS = ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask")  # their shapes depend on the number of classes

log = logging.getLogger(__name__)


def read_mrcnn(path):
    """All arrays of a weights file of ``mrcnn``.

    Parameters
    ----------
    path : path
        File that ``save_weights`` or ``save`` of the package (or of Keras 2) wrote.

    Returns
    -------
    dict of str to ndarray
        Under ``<layer>/<variable>``, such as ``conv1/kernel``, in the file's order.

    Raises
    ------
    WeightsError
        If the file is not of that kind, or lacks an array that it lists.
    """
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            return dict(_arrays(root, path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist: check the name and the folder") from error
    except OSError as error:
        raise WeightsError(f"{path}: not a readable HDF5 file: restore it ({error})") from error


def _arrays(root, path):
    """Yield name and values of each array, in the file's order."""
    layers = _listed(root, "layer_names")
    if not layers:
        raise WeightsError(f"{path}: no layer_names: not a weights file of the mrcnn package or of Keras 2")
    for layer in layers:
        if layer not in root:
            raise WeightsError(f"{path}: layer {layer} is listed but missing: the file is damaged, restore it")
        for name in _listed(root[layer], "weight_names"):
            if name not in root[layer]:
                raise WeightsError(
                    f"{path}: array {layer}/{name} is listed but missing: the file is damaged, restore it"
                )
            owner, variable = f"{layer}/{name}".removesuffix(":0").split("/")[-2:]
            yield f"{owner}/{variable}", root[layer][name][()]


def _listed(group, name):
    """The names in an attribute, which Keras splits into numbered ones when it is long, as str or bytes."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{name}{len(parts)}"])
    return [item.decode() if isinstance(item, bytes) else str(item) for part in parts for item in part]


def load_mrcnn(network, path, partial=False):
    """Read a weights file of ``mrcnn`` into a network, each array checked.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network, its normalisations not folded.
    path : path
        The file.
    partial : bool
        Leave out the layers that depend on the number of classes where the file has another number: to train on.

    Returns
    -------
    tuple of str
        The layers that were left out, each of which is logged.

    Raises
    ------
    WeightsError
        If an array is missing, has no place, is not finite, or has another shape: the first such array is named,
        with both shapes.
    """
    wanted = {name.split("/", 1)[1]: variable for name, variable in variables_by_name(network).items()}
    found = read_mrcnn(path)
    theirs, ours = _class_count(found), _class_count(wanted)
    left_out = ()
    if theirs is not None and theirs != ours:
        if not partial:
            name = f"{CLASS_LAYERS[0]}/kernel"
            raise WeightsError(
                f"{path}: array {name} has shape {found[name].shape}, the network needs {tuple(wanted[name].shape)}: "
                f"its heads are for {theirs} classes with background, not {ours}; take a preset that fits, or convert "
                "it with --partial, to train on"
            )
        left_out = CLASS_LAYERS
        log.warning("%s: heads of %d classes, not %d: left out %s", path, theirs, ours, ", ".join(left_out))
    fill(_without(wanted, left_out), _without(found, left_out), path)
    return left_out


def _class_count(arrays):
    """Number of classes, background included, on which all class layers agree; None if they do not."""
    shapes = [tuple(arrays[f"{layer}/bias"].shape) for layer in CLASS_LAYERS if f"{layer}/bias" in arrays]
    count = shapes[0][0] if len(shapes) == len(CLASS_LAYERS) and len(shapes[0]) == 1 else None
    return count if count and shapes == [(count,), (4 * count,), (count,)] else None


def _without(arrays, layers):
    """The arrays that belong to other layers."""
    return {name: array for name, array in arrays.items() if name.split("/")[0] not in layers}
