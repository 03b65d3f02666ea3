"""Pixels to feature pyramid: a residual network (He et al. 2016), small or large, and an FPN (Lin et al. 2017)."""

from keras import Input, Model, layers, ops

RESNET_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class WholeConv2D(layers.Conv2D):
    """A convolution whose kernel is as large as its input, computed as the matrix product that it is: faster."""

    def call(self, inputs):
        """Multiply flattened inputs with the flattened kernel.

        Parameters
        ----------
        inputs : tensor, shape (R, H, W, C)
            Inputs, of the kernel's size.

        Returns
        -------
        tensor, shape (R, 1, 1, filters)
            Outputs.
        """
        kernel = ops.reshape(self.kernel, (-1, self.filters))
        outputs = ops.matmul(ops.reshape(inputs, (-1, kernel.shape[0])), kernel) + self.bias
        return ops.reshape(outputs, (-1, 1, 1, self.filters))


def conv_norm(
    x,
    channels,
    size,
    stride,
    name,
    activation="relu",
    norm=None,
    bias=False,
    padding="same",
    convolution=layers.Conv2D,
):
    """Convolution, batch normalisation, activation.

    Parameters
    ----------
    x : tensor, shape (B, H, W, C)
        Input.
    channels, size, stride : int
        Output channels, kernel side, stride.
    name : str
        Name of the convolution.
    activation : str or None
        Name of the activation that follows.
    norm : str, optional
        Name of the normalisation; ``<name>_bn`` by default.
    bias : bool
        Whether the convolution has a bias, which the normalisation after it makes superfluous.
    padding : str
        ``same`` or ``valid``.
    convolution : class
        Kind of convolution.

    Returns
    -------
    tensor, shape (B, H / stride, W / stride, channels)
        Output.
    """
    x = convolution(channels, size, strides=stride, padding=padding, use_bias=bias, name=name)(x)
    x = layers.BatchNormalization(momentum=0.98, epsilon=1e-3, name=norm or f"{name}_bn")(x)
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


def bottleneck_block(x, channels, stride, first, place):
    """1 x 1, 3 x 3 and 1 x 1 convolution, and a shortcut (He et al. 2016, figure 5 right), named as in ``mrcnn``.

    Parameters
    ----------
    x : tensor, shape (B, H, W, C)
        Input.
    channels, stride : int
        Channels of the first two convolutions, the third has four times as many; stride of the first.
    first : bool
        Whether the block is the first of its stage and its shortcut a convolution.
    place : str
        Number of the stage and letter of the block.

    Returns
    -------
    tensor, shape (B, H / stride, W / stride, 4 * channels)
        Output.
    """

    def branch(x, number, channels, size, stride, activation=None):
        name = f"{place}_branch{number}"
        return conv_norm(x, channels, size, stride, f"res{name}", activation, norm=f"bn{name}", bias=True)

    shortcut = branch(x, "1", 4 * channels, 1, stride) if first else x
    x = branch(x, "2a", channels, 1, stride, "relu")
    x = branch(x, "2b", channels, 3, 1, "relu")
    x = branch(x, "2c", 4 * channels, 1, 1)
    return layers.Activation("relu", name=f"res{place}_out")(layers.Add(name=f"res{place}_add")([x, shortcut]))


def resnet_stages(x, config):
    """ResNet-50 or ResNet-101 as the ``mrcnn`` package builds it.

    Parameters
    ----------
    x : tensor, shape (B, T, T, 3)
        Normalised pixels.
    config : MrcnnConfig
        Which of the two.

    Returns
    -------
    list of tensor
        C2 to C5, strides 4 to 32.
    """
    # three zeros on every side: "same" would put two before and three after, and shift everything by a pixel
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = conv_norm(x, config.stem_channels, 7, 2, "conv1", norm="bn_conv1", bias=True, padding="valid")
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="conv1_pool")(x)
    stages = []
    for stage, blocks in enumerate(RESNET_BLOCKS[config.backbone], start=2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            channels, place = config.stem_channels * 2 ** (stage - 2), f"{stage}{chr(ord('a') + block)}"
            x = bottleneck_block(x, channels, stride, block == 0, place)
        stages.append(x)
    return stages


def pyramid(stages, channels, lateral_name):
    """Join coarse and fine features from the top down (Lin et al. 2017, figure 3).

    Parameters
    ----------
    stages : list of tensor
        C2 to C5.
    channels : int
        Channels of each output level.
    lateral_name : str
        Name of the 1 x 1 convolutions, with ``{0}`` for the number of the level.

    Returns
    -------
    list of tensor
        P2 to P6, strides 4 to 64.
    """
    merged = []
    for number, stage in reversed(list(enumerate(stages, start=2))):
        lateral = layers.Conv2D(channels, 1, name=lateral_name.format(number))(stage)
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
    config : NetworkConfig or MrcnnConfig
        Architecture.

    Returns
    -------
    keras.Model
        (B, T, T, 3) normalised pixels -> list of P2 to P6, each (B, T / stride, T / stride, pyramid_channels).
    """
    pixels = Input((config.tile_size, config.tile_size, 3), name="pixels")
    stages = (resnet_stages if config.backbone in RESNET_BLOCKS else compact_stages)(pixels, config)
    return Model(pixels, pyramid(stages, config.pyramid_channels, config.names.lateral), name="backbone")
