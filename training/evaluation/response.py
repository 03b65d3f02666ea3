"""How the answer about a galaxy changes with the picture: noise, stretch, sampling, colour."""

import numpy as np
from PIL import Image

from training.evaluation import plots
from training.evaluation.cutouts import look_at_cutouts, native_cutouts, read_cutouts, seen_cutouts
from training.evaluation.figures import rate
from training.evaluation.tiles import TILE
from training.stretch import FRAME_IRG, FRAME_SCALES, Stretch

NOISES = (12.75, 25.5, 51.0, 76.5)  # counts: 0.05, 0.1, 0.2 and 0.3 of the range (the paper's Figure 18)
SAMPLE = 300  # cutouts for each variant of `section_response`


def noise(subject, page):
    """Noise response (Fig. 18) over all test cutouts: galaxies that are found, and whose class stays the same."""
    plain = seen_cutouts(subject)
    lines = {"detected": [rate(plain["found"])], "class unchanged": [rate(plain["found"][plain["found"]])]}
    figures = {"detected_without": lines["detected"][0]}
    frame = plain.drop(columns=["found", "score", "p_spiral", "side"])
    end = subject.shares(len(NOISES))
    for sigma in NOISES:
        rng = subject.rng(f"noise {sigma}")
        noisy = (add_noise(image, sigma, rng) for image in native_cutouts(frame))
        seen = look_at_cutouts(subject.detector, frame, noisy, next(end))
        detected, same = rate(seen["found"]), unchanged(plain, seen)
        figures[f"sigma_{sigma:g}"] = {"detected": detected, "class_unchanged": same}
        lines["detected"].append(detected)
        lines["class unchanged"].append(same)
    page.plot(
        "response",
        noise.__doc__.splitlines()[0],
        plots.curves,
        (0, *NOISES),
        lines,
        "sigma of the noise, counts",
        "rate",
    )
    return figures


def add_noise(image, sigma, rng):
    """Gaussian noise on each channel of a picture, clipped to its range."""
    return np.clip(np.rint(image + rng.normal(0.0, sigma, image.shape)), 0, 255).astype(np.uint8)


def unchanged(before, after):
    """Rate of galaxies found in both pictures that have the same class in both.

    Parameters
    ----------
    before, after : pandas.DataFrame
        From `look_at_cutouts`; `after` may be shorter.

    Returns
    -------
    dict
        As `figures.fraction` gives it.
    """
    before = before.head(len(after))
    both = before["found"].to_numpy() & after["found"].to_numpy()
    same = (before["p_spiral"].to_numpy() > 0.5) == (after["p_spiral"].to_numpy() > 0.5)
    return rate(same[both])


def restretched(image, stretch):
    """The picture in another stretch; what was clipped stays so."""
    return stretch.render(FRAME_IRG.invert(image))


def resampled(image, factor):
    """The picture with larger (factor below 1) or smaller pixels, at most a tile."""
    size = min(max(round(image.shape[0] * factor), 16), TILE)
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((size, size), method))


def one_band(image, channel):
    """A grey picture of one channel."""
    return np.repeat(image[..., channel : channel + 1], 3, axis=2)


VARIANTS = {
    "stretch": {
        "asinh, half the gain": lambda image: restretched(image, Stretch(scales=tuple(0.5 * s for s in FRAME_SCALES))),
        "asinh, twice the gain": lambda image: restretched(image, Stretch(scales=tuple(2.0 * s for s in FRAME_SCALES))),
        "Lupton, Q 8, stretch 5": lambda image: restretched(image, Stretch("lupton", (1.0, 1.0, 1.0), 8.0, 5.0)),
        "Lupton, Q 10, stretch 0.5": lambda image: restretched(image, Stretch("lupton", (1.0, 1.0, 1.0), 10.0, 0.5)),
    },
    "pixel scale": {
        "1/4, level 2": lambda image: resampled(image, 0.25),
        "1/2, level 1": lambda image: resampled(image, 0.5),
        "0.7": lambda image: resampled(image, 0.7),
        "1.4": lambda image: resampled(image, 1.4),
        "2": lambda image: resampled(image, 2.0),
    },
    "single band": {
        "i": lambda image: one_band(image, 0),
        "r": lambda image: one_band(image, 1),
        "g": lambda image: one_band(image, 2),
        "grey": lambda image: np.repeat(np.rint(image.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2),
    },
}


def response(subject, page):
    """Response to stretch, pixel scale (and level) and single bands, on a random part of the confident test cutouts."""
    frame = read_cutouts(subject.data, "test")
    frame = subject.sample(frame[frame["confident"] == 1]).head(SAMPLE)
    plain = look_at_cutouts(subject.detector, frame)
    figures = {"as_it_is": answer(plain, plain)}
    end = subject.shares(sum(len(changes) for changes in VARIANTS.values()))
    for group, changes in VARIANTS.items():
        figures[group] = {}
        for name, change in changes.items():
            seen = look_at_cutouts(subject.detector, frame, map(change, native_cutouts(frame)), next(end))
            figures[group][name] = answer(plain, seen)
        bars = {what: {name: one[what] for name, one in figures[group].items()} for what in ("detected", "accuracy")}
        page.plot(group.replace(" ", "_"), f"Response to {group}", plots.rates, bars, "", "rate")
    return figures


def answer(plain, seen):
    """Detected, accuracy of the class, and class as in the plain picture."""
    found = seen[seen["found"]]
    return {
        "detected": rate(seen["found"]),
        "accuracy": rate((found["p_spiral"] > 0.5) == (found["label"] == "spiral")),
        "class_unchanged": unchanged(plain, seen),
    }
