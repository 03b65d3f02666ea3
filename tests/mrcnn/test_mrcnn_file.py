"""Files of the `mrcnn` package are read whole or refused in one line that names the array; never silently otherwise."""

import dataclasses
import logging

import h5py
import numpy as np
import pytest
from mrcnn_files import arrays_of, enliven, write_mrcnn

from surveycat.errors import WeightsError
from surveycat.mrcnn.mrcnn_file import load_mrcnn
from surveycat.mrcnn.weights import make_network, variables_by_name


@pytest.fixture(scope="module")
def network(paper_config):
    """A thin network with random weights, which nobody changes."""
    return enliven(make_network(paper_config), 8)


@pytest.fixture(scope="module")
def empty(paper_config):
    """Another of the same kind, to load into."""
    return make_network(paper_config)


@pytest.fixture
def layers(network):
    """Its arrays, to be damaged."""
    return arrays_of(network)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"wrap": "model_weights"},
        {"fixed": True},
        {"split": 30},
        {"wrap": "model_weights", "fixed": True, "split": 7},
    ],
    ids=["plain", "model.save", "old strings", "split list", "all at once"],
)
def test_every_array_comes_to_its_place(network, empty, layers, tmp_path, form):
    """Each form in which Keras 1 to 2.15 wrote such files."""
    path = tmp_path / "weights.h5"
    write_mrcnn(path, layers, **form)
    for variable in variables_by_name(empty).values():
        variable.assign(np.zeros(variable.shape))
    assert load_mrcnn(empty, path) == ()
    mine, theirs = variables_by_name(network), variables_by_name(empty)
    for name in mine:
        np.testing.assert_array_equal(np.asarray(mine[name].value), np.asarray(theirs[name].value), err_msg=name)


def transposed(arrays):
    arrays["kernel"] = arrays["kernel"].T


def other_shape(arrays):
    arrays["kernel"] = arrays["kernel"][..., :-1]


def missing(arrays):
    del arrays["kernel"]


def not_finite(arrays):
    arrays["kernel"][..., 0] = np.nan


@pytest.mark.parametrize("damage", [transposed, other_shape, missing, not_finite])
@pytest.mark.parametrize(
    "layer", ["conv1", "res3a_branch2b", "fpn_c4p4", "rpn_class_raw", "mrcnn_class_logits", "mrcnn_mask"]
)
def test_a_damaged_array_is_named(empty, layers, tmp_path, damage, layer):
    """In the trunk, the pyramid, the RPN and the heads: one line with the array, and both shapes where they differ."""
    wanted = layers[layer]["kernel"].shape
    damage(layers[layer])
    path = tmp_path / "weights.h5"
    write_mrcnn(path, layers)
    before = {name: np.asarray(variable.value).copy() for name, variable in variables_by_name(empty).items()}
    with pytest.raises(WeightsError, match=f"{layer}/kernel") as error:
        load_mrcnn(empty, path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    if damage in (transposed, other_shape):
        assert str(wanted) in str(error.value) and str(layers[layer]["kernel"].shape) in str(error.value)
    for name, variable in variables_by_name(empty).items():  # nothing of the file has come in
        np.testing.assert_array_equal(before[name], np.asarray(variable.value))


def test_a_renamed_layer_is_refused(empty, layers, tmp_path):
    """Loading by name would leave it at random values without a word."""
    layers["fpn_p4_conv"] = layers.pop("fpn_p4")
    write_mrcnn(tmp_path / "weights.h5", layers)
    with pytest.raises(WeightsError, match="fpn_p4/kernel .*missing"):
        load_mrcnn(empty, tmp_path / "weights.h5")


def test_a_deeper_trunk_is_refused(empty, layers, tmp_path):
    """A ResNet-101 file has every array of a ResNet-50, and more: loading by name would skip those in silence."""
    layers["res4b_branch2a"] = layers["res4a_branch2a"]
    write_mrcnn(tmp_path / "weights.h5", layers)
    with pytest.raises(WeightsError, match="res4b_branch2a/kernel of shape .* has no place"):
        load_mrcnn(empty, tmp_path / "weights.h5")


def test_listed_but_lost(empty, layers, tmp_path):
    """A truncated copy: the attributes promise what the file does not hold."""
    path = tmp_path / "weights.h5"
    for lost in ("fpn_p3/fpn_p3/bias:0", "fpn_p3"):
        write_mrcnn(path, layers)
        with h5py.File(path, "a") as file:
            del file[lost]
        with pytest.raises(WeightsError, match="fpn_p3.* is listed but missing"):
            load_mrcnn(empty, path)


def test_a_missing_file_is_said_to_be_missing(empty, tmp_path):
    """Not that it is damaged: a name was mistyped."""
    with pytest.raises(WeightsError, match=r"nowhere\.h5 does not exist: check the name"):
        load_mrcnn(empty, tmp_path / "nowhere.h5")


@pytest.mark.parametrize("content", [b"<html>not found</html>", None])
def test_other_files_are_refused(empty, tmp_path, content):
    """An error page under the name of a weights file, and an HDF5 file of something else."""
    path = tmp_path / "weights.h5"
    if content:
        path.write_bytes(content)
    else:
        with h5py.File(path, "w") as file:
            file["flux"] = np.ones(3)
    with pytest.raises(WeightsError, match="HDF5|layer_names"):
        load_mrcnn(empty, path)


@pytest.fixture(scope="module")
def coco(network, tmp_path_factory):
    """A file with the heads of 81 classes, as COCO weights have them."""
    layers = arrays_of(network)
    units, channels = layers["mrcnn_class_logits"]["kernel"].shape[0], layers["mrcnn_mask"]["kernel"].shape[2]
    for layer, kernel in (
        ("mrcnn_class_logits", (units, 81)),
        ("mrcnn_bbox_fc", (units, 324)),
        ("mrcnn_mask", (1, 1, channels, 81)),
    ):
        layers[layer] = {"kernel": np.ones(kernel, np.float32), "bias": np.ones(kernel[-1], np.float32)}
    path = tmp_path_factory.mktemp("coco") / "mask_rcnn_coco.h5"
    write_mrcnn(path, layers)
    return path


def test_other_classes_are_refused(empty, coco):
    """Unasked, heads of other classes are no weights for this network; the line says how many and the way out."""
    with pytest.raises(WeightsError, match=r"mrcnn_class_logits/kernel has shape \(\d+, 81\).*\(\d+, 3\).*--partial"):
        load_mrcnn(empty, coco)


def test_other_classes_are_left_out_when_asked(network, paper_config, coco, caplog):
    """Transfer learning: everything but the three layers that know classes, and the log lists them."""
    fresh = make_network(paper_config)
    random = arrays_of(fresh)
    left_out = ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask")
    with caplog.at_level(logging.WARNING, logger="surveycat"):
        assert load_mrcnn(fresh, coco, partial=True) == left_out
    assert all(name in caplog.text for name in (*left_out, "81"))
    theirs = arrays_of(network)
    for layer, arrays in arrays_of(fresh).items():
        expected = random[layer] if layer in left_out else theirs[layer]
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, expected[name], err_msg=f"{layer}/{name}")


def test_partial_does_not_excuse_damage(empty, layers, tmp_path):
    """Only the number of classes may differ, in all three layers alike; one transposed head is no other class count."""
    transposed(layers["mrcnn_class_logits"])
    write_mrcnn(tmp_path / "weights.h5", layers)
    with pytest.raises(WeightsError, match="mrcnn_class_logits/kernel"):
        load_mrcnn(empty, tmp_path / "weights.h5", partial=True)


@pytest.mark.parametrize(("backbone", "last", "count"), [("resnet50", "f", 384), ("resnet101", "w", 384 + 17 * 18)])
def test_trunks_have_the_arrays_of_the_package(paper_config, backbone, last, count):
    """Stage 4 has blocks a to f, or a to w; each holds three convolutions of two arrays and three norms of four."""
    names = variables_by_name(make_network(dataclasses.replace(paper_config, backbone=backbone)))
    blocks = {name.split("/")[1] for name in names if "/res4" in name and name.endswith("branch2a/kernel")}
    assert blocks == {f"res4{chr(letter)}_branch2a" for letter in range(ord("a"), ord(last) + 1)}
    assert len(names) == count
