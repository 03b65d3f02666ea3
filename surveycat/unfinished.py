"""What a run has done so far, kept so that it can go on after an interruption.

A run that writes ``cat.parquet`` works in the folder ``cat.parquet.partial``: large scratch data, and for each image
a folder with a manifest and one file for every batch of tiles that is finished. Each file appears whole or not
at all and is verified by its checksums when it is read again, so a process may be killed at any moment. Nothing
of it is left after a run that came to its end, or that finished no batch.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from surveycat.catalog import atomic_write
from surveycat.detections import Detections
from surveycat.errors import OptionError, OutputError

__all__ = ["Finished", "check_unfinished", "partial_folder", "work_folder"]

MANIFEST = "manifest.json"
BATCHES = "*/batch-*.npz"

log = logging.getLogger(__name__)


def partial_folder(out):
    """Name the folder in which the run that writes a catalogue works.

    Parameters
    ----------
    out : path-like
        The catalogue.

    Returns
    -------
    `~pathlib.Path`
        ``<out>.partial``.
    """
    return Path(f"{os.fspath(out)}.partial")


def check_unfinished(out, resume, overwrite):
    """Refuse to begin where an unfinished run lies, unless told what to do with it.

    Parameters
    ----------
    out : path-like or None
        The catalogue to be written.
    resume, overwrite : bool
        Whether the user wants to go on with such a run, or to start afresh.

    Returns
    -------
    bool
        Whether there is a run to go on with.

    Raises
    ------
    OptionError
        If both are wanted, or `resume` without an output.
    OutputError
        If there is an unfinished run and neither is wanted.
    """
    if resume and overwrite:
        raise OptionError("both resume and overwrite were asked for; go on with what there is, or start afresh")
    if resume and out is None:
        raise OptionError("resume was asked for without an output; only a run that writes a catalogue can go on")
    if out is None or not partial_folder(out).exists():
        return False
    if not (resume or overwrite):
        raise OutputError(
            f"{partial_folder(out)} holds an unfinished run; add --resume to go on with it, --overwrite to start afresh"
        )
    return resume


@contextlib.contextmanager
def work_folder(out, resume=False):
    """Give the folder of a run, and remove it at the end unless an interrupted run can go on from it.

    Parameters
    ----------
    out : path-like or None
        The catalogue; a run without one works in a temporary folder and cannot go on.
    resume : bool, optional
        Keep what is in the folder; otherwise it is emptied.

    Yields
    ------
    `~pathlib.Path`
        The folder.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="surveycat-") as folder:
            yield Path(folder)
        return
    folder = partial_folder(out)
    if not resume:
        _remove(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}; choose another output") from error
    try:
        yield folder
    except BaseException:
        if next(folder.glob(BATCHES), None) is None:
            _remove(folder)
        raise
    _remove(folder)


def _remove(folder):
    """Remove a folder with all that is in it, or a file that has its name."""
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


class Finished:
    """The finished batches of one image.

    Parameters
    ----------
    folder : path-like
        Where they are; made if it is missing.
    manifest : dict
        Everything on which the answers depend, as JSON can hold it (other values by their text). What is
        there already must have been made under the same.

    Raises
    ------
    OutputError
        If what is there was made under another manifest; the first difference is named.
    """

    def __init__(self, folder, manifest):
        self._folder = Path(folder).absolute()  # workers use it too
        manifest = json.loads(json.dumps(manifest, default=str))
        path = self._folder / MANIFEST
        if path.exists():
            _check_same(_read_manifest(path), manifest, self._folder.parent)
            return
        try:
            shutil.rmtree(self._folder, ignore_errors=True)  # without its manifest nothing can be said of it
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {self._folder}: {error.strerror}; make room there") from error
        text = json.dumps(manifest, indent=1)
        atomic_write(path, lambda name: Path(name).write_text(text))

    def get(self, tiles):
        """Give what was found in a batch.

        Parameters
        ----------
        tiles : list of `~surveycat.tiles.Tile`
            The batch.

        Returns
        -------
        Detections or None
            None if it is not finished, or its file is damaged.
        """
        path = self._path(tiles)
        if not path.exists():
            return None
        try:
            return Detections.load(path)
        except OutputError as error:
            log.warning("%s; its tiles are searched again", error)
            return None

    def put(self, tiles, found):
        """Keep what was found in a batch.

        Parameters
        ----------
        tiles : list of `~surveycat.tiles.Tile`
            The batch.
        found : Detections
            The answer.

        Raises
        ------
        OutputError
            If it cannot be written, for instance because the disk is full.
        """
        found.save(self._path(tiles))

    def _path(self, tiles):
        """File of a batch: named by where its tiles are, for second looks have no fixed places."""
        places = [(tile.index, tile.level, tile.y0, tile.x0, tile.size) for tile in tiles]
        return self._folder / f"batch-{hashlib.sha256(repr(places).encode()).hexdigest()[:24]}.npz"


def _read_manifest(path):
    """Read a manifest; one that cannot be read stands for none that could be resumed."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path} ({error}); start afresh with --overwrite") from error


def _check_same(old, new, folder):
    """Refuse to mix the answers of two different runs."""
    old, new = dict(_leaves(old)), dict(_leaves(new))
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            raise OutputError(
                f"{folder} is of a run with {name} {old.get(name)}, not {new.get(name)}; run it as before to go on, "
                "or add --overwrite to start afresh"
            )


def _leaves(value, name=""):
    """Yield the entries of nested dicts as (dotted name, value)."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
