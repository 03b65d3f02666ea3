"""What training minimises: the losses of Mask R-CNN (He et al. 2017, section 3) with ignored regions."""

from keras import ops

from surveycat.mrcnn import roi
from surveycat.mrcnn.rpn import propose


def binary_cross_entropy(target, logit):
    """Cross-entropy of a probability against a logit, element by element.

    Parameters
    ----------
    target : tensor, shape (...)
        Wanted probability, 0 to 1.
    logit : tensor, shape (...)
        Prediction.

    Returns
    -------
    tensor, shape (...)
        Loss.
    """
    return ops.softplus(logit) - target * logit


def focal_loss(target, logit, gamma=2.0, alpha=0.25):
    """Cross-entropy in which easy examples count little (Lin et al. 2017b, equation 5).

    Parameters
    ----------
    target : tensor, shape (...)
        0 or 1.
    logit : tensor, shape (...)
        Prediction.
    gamma, alpha : float
        Strength of the focus, weight of positives.

    Returns
    -------
    tensor, shape (...)
        Loss.
    """
    probability = ops.sigmoid(logit)
    wrong = target * (1 - probability) + (1 - target) * probability
    balance = target * alpha + (1 - target) * (1 - alpha)
    return balance * wrong**gamma * binary_cross_entropy(target, logit)


def smooth_l1(error):
    """Quadratic below 1, linear above (Girshick 2015, equation 3), summed over the last axis.

    Parameters
    ----------
    error : tensor, shape (..., 4)
        Differences of box deltas.

    Returns
    -------
    tensor, shape (...)
        Loss.
    """
    size = ops.abs(error)
    return ops.sum(ops.where(size < 1.0, 0.5 * size * size, size - 0.5), axis=-1)


def weighted_mean(values, weights):
    """Mean of values where they count, 0 where none does.

    Parameters
    ----------
    values, weights : tensor, shape (...)
        Values and their weights, at least 0.

    Returns
    -------
    tensor, shape ()
        The mean.
    """
    return ops.sum(values * weights) / ops.maximum(ops.sum(weights), 1.0)


def match(boxes, truth, truth_valid):
    """Best true box of every box.

    Parameters
    ----------
    boxes : tensor, shape (B, N, 4) or (N, 4)
        Anchors or RoIs.
    truth : tensor, shape (B, G, 4)
        True boxes.
    truth_valid : tensor of float, shape (B, G)
        1 for true boxes, 0 for padding.

    Returns
    -------
    iou : tensor, shape (B, N)
        Largest IoU.
    index : tensor of int32, shape (B, N)
        The true box that has it.
    overlaps : tensor, shape (B, N, G)
        All IoU.
    """
    overlaps = roi.pairwise_iou(boxes, truth) * ops.expand_dims(truth_valid, 1)
    return ops.max(overlaps, axis=-1), ops.cast(ops.argmax(overlaps, axis=-1), "int32"), overlaps


def centre_ignored(boxes, ignore):
    """Whether the centre of each box lies on something that is neither galaxy nor background.

    Parameters
    ----------
    boxes : tensor, shape (B, N, 4)
        Boxes, px.
    ignore : tensor, shape (B, T, T)
        1 where unlabelled extended objects are.

    Returns
    -------
    tensor of float, shape (B, N)
        1 for boxes to leave out.
    """
    side = ignore.shape[1]
    centre = ops.clip(0.5 * (boxes[..., :2] + boxes[..., 2:]), 0.0, side - 1.0)
    cell = ops.cast(centre, "int32")
    flat = ops.reshape(ops.cast(ignore, "float32"), (-1, side * side, 1))
    return roi.take_rows(flat, cell[..., 0] * side + cell[..., 1])[..., 0]


def rpn_losses(network, logits, deltas, batch):
    """Objectness and box loss of the anchors.

    Every true box claims the anchor that fits it best, so that odd sizes are learnt too (Ren et al. 2015,
    section 3.1.2).

    Parameters
    ----------
    network : MaskRCNN
        For its anchors.
    logits, deltas : tensor
        From `MaskRCNN.rpn_outputs`.
    batch : dict of tensor
        As `training_losses` takes it.

    Returns
    -------
    score, box : tensor, shape ()
        The two losses.
    """
    truth, valid = batch["box"], batch["valid"]
    anchors = ops.convert_to_tensor(network.anchors)
    iou, index, overlaps = match(anchors, truth, valid)
    best = ops.max(overlaps, axis=1, keepdims=True)
    claimed = ops.any(ops.logical_and(overlaps >= best - 1e-6, best > 0.1), axis=-1)
    positive = ops.cast(ops.logical_or(iou >= 0.5, claimed), "float32")
    wide = ops.broadcast_to(ops.expand_dims(anchors, 0), (ops.shape(truth)[0], *network.anchors.shape))
    counts = ops.cast(iou < 0.35, "float32") * (1 - centre_ignored(wide, batch["ignore"]))
    counts = ops.maximum(counts, positive)
    positives = ops.maximum(ops.sum(positive), 1.0)
    score = ops.sum(focal_loss(positive, logits) * counts) / positives
    target = roi.encode_boxes(roi.take_rows(truth, index), wide)
    return score, ops.sum(smooth_l1(deltas - target) * positive) / positives


def box_losses(logits, deltas, rois, batch):
    """Score and box loss of the second stage.

    Parameters
    ----------
    logits, deltas : tensor, shape (B, N), (B, N, 4)
        From `MaskRCNN.box_outputs`.
    rois : tensor, shape (B, N, 4)
        The boxes they belong to.
    batch : dict of tensor
        As `training_losses` takes it.

    Returns
    -------
    score, box : tensor, shape ()
        The two losses.
    """
    iou, index, _ = match(rois, batch["box"], batch["valid"])
    positive = ops.cast(iou >= 0.5, "float32")
    sound = ops.cast(roi.box_area(rois) > 1.0, "float32")
    # near misses of a dozen px are neither: called negative, they teach that small galaxies are none
    negative = ops.cast(iou < 0.3, "float32") * sound * (1 - centre_ignored(rois, batch["ignore"]))
    score = weighted_mean(binary_cross_entropy(positive, logits), positive + negative)
    target = roi.encode_boxes(roi.take_rows(batch["box"], index), rois)
    return score, weighted_mean(smooth_l1(deltas - target), positive)


def mask_loss(network, levels, batch):
    """Mask loss on true boxes that were jittered.

    Parameters
    ----------
    network : MaskRCNN
        The network.
    levels : list of tensor
        Feature pyramid.
    batch : dict of tensor
        As `training_losses` takes it.

    Returns
    -------
    tensor, shape ()
        The loss.
    """
    count = batch["roi"].shape[1]
    boxes = ops.reshape(batch["roi"], (-1, 4))
    image_index = ops.repeat(ops.arange(ops.shape(batch["roi"])[0], dtype="int32"), count)
    (logits,) = network.mask_outputs(levels, boxes, image_index, training=True)
    side = logits.shape[-1]
    target = mask_targets(batch, roi.take_rows(batch["box"], batch["roi_index"]), side)
    loss = binary_cross_entropy(target, ops.reshape(logits, (-1, count, side, side)))
    return weighted_mean(ops.mean(loss, axis=(-2, -1)), batch["roi_valid"])


def mask_targets(batch, truth, side):
    """True masks, cut out of their own frames at other boxes.

    Parameters
    ----------
    batch : dict of tensor
        ``mask`` (B, G, F, F), 0 to 255, each in the frame of its box; ``roi`` (B, P, 4), the boxes to cut at, px;
        ``roi_index`` (B, P), the object of each.
    truth : tensor, shape (B, P, 4)
        The true boxes of these objects, px.
    side : int
        Samples along each side.

    Returns
    -------
    tensor, shape (B, P, side, side)
        From 0 to 1.
    """
    frames = batch["mask"]
    frame = frames.shape[-1]
    objects = frames.shape[1]
    size = ops.tile(truth[..., 2:] - truth[..., :2], (1, 1, 2))
    corner = ops.tile(truth[..., :2], (1, 1, 2))
    local = (batch["roi"] - corner) / ops.maximum(size, 1.0) * frame
    offset = ops.expand_dims(ops.arange(ops.shape(frames)[0], dtype="int32") * objects, -1)
    index = ops.reshape(batch["roi_index"] + offset, (-1,))
    flat = ops.reshape(ops.cast(frames, "float32") / 255.0, (-1, frame, frame, 1))
    sampled = roi.roi_align([flat], (1,), ops.reshape(local, (-1, 4)), index, ops.zeros_like(index), side)
    return ops.reshape(sampled, (-1, truth.shape[1], side, side))


def training_losses(network, batch, proposals=48, heads_only=False):
    """The losses of boxes and masks; the class head is trained by itself, see `training.classes`.

    Parameters
    ----------
    network : MaskRCNN
        The network.
    batch : dict of tensor
        ``image`` (B, T, T, 3) uint8; ``ignore`` (B, T, T); ``box`` (B, G, 4); ``valid`` (B, G); ``mask``
        (B, G, F, F) 0 to 255 in the frame of the box; ``roi`` (B, P, 4) jittered boxes of some of the objects,
        ``roi_index`` (B, P), ``roi_valid`` (B, P).
    proposals : int
        RPN proposals a tile.
    heads_only : bool
        Whether the backbone stays as it is, its normalisations included.

    Returns
    -------
    dict of str to tensor, shape ()
        ``rpn_score``, ``rpn_box``, ``score``, ``box``, ``mask``.
    """
    levels = network.parts["backbone"](network.normalise(batch["image"]), training=not heads_only)
    if heads_only:
        levels = [ops.stop_gradient(level) for level in levels]
    rpn_logits, rpn_deltas = network.rpn_outputs(levels, training=True)
    rpn_score, rpn_box = rpn_losses(network, rpn_logits, rpn_deltas, batch)
    anchors = ops.convert_to_tensor(network.anchors)
    stop = ops.stop_gradient
    found, _ = propose(
        stop(rpn_logits), stop(rpn_deltas), anchors, network.config, before=2 * proposals, after=proposals
    )
    rois = stop(ops.concatenate([found, batch["roi"]], axis=1))
    logits, deltas = network.box_outputs(levels, rois, training=True)
    score, box = box_losses(logits, deltas, rois, batch)
    mask = mask_loss(network, levels, batch)
    return {"rpn_score": rpn_score, "rpn_box": rpn_box, "score": score, "box": box, "mask": mask}
