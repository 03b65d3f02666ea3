"""From a list of targets to one dataset: their cutouts are fetched, searched and measured many at a time.

    each target          -> an outcome            `surveycat.outcome`, in this process or on Dask workers
    some hundred of them -> a part on the disk    a thread beside it
    all parts            -> the dataset           `surveycat.dataset`

The dataset does not depend on the number of workers, on the order in which targets are done, or on how often the run
was interrupted. Workers get pieces of the list, and open the pictures themselves.
"""

import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from surveycat import __version__
from surveycat.cutouts import Survey, file_scale, source_of
from surveycat.dataset import Store, check_place, is_outcome, rows_table
from surveycat.dispatch import TIMEOUT, at_work, cluster, n_workers, network_of, on_workers
from surveycat.errors import OptionError, RunFailed, SurveycatError
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.outcome import DOWNLOAD, Job, Outcome, in_one_line, nothing, outcomes
from surveycat.partitions import plain
from surveycat.pipeline import check_min_score
from surveycat.sampling import FINEST, WANTED
from surveycat.skyserver import SCALE
from surveycat.targets import Targets, columns_of, read_targets

__all__ = ["bulk"]

PART = 512  # targets in a part
PART_SECONDS = 60.0  # after which what is done is kept, whatever its number
PIECE_SECONDS = 30.0  # of work that a worker gets at a time
PIECE_TIMEOUT = 4 * TIMEOUT  # seconds for a piece, which may be one large image
SILENT = 40  # failures of the service in a row after which it counts as gone
ORDERS = 0, 10

log = logging.getLogger(__name__)


def bulk(
    targets,
    images=None,
    out=None,
    *,
    size=256,
    pixel_scale=SCALE,
    image_scale=None,
    mapping=None,
    id_column=None,
    ra_column=None,
    dec_column=None,
    keep=(),
    weights="compact",
    preset=None,
    detector=None,
    min_score=0.5,
    workers=0,
    scheduler=None,
    order=4,
    service=None,
    resume=False,
    overwrite=False,
    retry_failed=False,
    progress=None,
):
    """Search the cutouts of many targets and write one dataset of what is in them.

    Parameters
    ----------
    targets : path-like
        The list: any table with an identifier and a position, or with a column ``image`` of images that know where
        they are.
    images : path-like or str, optional
        Where the cutouts are: see `surveycat.cutouts.source_of`; for a list of images the folder in which they are, by
        default the current one.
    out : path-like
        Folder of the dataset, see `surveycat.dataset`.
    size : int, optional
        Side of cutouts that are asked of SkyServer, pixels.
    pixel_scale : float, optional
        Arcsec per pixel at which cutouts are searched; files of another scale are resampled.
    image_scale : float or str, optional
        Scale of the files, a column of the list that has it, or ``gz2``; that of the run by default.
    mapping : path-like, optional
        For a zip: which file is of which target.
    id_column, ra_column, dec_column : str, optional
        Columns of the list; found by name by default.
    keep : sequence of str, optional
        Columns of the list that rows on targets get.
    weights, preset, detector, min_score, workers, scheduler
        As in `surveycat.run`.
    order : int, optional
        Order of the HEALPix cells by which the dataset is divided.
    service : dict, optional
        Arguments of `~surveycat.skyserver.SkyServer`.
    resume : bool, optional
        Go on with an unfinished run, or add what is new in the list to a finished one.
    overwrite : bool, optional
        Start afresh.
    retry_failed : bool, optional
        With `resume`: try again what failed before.
    progress : callable, optional
        Called with the numbers of targets done, of those that failed, and of all.

    Returns
    -------
    dict
        The manifest: counts, partitions, versions, options.

    Raises
    ------
    SurveycatError
        If an input, an option or the output cannot be used, or the service is gone. What is done is kept.
    """
    started = time.monotonic()
    _check_options(out, size, pixel_scale, min_score, order, resume, retry_failed)
    check_place(out, resume, overwrite)
    source, told, columns = _source(targets, images, size, pixel_scale, image_scale, mapping, service, keep)
    todo = _located(read_targets(targets, id_column, columns, ra_column, dec_column), targets, images)
    detector = detector or DetectorSpec(str(weights), preset=preset)
    job = Job(None if todo.images else source, told, pixel_scale, detector, min_score)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(cluster(workers, scheduler))
        made_with = _made_with(job, network_of(detector, client), size, todo)
        store = stack.enter_context(contextlib.closing(Store(out, made_with, resume, overwrite)))
        _work(client, job, todo, store, retry_failed, progress)
        about = {
            "list": {"path": str(targets), "rows": todo.n_rows},
            "kept_columns": list(keep),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run_seconds": round(time.monotonic() - started, 1),
        }
        log.info("putting the dataset together")
        return store.publish(todo, list(keep), todo.refused, order, about)


# Before the work ---------------------------------------------------------------------------------------


def _check_options(out, size, pixel_scale, min_score, order, resume, retry_failed):
    """Refuse options that cannot be meant."""
    if retry_failed and not resume:
        raise OptionError("retry-failed goes with resume: add --resume to go on with what is there")
    if out is None:
        raise OptionError("no output was given; name a folder by --out")
    if not 64 <= size <= 2048:
        raise OptionError(f"size is {size}; give 64 to 2048 pixels")
    if not 0.015 <= pixel_scale <= 60:
        raise OptionError(f"pixel-scale is {pixel_scale:g}; give 0.015 to 60 arcsec")
    if pixel_scale * FINEST < SCALE * WANTED:
        log.warning(
            'cutouts are searched at %g"/px, finer than the network knows: that of SDSS is %g', pixel_scale, SCALE
        )
    check_min_score(min_score)
    if not ORDERS[0] <= order <= ORDERS[1]:
        raise OptionError(f"healpix-order is {order}; give {ORDERS[0]} to {ORDERS[1]}, usually 4 to 6")


def _source(targets, images, size, pixel_scale, image_scale, mapping, service, keep):
    """Give the source of pictures, how their scale is told, and which columns of the list are needed."""
    if not Path(targets).is_file():
        raise OptionError(f"there is no list {targets}; check the name and the folder")
    source = None if images is None else source_of(images, size, pixel_scale, mapping, service)
    told = file_scale(image_scale, lambda: columns_of(targets))
    columns = [*keep, *getattr(source, "columns", ()), *([told[1]] if told[0] in ("column", "gz2") else [])]
    return source, told, list(dict.fromkeys(columns))


def _located(todo, listed, images):
    """Check that it is known where pictures are; images of a list get whole paths, as workers need them."""
    if not todo.images:
        if images is None:
            raise OptionError(f"{listed} is a list of positions; say by --images where their cutouts are, or skyserver")
        return todo
    if images is not None and not Path(images).is_dir():
        raise OptionError(f"{listed} is a list of images; --images {images} is no folder in which they could be")
    folder = Path(images or ".").absolute()
    paths = np.array([str(folder / path) for path in todo.others["image"].tolist()], dtype=str)
    return replace(todo, others={**todo.others, "image": paths})


def _made_with(job, network, size, todo):
    """Say everything on which rows depend."""
    source = job.source
    kind = "list of images" if source is None else type(source).__name__.lower()
    return {
        "surveycat_version": __version__,
        "weights": network.weights_id,
        "weights_sha256": network.sha256,
        "min_score": job.min_score,
        "images": kind,
        "image_scale": job.told,
        "pixel_scale": job.pixel_scale,
        "size": size if kind == "survey" else None,
        "id_type": str(todo.id.dtype) if todo.id.dtype.kind == "i" else "text",
    }


def _pending(todo, store, retry_failed):
    """Give the targets that are not done yet, the number of those that failed, and earlier attempts by id."""
    done = store.done()
    if done is None:
        return todo, 0, {}
    ids = plain(done["id"])
    _check_same_list(todo, ids, done, store)
    failed = is_outcome(done, "failed")
    finished = ids[~failed] if retry_failed else ids
    attempts = dict(zip(ids[failed].tolist(), done["attempts"].to_numpy()[failed].tolist(), strict=True))
    pending = todo.select(~np.isin(todo.id, finished))
    return pending, 0 if retry_failed else int(failed.sum()), attempts


def _along_the_sky(targets):
    """Give an order in which neighbours on the sky follow each other: few parts then hold the rows of a cell."""
    from astropy_healpix import healpy

    if targets.images or not len(targets):
        return np.arange(len(targets))
    return np.argsort(healpy.ang2pix(2**29, targets.ra, targets.dec, nest=True, lonlat=True), kind="stable")


def _check_same_list(todo, ids, done, store):
    """Refuse a list that lacks what was done, or has it elsewhere: rows would stay that belong to nothing."""
    order = np.argsort(todo.id)
    place = order[np.minimum(np.searchsorted(todo.id, ids, sorter=order), max(len(order) - 1, 0))] if len(order) else []
    gone = ids if not len(order) else ids[todo.id[place] != ids]
    if len(gone):
        raise OptionError(
            f"{len(gone)} targets of {store.out} are not in the list any more, such as {gone[0]}: add them, "
            "choose another output, or start afresh with --overwrite"
        )
    for name, now in (("ra", todo.ra[place]), ("dec", todo.dec[place])):
        moved = np.abs(np.nan_to_num(now) - np.nan_to_num(done[name].to_numpy())) > 1e-7
        if moved.any():
            i = int(np.flatnonzero(moved)[0])
            raise OptionError(
                f"target {ids[i]} had {name} {done[name][i].as_py():g} in {store.out} and has {now[i]:g} in the list: "
                "choose another output, or start afresh with --overwrite"
            )


def _work(client, job, todo, store, retry_failed, progress):
    """Do what is not done yet."""
    pending, failed, attempts = _pending(todo, store, retry_failed)
    pending = pending.select(_along_the_sky(pending))
    if not todo.n_rows:
        log.warning("the list has no rows")
    unusable = f" and {len(todo.refused)} rows that cannot be used" if todo.refused else ""
    log.info("%d targets%s in the list, %d of them to be done", len(todo), unusable, len(pending))
    tally = _Tally(len(todo) - len(pending), failed, len(todo), progress)
    come = outcomes(job, pending) if client is None else _from_workers(client, job, pending)
    _keep(come, pending, attempts, store, tally)


# Keeping what is done ----------------------------------------------------------------------------------


class _Tally:
    """Counts what is done, tells, and ends the work when the service is gone."""

    def __init__(self, done, failed, total, progress):
        self.done, self.failed, self.total, self._progress = done, failed, total, progress
        self._silence = 0

    def add(self, outcome):
        """Count one target; thousands must not fail one after the other because nobody answers."""
        self.done += 1
        self.failed += outcome.columns is None
        if self._progress:
            self._progress(self.done, self.failed, self.total)
        self._silence = self._silence + 1 if outcome.stage == DOWNLOAD else 0
        if self._silence >= SILENT:
            raise RunFailed(
                f"SkyServer failed {SILENT} times in a row, at last: {outcome.reason}; what is done is kept, "
                "go on later with --resume --retry-failed"
            )


def _keep(come, pending, attempts, store, tally):
    """Write outcomes in parts as they come; what has come is written also when the work is interrupted."""
    waiting, since = [], time.monotonic()
    with ThreadPoolExecutor(1, thread_name_prefix="surveycat-write") as writer:
        writing = None
        try:
            for outcome in come:
                waiting.append(outcome)
                tally.add(outcome)
                if len(waiting) >= PART or time.monotonic() - since > PART_SECONDS:
                    if writing is not None:
                        writing.result(TIMEOUT)
                    writing = writer.submit(_write_part, waiting, pending, attempts, store, tally.done, tally.failed)
                    waiting, since = [], time.monotonic()
        finally:
            come.close()
            if writing is not None:
                writing.result(TIMEOUT)
            if waiting:
                _write_part(waiting, pending, attempts, store, tally.done, tally.failed)


def _write_part(written, pending, attempts, store, n_done, n_failed):
    """Write one part and the number of what is done by then."""
    found = [outcome for outcome in written if outcome.columns is not None and len(outcome.columns["id"])]
    ids = pending.id
    rows = rows_table([o.columns for o in found] or [nothing()], [ids[o.number] for o in found] or [ids[0]])
    numbers = np.array([outcome.number for outcome in written])
    store.add(
        rows,
        {
            "ids": ids[numbers],
            "ra": pending.ra[numbers],
            "dec": pending.dec[numbers],
            "outcomes": [_kind(outcome) for outcome in written],
            "n_detections": [0 if o.columns is None else len(o.columns["id"]) for o in written],
            "attempts": [attempts.get(ids[outcome.number].item(), 0) + 1 for outcome in written],
            "stages": [outcome.stage for outcome in written],
            "reasons": [outcome.reason for outcome in written],
        },
    )
    store.note({"done": n_done, "failed": n_failed})


def _kind(outcome):
    if outcome.columns is None:
        return "failed"
    return "detected" if outcome.columns["is_target"].any() else "undetected"


# On workers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Piece:
    """What a worker does at a time: some targets, and their numbers among all."""

    numbers: np.ndarray
    job: Job
    targets: Targets


def _do(piece):
    """Find out in a worker process what becomes of the targets of a piece; gives the seconds that it took, too."""
    started = time.monotonic()
    with at_work:
        found = list(outcomes(piece.job, piece.targets))
    return found, time.monotonic() - started


class _Pieces:
    """Divides targets among workers, in pieces of about `PIECE_SECONDS` and smaller ones towards the end.

    Parameters
    ----------
    client : `distributed.Client`
        The workers.
    job, pending
        What is to be done.
    numbers : ndarray of int64
        Of which targets.
    most : int
        Targets in a piece.
    """

    def __init__(self, client, job, pending, numbers, most):
        self._client, self._job, self._pending, self._numbers, self._most = client, job, pending, numbers, most
        # A cutout may be large, and an image of a list a whole field: nothing is known of that yet.
        self._seconds = PIECE_SECONDS if pending.images else PIECE_SECONDS / 8

    def hear(self, n, seconds):
        """Learn from a piece of n targets how long a target takes."""
        self._seconds = 0.5 * (self._seconds + seconds / n)

    def __iter__(self):
        done = 0
        while done < len(self._numbers):
            workers = max(1, n_workers(self._client))
            size = min(PIECE_SECONDS / self._seconds, (len(self._numbers) - done) / (3 * workers), self._most)
            numbers = self._numbers[done : done + max(1, int(size))]
            done += len(numbers)
            # Together they ask a service no faster than one process would, however many there are by now.
            shared = self._job.source.shared_by(workers) if isinstance(self._job.source, Survey) else self._job.source
            yield _Piece(numbers, replace(self._job, source=shared), self._pending.select(numbers))


def _from_workers(client, job, pending):
    """Yield outcomes as workers finish pieces of the list.

    Pieces that end their workers, or never come back, are divided when nothing else is under way: whatever is on a
    worker that goes down is blamed for it. A single target that does so has failed.
    """
    numbers, most, in_flight = np.arange(len(pending)), PART, None
    while len(numbers):
        pieces, again = _Pieces(client, job, pending, numbers, most), []
        for piece, answer in on_workers(client, _do, pieces, in_flight, PIECE_TIMEOUT):
            if isinstance(answer, SurveycatError):  # not the fault of a target
                raise answer
            if not isinstance(answer, Exception):
                found, seconds = answer
                pieces.hear(len(found), seconds)
                yield from (replace(outcome, number=int(piece.numbers[outcome.number])) for outcome in found)
            elif len(piece.numbers) > 1:
                again.append(piece.numbers)
            else:
                yield Outcome(int(piece.numbers[0]), None, "worker", in_one_line(answer))
        numbers = np.concatenate(again) if again else numbers[:0]
        most, in_flight = max(1, max(map(len, again), default=1) // 8), 1
