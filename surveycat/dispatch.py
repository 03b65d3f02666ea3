"""Run a detector over tiles: in this process, or on Dask workers.

`detect` promises the same detections whatever the number of workers and the order in which they answer. The
plain loop (`_here`) is the reference; `on_workers` does the same batches elsewhere. Workers open the image
themselves: tiles travel to them, detections come back, pixels never. Whoever does a batch puts it on the disk
before it begins another, so that a crash costs each process the one it is at. A batch that fails is done again
tile by tile; a tile that fails twice is recorded with its reason, and the others go on. Every wait has a bound.
"""

import contextlib
import functools
import itertools
import logging
import os
import pickle
import re
import signal
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surveycat.detections import Detections
from surveycat.errors import OptionError, OutputError, RunFailed, SurveycatError, WeightsError
from surveycat.tiles import sub_windows

__all__ = ["BATCH", "Network", "ask", "at_work", "cluster", "detect", "loaded", "n_workers", "network_of", "on_workers"]

BATCH = 8  # tiles, for a detector that does not say how many it likes
IN_FLIGHT = 3  # batches in this process: one in the network, the others being read
IN_FLIGHT_PER_WORKER = 2  # batches handed to the scheduler
TIMEOUT = 600.0  # seconds for a batch
START_TIMEOUT = 120.0  # seconds for workers to come up, or to come back
CONNECT_TIMEOUT = 30.0  # seconds for a scheduler to answer
POLL = 1.0  # seconds between looks whether there are workers at all
FATAL = (OutputError, WeightsError)  # not the fault of a tile: the next one would end in the same way

log = logging.getLogger(__name__)
at_work = threading.Lock()  # one batch at a time in a process, also where Dask gives it several threads


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
        Batches that need not be done again; it gets each one as soon as it is done. Workers write to the same
        folder.

    Returns
    -------
    `~surveycat.detections.Detections`
        In pixels of the whole image at the tile's level, ordered by tile, ``cut`` and ``centre_distance``
        filled. ``capped`` holds the tiles, or windows of them, in which a limit was reached to the end.

    Raises
    ------
    RunFailed
        If a tile could not be searched and `failed` was not given, if reading does not end, or if no workers
        are left.
    OutputError
        If a finished batch cannot be kept, for instance because the disk is full.
    """
    tiles = list(tiles)
    batch_size = getattr(detector, "batch_size", BATCH)
    with cluster(workers) if isinstance(workers, int) else contextlib.nullcontext(workers) as client:
        if client is None:
            outcomes = functools.partial(_here, image, loaded(detector), min_score, finished, timeout)
        else:
            outcomes = functools.partial(
                _search_on_workers, client, _ticket(image), detector, min_score, finished, timeout
            )
        if finished is not None:
            outcomes = functools.partial(_only_new, finished, outcomes)
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
def cluster(workers, scheduler=None, timeout=None):
    """Start worker processes on this machine and end them afterwards, or use those of a running scheduler.

    Each process of this machine has its share of the cores and, where there are GPUs, one of them.

    Parameters
    ----------
    workers : int
        How many; 0 starts none.
    scheduler : str, optional
        Address of a Dask scheduler with workers that see the same files, ``tcp://host:port``; instead of `workers`.
    timeout : float, optional
        Seconds for the scheduler to answer and for workers to be there.

    Yields
    ------
    `distributed.Client` or None
        None without workers.

    Raises
    ------
    OptionError
        If the number is negative, the address is none, or both are given.
    RunFailed
        If the workers, or the scheduler, do not come up in time.
    """
    if workers < 0:
        raise OptionError(f"workers is {workers}; give 0 to work in this process, or a number of processes")
    if scheduler is not None:
        if workers:
            raise OptionError(f"workers {workers} and scheduler {scheduler}: give one of the two")
        with _connected(scheduler, timeout or CONNECT_TIMEOUT) as client:
            yield client
    elif workers:
        with _started(workers, timeout or START_TIMEOUT) as client:
            yield client
    else:
        yield None


@contextlib.contextmanager
def _started(workers, timeout):
    """Start workers on this machine and yield their client."""
    import dask
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        # A batch that ends two workers is given back, to be tried tile by tile.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 1}))
        try:
            local = stack.enter_context(LocalCluster(**_local_options(workers)))
            client = stack.enter_context(Client(local, timeout=timeout))
            client.wait_for_workers(workers, timeout=timeout)
        except (TimeoutError, OSError, RuntimeError) as error:
            raise RunFailed(f"{workers} workers did not start: {error}; try fewer, or 0") from error
        client.register_plugin(_worker_plugin(_gpus()))
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


def _gpus():
    """Name the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` does; none where there are none."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name for name in allowed.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _worker_plugin(gpus):
    """Settle each worker process, also after a restart: one GPU of those there are, and Ctrl-C is left to us."""
    from distributed import WorkerPlugin

    class Settled(WorkerPlugin):
        name = "surveycat-settled"

        def setup(self, worker):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; we end the workers
            if gpus:  # before the backend looks for them
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]

    return Settled()


@contextlib.contextmanager
def _connected(scheduler, timeout):
    """Yield a client of a scheduler that runs already and has workers."""
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    if not re.fullmatch(r"(tcp|tls)://[^\s/:]+:\d+|(tcp|tls)://\[[^\s/]+\]:\d+", scheduler):
        raise OptionError(f"scheduler is {scheduler!r}; give the address that it prints, as tcp://host:port")
    # Dask's own account of a lost connection is a traceback; ours is a line.
    with silence_logging_cmgr(logging.CRITICAL + 1), contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(scheduler, timeout=timeout))
        except (TimeoutError, OSError) as error:
            raise RunFailed(
                f"no Dask scheduler answers at {scheduler} within {timeout:g} s; check the address, or start one: "
                "dask scheduler"
            ) from error
        try:
            client.wait_for_workers(1, timeout=timeout)
        except (TimeoutError, OSError) as error:
            raise RunFailed(
                f"the scheduler {scheduler} has no workers after {timeout:g} s; start some: dask worker {scheduler}"
            ) from error
        yield client


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
    return detector.load() if hasattr(detector, "load") else detector


@dataclass(frozen=True)
class Network:
    """What is known of a detector that was loaded.

    Parameters
    ----------
    weights_id : str
        Name of its weights, or of its type.
    sha256 : str
        Their checksum, "" for none.
    versions : dict of str
        Versions of what computes where it was loaded; empty for a detector that does not say.
    """

    weights_id: str
    sha256: str
    versions: dict


def network_of(detector, client=None, timeout=TIMEOUT):
    """Load a detector where it is going to work, and say what it is.

    With workers it is loaded in one of them, so that this process needs no memory for it, and bad weights are
    refused before the work begins.

    Parameters
    ----------
    detector : callable or `~surveycat.mrcnn.detector.DetectorSpec`
        As `detect` takes it.
    client : `distributed.Client`, optional
        The workers.
    timeout : float, optional
        Seconds that it may take.

    Returns
    -------
    Network

    Raises
    ------
    WeightsError
        If the weights cannot be used.
    RunFailed
        If a worker cannot load it.
    """
    if client is None:
        return _known(detector)
    task = client.submit(_known, detector, pure=False)
    if not _next_done(client, [task], timeout):
        raise RunFailed(f"the workers did not load the network in {timeout:g} s; are they hanging?")
    answer = _answer(client, task, timeout)
    if isinstance(answer, SurveycatError):
        raise answer
    if isinstance(answer, Exception):
        raise RunFailed(
            f"the workers cannot load the network ({type(answer).__name__}: {answer}); is the same surveycat "
            "installed there?"
        ) from answer
    return answer


def _known(detector):
    with at_work:
        network = loaded(detector)
    return Network(
        getattr(network, "weights_id", type(network).__name__),
        getattr(network, "sha256", ""),
        getattr(network, "versions", {}),
    )


def ask(network, pixels, min_score):
    """Ask about a batch; where memory is short, in halves, and never again about so many tiles at once.

    Parameters
    ----------
    network : callable
        A detector that was loaded, as `detect` takes it.
    pixels : ndarray of uint8, shape (B, S, S, 3)
        Tiles.
    min_score : float
        Passed to it.

    Returns
    -------
    `~surveycat.detections.Detections`
    """
    size = getattr(network, "batch_size", len(pixels))
    try:
        return _in_pieces(network, pixels, min_score, size)
    except Exception as error:
        if size == 1 or not _is_out_of_memory(error):
            raise
    # Out here the error is gone, and with it what it held in memory.
    network.batch_size = size // 2  # also the size to which the network fills up a smaller batch
    log.warning("%d tiles at a time need more memory than there is; going on with %d", size, size // 2)
    return ask(network, pixels, min_score)


def _in_pieces(network, pixels, min_score, size):
    """Ask about a few tiles at a time; gives what the detector would say of all at once."""
    parts = []
    for start in range(0, len(pixels), size):
        part = network(pixels[start : start + size], min_score)
        parts.append(part.replace(tile=part.tile + start, capped=part.capped + start))
    return Detections.concatenate(parts)


def _is_out_of_memory(error):
    """Tell the backends' errors for too little memory by their names: none need be installed."""
    if isinstance(error, MemoryError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"ResourceExhaustedError", "OutOfMemoryError"}:  # TensorFlow, torch
        return True
    words = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")  # JAX, and torch without a GPU
    return "RuntimeError" in names and any(word in str(error) for word in words)


def _do(image, network, tiles, pixels, min_score, finished):
    """Do a batch that has been read, and keep what was found before anything else is begun."""
    found = ask(network, pixels, min_score).place(tiles, image)
    if finished is not None:
        finished.put(tiles, found)
    return found


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

    for outcome in outcomes(new(), **options):
        yield outcome
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


def _here(image, network, min_score, finished, timeout, batches, in_flight=IN_FLIGHT):
    """Yield (batch, outcome) in order; a thread reads the next batches while the network works on one."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="surveycat-read")
    waiting = deque()
    outcome = functools.partial(_outcome, image, network, min_score, finished, timeout)
    try:
        for batch in batches:
            waiting.append((batch, reader.submit(_read, image, batch)))
            if len(waiting) == in_flight:
                yield outcome(*waiting.popleft())
        while waiting:
            yield outcome(*waiting.popleft())
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _outcome(image, network, min_score, finished, timeout, batch, reading):
    """Run the network on a batch that is being read; what it raises is an outcome too."""
    try:
        return batch, _do(image, network, batch, reading.result(timeout), min_score, finished)
    except FATAL:
        raise
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


def _search_remotely(ticket, detector, tiles, min_score, finished):
    """Do a batch in a worker process."""
    with at_work:
        image, network = _opened(ticket), loaded(detector)
    pixels = _read(image, tiles)
    with at_work:
        # Another worker may have done it and died before its answer was fetched.
        found = finished.get(tiles) if finished is not None else None
        return _do(image, network, tiles, pixels, min_score, finished) if found is None else found


def on_workers(client, do, pieces, in_flight=None, timeout=TIMEOUT):
    """Have Dask workers do some work, with few pieces of it in flight at any time.

    Parameters
    ----------
    client : `distributed.Client`
        The workers.
    do : callable
        ``do(piece)`` gives the answer to a piece; it travels with each, so it should pickle small.
    pieces : iterable
        Taken from as workers get free.
    in_flight : int, optional
        Pieces that are handed to the scheduler at a time, two for each worker by default.
    timeout : float, optional
        Seconds that any one piece may take; then workers that are silent are ended.

    Yields
    ------
    piece
        A piece, in the order in which they get done.
    answer
        The answer to it, or the exception that it ended in.

    Raises
    ------
    RunFailed
        If the scheduler is gone, or no workers are left.
    """
    pieces, pending = iter(pieces), {}
    while True:
        most = in_flight or IN_FLIGHT_PER_WORKER * max(1, n_workers(client))
        for piece in itertools.islice(pieces, max(0, most - len(pending))):
            pending[client.submit(do, piece, pure=False)] = piece
        if not pending:
            return
        done = _next_done(client, pending, timeout)
        if not done:
            yield from _given_up(client, pending, timeout)
        for task in done:
            answer = _answer(client, task, timeout)
            yield pending.pop(task), answer


def n_workers(client):
    """Count the workers that there are now.

    Parameters
    ----------
    client : `distributed.Client`
        Whose they are.

    Returns
    -------
    int

    Raises
    ------
    RunFailed
        If the scheduler is gone.
    """
    with _same_scheduler(client):
        return len(client.nthreads())


def _search_on_workers(client, ticket, detector, min_score, finished, timeout, batches, in_flight=None):
    """Yield (batch, outcome) as workers finish them."""
    do = functools.partial(_search_remotely, ticket, detector, min_score=min_score, finished=finished)
    for batch, answer in on_workers(client, do, batches, in_flight, timeout):
        if isinstance(answer, FATAL):
            raise answer
        yield batch, answer


def _next_done(client, tasks, timeout):
    """Wait until some tasks are done and give these, or none after the timeout; workers that start have longer."""
    from distributed import wait

    now = time.monotonic()
    end, alone_until = now + timeout, now + START_TIMEOUT
    while now < end:
        with _same_scheduler(client):
            with contextlib.suppress(TimeoutError):
                return wait(list(tasks), timeout=min(POLL, end - now), return_when="FIRST_COMPLETED").done
            now, workers = time.monotonic(), client.nthreads()
        if workers:
            alone_until = now + START_TIMEOUT
            continue
        if now > alone_until:
            raise RunFailed(f"no workers are left at {_address(client)}, and none came back in {START_TIMEOUT:g} s")
        end = now + timeout
    return ()


def _answer(client, task, timeout):
    """Give the result of a task that is done, or what it raised.

    Its worker may die before the answer is fetched, and with it the answer: then another has to do the task again.
    """
    end, patience = time.monotonic() + timeout, POLL
    while time.monotonic() < end:
        with _same_scheduler(client), contextlib.suppress(TimeoutError):  # an OSError, too, but only the wait's
            error = task.exception(patience)
            if isinstance(error, CancelledError):  # nobody did it: no fault of the tiles
                raise error
            return error or task.result(patience)
        _next_done(client, [task], timeout)
        patience *= 2
    return TimeoutError(f"no answer from any worker for {timeout:g} s")


@contextlib.contextmanager
def _same_scheduler(client):
    """Say it in a line when the scheduler is gone."""
    try:
        yield
    except (CancelledError, OSError, ValueError) as error:  # dask's CommClosedError is an OSError
        if isinstance(error, ValueError) and client.status == "running":  # not that the client has given up
            raise
        raise RunFailed(f"the connection to the Dask scheduler {_address(client)} is lost; is it running?") from error


def _address(client):
    return client.scheduler.address if client.scheduler else "that was given"


def _given_up(client, pending, timeout):
    """End workers of which none has answered in time, and count what they were doing as failed."""
    keys = {task.key for task in pending}
    with _same_scheduler(client):
        busy = [worker for worker, doing in client.processing().items() if keys & set(doing)]
        client.cancel(list(pending))
        _end(client, busy)
    for batch in pending.values():
        yield batch, TimeoutError(f"no answer from any worker for {timeout:g} s")
    pending.clear()


def _end(client, workers):
    """End worker processes at once; their nannies start them anew. Those of others may have none, and stay away."""
    if client.cluster is not None:
        for nanny in client.cluster.workers.values():
            if nanny.worker_address in workers:
                os.kill(nanny.pid, signal.SIGKILL)
    elif workers:
        client.run(_exit, workers=workers, wait=False)


async def _exit():
    """End a worker process; Dask waits only for what is no coroutine."""
    os._exit(1)
