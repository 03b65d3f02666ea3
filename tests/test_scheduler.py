"""An existing Dask scheduler: its programs are started as a user starts them, and stopped at bad moments."""

import contextlib
import functools
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import same_datasets, survey, write_cutouts, write_list
from click.testing import CliRunner
from detectors import BAD, BlobDetector, Hanging
from test_pipeline import same_rows

import surveycat
from surveycat import catalog, dispatch
from surveycat.cli import main
from surveycat.errors import OptionError, RunFailed
from surveycat.image import open_image
from surveycat.tiles import TileGrid
from surveycat.unfinished import partial_folder

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}


class Logging(BlobDetector):
    """Slow; notes in a file which process does a batch."""

    batch_size = 2

    def __init__(self, path, seconds=0.0):
        super().__init__()
        self.path, self.seconds = path, seconds

    def note(self, what):
        """Add a line to the file, also from several processes."""
        with open(self.path, "a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def __call__(self, pixels, min_score):
        self.note("batch")
        time.sleep(self.seconds)
        return super().__call__(pixels, min_score)


@functools.lru_cache
def load(path):
    """Load a detector as the network is loaded: kept for the process."""
    detector = Logging(path)
    detector.note("load")
    return detector


class Spec(Logging):
    """Says how to load a detector that notes its loading."""

    def load(self):
        """Give the detector of this process."""
        return load(self.path)


class DyingOnce(Logging):
    """Takes its process with it, at the sixth batch of all."""

    def __call__(self, pixels, min_score):
        found = super().__call__(pixels, min_score)
        done = Path(self.path).read_text().count("batch")
        if done >= 6:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(f"{self.path}.died", os.O_CREAT | os.O_EXCL))
                os._exit(1)
        return found


class Programs:
    """A scheduler and its workers, each in a process of its own."""

    def __init__(self):
        # With their own bounds both end by themselves if the tests are killed.
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--idle-timeout", "300"
        )
        for line in self.scheduler.stderr:
            if match := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
                self.address = match[1]
                break
        threading.Thread(target=self.scheduler.stderr.read, daemon=True).start()  # lest it wait for a reader
        self.workers = []

    def _start(self, *arguments):
        command = [sys.executable, "-m", "dask", *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV, cwd=HERE, start_new_session=True)

    def add_workers(self, count, *options):
        """Start workers with one thread each, and wait until they are known."""
        from distributed import Client

        for _ in range(count):
            limits = "--nthreads", "1", "--death-timeout", "60"
            worker = self._start("worker", self.address, *limits, "--no-dashboard", *options)
            threading.Thread(target=worker.stderr.read, daemon=True).start()
            self.workers.append(worker)
        with Client(self.address, timeout=60) as client:
            client.wait_for_workers(len(self.workers), timeout=120)

    def kill_workers(self):
        """End all workers with their nannies, at once."""
        for worker in self.workers:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(30)
        self.workers = []

    def stop(self):
        """End everything."""
        self.kill_workers()
        os.killpg(self.scheduler.pid, signal.SIGKILL)
        self.scheduler.wait(30)


@pytest.fixture(scope="module")
def two():
    """A scheduler with two workers."""
    programs = Programs()
    try:
        programs.add_workers(2)
        yield programs
    finally:
        programs.stop()


@pytest.fixture
def alone():
    """A scheduler with one worker that nobody starts anew, to be stopped."""
    programs = Programs()
    try:
        programs.add_workers(1, "--no-nanny")
        yield programs
    finally:
        programs.stop()


@pytest.fixture
def image(tmp_path):
    """A dark image file with bright discs, of many batches."""
    pixels = np.full((700, 900, 3), 4, np.uint8)
    y, x = np.mgrid[:700, :900]
    for v, u in np.random.default_rng(3).uniform(20, 680, (25, 2)):
        pixels[np.hypot(y - v, x - u) < 8] = (120, 170, 200)
    np.save(tmp_path / "image.npy", pixels)
    return tmp_path / "image.npy"


def soon(condition, seconds=60):
    """Wait for something, or fail after a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def when_begun(path, action):
    """Do something once a few batches have been begun; join the thread to know that it was done."""

    def act():
        soon(lambda: Path(path).exists() and Path(path).read_text().count("batch") >= 4)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_same_rows_everywhere(image, two, tmp_path):
    """Serial, 2 workers, a worker that dies half-way, 4 workers, shuffled tiles: the same rows, ids and classes."""
    serial = surveycat.run(image, detector=BlobDetector())
    assert len(serial) > 15
    same_rows(serial, surveycat.run(image, detector=Spec(tmp_path / "2"), scheduler=two.address))
    lines = Path(tmp_path / "2").read_text().split("\n")
    processes = [line.split()[1] for line in lines if line.startswith("load")]
    assert len(processes) == len(set(processes)) <= 2, "the model was loaded twice in a process"
    same_rows(serial, surveycat.run(image, detector=DyingOnce(tmp_path / "dying"), scheduler=two.address))
    assert Path(tmp_path / "dying.died").exists()
    two.add_workers(2)
    same_rows(serial, surveycat.run(image, detector=Logging(tmp_path / "4", 0.05), scheduler=two.address))
    assert len(set(re.findall(r"batch (\d+)", Path(tmp_path / "4").read_text()))) == 4
    with open_image(image, scratch=tmp_path / "s") as opened, dispatch.cluster(0, two.address) as client:
        tiles = list(TileGrid(opened.shape).tiles())
        mixed = [tiles[i] for i in np.random.default_rng(1).permutation(len(tiles))]
        one, other = (dispatch.detect(opened, order, BlobDetector(), client) for order in (tiles, mixed))
    assert np.array_equal(one.box, other.box) and np.array_equal(one.bits, other.bits)


def test_hanging_worker_is_ended(image, two, tmp_path):
    """A batch that never comes back costs its worker, not the run, also where the workers belong to others."""
    pixels = np.load(image)
    pixels[10, 10] = BAD
    np.save(tmp_path / "bad.npy", pixels)
    failed = []
    with open_image(tmp_path / "bad.npy") as bad, dispatch.cluster(0, two.address) as client:
        tiles = list(TileGrid(bad.shape).tiles())[:6]
        dispatch.detect(bad, tiles, Hanging(), client, failed=failed, timeout=8)
    assert [(tile.index, reason) for tile, reason in failed] == [(0, "TimeoutError: no answer from any worker for 8 s")]


def test_no_pixels_pass_the_scheduler(image, tmp_path):
    """What is sent for a batch is small beside its pixels, for an array in memory too."""
    with open_image(np.load(image), scratch=tmp_path / "scratch") as opened:
        tiles = list(TileGrid(opened.shape).tiles())[:8]
        sent = pickle.dumps((dispatch._search_remotely, dispatch._ticket(opened), BlobDetector(), tiles, 0.5, None))
    assert len(sent) < 3000 < 8 * 256 * 256 * 3


def test_all_workers_gone(image, alone, tmp_path, monkeypatch):
    """When the last worker goes the run ends with a line, and goes on elsewhere from where it was."""
    monkeypatch.setattr(dispatch, "START_TIMEOUT", 2)
    out, log = tmp_path / "cat.parquet", tmp_path / "log"
    killing = when_begun(log, alone.kill_workers)
    with pytest.raises(RunFailed, match=f"no workers are left at {alone.address}, and none came back in 2 s"):
        surveycat.run(image, out, detector=Logging(log, 0.1), scheduler=alone.address)
    killing.join()
    assert partial_folder(out).is_dir()
    before = log.read_text().count("batch")
    table = surveycat.run(image, out, detector=Logging(log), resume=True)
    same_rows(table, surveycat.run(image, detector=Logging(tmp_path / "whole")))
    whole = (tmp_path / "whole").read_text().count("batch")
    assert log.read_text().count("batch") <= whole + 1 and before >= 4


def test_scheduler_gone(image, alone, tmp_path, monkeypatch):
    """When the scheduler goes the run ends with a line, and can go on."""
    monkeypatch.setattr(dispatch, "CONNECT_TIMEOUT", 5)
    out, log = tmp_path / "cat.parquet", tmp_path / "log"
    killing = when_begun(log, alone.scheduler.kill)
    with pytest.raises(RunFailed, match=f"the connection to the Dask scheduler {alone.address} is lost"):
        surveycat.run(image, out, detector=Logging(log, 0.1), scheduler=alone.address)
    killing.join()
    assert partial_folder(out).is_dir() and not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9 within 1 s"),
        (["--scheduler", "localhost"], "scheduler is 'localhost'; give the address"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "workers 2 and scheduler tcp://127.0.0.1:9"),
    ],
)
def test_no_scheduler_is_one_line(image, tmp_path, monkeypatch, options, words):
    """An address at which nobody answers: one line, soon, and nothing is left behind."""
    monkeypatch.setattr(dispatch, "CONNECT_TIMEOUT", 1)
    result = CliRunner().invoke(main, ["run", str(image), "--out", str(tmp_path / "cat.parquet"), *options])
    assert result.exit_code == 1 and words in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["image.npy"]


def test_scheduler_without_workers_is_one_line(image, alone):
    """A scheduler alone does nothing: the line says what to start."""
    alone.kill_workers()
    with pytest.raises(RunFailed, match=f"has no workers after 1 s; start some: dask worker {alone.address}"):
        with dispatch.cluster(0, alone.address, timeout=1):
            pass


def test_address_with_a_fault_is_refused():
    """The value that came and what is wanted."""
    with pytest.raises(OptionError, match="scheduler is 'http://host'"), dispatch.cluster(0, "http://host"):
        pass


def test_each_process_has_a_gpu(monkeypatch):
    """With GPUs every worker sees one of those that this process may use, in turn, also after it was restarted."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with dispatch.cluster(2) as client:
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["5", "7"]
        before = set(seen)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        soon(lambda: len(client.nthreads()) == 2 and set(client.nthreads()) != before)
        assert sorted(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()) == ["5", "7"]


def test_gpu_memory_is_taken_as_needed():
    """Several processes share a GPU with others: the backends must not take all of its memory."""
    code = "from surveycat.quiet import start_backend; import os; start_backend(); print(dict(os.environ))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "'TF_FORCE_GPU_ALLOW_GROWTH': 'true'" in done.stdout
    assert "'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'" in done.stdout


def test_catalogue_is_written(image, two, tmp_path):
    """From the command's Python twin with a scheduler to a file, as a user does."""
    out = tmp_path / "cat.parquet"
    table = surveycat.run(image, out, detector=BlobDetector(), scheduler=two.address)
    same_rows(table, catalog.read(out))


def test_bulk_gives_the_same_dataset(two, tmp_path):
    """The list is shared between the workers of a scheduler, of which one dies half-way: the dataset of one process."""
    targets, sky = survey(24)
    listed, cutouts = write_list(tmp_path / "list.csv", targets), write_cutouts(tmp_path / "cutouts", targets, sky)
    surveycat.bulk(listed, cutouts, tmp_path / "alone", detector=BlobDetector())
    manifest = surveycat.bulk(
        listed, cutouts, tmp_path / "out", detector=DyingOnce(tmp_path / "dying"), scheduler=two.address
    )
    assert (tmp_path / "dying.died").exists() and manifest["counts"]["failed"] == 0
    same_datasets(tmp_path / "alone", tmp_path / "out")
