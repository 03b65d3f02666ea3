"""Plots of a match report."""

import numpy as np

from surveycat import astrometry
from surveycat.match_report import SURE_VOTES, covered
from surveycat.pairs import gnomonic
from surveycat.preview import COLOURS
from surveycat.wcs import unit_vectors

__all__ = ["plots"]

BLUE, ORANGE = (tuple(value / 255 for value in COLOURS[name]) for name in ("spiral", "elliptical"))
GREY, BLACK, RED = (0.6, 0.6, 0.6), (0.1, 0.1, 0.1), (0.8, 0.2, 0.1)
MOST_POINTS = 20_000


def plots(matched, found):
    """Draw a report.

    Parameters
    ----------
    matched : `~surveycat.match.Matched`
    found : dict
        What `match_report.figures` made of it.

    Returns
    -------
    dict of str to `matplotlib.figure.Figure`
        By the name of the file.
    """
    drawn = {
        "sky.png": _sky(matched),
        "completeness.png": _fractions(found),
        "positions.png": _positions(matched, found),
    }
    if found["classes"] and found["classes"]["n"]:
        drawn["classes.png"] = _classes(found["classes"])
    return drawn


def _figure(width, height, rows, columns):
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


# Sky ------------------------------------------------------------------------------------------------------


def _sky(matched):
    """Where there are partners, and where there are none."""
    figure, ((axes,),) = _figure(8, 7, 1, 1)
    here, there = matched.places, matched.reference_places
    area, _ = covered(matched)
    both = np.isin(np.arange(len(here.ra)), matched.chosen.first)
    missed = area & ~np.isin(np.arange(len(there.ra)), matched.chosen.second)
    hollow = {"facecolors": "none", "s": 40}
    layers = (
        (there, missed, f"reference only ({missed.sum()})", {"marker": "x", "c": [GREY], "s": 18, "linewidths": 1}),
        (here, ~both, f"catalogue only ({(~both).sum()})", {"marker": "s", "edgecolors": [ORANGE], **hollow}),
        (here, both, f"both ({both.sum()})", {"marker": "o", "edgecolors": [BLUE], **hollow}),
    )
    known = np.isfinite(here.ra)
    if not known.any():
        return figure
    centre = astrometry.middle(unit_vectors(here.ra[known], here.dec[known]).T)
    for places, rows, label, style in layers:
        rows = _few(np.flatnonzero(rows & np.isfinite(places.ra)))
        vectors = unit_vectors(places.ra[rows], places.dec[rows]).T
        east, north = gnomonic(vectors[vectors @ centre > 0.1], centre).T * astrometry.ARCSEC / 60
        axes.scatter(east, north, label=label, **style)
    ra, dec = np.degrees(np.arctan2(centre[1], centre[0])) % 360, np.degrees(np.arcsin(centre[2]))
    axes.set(xlabel="arcmin east", ylabel="arcmin north", title=f"around RA {ra:.4f}, Dec {dec:+.4f} degrees")
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_xaxis()
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _few(rows):
    """Not more rows than can be told apart in a plot, evenly chosen."""
    return rows[:: max(1, len(rows) // MOST_POINTS)]


# Completeness and purity ----------------------------------------------------------------------------------


def _fractions(found):
    """Completeness above and purity below, by magnitude and by size."""
    figure, grid = _figure(10, 7, 2, 2)
    for row, (name, colour) in zip(grid, (("completeness", BLUE), ("purity", ORANGE)), strict=True):
        for axes, by in zip(row, ("by_magnitude", "by_size"), strict=True):
            _bins(axes, found[name][by], colour)
            axes.set(ylabel=name, ylim=(-0.03, 1.08))
            if found[name]["overall"]["fraction"] is not None:
                axes.axhline(found[name]["overall"]["fraction"], color=GREY, ls=":", lw=1)
    return figure


def _bins(axes, listed, colour):
    """Fractions in bins with their intervals, the number of rows above."""
    bins = [each for each in listed["bins"] if each["n"]] if listed else []
    if not bins:
        axes.text(0.5, 0.5, "no such column", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    low, high, value, below, above = (np.array([each[key] for each in bins])
                                      for key in ("from", "to", "fraction", "low", "high"))  # fmt: skip
    logarithmic = low[0] > 0 and not np.allclose(np.diff(high - low), 0)
    middle = np.sqrt(low * high) if logarithmic else (low + high) / 2
    axes.errorbar(middle, value, yerr=(value - below, above - value), xerr=(middle - low, high - middle), fmt="o",
                  color=colour, ecolor=colour, elinewidth=1, ms=5)  # fmt: skip
    for x, each in zip(middle, bins, strict=True):
        axes.annotate(str(each["n"]), (x, 1.06), ha="center", va="top", fontsize=7, color=BLACK)
    axes.set_xlabel(listed["column"])
    if logarithmic:
        _logarithmic(axes)


def _logarithmic(axes):
    """Make the x axis logarithmic, with plain numbers that do not run into each other."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# Positions ------------------------------------------------------------------------------------------------


def _positions(matched, found):
    """Residuals against each other, and over the field."""
    figure, ((left, right),) = _figure(11, 5.2, 1, 2)
    east, north, where = astrometry.residuals(matched)
    rows = _few(np.arange(len(east)))
    if len(rows):
        _scatter(left, east[rows], north[rows], found)
        _arrows(right, where[rows] / 60, east[rows], north[rows])
    for axes, unit, adjustable in ((left, "arcsec", "box"), (right, "arcmin", "datalim")):
        axes.set_aspect("equal", adjustable=adjustable)
        axes.invert_xaxis()
        axes.set(xlabel=f"{unit} east", ylabel=f"{unit} north")
    if found["wcs"]["warnings"]:
        figure.suptitle(f"WCS: {found['wcs']['verdict']} - see report.txt", color=RED)
    return figure


def _arrows(axes, where, east, north):
    """Residuals as arrows over the field: the median one is 1/20 of the width, much longer ones are cut."""
    rows = slice(None, None, max(1, len(where) // 400))
    length = np.hypot(east, north)
    size = np.median(length) or 1.0
    cut = np.minimum(1, 4 * size / np.maximum(length, 1e-300))
    axes.quiver(*where[rows].T, (east * cut)[rows], (north * cut)[rows], color=BLUE, angles="xy", width=0.003,
                scale=size * 20, scale_units="width")  # fmt: skip
    axes.set_title(f"over the field: the median arrow is {size:.2f} arcsec, 4 times that the longest drawn", fontsize=9)


def _scatter(axes, east, north, found):
    positions = found["positions"]
    axes.scatter(east, north, s=9, c=[BLUE], alpha=0.7, linewidths=0)
    axes.axhline(0, color=GREY, lw=0.7)
    axes.axvline(0, color=GREY, lw=0.7)
    axes.errorbar(
        positions["east"]["median"], positions["north"]["median"], xerr=positions["east"]["mad_sigma"],
        yerr=positions["north"]["mad_sigma"], fmt="+", color=RED, ms=12, label="median and scatter (1.48 MAD)",
    )  # fmt: skip
    reach = max(5 * max(positions["east"]["mad_sigma"], positions["north"]["mad_sigma"]), 0.05)
    far = int(((np.abs(east) > reach) | (np.abs(north) > reach)).sum())
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), title=f"reference minus catalogue, {positions['n']} pairs")
    axes.legend(loc="upper right", fontsize=8, title=f"{far} outside" if far else None, title_fontsize=8)


# Classes --------------------------------------------------------------------------------------------------


def _classes(classes):
    """Probability of spiral against the fraction of votes."""
    figure, ((axes,),) = _figure(6, 5.5, 1, 1)
    spiral, votes = np.array(classes["pairs"]).T
    axes.scatter(votes, spiral, s=16, c=[BLUE], alpha=0.6, linewidths=0)
    edges = np.linspace(0, 1, 6)
    which = np.clip(np.digitize(votes, edges) - 1, 0, 4)
    filled = [number for number in range(5) if (which == number).sum() >= 5]
    if filled:
        middle = [votes[which == number].mean() for number in filled]
        mean = [spiral[which == number].mean() for number in filled]
        axes.plot(middle, mean, "o-", color=BLACK, ms=5, label="mean in fifths")
        axes.legend(loc="lower right")
    axes.axhline(0.5, color=GREY, lw=0.7)
    for sure in (1 - SURE_VOTES, SURE_VOTES):
        axes.axvline(sure, color=GREY, lw=0.7, ls=":")
    axes.set(
        xlabel=f"{classes['column']} of the reference",
        ylabel="p_spiral of the catalogue",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.set_title(f"{classes['n']} objects, classes agree for {classes['agree']['fraction']:.0%}")
    return figure
