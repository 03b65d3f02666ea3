"""Plots of the evaluation; each function draws on the axes it is given."""

import numpy as np

COLOURS = {"spiral": "#56b4e9", "elliptical": "#e69f00"}  # as the preview has them (Okabe and Ito)


def confusion(axes, figures):
    """Confusion matrix with counts."""
    matrix = np.array(figures["matrix"])
    axes.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        dark = count > 0.5 * max(matrix[row].sum(), 1)
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    names = ["spiral", "elliptical"]
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    axes.set(xlabel="surveycat says", ylabel="Galaxy Zoo says", title=f"accuracy {figures['accuracy']['value']}")


def rates(axes, by_bin, xlabel, ylabel):
    """Rates in bins, with their intervals and counts; a dict of such dicts gives several lines."""
    several = by_bin if "value" not in next(iter(by_bin.values())) else {"": by_bin}
    for name, bins in several.items():
        known = [(i, one) for i, one in enumerate(bins.values()) if one["total"]]
        if not known:
            continue
        place = np.array([i for i, _ in known]) + 0.06 * list(several).index(name)
        value, low, high = (np.array([one[key] for _, one in known]) for key in ("value", "low", "high"))
        error = np.maximum([value - low, high - value], 0)  # rounding may put a limit on the other side
        axes.errorbar(place, value, error, marker="o", capsize=3, label=name)
        if len(several) == 1:
            for x, (_, one) in zip(place, known, strict=True):
                axes.annotate(str(one["total"]), (x, 0.02), ha="center", fontsize=7, color="grey")
    names = list(next(iter(several.values())))
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    if len(several) > 1:
        axes.legend(fontsize=8)


def reliability(axes, curve):
    """Accuracy against confidence, with the diagonal."""
    axes.plot([0.5, 1], [0.5, 1], color="grey", lw=1)
    axes.plot(curve["confidence"], curve["accuracy"], marker="o")
    axes.set(xlabel="probability of the class given", ylabel="share that is right", xlim=(0.5, 1), ylim=(0.4, 1.02))
    axes.grid(alpha=0.3)


def score_against_votes(axes, voted, agrees):
    """Score against the vote fraction for the label; agreeing and disagreeing."""
    for name, rows, colour in (("agrees", voted[agrees], "#0072b2"), ("disagrees", voted[~agrees], "#d55e00")):
        axes.scatter(rows["vote"], rows["score"] * _of_class(rows), s=5, alpha=0.6, label=name, color=colour)
    axes.set(xlabel="vote fraction of the label", ylabel="score of the class given", ylim=(0, 1.02))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _of_class(rows):
    return np.maximum(rows["p_spiral"], 1 - rows["p_spiral"])


def histogram(axes, values, xlabel, bins=40):
    """Histograms of one or more named samples, with their medians."""
    limits = np.concatenate([np.asarray(v, float) for v in values.values()])
    edges = np.linspace(limits.min(), limits.max(), bins + 1) if len(limits) else bins
    for name, sample in values.items():
        if len(sample):
            axes.hist(sample, edges, histtype="step", label=f"{name} (median {np.median(sample):.3f})")
    axes.set(xlabel=xlabel, ylabel="number")
    axes.legend(fontsize=8)


def curves(axes, x, lines, xlabel, ylabel):
    """Rates (dicts of `figures.fraction`) against a number, a line for each name."""
    for name, values in lines.items():
        known = [(place, one) for place, one in zip(x, values, strict=True) if one["total"]]
        if known:
            place, value = zip(*((place, one["value"]) for place, one in known), strict=True)
            axes.plot(place, value, marker="o", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
