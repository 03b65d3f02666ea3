"""Pixels to feature pyramid: a small residual network (He et al. 2016) and an FPN (Lin et al. 2017)."""

from keras import Input, Model, layers


def conv_norm(x, channels, size, stride, name, activation="relu"):
    """Convolution without bias, batch normalisation, activation.

    Parameters
    ----------
    x : tensor, shape (B, H, W, C)
        Input.
    channels, size, stride : int
        Output channels, kernel side, stride ("same" padding).
    name : str
        Name of the convolution; the normalisation is called ``<name>_bn``.
    activation : str or None
        Name of the activation that follows.

    Returns
    -------
    tensor, shape (B, ceil(H / stride), ceil(W / stride), channels)
        Output.
    """
    x = layers.Conv2D(channels, size, strides=stride, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.98, epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def residual_block(x, channels, stride, name):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, figure 5 left).

    Parameters
    ----------
    x : tensor, shape (B, H, W, C)
        Input.
    channels, stride : int
        Output channels; stride of the first convolution.
    name : str
        Prefix of the layer names.

    Returns
    -------
    tensor, shape (B, ceil(H / stride), ceil(W / stride), channels)
        Output.
    """
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = conv_norm(x, channels, 1, stride, f"{name}_short", activation=None)
    x = conv_norm(x, channels, 3, stride, f"{name}_a")
    x = conv_norm(x, channels, 3, 1, f"{name}_b", activation=None)
    return layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, shortcut]))


def compact_stages(x, config):
    """Stem of stride 4 and four residual stages.

    Parameters
    ----------
    x : tensor, shape (B, T, T, 3)
        Normalised pixels.
    config : NetworkConfig
        Widths and depths.

    Returns
    -------
    list of tensor
        C2 to C5, strides 4 to 32.
    """
    # Two steps of stride 2: one of stride 4 would blur what tells a star from a small galaxy.
    x = conv_norm(x, 24, 3, 2, "stem_a")
    x = conv_norm(x, config.widths[0], 3, 2, "stem_b")
    stages = []
    for stage, (channels, blocks) in enumerate(zip(config.widths, config.blocks_per_stage, strict=True), start=2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            x = residual_block(x, channels, stride, f"stage{stage}_{block}")
        stages.append(x)
    return stages


def pyramid(stages, channels):
    """Join coarse and fine features from the top down (Lin et al. 2017, figure 3).

    Parameters
    ----------
    stages : list of tensor
        C2 to C5.
    channels : int
        Channels of each output level.

    Returns
    -------
    list of tensor
        P2 to P6, strides 4 to 64.
    """
    merged = []
    for number, stage in reversed(list(enumerate(stages, start=2))):
        lateral = layers.Conv2D(channels, 1, name=f"fpn_c{number}")(stage)
        if merged:
            coarser = layers.UpSampling2D(2, name=f"fpn_up{number}")(merged[-1])
            lateral = layers.Add(name=f"fpn_add{number}")([lateral, coarser])
        merged.append(lateral)
    levels = [
        layers.Conv2D(channels, 3, padding="same", name=f"fpn_p{number}")(level)
        for number, level in enumerate(reversed(merged), start=2)
    ]
    return [*levels, layers.MaxPooling2D(1, strides=2, name="fpn_p6")(levels[-1])]


def build_backbone(config):
    """The trunk and its pyramid as one Keras model.

    Parameters
    ----------
    config : NetworkConfig
        Architecture.

    Returns
    -------
    keras.Model
        (B, T, T, 3) normalised pixels -> list of P2 to P6, each (B, T / stride, T / stride, pyramid_channels).
    """
    pixels = Input((config.tile_size, config.tile_size, 3), name="pixels")
    return Model(pixels, pyramid(compact_stages(pixels, config), config.pyramid_channels), name="backbone")
