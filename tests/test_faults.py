"""What goes wrong outside of us, for real: a full disk, a window that cannot be read, Ctrl-C at a bad moment."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import same_rows
from test_unfinished import Logging

import surveycat
from surveycat import catalog
from surveycat.unfinished import partial_folder

HERE = Path(__file__).parent
# The command itself, with a detector that needs no TensorFlow. A file may not grow beyond argv[1] bytes.
PROGRAM = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from test_unfinished import Logging
from surveycat import pipeline, scratch
from surveycat.cli import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    most, log, large = sys.argv[1:4]
    if int(most):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    if int(large):
        scratch.Scratch.large = int(large)
    pipeline.DetectorSpec = lambda *weights, **options: Logging(log)
    main(sys.argv[4:])
"""


@pytest.fixture
def image(tmp_path):
    """A dark image file with bright discs."""
    pixels = np.full((700, 900, 3), 4, np.uint8)
    y, x = np.mgrid[:700, :900]
    for v, u in np.random.default_rng(3).uniform(20, 680, (25, 2)):
        pixels[np.hypot(y - v, x - u) < 8] = (120, 170, 200)
    np.save(tmp_path / "image.npy", pixels)
    return tmp_path / "image.npy"


@pytest.fixture
def command(tmp_path):
    """Start the command with a limit to the size of files; gives the running process."""
    (tmp_path / "program.py").write_text(PROGRAM.format(tests=str(HERE)))

    def start(*arguments, most=0, large=0):
        line = [sys.executable, tmp_path / "program.py", str(most), tmp_path / "log", str(large), "run", *arguments]
        return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return start


def left(folder):
    """Names of what lies in a folder, the test's own files left out."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("image.npy", "program.py", "log"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_no_room_for_finished_batches(image, command, tmp_path, workers):
    """A file system that refuses a batch ends the run with one line; with room again the run goes on."""
    out = tmp_path / "cat.parquet"
    run = command(image, "--out", out, "--workers", workers, "-q", most=3200)
    error = run.communicate(timeout=120)[1]
    assert run.returncode == 1 and error.count("\n") == 1 and "File too large; make room" in error
    assert not [name for name in left(tmp_path) if name != "cat.parquet.partial"]
    run = command(image, "--out", out, "--resume", "-q")
    assert (run.communicate(timeout=120)[1], run.returncode) == ("", 0)
    same_rows(surveycat.run(image, detector=Logging(tmp_path / "whole")), catalog.read(out))
    assert (tmp_path / "log").read_text().count("batch") <= (tmp_path / "whole").read_text().count("batch") + 4


def test_no_room_for_scratch(image, command, tmp_path):
    """No room for the coarse levels: one line that says where, before any tile is searched, nothing left."""
    run = command(image, "--out", tmp_path / "cat.parquet", "-q", most=5000, large=10000)
    error = run.communicate(timeout=120)[1]
    assert run.returncode == 1 and error.count("\n") == 1 and "cannot write scratch data" in error
    assert left(tmp_path) == [] and not (tmp_path / "log").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".fits", ".vot", ".ecsv", ".csv"])
def test_no_room_for_the_catalogue(image, tmp_path, suffix):
    """A catalogue that does not fit is not begun under its name; what was searched is kept for `--resume`."""
    out = tmp_path / f"cat{suffix}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = surveycat.run(image, detector=Logging(tmp_path / "whole"))

    def fill_up(stage, done, total):
        if stage == "tiles" and done == total:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(surveycat.SurveycatError, match=f"cannot write .*cat{suffix}: .*free space"):
            surveycat.run(image, out, detector=Logging(tmp_path / "log"), progress=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not out.exists() and partial_folder(out).is_dir()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "half a catalogue is left"
    same_rows(whole, surveycat.run(image, out, detector=Logging(tmp_path / "log"), resume=True))


class Unreadable:
    """An image of which one window cannot be read, the first time or ever."""

    def __init__(self, image, times):
        self.image, self.times = image, times

    def __getattr__(self, name):
        return getattr(self.image, name)

    def read(self, box, level=0):
        """Fail as a disk does."""
        if level == 0 and box[:2] == (192, 384) and self.times:
            self.times -= 1
            raise OSError(5, "Input/output error")
        return self.image.read(box, level)


@pytest.mark.parametrize(("times", "failed"), [(1, 0), (99, 1)])
def test_unreadable_window_is_tried_again_and_then_recorded(image, tmp_path, times, failed):
    """A hiccup of the disk costs nothing; a bad place on it costs the tile alone."""
    from surveycat.image import open_image
    from surveycat.pipeline import search

    with open_image(image) as opened:
        table, lost = search(Unreadable(opened, times), Logging(tmp_path / "log"))
        assert [(tile.y0, tile.x0) for tile, _ in lost] == [(192, 384)] * failed
        assert all("Input/output error" in reason for _, reason in lost)
        near = np.asarray(table["flags"]) >> catalog.FLAGS["near_failed_tile"] & 1
        assert near.any() == bool(failed)
        whole, _ = search(opened, Logging(tmp_path / "log"))
    assert failed or len(whole) == len(table)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c(image, command, tmp_path, workers):
    """Ctrl-C, which the terminal sends to all processes: exit 130, one line that says how to go on, and it does."""
    out, log = tmp_path / "cat.parquet", tmp_path / "log"
    run = command(image, "--out", out, "--workers", workers, "-q")
    end = time.monotonic() + 100
    while not log.exists() or log.read_text().count("batch") < 4:
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    error = run.communicate(timeout=100)[1]
    kept = f"what is finished is kept in {out}.partial; add --resume to the same command to go on"
    assert (run.returncode, error) == (130, f"surveycat: interrupted, {kept}\n")
    run = command(image, "--out", out, "--resume", "-q")
    assert (run.communicate(timeout=100)[1], run.returncode) == ("", 0)
    assert len(catalog.read(out)) > 15 and not partial_folder(out).exists()
