"""What is computed for each region: score and box, mask, class."""

import math

from keras import Input, Model, initializers, layers

from surveycat.mrcnn.backbone import WholeConv2D, conv_norm

_FILLED = initializers.Constant(math.log(math.pi / (4 - math.pi)))  # logit of pi / 4


def build_box_head(config):
    """Is it a galaxy, and where exactly: the second stage of Faster R-CNN.

    Parameters
    ----------
    config : NetworkConfig
        Pool size and widths.

    Returns
    -------
    keras.Model
        (R, box_pool, box_pool, C) -> galaxy logit (R, 1) and box deltas (R, 4).
    """
    region = Input((config.box_pool, config.box_pool, config.pyramid_channels), name="region")
    x = layers.Flatten(name="box_flat")(region)
    for number in range(2):
        x = layers.Dense(config.box_units, activation="relu", name=f"box_fc{number}")(x)
    logit = layers.Dense(1, bias_initializer=initializers.Constant(-2.0), name="box_score")(x)
    return Model(region, [logit, layers.Dense(4, name="box_deltas")(x)], name="box_head")


def build_class_box_head(config):
    """Background or which class, and where exactly if it is that class: the box head of the ``mrcnn`` package.

    Parameters
    ----------
    config : MrcnnConfig
        Pool size, width and classes.

    Returns
    -------
    keras.Model
        (R, box_pool, box_pool, C) -> class logits (R, K) and box deltas (R, K, 4), background first.
    """
    region = Input((config.box_pool, config.box_pool, config.pyramid_channels), name="region")
    x = region
    for number, size in enumerate((config.box_pool, 1), start=1):
        names = {"name": f"mrcnn_class_conv{number}", "norm": f"mrcnn_class_bn{number}"}
        x = conv_norm(x, config.box_units, size, 1, bias=True, padding="valid", convolution=WholeConv2D, **names)
    x = layers.Flatten(name="pool_squeeze")(x)
    count = len(config.classes) + 1
    deltas = layers.Dense(4 * count, name="mrcnn_bbox_fc")(x)
    logits = layers.Dense(count, name="mrcnn_class_logits")(x)
    return Model(region, [logits, layers.Reshape((count, 4), name="mrcnn_bbox")(deltas)], name="box_head")


def build_mask_head(config):
    """Which pixels of the region belong to the galaxy (He et al. 2017, figure 4).

    Parameters
    ----------
    config : NetworkConfig or MrcnnConfig
        Pool size, channels and names; how many masks each region has.

    Returns
    -------
    keras.Model
        (R, mask_pool, mask_pool, C) -> mask logits (R, 2 * mask_pool, 2 * mask_pool), with an axis (..., K) where
        there are several masks.
    """
    names, side = config.names, 2 * config.mask_pool
    region = Input((config.mask_pool, config.mask_pool, config.pyramid_channels), name="region")
    x = region
    for conv, norm in names.mask_convs:
        x = conv_norm(x, config.mask_channels, 3, 1, conv, norm=norm, bias=config.conv_bias)
    x = layers.Conv2DTranspose(config.mask_channels, 2, strides=2, activation="relu", name=names.mask_up)(x)
    # an untrained head draws the ellipse's share of its box, not the nothing that half of all random ones would
    start = {"kernel_initializer": initializers.RandomNormal(stddev=0.01), "bias_initializer": _FILLED}
    x = layers.Conv2D(config.mask_maps, 1, name=names.mask_logit, **start)(x)
    if config.mask_maps == 1:
        x = layers.Reshape((side, side))(x)
    return Model(region, x, name="mask_head")


def build_class_head(config):
    """Spiral or elliptical, and once more: galaxy or not.

    It reads the image's own pixels around the box, not the pyramid: arms and the difference between a star and
    a small galaxy are finer than the pyramid's 4-px cells. The fourth channel marks the box, so that the
    head knows which of two neighbours is meant.

    Parameters
    ----------
    config : NetworkConfig
        Pool size and widths.

    Returns
    -------
    keras.Model
        (R, class_pool, class_pool, 4) -> logits (R, 2): galaxy, spiral.
    """
    crop = Input((config.class_pool, config.class_pool, 4), name="crop")
    x = conv_norm(crop, config.class_widths[0], 5, 2, "class_stem")
    for stage, channels in enumerate(config.class_widths):
        if stage:
            x = layers.MaxPooling2D(2, name=f"class_pool{stage}")(x)
        x = conv_norm(x, channels, 3, 1, f"class{stage}_a")
        short = x
        x = conv_norm(x, channels, 3, 1, f"class{stage}_b", activation=None)
        x = layers.Activation("relu", name=f"class{stage}_out")(layers.Add(name=f"class{stage}_add")([x, short]))
    x = layers.GlobalAveragePooling2D(name="class_mean")(x)
    x = layers.Dropout(0.3, name="class_drop")(x)
    return Model(crop, layers.Dense(2, name="class_logits")(x), name="class_head")
