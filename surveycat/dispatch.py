"""Run a detector over tiles: in this process, or on Dask workers.

`detect` promises the same detections whatever the number of workers and the order in which they answer. The
plain loop (`_here`) is the reference; `_on_workers` does the same batches elsewhere. Workers open the image
themselves: tiles travel to them, detections come back, pixels never. A batch that fails is done again tile by
tile; a tile that fails twice is recorded with its reason, and the others go on. Every wait has a bound.
"""

import contextlib
import functools
import itertools
import logging
import os
import pickle
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from surveycat.detections import Detections
from surveycat.errors import OptionError, RunFailed
from surveycat.quiet import start_backend
from surveycat.tiles import sub_windows

__all__ = ["cluster", "detect", "loaded"]

BATCH = 8  # tiles, for a detector that does not say how many it likes
IN_FLIGHT = 3  # batches in this process: one in the network, the others being read
IN_FLIGHT_PER_WORKER = 2  # batches handed to the scheduler
TIMEOUT = 600.0  # seconds for a batch
START_TIMEOUT = 120.0  # seconds for workers to come up


def detect(
    image,
    tiles,
    detector,
    workers=0,
    *,
    min_score=0.5,
    timeout=TIMEOUT,
    progress=None,
    failed=None,
    finished=None,
):
    """Find galaxies in tiles of an image.

    A tile in which the detector reaches one of its limits is looked at once more in four windows.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Open image; for workers one from a file, or opened with a scratch folder.
    tiles : iterable of `~surveycat.tiles.Tile`
        Where to look, on any level; all of one size.
    detector : callable or `~surveycat.mrcnn.detector.DetectorSpec`
        ``detector(pixels, min_score)``, with pixels uint8 of shape (B, S, S, 3), gives the `Detections` of a
        batch in pixels of each tile, ``tile`` being the index in the batch. What has a method ``load`` is
        loaded once in each process; for workers it should have one, since it travels with every batch.
    workers : int or `distributed.Client`, optional
        0 works in this process, N starts that many for this call, a client (see `cluster`) stays up.
    min_score : float, optional
        Passed to the detector.
    timeout : float, optional
        Seconds that any one batch may take.
    progress : callable, optional
        Called with the number of tiles done and their total.
    failed : list, optional
        Gets (`~surveycat.tiles.Tile`, reason) for each tile that could not be searched, and the others go on.
        Without it such a tile is an error.
    finished : `~surveycat.unfinished.Finished`, optional
        Batches that need not be done again; it gets each one as soon as it is done.

    Returns
    -------
    `~surveycat.detections.Detections`
        In pixels of the whole image at the tile's level, ordered by tile, ``cut`` and ``centre_distance``
        filled. ``capped`` holds the tiles, or windows of them, in which a limit was reached to the end.

    Raises
    ------
    RunFailed
        If a tile could not be searched and `failed` was not given, or reading does not end.
    """
    tiles = list(tiles)
    with cluster(workers) if isinstance(workers, int) else contextlib.nullcontext(workers) as client:
        if client is None:
            detector = loaded(detector)
            outcomes = functools.partial(_here, image, detector, min_score, timeout)
        else:
            outcomes = functools.partial(_on_workers, client, _ticket(image), detector, min_score, timeout)
        if finished is not None:
            outcomes = functools.partial(_only_new, finished, outcomes)
        batch_size = getattr(detector, "batch_size", BATCH)
        found, lost = _search(outcomes, tiles, batch_size, progress)
        found, lost_windows = _with_windows(outcomes, tiles, batch_size, found)
    lost += lost_windows
    if lost and failed is None:
        tile, reason = lost[0]
        raise RunFailed(f"{image.name}: tile {tile.box} of level {tile.level} failed: {reason}")
    if lost:
        failed += lost
    return found


@contextlib.contextmanager
def cluster(workers, timeout=START_TIMEOUT):
    """Start worker processes on this machine, each with its share of the cores, and end them afterwards.

    Parameters
    ----------
    workers : int
        How many; 0 starts none.
    timeout : float, optional
        Seconds for them to come up.

    Yields
    ------
    `distributed.Client` or None
        None without workers.

    Raises
    ------
    OptionError
        If the number is negative.
    RunFailed
        If the workers do not come up in time.
    """
    if workers < 0:
        raise OptionError(f"workers is {workers}; give 0 to work in this process, or a number of processes")
    if workers == 0:
        yield None
        return
    import dask
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        # A batch that ends two workers is given back, to be tried tile by tile.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 1}))
        try:
            local = stack.enter_context(LocalCluster(**_local_options(workers)))
            client = stack.enter_context(Client(local, timeout=timeout))
            client.wait_for_workers(workers, timeout=timeout)
        except (TimeoutError, OSError) as error:
            raise RunFailed(f"{workers} workers did not start: {error}; try fewer, or 0") from error
        yield client


def _local_options(workers):
    """Say how the processes of a local cluster are to be: one thread for tasks each, the cores shared."""
    cores = str(max(1, len(os.sched_getaffinity(0)) // workers))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), cores)
    return {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": 0,  # few batches are in flight, and a worker must not be ended for TensorFlow's size
        "silence_logs": logging.CRITICAL,  # what goes wrong in a worker comes back as the reason of a tile
        "env": {**threads, "TF_NUM_INTEROP_THREADS": "1"},
    }


# What both ways of working share ----------------------------------------------------------------------------


def loaded(detector):
    """Give the callable itself, loaded in this process where that is needed.

    Parameters
    ----------
    detector : callable or `~surveycat.mrcnn.detector.DetectorSpec`
        What has a method ``load`` is loaded; it keeps what it loads for the process.

    Returns
    -------
    callable
        The detector.
    """
    if not hasattr(detector, "load"):
        return detector
    start_backend()
    return detector.load()


def _batches(tiles, size):
    """Split tiles into lists of `size`, the last one shorter."""
    tiles = iter(tiles)
    while batch := list(itertools.islice(tiles, size)):
        yield batch


def _read(image, tiles):
    """Read the pixels of a batch, uint8 (B, S, S, 3)."""
    return np.stack([image.read(tile.box, tile.level) for tile in tiles])


def _search(outcomes, tiles, batch_size, progress=None):
    """Search tiles in batches, then once more one by one those of batches that failed.

    `outcomes` takes an iterable of batches and how many may be under way, and yields (batch, Detections
    or Exception) in any order. A tile is tried alone when nothing else is under way: whatever is on a
    worker that goes down is blamed for it. Gives the detections, and the tiles that failed with their
    reasons, both in the order of tiles.
    """
    parts, again, lost, done = [], [], [], 0
    for batch, answer in outcomes(_batches(tiles, batch_size)):
        if isinstance(answer, Exception):
            again += batch
            continue
        parts.append(answer)
        done += len(batch)
        if progress:
            progress(done, len(tiles))
    for (tile,), answer in outcomes(_batches(again, 1), in_flight=1):
        if isinstance(answer, Exception):
            lost.append((tile, f"{type(answer).__name__}: {answer}"))
        else:
            parts.append(answer)
    found = Detections.concatenate(parts)
    return found.select(np.argsort(found.tile, kind="stable")), sorted(lost, key=lambda pair: pair[0].index)


def _only_new(finished, outcomes, batches, **options):
    """Yield (batch, outcome) as `outcomes` does, which is asked only for what is not finished already."""
    known = deque()

    def new():
        for batch in batches:
            answer = finished.get(batch)
            if answer is None:
                yield batch
            else:
                known.append((batch, answer))

    for batch, answer in outcomes(new(), **options):
        if not isinstance(answer, Exception):
            finished.put(batch, answer)
        yield batch, answer
        while known:
            yield known.popleft()
    yield from known


def _with_windows(outcomes, tiles, batch_size, found):
    """Add what is found in windows of the tiles that hit a cap; gives the windows that failed, too.

    The network is shown each window with real pixels all round, up to the size of a tile. What it finds out
    there is left to the neighbours.
    """
    capped = set(found.capped.tolist())
    windows = {w.index: w for tile in tiles if tile.index in capped for w in sub_windows(tile)}
    if not windows:
        return found, []
    shown = [window.padded(tiles[0].size) for window in windows.values()]
    closer, lost = _search(outcomes, shown, batch_size)
    boxes = np.array([windows[index].box for index in closer.tile.tolist()]).reshape(-1, 4)
    centre = (closer.box[:, :2] + closer.box[:, 2:]) / 2
    inside = ((centre >= boxes[:, :2]) & (centre < boxes[:, 2:])).all(axis=1)
    return Detections.concatenate([found.replace(capped=()), closer.select(inside)]), lost


# In this process --------------------------------------------------------------------------------------------


def _here(image, detector, min_score, timeout, batches, in_flight=IN_FLIGHT):
    """Yield (batch, outcome) in order; a thread reads the next batches while the network works on one."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="surveycat-read")
    waiting = deque()
    try:
        for batch in batches:
            waiting.append((batch, reader.submit(_read, image, batch)))
            if len(waiting) == in_flight:
                yield _outcome(image, detector, min_score, timeout, *waiting.popleft())
        while waiting:
            yield _outcome(image, detector, min_score, timeout, *waiting.popleft())
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _outcome(image, detector, min_score, timeout, batch, reading):
    """Run the network on a batch that is being read; what it raises is an outcome too."""
    try:
        return batch, detector(reading.result(timeout), min_score).place(batch, image)
    except Exception as error:  # of any kind: a detector or a file is not ours
        if isinstance(error, TimeoutError) and not reading.done():  # all later batches wait behind this one
            message = f"{image.name}: reading did not end in {timeout:g} s; is the disk there?"
            raise RunFailed(message) from error
        return batch, error


# On workers -------------------------------------------------------------------------------------------------


def _ticket(image):
    """Say how to open an image, in few bytes that are the same each time."""
    source = image.source
    if isinstance(source.image, np.ndarray):
        raise OptionError("an array does not travel to workers; open it with a scratch folder or save it")
    return pickle.dumps(source)


@functools.lru_cache(maxsize=1)
def _opened(ticket):
    """Open an image in a worker process, which then keeps it until it is asked for another."""
    return pickle.loads(ticket).open()


def _search_remotely(ticket, detector, tiles, min_score):
    """Do a batch in a worker process."""
    image = _opened(ticket)
    return loaded(detector)(_read(image, tiles), min_score).place(tiles, image)


def _on_workers(client, ticket, detector, min_score, timeout, batches, in_flight=None):
    """Yield (batch, outcome) as workers finish them, with few batches in flight at any time."""
    from distributed import wait

    batches, pending = iter(batches), {}
    in_flight = in_flight or IN_FLIGHT_PER_WORKER * max(1, len(client.nthreads()))
    while True:
        for batch in itertools.islice(batches, in_flight - len(pending)):
            task = client.submit(_search_remotely, ticket, detector, batch, min_score, pure=False)
            pending[task] = batch
        if not pending:
            return
        try:
            done = wait(list(pending), timeout=timeout, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            yield from _given_up(client, pending, timeout)
            continue
        for task in done:
            yield pending.pop(task), task.exception(timeout) or task.result(timeout)


def _given_up(client, pending, timeout):
    """Restart workers of which none has answered in time, and count what they were doing as failed."""
    client.restart(timeout=START_TIMEOUT)
    for batch in pending.values():
        yield batch, TimeoutError(f"no answer from any worker for {timeout:g} s")
    pending.clear()
