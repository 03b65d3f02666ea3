"""SkyServer, the service that gives pictures and tables of the Sloan Digital Sky Survey.

`SkyServer.cutout` gives a picture of a place on the sky, `SkyServer.sql` and `SkyServer.cross_id` give tables. The
service answers many a failure with status 200, cuts what it finds too large without a word, and is slow at times.
So nothing is believed that was not looked at: a picture must be one, of the size that was asked for, without text or
grid painted on it; a table must have its columns, and its rows are counted. What may be better next time is asked
again, later and later, a bounded number of times; every wait has a bound.

Requests are built, and answers judged, by functions that touch no network.
"""

import contextlib
import csv
import io
import json
import logging
import os
import random
import re
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial

import numpy as np

from surveycat import __version__
from surveycat.cache import Cache
from surveycat.errors import OptionError, OutsideFootprint, PositionError, ServiceError

__all__ = ["Cutout", "SkyServer", "black_fraction", "has_overlay", "judge_picture", "stacked"]

BASE_URL = "https://skyserver.sdss.org"
RELEASE = 18
SCALE = 0.396127  # arcsec per pixel, SkyServer's own default
SIZES = 64, 2048  # pixels; the service brings other sizes into this range without saying so
SCALES = 0.015, 60.0  # arcsec per pixel
ROW_LIMIT = 500_000  # an answer is cut there, without a word
RADIUS_LIMIT = 180.0  # arcsec, of a cross-identification
CHUNK = 1000  # positions in one cross-identification
LONG_QUERY = 1500  # characters; a longer one does not go into a URL
LONGEST_PAUSE = 60.0  # seconds between two attempts
LARGEST_BODY = 2**29  # bytes
ALL_BLACK = 0.99
CACHE_BYTES = 20 * 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Cutout:
    """A picture of a place on the sky, north up and east left.

    Parameters
    ----------
    ra, dec : float
        ICRS degrees of 0-based pixel (W/2, H/2).
    scale : float
        Arcsec per pixel.
    data : bytes
        The JPEG file.
    pixels : ndarray of uint8, shape (H, W, 3)
        What is in it.
    black : float
        Share of the picture that was never painted, 0 to 1: there the survey has no image.
    """

    ra: float
    dec: float
    scale: float
    data: bytes
    pixels: np.ndarray
    black: float


@dataclass(frozen=True)
class _Answer:
    """What came back: HTTP status and reason, content type in lower case, bytes, and seconds it asks us to wait."""

    status: int
    reason: str
    kind: str
    body: bytes
    wait: float = 0.0


class _Temporary(ServiceError):
    """An answer that may be better next time; `wait` is how long the service wants to be left alone."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


class SkyServer:
    """A client of SkyServer; any number of threads may share one.

    Parameters
    ----------
    base_url : str, optional
        Where the service is; ``$SURVEYCAT_SKYSERVER`` or https://skyserver.sdss.org by default.
    release : int, optional
        SDSS data release; ``$SURVEYCAT_SDSS_RELEASE`` or 18 by default.
    cache : path-like or None, optional
        Folder in which pictures and tables are kept (see `surveycat.cache`); None keeps nothing.
    cache_bytes : int, optional
        Bound of that folder.
    concurrency : int, optional
        Requests under way at any time.
    rate, query_rate : float, optional
        Requests that begin in a second: for pictures, and for tables, of which the service allows 60 a minute.
    attempts : int, optional
        How often to ask for one thing.
    backoff : float, optional
        Seconds before the second attempt; then twice that, and so on up to a minute, each with jitter.
    timeout, query_timeout : float, optional
        Seconds until the answer to one request must have ended, for pictures and for tables.

    Raises
    ------
    OptionError
        If a value cannot be meant.
    """

    def __init__(
        self,
        base_url=None,
        release=None,
        *,
        cache=None,
        cache_bytes=CACHE_BYTES,
        concurrency=4,
        rate=10.0,
        query_rate=1.0,
        attempts=6,
        backoff=1.0,
        timeout=60.0,
        query_timeout=600.0,
    ):
        self.base_url = _checked_url(base_url or os.environ.get("SURVEYCAT_SKYSERVER") or BASE_URL)
        self.release = _checked_release(release or os.environ.get("SURVEYCAT_SDSS_RELEASE") or RELEASE)
        limits = {"concurrency": concurrency, "rate": rate, "query_rate": query_rate, "attempts": attempts}
        for name, value in {**limits, "timeout": timeout, "query_timeout": query_timeout}.items():
            if not value > 0:
                raise OptionError(f"{name} is {value}; give a number above 0")
        self.concurrency, self.attempts, self.backoff = int(concurrency), int(attempts), backoff
        self.timeout, self.query_timeout = timeout, query_timeout
        self._pictures, self._queries = _Pace(rate), _Pace(query_rate)
        self._slots = threading.BoundedSemaphore(self.concurrency)
        self._cache = None if cache is None else Cache(cache, cache_bytes)
        self._local, self._closed = threading.local(), threading.Event()

    def close(self):
        """End what is under way: whoever waits for a turn, or to ask again, gets a `ServiceError` at once."""
        self._closed.set()

    # Pictures ---------------------------------------------------------------------------------------------

    def cutout(self, ra, dec, width=256, height=256, scale=SCALE):
        """Get a picture of a place on the sky.

        Parameters
        ----------
        ra, dec : float
            ICRS degrees; the position comes to 0-based pixel (width/2, height/2).
        width, height : int, optional
            Pixels, 64 to 2048.
        scale : float, optional
            Arcsec per pixel, 0.015 to 60.

        Returns
        -------
        Cutout

        Raises
        ------
        PositionError, OptionError
            A value that the service would change without saying so.
        OutsideFootprint
            There is no image of this place.
        ServiceError
            There was no good answer in all attempts.
        """
        path, parameters = cutout_request(self.release, ra, dec, width, height, scale)
        judge = partial(_judged_cutout, ra, dec, width, height, scale)
        return self._ask(path, parameters, judge, self._pictures, self.timeout)

    def cutouts(self, places, **options):
        """Get many pictures, several at a time.

        Parameters
        ----------
        places : iterable of (key, ra, dec)
            Taken from as needed: few more than `concurrency` are under way or waiting.
        **options
            As in `cutout`.

        Yields
        ------
        key
            The key of a place.
        Cutout or ServiceError
            Its picture, or why there is none; in the order in which they come.
        """
        places, pending = iter(places), {}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="surveycat-fetch")
        try:
            while True:
                while len(pending) < 2 * self.concurrency and (place := next(places, None)) is not None:
                    key, ra, dec = place
                    pending[pool.submit(self.cutout, ra, dec, **options)] = key
                if not pending:
                    return
                for done in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(done), _outcome(done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # whoever stops taking does not wait for the others

    # Tables -----------------------------------------------------------------------------------------------

    def sql(self, query, key=None, row_limit=ROW_LIMIT):
        """Ask the database.

        Parameters
        ----------
        query : str
            One SELECT statement. With `key` it holds ``{after}``, as in ``SELECT TOP 500000 objID, ra, dec FROM
            PhotoPrimary WHERE ra BETWEEN 1 AND 2 AND objID > {after} ORDER BY objID``: it is asked again from the
            last key on for as long as answers reach the limit.
        key : str, optional
            Name of an integer column of the answer.
        row_limit : int, optional
            Rows at which the service cuts an answer, without a word.

        Returns
        -------
        `~astropy.table.Table`
            Integers as int64 (uint64 where that is too small), never through floating point; missing numbers are
            masked. Nothing found is a table with all columns and no rows.

        Raises
        ------
        OptionError
            With `key` and no ``{after}`` in the query, or the other way round.
        ServiceError
            If there was no good answer in all attempts, or it reaches the limit and there is no `key`.
        """
        if ("{after}" in query) != (key is not None):
            raise OptionError(f"key is {key} and the query is {query!r}; give a key and {{after}} together, or neither")
        if key is None:
            table = self._rows(query)
            if len(table) >= row_limit:
                raise ServiceError(
                    f"the answer has {len(table)} rows, at which SkyServer cuts: ask for less, or by key and {{after}}"
                )
            return table
        parts, after = [], -1
        while True:
            parts.append(self._rows(query.replace("{after}", str(after)), needs=[key]))
            if len(parts[-1]) < row_limit:
                return stacked(parts)
            if (last := int(parts[-1][key].max())) <= after:
                raise ServiceError(f"the answer stays at {key} {after}: does the query ask for {key} > {{after}}?")
            after = last

    def _rows(self, query, needs=()):
        path, parameters = sql_request(self.release, query)
        judge = partial(_judged_table, needs)
        return self._ask(path, parameters, judge, self._queries, self.query_timeout, post=len(query) > LONG_QUERY)

    def cross_id(self, ra, dec, radius_arcsec=3.0, photo=("objID", "ra", "dec"), spectra=()):
        """Find the nearest primary object of the survey at each of many positions.

        Positions that the answer leaves out are asked for once more, until an answer brings nothing new: only then
        do they count as without an object.

        Parameters
        ----------
        ra, dec : array_like, shape (N,)
            ICRS degrees.
        radius_arcsec : float, optional
            Search radius, above 0 and up to 180.
        photo : sequence of str, optional
            Columns of PhotoObjAll.
        spectra : sequence of str, optional
            Columns of SpecObj, prefixed ``spec_`` in the answer and masked where there is no spectrum.

        Returns
        -------
        `~astropy.table.Table`
            The columns asked for behind ``row``, the place of the position in `ra`; sorted by it. Positions
            without an object have no row.

        Raises
        ------
        PositionError, OptionError
            If positions or radius cannot be used.
        ServiceError
            If there was no good answer in all attempts.
        """
        ra, dec = _checked_positions(ra, dec)
        if not 0 < radius_arcsec <= RADIUS_LIMIT:
            raise OptionError(f"radius is {radius_arcsec} arcsec; give more than 0 and at most {RADIUS_LIMIT:g}")
        if not len(ra):
            return _no_objects(photo, spectra)
        parts = []
        for start in range(0, len(ra), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(ra)))
            parts += self._identified(rows, ra, dec, radius_arcsec, photo, spectra)
        table = stacked(parts)
        table.sort("row")
        return table

    def _identified(self, missing, ra, dec, radius_arcsec, photo, spectra):
        """Give the answers about some rows, asking again for those left out."""
        parts = []
        for _ in range(self.attempts):
            path, parameters, upload = cross_id_request(
                self.release, missing, ra[missing], dec[missing], radius_arcsec, photo, spectra
            )
            judge = partial(_judged_objects, missing, [*photo, *(f"spec_{name}" for name in spectra)])
            table = self._ask(path, parameters, judge, self._queries, self.query_timeout, post=True, upload=upload)
            parts.append(table)
            missing = np.setdiff1d(missing, table["row"])
            if not len(table) or not len(missing):
                break
        return parts

    # One request ------------------------------------------------------------------------------------------

    def _ask(self, path, parameters, judge, pace, timeout, post=False, upload=None):
        """Ask until an answer is judged good, and keep it; `judge` raises `_Temporary` for one that is not."""
        url = f"{self.base_url}/{path}"
        request = json.dumps([url, parameters, upload])
        kept = self._cache.get(request) if self._cache else None
        if kept is not None:
            with contextlib.suppress(ServiceError):
                return judge(_Answer(200, "", "", kept))
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                log.debug("%s: %s; attempt %d follows", url, reason, attempt + 1)
            try:
                with self._slots:
                    self._closed.wait(pace.turn())
                    self._check_open()
                    answer = self._send(url, parameters, timeout, post, upload)
                result = judge(answer)
            except _Temporary as problem:
                reason = str(problem)
                pause = min(max(self._pause(attempt), problem.wait), LONGEST_PAUSE)
                if problem.wait:
                    pace.hold(min(problem.wait, LONGEST_PAUSE))
                if attempt + 1 < self.attempts:
                    self._closed.wait(pause)
                    self._check_open()
                continue
            if self._cache:
                self._cache.put(request, answer.body)
            return result
        raise ServiceError(f"{self._where(path)}: {reason} ({self.attempts} attempts); try again later")

    def _check_open(self):
        if self._closed.is_set():
            raise ServiceError("the client was closed while requests were under way")

    def _where(self, path):
        return f"{self.base_url.split('//')[1]} ({path.rpartition('/')[2]})"

    def _pause(self, attempt):
        """Seconds to wait after a failed attempt: twice as long each time, of which half is left to chance."""
        return min(self.backoff * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.0)

    def _send(self, url, parameters, timeout, post, upload):
        """Send one request and read the answer to its end, within `timeout` seconds."""
        import requests
        from urllib3.exceptions import HTTPError

        end = time.monotonic() + timeout
        place = {"data": parameters} if post else {"params": parameters}
        if upload is not None:
            place["files"] = {"upload": ("positions.csv", upload)}
        try:
            answer = self._session().request(
                "POST" if post else "GET", url, timeout=(min(10, timeout), timeout), stream=True, **place
            )
            with answer:
                body = _read_body(answer.raw, end, timeout)
        except requests.exceptions.SSLError as error:
            raise ServiceError(f"{url}: its certificate is not accepted ({_reason_of(error)})") from error
        except (requests.RequestException, HTTPError, OSError) as error:
            raise _Temporary(f"no answer ({_reason_of(error)})") from error
        kind = answer.headers.get("Content-Type", "").lower()
        return _Answer(answer.status_code, answer.reason or "", kind, body, _retry_after(answer.headers))

    def _session(self):
        """Give this thread's connection to the service."""
        if not hasattr(self._local, "session"):
            import requests

            self._local.session = requests.Session()
            self._local.session.headers["User-Agent"] = f"surveycat/{__version__}"
        return self._local.session


class _Pace:
    """Lets requests begin at a bounded rate, whatever the number of threads."""

    def __init__(self, rate):
        self._step, self._next, self._lock = 1.0 / rate, 0.0, threading.Lock()

    def turn(self):
        """Take a turn: gives the seconds until it comes."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._step
        return max(0.0, turn - time.monotonic())

    def hold(self, seconds):
        """Let no request begin for a while."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


# Requests, without any network ----------------------------------------------------------------------------


def cutout_request(release, ra, dec, width, height, scale):
    """Build the request for a picture.

    Parameters
    ----------
    release : int
        SDSS data release.
    ra, dec, width, height, scale
        As in `SkyServer.cutout`.

    Returns
    -------
    path : str
        Below the base URL.
    parameters : dict of str
        ``opt`` is empty: any letter in it has the service paint on the picture.

    Raises
    ------
    PositionError, OptionError
        A value that the service would change without saying so.
    """
    _checked_positions([ra], [dec])
    low, high = SIZES
    if not (low <= width <= high and low <= height <= high):
        raise OptionError(f"a cutout of {width} x {height} pixels; SkyServer makes {low} to {high}")
    if not SCALES[0] <= scale <= SCALES[1]:
        raise OptionError(f"a pixel scale of {scale:g} arcsec; SkyServer makes {SCALES[0]} to {SCALES[1]:g}")
    parameters = {"ra": f"{ra:.8f}", "dec": f"{dec:.8f}", "scale": f"{scale:.9g}"}
    parameters |= {"width": str(int(width)), "height": str(int(height)), "opt": ""}
    return f"dr{release}/SkyServerWS/ImgCutout/getjpeg", parameters


def sql_request(release, query):
    """Build the request for a query.

    Parameters
    ----------
    release : int
        SDSS data release.
    query : str
        One SELECT statement.

    Returns
    -------
    path : str
        Below the base URL.
    parameters : dict of str
        What is sent.

    Raises
    ------
    OptionError
        A query that the service would spoil.
    """
    words = " ".join(query.split())
    if not words.lower().startswith("select ") or ";" in words:
        raise OptionError(f"the query {words[:60]!r} is not one SELECT statement without a semicolon")
    return f"dr{release}/SkyServerWS/SearchTools/SqlSearch", {"cmd": words, "format": "csv"}


def cross_id_request(release, rows, ra, dec, radius_arcsec, photo, spectra):
    """Build the request for a cross-identification.

    Parameters
    ----------
    release : int
        SDSS data release.
    rows : sequence of int, length N
        What the answer is to call each position.
    ra, dec : sequence of float, length N
        ICRS degrees.
    radius_arcsec, photo, spectra
        As in `SkyServer.cross_id`.

    Returns
    -------
    path : str
        Below the base URL.
    parameters : dict of str
        What is sent.
    upload : str
        The list of positions, to be sent as a file.
    """
    columns = [f"p.{name}" for name in photo] + [f"s.{name} AS spec_{name}" for name in spectra]
    query = f"SELECT {', '.join(columns)} FROM #upload u JOIN #x x ON x.up_id = u.up_id "
    query += "JOIN PhotoObjAll p ON p.objID = x.objID "
    if spectra:
        query += "LEFT JOIN SpecObj s ON s.bestObjID = p.objID "
    parameters = {
        "uquery": query + "ORDER BY x.up_id",
        "radius": f"{radius_arcsec / 60:.6f}",
        "firstcol": "1",
        "photoScope": "nearPrim",
        "photoUpType": "ra-dec",
        "searchType": "photo",
        "searchtool": "CrossID",
        "format": "csv",
    }
    lines = ["name ra dec", *(f"n{row} {x:.8f} {y:.8f}" for row, x, y in zip(rows, ra, dec, strict=True))]
    return f"dr{release}/SkyServerWS/SearchTools/CrossIdSearch", parameters, "\n".join(lines)


def _checked_url(url):
    if not re.match(r"https?://[^/]", url):
        raise OptionError(f"the address of SkyServer is {url!r}; give one that begins with https:// or http://")
    return url.rstrip("/")


def _checked_release(release):
    number = str(release).lower().removeprefix("dr")
    if not number.isdecimal():
        raise OptionError(f"the data release is {release!r}; give a number, such as {RELEASE}")
    return int(number)


def _checked_positions(ra, dec):
    """Give positions as arrays, and refuse those that the service would wrap without saying so."""
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    bad = ~((ra >= 0) & (ra < 360) & (dec >= -90) & (dec <= 90))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise PositionError(f"position ra {ra[i]} dec {dec[i]} is not on the sky; give 0 <= ra < 360, -90 <= dec <= 90")
    return ra, dec


# Answers, without any network -----------------------------------------------------------------------------


def _read_body(raw, end, timeout):
    """Read an answer piece by piece, so that one that drips has an end too."""
    pieces, size = [], 0
    while piece := raw.read1(2**16, decode_content=True):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > end:
            raise _Temporary(f"the answer did not end in {timeout:g} s")
        if size > LARGEST_BODY:
            raise _Temporary(f"the answer is longer than {LARGEST_BODY} bytes")
    return b"".join(pieces)


def _reason_of(error):
    """Say in few words what a library reports as a chain of wrapped errors."""
    while inner := next((arg for arg in (*error.args[::-1], error.__cause__) if isinstance(arg, Exception)), None):
        error = inner
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    return re.sub(r"<[^>]*>:? ?|HTTPS?ConnectionPool\([^)]*\):? ?", "", text)[:160] or type(error).__name__


def _retry_after(headers):
    """Seconds that an answer asks us to wait, 0 if it does not."""
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _judged_cutout(ra, dec, width, height, scale, answer):
    """Make a `Cutout` of an answer, or say what is wrong with it."""
    if answer.status == 404 and answer.kind.startswith("image/"):
        raise OutsideFootprint(f"ra {ra:.6f} dec {dec:+.6f} is outside of the images of SDSS")
    _judge_status(answer)
    if answer.kind and not answer.kind.startswith("image/"):  # what was kept has no type
        raise _Temporary(_what_instead(answer, "a picture"))
    pixels, black = judge_picture(answer.body, width, height)
    if black >= ALL_BLACK:
        raise OutsideFootprint(f"ra {ra:.6f} dec {dec:+.6f}: the picture is black, SDSS has no image there")
    return Cutout(ra, dec, scale, answer.body, pixels, black)


def judge_picture(data, width, height):
    """Decode a picture of SkyServer and say whether it can be what was asked for.

    Parameters
    ----------
    data : bytes
        A JPEG file.
    width, height : int
        What was asked for, pixels.

    Returns
    -------
    pixels : ndarray of uint8, shape (height, width, 3)
        The picture.
    black : float
        Share that was never painted.

    Raises
    ------
    ServiceError
        Another size, or something painted on it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise _Temporary(f"the picture is damaged ({_reason_of(error)})") from error
    if pixels.shape[:2] != (height, width):
        came = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ServiceError(f"the picture has {came} pixels instead of {width} x {height}: was the size clamped?")
    black = black_fraction(pixels)
    if _is_text(pixels, black):
        raise _Temporary("the picture is an error message, text on black")
    if has_overlay(pixels):
        raise ServiceError("a grid is painted on the picture, which was not asked for: the service or a proxy is wrong")
    return pixels, black


def black_fraction(pixels):
    """Share of a picture that SkyServer never painted.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
        The decoded picture.

    Returns
    -------
    float
        Share of blocks of 8 x 8 pixels, those of JPEG, that are 0 throughout. Real sky has up to 0.02 of them,
        for its noise is clipped at 0 too.
    """
    height, width = (n // 8 * 8 for n in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 8, 8, width // 8, 24)
    return float(np.mean(~blocks.any(axis=(1, 3))))


def _is_text(pixels, black):
    """Whether a picture is grey on black: sky has colour, if only that of its noise."""
    if black < 0.3 or not pixels.any():
        return False
    return int(np.max(pixels.max(axis=2) - pixels.min(axis=2))) <= 2


def has_overlay(pixels, contrast=40):
    """Whether a grid or a ruler is painted on a picture.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
        The decoded picture.
    contrast : int, optional
        Counts by which a line must stand out on both sides.

    Returns
    -------
    bool
        Whether along a row or a column more than an eighth of the picture is one thin bright line. SkyServer's grid
        takes a third. Trails and spikes in real pictures stay below 1/25 and 24 pixels.
    """
    least = max(28, 0.12 * max(pixels.shape[:2]))
    signed = pixels.astype(np.int16)
    for lines in (signed, signed.swapaxes(0, 1)):
        above, middle, below = lines[:-4], lines[2:-2], lines[4:]
        thin = (np.minimum(middle - above, middle - below) > contrast).any(axis=2)
        thin = thin[thin.sum(axis=1) > least]
        if len(thin) and _longest_run(thin) > least:
            return True
    return False


def _longest_run(flags):
    """Longest run of True along the rows of a 2-D array."""
    edges = np.diff(np.pad(flags, ((0, 0), (1, 1))).ravel().astype(np.int8), prepend=0)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return int((ends - starts).max(initial=0))


def _judge_status(answer):
    """Raise what an HTTP status other than 200 means."""
    if answer.status == 200:
        return
    said = f"HTTP {answer.status} {answer.reason}".strip()
    message = _json_message(answer.body)
    if message:
        said += f": {message}"
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise _Temporary(said, answer.wait)
    if answer.status == 404:
        raise ServiceError(f"{said}; is the data release right, and the address of SkyServer?")
    raise ServiceError(f"SkyServer refuses the request: {said}")


def _json_message(body):
    """Give the message of one of SkyServer's JSON errors, or None."""
    if not body.lstrip()[:1] == b"{":
        return None
    try:
        error = json.loads(body)
    except ValueError:
        return None
    return " ".join(str(error.get("ErrorMessage", error)).split())[:200]


def _what_instead(answer, wanted):
    """Say what came instead of what was wanted."""
    message = _json_message(answer.body)
    if message:
        return f"an error instead of {wanted}: {message}"
    text = answer.body[:20_000].decode("latin-1")
    if re.search(r"<(!doctype|html|head|body)", text, re.IGNORECASE):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        title = f" titled {' '.join(title[1].split())[:60]!r}" if title else ""
        words = " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE).split())
        return f"a web page{title} instead of {wanted} ({words[-160:]})"
    return f"{answer.kind or 'something'} that begins with {answer.body[:20]!r} instead of {wanted}"


def _judged_table(needs, answer):
    """Make a table of an answer, or say what is wrong with it."""
    _judge_status(answer)
    text = answer.body.decode("utf-8", "replace")
    if not text.strip() or text.lstrip()[0] in "<{[":
        raise _Temporary(_what_instead(answer, "a table") if text.strip() else "an empty answer")
    titled, lines = text.startswith("#Table1"), text.removeprefix("#Table1").lstrip("\r\n")
    if not lines.endswith("\n"):
        raise _Temporary(f"the table is cut off after {lines[-30:]!r}")
    header, *rows = csv.reader(io.StringIO(lines))
    rows = [row for row in rows if row]
    if not (titled or rows or len(header) > 1):
        raise _Temporary(f"a line of text instead of a table: {lines[:80].strip()!r}")
    if header == ["error_message"]:
        _raise_refusal(" ".join(" ".join(row) for row in rows))
    uneven = next((row for row in rows if len(row) != len(header)), None)
    if uneven is not None:
        raise _Temporary(f"a row has {len(uneven)} values for {len(header)} columns: {','.join(uneven)[:60]!r}")
    lacking = {name.lower() for name in needs} - {name.lower() for name in header}
    if lacking or not all(re.fullmatch(r"[\w\[\]]+", name) for name in header):
        raise _Temporary(f"a table with columns {','.join(header)[:80]!r} instead of {', '.join(needs) or 'names'}")
    return _table(header, rows, needs)


def _raise_refusal(message):
    """Raise what a table with the column error_message means."""
    if re.search(r"queries allowed per|timeout|timed out|deadlock", message, re.IGNORECASE):
        raise _Temporary(message[:200], wait=5.0)
    raise ServiceError(f"SkyServer refuses the query: {message[:200]}")


def _judged_objects(asked, needs, answer):
    """Make a table of the answer to a cross-identification."""
    table = _judged_table(["name", *needs], answer)
    names = [str(name) for name in table["name"]]
    known = {f"n{row}": row for row in asked.tolist()}
    stranger = next((name for name in names if name not in known), None)
    if stranger is not None:
        raise _Temporary(f"the table holds {stranger!r}, which was not asked for")
    table.replace_column("name", np.array([known[name] for name in names], dtype=np.int64))
    table.rename_column("name", "row")
    return table[["row", *needs]]


def _table(header, rows, names=()):
    """Make a table of text; columns in `names` are called so whatever their case in `header`."""
    from astropy.table import Table

    called = {name.lower(): name for name in names}
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    table = Table()
    for name, texts in zip(header, columns, strict=True):
        table[called.get(name.lower(), name)] = _numbers(texts)
    return table


def _numbers(texts):
    """Make a column of the narrowest type that holds its texts without loss: int64, uint64, float64, text."""
    from astropy.table import Column, MaskedColumn

    missing = [text.strip().lower() in ("", "null") for text in texts]
    present = [text for text, gone in zip(texts, missing, strict=True) if not gone]
    if not present:
        return MaskedColumn(np.full(len(texts), np.nan), mask=missing) if texts else Column(np.empty(0))
    for convert in (_integers, _floats):
        values = convert(["0" if gone else text for text, gone in zip(texts, missing, strict=True)])
        if values is not None:
            return MaskedColumn(values, mask=missing) if any(missing) else Column(values)
    return Column(np.array(["" if gone else text for text, gone in zip(texts, missing, strict=True)]))


def _integers(texts):
    """Give texts as int64, as uint64 where that is too small, or None if one is not an integer."""
    if not all(re.fullmatch(r"\s*[+-]?\d{1,20}\s*", text) for text in texts):
        return None
    values = [int(text) for text in texts]
    if -(2**63) <= min(values) and max(values) < 2**63:
        return np.array(values, dtype=np.int64)
    return np.array(values, dtype=np.uint64) if min(values) >= 0 and max(values) < 2**64 else None


def _floats(texts):
    """Give texts as float64, or None if one is not a number."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return values


def stacked(parts):
    """Put tables with the same columns under each other, integers exact.

    A column's type follows from its values, so that it may differ from answer to answer; numpy would bring int64 and
    uint64, or integers and a column without any value, together as float64.

    Parameters
    ----------
    parts : list of `~astropy.table.Table`
        At least one; those without rows lend their columns only.

    Returns
    -------
    `~astropy.table.Table`
    """
    from astropy.table import Table

    filled = [part for part in parts if len(part)]
    if not filled:
        return parts[0]
    return Table({name: _one_column([part[name] for part in filled]) for name in filled[0].colnames})


def _one_column(columns):
    from astropy.table import MaskedColumn

    masks = [np.broadcast_to(getattr(column, "mask", False), len(column)) for column in columns]
    present = [np.asarray(column)[~mask] for column, mask in zip(columns, masks, strict=True) if not mask.all()]
    kinds = {values.dtype.kind for values in present}
    if kinds == {"i", "u"}:
        dtype = np.dtype("U20") if min(values.min() for values in present) < 0 else np.dtype(np.uint64)
    else:
        dtype = np.result_type(*(values.dtype for values in present)) if present else columns[0].dtype
    mask, result = np.concatenate(masks), np.zeros(sum(map(len, columns)), dtype)
    if present:
        result[~mask] = np.concatenate([values.astype(dtype) for values in present])
    return MaskedColumn(result, mask=mask) if mask.any() else result


def _no_objects(photo, spectra):
    """Give the answer to no question: all columns, no rows."""
    table = _table(["row", *photo, *(f"spec_{name}" for name in spectra)], [])
    table.replace_column("row", np.empty(0, np.int64))
    return table


def _outcome(done):
    """Give what a finished task returned, or the `ServiceError` that it raised."""
    error = done.exception()
    if error is None:
        return done.result()
    if not isinstance(error, ServiceError):
        raise error
    return error
