"""Tiles in, Detections out, whatever the batch size."""

import importlib

import keras
import numpy as np

from surveycat.mrcnn.detector import Detector
from surveycat.mrcnn.masks import paste_masks
from surveycat.mrcnn.model import MaskRCNN, fold_batch_norm


def folded(network, config):
    """The network as it runs."""
    other = MaskRCNN(config)
    other.parts = {name: fold_batch_norm(part) for name, part in network.parts.items()}
    return other


def test_batch_size_does_not_matter(small_network, small_config, tiles):
    """The same detections in the same order from batches of 2, 3 and 8."""
    network = folded(small_network, small_config)
    answers = [Detector(network, batch_size)(tiles, 0.0) for batch_size in (2, 3, 8)]
    assert len(answers[0]) > 5
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0].tile, other.tile)
        np.testing.assert_allclose(answers[0].box, other.box, atol=1e-2)
        np.testing.assert_allclose(answers[0].score, other.score, atol=1e-4)


def test_min_score_only_drops(small_network, small_config, tiles):
    """A higher threshold gives a subset."""
    detector = Detector(folded(small_network, small_config))
    everything = detector(tiles, 0.0)
    limit = float(np.median(everything.score))
    some = detector(tiles, limit)
    assert len(some) == (everything.score >= limit).sum() > 0


def test_full_slots_are_reported(small_network, small_config, tiles):
    """A tile with as many detections as there are slots is capped, never silently cut short."""
    detector = Detector(folded(small_network, small_config))
    found = detector(tiles, 0.0)
    full = np.nonzero(np.bincount(found.tile, minlength=len(tiles)) >= small_config.max_detections)[0]
    assert set(full) <= set(found.capped.tolist())


def test_it_says_what_computes(small_network, small_config):
    """Keras and the backend that is in use, and no other: an install may have only one of the three."""
    backend = keras.backend.backend()
    versions = Detector(folded(small_network, small_config)).versions
    assert versions == {"keras": keras.__version__, backend: importlib.import_module(backend).__version__}


def test_mask_in_pieces_is_its_largest_one(small_network, small_config, tiles, monkeypatch):
    """What the rows are of is what is compared: a piece that is another's mask makes no second object of a tile."""
    network = folded(small_network, small_config)
    disc = np.zeros((20, 40), bool)
    disc[4:16, 4:16] = True
    both = disc.copy()
    both[5:15, 25:35] = both[18:] = True
    other = np.roll(disc, 20, axis=1)

    def paste(logits, boxes, tile_size):
        """The same three masks in any tile: the last one holds the first and much else."""
        crops = [(disc, other, both)[k % 3] for k in range(len(boxes))]
        return crops, np.zeros((len(boxes), 2), int)

    monkeypatch.setattr(network, "paste", paste)
    found = Detector(network)(tiles[:1], 0.0)
    assert sorted(found.mask(i).sum() for i in range(len(found))) == [144, 144]
    assert sorted(found.mask_origin.tolist()) == [[4, 4], [4, 24]]


def test_pasted_mask_keeps_its_place_and_area():
    """A disc in the frame of its box comes back as that disc in pixels, clipped at the tile."""
    y, x = (np.mgrid[:28, :28] + 0.5) / 28 - 0.5
    logits = np.tile((0.16 - (y**2 + x**2)).astype("float32") * 100, (2, 1, 1))
    boxes = np.float32([[20.3, 30.7, 80.3, 90.7], [-30, 40, 30, 100]])
    crops, origins = paste_masks(logits, boxes, 128)
    rows, columns = np.nonzero(crops[0])
    np.testing.assert_allclose(
        [rows.mean() + origins[0, 0] + 0.5, columns.mean() + origins[0, 1] + 0.5], (50.3, 60.7), atol=0.1
    )
    np.testing.assert_allclose(crops[0].sum(), np.pi * (0.4 * 60) ** 2, rtol=0.02)
    np.testing.assert_allclose(crops[1].sum(), np.pi * (0.4 * 60) ** 2 / 2, rtol=0.03)
    assert tuple(origins[1]) == (0, 40)
