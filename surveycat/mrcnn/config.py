"""Every size and name of a network, in one immutable record that is stored beside its weights."""

import dataclasses
import json
import math
from typing import ClassVar

import numpy as np

from surveycat.errors import WeightsError


class Stored:
    """What every configuration shares: its form on disk, the pyramid's strides, and boxes in pixels."""

    _records: ClassVar = {}

    @property
    def strides(self):
        """tuple of int : px per cell of the pyramid levels P2 to P6."""
        return (4, 8, 16, 32, 64)

    @property
    def frame(self):
        """float : side of the tile in units of the network's boxes, which are px from the tile's edge."""
        return float(self.tile_size)

    def to_frame(self, boxes):
        """Half-open pixel boxes as the network's boxes.

        Parameters
        ----------
        boxes : ndarray, shape (..., 4)
            ``[y0, x0, y1, x1)`` px.

        Returns
        -------
        ndarray, shape (..., 4)
            The same, unless a configuration measures boxes otherwise.
        """
        return boxes

    def to_pixels(self, boxes):
        """Inverse of `to_frame`.

        Parameters
        ----------
        boxes : ndarray, shape (..., 4)
            Boxes of the network.

        Returns
        -------
        ndarray, shape (..., 4)
            ``[y0, x0, y1, x1)`` px.
        """
        return boxes

    def to_json(self):
        """Return the record as JSON text.

        Returns
        -------
        str
            One JSON object, as stored in ``config.json``.
        """
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text):
        """Read a record that `to_json` wrote.

        Parameters
        ----------
        text : str
            Content of a ``config.json``.

        Returns
        -------
        NetworkConfig or MrcnnConfig
            The same record.

        Raises
        ------
        WeightsError
            If the text is not JSON or has a field this version does not know.
        """
        fields = parse_record(text)
        try:
            known = {field.name for field in dataclasses.fields(cls)}
            unknown = sorted(set(fields) - known)
            if unknown:
                raise WeightsError(
                    f"config.json has unknown field {unknown[0]!r}: use the surveycat version that wrote it"
                )
            fields = {key: _as_tuple(value) for key, value in fields.items()}
            for name, record in cls._records.items():
                inner = fields.get(name, {})
                fields[name] = record(**{key: _as_tuple(value) for key, value in inner.items()})
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise WeightsError(f"config.json cannot be read ({error}): restore the preset folder") from error


def parse_record(text):
    """Fields of a record, as JSON has them.

    Parameters
    ----------
    text : str
        Content of a ``config.json``.

    Returns
    -------
    dict
        The fields.

    Raises
    ------
    WeightsError
        If the text is not a JSON object.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise WeightsError(f"config.json cannot be read ({error}): restore the preset folder") from error
    if not isinstance(fields, dict):
        raise WeightsError("config.json holds no record: restore the preset folder")
    return fields


def _as_tuple(value):
    """JSON knows lists only."""
    return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Names:
    """What the layers with weights are called where both kinds of network have the same ones.

    Attributes
    ----------
    lateral : str
        The 1 x 1 convolutions of the pyramid, with ``{0}`` for the number of the level.
    rpn : tuple of str
        Shared convolution, scores and boxes of the RPN.
    mask_convs : tuple of tuple of str
        Convolution and normalisation of each layer of the mask head.
    mask_up, mask_logit : str
        Its transposed convolution and its last one.
    """

    lateral: str
    rpn: tuple
    mask_convs: tuple
    mask_up: str
    mask_logit: str


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How raw logits become probabilities; fitted on validation data after training.

    Attributes
    ----------
    score_box, score_galaxy, score_bias : float
        Probability of being a galaxy = sigmoid(score_box * b + score_galaxy * g + score_bias), with the box head's
        logit b and the class head's second opinion g (Platt 1999, with two scores).
    box_most : float
        A larger b counts as this. What b says of faint objects changes with the place of the grid, what g says hardly:
        b decides what is no galaxy, g what is one.
    galaxy_most : float
        The largest second opinion g to reckon with where the box head says no: a box that could not reach a wanted
        score even with it is not asked for its class at all.
    class_scale, class_bias : float
        Probability of being a spiral, given a galaxy, in the same way (class_scale is the inverse temperature
        of Guo et al. 2017).
    """

    score_box: float = 0.5
    score_galaxy: float = 0.5
    score_bias: float = 0.0
    box_most: float = 1e9
    galaxy_most: float = 1e9
    class_scale: float = 1.0
    class_bias: float = 0.0

    def galaxy_logit(self, box_logit, galaxy_logit):
        """Join both opinions.

        Parameters
        ----------
        box_logit, galaxy_logit : ndarray, shape (N,)
            Logits of the box head and of the class head.

        Returns
        -------
        ndarray, shape (N,)
            Logit of the calibrated probability of being a galaxy.
        """
        box_logit = np.minimum(box_logit, self.box_most)
        return self.score_box * box_logit + self.score_galaxy * galaxy_logit + self.score_bias

    def least_box_logit(self, score):
        """The least box logit with which a detection can still reach a score.

        Parameters
        ----------
        score : float
            Wanted probability of being a galaxy, 0 to 1.

        Returns
        -------
        float
            The limit, -inf where there is none.
        """
        if score <= 0.0:
            return -math.inf
        wanted = math.log(score) - math.log1p(-min(score, 1.0 - 1e-9))
        return (wanted - self.score_bias - self.score_galaxy * self.galaxy_most) / self.score_box


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Stored):
    """Architecture, pixel statistics, limits and calibration of a compact network.

    Attributes
    ----------
    name : str
        Name of the preset.
    tile_size : int
        Side of the square input, px.
    mean_pixel, pixel_scale : tuple of float, float
        Input = (pixel - mean_pixel) / pixel_scale, for 8-bit R, G, B.
    widths, blocks_per_stage : tuple of int
        Channels and residual blocks of the stages at strides 4, 8, 16, 32.
    pyramid_channels : int
        Channels of every level of the feature pyramid (strides 4 to 64).
    anchor_sides, anchor_ratios : tuple of float
        Side in px of the square anchor of each pyramid level, and height / width of its variants.
    proposals_before_nms, proposals_after_nms : int
        Best anchors per tile that enter and survive the RPN's non-maximum suppression.
    rpn_nms_iou, detection_nms_iou : float
        Overlap (IoU of boxes) from which the lower-scored of two boxes is dropped.
    detection_centre_share : float
        Of two detections whose centres differ by less than this share of the smaller side the lower-scored is dropped.
    max_detections : int
        Detections per tile; a tile that reaches it is reported as capped.
    roi_side : float
        RoIs up to twice this side (px) are read from the finest pyramid level, up to four times from the next.
    box_pool, mask_pool, class_pool : int
        Samples along each side of the RoIAlign of the box, mask and class head.
    box_units : int
        Width of the two dense layers of the box head.
    mask_channels, class_widths : int, tuple of int
        Channels of the mask head, and of the four stages of the class head.
    class_context : float
        The class head reads the image itself, in a square of `class_context` times the box's larger side, and
        never less than `class_pool` px, so that small galaxies are seen at native sharpness.
    first_look_score : float
        Detections whose box-head score is below this are dropped at once.
    calibration : Calibration
        Logits to probabilities.
    """

    name: str = "compact"
    tile_size: int = 256
    mean_pixel: tuple = (20.0, 20.0, 20.0)
    pixel_scale: float = 64.0
    widths: tuple = (32, 64, 128, 256)
    blocks_per_stage: tuple = (2, 2, 2, 2)
    pyramid_channels: int = 64
    anchor_sides: tuple = (11.0, 22.0, 44.0, 88.0, 176.0)
    anchor_ratios: tuple = (0.5, 1.0, 2.0)
    proposals_before_nms: int = 256
    proposals_after_nms: int = 64
    rpn_nms_iou: float = 0.7
    detection_nms_iou: float = 0.5
    detection_centre_share: float = 0.35
    max_detections: int = 48
    roi_side: float = 28.0
    box_pool: int = 7
    mask_pool: int = 14
    class_pool: int = 80
    box_units: int = 256
    mask_channels: int = 64
    class_widths: tuple = (16, 32, 64, 128)
    class_context: float = 1.6
    first_look_score: float = 0.05
    calibration: Calibration = Calibration()

    backbone: ClassVar = "compact"
    names: ClassVar = Names(
        lateral="fpn_c{0}",
        rpn=("rpn_conv", "rpn_score", "rpn_box"),
        mask_convs=tuple((f"mask_conv{number}", f"mask_conv{number}_bn") for number in range(3)),
        mask_up="mask_up",
        mask_logit="mask_logit",
    )
    conv_bias: ClassVar = False  # of convolutions that a normalisation follows
    rpn_logits: ClassVar = 1  # of each anchor
    mask_maps: ClassVar = 1  # of each region
    cell_centre: ClassVar = 0.5  # where in its cell an anchor is centred
    least_proposal: ClassVar = 4.0  # area, in units of the boxes
    _records: ClassVar = {"calibration": Calibration}

    @property
    def rpn_channels(self):
        """int : channels of the RPN's shared convolution."""
        return self.pyramid_channels
