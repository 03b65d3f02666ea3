"""A folder of downloads that several processes share.

What was fetched is kept under the checksum of its content, and a small file per request names that checksum::

    requests/3f/3fa9...   holds "b1946a..."
    contents/b1/b1946a... holds the bytes whose sha256 this is

So the same picture is kept once however it was asked for, and a damaged file is found out when it is read. Every
file appears whole or not at all; a file that another process removes meanwhile is a miss. When the contents
outgrow their bound, those that were used longest ago go.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path

__all__ = ["Cache", "default_cache"]

SHRINK_TO = 0.9  # of the bound, so that not every new file makes the folder be looked through
ABANDONED = 3600.0  # seconds after which a file is no longer being written

log = logging.getLogger(__name__)


def default_cache():
    """Folder of downloads for this user.

    Returns
    -------
    `~pathlib.Path`
        ``$SURVEYCAT_CACHE``, else ``surveycat`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    given = os.environ.get("SURVEYCAT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surveycat"


class Cache:
    """A folder of downloads.

    Parameters
    ----------
    folder : path-like
        Where it is; made when something is put there.
    max_bytes : int
        Bound of the contents, in bytes.

    Notes
    -----
    A cache never stops the work: where the folder cannot be written, for instance because the disk is full, one
    warning is logged and nothing is kept.
    """

    def __init__(self, folder, max_bytes):
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._size = None  # bytes, as far as this process knows; None until it has looked
        self._works = True

    def get(self, request):
        """Give what a request has brought before.

        Parameters
        ----------
        request : str
            Everything on which the answer depends.

        Returns
        -------
        bytes or None
            None if it is not here, or damaged.
        """
        try:
            digest = self._request(request).read_text()
            path = self._content(digest)
            content = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None
        return content if _digest(content) == digest else None

    def put(self, request, content):
        """Keep what a request has brought.

        Parameters
        ----------
        request : str
            Everything on which the answer depends.
        content : bytes
            The answer.
        """
        if not self._works:
            return
        digest = _digest(content)
        try:
            _write(self._content(digest), content)
            _write(self._request(request), digest.encode())
            self._count(len(content))
        except OSError as error:
            self._works = False
            log.warning("downloads are not kept in %s: %s", self.folder, error.strerror)

    def _request(self, request):
        name = _digest(request.encode())
        return self.folder / "requests" / name[:2] / name

    def _content(self, digest):
        return self.folder / "contents" / digest[:2] / digest

    def _count(self, n_bytes):
        """Add to what is known of the size, and make room where it is too much."""
        if self._size is None:
            self._size = sum(size for _, size, _ in self._contents())
        else:
            self._size += n_bytes
        if self._size > self.max_bytes:
            self._make_room()

    def _make_room(self):
        """Remove what was used longest ago; one process at a time, for others may have done so already."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = sorted(self._contents())
            self._size = sum(size for _, size, _ in found)
            for _, size, path in found:
                if self._size <= SHRINK_TO * self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                self._size -= size
            self._forget_requests()

    def _forget_requests(self):
        """Remove the requests whose content is gone."""
        for path in (self.folder / "requests").glob("*/[!.]*"):
            with contextlib.suppress(OSError):
                if not self._content(path.read_text()).exists():
                    path.unlink()

    def _contents(self):
        """Yield (time of last use, bytes, path) of all that is here, and of what killed processes left unfinished."""
        now = time.time()
        for path in (self.folder / "contents").glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if not path.name.startswith(".") or now - status.st_mtime > ABANDONED:
                    yield status.st_mtime, status.st_size, path


def _digest(content):
    return hashlib.sha256(content).hexdigest()


def _write(path, content):
    """Write a file that appears whole; what it held before is the same or worth nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
