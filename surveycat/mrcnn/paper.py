"""A Mask R-CNN in the layout of the ``mrcnn`` package: its heads know classes, its boxes are normalised."""

import numpy as np
from keras import ops

from surveycat.mrcnn import roi
from surveycat.mrcnn.heads import build_class_box_head, build_mask_head
from surveycat.mrcnn.masks import paste_rounded
from surveycat.mrcnn.model import Regions
from surveycat.mrcnn.mold import mold, unmold


class PaperMaskRCNN(Regions):
    """A Mask R-CNN in the layout of the ``mrcnn`` package, which computes what that package computes.

    Parameters
    ----------
    config : MrcnnConfig
        Architecture and limits.
    """

    paste = staticmethod(paste_rounded)

    def __init__(self, config):
        super().__init__(config)
        self.parts["box_head"] = build_class_box_head(config)
        self.parts["mask_head"] = build_mask_head(config)

    def sample(self, levels, boxes, image_index, level, samples):
        """Read regions as `roi.crop_and_resize` does.

        Parameters
        ----------
        levels : list of tensor
            P2 to P5.
        boxes : tensor, shape (R, 4)
            RoIs, normalised.
        image_index, level : tensor of int32, shape (R,)
            Image and pyramid level of each RoI.
        samples : int
            Samples along each side.

        Returns
        -------
        tensor, shape (R, samples, samples, C)
            Features.
        """
        return roi.crop_and_resize(levels, boxes, image_index, level, samples)

    def judge(self, levels, proposals, window=(0.0, 0.0, 1.0, 1.0)):
        """Score and box of every proposal, as the class that it looks most like.

        Parameters
        ----------
        levels : list of tensor
            P2 to P6.
        proposals : tensor, shape (B, N, 4)
            Proposals, normalised.
        window : sequence of float
            The part of the tile that is image, normalised; boxes are clipped to it.

        Returns
        -------
        logits : tensor, shape (B, N)
            Score; where classes are suppressed apart, -1e9 for what looks most like background.
        boxes : tensor, shape (B, N, 4)
            Boxes, clipped, normalised.
        class_logits : tensor, shape (B, N, K)
            Background first.
        """
        class_logits, deltas = self.box_outputs(levels, proposals)
        own = ops.expand_dims(ops.one_hot(_likeliest(class_logits), deltas.shape[-2]), -1)
        boxes = roi.decode_boxes(ops.sum(deltas * own, axis=-2), proposals)
        low, high = ops.convert_to_tensor(window[:2] * 2), ops.convert_to_tensor(window[2:] * 2)
        boxes = ops.maximum(ops.minimum(boxes, high), low)
        return self.score(class_logits), boxes, class_logits

    def score(self, class_logits):
        """Logit of the score of detections.

        Parameters
        ----------
        class_logits : tensor, shape (..., K)
            Background first.

        Returns
        -------
        tensor, shape (...)
            Logit of 1 - P(background); or, where classes are suppressed apart, of the probability of the most
            likely class, -1e9 if that is background.
        """
        background, classes = class_logits[..., 0], class_logits[..., 1:]
        if self.config.class_agnostic:
            return ops.logsumexp(classes, axis=-1) - background
        best = ops.max(classes, axis=-1)
        others = ops.one_hot(_likeliest(class_logits), class_logits.shape[-1]) * -1e9 + class_logits
        return ops.where(best > background, best - ops.logsumexp(others, axis=-1), -1e9)

    def group(self, evidence):
        """Groups of detections that do not suppress each other.

        Parameters
        ----------
        evidence : list of tensor, shape (B, N, K)
            The class logits.

        Returns
        -------
        tensor of int32, shape (B, N), or None
            The classes; None where suppression does not ask for the class.
        """
        return None if self.config.class_agnostic else _likeliest(evidence[0])

    def class_outputs(self, pixels, boxes, image_index, class_logits):
        """Class of chosen boxes: the box head knew it already.

        Parameters
        ----------
        pixels, boxes, image_index : tensor
            Not used.
        class_logits : tensor, shape (R, K)
            From `first_look`.

        Returns
        -------
        galaxy_logit, spiral_logit : tensor, shape (R,)
            Score; spiral against the other classes, 0 where the network knows a single class.
        """
        return self.score(class_logits), self.spiral(class_logits)

    def mask_outputs(self, levels, boxes, image_index, class_logits):
        """Masks of chosen boxes, packed over the batch.

        Parameters
        ----------
        levels : list of tensor
            From `first_look`.
        boxes : tensor, shape (R, 4)
            Boxes, normalised.
        image_index : tensor of int32, shape (R,)
            Tile of each box.
        class_logits : tensor, shape (R, K)
            From `first_look`.

        Returns
        -------
        tuple of one tensor, shape (R, 2 * mask_pool, 2 * mask_pool)
            Mask logits as the likeliest class, in the frame of the box.
        """
        masks = self._all_masks(levels, boxes, image_index)
        own = ops.one_hot(_likeliest(class_logits), masks.shape[-1])
        return (ops.sum(masks * ops.reshape(own, (-1, 1, 1, masks.shape[-1])), axis=-1),)

    def class_masks(self, levels, boxes):
        """Masks of regions as every class: what training compares.

        Parameters
        ----------
        levels : list of tensor
            P2 to P6.
        boxes : tensor, shape (B, N, 4)
            Regions, normalised.

        Returns
        -------
        tensor, shape (B, N, 2 * mask_pool, 2 * mask_pool, K)
            Mask logits, background first.
        """
        count = boxes.shape[1]
        image_index = ops.repeat(ops.arange(ops.shape(boxes)[0], dtype="int32"), count)
        masks = self._all_masks(levels, ops.reshape(boxes, (-1, 4)), image_index)
        return ops.reshape(masks, (-1, count, *masks.shape[1:]))

    def _all_masks(self, levels, boxes, image_index):
        """Mask logits of boxes as every class, packed over the batch."""
        regions = self.pool(levels, boxes, image_index, self.config.mask_pool)
        return self.parts["mask_head"](regions, training=False)

    def spiral(self, class_logits):
        """Logit of spiral, given a galaxy.

        Parameters
        ----------
        class_logits : tensor, shape (..., K)
            Background first.

        Returns
        -------
        tensor, shape (...)
            Spiral against the sum of the other classes; 0 where the network knows a single class.
        """
        classes = self.config.classes
        if len(classes) == 1:
            return ops.zeros_like(class_logits[..., 0])
        place = 1 + classes.index("spiral")
        others = ops.concatenate([class_logits[..., 1:place], class_logits[..., place + 1 :]], axis=-1)
        return class_logits[..., place] - ops.logsumexp(others, axis=-1)


def detect(network, image):
    """What the package's own ``detect`` says of one image of any size.

    Parameters
    ----------
    network : PaperMaskRCNN
        The network.
    image : ndarray of uint8, shape (H, W, 3)
        Image, which is resized to the network's square.

    Returns
    -------
    dict of ndarray
        Best first: ``rois`` (N, 4) int32, ``[y0, x0, y1, x1)`` px of the image; ``class_ids`` (N,) int32, from 1;
        ``scores`` (N,) float32; ``masks`` (N, H, W) bool.
    """
    config = network.config
    tile, window = mold(image, config.tile_size)
    window = config.to_frame(window.astype(np.float32))
    _, levels, boxes, logits, _, class_logits = network.first_look(tile[None], window=tuple(window.tolist()))
    boxes, class_logits = boxes[0], class_logits[0]
    (mask_logits,) = network.mask_outputs(levels, boxes, ops.zeros(len(boxes), "int32"), class_logits)
    rois = unmold(ops.convert_to_numpy(boxes), window, image.shape)
    found = (ops.convert_to_numpy(logits[0]) > -1e8) & (rois[:, 2:] > rois[:, :2]).all(axis=1)
    rois = rois[found]
    masks = np.zeros((len(rois), *image.shape[:2]), bool)
    crops, _ = network.paste(ops.convert_to_numpy(mask_logits)[found], rois, image.shape[:2])
    for mask, crop, (y0, x0, y1, x1) in zip(masks, crops, rois, strict=True):
        mask[y0:y1, x0:x1] = crop
    return {
        "rois": rois,
        "class_ids": ops.convert_to_numpy(_likeliest(class_logits))[found],
        "scores": ops.convert_to_numpy(ops.sigmoid(network.score(class_logits)))[found],
        "masks": masks,
    }


def _likeliest(class_logits):
    """Channel of the most likely class that is not background."""
    return ops.cast(ops.argmax(class_logits[..., 1:], axis=-1), "int32") + 1
