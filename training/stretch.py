"""Colour stretches of SDSS pictures, both ways: linear light to uint8 and back.

Linear light is in nanomaggies per native pixel, channels in the order i, r, g (= R, G, B of the picture).
"""

from dataclasses import dataclass

import numpy as np

FRAME_SCALES = (2.0, 2.6, 3.6)
FRAME_NONLINEARITY = 2.25


@dataclass(frozen=True)
class Stretch:
    """One way of turning three bands into a picture.

    Parameters
    ----------
    kind : {'asinh', 'lupton'}
        'asinh' is the recipe of the survey's own pictures (idlutils ``djs_rgb_make``): channels times `scales`, then
        ``asinh(b S) / (b S)`` on their sum S. 'lupton' is ``astropy.visualization.make_lupton_rgb``: the mean of the
        scaled channels, softened by `softening` (Q) and `range` (stretch).
    scales : tuple of float
        Factors of the i, r and g band.
    softening : float
        b of 'asinh', Q of 'lupton'.
    range : float
        The stretch of 'lupton'; not used by 'asinh'.
    keeps_hue : bool
        Whether what is too bright keeps its colour, or becomes white channel by channel.
    """

    kind: str = "asinh"
    scales: tuple = FRAME_SCALES
    softening: float = FRAME_NONLINEARITY
    range: float = 1.0
    keeps_hue: bool = True

    @property
    def slope(self):
        """Counts of the picture's sum per unit of faint light, the light being weighted by FRAME_SCALES and summed."""
        ratio = float(np.mean(np.asarray(self.scales) / np.asarray(FRAME_SCALES)))
        if self.kind == "asinh":
            return 256.0 * ratio
        return 256.0 * ratio * 0.1 / np.arcsinh(0.1 * self.softening) * self.softening / self.range

    def render(self, light):
        """Turn linear light (..., 3) into a uint8 picture of the same shape.

        Negative light is set to 0; where a channel passes 1 all three are divided by the largest, if hues are kept.
        """
        scaled = np.maximum(light * np.asarray(self.scales, np.float32), 0.0)
        total = scaled.sum(axis=-1, keepdims=True)
        total = np.maximum(total, 1e-6)
        if self.kind == "asinh":
            scaled *= np.arcsinh(self.softening * total) / (self.softening * total)
        else:
            mean = total / 3.0
            slope = 0.1 / np.arcsinh(0.1 * self.softening)
            scaled *= np.arcsinh(mean * (self.softening / self.range)) * slope / mean
        if self.keeps_hue:
            scaled /= np.maximum(scaled.max(axis=-1, keepdims=True), 1.0)
        return np.minimum(scaled * 256.0, 255.0).astype(np.uint8)

    def invert(self, picture):
        """Turn a picture (..., 3), uint8 or float on 0..255, into linear light, float32.

        What was clipped (negative sky, burnt-out stars) stays clipped.
        """
        out = np.asarray(picture, np.float32)
        # render() floors to whole counts, so that the middle of the step is half a count higher; black stays black.
        out = np.where(out > 0, out + 0.5, 0.0) / 256.0 if picture.dtype == np.uint8 else out / 256.0
        total = np.maximum(out.sum(axis=-1, keepdims=True), 1e-6)
        if self.kind == "asinh":
            light = np.sinh(self.softening * total) / self.softening
        else:
            slope = 0.1 / np.arcsinh(0.1 * self.softening)
            light = 3.0 * np.sinh(total / 3.0 / slope) * (self.range / self.softening)
        return (out * (light / total) / np.asarray(self.scales, np.float32)).astype(np.float32)


FRAME_IRG = Stretch()


def random_stretch(rng):
    """Draw a stretch in which SDSS images come: three in four like SkyServer's or the frame pictures.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Stretch
    """
    choice = rng.random()
    jitter = np.exp(rng.normal(0.0, 0.06, 3))
    if choice < 0.45:
        # SkyServer's sky noise is lower than that of the frame pictures: the same curve with less gain.
        gain, softening, kind, span = np.exp(rng.uniform(np.log(0.5), np.log(1.0))), FRAME_NONLINEARITY, "asinh", 1.0
        scales = np.asarray(FRAME_SCALES) * gain
    elif choice < 0.75:
        gain, softening, kind, span = np.exp(rng.normal(0.0, 0.1)), FRAME_NONLINEARITY, "asinh", 1.0
        scales = np.asarray(FRAME_SCALES) * gain
    elif choice < 0.92:
        # astropy's default, which leaves most galaxies a few counts, as often as all others
        kind, scales = "lupton", np.ones(3)
        softening, span = [(8.0, 5.0), (10.0, 0.5), (1.85, 1.17), (8.0, 1.0)][max(rng.integers(-2, 4), 0)]
        span = span * np.exp(rng.normal(0.0, 0.1))
    else:
        kind, span = "asinh", 1.0
        softening = np.exp(rng.uniform(np.log(1.2), np.log(5.0)))
        base = [FRAME_SCALES, (4.9 * 0.4, 5.7 * 0.4, 7.8 * 0.4), (1.6, 2.0, 2.4)][rng.integers(3)]
        scales = np.asarray(base) * np.exp(rng.uniform(np.log(0.4), np.log(1.6)))
    return Stretch(kind, tuple(float(s) for s in scales * jitter), float(softening), float(span))
