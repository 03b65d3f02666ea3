"""Tiles in, Detections out: the network behind the one call that the rest of surveycat knows."""

import dataclasses
import functools
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np

from surveycat.detections import Detections, largest_part
from surveycat.errors import OptionError, WeightsError
from surveycat.mrcnn.centring import centre_boxes
from surveycat.mrcnn.masks import distinct
from surveycat.quiet import start_backend

CHUNK = 64  # detections at most that one compiled call gives a class, or a mask: what a batch of eight tiles asks about
CANARY_TOLERANCE = 2e-3  # largest difference of a probability on the golden tile; other backends round otherwise

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DetectorSpec:
    """What a worker needs to know to load the same detector: pickles small, holds no weights.

    Parameters
    ----------
    weights : str
        Preset name, folder, or ``.h5`` file of the ``mrcnn`` package.
    batch_size : int
        Tiles a compiled call.
    preset : str, optional
        Which network an ``.h5`` file is for.
    """

    weights: str = "compact"
    batch_size: int = 8
    preset: str | None = None

    def load(self):
        """Load the detector, once per process.

        Returns
        -------
        Detector
            The detector.
        """
        return load_detector(self.weights, self.batch_size, self.preset)


@functools.lru_cache(maxsize=2)
def load_detector(weights="compact", batch_size=8, preset=None):
    """Load a network and prove that it is the one that was trained.

    A preset must reproduce its golden tile. An ``.h5`` file of the ``mrcnn`` package has none: each of its arrays
    must fit its place, and none may be left over.

    Parameters
    ----------
    weights : str
        Preset name, folder, or ``.h5`` file.
    batch_size : int
        Tiles a compiled call.
    preset : str, optional
        Which network an ``.h5`` file is for.

    Returns
    -------
    Detector
        The detector. Of a network that knows a single class the class means nothing: its rows have ``p_spiral`` 0.5.

    Raises
    ------
    WeightsError
        If the weights are missing, damaged, do not fit, are untrained, or do not reproduce the golden tile.
    OptionError
        If a preset is needed and missing, or given and not needed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    start_backend()
    from surveycat.mrcnn.weights import preset_folder

    if pathlib.Path(weights).suffix == ".h5":
        detector = _from_file(pathlib.Path(weights), batch_size, preset)
    elif preset is not None:
        raise OptionError(f"--preset {preset} goes with an .h5 file, not with weights {weights}: leave it out")
    else:
        detector = prove(preset_folder(weights), batch_size)
    config = detector.network.config
    if untrained := getattr(config, "untrained", ()):
        raise WeightsError(f"{weights}: {', '.join(untrained)} are still random: train them before use")
    if len(getattr(config, "classes", ())) == 1:
        log.warning("%s knows a single class: the column class means nothing, p_spiral is 0.5", detector.weights_id)
    return detector


def _from_file(path, batch_size, preset):
    """Detector from a file of the ``mrcnn`` package."""
    from surveycat.mrcnn.convert import preset_config
    from surveycat.mrcnn.mrcnn_file import load_mrcnn
    from surveycat.mrcnn.weights import make_network, sha256_of

    if not path.is_file():
        raise WeightsError(f"{path} does not exist: check the name and the folder")
    network = make_network(preset_config(preset))
    load_mrcnn(network, path)
    network.fold()
    return Detector(network, batch_size, weights_id=f"{path.name} as {preset}", sha256=sha256_of(path))


def prove(folder, batch_size=8):
    """Load a preset folder, with its checksums and its golden tile.

    Parameters
    ----------
    folder : pathlib.Path
        Preset folder.
    batch_size : int
        Tiles a compiled call.

    Returns
    -------
    Detector
        The detector; some of its layers may be untrained.

    Raises
    ------
    WeightsError
        If a file is missing, damaged or does not fit, or the golden tile is not reproduced.
    """
    from surveycat.mrcnn.weights import check_sums, load_network

    sha256 = check_sums(folder)
    detector = Detector(load_network(folder), batch_size, weights_id=folder.name, sha256=sha256)
    check_golden(detector, folder / "golden.npz")
    return detector


def check_golden(detector, path):
    """Run the golden tile and compare.

    Parameters
    ----------
    detector : Detector
        The detector.
    path : pathlib.Path
        ``golden.npz``, from `write_golden`.

    Raises
    ------
    WeightsError
        If the answer differs, or the tile holds no galaxy and so proves nothing.
    """
    with np.load(path) as golden:
        if not len(golden["score"]):
            raise WeightsError(f"{path}: the golden tile holds no galaxy: choose one that does")
        answer = golden_answer(detector(golden["tile"][None], float(golden["min_score"])))
        for name, limit in (("score", CANARY_TOLERANCE), ("p_spiral", CANARY_TOLERANCE), ("box", 0.1), ("area", 4.0)):
            expected, actual = golden[name], answer[name]
            if expected.shape != actual.shape or not np.all(np.abs(expected - actual) <= limit):
                raise WeightsError(
                    f"{path.parent}: the network does not reproduce its golden tile ({name}: "
                    f"{np.array2string(actual.ravel()[:3], precision=3)} instead of "
                    f"{np.array2string(expected.ravel()[:3], precision=3)}): restore the preset or report the platform"
                )


def write_golden(detector, path, tile, min_score=0.5):
    """Record what a detector answers to one tile.

    Parameters
    ----------
    detector : Detector
        The detector, known to be good.
    path : pathlib.Path
        ``golden.npz``: ``tile``, ``min_score``, and the expected ``box``, ``score``, ``p_spiral``, ``area``.
    tile : ndarray of uint8, shape (T, T, 3)
        The tile.
    min_score : float
        Detections below this are not recorded.
    """
    answer = golden_answer(detector(tile[None], min_score))
    np.savez_compressed(path, tile=tile, min_score=min_score, **answer)


def golden_answer(found):
    """The part of an answer that a golden tile records.

    Parameters
    ----------
    found : Detections
        Answer to one tile.

    Returns
    -------
    dict of ndarray
        ``box``, ``score``, ``p_spiral``, ``area`` of the detections, best first.
    """
    order = np.argsort(-found.score, kind="stable")
    return {
        "box": found.box[order],
        "score": found.score[order],
        "p_spiral": found.p_spiral[order],
        "area": np.array([found.mask(i).sum() for i in order], dtype=np.float32),
    }


class Boxes(NamedTuple):
    """N boxes in a batch of tiles, and what their class and mask are read from.

    Attributes
    ----------
    tile : ndarray of int32, shape (N,)
        Index in the batch.
    box : ndarray of float32, shape (N, 4)
        Boxes in pixels of the tile.
    box_logit : ndarray, shape (N,)
        The box head's opinion on "galaxy".
    view, levels : tensor, list of tensor
        What classes and masks are read from: see `first_look` of the network.
    regions : tuple of ndarray, shape (N, ...)
        Boxes as the network measures them, tiles, and whatever else its heads know of them.
    capped : ndarray of int
        Tiles that hit a limit.
    """

    tile: np.ndarray
    box: np.ndarray
    box_logit: np.ndarray
    view: object
    levels: list
    regions: tuple
    capped: np.ndarray


class RawDetections(NamedTuple):
    """What the network says of N detections in a batch of tiles, before calibration and masks.

    Attributes
    ----------
    tile : ndarray of int32, shape (N,)
        Index in the batch.
    box : ndarray of float32, shape (N, 4)
        Boxes in pixels of the tile.
    box_logit, galaxy_logit, spiral_logit : ndarray, shape (N,)
        The box head's and the class head's opinion on "galaxy", and the class head's on "spiral".
    levels : list of tensor
        Feature pyramid of the batch, from which masks are made.
    regions : tuple of ndarray, shape (N, ...)
        Boxes as the network measures them, tiles, and whatever else its heads know of them.
    capped : ndarray of int
        Tiles that hit a limit.
    """

    tile: np.ndarray
    box: np.ndarray
    box_logit: np.ndarray
    galaxy_logit: np.ndarray
    spiral_logit: np.ndarray
    levels: list
    regions: tuple
    capped: np.ndarray


class Detector:
    """A loaded network.

    Parameters
    ----------
    network : MaskRCNN
        The network, its batch normalisation folded.
    batch_size : int
        Tiles a compiled call; smaller batches are filled up.
    weights_id, sha256 : str
        Name and checksum of the weights, for the catalogue.

    Attributes
    ----------
    versions : dict of str
        Of Keras and the backend that computes.
    """

    def __init__(self, network, batch_size=8, weights_id="", sha256=""):
        from surveycat.mrcnn.backend import compiled, versions

        self.network = network
        self.batch_size = batch_size
        self.weights_id = weights_id
        self.sha256 = sha256
        self.versions = versions()
        self._first_look = compiled(network.first_look)
        self._class_outputs = compiled(network.class_outputs, any_rows=True)
        self._mask_outputs = compiled(network.mask_outputs, any_rows=True)

    @property
    def tile_size(self):
        """int : side of a tile, px."""
        return self.network.config.tile_size

    def __call__(self, tiles, min_score=0.5):
        """Find and describe the galaxies in a batch of tiles.

        Parameters
        ----------
        tiles : ndarray of uint8, shape (B, T, T, 3)
            R, G, B = i, r, g; B may be anything.
        min_score : float
            Detections below this probability of being a galaxy are left out.

        Returns
        -------
        Detections
            In pixels of their tile; ``tile`` is the index in the batch, ``level`` 0.
        """
        parts = [
            self._one_batch(tiles[start : start + self.batch_size], start, min_score)
            for start in range(0, len(tiles), self.batch_size)
        ]
        return Detections.concatenate(parts)

    def _one_batch(self, tiles, start, min_score):
        calibration = self.network.config.calibration
        raw = self.look(tiles, calibration.least_box_logit(min_score))
        score = _sigmoid(calibration.galaxy_logit(raw.box_logit, raw.galaxy_logit))
        p_spiral = _sigmoid(calibration.class_scale * raw.spiral_logit + calibration.class_bias)
        likely = np.nonzero(score >= min_score)[0]
        (logits,) = _in_chunks(self._mask_outputs, raw.levels, *(one[likely] for one in raw.regions))
        crops, origins = self.network.paste(logits, raw.box[likely], self.tile_size)
        # A row is the largest part of a mask: that, and not what else the mask held, must be an object of its own.
        crops = [largest_part(crop) if crop.any() else crop for crop in crops]
        own = distinct(crops, origins, raw.tile[likely], score[likely])
        drawn = [i for i, crop in enumerate(crops) if own[i] and crop.any()]
        keep = likely[drawn]
        return Detections.from_masks(
            tile=raw.tile[keep] + start,
            level=0,
            box=raw.box[keep],
            score=score[keep],
            p_spiral=p_spiral[keep],
            masks=[crops[i] for i in drawn],
            mask_origin=origins[drawn],
            capped=raw.capped + start,
        )

    def look(self, tiles, least_box_logit=-np.inf):
        """Everything the network says of one batch, before calibration and masks.

        Parameters
        ----------
        tiles : ndarray of uint8, shape (B, T, T, 3)
            At most `batch_size` tiles.
        least_box_logit : float
            Detections of which the box head says less than this are left out.

        Returns
        -------
        RawDetections
            Its answer.
        """
        found = self.find(tiles, least_box_logit)
        boxes = self.network.config.to_frame(centre_boxes(tiles, found.tile, found.box))
        galaxy, spiral = _in_chunks(self._class_outputs, found.view, boxes, *found.regions[1:])
        return RawDetections(*found[:3], galaxy, spiral, found.levels, found.regions, found.capped)

    def find(self, tiles, least_box_logit=-np.inf):
        """Boxes of one batch: the first look.

        Parameters
        ----------
        tiles : ndarray of uint8, shape (B, T, T, 3)
            At most `batch_size` tiles.
        least_box_logit : float
            Boxes of which the box head says less than this are left out.

        Returns
        -------
        Boxes
            Its answer.
        """
        count = len(tiles)
        if count < self.batch_size:
            tiles = np.concatenate([tiles, np.zeros((self.batch_size - count, *tiles.shape[1:]), tiles.dtype)])
        view, levels, *answers = self._first_look(tiles)
        boxes, logits, crowded, *evidence = (_to_numpy(one)[:count] for one in answers)
        full = (logits > -1e8).all(axis=1)
        tile, slot = np.nonzero(logits > max(least_box_logit, -1e8))
        boxes, logits, *evidence = (one[tile, slot] for one in (boxes, logits, *evidence))
        tile = tile.astype(np.int32)
        regions = (boxes, tile, *evidence)
        capped = np.nonzero(crowded | full)[0]
        return Boxes(tile, self.network.config.to_pixels(boxes), logits, view, levels, regions, capped)


def _in_chunks(function, maps, *regions):
    """Call a compiled function of regions on chunks of them.

    Parameters
    ----------
    function : callable
        ``(maps, *regions)`` with at most `CHUNK` rows each, to a tuple of tensors with as many.
    maps : tensor or list of tensor
        What it reads from.
    *regions : ndarray, shape (N, ...)
        Boxes of the network, tiles of the batch that they lie in, what else it needs.

    Returns
    -------
    list of ndarray, shape (N, ...)
        Its answers.
    """
    from surveycat.mrcnn.backend import rows_to_compute

    found = len(regions[0])
    if not found:  # the shapes of its answers are known by asking only
        regions = [np.zeros((1, *one.shape[1:]), one.dtype) for one in regions]
    count = max(found, 1)
    answers = []
    for first in range(0, count, CHUNK):
        rows = first + np.arange(rows_to_compute(min(count - first, CHUNK)))
        rows = np.minimum(rows, count - 1)  # filled up with the last
        answers.append([_to_numpy(one) for one in function(maps, *(one[rows] for one in regions))])
    return [np.concatenate(one)[:found] for one in zip(*answers, strict=True)]


def _to_numpy(tensor):
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _sigmoid(logit):
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0)))
