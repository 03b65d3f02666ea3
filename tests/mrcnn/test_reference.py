"""The network is the original `mrcnn` package's, array by array, from pixels to masks.

`../shared/mrcnn_reference` holds what that package computed from generated weights; its README says what each array
is and how far an honest implementation may differ. Each stage is fed the package's own arrays, so that an early
difference cannot hide a later one; the last test goes from the image to the masks with ours alone.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

FOLDERS = sorted((pathlib.Path(__file__).parents[3] / "shared").glob("mrcnn_reference*"))

pytestmark = pytest.mark.skipif(
    not FOLDERS, reason="../shared/mrcnn_reference is not here: the network was NOT compared"
)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def reference(request, tmp_path_factory):
    """The folder, and a network as it runs (normalisation folded) with the reference's weights."""
    from surveycat.mrcnn.mrcnn_file import load_mrcnn
    from surveycat.mrcnn.presets import PRESETS
    from surveycat.mrcnn.weights import make_network

    folder = request.param
    theirs = json.loads((folder / "config.json").read_text())["config"]
    config = dataclasses.replace(
        PRESETS["mask-galaxy-2class"],
        backbone=theirs["BACKBONE"],
        rpn_nms_iou=theirs["RPN_NMS_THRESHOLD"],
        max_detections=theirs["DETECTION_MAX_INSTANCES"],
        first_look_score=theirs["DETECTION_MIN_CONFIDENCE"],
        class_agnostic=False,
    )
    path = tmp_path_factory.mktemp("reference") / "weights.h5"
    command = [sys.executable, folder / "make_weights.py", folder / "weights_layout.json", path]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    network = make_network(config)
    assert load_mrcnn(network, path) == ()
    path.unlink()
    network.fold()
    return folder, network


@pytest.fixture(scope="module", params=["a", "b"])
def case(reference, request):
    """The network, an image, the package's arrays for it, and our pyramid of the package's input."""
    folder, network = reference
    image = np.asarray(Image.open(folder / f"image_{request.param}.png").convert("RGB"))
    with np.load(folder / f"reference_{request.param}.npz") as file:
        theirs = dict(file)
    levels = network.parts["backbone"](theirs["molded_image"][None], training=False)
    return network, image, theirs, levels


def to_numpy(tensor):
    """An array, whatever the backend."""
    from keras import ops

    return ops.convert_to_numpy(tensor)


def close(ours, theirs, absolute=0.0, relative=0.0):
    """Largest difference within `absolute`, or within `relative` of the largest value."""
    ours = to_numpy(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= absolute + relative * np.abs(theirs).max()


def test_molded_input(case):
    """Resizing, truncation, padding and the mean: the input of the network, to the last grey level."""
    from surveycat.mrcnn.mold import mold

    network, image, theirs, _ = case
    tile, window = mold(image, network.config.tile_size)
    np.testing.assert_array_equal(window, theirs["window"])
    close(network.normalise(tile), theirs["molded_image"], absolute=1e-4)


def test_anchors(case):
    """Order, shapes and places of all 16368."""
    network, _, theirs, _ = case
    close(network.anchors, theirs["anchors_norm"], absolute=1e-6)


def test_pyramid(case):
    """P2 to P6."""
    _, _, theirs, levels = case
    compared = 0
    for number, level in enumerate(levels, start=2):
        ours, step = to_numpy(level)[0], {2: 4, 3: 2}.get(number)
        for name, part in (
            (f"P{number}", ours),
            (f"P{number}_grid", ours[::step, ::step]),
            (f"P{number}_chan", ours[..., ::16]),
        ):
            if name in theirs:
                close(part, theirs[name], relative=2e-5)
                compared += 1
    assert compared >= 5


def test_rpn(case):
    """Scores and box deltas of every anchor."""
    from keras import ops

    network, _, theirs, levels = case
    logits, deltas = network.rpn_outputs(levels)
    close(ops.sigmoid(logits)[0], theirs["rpn_class"][:, 1], absolute=5e-5)
    close(deltas[0], theirs["rpn_bbox"], relative=5e-5)


def test_proposals(case):
    """The thousand proposals from the package's RPN outputs, in its order."""
    from keras import ops

    from surveycat.mrcnn.rpn import propose

    network, _, theirs, _ = case
    logits = (theirs["rpn_logits"][:, 1] - theirs["rpn_logits"][:, 0])[None]
    boxes, _ = propose(logits, theirs["rpn_bbox"][None], ops.convert_to_tensor(network.anchors), network.config)
    close(boxes[0], theirs["proposals"], absolute=1e-5)


def test_pooling_and_heads(case):
    """Class probabilities and box deltas at the package's own proposals; every row, those at the edge too."""
    from keras import ops

    network, _, theirs, levels = case
    logits, deltas = network.box_outputs(levels, ops.convert_to_tensor(theirs["proposals"][None]))
    close(logits[0], theirs["mrcnn_class_logits"], relative=5e-5)
    close(ops.softmax(logits)[0], theirs["mrcnn_class"], absolute=5e-5)
    close(deltas[0], theirs["mrcnn_bbox"], relative=5e-5)


def test_pooling_of_hand_made_boxes(case):
    """All sizes, the whole image, empty boxes and boxes on the edge."""
    from keras import ops

    network, _, theirs, levels = case
    if "probe_boxes" not in theirs:
        pytest.skip("hand-made boxes come with image a only")
    boxes = ops.convert_to_tensor(theirs["probe_boxes"])
    index = ops.zeros(len(boxes), "int32")
    close(network.pool(levels, boxes, index, 7)[..., ::8], theirs["probe_roi_align_class_s"], relative=5e-5)
    regions = network.pool(levels, boxes[::4], index[::4], 14)
    close(regions[..., ::8], theirs["probe_roi_align_mask_s"], relative=5e-5)
    close(ops.sigmoid(network.parts["mask_head"](regions)), theirs["probe_mask_s"], absolute=1e-4)
    logits, deltas = network.box_outputs(levels, boxes[None])
    close(ops.softmax(logits)[0], theirs["probe_class"], absolute=5e-5)
    close(deltas[0], theirs["probe_bbox"], relative=5e-5)


def test_masks(case):
    """Mask probabilities of the package's own detections, each in the channel of its class."""
    from keras import ops

    network, _, theirs, levels = case
    boxes = ops.convert_to_tensor(theirs["detections"][:, :4])
    regions = network.pool(levels, boxes, ops.zeros(len(boxes), "int32"), network.config.mask_pool)
    masks = to_numpy(ops.sigmoid(network.parts["mask_head"](regions)))
    own = theirs["detections"][:, 4].astype(int)
    close(masks[np.arange(len(own)), ..., own], theirs["mrcnn_mask_own"], absolute=1e-4)


def test_from_image_to_masks(case):
    """The package's `detect`, nothing of its own fed: the same boxes, classes, scores and masks in the same order."""
    from surveycat.mrcnn.paper import detect

    network, image, theirs, _ = case
    found = detect(network, image)
    assert np.abs(found["rois"] - theirs["result_rois"]).max() <= 1
    np.testing.assert_array_equal(found["class_ids"], theirs["result_class_ids"])
    close(found["scores"], theirs["result_scores"], absolute=5e-5)
    height, width, count = theirs["result_mask_shape"]
    masks = np.unpackbits(theirs["result_mask_bits"], axis=1)[:, : height * width].reshape(count, height, width)
    assert found["masks"].shape == masks.shape
    assert (found["masks"] != masks).sum() <= 1e-3 * masks.sum()
