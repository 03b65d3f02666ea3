"""Going on after an interruption: nothing lost, nothing done twice, nothing mixed up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectors import BlobDetector
from test_pipeline import same_rows

import surveycat
from surveycat import catalog
from surveycat.errors import OptionError, OutputError
from surveycat.unfinished import Finished, partial_folder

SHAPE = (900, 1100)


class Counting(BlobDetector):
    """Counts its batches, and may be told to stop at one of them as Ctrl-C does."""

    batch_size = 2

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.calls = stop_at, 0

    def __call__(self, pixels, min_score):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return super().__call__(pixels, min_score)


class Logging(BlobDetector):
    """Slow; notes each batch in a file, also from another process."""

    batch_size = 1

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __call__(self, pixels, min_score):
        with open(self.path, "a") as file:
            file.write("batch\n")
        time.sleep(0.02)
        return super().__call__(pixels, min_score)


@pytest.fixture
def image(tmp_path):
    """A dark image file with bright discs."""
    pixels = np.full((*SHAPE, 3), 4, np.uint8)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for v, u in np.random.default_rng(3).uniform(20, 880, (25, 2)):
        pixels[np.hypot(y - v, x - u) < 8] = (120, 170, 200)
    np.save(tmp_path / "image.npy", pixels)
    return tmp_path / "image.npy"


def interrupted(image, out, stop_at=4, **options):
    """Run until some batches are done, and then as if Ctrl-C was pressed."""
    with pytest.raises(KeyboardInterrupt):
        surveycat.run(image, out, detector=Counting(stop_at), **options)
    assert partial_folder(out).is_dir() and not out.exists()


def test_resume_does_only_the_rest(image, tmp_path):
    """What is finished is not searched again, and the rows are those of an undisturbed run."""
    out, undisturbed, rest = tmp_path / "cat.parquet", Counting(), Counting()
    whole = surveycat.run(image, detector=undisturbed)
    interrupted(image, out)
    table = surveycat.run(image, out, detector=rest, resume=True)
    assert rest.calls == undisturbed.calls - 4
    same_rows(whole, table, tolerance=0)
    assert not partial_folder(out).exists() and len(catalog.read(out)) == len(table)


def test_unfinished_run_is_not_passed_over(image, tmp_path):
    """Hours of work must not be lost by forgetting an option: the line names both ways out."""
    out = tmp_path / "cat.parquet"
    interrupted(image, out)
    with pytest.raises(OutputError, match="cat.parquet.partial holds an unfinished run; add --resume .* --overwrite"):
        surveycat.run(image, out, detector=Counting())
    afresh = Counting()
    surveycat.run(image, out, detector=afresh, overwrite=True)
    assert afresh.calls > 4 and out.exists() and not partial_folder(out).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_score": 0.7}, "options.min_score 0.5, not 0.7"),
        ({"region": "0,0,600,600"}, "input.shape|options.region"),
        ({"batch": 3}, "grid.batch 2, not 3"),
        ({"weights": "other"}, "weights_sha256 , not other"),
        ({"versions": {"jax": "0.4"}}, "versions.jax None, not 0.4"),
        ({"input": True}, "input.sha256"),
    ],
)
def test_other_run_is_refused(image, tmp_path, change, words):
    """Answers under two options, weights or inputs must never be mixed; the difference is named."""
    out, detector = tmp_path / "cat.parquet", Counting()
    interrupted(image, out)
    detector.batch_size = change.pop("batch", 2)
    detector.sha256, detector.versions = change.pop("weights", ""), change.pop("versions", {})
    if change.pop("input", False):
        np.save(image, np.load(image)[::-1])
    with pytest.raises(OutputError, match=words):
        surveycat.run(image, out, detector=detector, resume=True, **change)
    assert partial_folder(out).is_dir() and detector.calls == 0


def test_damaged_batch_is_searched_again(image, tmp_path):
    """A finished batch is verified before it is skipped."""
    out, undisturbed, rest = tmp_path / "cat.parquet", Counting(), Counting()
    whole = surveycat.run(image, detector=undisturbed)
    interrupted(image, out)
    batches = sorted(partial_folder(out).glob("*/batch-*.npz"))
    content = bytearray(batches[0].read_bytes())
    content[len(content) // 2] ^= 255
    batches[0].write_bytes(content)
    batches[1].write_bytes(batches[1].read_bytes()[:100])
    same_rows(whole, surveycat.run(image, out, detector=rest, resume=True), tolerance=0)
    assert rest.calls == undisturbed.calls - 2


def test_nothing_to_go_on_with(image, tmp_path):
    """`--resume` may always be given; a finished catalogue is kept all the same."""
    out = tmp_path / "cat.parquet"
    assert len(surveycat.run(image, out, detector=Counting(), resume=True))
    with pytest.raises(OutputError, match="exists already"):
        surveycat.run(image, out, detector=Counting(), resume=True)
    with pytest.raises(OptionError, match="both resume and overwrite"):
        surveycat.run(image, out, detector=Counting(), resume=True, overwrite=True)
    with pytest.raises(OptionError, match="without an output"):
        surveycat.run(image, detector=Counting(), resume=True)


def test_full_disk_is_an_error_in_one_line(tmp_path, monkeypatch):
    """A disk that fills up while batches are kept ends the run with the reason, and leaves no half a file."""
    finished = Finished(tmp_path / "0", {})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        finished.put([], BlobDetector()(np.zeros((0, 9, 9, 3), np.uint8), 0.5))
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["manifest.json"]


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_unfinished import Logging
import surveycat
if __name__ == "__main__":
    image, out, log = sys.argv[1:]
    surveycat.run(image, out, detector=Logging(log), workers={workers}, resume=True)
"""


@pytest.mark.parametrize(("workers", "kills"), [(0, 10), (2, 2)])
def test_kill_at_any_moment(image, tmp_path, workers, kills):
    """After `kill -9` the run goes on: the same rows, and each process does at most one batch again."""
    out, log, rng = tmp_path / "cat.parquet", tmp_path / "calls", np.random.default_rng(kills)
    whole = surveycat.run(image, detector=Logging(tmp_path / "undisturbed"))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent), workers=workers))
    command = [sys.executable, program, image, out, log]
    for _ in range(kills):
        before = len(log.read_text().split()) if log.exists() else 0
        run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for_lines(log, before + rng.integers(2, 4), run)
        time.sleep(rng.uniform(0, 0.04))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(30)
        assert not out.exists() and partial_folder(out).is_dir()
    subprocess.run(command, check=True, timeout=200)
    same_rows(whole, catalog.read(out))
    again = len(log.read_text().split()) - len((tmp_path / "undisturbed").read_text().split())
    assert again <= kills * max(1, workers)


def wait_for_lines(path, count, run, seconds=120):
    """Wait until a file has that many lines, or fail after a while."""
    end = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().split()) < count:
        assert time.monotonic() < end and run.poll() is None, "the run does not get on"
        time.sleep(0.005)
