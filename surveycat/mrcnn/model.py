"""The parts joined: a first look finds boxes in a batch of tiles; those that are likely get a class, then a mask."""

import numpy as np
from keras import layers, models, ops

from surveycat.mrcnn import roi
from surveycat.mrcnn.backbone import build_backbone
from surveycat.mrcnn.heads import build_box_head, build_class_head, build_mask_head
from surveycat.mrcnn.masks import paste_masks
from surveycat.mrcnn.rpn import build_rpn_head, make_anchors, propose

SHRUNK = (1, 2, 4)  # the copies of a tile from which the class head's crops are read


class Regions:
    """What every Mask R-CNN does here: pyramid, proposals, boxes; its heads judge and describe them.

    A kind of network adds its heads to `parts`, and says in `judge` what the box head makes of proposals, in
    `class_outputs` and `mask_outputs` what is known of detections that are kept, in `sample` how regions are read and
    in `paste` how masks become pixels.

    Parameters
    ----------
    config : NetworkConfig or MrcnnConfig
        Architecture and limits.

    Attributes
    ----------
    parts : dict of str to keras.Model
        ``backbone``, ``rpn``, ``box_head``, ``mask_head`` and whatever else has weights.
    anchors : ndarray of float32, shape (A, 4)
        Anchors of a tile.
    """

    def __init__(self, config):
        self.config = config
        self.parts = {"backbone": build_backbone(config), "rpn": build_rpn_head(config)}
        self.anchors = make_anchors(config)

    def fold(self):
        """Fold every batch normalisation into the convolution before it: for inference only."""
        self.parts = {name: fold_batch_norm(part) for name, part in self.parts.items()}

    def normalise(self, images):
        """8-bit RGB to the network's input.

        Parameters
        ----------
        images : tensor, shape (B, T, T, 3)
            Pixels, 0 to 255.

        Returns
        -------
        tensor of float32, shape (B, T, T, 3)
            Centred and scaled pixels.
        """
        # whole rows at once: three numbers less three others, however often, is slow
        width, channels = images.shape[-2:]
        mean = np.tile(np.float32(self.config.mean_pixel), width)
        rows = ops.reshape(ops.cast(images, "float32"), (-1, width * channels))
        return ops.reshape((rows - mean) / self.config.pixel_scale, ops.shape(images))

    def rpn_outputs(self, levels, training=False):
        """Objectness and box deltas of every anchor.

        Parameters
        ----------
        levels : list of tensor
            P2 to P6.
        training : bool
            Passed to the layers.

        Returns
        -------
        logits : tensor, shape (B, A)
            Objectness.
        deltas : tensor, shape (B, A, 4)
            Box deltas.
        """
        outputs = [self.parts["rpn"](level, training=training) for level in levels]
        return [ops.concatenate(one, axis=1) for one in zip(*outputs, strict=True)]

    def box_outputs(self, levels, boxes, training=False):
        """Class logits and box deltas of every proposal, as the box head gives them.

        Parameters
        ----------
        levels : list of tensor
            P2 to P6.
        boxes : tensor, shape (B, N, 4)
            Proposals.
        training : bool
            Passed to the layers.

        Returns
        -------
        logits : tensor, shape (B, N) or (B, N, K)
            Galaxy or not; or background and the classes.
        deltas : tensor, shape (B, N, 4) or (B, N, K, 4)
            Box deltas, relative to `boxes`, of each class where there are several.
        """
        count = boxes.shape[1]
        image_index = ops.repeat(ops.arange(ops.shape(boxes)[0], dtype="int32"), count)
        regions = self.pool(levels, ops.reshape(boxes, (-1, 4)), image_index, self.config.box_pool)
        outputs = self.parts["box_head"](regions, training=training)
        return [ops.reshape(one, (-1, count, *one.shape[1:])) for one in outputs]

    def pool(self, levels, boxes, image_index, samples):
        """Features of regions, from the pyramid level that fits each box (P2 to P5).

        Parameters
        ----------
        levels : list of tensor
            P2 to P6; P6 serves the RPN only.
        boxes : tensor, shape (R, 4)
            RoIs.
        image_index : tensor of int32, shape (R,)
            Image of each RoI.
        samples : int
            Samples along each side.

        Returns
        -------
        tensor, shape (R, samples, samples, C)
            Features.
        """
        levels = levels[:4]
        level = roi.pyramid_level(boxes, self.config.roi_side, len(levels))
        return self.sample(levels, boxes, image_index, level, samples)

    def first_look(self, images, **limits):
        """Boxes and scores in a batch of tiles.

        Parameters
        ----------
        images : tensor of uint8, shape (B, T, T, 3)
            Tiles.
        **limits
            Passed to `judge`.

        Returns
        -------
        view : tensor
            What the class is read from (see `view`), for `class_outputs`.
        levels : list of tensor
            Feature pyramid, for `mask_outputs`.
        boxes : tensor, shape (B, max_detections, 4)
            Detections, best first.
        logits : tensor, shape (B, max_detections)
            Galaxy logits; -1e9 in unused slots.
        crowded : tensor of bool, shape (B,)
            True where the proposals may have been cut short by their limit.
        *evidence : tensor, shape (B, max_detections, ...)
            What else the box head knows of the detections, for `class_outputs` and `mask_outputs`.
        """
        config = self.config
        pixels = self.normalise(images)
        levels = self.parts["backbone"](pixels, training=False)
        rpn_logits, rpn_deltas = self.rpn_outputs(levels)
        proposals, objectness = propose(rpn_logits, rpn_deltas, ops.convert_to_tensor(self.anchors), config)
        logits, boxes, *evidence = self.judge(levels, proposals, **limits)
        wanted = ops.logical_and(objectness > -1e8, logits > _logit(config.first_look_score))
        logits = ops.where(wanted, logits, -1e9)
        logits, boxes, *evidence = roi.take_best(logits, config.proposals_after_nms, boxes, *evidence)
        clipped = ops.clip(boxes, 0.0, config.frame)
        logits, _, boxes, *evidence = roi.suppress(
            logits,
            clipped,
            config.detection_nms_iou,
            config.max_detections,
            boxes,
            *evidence,
            centre_share=config.detection_centre_share,
            group=self.group(evidence),
        )
        # the last proposal still looks like a galaxy: there may have been more behind it
        crowded = objectness[:, -1] > 0.0
        return self.view(pixels), levels, boxes, logits, crowded, *evidence

    def view(self, pixels):
        """What the class of boxes is read from.

        Parameters
        ----------
        pixels : tensor, shape (B, T, T, 3)
            Normalised tiles.

        Returns
        -------
        tensor
            The tiles, unless a kind of network reads something else.
        """
        return pixels

    def group(self, evidence):
        """Groups of detections that do not suppress each other.

        Parameters
        ----------
        evidence : list of tensor, shape (B, N, ...)
            As `judge` returns it.

        Returns
        -------
        tensor of int32, shape (B, N), or None
            The groups; None for one galaxy, one row, whatever its class.
        """
        return None


class MaskRCNN(Regions):
    """The compact Mask R-CNN, whose class and mask heads run only on the detections that are kept.

    Parameters
    ----------
    config : NetworkConfig
        Architecture and limits.
    """

    paste = staticmethod(paste_masks)

    def __init__(self, config):
        super().__init__(config)
        self.parts["box_head"] = build_box_head(config)
        self.parts["mask_head"] = build_mask_head(config)
        self.parts["class_head"] = build_class_head(config)

    def sample(self, levels, boxes, image_index, level, samples):
        """Read regions as `roi.roi_align` does.

        Parameters
        ----------
        levels : list of tensor
            P2 to P5.
        boxes : tensor, shape (R, 4)
            RoIs, px.
        image_index, level : tensor of int32, shape (R,)
            Image and pyramid level of each RoI.
        samples : int
            Samples along each side.

        Returns
        -------
        tensor, shape (R, samples, samples, C)
            Features.
        """
        return roi.roi_align(levels, self.config.strides[:4], boxes, image_index, level, samples)

    def judge(self, levels, proposals):
        """Galaxy logit and refined box of every proposal.

        Parameters
        ----------
        levels : list of tensor
            P2 to P6.
        proposals : tensor, shape (B, N, 4)
            Proposals, px.

        Returns
        -------
        logits : tensor, shape (B, N)
            Galaxy or not.
        boxes : tensor, shape (B, N, 4)
            Boxes, not clipped to the tile, px.
        """
        logits, deltas = self.box_outputs(levels, proposals)
        return logits, roi.decode_boxes(deltas, proposals)

    def box_outputs(self, levels, boxes, training=False):
        """Galaxy logit and box deltas of every proposal: a single class needs no axis.

        Parameters
        ----------
        levels, boxes, training
            As of `Regions.box_outputs`.

        Returns
        -------
        logits : tensor, shape (B, N)
            Galaxy or not.
        deltas : tensor, shape (B, N, 4)
            Box deltas, relative to `boxes`.
        """
        logits, deltas = super().box_outputs(levels, boxes, training)
        return logits[..., 0], deltas

    def view(self, pixels):
        """The image and two shrunk copies, as `class_crops` reads them: made once for all boxes of a batch.

        Parameters
        ----------
        pixels : tensor, shape (B, T, T, 3)
            Normalised pixels.

        Returns
        -------
        tensor, shape (B, 7 * T // 4, 3 * T)
            Their rows.
        """
        copies = [pixels]
        for _ in SHRUNK[1:]:
            copies.append(_halve(copies[-1]))
        return roi.stack_rows(copies)

    def class_crops(self, view, boxes, image_index):
        """What the class head sees: the image around each box, and a channel that marks the box.

        Parameters
        ----------
        view : tensor, shape (B, 7 * T // 4, 3 * T)
            From `view`.
        boxes : tensor, shape (R, 4)
            Boxes, px.
        image_index : tensor of int32, shape (R,)
            Image of each box.

        Returns
        -------
        tensor, shape (R, class_pool, class_pool, 4)
            Crops; large galaxies are read from a shrunk copy of the image, so that nothing aliases.
        """
        samples = self.config.class_pool
        size = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + 0.5 * size
        half = 0.5 * ops.maximum(self.config.class_context * ops.max(size, axis=1, keepdims=True), float(samples))
        square = ops.concatenate([centre - half, centre + half], axis=1)
        shrink = ops.log(2.0 * half[:, 0] / samples) / ops.log(2.0)
        level = ops.cast(ops.clip(ops.round(shrink), 0.0, len(SHRUNK) - 1.0), "int32")
        shapes = [(self.config.tile_size // by, self.config.tile_size // by) for by in SHRUNK]
        crops = roi.crop_rows(view, shapes, SHRUNK, square, image_index, level, samples)
        return ops.concatenate([crops, _box_mark(size, half, samples)], axis=-1)

    def mask_outputs(self, levels, boxes, image_index, training=False):
        """Masks of chosen boxes, packed over the batch.

        Parameters
        ----------
        levels : list of tensor
            From `first_look`.
        boxes : tensor, shape (R, 4)
            Boxes, px.
        image_index : tensor of int32, shape (R,)
            Tile of each box.
        training : bool
            Passed to the layers.

        Returns
        -------
        tuple of one tensor, shape (R, 2 * mask_pool, 2 * mask_pool)
            Mask logits in the frame of the box.
        """
        regions = self.pool(levels, boxes, image_index, self.config.mask_pool)
        return (self.parts["mask_head"](regions, training=training),)

    def class_outputs(self, view, boxes, image_index, training=False):
        """Class of chosen boxes, packed over the batch.

        Parameters
        ----------
        view : tensor, shape (B, 7 * T // 4, 3 * T)
            From `first_look`.
        boxes : tensor, shape (R, 4)
            Boxes, px.
        image_index : tensor of int32, shape (R,)
            Tile of each box.
        training : bool
            Passed to the layers.

        Returns
        -------
        galaxy_logit, spiral_logit : tensor, shape (R,)
            Galaxy or not; spiral or elliptical.
        """
        crops = self.class_crops(view, boxes, image_index)
        logits = self.parts["class_head"](crops, training=training)
        return logits[:, 0], logits[:, 1]


def _logit(probability):
    """Inverse of the sigmoid; 0 stands for "everything"."""
    return float(np.log(probability / (1.0 - probability))) if probability > 0 else -1e8


def _halve(images):
    """Means of 2 x 2 pixels, shape (B, H / 2, W / 2, C): as average pooling gives, faster where channels are few."""
    height, width, channels = images.shape[1:]
    rows = ops.reshape(images, (-1, height // 2, 2, width * channels))
    pairs = ops.reshape(rows[:, :, 0] + rows[:, :, 1], (-1, height // 2, width // 2, 2, channels))
    return 0.25 * (pairs[:, :, :, 0] + pairs[:, :, :, 1])


def _box_mark(size, half, samples):
    """A soft ellipse, 1 at the centre and 0.37 on the box's sides, shape (R, samples, samples, 1)."""
    position = (ops.arange(samples, dtype="float32") + 0.5) / samples * 2.0 - 1.0
    extent = ops.maximum(size / (2.0 * half), 1e-3)  # the box's half-size in units of the crop's half-size
    y = ops.square(position / ops.expand_dims(extent[:, 0], -1))
    x = ops.square(position / ops.expand_dims(extent[:, 1], -1))
    return ops.expand_dims(ops.exp(-(ops.expand_dims(y, 2) + ops.expand_dims(x, 1))), -1)


def fold_batch_norm(part):
    """A copy of a part in which every batch normalisation is folded into the convolution before it.

    Parameters
    ----------
    part : keras.Model
        A functional model.

    Returns
    -------
    keras.Model
        The same function for inference, with fewer operations; the part itself if it has no normalisation.
    """
    norms = {_before(layer).name: layer for layer in part.layers if isinstance(layer, layers.BatchNormalization)}
    if not norms:
        return part

    def clone(layer):
        if isinstance(layer, layers.BatchNormalization):
            return _Folded(name=layer.name)
        settings = layer.get_config()
        if layer.name in norms:
            settings["use_bias"] = True
        return layer.__class__.from_config(settings)

    folded = models.clone_model(part, clone_function=clone)
    for layer in part.layers:
        weights = layer.get_weights()
        if layer.name in norms:
            weights = _folded_weights(weights, norms[layer.name])
        if weights and not isinstance(layer, layers.BatchNormalization):
            folded.get_layer(layer.name).set_weights(weights)
    return folded


def _before(layer):
    """The layer whose output a layer takes."""
    return layer.input._keras_history.operation


class _Folded(layers.Layer):
    """Takes the place of a normalisation that is part of the convolution before it."""

    def call(self, inputs, mask=None):
        return inputs


def _folded_weights(weights, norm):
    """Kernel and bias of a convolution that includes the normalisation after it."""
    kernel, bias = weights[0], weights[1] if len(weights) > 1 else 0.0
    gamma, beta, mean, variance = norm.get_weights()
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return [kernel * scale, beta + (bias - mean) * scale]
