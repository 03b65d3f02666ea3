"""The joined network: folding changes nothing, and what is described does not depend on its neighbours."""

import numpy as np
from keras import ops

from surveycat.mrcnn.model import MaskRCNN, fold_batch_norm


def test_folding_normalisation_changes_no_output(small_network, small_config, tiles):
    """Inference on the folded network is the network that was trained."""
    folded = MaskRCNN(small_config)
    folded.parts = {name: fold_batch_norm(part) for name, part in small_network.parts.items()}
    view, levels, boxes, logits, _ = small_network.first_look(tiles)
    _, levels_folded, boxes_folded, logits_folded, _ = folded.first_look(tiles)
    for a, b in zip(levels, levels_folded, strict=True):
        a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
    np.testing.assert_allclose(ops.convert_to_numpy(logits), ops.convert_to_numpy(logits_folded), atol=1e-3)
    some = ops.convert_to_numpy(boxes)[:, 0]
    index = np.arange(len(some), dtype="int32")
    trained = [*small_network.class_outputs(view, some, index), *small_network.mask_outputs(levels, some, index)]
    run = [*folded.class_outputs(view, some, index), *folded.mask_outputs(levels_folded, some, index)]
    for a, b in zip(trained, run, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-3)


def test_no_normalisation_is_left_after_folding(small_network):
    """Speed: the folded network has no separate normalisation."""
    for part in small_network.parts.values():
        assert not any(type(layer).__name__ == "BatchNormalization" for layer in fold_batch_norm(part).layers)


def test_class_crop_of_a_small_box_is_the_native_pixels(small_network, small_config):
    """Small galaxies reach the class head at native sharpness: the crop holds the very pixels around the box."""
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(1, 128, 128, 3)).astype("float32")
    box = np.float32([[60, 50, 70, 62]])  # centre (65, 56)
    crop = ops.convert_to_numpy(
        small_network.class_crops(
            small_network.view(ops.convert_to_tensor(pixels)), ops.convert_to_tensor(box), np.int32([0])
        )
    )
    half = small_config.class_pool // 2
    np.testing.assert_allclose(crop[0, :, :, :3], pixels[0, 65 - half : 65 + half, 56 - half : 56 + half], atol=1e-4)


def test_box_mark_peaks_on_the_box(small_network):
    """The fourth channel tells the head which of two neighbours is meant."""
    box = np.float32([[60, 50, 70, 62]])
    crop = ops.convert_to_numpy(
        small_network.class_crops(
            small_network.view(ops.zeros((1, 128, 128, 3))), ops.convert_to_tensor(box), np.int32([0])
        )
    )
    mark = crop[0, :, :, 3]
    assert np.unravel_index(mark.argmax(), mark.shape) in {(15, 15), (15, 16), (16, 15), (16, 16)}
    assert mark[16, 16 + 6] < 0.45 and mark[16 + 5, 16] < 0.45


def test_tiles_of_a_batch_do_not_influence_each_other(small_network, tiles):
    """Results never depend on what else is in the batch."""
    _, _, boxes, logits, _ = small_network.first_look(tiles)
    _, _, alone, alone_logits, _ = small_network.first_look(tiles[2:3])
    np.testing.assert_allclose(ops.convert_to_numpy(logits)[2], ops.convert_to_numpy(alone_logits)[0], atol=1e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(boxes)[2], ops.convert_to_numpy(alone)[0], atol=1e-2)
