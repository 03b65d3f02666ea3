"""The command line: what it prints and where, exit codes, and one line for whatever a user can mend."""

import logging
import re
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner
from detectors import BAD, BlobDetector, Choking
from PIL import Image

from surveycat import pipeline
from surveycat.cli import main


def picture(folder, name="field.png", bad=False):
    """Save a dark picture of 300 x 260 pixels with two bright discs, one blue and one red."""
    y, x = np.mgrid[:260, :300]
    pixels = np.full((260, 300, 3), 5, np.uint8)
    pixels[np.hypot(y - 80, x - 70) < 15] = (120, 170, 220)
    pixels[np.hypot(y - 190, x - 210) < 12] = (220, 170, 120)
    if bad:
        pixels[259, 299] = BAD
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a picture in it, in which the command runs; the network is replaced by blobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "DetectorSpec", lambda weights, preset: BlobDetector())
    picture(tmp_path)
    return tmp_path


def surveycat(*arguments):
    """Run the command in this process; what it prints on each stream is kept apart."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_run_writes_a_catalogue_and_says_so_in_one_line(folder):
    """Standard output holds the result in one line; the catalogue has what it says."""
    result = surveycat("run", "field.png", "--ra", 351.65, "--dec", 0.10, "--out", "cat.parquet")
    assert result.exit_code == 0, result.stderr
    line = r"2 galaxies \(1 spiral, 1 elliptical\) in cat\.parquet, \d+\.\d s\n"
    assert re.fullmatch(line, result.stdout)
    table = Table.read("cat.parquet")
    assert sorted(table["class"]) == ["elliptical", "spiral"] and str(table["ra"].unit) == "deg"


def test_negative_declination(folder):
    """`--dec -1.17` must not be taken for an option."""
    result = surveycat("run", "field.png", "--ra", 351.65, "--dec", -1.17, "--out", "cat.ecsv")
    assert result.exit_code == 0, result.stderr
    assert abs(Table.read("cat.ecsv", format="ascii.ecsv")["dec"] + 1.17).max() < 0.02


def test_log_says_where_the_scale_comes_from(folder):
    """What is assumed is said, on standard error."""
    result = surveycat("run", "field.png", "--ra", 351.65, "--dec", 0.10, "--out", "cat.parquet")
    assert "field.png:" in result.stderr and "0.396127" in result.stderr


def test_no_position_is_a_catalogue_in_pixels_and_a_hint(folder):
    """Without any position there are pixels, and the log says what to add."""
    result = surveycat("run", "field.png", "--out", "cat.parquet")
    assert result.exit_code == 0 and "ra" not in Table.read("cat.parquet").colnames
    assert "--wcs" in result.stderr and "--ra" in result.stderr


def test_quiet_says_nothing(folder):
    """In scripts silence is wanted."""
    result = surveycat("run", "field.png", "--out", "cat.parquet", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_log_is_left_as_it_was(folder):
    """A command that is called from Python must not keep the log for itself."""
    before = list(logging.getLogger("surveycat").handlers)
    surveycat("run", "field.png", "--out", "cat.parquet")
    assert logging.getLogger("surveycat").handlers == before


def test_several_images_one_table(folder):
    """Two images, one catalogue; a column tells them apart."""
    picture(folder, "other.png")
    assert surveycat("run", "field.png", "other.png", "--out", "all.parquet").exit_code == 0
    assert set(Table.read("all.parquet")["image"]) == {"field.png", "other.png"}


def test_files_of_one_name_are_told_apart(folder):
    """Images of two folders that are called the same keep their paths in the column `image`; none counts twice."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        picture(folder / name)
    assert surveycat("run", "a/field.png", "b/field.png", "--out", "all.parquet").exit_code == 0
    table = Table.read("all.parquet")
    assert set(table["image"]) == {each["name"] for each in table.meta["inputs"]} == {"a/field.png", "b/field.png"}
    again = surveycat("run", "a/field.png", "./a/field.png", "--out", "twice.parquet")
    assert again.exit_code == 1 and "a/field.png was given twice" in again.stderr


def test_positions_as_people_have_them(folder):
    """Hours, minutes and seconds are understood; what is no angle is refused with an example."""
    result = surveycat("run", "field.png", "--ra", "23:26:36", "--dec", "-00d06m00s", "--out", "cat.parquet")
    assert result.exit_code == 0, result.stderr
    table = Table.read("cat.parquet")
    assert abs(table["ra"] - 351.65).max() < 0.02 and abs(table["dec"] + 0.10).max() < 0.02
    wrong = surveycat("run", "field.png", "--ra", "23:26", "--dec", "-0.10", "--out", "other.parquet")
    assert wrong.exit_code == 2 and "'23:26', which is no angle; give 351.65 or 23:26:36" in wrong.stderr


def test_region(folder):
    """Only the part that was asked for, in pixels of the whole image."""
    assert surveycat("run", "field.png", "--region", "150,120,300,260", "--out", "cat.parquet").exit_code == 0
    table = Table.read("cat.parquet")
    assert len(table) == 1 and abs(table["x"][0] - 210) < 0.5 and abs(table["y"][0] - 190) < 0.5


def test_failed_tiles_give_code_3(folder, monkeypatch):
    """Done, but not all: a script must be able to tell."""
    picture(folder, bad=True)
    monkeypatch.setattr(pipeline, "DetectorSpec", lambda weights, preset: Choking())
    result = surveycat("run", "field.png", "--out", "cat.parquet")
    assert result.exit_code == 3 and "tiles could not be searched" in result.stderr
    assert Table.read("cat.parquet").meta["tiles_failed"]


def test_interruption_gives_code_130(folder, monkeypatch):
    """Ctrl-C is no error of the program, and leaves nothing behind."""

    def interrupted(pixels, min_score):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "DetectorSpec", lambda weights, preset: interrupted)
    result = surveycat("run", "field.png", "--out", "cat.parquet")
    assert result.exit_code == 130 and result.stderr.count("\n") <= 2
    assert "interrupted" in result.stderr and not (folder / "cat.parquet").exists()


def write(name, content=b""):
    """Write a file and give its name."""
    with open(name, "wb") as file:
        file.write(content)
    return name


def jpeg_cut_in_half(name):
    """A JPEG whose download broke off."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(name)
    with open(name, "rb+") as file:
        file.truncate(file.seek(0, 2) // 2)
    return name


def saved_as(mode, name):
    """A picture with another number of channels or bits."""
    Image.new(mode, (80, 60)).save(name)
    return name


def saved_fits(name, data):
    """A FITS file with this data."""
    fits.writeto(name, data)
    return name


BAD_IMAGES = {
    "missing": lambda: "nowhere.jpg",
    "empty": lambda: write("empty.jpg"),
    "text": lambda: write("text.jpg", b"<!DOCTYPE html><html>404</html>"),
    "truncated": lambda: jpeg_cut_in_half("half.jpg"),
    "truncated FITS": lambda: write("half.fits", b"SIMPLE  =                    T".ljust(80)),
    "a folder": lambda: ".",
    "1 channel": lambda: saved_as("L", "grey.png"),
    "2 channels": lambda: saved_as("LA", "grey_alpha.png"),
    "4 channels": lambda: saved_as("CMYK", "cmyk.jpg"),
    "16 bits": lambda: saved_as("I;16", "deep.png"),
    "only NaN": lambda: saved_fits("nan.fits", np.full((50, 50), np.nan, np.float32)),
    "only infinity": lambda: saved_fits("inf.fits", np.full((50, 50), np.inf, np.float32)),
    "four axes": lambda: saved_fits("cube.fits", np.zeros((2, 2, 9, 9), np.float32)),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_image(folder, kind):
    """Whatever is wrong with an image: code 1, one line that names the file, nothing written."""
    name = BAD_IMAGES[kind]()
    one_line(folder, [name, "--out", "cat.parquet"], name.strip("."))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ra", "10"], "dec"),
        (["--dec", "10"], "ra"),
        (["--ra", "400", "--dec", "0"], "400"),
        (["--ra", "10", "--dec", "95"], "95"),
        (["--ra", "10", "--dec", "0", "--pixel-scale", "0"], "0"),
        (["--ra", "10", "--dec", "0", "--pixel-scale", "-0.4"], "-0.4"),
        (["--ra", "nan", "--dec", "0"], "nan"),
        (["--wcs", "nowhere.hdr"], "nowhere.hdr"),
        (["--wcs", "field.png"], "field.png"),
        (["--mask", "nowhere.fits"], "nowhere.fits"),
        (["--weight", "field.png"], "--weight"),
        (["--region", "0,0,10"], "0,0,10"),
        (["--region", "1000,1000,1100,1100"], "1000,1000,1100,1100"),
        (["--region", "10d,0d,11d,1d"], "10d,0d,11d,1d"),
        (["--min-score", "2"], "2"),
        (["--workers", "-1"], "-1"),
        (["--preview", "preview.txt"], ".txt"),
        (["--preview", "nowhere/preview.png"], "nowhere"),
    ],
)
def test_bad_option(folder, options, words):
    """Whatever is wrong with an option: code 1, one line with the value, nothing written."""
    one_line(folder, ["field.png", "--out", "cat.parquet", *options], words)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("cat.xlsx", ".xlsx"),
        ("cat", "suffix"),
        ("nowhere/cat.parquet", "nowhere"),
        ("field.png/cat.parquet", "field.png"),
        ("/proc/cat.parquet", "/proc"),
        (".", "."),
    ],
)
def test_bad_output(folder, out, words):
    """An output that cannot be written is refused before the work: code 1, one line, nothing written."""
    one_line(folder, ["field.png", "--out", out], words)


def test_existing_output(folder):
    """An output of yesterday stays as it is, and the line says how to replace it."""
    write("cat.parquet", b"yesterday")
    one_line(folder, ["field.png", "--out", "cat.parquet"], "overwrite")
    assert (folder / "cat.parquet").read_bytes() == b"yesterday"
    assert surveycat("run", "field.png", "--out", "cat.parquet", "--overwrite").exit_code == 0


def test_full_disk(folder, monkeypatch):
    """An error of the system is one line too, and half a catalogue is none."""

    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pipeline.catalog, "atomic_write", full)
    result = surveycat("run", "field.png", "--ra", "1", "--dec", "2", "--out", "cat.parquet", "-q")
    assert result.exit_code == 1
    kept = "what is finished is kept in cat.parquet.partial; add --resume to the same command to go on"
    assert result.stderr == f"surveycat: cat.parquet: No space left on device; {kept}\n"
    assert not (folder / "cat.parquet").exists()


def test_debug_shows_the_traceback(folder):
    """`--debug` is for those who mend surveycat."""
    result = surveycat("run", "nowhere.jpg", "--out", "cat.parquet", "--debug")
    assert result.exit_code == 1 and "nowhere.jpg" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["run", "field.png"], ["run", "field.png", "--out", "a.fits", "--ra", "x"], ["rum"]],
)
def test_wrong_usage_gives_code_2(folder, arguments):
    """What click refuses: code 2 and the usage."""
    result = surveycat(*arguments)
    assert result.exit_code == 2 and "Usage:" in result.stderr


def test_typo_is_understood(folder):
    """A mistyped option gets a suggestion."""
    result = surveycat("run", "field.png", "--out", "cat.parquet", "--overwite")
    assert result.exit_code == 2 and "--overwrite" in result.stderr


@pytest.mark.parametrize("command", [[], ["run"]])
def test_help_has_an_example_that_parses(folder, command):
    """An example that no test runs decays."""
    result = surveycat(*command, "--help")
    example = re.search(r"^ +surveycat (run .*)$", result.stdout, re.M)[1].split()
    (folder / "examples").mkdir()
    for name in ("field.jpg", "examples/field.jpg"):
        picture(folder, name)
    assert surveycat(*example).exit_code == 0


def test_commands_that_search_take_the_same_network():
    """What names a network for `run` names it for `inject` and `bulk`, with the same default and the same words."""
    options = [
        {option.name: (option.opts, option.default, option.help) for option in main.commands[command].params}
        for command in ("run", "inject", "bulk")
    ]
    for name in ("weights", "preset", "min_score"):
        assert options[0][name] == options[1][name] == options[2][name]


def test_wrong_checksum_of_weights(tmp_path):
    """Damaged weights are refused in one line, in a real process, whatever TensorFlow likes to print."""
    weights = tmp_path / "damaged"
    weights.mkdir()
    for name in ("config.json", "golden.npz", "model.weights.h5"):
        (weights / name).write_text("{}")
    (weights / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    image = picture(tmp_path)
    command = [
        sys.executable,
        "-m",
        "surveycat",
        "run",
        image,
        "--weights",
        weights,
        "--out",
        tmp_path / "c.fits",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stdout == ""
    assert re.fullmatch(r"surveycat: \S+config\.json has SHA-256 .*\n", result.stderr)
    assert not (tmp_path / "c.fits").exists()


def one_line(folder, arguments, words):
    """Check that `surveycat run` fails with one line that holds some words, and writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = surveycat("run", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"surveycat: [^\n]+\n", result.stderr), result.stderr
    assert words in result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
