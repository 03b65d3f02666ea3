"""The five losses of Mask R-CNN (He et al. 2017, section 3.1), and their targets, as the ``mrcnn`` package has them.

Anchors and regions are drawn at random in that package; here the caller brings the random numbers, so that a step can
be repeated. Two things differ on purpose: slots that hold no proposal are not taught as background, and what is known
to be a galaxy of unknown class teaches the RPN only.
"""

from keras import ops

from surveycat.mrcnn import roi
from surveycat.mrcnn.losses import binary_cross_entropy, centre_ignored, mask_targets, match, smooth_l1, weighted_mean
from surveycat.mrcnn.presets import LAST_PIXEL
from surveycat.mrcnn.rpn import propose

TERMS = ("rpn_class", "rpn_bbox", "mrcnn_class", "mrcnn_bbox", "mrcnn_mask")


def draw(chosen_from, numbers, most):
    """A random part of what may be chosen: that with the largest numbers.

    Parameters
    ----------
    chosen_from : tensor of bool, shape (B, N)
        What may be chosen.
    numbers : tensor, shape (B, N)
        Random numbers from 0 to 1.
    most : tensor of int32, shape (B, 1), or int
        How many at most.

    Returns
    -------
    tensor of bool, shape (B, N)
        The choice.
    """
    order = ops.argsort(ops.where(chosen_from, -numbers, 1.0), axis=1)
    rank = ops.argsort(order, axis=1)
    return ops.logical_and(chosen_from, rank < most)


def anchor_targets(anchors, batch, count):
    """Which anchors teach the RPN, and what (Ren et al. 2015, section 3.1.2).

    Parameters
    ----------
    anchors : tensor, shape (A, 4)
        Anchors, px.
    batch : dict of tensor
        As `paper_losses` takes it.
    count : int
        Anchors an image that teach, at most half of them positive.

    Returns
    -------
    positive, negative : tensor of bool, shape (B, A)
        IoU with an object at least 0.7, or no other anchor has more with it; IoU with all below 0.3.
    deltas : tensor, shape (B, A, 4)
        To the object that overlaps most.
    """
    iou, index, overlaps = match(anchors, batch["box"], batch["valid"])
    best = ops.max(overlaps, axis=1, keepdims=True)
    claimed = ops.any(ops.logical_and(overlaps >= best, best > 0), axis=-1)
    positive = ops.logical_or(iou >= 0.7, claimed)
    wide = ops.broadcast_to(ops.expand_dims(anchors, 0), (ops.shape(batch["box"])[0], *anchors.shape))
    open_sky = centre_ignored(wide, batch["ignore"]) < 0.5
    negative = ops.logical_and(ops.logical_and(iou < 0.3, ops.logical_not(claimed)), open_sky)
    positive = draw(positive, batch["anchor_draw"], count // 2)
    left = count - ops.sum(ops.cast(positive, "int32"), axis=1, keepdims=True)
    negative = draw(negative, batch["anchor_draw"], left)
    return positive, negative, roi.encode_boxes(roi.take_rows(batch["box"], index), wide)


def region_targets(proposals, alive, truth, batch, count, ratio):
    """Which proposals teach the heads, and what (Girshick 2015, section 2.3).

    Parameters
    ----------
    proposals : tensor, shape (B, N, 4)
        Proposals, normalised.
    alive : tensor of bool, shape (B, N)
        Slots that hold one.
    truth : tensor, shape (B, G, 4)
        True boxes, normalised.
    batch : dict of tensor
        As `paper_losses` takes it.
    count, ratio : int, float
        Regions an image; the part of them that lies on objects (IoU at least 0.5). As in the package there are fewer
        negative ones where there are fewer positive ones, none without.

    Returns
    -------
    dict of tensor
        ``roi`` (B, R, 4), the positive ones first; ``counts`` (B, R), 1 for regions that teach; ``class`` (B, R),
        0 for background; ``index`` (B, R), the object; ``deltas`` (B, R, 4).
    """
    iou, index, _ = match(proposals, truth, batch["valid"])
    positive = ops.logical_and(alive, iou >= 0.5)
    sky = ops.logical_and(alive, centre_ignored(_to_pixels(proposals, batch), batch["ignore"]) < 0.5)
    negative = ops.logical_and(sky, iou < 0.5)
    positive = draw(positive, batch["region_draw"], int(count * ratio))
    found = ops.sum(ops.cast(positive, "int32"), axis=1, keepdims=True)
    wanted = ops.cast(ops.cast(found, "float32") / ratio, "int32") - found
    negative = draw(negative, batch["region_draw"], wanted)
    key = 2.0 * ops.cast(positive, "float32") + ops.cast(negative, "float32")
    key, regions, index, positive = roi.take_best(key, count, proposals, index, ops.cast(positive, "int32"))
    classes = roi.take_rows(ops.expand_dims(batch["class"], -1), index)[..., 0]
    known = ops.logical_or(positive == 0, classes > 0)
    return {
        "roi": regions,
        "counts": ops.cast(ops.logical_and(key > 0, known), "float32"),
        "class": classes * positive,
        "index": index,
        "deltas": roi.encode_boxes(roi.take_rows(truth, index), regions),
    }


def _to_pixels(boxes, batch):
    """Normalised boxes in px of the images of a batch."""
    return boxes * (batch["image"].shape[1] - 1.0) + ops.convert_to_tensor(LAST_PIXEL)


def rpn_losses(logits, deltas, positive, negative, target):
    """Objectness and box loss of the RPN.

    Parameters
    ----------
    logits, deltas : tensor, shape (B, A), (B, A, 4)
        From the network.
    positive, negative, target : tensor
        From `anchor_targets`.

    Returns
    -------
    rpn_class, rpn_bbox : tensor, shape ()
        Means over the anchors that teach, and over the four deltas of the positive ones.
    """
    positive = ops.cast(positive, "float32")
    score = weighted_mean(binary_cross_entropy(positive, logits), positive + ops.cast(negative, "float32"))
    return score, weighted_mean(smooth_l1(deltas - target) / 4.0, positive)


def class_loss(logits, targets):
    """Cross-entropy over the classes and background.

    Parameters
    ----------
    logits : tensor, shape (B, R, K)
        From the network.
    targets : dict of tensor
        From `region_targets`.

    Returns
    -------
    tensor, shape ()
        Mean over the regions that teach.
    """
    own = ops.sum(ops.one_hot(targets["class"], logits.shape[-1]) * logits, axis=-1)
    return weighted_mean(ops.logsumexp(logits, axis=-1) - own, targets["counts"])


def box_loss(deltas, targets):
    """Box loss of regions on objects, as the class that the object has.

    Parameters
    ----------
    deltas : tensor, shape (B, R, K, 4)
        From the network.
    targets : dict of tensor
        From `region_targets`.

    Returns
    -------
    tensor, shape ()
        Mean over their four deltas.
    """
    own = ops.expand_dims(ops.one_hot(targets["class"], deltas.shape[-2]), -1)
    error = ops.sum(deltas * own, axis=-2) - targets["deltas"]
    return weighted_mean(smooth_l1(error) / 4.0, _on_objects(targets))


def mask_loss(logits, targets, batch):
    """Mask loss of regions on objects, as the class that the object has.

    Parameters
    ----------
    logits : tensor, shape (B, P, S, S, K)
        From the network, for the first P regions.
    targets : dict of tensor
        From `region_targets`.
    batch : dict of tensor
        As `paper_losses` takes it.

    Returns
    -------
    tensor, shape ()
        Mean over their pixels.
    """
    count, side = logits.shape[1], logits.shape[2]
    cut = {"mask": batch["mask"], "roi": _to_pixels(targets["roi"], batch)[:, :count]}
    cut["roi_index"] = targets["index"][:, :count]
    wanted = ops.round(mask_targets(cut, roi.take_rows(batch["box"], cut["roi_index"]), side))
    own = ops.one_hot(targets["class"][:, :count], logits.shape[-1])
    own = ops.sum(logits * ops.reshape(own, (-1, count, 1, 1, logits.shape[-1])), axis=-1)
    loss = ops.mean(binary_cross_entropy(wanted, own), axis=(-2, -1))
    return weighted_mean(loss, _on_objects(targets)[:, :count])


def _on_objects(targets):
    """1 for regions that teach what an object of known class is."""
    return targets["counts"] * ops.cast(targets["class"] > 0, "float32")


def paper_losses(network, batch):
    """The losses of a network in the layout of the ``mrcnn`` package; normalisations keep their statistics.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network.
    batch : dict of tensor
        ``image`` (B, T, T, 3) uint8; ``ignore`` (B, T, T); ``box`` (B, G, 4) px; ``valid`` (B, G); ``class`` (B, G)
        int32, from 1, 0 where it is unknown; ``mask`` (B, G, F, F) 0 to 255 in the frame of the box; ``anchor_draw``
        (B, A) and ``region_draw`` (B, N) random numbers from 0 to 1, N proposals being read.

    Returns
    -------
    dict of str to tensor, shape ()
        ``rpn_class``, ``rpn_bbox``, ``mrcnn_class``, ``mrcnn_bbox``, ``mrcnn_mask``.
    """
    config, stop = network.config, ops.stop_gradient
    training = config.training
    levels = network.parts["backbone"](network.normalise(batch["image"]), training=False)
    rpn_logits, rpn_deltas = network.rpn_outputs(levels)
    anchors = ops.convert_to_tensor(config.to_pixels(network.anchors))
    rpn = rpn_losses(rpn_logits, rpn_deltas, *anchor_targets(anchors, batch, training.anchors_per_image))
    proposals, scores = propose(
        stop(rpn_logits),
        stop(rpn_deltas),
        ops.convert_to_tensor(network.anchors),
        config,
        after=batch["region_draw"].shape[1],
    )
    truth = (batch["box"] - ops.convert_to_tensor(LAST_PIXEL)) / (config.tile_size - 1.0)
    count, ratio = training.rois_per_image, training.roi_positive_ratio
    targets = region_targets(stop(proposals), scores > -1e8, truth, batch, count, ratio)
    logits, deltas = network.box_outputs(levels, targets["roi"])
    masks = network.class_masks(levels, targets["roi"][:, : int(count * ratio)])
    heads = (class_loss(logits, targets), box_loss(deltas, targets), mask_loss(masks, targets, batch))
    return dict(zip(TERMS, (*rpn, *heads), strict=True))
