"""A small network in the layout of `mrcnn`, and weights files as that package writes them."""

import h5py
import numpy as np

from surveycat.mrcnn.backbone import RESNET_BLOCKS
from surveycat.mrcnn.weights import variables_by_name


def know_shallow():
    """Let configurations name a trunk with one block in each stage."""
    RESNET_BLOCKS["shallow"] = (1, 1, 1, 1)


def enliven(network, seed):
    """Give every array values of a size that keeps what flows through the network of the order of 1.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network, which is changed.
    seed : int
        Of the random numbers.

    Returns
    -------
    PaperMaskRCNN
        The network.
    """
    rng = np.random.default_rng(seed)
    for name, variable in variables_by_name(network).items():
        spread = {"kernel": np.prod(variable.shape[:-1]) ** -0.5, "gamma": 0.2, "moving_variance": 0.2}
        centre = 1.0 if name.endswith(("gamma", "moving_variance")) else 0.0
        values = rng.normal(centre, spread.get(name.split("/")[-1], 0.1), variable.shape)
        if name == "backbone/conv1/kernel":
            values /= 64  # pixels reach up to 255
        variable.assign(np.maximum(values, 0.1) if centre else values)
    return network


def arrays_of(network):
    """The arrays of a network under the package's names, layer by layer.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network.

    Returns
    -------
    dict of str to dict of str to ndarray
        Layer to variable to values.
    """
    layers = {}
    for name, variable in variables_by_name(network).items():
        _, layer, part = name.split("/")
        layers.setdefault(layer, {})[part] = np.asarray(variable.value)
    return layers


def write_mrcnn(path, layers, wrap=None, fixed=False, split=None):
    """Write such a file.

    Parameters
    ----------
    path : path
        File.
    layers : dict
        From `arrays_of`.
    wrap : str, optional
        Name of a group around everything, as `model.save` makes it.
    fixed : bool
        Store names as bytes of fixed length, as h5py 2 did.
    split : int, optional
        Names of layers in one attribute; the rest goes to further ones.
    """

    def stored(names):
        return np.array(names, "S") if fixed else list(names)

    with h5py.File(path, "w") as file:
        root = file.create_group(wrap) if wrap else file
        names = ["input_image", *(name for name in layers if not name.startswith("rpn_")), "rpn_model"]
        parts = [names] if split is None else [names[i : i + split] for i in range(0, len(names), split)]
        for number, part in enumerate(parts):
            root.attrs["layer_names" if split is None else f"layer_names{number}"] = stored(part)
        root.create_group("input_image").attrs["weight_names"] = np.zeros(0)  # float64, as the package has it
        for name in names[1:]:
            inside = (
                {k: v for k, v in layers.items() if k.startswith("rpn_")}
                if name == "rpn_model"
                else {name: layers[name]}
            )
            paths = {f"{layer}/{part}:0": values for layer, parts in inside.items() for part, values in parts.items()}
            group = root.create_group(name)
            group.attrs["weight_names"] = stored(list(paths))
            for key, values in paths.items():
                group[key] = values
        root.create_group("top_level_model_weights")
