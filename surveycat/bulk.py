"""From a list of targets to one dataset: their cutouts are fetched, searched and measured many at a time.

    for target in list:    source -> picture     reader threads: file, zip or SkyServer; decoded, at one scale
    batches of pictures -> network               always full but for the last one
    each picture        -> stitch, measure       a thread beside the network
    some hundred targets -> a part on the disk   another one
    all parts           -> the dataset           `surveycat.dataset`

A cutout that fits into a tile is one tile, and its rows are those that `surveycat.run` gives for it; a larger one goes
through the tiler. What becomes of a target does not depend on the others, on the number of workers, or on how often
the run was interrupted. With workers, each does some hundred targets at a time with the same code; they open the
pictures themselves.
"""

import functools
import itertools
import logging
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from surveycat import __version__, measure
from surveycat.cutouts import Survey, decode, file_scale, let_go, source_of
from surveycat.dataset import Store, rows_table
from surveycat.detections import Detections
from surveycat.dispatch import BATCH, START_TIMEOUT, TIMEOUT, cluster, loaded
from surveycat.errors import ImageError, OptionError, OutsideFootprint, RunFailed, ServiceError, SurveycatError
from surveycat.image import open_image
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.pipeline import search
from surveycat.sampling import FINEST, WANTED, shrink_level
from surveycat.skyserver import SCALE
from surveycat.stitch import stitch
from surveycat.targets import columns_of, read_targets
from surveycat.tiles import TileGrid
from surveycat.wcs import tan_wcs, unit_vectors

__all__ = ["bulk"]

PART = 512  # targets in a part
PART_SECONDS = 60.0  # after which what is done is kept, whatever its number
READERS = 2  # threads that read and decode files
AHEAD = 4  # batches that are read ahead
SILENT = 40  # failures of the service in a row after which it counts as gone
ON_TARGET_ARCSEC = 3.0  # of a centroid from the target, where no footprint holds it
ORDERS = 0, 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What each process needs to know to do some targets.

    Parameters
    ----------
    source : `~surveycat.cutouts.Folder`, `~surveycat.cutouts.Archive`, `~surveycat.cutouts.Survey` or None
        Where pictures come from; None for a list of images.
    told : tuple
        How the scale of files is told, as `surveycat.cutouts.file_scale` gives it.
    pixel_scale : float
        Arcsec per pixel of the run.
    detector : callable or `~surveycat.mrcnn.detector.DetectorSpec`
        As in `surveycat.dispatch.detect`.
    min_score : float
        Least score of a row.
    """

    source: object
    told: tuple
    pixel_scale: float
    detector: object
    min_score: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one target: columns of what was found, or why there are none.

    Parameters
    ----------
    number : int
        Place of the target in its `Targets`.
    columns : dict of ndarray or None
        As `surveycat.measure.columns` gives them, with ``is_target`` and ``target_separation``.
    stage, reason : str
        Where it failed, and why.
    """

    number: int
    columns: dict | None = None
    stage: str = ""
    reason: str = ""


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
        Where the cutouts are: see `surveycat.cutouts.source_of`. Not needed for a list of images.
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
    weights, preset, detector, min_score, workers
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
    _check_options(out, size, pixel_scale, min_score, order)
    source, told, columns = _source(targets, images, size, pixel_scale, image_scale, mapping, service, keep)
    todo = read_targets(targets, id_column, columns, ra_column, dec_column)
    if not todo.images and source is None:
        raise OptionError(f"{targets} is a list of positions; say by --images where their cutouts are, or skyserver")
    detector = detector or DetectorSpec(str(weights), preset=preset)
    job = Job(None if todo.images else source, told, pixel_scale, detector, min_score)
    network = loaded(detector)
    store = Store(out, _made_with(job, network, size, todo), resume, overwrite)
    try:
        pending, failed, attempts = _pending(todo, store, retry_failed)
        pending = pending.select(_along_the_sky(pending))
        log.info("%d targets, %d of them to be done, in %s", todo.n_rows, len(pending), targets)
        tally = _Tally(len(todo) - len(pending), failed, len(todo), progress)
        with cluster(workers) as client:
            outcomes = _here(job, pending) if client is None else _on_workers(client, job, pending, workers)
            _keep(outcomes, pending, attempts, store, tally)
        about = {
            "list": {"path": str(targets), "rows": todo.n_rows},
            "kept_columns": list(keep),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run_seconds": round(time.monotonic() - started, 1),
        }
        return store.publish(todo, list(keep), todo.refused, order, about)
    finally:
        store.close()


# Before the work ---------------------------------------------------------------------------------------


def _check_options(out, size, pixel_scale, min_score, order):
    """Refuse options that cannot be meant."""
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
    if not 0 <= min_score <= 1:
        raise OptionError(f"min-score is {min_score:g}; give a probability from 0 to 1")
    if not ORDERS[0] <= order <= ORDERS[1]:
        raise OptionError(f"healpix-order is {order}; give {ORDERS[0]} to {ORDERS[1]}, usually 4 to 6")


def _source(targets, images, size, pixel_scale, image_scale, mapping, service, keep):
    """Give the source of pictures, how their scale is told, and which columns of the list are needed."""
    if not Path(targets).exists():
        raise OptionError(f"there is no list {targets}; check the name and the folder")
    source = None if images is None else source_of(images, size, pixel_scale, mapping, service)
    told = file_scale(image_scale, lambda: columns_of(targets))
    columns = [*keep, *getattr(source, "columns", ()), *([told[1]] if told[0] in ("column", "gz2") else [])]
    return source, told, list(dict.fromkeys(columns))


def _made_with(job, network, size, todo):
    """Say everything on which rows depend."""
    source = job.source
    kind = "list of images" if source is None else type(source).__name__.lower()
    return {
        "surveycat_version": __version__,
        "weights": getattr(network, "weights_id", type(network).__name__),
        "weights_sha256": getattr(network, "sha256", ""),
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
    ids = np.array(done["id"].to_pylist())
    _check_same_list(todo, ids, done, store)
    failed = np.array(done["outcome"].to_pylist()) == "failed"
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


# Keeping what is done ----------------------------------------------------------------------------------


class _Tally:
    """Counts what is done, and tells."""

    def __init__(self, done, failed, total, progress):
        self.done, self.failed, self.total, self._progress = done, failed, total, progress

    def add(self, outcome):
        """Count one target."""
        self.done += 1
        self.failed += outcome.columns is None
        if self._progress:
            self._progress(self.done, self.failed, self.total)


def _keep(outcomes, pending, attempts, store, tally):
    """Write outcomes in parts as they come; what has come is written also when the work is interrupted."""
    waiting, since = [], time.monotonic()
    with ThreadPoolExecutor(1, thread_name_prefix="surveycat-write") as writer:
        writing = None
        try:
            for outcome in outcomes:
                waiting.append(outcome)
                tally.add(outcome)
                if len(waiting) >= PART or time.monotonic() - since > PART_SECONDS:
                    if writing is not None:
                        writing.result(TIMEOUT)
                    writing = writer.submit(_write_part, waiting, pending, attempts, store, tally.done, tally.failed)
                    waiting, since = [], time.monotonic()
        finally:
            outcomes.close()
            if writing is not None:
                writing.result(TIMEOUT)
            if waiting:
                _write_part(waiting, pending, attempts, store, tally.done, tally.failed)


def _write_part(outcomes, pending, attempts, store, n_done, n_failed):
    """Write one part and the number of what is done by then."""
    found = [outcome for outcome in outcomes if outcome.columns is not None and len(outcome.columns["id"])]
    ids = pending.id
    rows = rows_table([o.columns for o in found] or [_nothing()], [ids[o.number] for o in found] or [ids[0]])
    numbers = np.array([outcome.number for outcome in outcomes])
    store.add(
        rows,
        {
            "ids": ids[numbers],
            "ra": pending.ra[numbers],
            "dec": pending.dec[numbers],
            "outcomes": [_kind(outcome) for outcome in outcomes],
            "n_detections": [0 if o.columns is None else len(o.columns["id"]) for o in outcomes],
            "attempts": [attempts.get(ids[outcome.number].item(), 0) + 1 for outcome in outcomes],
            "stages": [outcome.stage for outcome in outcomes],
            "reasons": [outcome.reason for outcome in outcomes],
        },
    )
    store.note({"done": n_done, "failed": n_failed})


def _kind(outcome):
    if outcome.columns is None:
        return "failed"
    return "detected" if outcome.columns["is_target"].any() else "undetected"


# In one process ----------------------------------------------------------------------------------------


def _here(job, pending):
    """Yield the outcome of each target, as they come."""
    detector = loaded(job.detector)
    batch_size = getattr(detector, "batch_size", BATCH)
    batch, describing, silence = [], deque(), _Silence()
    readers = READERS if not isinstance(job.source, Survey) else int(job.source.service.get("concurrency", 4))
    with (
        ThreadPoolExecutor(readers, thread_name_prefix="surveycat-read") as reading,
        ThreadPoolExecutor(1, thread_name_prefix="surveycat-measure") as measuring,
    ):
        try:
            pictures = _pictures(reading, job, pending, AHEAD * batch_size + 2 * readers)
            for number, picture in pictures:
                silence.hear(picture)
                if isinstance(picture, Exception):
                    yield Outcome(number, None, "image", _in_one_line(picture))
                    continue
                if picture is None or max(picture.shape) > _tile_size(detector):
                    yield _whole(job, detector, pending, number, picture)
                    continue
                batch.append((number, picture))
                if len(batch) == batch_size:
                    describing.append(measuring.submit(_described, job, pending, *_looked_at(job, detector, batch)))
                    batch = []
                while describing and (describing[0].done() or len(describing) > 2):
                    yield from _redone(job, detector, pending, describing.popleft().result(TIMEOUT))
            if batch:
                describing.append(measuring.submit(_described, job, pending, *_looked_at(job, detector, batch)))
            while describing:
                yield from _redone(job, detector, pending, describing.popleft().result(TIMEOUT))
        except KeyboardInterrupt:
            for done in describing:  # they need no more than to be kept
                yield from (outcome for outcome in done.result(TIMEOUT) if isinstance(outcome, Outcome))
            raise
        finally:
            let_go(job.source)
            reading.shutdown(wait=False, cancel_futures=True)


def _tile_size(detector):
    return getattr(detector, "tile_size", 256)


def _in_one_line(error):
    """Say what went wrong; errors that are not ours with their kind."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, SurveycatError) else f"{type(error).__name__}: {text}"


class _Silence:
    """Ends the work when the service is gone: thousands of targets must not fail one after the other."""

    def __init__(self):
        self._failures = 0

    def hear(self, picture):
        """Count what came for one target."""
        gone = isinstance(picture, ServiceError) and not isinstance(picture, OutsideFootprint)
        self._failures = self._failures + 1 if gone else 0
        if self._failures >= SILENT:
            raise RunFailed(
                f"SkyServer failed {SILENT} times in a row, at last: {_in_one_line(picture)}; what is done is kept, "
                "go on later with --resume --retry-failed"
            )


def _pictures(pool, job, pending, in_flight):
    """Yield (number, picture or exception) as they come, reading ahead; None for a list of images."""
    numbers, under_way = iter(range(len(pending))), {}
    if job.source is None:
        yield from ((number, None) for number in numbers)
        return
    while True:
        for number in itertools.islice(numbers, in_flight - len(under_way)):
            under_way[pool.submit(_picture, job, pending.one(number))] = number
        if not under_way:
            return
        done = wait(under_way, TIMEOUT, FIRST_COMPLETED).done
        if not done:
            raise RunFailed(f"no picture came in {TIMEOUT:g} s; is the disk there? What is done is kept, see --resume")
        for task in sorted(done, key=under_way.get):
            yield under_way.pop(task), task.exception() or task.result()


def _picture(job, target):
    """Read and decode the picture of a target."""
    data, scale = job.source.read(target)
    return decode(f"the image of {target['id']}", data, target, job.told, scale, job.pixel_scale)


def _looked_at(job, detector, batch):
    """Run the network on a batch of (number, picture): gives the batch and Detections, or an exception."""
    size = _tile_size(detector)
    try:
        return batch, detector(np.stack([picture.tile(size) for _, picture in batch]), job.min_score)
    except Exception as error:  # of any kind: a detector is not ours
        return batch, error


def _described(job, pending, batch, found):
    """Stitch and measure what was found in each picture of a batch; (number, picture, error) is to be done again."""
    if isinstance(found, Exception):
        return [(number, picture, found) for number, picture in batch]
    outcomes, capped = [], set(found.capped.tolist())
    for place, (number, picture) in enumerate(batch):
        if place in capped:
            outcomes.append((number, picture, None))
            continue
        mine = found.select(found.tile == place)
        try:
            outcomes.append(Outcome(number, _nothing() if not len(mine) else _looked_up(mine, picture)))
        except Exception as error:  # one odd picture must not end the run
            outcomes.append(Outcome(number, None, "measure", _in_one_line(error)))
    return outcomes


def _looked_up(found, picture):
    """Give the columns of what was found in one picture, with its target."""
    columns = _measured(found.replace(tile=np.zeros(len(found), np.int64), capped=()), picture)
    return _with_target(columns, picture.ra, picture.dec, picture)


def _measured(found, picture):
    """Stitch and measure what was found in one picture, which is one tile."""
    grid = TileGrid(picture.shape)
    objects = stitch(found.place(list(grid.tiles()), grid), grid)
    return measure.columns(objects, picture)


def _redone(job, detector, pending, outcomes):
    """Do again what failed together, one by one, and pictures as crowded as a network's limits in windows."""
    for outcome in outcomes:
        if isinstance(outcome, Outcome):
            yield outcome
            continue
        number, picture, error = outcome
        if error is None:
            yield _whole(job, detector, pending, number, picture)
            continue
        batch, found = _looked_at(job, detector, [(number, picture)])
        if isinstance(found, Exception):
            yield Outcome(number, None, "network", _in_one_line(found))
        else:
            yield from _redone(job, detector, pending, _described(job, pending, batch, found))


def _whole(job, detector, pending, number, picture):
    """Search a picture larger than a tile, or an image of the list, as `surveycat.run` does.

    Pictures have the scale that the user asks for by option; images of a list have their own.
    """
    try:
        with _opened(pending, number, picture) as image:
            if image.wcs is None:
                raise ImageError(f"{image.name} has no sky position; give it a WCS, AVM tags or a sidecar .wcs")
            level, why = (0, ()) if picture is not None else shrink_level(image)
            for note in why:
                log.info("%s: %s", image.name, note)
            table, failed = search(image, detector, 0, job.min_score, level=level)
            columns = {name: np.asarray(getattr(table[name], "value", table[name])) for name in table.colnames}
            if picture is None:
                columns = _without_target(columns)
            else:
                columns = _with_target(columns, picture.ra, picture.dec, picture)
    except Exception as error:  # whatever it is, the other targets go on
        return Outcome(number, None, "image" if isinstance(error, (ImageError, OSError)) else "network",
                       _in_one_line(error))  # fmt: skip
    if failed:
        log.warning("%s: %d of its tiles could not be searched: %s", pending.id[number], len(failed), failed[0][1])
    return Outcome(number, columns)


def _opened(pending, number, picture):
    if picture is None:
        return open_image(pending.others["image"][number])
    wcs = tan_wcs(picture.shape, picture.ra, picture.dec)
    wcs.wcs.crpix = picture.x + 1, picture.y + 1
    wcs.wcs.cd = np.diag([-picture.scale[0], -picture.scale[1]]) / 3600
    return open_image(picture.pixels, wcs=wcs)


@functools.lru_cache(1)
def _nothing():
    """Give the columns of a picture in which nothing was found."""
    from surveycat.cutouts import Picture

    picture = Picture("", np.zeros((256, 256, 3), np.uint8), 0.0, 0.0, 128.0, 128.0, (SCALE, SCALE))
    return _with_target(_measured(Detections.empty(), picture), 0.0, 0.0, picture)


def _with_target(columns, ra, dec, picture):
    """Add the distance from the target, and which object is the one on it.

    That is the one whose footprint holds the target, else one whose centroid is within 3 arcsec of it; of several the
    one with the nearest centroid.
    """
    separation = _separation(columns["ra"], columns["dec"], ra, dec)
    holds = np.array([
        _inside(picture.x, picture.y, x, y)
        for x, y in zip(columns["footprint_x"], columns["footprint_y"], strict=True)
    ], dtype=bool)  # fmt: skip
    candidates = np.flatnonzero(holds if holds.any() else separation <= ON_TARGET_ARCSEC)
    is_target = np.zeros(len(separation), bool)
    if len(candidates):
        is_target[candidates[np.argmin(separation[candidates])]] = True
    return {**columns, "is_target": is_target, "target_separation": separation.astype(np.float32)}


def _without_target(columns):
    n = len(columns["id"])
    return {**columns, "is_target": np.zeros(n, bool), "target_separation": np.full(n, np.nan, np.float32)}


def _separation(ra, dec, ra0, dec0):
    """Distances from a position, arcsec."""
    chord = np.linalg.norm(unit_vectors(np.asarray(ra), np.asarray(dec)).T - unit_vectors(ra0, dec0).T, axis=-1)
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600


def _inside(x, y, corners_x, corners_y):
    """Whether a point lies in a polygon: a ray from it crosses the outline an odd number of times."""
    x1, y1 = np.asarray(corners_x, float), np.asarray(corners_y, float)
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    across = (y1 > y) != (y2 > y)
    return bool(np.count_nonzero(x < x1[across] + (y - y1[across]) / (y2 - y1)[across] * (x2 - x1)[across]) % 2)


# On workers --------------------------------------------------------------------------------------------


def _do(job, targets):
    """Do some targets in a worker process."""
    return list(_here(job, targets))


def _on_workers(client, job, pending, workers):
    """Yield outcomes as workers finish pieces of the list, with few pieces in flight."""
    from distributed import wait as wait_for

    if isinstance(job.source, Survey):
        job = replace(job, source=job.source.shared_by(workers))
    size = max(1, min(PART, -(-len(pending) // (4 * max(1, workers)))))
    pieces = deque(np.split(np.arange(len(pending)), np.arange(size, len(pending), size)) if len(pending) else [])
    under_way = {}
    while pieces or under_way:
        while pieces and len(under_way) < 2 * max(1, len(client.nthreads())):
            piece = pieces.popleft()
            under_way[client.submit(_do, job, pending.select(piece), pure=False)] = piece
        try:
            done = wait_for(list(under_way), timeout=2 * TIMEOUT, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            client.restart(timeout=START_TIMEOUT)
            error = TimeoutError(f"no answer from any worker for {2 * TIMEOUT:g} s")
            for piece in under_way.values():
                yield from _halved(piece, pieces, error)
            under_way.clear()
            continue
        for task in done:
            piece, error = under_way.pop(task), task.exception(TIMEOUT)
            if isinstance(error, RunFailed):
                raise error
            if error is not None:
                yield from _halved(piece, pieces, error)
                continue
            for outcome in task.result(TIMEOUT):
                yield replace(outcome, number=int(piece[outcome.number]))


def _halved(piece, pieces, error):
    """Put a piece that ended its worker back in halves; a single target that does so has failed."""
    if len(piece) > 1:
        pieces.extendleft(np.array_split(piece, 2))
        return
    yield Outcome(int(piece[0]), None, "worker", _in_one_line(error))
