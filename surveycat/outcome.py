"""What becomes of targets: their pictures are read, searched and measured, many at a time.

    for target in list:    source -> picture     reader threads: file, zip or SkyServer; decoded, at one scale
    batches of pictures -> network               always full but for the last one
    each picture        -> stitch, measure       a thread beside the network

A cutout that fits into a tile is one tile, and its rows are those that `surveycat.run` gives for it; a larger one goes
through the tiler. What becomes of a target does not depend on the others.
"""

import functools
import itertools
import logging
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from surveycat import measure
from surveycat.cutouts import Picture, Survey, decode, let_go
from surveycat.detections import Detections
from surveycat.dispatch import BATCH, TIMEOUT, ask, loaded
from surveycat.errors import ImageError, OutsideFootprint, RunFailed, ServiceError, SurveycatError
from surveycat.image import open_image
from surveycat.pipeline import search, way_to_look
from surveycat.skyserver import SCALE
from surveycat.stitch import stitch
from surveycat.tiles import TileGrid
from surveycat.wcs import tan_wcs, unit_vectors

__all__ = ["DOWNLOAD", "Job", "Outcome", "in_one_line", "nothing", "outcomes"]

READERS = 2  # threads that read and decode files
AHEAD = 4  # batches that are read ahead
DOWNLOAD = "download"  # the stage at which a service fails
ON_TARGET_ARCSEC = 3.0  # of a centroid from the target, where no footprint holds it

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


def outcomes(job, targets):
    """Find out what becomes of targets.

    Parameters
    ----------
    job : Job
        How to look at them.
    targets : `~surveycat.targets.Targets`
        At which to look.

    Yields
    ------
    Outcome
        One for each, as they come.

    Raises
    ------
    RunFailed
        If no pictures come any more.
    """
    detector = loaded(job.detector)
    batch_size = getattr(detector, "batch_size", BATCH)
    batch, describing = [], deque()
    readers = READERS if not isinstance(job.source, Survey) else int(job.source.service.get("concurrency", 4))
    with (
        ThreadPoolExecutor(readers, thread_name_prefix="surveycat-read") as reading,
        ThreadPoolExecutor(1, thread_name_prefix="surveycat-measure") as measuring,
    ):
        try:
            for number, picture in _pictures(reading, job, targets, AHEAD * batch_size + 2 * readers):
                if isinstance(picture, Exception):
                    yield _without_picture(number, picture)
                    continue
                if picture is None or max(picture.shape) > _tile_size(detector):
                    yield _whole(job, detector, targets, number, picture)
                    continue
                batch.append((number, picture))
                if len(batch) == batch_size:
                    describing.append(measuring.submit(_described, job, targets, *_looked_at(job, detector, batch)))
                    batch = []
                while describing and (describing[0].done() or len(describing) > 2):
                    yield from _redone(job, detector, targets, describing.popleft().result(TIMEOUT))
            if batch:
                describing.append(measuring.submit(_described, job, targets, *_looked_at(job, detector, batch)))
            while describing:
                yield from _redone(job, detector, targets, describing.popleft().result(TIMEOUT))
        except KeyboardInterrupt:
            for done in describing:  # they need no more than to be kept
                yield from (outcome for outcome in done.result(TIMEOUT) if isinstance(outcome, Outcome))
            raise
        finally:
            let_go(job.source)
            reading.shutdown(wait=False, cancel_futures=True)


def _tile_size(detector):
    return getattr(detector, "tile_size", 256)


def in_one_line(error):
    """Say what went wrong; errors that are not ours with their kind.

    Parameters
    ----------
    error : Exception
        Of any kind.

    Returns
    -------
    str
    """
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, SurveycatError) else f"{type(error).__name__}: {text}"


# Pictures ---------------------------------------------------------------------------------------------------


def _without_picture(number, error):
    """Tell a service that fails, which may be better later, from pictures that are not there or no good."""
    failed = isinstance(error, ServiceError) and not isinstance(error, OutsideFootprint)
    return Outcome(number, None, DOWNLOAD if failed else "image", in_one_line(error))


def _pictures(pool, job, targets, in_flight):
    """Yield (number, picture or exception) as they come, reading ahead; None for a list of images."""
    numbers, under_way = iter(range(len(targets))), {}
    if job.source is None:
        yield from ((number, None) for number in numbers)
        return
    while True:
        for number in itertools.islice(numbers, in_flight - len(under_way)):
            under_way[pool.submit(_picture, job, targets.one(number))] = number
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
        return batch, ask(detector, np.stack([picture.tile(size) for _, picture in batch]), job.min_score)
    except Exception as error:  # of any kind: a detector is not ours
        return batch, error


def _described(job, targets, batch, found):
    """Stitch and measure what was found in each picture of a batch; (number, picture, error) is to be done again."""
    if isinstance(found, Exception):
        return [(number, picture, found) for number, picture in batch]
    described, capped = [], set(found.capped.tolist())
    for place, (number, picture) in enumerate(batch):
        if place in capped:
            described.append((number, picture, None))
            continue
        mine = found.select(found.tile == place)
        try:
            described.append(Outcome(number, nothing() if not len(mine) else _looked_up(mine, picture)))
        except Exception as error:  # one odd picture must not end the run
            described.append(Outcome(number, None, "measure", in_one_line(error)))
    return described


def _looked_up(found, picture):
    """Give the columns of what was found in one picture, with its target."""
    columns = _measured(found.replace(tile=np.zeros(len(found), np.int64), capped=()), picture)
    return _with_target(columns, picture.ra, picture.dec, picture)


def _measured(found, picture):
    """Stitch and measure what was found in one picture, which is one tile."""
    grid = TileGrid(picture.shape)
    objects = stitch(found.place(list(grid.tiles()), grid), grid)
    return measure.columns(objects, picture)


def _redone(job, detector, targets, described):
    """Do again what failed together, one by one, and pictures as crowded as a network's limits in windows."""
    for outcome in described:
        if isinstance(outcome, Outcome):
            yield outcome
            continue
        number, picture, error = outcome
        if error is None:
            yield _whole(job, detector, targets, number, picture)
            continue
        batch, found = _looked_at(job, detector, [(number, picture)])
        if isinstance(found, Exception):
            yield Outcome(number, None, "network", in_one_line(found))
        else:
            yield from _redone(job, detector, targets, _described(job, targets, batch, found))


def _whole(job, detector, targets, number, picture):
    """Search a picture larger than a tile, or an image of the list, as `surveycat.run` does.

    Pictures have the scale that the user asks for by option; images of a list have their own.
    """
    try:
        with _opened(targets, number, picture) as image:
            if image.wcs is None:
                raise ImageError(f"{image.name} has no sky position; give it a WCS, AVM tags or a sidecar .wcs")
            look, why = way_to_look(image, "none" if picture is not None else "auto")
            for note in why:
                log.info("%s: %s", image.name, note)
            table, failed = search(image, detector, 0, job.min_score, **look)
            columns = {name: np.asarray(getattr(table[name], "value", table[name])) for name in table.colnames}
            if picture is None:
                columns = _without_target(columns)
            else:
                columns = _with_target(columns, picture.ra, picture.dec, picture)
    except Exception as error:  # whatever it is, the other targets go on
        return Outcome(number, None, "image" if isinstance(error, (ImageError, OSError)) else "network",
                       in_one_line(error))  # fmt: skip
    if failed:
        log.warning("%s: %d of its tiles could not be searched: %s", targets.id[number], len(failed), failed[0][1])
    return Outcome(number, columns)


def _opened(targets, number, picture):
    if picture is None:
        return open_image(targets.others["image"][number])
    wcs = tan_wcs(picture.shape, picture.ra, picture.dec)
    wcs.wcs.crpix = picture.x + 1, picture.y + 1
    wcs.wcs.cd = np.diag([-picture.scale[0], -picture.scale[1]]) / 3600
    return open_image(picture.pixels, wcs=wcs)


@functools.lru_cache(1)
def nothing():
    """Give the columns of a picture in which nothing was found.

    Returns
    -------
    dict of ndarray, shape (0,)
    """
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
