"""Numbers that say how good something is, from arrays alone."""

import numpy as np
import pandas as pd
from astropy.stats import binom_conf_interval


def fraction(hits, total):
    """A rate with its 68 % binomial interval (Wilson).

    Parameters
    ----------
    hits, total : int
        Successes and trials.

    Returns
    -------
    dict
        ``value``, ``low``, ``high``, ``hits``, ``total``; the values are None without trials.
    """
    if not total:
        return {"value": None, "low": None, "high": None, "hits": 0, "total": 0}
    low, high = binom_conf_interval(hits, total, interval="wilson")
    return {
        "value": round(float(hits / total), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "hits": int(hits),
        "total": int(total),
    }


def rate(hit):
    """`fraction` of the True in an array of bool."""
    hit = np.asarray(hit, bool)
    return fraction(int(hit.sum()), hit.size)


def rates_by(value, hit, edges):
    """`rate` in bins of something.

    Parameters
    ----------
    value : array_like, shape (N,)
        What is binned; NaN is in no bin.
    hit : array_like of bool, shape (N,)
        Success of each.
    edges : sequence of float, length B + 1
        Limits of the half-open bins.

    Returns
    -------
    dict
        From ``"low-high"`` to the rate in that bin.
    """
    value, hit = np.asarray(value, float), np.asarray(hit, bool)
    return {
        f"{low:g}-{high:g}": rate(hit[(value >= low) & (value < high)])
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    }


def confusion(is_spiral, said_spiral):
    """Confusion matrix of the two classes with accuracy, precision, recall and F1 (van Rijsbergen 1979).

    Parameters
    ----------
    is_spiral, said_spiral : array_like of bool, shape (N,)
        Label and answer.

    Returns
    -------
    dict
        ``matrix`` (rows: label spiral, elliptical; columns: said spiral, elliptical), ``accuracy``, and for each class
        precision, recall and F1.
    """
    label, answer = np.asarray(is_spiral, bool), np.asarray(said_spiral, bool)
    matrix = [[int((one & two).sum()) for two in (answer, ~answer)] for one in (label, ~label)]
    figures = {"matrix": matrix, "accuracy": rate(label == answer)}
    scores = []
    for name, is_class, said in (("spiral", label, answer), ("elliptical", ~label, ~answer)):
        precision, recall = rate(is_class[said]), rate(said[is_class])
        both = int((is_class & said).sum())
        f1 = 2 * both / max(int(is_class.sum() + said.sum()), 1)
        scores.append(f1)
        figures |= {f"{name}_precision": precision, f"{name}_recall": recall, f"{name}_f1": round(f1, 4)}
    return figures | {"f1": round(float(np.mean(scores)), 4)}


def reliability(p_spiral, is_spiral, bins=10):
    """How often an answer is right against how sure it was, in bins of equal count (Guo et al. 2017).

    Parameters
    ----------
    p_spiral : array_like, shape (N,)
        Probability of spiral.
    is_spiral : array_like of bool, shape (N,)
        Label.
    bins : int
        Bins; empty ones are left out.

    Returns
    -------
    pandas.DataFrame
        ``confidence`` (mean probability of the more probable class), ``accuracy``, ``count``.
    """
    p, label = np.asarray(p_spiral, float), np.asarray(is_spiral, bool)
    confidence, right = np.maximum(p, 1 - p), (p > 0.5) == label
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    rows = [(confidence[part].mean(), right[part].mean(), len(part)) for part in parts]
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "count"])


def expected_calibration_error(curve):
    """Mean gap between confidence and accuracy (Guo et al. 2017, equation 3) of a `reliability` curve."""
    gap = np.abs(curve["confidence"] - curve["accuracy"])
    return round(float((gap * curve["count"]).sum() / max(curve["count"].sum(), 1)), 4)


def without_outliers(values, sigmas=5.0):
    """Values within some standard deviations of their mean: the cut of the paper's Table 4.

    Parameters
    ----------
    values : ndarray, shape (N, ...)
        Rows; one with any value beyond the cut, or NaN, is left out.
    sigmas : float
        The cut.

    Returns
    -------
    ndarray, shape (M, ...)
        The rows that stay.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
    near = np.abs(values - values.mean(axis=0)) <= sigmas * values.std(axis=0)
    return values[near.reshape(len(values), -1).all(axis=1)]


def median_absolute_deviation(values):
    """Median distance from the median, along the first axis; not scaled to a sigma."""
    return np.median(np.abs(values - np.median(values, axis=0)), axis=0)
