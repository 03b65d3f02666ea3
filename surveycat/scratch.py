"""Arrays that are made once: in memory when small, in a scratch folder when large.

Decoded pictures, unpacked FITS and the coarse levels of a mosaic can be larger than memory. They are written
strip by strip and then mapped. A file appears under its final name only when it is complete, so any process
that is given the same folder may use what another one has made.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from surveycat.errors import ImageError

__all__ = ["Scratch"]


class Scratch:
    """A folder for what does not fit in memory, made when it is first needed.

    Parameters
    ----------
    folder : path-like or None
        Where to put files. It is created if missing and never removed: it belongs to the caller. None makes a
        temporary folder when one is needed, removed by `close`.

    Attributes
    ----------
    large : int
        Arrays of at least this many bytes go to the folder.
    large_shared : int
        The same where a folder was given: what other processes would have to make and hold once more.
    """

    large = 3 * 64 * 2**20  # a picture of 64 million pixels
    large_shared = 2**24

    def __init__(self, folder=None):
        self.given = None if folder is None else str(Path(folder).absolute())
        self._temporary = None

    @property
    def shared(self):
        """Folder in which another process finds what was made here, or None while there is none."""
        return self.given or self._temporary

    def array(self, name, shape, dtype, strips):
        """Array of the given shape, filled from strips in order.

        Parameters
        ----------
        name : str
            File name in the folder, without suffix: the same name always means the same content.
        shape : tuple of int
        dtype : numpy dtype
        strips : callable
            ``strips()`` yields arrays that follow each other in C order and fill the array exactly. It is not
            called when the array is already there.

        Returns
        -------
        ndarray
            In memory, or read-only and memory-mapped.

        Raises
        ------
        ImageError
            The folder cannot be written, for instance because the disk is full.
        """
        dtype = np.dtype(dtype)
        large = self.large if self.given is None else min(self.large, self.large_shared)
        if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize < large:
            return _in_memory(shape, dtype, strips())
        path = self.file(f"{name}.npy", lambda file: _write_npy(file, shape, dtype, strips()))
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def file(self, name, write):
        """Path of a file in the folder, made if it is not there yet.

        Parameters
        ----------
        name : str
            File name: the same name always means the same content.
        write : callable
            ``write(file)`` writes the content to an open binary file.

        Returns
        -------
        `~pathlib.Path`

        Raises
        ------
        ImageError
            The folder cannot be written, for instance because the disk is full.
        """
        try:
            path = self._folder() / name
            if not path.exists():
                _write_whole(path, write)
        except OSError as error:
            if error.errno is None:  # not from the disk: what was to be written could not be decoded
                raise
            where = self.shared or tempfile.gettempdir()
            raise ImageError(
                f"cannot write scratch data to {where} ({error.strerror}): free space there, or name another "
                "folder by the environment variable TMPDIR"
            ) from error
        return path

    def close(self):
        """Remove the temporary folder, if one was made."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _folder(self):
        if self.given is not None:
            os.makedirs(self.given, exist_ok=True)
        elif self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix="surveycat-")
        return Path(self.shared)


def _write_whole(path, write):
    """Write a file beside its final name, and rename it when it is complete."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _in_memory(shape, dtype, strips):
    array = np.empty(shape, dtype)
    flat, start = array.reshape(-1), 0
    for strip in strips:
        flat[start : start + strip.size] = strip.reshape(-1)
        start += strip.size
    return array


def _write_npy(file, shape, dtype, strips):
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for strip in strips:
        file.write(np.ascontiguousarray(strip, dtype).data)
