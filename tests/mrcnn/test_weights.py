"""A file that does not fit, or was damaged, is refused with the array's name; a good one loads exactly."""

import dataclasses

import h5py
import numpy as np
import pytest

from surveycat.errors import WeightsError
from surveycat.mrcnn import weights
from surveycat.mrcnn.config import NetworkConfig
from surveycat.mrcnn.detector import Detector, check_golden, write_golden
from surveycat.mrcnn.model import MaskRCNN


@pytest.fixture
def saved(small_network, tmp_path):
    """A weights file in full precision."""
    path = tmp_path / "model.weights.h5"
    weights.save_arrays(small_network, path, dtype="float32")
    return path


def test_arrays_come_back_exactly(small_network, small_config, saved):
    """Every array of every part, under its own name."""
    other = MaskRCNN(small_config)
    weights.load_arrays(other, saved)
    mine, theirs = weights.variables_by_name(small_network), weights.variables_by_name(other)
    assert mine.keys() == theirs.keys() and len(mine) > 50
    for name in mine:
        np.testing.assert_array_equal(mine[name].numpy() if hasattr(mine[name], "numpy") else mine[name], theirs[name])


@pytest.mark.parametrize("damage", ["transpose", "missing", "renamed", "shape", "nan"])
def test_damaged_array_is_named(small_config, saved, damage):
    """Ports of mask r-cnn are known to load wrongly without an error: ours names the array."""
    name = "box_head/box_fc0/kernel"
    with h5py.File(saved, "a") as file:
        values = file[name][()]
        del file[name]
        new = {"transpose": values.T, "shape": values[:-1], "nan": values * np.nan}.get(damage)
        if damage == "renamed":
            file["box_head/box_fc9/kernel"] = values
        elif new is not None:
            file[name] = new
    with pytest.raises(WeightsError, match="box_head/box_fc") as error:
        weights.load_arrays(MaskRCNN(small_config), saved)
    assert "\n" not in str(error.value)


def test_not_hdf5_is_refused(small_network, tmp_path):
    """A download error page under the name of a weights file."""
    path = tmp_path / "model.weights.h5"
    path.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match="HDF5"):
        weights.load_arrays(small_network, path)


@pytest.fixture
def preset(small_network, small_config, tiles, tmp_path):
    """A whole preset folder."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(small_config.to_json())
    weights.save_arrays(small_network, folder / "model.weights.h5", dtype="float32")
    write_golden(Detector(weights.load_network(folder)), folder / "golden.npz", tiles[0], min_score=0.0)
    weights.write_sums(folder)
    return folder


def test_checksums_notice_a_changed_byte(preset):
    """A truncated or altered download never runs."""
    weights.check_sums(preset)
    path = preset / "model.weights.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.check_sums(preset)


def test_golden_tile_notices_one_wrong_array(preset):
    """The canary: a network with one array transposed in place gives another answer."""
    network = weights.load_network(preset)
    check_golden(Detector(network), preset / "golden.npz")
    layer = network.parts["backbone"].get_layer("stage3_0_b")
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel.transpose(1, 0, 2, 3), bias])
    with pytest.raises(WeightsError, match="golden"):
        check_golden(Detector(network), preset / "golden.npz")


def test_golden_tile_without_galaxies_proves_nothing(preset, tiles):
    """A canary that cannot sing is refused."""
    write_golden(Detector(weights.load_network(preset)), preset / "golden.npz", tiles[0], min_score=0.999)
    with pytest.raises(WeightsError, match="no galaxy"):
        check_golden(Detector(weights.load_network(preset)), preset / "golden.npz")


def test_unknown_preset_lists_the_known():
    """A typo in --weights gets the names that would work."""
    with pytest.raises(WeightsError, match="'compcat'.*one of compact$"):
        weights.preset_folder("compcat")


def test_a_weight_image_is_not_weights():
    """Two options differ by a letter: who gives a FITS image to the network's is told of the other."""
    with pytest.raises(WeightsError, match="'ivar.fits.fz'.*is for --weight$"):
        weights.preset_folder("ivar.fits.fz")


def test_config_survives_json():
    """The architecture stored beside the weights is the one that was trained."""
    config = dataclasses.replace(NetworkConfig(), name="other", mean_pixel=(1.0, 2.0, 3.0))
    assert NetworkConfig.from_json(config.to_json()) == config
    with pytest.raises(WeightsError, match="'colour'"):
        NetworkConfig.from_json('{"colour": 3}')
