"""The training programs at a terminal: a wrong path is one line, and nothing is left behind."""

import os
import subprocess
import sys

import pytest

from surveycat.errors import OptionError
from training.command import exit_code

WRONG = {
    "train": ["--scenes", "{nowhere}", "--out", "{out}"],
    "classes": ["--start", "{nowhere}", "--scenes", "{nowhere}", "--data", "{nowhere}", "--out", "{out}"],
    "release": ["--run", "{nowhere}", "--scenes", "{nowhere}", "--out", "{out}"],
    "average": ["--first", "{nowhere}", "--second", "{nowhere}", "--share", "0.5", "--out", "{out}"],
    "evaluate": ["--data", "{nowhere}", "--out", "{out}"],
}


@pytest.mark.parametrize("program", WRONG)
def test_a_wrong_path_is_one_line(tmp_path, program):
    """It names the path; training makes its folder first, the others leave none behind."""
    places = {"nowhere": str(tmp_path / "nowhere"), "out": str(tmp_path / "out")}
    options = [option.format(**places) for option in WRONG[program]]
    done = subprocess.run(
        [sys.executable, "-m", f"training.{program}", *options],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    assert places["nowhere"] in lines[0]
    assert program == "train" or not os.path.exists(places["out"])


def test_what_is_no_fault_of_the_user_is_not_hidden(capsys):
    """Refusals end with 1, Ctrl-C with 130; other errors keep their traceback."""

    def fail(error):
        raise error

    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: fail(OptionError("count 0"))) == 1
    assert capsys.readouterr().err == "error: count 0\n"
    assert exit_code(lambda: fail(KeyboardInterrupt())) == 130
    with pytest.raises(OSError, match="no file"):
        exit_code(lambda: fail(OSError("no file")))
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: fail(ZeroDivisionError()))
