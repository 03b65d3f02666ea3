"""What a user gets before the first galaxy: a package that imports at once, and help without TensorFlow."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import surveycat
import surveycat.catalog

ROOT = Path(__file__).resolve().parents[1]
STDLIB = set(sys.stdlib_module_names)
HEAVY = ("tensorflow", "keras", "numpy", "astropy", "scipy", "pandas", "dask", "distributed", "PIL", "rich")


def loaded_by(code):
    """Top-level modules that a fresh interpreter holds after running some code."""
    report = f"{code}\nimport sys; print('\\n' + ' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


def test_import_is_light():
    """`import surveycat` must cost nothing: people import it in notebooks and in other tools."""
    assert not loaded_by("import surveycat").intersection(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_is_light(arguments):
    """Help must come at once, so it may load click and nothing heavy."""
    code = f"from surveycat.cli import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert not loaded_by(code).intersection(HEAVY)


def test_public_names_exist():
    """Every name that the package lists can be had, lazily."""
    for name in surveycat.__all__:
        assert getattr(surveycat, name) is not None
        assert name in dir(surveycat)


def test_unknown_name_is_an_attribute_error():
    """A lazy package must still say plainly that a name does not exist, and `hasattr` must work."""
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        surveycat.rum  # noqa: B018
    assert not hasattr(surveycat, "rum")


def test_tensorflow_is_silenced_only_where_the_user_has_no_wish():
    """TensorFlow's log must not drown ours, but a user who set its level has a reason."""
    ask = "import os, surveycat; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    for wish, expected in ((None, "2"), ("0", "0")):
        environment = {"PATH": "/usr/bin:/bin", **({"TF_CPP_MIN_LOG_LEVEL": wish} if wish else {})}
        result = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60
        )
        assert result.stdout.strip() == expected, result.stderr


def test_version_is_said_in_one_place_and_repeated_truly():
    """The citation file and the list of changes must not fall behind the version."""
    assert f"version: {surveycat.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(), re.M)[1] == surveycat.__version__


def test_every_folder_of_the_package_is_installed():
    """A package that is missing from setup.cfg works in the repository and fails from a wheel."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = set(setup["options"]["packages"].split())
    present = {
        str(init.parent.relative_to(ROOT)).replace("/", ".") for init in (ROOT / "surveycat").rglob("__init__.py")
    }
    assert installed == present | {"surveycat.weights"}


def imported_by(source):
    """Top-level names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def declared_in(section, option):
    """Names of the projects that an option of setup.cfg lists."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return {re.split(r"[\[>=<]", line)[0] for line in setup[section][option].split()}


def projects_imported_in(folder):
    """Projects from which the files of a folder import, itself and the standard library left out."""
    found = {name for source in (ROOT / folder).rglob("*.py") for name in imported_by(source)}
    ours = {"surveycat", "training", *(source.stem for source in (ROOT / "tests").rglob("*.py"))}
    # Backends, and kinds of clusters, that are the user's own choice.
    others = {"jax", "torch", "dask_cuda", "dask_jobqueue"}
    known_as = {"PIL": "pillow", "distributed": "dask", "astropy_healpix": "astropy-healpix"}
    return {known_as.get(name, name) for name in found - STDLIB - ours - others}


def test_every_import_is_declared():
    """What the package imports must come with it on a fresh machine, and nothing else should.

    What only some files beside the catalogue need is an extra.
    """
    needed = projects_imported_in("surveycat") | {"pandas"}  # with which astropy reads Parquet
    extra = declared_in("options.extras_require", "files")
    assert needed - extra == declared_in("options", "install_requires") and extra <= needed


@pytest.mark.parametrize(("folder", "extra"), [("tests", "test"), ("training", "train"), ("examples", "examples")])
def test_extras_hold_what_their_scripts_import(folder, extra):
    """Each extra is what its folder needs beyond the package."""
    base = declared_in("options", "install_requires")
    assert projects_imported_in(folder) - base <= declared_in("options.extras_require", extra)


def commands():
    """The commands of README's shell blocks that start with a virtual environment."""
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.M)


def test_readme_starts_with_two_commands():
    """README promises one line for a catalogue and one for the tests; `.ci/run` runs both as they stand."""
    run, test = commands()
    assert "surveycat run examples/field.jpg --ra 351.65 --dec 0.10" in run
    assert "[test]" in test and test.endswith("pytest")


def test_readme_lists_the_columns():
    """README's list of columns is the schema's own."""
    assert surveycat.catalog.columns_markdown() in (ROOT / "README.md").read_text()
