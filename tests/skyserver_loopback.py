"""A server on loopback that behaves as SkyServer does, its bad manners included.

It really listens, on a port of its own. Pictures show an artificial sky of round galaxies, projected as SkyServer
does it: orthographic, north up, the position asked for at pixel (W/2, H/2). Sizes are brought into 64 to 2048 without
a word, and places outside of the footprint get 404 with a black JPEG that holds text. What else can go wrong is a
*manner*: the test names the one for each request.
"""

import csv
import io
import re
import sys
import threading
import time
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from PIL import Image, ImageDraw

PAGE = "<!DOCTYPE html><html><head><title>{}</title></head><body><h1>{}</h1></body></html>"
JSON_ERROR = '{{"ErrorCode":{0},"ErrorType":"{1}","ErrorMessage":"{2}","LogMessageID":"x","LogTime":"t"}}'


class Sky:
    """An artificial sky.

    Parameters
    ----------
    galaxies : array_like, shape (N, 4)
        ra, dec (degrees), radius (arcsec, the sigma of a Gaussian) and brightness (counts).
    inside : callable, optional
        ``inside(ra, dec)`` tells where there are images; everywhere by default.
    """

    def __init__(self, galaxies, inside=None):
        self.galaxies = np.array(galaxies, float).reshape(-1, 4)
        self.inside = inside or (lambda ra, dec: True)

    def picture(self, ra, dec, scale, width, height):
        """Draw what SkyServer would show: uint8, shape (height, width, 3); unpainted where outside."""
        noise = np.random.default_rng(int(ra * 1e6) ^ int(abs(dec) * 1e6)).normal(12, 3, (height, width, 3))
        x, y = np.arange(width) - width / 2, np.arange(height) - height / 2
        light = np.zeros((height, width))
        for east, north, sigma, bright in self._offsets(ra, dec):
            column, row, sigma = width / 2 - east / scale, height / 2 - north / scale, sigma / scale
            near = [slice(max(0, int(at - 6 * sigma)), max(0, int(at + 6 * sigma))) for at in (row, column)]
            dx, dy = x[near[1]] + east / scale, y[near[0]] + north / scale
            light[tuple(near)] += bright * np.exp(-0.5 * (dy[:, None] ** 2 + dx[None, :] ** 2) / sigma**2)
        pixels = np.clip(noise + light[..., None] * [1.0, 0.8, 0.6], 0, 255).astype(np.uint8)
        pixel_ra = ra - x[None, :] * scale / 3600 / np.cos(np.radians(dec))
        inside = self.inside(np.mod(pixel_ra, 360), dec - y[:, None] * scale / 3600)
        pixels[~np.broadcast_to(inside, (height, width))] = 0
        return pixels

    def _offsets(self, ra, dec):
        """Give galaxies on this side of the sky: east, north (arcsec), sigma, brightness."""
        a, d, sigma, bright = self.galaxies.T
        da, d, d0 = np.radians(a - ra), np.radians(d), np.radians(dec)
        near = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(da) > np.cos(np.radians(2))
        east = np.degrees(np.cos(d) * np.sin(da)) * 3600
        north = np.degrees(np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(da)) * 3600
        return np.stack([east, north, sigma, bright], axis=1)[near]


class Loopback:
    """The server; a context manager.

    Parameters
    ----------
    sky : Sky, optional
        What pictures show.
    manners : list of str or None, or callable
        One for each request in turn, good ones afterwards; or ``manners(kind, number, parameters)``, kind being
        "getjpeg", "SqlSearch" or "CrossIdSearch".
    objects : list of dict, optional
        What a cross-identification finds: each with ra, dec, and columns as ``p.objID`` or ``s.z``.
    sql : callable, optional
        Gives (header, rows) for a query.
    recorded : bytes, optional
        Answer to every query for a table, instead of `objects` and `sql`.
    row_limit : int, optional
        Rows at which an answer is cut without a word.

    Attributes
    ----------
    url : str
        What the client takes as base URL.
    requests : list of (str, dict)
        Kind and parameters of each request so far.
    most_at_once : int
        Most requests that were under way at one time.
    """

    def __init__(self, sky=None, manners=(), objects=(), sql=None, recorded=None, row_limit=500_000):
        self.sky, self.objects, self.sql = sky or Sky([]), list(objects), sql
        self.recorded, self.row_limit = recorded, row_limit
        self._manners = manners if callable(manners) else list(manners)
        self.requests, self.times, self.most_at_once = [], [], 0
        self._lock, self._now, self.leave = threading.Lock(), 0, threading.Event()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"loopback": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.leave.set()  # those that hang
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def begin(self, kind, parameters):
        """Note a request and give the manner in which it is to be answered."""
        with self._lock:
            number = len(self.requests)
            self.requests.append((kind, parameters))
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            if callable(self._manners):
                return self._manners(kind, number, parameters)
            return self._manners.pop(0) if self._manners else None

    def end(self):
        """Note that a request is answered."""
        with self._lock:
            self._now -= 1


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that go away, as those do that a test kills."""

    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Report what is not a client's going."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    loopback = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        """Answer a request whose parameters are in the URL."""
        self._answer(dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)))

    def do_POST(self):
        """Answer a request whose parameters are in its body, as a form or in parts."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        if not kind.startswith("multipart/"):
            self._answer(dict(parse_qsl(body.decode(), keep_blank_values=True)))
            return
        message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
        self._answer({name: part.get_payload(decode=True).decode() for name, part in parts.items()})

    def _answer(self, parameters):
        kind = urlsplit(self.path).path.rpartition("/")[2]
        manner = self.loopback.begin(kind, parameters)
        self._under_way = True
        try:
            self._behave(kind, manner, parameters)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._end()

    def _end(self):
        """Count the request as answered, once, and before its last byte: with that the client may begin another."""
        if self._under_way:
            self._under_way = False
            self.loopback.end()

    def _behave(self, kind, manner, parameters):
        bad = getattr(self, f"_{manner.replace('-', '_')}") if manner else None
        if bad is not None:
            bad(kind, parameters)
        elif kind == "getjpeg":
            self._picture(parameters)
        else:
            self._table(kind, parameters)

    def _send(self, body, kind="image/jpeg", status=200, reason=None, headers=(), length=None):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status, reason)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self._end()
        self.wfile.write(body)

    # good answers

    def _drawn(self, parameters):
        ra, dec, scale = (float(parameters[name]) for name in ("ra", "dec", "scale"))
        width, height = (min(max(int(parameters[name]), 64), 2048) for name in ("width", "height"))
        return self.loopback.sky.picture(ra, dec, scale, width, height)

    def _picture(self, parameters):
        pixels = self._drawn(parameters)
        if not pixels.any():
            text = "Requested (ra, dec) is outside the SDSS footprint."
            self._send(jpeg(text_picture(pixels.shape, text)), status=404, reason=f"NOT FOUND. {text}")
            return
        self._send(jpeg(pixels))

    def _table(self, kind, parameters):
        if self.loopback.recorded is not None:
            self._send(self.loopback.recorded, "text/plain")
            return
        self._send(self._text(kind, parameters), "text/plain")

    def _text(self, kind, parameters, keep=slice(None)):
        if kind == "CrossIdSearch":
            header, rows = identify(self.loopback.objects, parameters)
        else:
            header, rows = self.loopback.sql(parameters["cmd"])
        text = io.StringIO()
        text.write("#Table1\n")
        csv.writer(text, lineterminator="\n").writerows([header, *rows[: self.loopback.row_limit][keep]])
        return text.getvalue()

    def _good(self, kind, parameters):
        if kind == "getjpeg":
            return jpeg(self._drawn(parameters))
        return self._text(kind, parameters).encode()

    # bad manners, of pictures

    def _small(self, kind, parameters):
        self._send(jpeg(self._drawn(parameters | {"width": "64", "height": "64"})))

    def _black(self, kind, parameters):
        self._send(jpeg(np.zeros_like(self._drawn(parameters))))

    def _text_200(self, kind, parameters):
        self._send(jpeg(text_picture(self._drawn(parameters).shape, "The request failed: deadlock victim")))

    def _error_500(self, kind, parameters):
        picture = jpeg(text_picture(self._drawn(parameters).shape, "Timeout expired"))
        self._send(picture, status=500, reason="Timeout expired")

    def _overlay(self, kind, parameters):
        self._send(jpeg(with_grid(self._drawn(parameters))))

    def _wrong_type(self, kind, parameters):
        self._send(self._good(kind, parameters), "application/octet-stream")

    def _damaged(self, kind, parameters):
        good = self._good(kind, parameters)
        self._send(good[: len(good) // 2])

    # of anything

    def _html_200(self, kind, parameters):
        self._send(PAGE.format("Skyserver Error", "An error has come up: incorrect syntax near 'FORM'."), "text/html")

    def _proxy(self, kind, parameters):
        self._send(PAGE.format("Guest WLAN", "Please log in"), "text/html; charset=utf-8")

    def _json_200(self, kind, parameters):
        self._send(JSON_ERROR.format(500, "InternalServerError", "connection pool"), "application/json")

    def _json_500(self, kind, parameters):
        self._send(JSON_ERROR.format(500, "InternalServerError", "no database"), "application/json", 500)

    def _json_400(self, kind, parameters):
        self._send(JSON_ERROR.format(400, "BadRequest", "scale is missing"), "application/json", 400)

    def _html_404(self, kind, parameters):
        self._send(PAGE.format("404", "Not here"), "text/html", 404)

    def _busy_429(self, kind, parameters):
        self._send("slow down", "text/plain", 429, headers=[("Retry-After", "1")])

    def _busy_503(self, kind, parameters):
        self._send(PAGE.format("503", "Maintenance"), "text/html", 503)

    def _slow(self, kind, parameters):
        """Send a byte now and then."""
        good = self._good(kind, parameters)
        self._send(good[:1], length=len(good))
        for place in range(1, len(good)):
            if self.loopback.leave.wait(0.05):
                break
            self.wfile.write(good[place : place + 1])

    def _hang(self, kind, parameters):
        """Send nothing until the end of the test."""
        self.loopback.leave.wait(60)
        self.close_connection = True

    def _cut(self, kind, parameters):
        """Promise more than is sent."""
        good = self._good(kind, parameters)
        self._send(good[: len(good) // 2], length=len(good))
        self.close_connection = True

    def _cut_unseen(self, kind, parameters):
        """Send less than there is, without having said how much that is."""
        good = self._good(kind, parameters)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg" if kind == "getjpeg" else "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(good[: len(good) * 2 // 3])
        self.close_connection = True

    def _refuse(self, kind, parameters):
        """Close the connection without an answer."""
        self.close_connection = True

    def _garbage(self, kind, parameters):
        self._send(np.random.default_rng(1).bytes(5000), "image/jpeg" if kind == "getjpeg" else "text/plain")

    def _empty(self, kind, parameters):
        self._send(b"", "image/jpeg" if kind == "getjpeg" else "text/plain")

    # of tables

    def _throttled(self, kind, parameters):
        text = "ERROR: Maximum 60 queries allowed per minute. Rejected query: SELECT"
        self._send(f"#Table1\nerror_message\n{text}\n", "text/plain")

    def _refused(self, kind, parameters):
        self._send("#Table1\nerror_message\nERROR: Invalid column name 'objjd'.\n", "text/plain")

    def _partial(self, kind, parameters):
        """Leave out every third row."""
        lines = self._text(kind, parameters).splitlines(keepends=True)
        self._send("".join(line for i, line in enumerate(lines) if i < 2 or i % 3), "text/plain")

    def _uneven(self, kind, parameters):
        self._send(self._text(kind, parameters) + '1,"a 9" telescope, small",2\n', "text/plain")

    def _plain(self, kind, parameters):
        self._send("Service unavailable for maintenance until noon\n", "text/plain")

    def _other_columns(self, kind, parameters):
        self._send("#Table1\nname,dec\nn0,1.5\n", "text/plain")

    def _stranger(self, kind, parameters):
        self._send(re.sub(r"\bn0\b", "n777", self._text(kind, parameters)), "text/plain")


def identify(objects, parameters):
    """Answer a cross-identification: the nearest object within the radius; positions without one are left out."""
    heading, *lines = parameters["upload"].split("\n")
    assert heading.split() == ["name", "ra", "dec"] and len(lines) <= 1000
    wanted = re.findall(r"([ps]\.\w+)(?: AS (\w+))?[,\s]", parameters["uquery"].partition(" FROM ")[0] + " ")
    header = ["name", *(alias or name[2:] for name, alias in wanted)]
    places = np.array([[thing["ra"], thing["dec"]] for thing in objects]).reshape(-1, 2)
    rows = []
    for line in lines:
        name, ra, dec = line.split()
        offset = (places - [float(ra), float(dec)]) * [np.cos(np.radians(float(dec))), 1] * 60
        distance = np.hypot(*offset.T)
        if len(places) and distance.min() <= float(parameters["radius"]):
            thing = objects[int(distance.argmin())]
            rows.append([name, *(thing.get(column, "null") for column, _ in wanted)])
    return header, rows


def jpeg(pixels):
    """Encode a picture as SkyServer does."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def text_picture(shape, text):
    """Draw white text on black, starting left of the picture where that is small."""
    picture = Image.new("RGB", (shape[1], shape[0]))
    ImageDraw.Draw(picture).text((shape[1] // 2 - 200, shape[0] // 2), text, fill="white")
    return np.asarray(picture)


def with_grid(pixels):
    """Draw the lines of SkyServer's grid and its ruler."""
    picture = Image.fromarray(pixels)
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    for near, far in ((1 / 8, 0.45), (0.55, 7 / 8)):
        draw.line((near * width, height // 2, far * width, height // 2), fill=(144, 238, 144))
        draw.line((width // 2, near * height, width // 2, far * height), fill=(144, 238, 144))
    return np.asarray(picture)
