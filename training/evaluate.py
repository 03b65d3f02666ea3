"""Measure a preset on galaxies and fields it never saw, and write the figures beside its weights.

Example: python -m training.evaluate --weights weights/compact --data ../shared/data --report build/report

Every figure is at the catalogue's default score of 0.5 unless its name says otherwise, and comes from the ``test``
split of the cutouts, from scenes composed of it, or from fields of which nothing was trained on. ``metrics.json`` goes
into the preset folder (``--out`` for another), one page with plots into ``--report``. ``--only`` runs some sections and
leaves the figures of the others as they are, if they are of the same weights.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import surveycat
from training.command import exit_code
from training.evaluation import centroids, composed, cutouts, errors, fields, injected, response
from training.evaluation.report import Page, write_report
from training.evaluation.subject import Subject

SECTIONS = {
    "cutouts": cutouts.section,
    "composed": composed.section,
    "centroids": centroids.section,
    "noise": response.noise,
    "response": response.response,
    "fields": fields.section,
    "stretches": fields.stretches,
    "hudf": fields.hudf,
    "sep": fields.sep_baseline,
    "injected": injected.section,
    "errors": errors.section,
}


def commit():
    """Short name of the checked-out commit, with ``+`` where files differ from it."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def evaluate(weights, data, out=None, report=None, only=None, cache="build/evaluation", limit=None, minutes=60.0):
    """Figures of a preset, written to ``metrics.json``, and their report.

    Parameters
    ----------
    weights : str
        Preset name or folder.
    data : path
        Shared data folder.
    out : path, optional
        Folder for ``metrics.json``; the preset's own by default.
    report : path, optional
        Folder for the page.
    only : sequence of str, optional
        Sections; all by default. Figures of others are kept if they are of the same weights.
    cache : path, optional
        Where stamps and sky of the test split are kept.
    limit : int, optional
        Only so many cutouts and scenes, drawn at random.
    minutes : float, optional
        For each section: what it has not looked at by then is left out, and the totals say so.

    Returns
    -------
    dict
        The figures.
    """
    _check_sections(only or ())
    subject = Subject(str(weights), pathlib.Path(data), pathlib.Path(cache), limit, 60.0 * minutes)
    file = pathlib.Path(out or weights) / "metrics.json"
    about = {
        "weights": subject.detector.weights_id,
        "sha256": subject.detector.sha256,
        "surveycat": surveycat.__version__,
        "commit": commit(),
        "data": "SDSS cutouts with Galaxy Zoo labels (split test) and SDSS fields kept for testing",
    }
    metrics = about | known_figures(file, about["sha256"], SECTIONS if not only else only)
    folder = None if report is None else pathlib.Path(report)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for name, section in SECTIONS.items():
        if only and name not in only:
            continue
        started, busy, page = time.monotonic(), time.process_time(), Page(folder, name)
        subject.start()
        metrics[name] = section(subject, page)
        busy = time.process_time() - busy
        page.finish(about, metrics[name], busy)
        print(f"{name}: {time.monotonic() - started:.0f} s, {busy:.0f} s of the processor", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(metrics, indent=2) + "\n")
        if folder is not None:
            write_report(folder, SECTIONS, about)
    return metrics


def known_figures(file, sha256, sections):
    """Figures of other sections in an earlier ``metrics.json``, if it is of the same weights."""
    if not file.exists():
        return {}
    earlier = json.loads(file.read_text())
    if earlier.get("sha256") != sha256:
        return {}
    return {name: earlier[name] for name in SECTIONS if name in earlier and name not in sections}


def _check_sections(names):
    unknown = set(names) - set(SECTIONS)
    if unknown:
        raise ValueError(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")


def _sections(text):
    """Names of sections on the command line."""
    try:
        _check_sections(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text.split(",")


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/compact")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", help="folder for metrics.json, if not the preset's own")
    parser.add_argument("--report", help="folder for the page and its plots")
    parser.add_argument("--only", type=_sections, help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--cache", default="build/evaluation", help="where stamps of the test split are kept")
    parser.add_argument("--limit", type=int, help="only so many cutouts and scenes, drawn at random")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each section")
    given = vars(parser.parse_args(arguments))
    return exit_code(lambda: print(json.dumps(evaluate(**given), indent=2)))


if __name__ == "__main__":
    sys.exit(main())
