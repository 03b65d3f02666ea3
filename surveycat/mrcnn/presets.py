"""Networks in the layout of the ``mrcnn`` package, among them the two of Farias et al. (2020), by name.

`PRESETS` has the configurations of the paper's Table 1, and the same with a ResNet-50; weights for them come as
``.h5`` files of that package. What was published disagrees with itself: the strides are 8 to 128 in one file and 4
to 64 in the notebook, the least confidence 0 or 0.4, and the RPN's overlap 0.9 in a file but 0.7 and 0.8 in the
table. The table is followed, but for the strides: they are not free, since the levels of the pyramid have strides
4 to 64 whatever a configuration says, and with 8 to 128 there would be fewer anchors than the RPN has outputs. The
published ones are kept in `TrainingSettings`; what the table does not say of training is there as the notebook prints
it (16 images a step, 256 anchors, 1000 proposals, weight decay 1e-4, gradients of norm 5). The least confidence is the
user's ``--min-score``.
"""

import dataclasses
import pathlib
from importlib import resources
from typing import ClassVar

import numpy as np

from surveycat.mrcnn.config import Calibration, Names, NetworkConfig, Stored, parse_record

LAST_PIXEL = np.array([0, 0, 1, 1], np.float32)  # the end of a half-open range is one past its last pixel


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How a network in the layout of ``mrcnn`` was trained, as its publication names it; inference needs none of it.

    Attributes
    ----------
    published_strides : tuple of int
        What the publication says the strides are; see the module's text for why the network's are 4 to 64.
    resize_mode : str
        ``square`` or ``crop``: how images became 256 x 256 px.
    rois_per_image, roi_positive_ratio : int, float
        Regions an image that taught the heads, and the part of them that lay on objects.
    mini_masks : bool
        Whether masks were stored at 56 x 56 px.
    steps_per_epoch, learning_rate, momentum : int, float, float
        Of stochastic gradient descent.
    max_ground_truth : int
        Objects an image at most.
    anchors_per_image, proposals : int
        Anchors an image that taught the RPN, proposals of which regions were drawn.
    images_per_step : int
        Images a step, over all devices.
    weight_decay, gradient_norm : float
        Of the squares of all weights, as ``mrcnn`` takes it (each array's mean); the largest norm of a gradient.
    """

    published_strides: tuple = (4, 8, 16, 32, 64)
    resize_mode: str = "square"
    rois_per_image: int = 200
    roi_positive_ratio: float = 0.33
    mini_masks: bool = True
    steps_per_epoch: int = 1000
    learning_rate: float = 1e-3
    momentum: float = 0.9
    max_ground_truth: int = 100
    anchors_per_image: int = 256
    proposals: int = 1000
    images_per_step: int = 16
    weight_decay: float = 1e-4
    gradient_norm: float = 5.0


@dataclasses.dataclass(frozen=True)
class MrcnnConfig(Stored):
    """A network in the layout of the ``mrcnn`` package (Matterport's Mask R-CNN), whose weights files it reads.

    Its boxes are normalised as in that package: 0 is the centre of the tile's first pixel, 1 that of its last.

    Attributes
    ----------
    name : str
        Name of the preset.
    backbone : str
        ``resnet50`` or ``resnet101``.
    classes : tuple of str
        What the heads tell apart besides background, in the order of their channels.
    tile_size : int
        Side of the square input, px.
    mean_pixel, pixel_scale : tuple of float, float
        Input = (pixel - mean_pixel) / pixel_scale, for 8-bit R, G, B.
    stem_channels : int
        Channels of the first convolution; the stages follow from it (256 to 2048 for 64).
    pyramid_channels, rpn_channels : int
        Channels of every level of the feature pyramid (strides 4 to 64), and of the RPN's shared convolution.
    anchor_sides, anchor_ratios : tuple of float
        Side in px of the square anchor of each pyramid level, and height / width of its variants (``mrcnn`` counts
        width / height).
    proposals_before_nms, proposals_after_nms : int
        Best anchors per tile that enter and survive the RPN's non-maximum suppression.
    rpn_nms_iou, detection_nms_iou : float
        Overlap (IoU of boxes) above which the lower-scored of two boxes is dropped.
    max_detections : int
        Detections per tile; a tile that reaches it is reported as capped.
    box_pool, mask_pool : int
        Samples along each side of the pooling of the box and mask head.
    box_units, mask_channels : int
        Channels of the box and mask head.
    first_look_score : float
        Detections below this probability are dropped before the suppression; 0 drops none.
    class_agnostic : bool
        True: one galaxy has one row; its score is 1 - P(background), and suppression runs over all classes. False:
        as ``mrcnn`` does it, each class by itself, with the probability of the most likely class as score.
    untrained : tuple of str
        Layers that have no weights yet: the network can be trained, not used.
    training : TrainingSettings
        How it was trained.
    calibration : Calibration
        Logits to probabilities.
    """

    name: str = "mrcnn"
    backbone: str = "resnet101"
    classes: tuple = ("spiral", "elliptical")
    tile_size: int = 256
    mean_pixel: tuple = (123.7, 116.8, 103.9)
    pixel_scale: float = 1.0
    stem_channels: int = 64
    pyramid_channels: int = 256
    rpn_channels: int = 512
    anchor_sides: tuple = (8.0, 16.0, 32.0, 64.0, 128.0)
    anchor_ratios: tuple = (2.0, 1.0, 0.5)
    proposals_before_nms: int = 6000
    proposals_after_nms: int = 1000
    rpn_nms_iou: float = 0.7
    detection_nms_iou: float = 0.3
    max_detections: int = 100
    box_pool: int = 7
    mask_pool: int = 14
    box_units: int = 1024
    mask_channels: int = 256
    first_look_score: float = 0.1
    class_agnostic: bool = True
    untrained: tuple = ()
    training: TrainingSettings = TrainingSettings()
    calibration: Calibration = Calibration()

    names: ClassVar = Names(
        lateral="fpn_c{0}p{0}",
        rpn=("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred"),
        mask_convs=tuple((f"mrcnn_mask_conv{number}", f"mrcnn_mask_bn{number}") for number in range(1, 5)),
        mask_up="mrcnn_mask_deconv",
        mask_logit="mrcnn_mask",
    )
    conv_bias: ClassVar = True
    rpn_logits: ClassVar = 2
    cell_centre: ClassVar = 0.0
    least_proposal: ClassVar = 0.0
    detection_centre_share: ClassVar = 0.0  # mrcnn compares boxes by IoU alone
    frame: ClassVar = 1.0
    _records: ClassVar = {"calibration": Calibration, "training": TrainingSettings}

    @property
    def mask_maps(self):
        """int : masks of each region, one for each class and one for background."""
        return len(self.classes) + 1

    @property
    def roi_side(self):
        """float : side of a region, in units of the tile, up to twice which it is read from P2.

        Regions of 224 px belong to P4 (Lin et al. 2017, equation 1), and levels are rounded in the logarithm.
        """
        return 224.0 / self.tile_size / 4 / 2**0.5

    def to_frame(self, boxes):
        """Half-open pixel boxes as normalised boxes.

        Parameters
        ----------
        boxes : ndarray, shape (..., 4)
            ``[y0, x0, y1, x1)`` px.

        Returns
        -------
        ndarray, shape (..., 4)
            From 0, the centre of the tile's first pixel, to 1, that of its last.
        """
        return (boxes - LAST_PIXEL) / np.float32(self.tile_size - 1)

    def to_pixels(self, boxes):
        """Inverse of `to_frame`.

        Parameters
        ----------
        boxes : ndarray, shape (..., 4)
            Normalised boxes.

        Returns
        -------
        ndarray, shape (..., 4)
            ``[y0, x0, y1, x1)`` px.
        """
        return boxes * np.float32(self.tile_size - 1) + LAST_PIXEL


_PAPER = MrcnnConfig(mean_pixel=(10.71, 15.81, 19.04), max_detections=400)

_TABLE_1 = (
    dataclasses.replace(
        _PAPER,
        name="mask-galaxy-1class",
        classes=("galaxy",),
        rpn_nms_iou=0.7,
        training=TrainingSettings(
            published_strides=(8, 16, 32, 64, 128),
            resize_mode="square",
            rois_per_image=250,
            mini_masks=False,
            steps_per_epoch=100,
            max_ground_truth=300,
        ),
    ),
    dataclasses.replace(
        _PAPER,
        name="mask-galaxy-2class",
        classes=("spiral", "elliptical"),
        rpn_nms_iou=0.8,
        training=TrainingSettings(
            resize_mode="crop",
            rois_per_image=128,
            mini_masks=True,
            steps_per_epoch=1000,
            max_ground_truth=200,
        ),
    ),
)

# the same with the smaller trunk, for files that were trained so
_SMALLER = tuple(dataclasses.replace(one, name=f"{one.name}-resnet50", backbone="resnet50") for one in _TABLE_1)

PRESETS = {config.name: config for config in (*_TABLE_1, *_SMALLER)}


def read_config(text):
    """Read the ``config.json`` of a preset of either kind.

    Parameters
    ----------
    text : str
        Content of the file.

    Returns
    -------
    NetworkConfig or MrcnnConfig
        The record: only the latter names its backbone.

    Raises
    ------
    WeightsError
        If the text is no such record.
    """
    return (MrcnnConfig if "backbone" in parse_record(text) else NetworkConfig).from_json(text)


def installed_presets():
    """Presets whose weights came with the package.

    Returns
    -------
    dict of str to pathlib.Path
        Name and folder.
    """
    shipped = pathlib.Path(str(resources.files("surveycat.weights")))
    return {path.parent.name: path.parent for path in sorted(shipped.glob("*/config.json"))}
