"""Regions of interest: box arithmetic, RoIAlign and non-maximum suppression, all of fixed shape."""

from keras import ops

NMS_BLOCK = 512  # boxes that are compared with each other at once
REGIONS_AT_ONCE = 125  # of thousands that are read from a map: more would not fit into the processor's cache
BOX_STD = (0.1, 0.1, 0.2, 0.2)  # scale of box deltas: the values of Ren et al. 2015's implementation


def box_area(boxes):
    """Area of boxes.

    Parameters
    ----------
    boxes : tensor, shape (..., 4)
        ``[y0, x0, y1, x1]``.

    Returns
    -------
    tensor, shape (...)
        Area, zero for empty boxes.
    """
    return ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)


def pairwise_iou(first, second):
    """Intersection over union of every pair of boxes.

    Parameters
    ----------
    first : tensor, shape (..., N, 4)
        Boxes.
    second : tensor, shape (..., M, 4)
        Boxes.

    Returns
    -------
    tensor, shape (..., N, M)
        IoU, 0 where both boxes are empty.
    """
    a, b = ops.expand_dims(first, -2), ops.expand_dims(second, -3)
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    intersection = ops.maximum(height, 0.0) * ops.maximum(width, 0.0)
    union = box_area(a) + box_area(b) - intersection
    return intersection / ops.maximum(union, 1e-12)


def encode_boxes(boxes, reference):
    """Boxes as scaled offsets from reference boxes (Girshick et al. 2014, appendix C).

    Parameters
    ----------
    boxes, reference : tensor, shape (..., 4)
        ``[y0, x0, y1, x1]`` px.

    Returns
    -------
    tensor, shape (..., 4)
        ``(dy, dx, log dh, log dw) / BOX_STD``.
    """
    size = ops.maximum(reference[..., 2:] - reference[..., :2], 1e-3)
    target_size = ops.maximum(boxes[..., 2:] - boxes[..., :2], 1e-3)
    shift = (boxes[..., :2] + 0.5 * target_size - reference[..., :2] - 0.5 * size) / size
    return ops.concatenate([shift, ops.log(target_size / size)], axis=-1) / ops.convert_to_tensor(BOX_STD)


def decode_boxes(deltas, reference):
    """Inverse of `encode_boxes`.

    Parameters
    ----------
    deltas, reference : tensor, shape (..., 4)
        Scaled offsets, and the boxes they start from.

    Returns
    -------
    tensor, shape (..., 4)
        ``[y0, x0, y1, x1]`` px.
    """
    deltas = deltas * ops.convert_to_tensor(BOX_STD)
    size = reference[..., 2:] - reference[..., :2]
    centre = reference[..., :2] + 0.5 * size + deltas[..., :2] * size
    # exp(4) is fifty times the anchor: a wild network must not make infinite boxes
    half = 0.5 * size * ops.exp(ops.clip(deltas[..., 2:], -4.0, 4.0))
    return ops.concatenate([centre - half, centre + half], axis=-1)


def concentric(first, second, share):
    """Whether two boxes have one centre, and so frame one galaxy, whatever their sizes.

    A galaxy and its bright middle overlap too little for a limit on IoU to notice; a companion on a disc is not
    at the disc's centre.

    Parameters
    ----------
    first : tensor, shape (B, N, 4)
        Boxes.
    second : tensor, shape (B, M, 4)
        Boxes.
    share : float
        Largest distance of the centres along either axis, in units of the smaller box's side along it.

    Returns
    -------
    tensor of bool, shape (B, N, M)
        True for such pairs; nowhere if `share` is 0.
    """
    a, b = ops.expand_dims(first, -2), ops.expand_dims(second, -3)
    apart = ops.abs(0.5 * (a[..., :2] + a[..., 2:]) - 0.5 * (b[..., :2] + b[..., 2:]))
    smaller = ops.minimum(a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2])
    return ops.all(apart < share * smaller, axis=-1)


def nms_keep(boxes, alive, iou_limit, centre_share=0.0, group=None):
    """Greedy non-maximum suppression as the fixed point of an IoU matrix.

    A box stays if no better box that stays overlaps it. Starting from "all stay" and applying that rule again
    and again, the first n boxes are right after n rounds, so the end is exactly the greedy answer; real tiles
    settle after a handful of rounds.

    Parameters
    ----------
    boxes : tensor, shape (B, N, 4)
        Boxes, best first.
    alive : tensor of bool, shape (B, N)
        Boxes that take part at all.
    iou_limit : float
        Overlap above which the worse box goes.
    centre_share : float
        The worse of two `concentric` boxes goes too.
    group : tensor of int, shape (B, N), optional
        Boxes of different groups do not suppress each other.

    Returns
    -------
    tensor of bool, shape (B, N)
        The boxes that stay.
    """
    count = boxes.shape[-2]
    place = ops.arange(count)
    better = ops.expand_dims(place, 1) < place  # better[i, j]: i comes before j
    same = _overlap(boxes, boxes, iou_limit, centre_share, group, group)
    beats = ops.cast(ops.logical_and(same, better), "float32")

    def step(keep, _changed, rounds):
        beaten = ops.matmul(ops.expand_dims(ops.cast(keep, "float32"), -2), beats)[..., 0, :] > 0.5
        new = ops.logical_and(alive, ops.logical_not(beaten))
        return new, ops.any(ops.not_equal(new, keep)), rounds + 1

    keep, _, _ = ops.while_loop(
        lambda _keep, changed, rounds: ops.logical_and(changed, rounds < count),
        step,
        (alive, ops.convert_to_tensor(True), ops.convert_to_tensor(0)),
    )
    return keep


def _overlap(first, second, iou_limit, centre_share, first_group, second_group):
    """Which pairs overlap too much, and are of one group where there are groups: shape (B, N, M)."""
    overlap = pairwise_iou(first, second) > iou_limit
    if centre_share:
        overlap = ops.logical_or(overlap, concentric(first, second, centre_share))
    if first_group is None:
        return overlap
    return ops.logical_and(overlap, ops.equal(ops.expand_dims(first_group, -1), ops.expand_dims(second_group, -2)))


def nms_first(boxes, alive, iou_limit, wanted, centre_share=0.0, group=None):
    """The first boxes that the greedy suppression keeps, block by block: for many boxes, of which few are wanted.

    Each block of boxes is compared with those kept so far, then with itself; when enough are kept in every tile of
    the batch, the rest is not looked at.

    Parameters
    ----------
    boxes : tensor, shape (B, N, 4)
        Boxes, best first.
    alive : tensor of bool, shape (B, N)
        Boxes that take part at all.
    iou_limit : float
        Overlap above which the worse box goes.
    wanted : int
        Boxes to keep.
    centre_share : float
        The worse of two `concentric` boxes goes too.
    group : tensor of int, shape (B, N), optional
        Boxes of different groups do not suppress each other.

    Returns
    -------
    index : tensor of int32, shape (B, wanted)
        Rows of `boxes`, best first.
    filled : tensor of bool, shape (B, wanted)
        False where there was no box left.
    """
    total = boxes.shape[1]
    padding = -total % NMS_BLOCK
    boxes, alive = ops.pad(boxes, ((0, 0), (0, padding), (0, 0))), ops.pad(alive, ((0, 0), (0, padding)))
    group = ops.zeros_like(alive, dtype="int32") if group is None else ops.pad(group, ((0, 0), (0, padding)))
    batch = ops.shape(boxes)[0]
    slots = ops.expand_dims(ops.arange(wanted, dtype="int32"), 0)
    block_rows = ops.arange(NMS_BLOCK, dtype="int32")

    def step(start, index, count):
        rows = ops.repeat(ops.expand_dims(block_rows + start, 0), batch, axis=0)
        block, block_group = take_rows(boxes, rows), take_rows(group, rows)
        beaten = _overlap(block, take_rows(boxes, index), iou_limit, centre_share, block_group, take_rows(group, index))
        beaten = ops.any(ops.logical_and(beaten, ops.expand_dims(slots < count, 1)), axis=-1)
        free = ops.logical_and(take_rows(alive, rows), ops.logical_not(beaten))
        keep = nms_keep(block, free, iou_limit, centre_share, block_group)
        _, order = ops.top_k(ops.where(keep, NMS_BLOCK - block_rows, 0), NMS_BLOCK)  # the kept ones first, in order
        kept = ops.sum(ops.cast(keep, "int32"), axis=1, keepdims=True)
        place = slots - count
        new = take_rows(rows, take_rows(order, ops.clip(place, 0, NMS_BLOCK - 1)))
        fresh = ops.logical_and(place >= 0, place < kept)
        return start + NMS_BLOCK, ops.where(fresh, new, index), ops.minimum(count + kept, wanted)

    _, index, count = ops.while_loop(
        lambda start, _index, count: ops.logical_and(start < total, ops.any(count < wanted)),
        step,
        (
            ops.convert_to_tensor(0, dtype="int32"),
            ops.zeros((batch, wanted), dtype="int32"),
            ops.zeros((batch, 1), dtype="int32"),
        ),
    )
    return index, slots < count


def suppress(logits, boxes, iou_limit, wanted, *arrays, centre_share=0.0, group=None):
    """Greedy non-maximum suppression of boxes that come best first.

    Parameters
    ----------
    logits : tensor, shape (B, N)
        Scores; -1e9 marks slots without a box.
    boxes : tensor, shape (B, N, 4)
        Boxes, best first.
    iou_limit : float
        Overlap above which the worse box goes.
    wanted : int
        Boxes to keep.
    *arrays : tensor, shape (B, N, ...)
        What else is known of the boxes.
    centre_share : float
        The worse of two `concentric` boxes goes too.
    group : tensor of int, shape (B, N), optional
        Boxes of different groups do not suppress each other.

    Returns
    -------
    list of tensor, shape (B, wanted, ...)
        The logits, -1e9 in unused slots; the boxes; the other arrays.
    """
    alive = logits > -1e8
    if boxes.shape[1] <= NMS_BLOCK:
        keep = nms_keep(boxes, alive, iou_limit, centre_share, group)
        return take_best(ops.where(keep, logits, -1e9), wanted, boxes, *arrays)
    index, filled = nms_first(boxes, alive, iou_limit, wanted, centre_share, group)
    logits = ops.where(filled, take_rows(logits, index), -1e9)
    return [logits, *[take_rows(array, index) for array in (boxes, *arrays)]]


def take_best(order_by, count, *arrays):
    """The rows with the largest keys, best first, tile by tile.

    Parameters
    ----------
    order_by : tensor, shape (B, N)
        Keys.
    count : int
        Rows to keep.
    *arrays : tensor, shape (B, N, ...)
        Arrays to take the rows from.

    Returns
    -------
    list of tensor, shape (B, count, ...)
        The keys, then each array.
    """
    keys, index = ops.top_k(order_by, count)
    return [keys, *[take_rows(array, index) for array in arrays]]


def take_rows(array, index):
    """``array[b, index[b, i]]`` for every b and i.

    Parameters
    ----------
    array : tensor, shape (B, N, ...)
        Rows to take from.
    index : tensor of int, shape (B, M)
        Rows to take.

    Returns
    -------
    tensor, shape (B, M, ...)
        The rows.
    """
    batch, rows = ops.shape(array)[0], array.shape[1]
    tail = tuple(array.shape[2:])
    flat = ops.reshape(array, (batch * rows, *tail))
    offset = ops.expand_dims(ops.arange(batch, dtype="int32") * rows, -1)
    return ops.take(flat, ops.cast(index, "int32") + offset, axis=0)


def pyramid_level(boxes, roi_side, count):
    """Pyramid level that a RoI is read from (Lin et al. 2017, equation 1).

    Parameters
    ----------
    boxes : tensor, shape (R, 4)
        Boxes.
    roi_side : float
        RoIs of up to twice this side go to level 0, of up to four times to level 1, and so on.
    count : int
        Number of levels.

    Returns
    -------
    tensor of int32, shape (R,)
        Index of the level, 0 is the finest.
    """
    side = ops.sqrt(ops.maximum(box_area(boxes), 1e-12))
    level = ops.floor(ops.log(side / roi_side) / ops.log(2.0))
    return ops.cast(ops.clip(level, 0.0, count - 1.0), "int32")


def roi_align(maps, strides, boxes, image_index, level, samples):
    """Bilinear samples of feature maps on a regular grid in each box (He et al. 2017, section 3).

    One sample is taken at the centre of each of the samples x samples bins; what lies outside the map is 0.

    Parameters
    ----------
    maps : list of tensor, shape (B, H_l, W_l, C)
        Feature maps; cell i of a map of stride s spans s * i to s * (i + 1) px.
    strides : sequence of float
        px per cell of each map.
    boxes : tensor, shape (R, 4)
        RoIs, px.
    image_index, level : tensor of int32, shape (R,)
        Which image of the batch, and which of the maps, each RoI is read from.
    samples : int
        Samples along each side.

    Returns
    -------
    tensor, shape (R, samples, samples, C)
        The samples.
    """
    return _sample(maps, boxes, image_index, level, samples, _bin_centres(strides, level, samples), margin=0.5)


def crop_and_resize(maps, boxes, image_index, level, samples):
    """Bilinear samples of feature maps on a grid that includes the corners of each box, as TensorFlow 1 took them.

    A sample outside the map is 0, even if only by rounding, and the order of operations is that of
    ``tf.image.crop_and_resize``: so even those samples come out as they did where weights were trained with it.

    Parameters
    ----------
    maps : list of tensor, shape (B, H_l, W_l, C)
        Feature maps, which all cover the tile.
    boxes : tensor, shape (R, 4)
        RoIs, normalised: 0 is the centre of a map's first cell, 1 that of its last.
    image_index, level : tensor of int32, shape (R,)
        Which image of the batch, and which of the maps, each RoI is read from.
    samples : int
        Samples along each side, at least 2.

    Returns
    -------
    tensor, shape (R, samples, samples, C)
        The samples.
    """
    steps = ops.arange(samples, dtype="float32")

    def with_corners(low, high, last):
        return low * last + steps * ((high - low) * last / (samples - 1))

    return _sample(maps, boxes, image_index, level, samples, with_corners, margin=0.0)


def _sample(maps, boxes, image_index, level, samples, positions, margin):
    """Bilinear samples of one map for each box, on the grid that `positions` lays.

    `positions` takes low and high end of the boxes along one axis and the index of the maps' last cells, each of
    shape (R, 1), and returns the samples' positions in cells, 0 at the centre of the first, shape (R, samples).
    Samples farther than `margin` outside the centres of the outermost cells are 0.
    """
    shapes = [(one.shape[1], one.shape[2]) for one in maps]
    cells = [height * width for height, width in shapes]
    channels = maps[0].shape[-1]
    flat = ops.concatenate([ops.reshape(one, (-1, n, channels)) for one, n in zip(maps, cells, strict=True)], axis=1)
    flat = ops.reshape(flat, (-1, channels))
    height, width = (_per_level(lengths, level) for lengths in zip(*shapes, strict=True))
    start = image_index * sum(cells) + _per_level(_starts(cells), level)
    y, y_part, y_inside = _axis_samples(boxes[:, 0], boxes[:, 2], height, positions, margin)
    x, x_part, x_inside = _axis_samples(boxes[:, 1], boxes[:, 3], width, positions, margin)
    row_step = ops.reshape(width, (-1, 1, 1))
    first = ops.reshape(start, (-1, 1, 1)) + ops.expand_dims(y, 2) * row_step + ops.expand_dims(x, 1)
    # a map of a single row or column has no cell after the first
    down = ops.where(ops.reshape(height, (-1, 1, 1)) > 1, row_step, 0)
    right = ops.where(ops.reshape(width, (-1, 1, 1)) > 1, 1, 0)

    def weight(wy, wx):
        return ops.expand_dims(ops.expand_dims(wy * y_inside, 2) * ops.expand_dims(wx * x_inside, 1), -1)

    corners = (
        (first, weight(1 - y_part, 1 - x_part)),
        (first + right, weight(1 - y_part, x_part)),
        (first + down, weight(y_part, 1 - x_part)),
        (first + down + right, weight(y_part, x_part)),
    )
    count = boxes.shape[0]
    if count is None or count % REGIONS_AT_ONCE or count == REGIONS_AT_ONCE:
        return _weighted_rows(flat, corners)
    pieces = [tuple(ops.reshape(one, (-1, REGIONS_AT_ONCE, *one.shape[1:])) for one in corner) for corner in corners]
    sampled = ops.map(lambda piece: _weighted_rows(flat, piece), tuple(pieces))
    return ops.reshape(sampled, (count, samples, samples, channels))


def _weighted_rows(rows, corners):
    """Sum of rows of a matrix with weights, for pairs of an index and a weight of one shape."""
    (index, weight), *others = corners
    total = ops.take(rows, index, axis=0) * weight
    for index, weight in others:
        total = total + ops.take(rows, index, axis=0) * weight
    return total


def stack_rows(images):
    """Copies of images at several sizes, row upon row, as `crop_rows` reads them.

    Parameters
    ----------
    images : list of tensor, shape (B, H_l, W_l, C)
        The copies, the widest first.

    Returns
    -------
    tensor, shape (B, sum of H_l, W_0 * C)
        Their rows; narrower ones are filled up with zeros.
    """
    widest, channels = images[0].shape[2], images[0].shape[3]
    padded = [ops.pad(one, ((0, 0), (0, 0), (0, widest - one.shape[2]), (0, 0))) for one in images]
    stacked = ops.concatenate(padded, axis=1)
    return ops.reshape(stacked, (-1, stacked.shape[1], widest * channels))


def crop_rows(stacked, shapes, strides, boxes, image_index, level, samples):
    """What `roi_align` gives, faster where channels are few: whole rows are gathered, then columns of those.

    Parameters
    ----------
    stacked : tensor, shape (B, sum of H_l, W_0 * C)
        From `stack_rows`.
    shapes : list of (int, int)
        Rows and columns of each copy.
    strides : sequence of float
        px per cell of each copy.
    boxes : tensor, shape (R, 4)
        Regions, px.
    image_index, level : tensor of int32, shape (R,)
        Which image of the batch, and which of its copies, each region is read from.
    samples : int
        Samples along each side.

    Returns
    -------
    tensor, shape (R, samples, samples, C)
        The samples.
    """
    (heights, widths), length = zip(*shapes, strict=True), stacked.shape[2]
    widest, channels = widths[0], length // widths[0]
    centres = _bin_centres(strides, level, samples)
    y, y_part, y_inside = _axis_samples(boxes[:, 0], boxes[:, 2], _per_level(heights, level), centres, 0.5)
    x, x_part, x_inside = _axis_samples(boxes[:, 1], boxes[:, 3], _per_level(widths, level), centres, 0.5)
    start = image_index * sum(heights) + _per_level(_starts(heights), level)
    y_part, y_inside = ops.expand_dims(y_part, -1), ops.expand_dims(y_inside, -1)
    rows = _blend_rows(ops.reshape(stacked, (-1, length)), y + ops.expand_dims(start, -1), y_part, y_inside)
    first = ops.reshape(ops.arange(ops.shape(boxes)[0] * samples, dtype="int32") * widest, (-1, samples, 1))
    at = first + ops.expand_dims(x, 1)  # of pixels, left of each sample in its row
    x_part, x_inside = (ops.reshape(one, (-1, 1, samples, 1)) for one in (x_part, x_inside))
    return _blend_rows(ops.reshape(rows, (-1, channels)), at, x_part, x_inside)


def _blend_rows(rows, below, part, inside):
    """Between two rows of a matrix and the two after it: 0 where not inside."""
    return ops.take(rows, below, axis=0) * ((1 - part) * inside) + ops.take(rows, below + 1, axis=0) * (part * inside)


def _bin_centres(strides, level, samples):
    """The grid of `roi_align`, as `_axis_samples` takes it: the centres of equal bins."""
    stride = ops.expand_dims(ops.take(ops.convert_to_tensor([float(s) for s in strides], dtype="float32"), level), -1)
    bins = (ops.arange(samples, dtype="float32") + 0.5) / samples
    return lambda low, high, _last: (low + bins * (high - low)) / stride - 0.5


def _axis_samples(low, high, length, positions, margin):
    """Cell below each sample, its distance from it, and which samples lie inside; shapes (R, samples)."""
    last = ops.expand_dims(ops.cast(length, "float32") - 1.0, -1)
    position = positions(ops.expand_dims(low, -1), ops.expand_dims(high, -1), last)
    inside = ops.logical_and(position >= -margin, position <= last + margin)
    position = ops.clip(position, 0.0, last)
    below = ops.minimum(ops.floor(position), ops.maximum(last - 1.0, 0.0))
    return ops.cast(below, "int32"), position - below, ops.cast(inside, "float32")


def _per_level(values, level):
    """The integer that belongs to each region's level, shape (R,)."""
    return ops.take(ops.convert_to_tensor(values, dtype="int32"), level)


def _starts(lengths):
    """Where each of several blocks begins when they lie one after another."""
    return [sum(lengths[:i]) for i in range(len(lengths))]
