"""From a file of the `mrcnn` package to a preset folder and a catalogue, at the command line."""

import dataclasses
import pathlib

import h5py
import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner
from mrcnn_files import arrays_of, enliven, write_mrcnn
from PIL import Image

from surveycat.cli import main
from surveycat.mrcnn.presets import PRESETS
from surveycat.mrcnn.weights import make_network, sha256_of, write_sums

FIELD = pathlib.Path(__file__).parents[2] / "examples" / "field.jpg"


def surveycat(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(paper_config, tmp_path_factory):
    """A weights file of a thin network whose name is known as a preset, a picture, and what `convert` made of them."""
    import keras

    folder = tmp_path_factory.mktemp("convert")
    keras.utils.set_random_seed(4)  # for heads that a partly loaded network starts from
    write_mrcnn(folder / "thin.h5", arrays_of(enliven(make_network(paper_config), 11)))
    Image.open(FIELD).crop((400, 500, 700, 760)).save(folder / "field.png")
    PRESETS["thin"] = paper_config
    PRESETS["thin-1class"] = dataclasses.replace(paper_config, classes=("galaxy",))
    options = "--preset", "thin", "--image", folder / "field.png"
    result = surveycat("weights", "convert", folder / "thin.h5", *options, "--out", folder / "preset")
    assert result.exit_code == 0, result.output
    yield folder
    del PRESETS["thin"], PRESETS["thin-1class"]


def test_converted_folder_is_a_preset(folder):
    """It proves itself, and says where it comes from."""
    result = surveycat("weights", "check", folder / "preset")
    assert result.exit_code == 0 and "golden tile" in result.stdout and result.stdout.count("\n") == 1
    assert sha256_of(folder / "thin.h5") in (folder / "preset" / "CARD.md").read_text()
    with np.load(folder / "preset" / "golden.npz") as golden:
        assert 1 <= len(golden["score"]) <= 8


def test_existing_folder_is_kept(folder):
    """Nothing that exists is overwritten, and nothing is left beside it."""
    before = sorted(path.name for path in folder.iterdir())
    result = surveycat("weights", "convert", folder / "thin.h5", "--preset", "thin", "--out", folder / "preset")
    assert result.exit_code == 1 and "exists" in result.stderr and result.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_square_array_transposed_is_found_by_the_golden_tile(folder):
    """What no shape can tell and no checksum, if it was renewed: the network answers otherwise."""
    path = folder / "preset" / "model.weights.h5"
    whole = path.read_bytes(), (folder / "preset" / "SHA256SUMS").read_bytes()
    with h5py.File(path, "a") as file:
        kernel = file["backbone/res2a_branch2a/kernel"]
        assert kernel.shape[2] == kernel.shape[3]
        kernel[...] = kernel[()].transpose(0, 1, 3, 2)
    assert "SHA-256" in surveycat("weights", "check", folder / "preset").stderr
    write_sums(folder / "preset")
    result = surveycat("weights", "check", folder / "preset")
    assert result.exit_code == 1 and "does not reproduce its golden tile" in result.stderr
    path.write_bytes(whole[0])
    (folder / "preset" / "SHA256SUMS").write_bytes(whole[1])


def test_run_with_the_file_is_run_with_the_folder(folder):
    """`--weights FILE.h5 --preset NAME` and the converted folder give the same catalogue; its meta says which."""
    tables = []
    for name, options in (("file", (folder / "thin.h5", "--preset", "thin")), ("folder", (folder / "preset",))):
        out = folder / f"{name}.ecsv"
        result = surveycat("run", folder / "field.png", "--weights", *options, "--min-score", 0.4, "--out", out)
        assert result.exit_code == 0, result.output
        tables.append(Table.read(out, format="ascii.ecsv"))
    assert len(tables[0]) == len(tables[1]) > 0
    np.testing.assert_allclose(tables[0]["score"], tables[1]["score"], atol=1e-5)
    assert tables[0].meta["weights"] == "thin.h5 as thin" and tables[1].meta["weights"] == "preset"
    assert tables[0].meta["weights_sha256"] == sha256_of(folder / "thin.h5")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("thin.h5",), "give one of mask-galaxy-1class"),
        (("thin.h5", "--preset", "mask-galaxy-3class"), "'mask-galaxy-3class'"),
        (("thin.h5", "--preset", "thin-1class"), r"(16, 3)"),
        (("compact", "--preset", "thin"), "leave it out"),
        (("mask-galaxy-2class",), "--weights FILE.h5 --preset mask-galaxy-2class"),
        (("none.h5", "--preset", "thin"), "none.h5 does not exist"),
        (("none.h5",), "none.h5 does not exist"),
    ],
    ids=[
        "no preset",
        "unknown preset",
        "other classes",
        "preset not needed",
        "preset without weights",
        "no file",
        "no file and no preset",
    ],
)
def test_what_cannot_be_meant_is_one_line(folder, monkeypatch, options, says):
    """Exit code 1, the value and the way out, before any work; no catalogue."""
    monkeypatch.chdir(folder)
    result = surveycat("run", "field.png", "--weights", *options, "--out", "wrong.ecsv", "-q")
    assert result.exit_code == 1 and says in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "wrong.ecsv").exists()


def test_partly_loaded_is_to_train_on_not_to_run(folder):
    """Heads of other classes are left out when asked; the folder proves itself but refuses to search."""
    options = "--preset", "thin-1class", "--partial", "--image", folder / "field.png"
    result = surveycat("weights", "convert", folder / "thin.h5", *options, "--out", folder / "partly")
    assert result.exit_code == 0 and "left out mrcnn_class_logits, mrcnn_bbox_fc, mrcnn_mask" in result.stderr
    assert "still to be trained: mrcnn_class_logits" in surveycat("weights", "check", folder / "partly").stdout
    result = surveycat("run", folder / "field.png", "--weights", folder / "partly", "--out", folder / "wrong.ecsv")
    assert result.exit_code == 1 and "still random" in result.stderr


def test_list_names_what_can_be_given(folder):
    """Both presets of the paper, with the way to weights for them."""
    lines = surveycat("weights", "list").stdout.splitlines()
    assert lines[0].startswith("compact: ") and "installed" in lines[0]
    for name in ("mask-galaxy-1class", "mask-galaxy-2class"):
        assert any(line.startswith(f"{name}: resnet101") and "FILE.h5" in line for line in lines)
