"""Box arithmetic, suppression and RoIAlign, each against a plain numpy version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from surveycat.mrcnn import roi


def random_boxes(rng, *shape, extent=100.0):
    """Boxes with sides of 1 to 40 px."""
    corner = rng.uniform(0, extent, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (*shape, 2))], axis=-1).astype(np.float32)


def iou(a, b):
    """IoU of two boxes, from its definition."""
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union


def greedy(boxes, alive, limit):
    """Textbook non-maximum suppression."""
    kept = []
    for i in range(len(boxes)):
        if alive[i] and all(iou(boxes[i], boxes[j]) <= limit for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.8), st.floats(10, 100))
def test_suppression_is_the_greedy_one(seed, limit, extent):
    """The fixed point of the IoU matrix is the textbook answer, in chains and crowds too."""
    rng = np.random.default_rng(seed)
    boxes, alive = random_boxes(rng, 2, 30, extent=extent), rng.random((2, 30)) < 0.9
    keep = ops.convert_to_numpy(roi.nms_keep(ops.convert_to_tensor(boxes), ops.convert_to_tensor(alive), limit))
    for b in range(2):
        assert list(np.nonzero(keep[b])[0]) == greedy(boxes[b], alive[b], limit)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 0.8), st.sampled_from([60.0, 300.0]))
def test_suppression_block_by_block_is_the_greedy_one(seed, limit, extent):
    """Of many boxes the first that are wanted, however they spread over blocks; classes leave each other alone."""
    rng = np.random.default_rng(seed)
    count, wanted = roi.NMS_BLOCK + 90, 40
    boxes, logits = random_boxes(rng, 2, count, extent=extent), -np.sort(-rng.normal(size=(2, count)), axis=1)
    logits[:, rng.integers(0, count, 50)] = -1e9
    group = rng.integers(0, 2, (2, count)).astype(np.int32)
    answer = roi.suppress(*map(ops.convert_to_tensor, (logits.astype(np.float32), boxes)), limit, wanted, group=group)
    kept_logits, kept = map(ops.convert_to_numpy, answer)
    for b in range(2):
        alive = logits[b] > -1e8
        rows = sorted(row for g in (0, 1) for row in greedy(boxes[b], alive & (group[b] == g), limit))[:wanted]
        np.testing.assert_array_equal(kept[b][: len(rows)], boxes[b][rows])
        np.testing.assert_allclose(kept_logits[b][: len(rows)], logits[b][rows], rtol=1e-6)
        assert (kept_logits[b][len(rows) :] == -1e9).all()


def test_crop_and_resize_is_tensorflows():
    """The pooling that weights of `mrcnn` were trained with, samples beyond the map and at its very edge included."""
    tensorflow = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(7)
    maps = [rng.normal(size=(2, side, side, 3)).astype(np.float32) for side in (16, 8)]
    corner = rng.uniform(-0.1, 0.9, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 0.4, (60, 2))], axis=1).astype(np.float32)
    boxes[:20] = np.clip(boxes[:20], 0, 1)
    index, level = rng.integers(0, 2, 60).astype(np.int32), rng.integers(0, 2, 60).astype(np.int32)
    ours = roi.crop_and_resize([ops.convert_to_tensor(one) for one in maps], boxes, index, level, 7)
    theirs = [tensorflow.image.crop_and_resize(one, boxes, index, (7, 7)).numpy() for one in maps]
    np.testing.assert_allclose(ops.convert_to_numpy(ours), np.stack(theirs)[level, np.arange(60)], atol=1e-5)


def test_bright_middle_of_a_galaxy_is_no_second_galaxy():
    """Two boxes about one centre are one galaxy; a companion of the same size beside the centre stays."""
    boxes = np.float32([[[0, 0, 40, 40], [13, 13, 27, 27], [0, 16, 14, 30]]])
    alive = np.ones((1, 3), bool)
    keep = roi.nms_keep(ops.convert_to_tensor(boxes), ops.convert_to_tensor(alive), 0.5, 0.35)
    assert ops.convert_to_numpy(keep).tolist() == [[True, False, True]]


def test_pairwise_iou_is_the_definition():
    """Matching and suppression rest on it."""
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 7), random_boxes(rng, 9)
    expected = [[iou(one, two) for two in b] for one in a]
    np.testing.assert_allclose(ops.convert_to_numpy(roi.pairwise_iou(a, b)), expected, atol=1e-6)


def test_decoding_inverts_encoding():
    """A box that is encoded relative to any other comes back."""
    rng = np.random.default_rng(1)
    boxes, reference = random_boxes(rng, 50), random_boxes(rng, 50)
    back = roi.decode_boxes(roi.encode_boxes(boxes, reference), reference)
    np.testing.assert_allclose(ops.convert_to_numpy(back), boxes, atol=1e-3)


def test_take_rows_takes_from_its_own_tile():
    """Rows never leak from one tile of the batch to another."""
    array = np.arange(24).reshape(2, 4, 3)
    index = np.array([[3, 0], [1, 1]])
    taken = ops.convert_to_numpy(roi.take_rows(ops.convert_to_tensor(array), ops.convert_to_tensor(index)))
    np.testing.assert_array_equal(taken, np.stack([array[b][index[b]] for b in range(2)]))


def bilinear(plane, y, x):
    """Value of a plane of cells between cell centres, 0 beyond half a cell outside."""
    height, width = plane.shape[:2]
    if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
        return np.zeros(plane.shape[2])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    return (
        plane[y0, x0] * (1 - fy) * (1 - fx)
        + plane[y0, x1] * (1 - fy) * fx
        + plane[y1, x0] * fy * (1 - fx)
        + plane[y1, x1] * fy * fx
    )


@pytest.mark.parametrize("samples", [1, 5])
def test_roi_align_reads_what_is_there(samples):
    """Every sample is the bilinear value at the centre of its bin, from the right map of the right image."""
    rng = np.random.default_rng(2)
    maps = [
        rng.normal(size=(3, 16, 12, 2)).astype("f4"),
        rng.normal(size=(3, 8, 6, 2)).astype("f4"),
        rng.normal(size=(3, 1, 1, 2)).astype("f4"),
    ]
    strides = (4, 8, 64)
    boxes = random_boxes(rng, 20, extent=60.0) - 10.0
    image_index, level = rng.integers(0, 3, 20), rng.integers(0, 3, 20)
    got = ops.convert_to_numpy(
        roi.roi_align(
            [ops.convert_to_tensor(m) for m in maps],
            strides,
            ops.convert_to_tensor(boxes),
            ops.convert_to_tensor(image_index.astype("int32")),
            ops.convert_to_tensor(level.astype("int32")),
            samples,
        )
    )
    bins = (np.arange(samples) + 0.5) / samples
    for r in range(20):
        plane, stride, box = maps[level[r]][image_index[r]], strides[level[r]], boxes[r]
        expected = [
            [
                bilinear(
                    plane,
                    (box[0] + v * (box[2] - box[0])) / stride - 0.5,
                    (box[1] + u * (box[3] - box[1])) / stride - 0.5,
                )
                for u in bins
            ]
            for v in bins
        ]
        np.testing.assert_allclose(got[r], expected, atol=1e-4)


def test_larger_regions_are_read_from_coarser_levels():
    """Equation 1 of the FPN paper: one level per doubling."""
    sides = np.array([5, 55, 57, 111, 113, 300], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert list(ops.convert_to_numpy(roi.pyramid_level(ops.convert_to_tensor(boxes), 28.0, 4))) == [0, 0, 1, 1, 2, 3]


def test_crops_by_rows_are_roi_align():
    """The fast way of reading a few channels gives the same samples, from every copy, also over the edge."""
    rng = np.random.default_rng(4)
    images = [rng.random((3, side, side, 3)).astype(np.float32) for side in (64, 32, 16)]
    centre, half = rng.uniform(-5, 69, (40, 2)), rng.uniform(4, 50, (40, 1))
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    index, level = rng.integers(0, 3, (2, 40)).astype(np.int32)
    images = [ops.convert_to_tensor(one) for one in images]
    slow = roi.roi_align(images, (1, 2, 4), boxes, index, level, 20)
    shapes = [(64, 64), (32, 32), (16, 16)]
    fast = roi.crop_rows(roi.stack_rows(images), shapes, (1, 2, 4), boxes, index, level, 20)
    np.testing.assert_allclose(ops.convert_to_numpy(fast), ops.convert_to_numpy(slow), atol=1e-5)
