"""The region proposal network (Ren et al. 2015): anchors, their head, and the choice of proposals."""

import numpy as np
from keras import Input, Model, initializers, layers, ops

from surveycat.mrcnn import roi


def make_anchors(config):
    """Anchors of a tile, level by level, row by row, ratio by ratio.

    Parameters
    ----------
    config : NetworkConfig or MrcnnConfig
        Tile size, strides, anchor sides and ratios.

    Returns
    -------
    ndarray of float32, shape (A, 4)
        ``[y0, x0, y1, x1]`` in the network's units; not clipped to the tile.
    """
    levels = []
    for stride, side in zip(config.strides, config.anchor_sides, strict=True):
        cells = (np.arange(config.tile_size // stride) + config.cell_centre) * stride
        ratio = np.sqrt(np.asarray(config.anchor_ratios))
        half = 0.5 * side * np.stack([ratio, 1 / ratio], axis=-1)  # (ratios, 2): half height, half width
        centre = np.stack(np.meshgrid(cells, cells, indexing="ij"), axis=-1)[:, :, None, :]
        levels.append(np.concatenate([centre - half, centre + half], axis=-1).reshape(-1, 4))
    return config.to_frame(np.concatenate(levels)).astype(np.float32)


def build_rpn_head(config):
    """The head that all pyramid levels share.

    Parameters
    ----------
    config : NetworkConfig or MrcnnConfig
        Channels, number of ratios, names, and logits an anchor: one (objectness), or two (background, object),
        of which the difference is the same thing.

    Returns
    -------
    keras.Model
        (B, H, W, C) -> objectness logits (B, H * W * ratios) and box deltas (B, H * W * ratios, 4).
    """
    ratios = len(config.anchor_ratios)
    level = Input((None, None, config.pyramid_channels), name="level")
    shared, score, box = config.names.rpn
    x = layers.Conv2D(config.rpn_channels, 3, padding="same", activation="relu", name=shared)(level)
    # the bias makes every anchor start as 1 % likely: objects are rare (Lin et al. 2017b, section 4.1)
    rare = initializers.Constant(-4.6) if config.rpn_logits == 1 else "zeros"
    logits = layers.Conv2D(ratios * config.rpn_logits, 1, bias_initializer=rare, name=score)(x)
    if config.rpn_logits == 2:
        pair = layers.Reshape((-1, 2))(logits)
        objectness = pair[..., 1] - pair[..., 0]
    else:
        objectness = layers.Reshape((-1,))(logits)
    deltas = layers.Conv2D(4 * ratios, 1, name=box)(x)
    return Model(level, [objectness, layers.Reshape((-1, 4))(deltas)], name="rpn")


def propose(logits, deltas, anchors, config, before=None, after=None):
    """Best anchors, moved by their deltas, without near-duplicates.

    Parameters
    ----------
    logits : tensor, shape (B, A)
        Objectness.
    deltas : tensor, shape (B, A, 4)
        Box deltas.
    anchors : tensor, shape (A, 4)
        From `make_anchors`.
    config : NetworkConfig or MrcnnConfig
        Limits and overlap.
    before, after : int, optional
        Other limits than the configuration's, for training.

    Returns
    -------
    boxes : tensor, shape (B, after, 4)
        Proposals, best first, clipped to the tile.
    logits : tensor, shape (B, after)
        Their objectness; -1e9 in unused slots.
    """
    before = min(before or config.proposals_before_nms, logits.shape[1])
    after = after or config.proposals_after_nms
    logits, index = ops.top_k(logits, before)
    boxes = roi.decode_boxes(roi.take_rows(deltas, index), ops.take(anchors, index, axis=0))
    boxes = ops.clip(boxes, 0.0, config.frame)
    logits = ops.where(roi.box_area(boxes) >= config.least_proposal, logits, -1e9)
    logits, boxes = roi.suppress(logits, boxes, config.rpn_nms_iou, after)
    return boxes, logits
