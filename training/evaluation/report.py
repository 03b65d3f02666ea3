"""The report: one page of Markdown with plots, put together from sections that may have been run one by one."""

import json

from surveycat.image import open_image
from surveycat.preview import preview

REPORT = "report.md"


class Page:
    """Where a section puts its plots, tables and pictures.

    Parameters
    ----------
    folder : pathlib.Path or None
        Folder of the report; None takes nothing.
    section : str
        Name of the section, before every file name.
    """

    def __init__(self, folder, section):
        self.folder, self.section, self.shown = folder, section, []

    def plot(self, name, caption, draw, *arguments):
        """Draw one PNG: ``draw(axes, *arguments)``."""
        if self.folder is None:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot(), *arguments)
        figure.savefig(self._file(name, ".png", caption), dpi=110)

    def picture(self, name, caption, image):
        """Keep a `PIL.Image.Image`."""
        if self.folder is not None:
            image.save(self._file(name, ".png", caption))

    def overlay(self, name, caption, table, path):
        """Draw a catalogue over its picture, as ``surveycat run --preview`` does."""
        if self.folder is not None:
            with open_image(path) as image:
                preview(table, image, self._file(name, ".png", caption))

    def table(self, name, frame, caption=None):
        """Keep a `pandas.DataFrame` as CSV."""
        if self.folder is not None:
            frame.to_csv(self._file(name, ".csv", caption or f"Table: {name}"), index=False)

    def _file(self, name, suffix, caption):
        file = f"{self.section}_{name}{suffix}"
        self.shown.append({"file": file, "caption": caption})
        return self.folder / file

    def finish(self, about, figures, seconds):
        """Write what the section gave, and how long it kept the processor busy, for `write_report`."""
        if self.folder is not None:
            content = {"about": about, "figures": figures, "shown": self.shown, "seconds": round(seconds)}
            (self.folder / f"{self.section}.json").write_text(json.dumps(content, indent=1) + "\n")


def write_report(folder, sections, about):
    """Write the page from all sections that were run with these weights, now or before.

    Parameters
    ----------
    folder : pathlib.Path
        With the sections' JSON files.
    sections : dict
        From the name of each section, in order, to its function; the first line of its docstring is the heading.
    about : dict
        ``weights``, ``sha256``, ``commit`` and so on; sections of other weights are not shown.

    Returns
    -------
    pathlib.Path
        The page.
    """
    parts = [f"# surveycat: evaluation of `{about['weights']}`\n", _listed(about)]
    for name, function in sections.items():
        file = folder / f"{name}.json"
        if not file.exists():
            continue
        content = json.loads(file.read_text())
        if content["about"]["sha256"] != about["sha256"]:
            continue
        parts.append(f"\n## {name}\n\n{function.__doc__.splitlines()[0]}\n")
        parts.append(f"\n({content['seconds']} s of the processor)\n")
        if content["about"]["commit"] != about["commit"]:
            parts.append(f"\n(run at commit {content['about']['commit']})\n")
        parts.append(_figures(content["figures"]))
        parts += [_shown(one) for one in content["shown"]]
    page = folder / REPORT
    page.write_text("\n".join(parts))
    return page


def _shown(one):
    if one["file"].endswith(".png"):
        return f"\n![{one['caption']}]({one['file']})\n*{one['caption']}*\n"
    return f"\n[{one['caption']}]({one['file']})\n"


def _listed(about):
    return "\n".join(f"- {key}: {value}" for key, value in about.items()) + "\n"


def _figures(figures):
    """A table of all figures; rates with interval and counts."""
    rows = ["| figure | value | 68 % interval | of |", "|---|---|---|---|"]
    rows += [f"| {name} | {' | '.join(_cells(value))} |" for name, value in _flat(figures)]
    return "\n".join(rows) + "\n"


def _flat(figures, prefix=""):
    for key, value in figures.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict) and "total" not in value:
            yield from _flat(value, f"{name}, ")
        else:
            yield name, value


def _cells(value):
    if isinstance(value, dict):
        if value["value"] is None:
            return "-", "", "0"
        return (
            f"{value['value']:.4g}",
            f"{value['low']:.3f} to {value['high']:.3f}",
            f"{value['hits']} / {value['total']}",
        )
    return str(value).replace("|", "/"), "", ""
