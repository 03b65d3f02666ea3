"""The region proposal network (Ren et al. 2015): anchors, their head, and the choice of proposals."""

import numpy as np
from keras import Input, Model, initializers, layers, ops

from surveycat.mrcnn import roi


def make_anchors(config):
    """Anchors of a tile, level by level, row by row, ratio by ratio.

    Parameters
    ----------
    config : NetworkConfig
        Tile size, strides, anchor sides and ratios.

    Returns
    -------
    ndarray of float32, shape (A, 4)
        ``[y0, x0, y1, x1]`` px, centred on the cells; not clipped to the tile.
    """
    levels = []
    for stride, side in zip(config.strides, config.anchor_sides, strict=True):
        cells = (np.arange(config.tile_size // stride) + 0.5) * stride
        ratio = np.sqrt(np.asarray(config.anchor_ratios))
        half = 0.5 * side * np.stack([ratio, 1 / ratio], axis=-1)  # (ratios, 2): half height, half width
        centre = np.stack(np.meshgrid(cells, cells, indexing="ij"), axis=-1)[:, :, None, :]
        levels.append(np.concatenate([centre - half, centre + half], axis=-1).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def build_rpn_head(config):
    """The head that all pyramid levels share.

    Parameters
    ----------
    config : NetworkConfig
        Channels and number of ratios.

    Returns
    -------
    keras.Model
        (B, H, W, C) -> objectness logits (B, H * W * ratios) and box deltas (B, H * W * ratios, 4).
    """
    ratios = len(config.anchor_ratios)
    level = Input((None, None, config.pyramid_channels), name="level")
    x = layers.Conv2D(config.pyramid_channels, 3, padding="same", activation="relu", name="rpn_conv")(level)
    # the bias makes every anchor start as 1 % likely: objects are rare (Lin et al. 2017b, section 4.1)
    rare = layers.Conv2D(ratios, 1, bias_initializer=initializers.Constant(-4.6), name="rpn_score")(x)
    deltas = layers.Conv2D(4 * ratios, 1, name="rpn_box")(x)
    return Model(level, [layers.Reshape((-1,))(rare), layers.Reshape((-1, 4))(deltas)], name="rpn")


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
    config : NetworkConfig
        Limits and overlap.
    before, after : int, optional
        Other limits than the configuration's, for training.

    Returns
    -------
    boxes : tensor, shape (B, after, 4)
        Proposals, best first, px, clipped to the tile.
    logits : tensor, shape (B, after)
        Their objectness; -1e9 in unused slots.
    """
    before = before or config.proposals_before_nms
    after = after or config.proposals_after_nms
    logits, index = ops.top_k(logits, before)
    boxes = roi.decode_boxes(roi.take_rows(deltas, index), ops.take(anchors, index, axis=0))
    boxes = ops.clip(boxes, 0.0, float(config.tile_size))
    sound = roi.box_area(boxes) >= 4.0
    keep = roi.nms_keep(boxes, sound, config.rpn_nms_iou)
    logits, boxes = roi.take_best(ops.where(keep, logits, -1e9), after, boxes)
    return boxes, logits
