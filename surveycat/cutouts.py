"""Pictures of the targets of a bulk run: where they come from, and how they are brought to one scale.

A source gives the bytes of a target's picture: `Folder` of files by a template of their names, `Archive` as the
published zip of the Galaxy Zoo 2 images, `Survey` for SkyServer. `decode` makes a `Picture` of them at the pixel scale
of the run: what the stages of a run ask of an `surveycat.image.Image`, at a fraction of its cost for a small picture
at a known place.
"""

import csv
import gzip
import io
import re
import string
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surveycat.errors import ImageError, OptionError
from surveycat.region import overlap
from surveycat.skyserver import SCALE, SkyServer

__all__ = ["Archive", "Folder", "Picture", "Survey", "decode", "file_scale", "let_go", "source_of"]

GZ2_SCALE, GZ2_SIDE = 0.02, 424  # Galaxy Zoo 2's images: 424 px of 0.02 x petroR90_r (Willett et al. 2013, section 2)
RADIUS_NAMES = ("petror90_r", "petror90")
MAPPING = "gz2_filename_mapping.csv"
SAME_SCALE = 0.005  # a relative difference in scale below which pixels are taken as they are


def source_of(images, size=256, pixel_scale=SCALE, mapping=None, service=None):
    """Find out where pictures are to come from.

    Parameters
    ----------
    images : path-like or str
        A folder with ``{id}.jpg``, a template of paths with names of columns in braces, a ``.zip``, or ``skyserver``.
    size, pixel_scale : int, float
        What to ask SkyServer for: side in pixels, arcsec per pixel.
    mapping : path-like, optional
        For a zip: CSV with the columns ``objid`` and ``asset_id``; beside or in the zip by default.
    service : dict, optional
        Arguments of `~surveycat.skyserver.SkyServer`.

    Returns
    -------
    Folder, Archive or Survey
        It pickles, so that workers can have it.

    Raises
    ------
    OptionError
        If there is no such thing.
    """
    text = str(images)
    if text == "skyserver":
        SkyServer(**service or {})  # options that cannot be meant are found out now
        return Survey(int(size), float(pixel_scale), service or {})
    path = Path(text)
    if path.suffix.lower() == ".zip" and path.is_file():
        archive = Archive(str(path.absolute()), None if mapping is None else str(Path(mapping).absolute()))
        _opened(archive)  # a zip or a mapping that cannot be read is found out now
        return archive
    if "{" in text:
        return Folder(str(path.absolute()))
    if path.is_dir():
        return Folder(str(path.absolute() / "{id}.jpg"))
    raise OptionError(f"--images {text} is no folder, no .zip, no template such as DIR/{{id}}.jpg, and not skyserver")


@dataclass(frozen=True)
class Folder:
    """Files by a template of their paths.

    Parameters
    ----------
    template : str
        As in ``/data/{run}/{id}.jpg``.
    """

    template: str

    @property
    def columns(self):
        """Names of the columns of the list that are needed, besides id, ra and dec."""
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise OptionError(f"--images {self.template} is no template ({error}); write DIR/{{id}}.jpg") from error
        if not names:
            raise OptionError(f"--images {self.template} names the same file for every target; put {{id}} into it")
        return [name for name in dict.fromkeys(names) if name not in ("id", "ra", "dec")]

    def read(self, target):
        """Give the bytes of a target's file, and its scale in arcsec per pixel where that is known."""
        path = Path(self.template.format(**target))
        try:
            return path.read_bytes(), None
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from error


@dataclass(frozen=True)
class Archive:
    """The published zip of the Galaxy Zoo 2 images, read in place; or any zip of ``<id>.jpg``.

    Parameters
    ----------
    path : str
        The zip.
    mapping : str or None
        CSV with the columns ``objid`` and ``asset_id``; None: beside or in the zip, if there is one.
    """

    path: str
    mapping: str | None = None
    columns = ()

    def read(self, target):
        """Give the bytes of a target's file; its scale is not in it."""
        archive, members, assets = _opened(self)
        asset = assets.get(str(target["id"]), None) if assets is not None else str(target["id"])
        if asset is None:
            raise ImageError(f"the file-name mapping has no image of {target['id']}")
        if asset not in members:
            raise ImageError(f"{self.path} has no image {asset}.jpg")
        try:
            return archive.read(members[asset]), None
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise ImageError(f"{members[asset]} in {self.path} cannot be read ({error})") from error


_lock, _archives, _clients = threading.Lock(), {}, {}


def _opened(source):
    """Give this process's open zip, which threads may share, its images by stem, and stems by identifier."""
    with _lock:
        if source not in _archives:
            try:
                archive = zipfile.ZipFile(source.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise OptionError(f"{source.path} is no zip that can be read ({error}); fetch it again") from error
            names = [name for name in archive.namelist() if re.search(r"\.(jpe?g|png)$", name, re.IGNORECASE)]
            _archives.clear()
            _archives[source] = archive, {Path(name).stem: name for name in names}, _mapping(source, archive)
        return _archives[source]


def _mapping(source, archive):
    """Read the mapping from identifiers to names of files; None without one."""
    inside = next((name for name in archive.namelist() if Path(name).name == MAPPING), None)
    beside = Path(source.path).with_name(MAPPING)
    if source.mapping is not None:
        text = _text_of(Path(source.mapping))
    elif beside.is_file():
        text = _text_of(beside)
    elif inside is not None:
        text = archive.read(inside).decode()
    else:
        return None
    rows = csv.reader(io.StringIO(text))
    header = [name.strip().lower() for name in next(rows, [])]
    if "objid" not in header or "asset_id" not in header:
        raise OptionError(f"the mapping has columns {', '.join(header)[:80]}; objid and asset_id are needed")
    identifier, asset = header.index("objid"), header.index("asset_id")
    return {row[identifier].strip(): row[asset].strip() for row in rows if len(row) > max(identifier, asset)}


def _text_of(path):
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt") as file:
            return file.read()
    except OSError as error:
        raise OptionError(f"the mapping {path} cannot be read ({error.strerror or error}); give --mapping") from error


@dataclass(frozen=True)
class Survey:
    """SkyServer.

    Parameters
    ----------
    size : int
        Side of a cutout, pixels.
    pixel_scale : float
        Arcsec per pixel.
    service : dict
        Arguments of `~surveycat.skyserver.SkyServer`.
    """

    size: int
    pixel_scale: float
    service: dict
    columns = ()

    def read(self, target):
        """Give the bytes of a cutout around a target, and its scale."""
        client = _client(self)
        cutout = client.cutout(float(target["ra"]), float(target["dec"]), self.size, self.size, self.pixel_scale)
        return cutout.data, self.pixel_scale

    def shared_by(self, workers):
        """Give the same source for one of several processes: together they ask no faster."""
        limits = {"rate": 10.0, "concurrency": 4, **self.service}
        limits["rate"] /= max(1, workers)
        limits["concurrency"] = max(1, int(limits["concurrency"]) // max(1, workers))
        return Survey(self.size, self.pixel_scale, {**self.service, **limits})


def _client(source):
    """Give this process's client, which all its threads share."""
    key = repr(source)
    with _lock:
        if key not in _clients:
            _clients[key] = SkyServer(**source.service)
        return _clients[key]


def let_go(source):
    """End what is under way for a source: requests that wait for their turn, or to be repeated, end at once.

    Parameters
    ----------
    source : Folder, Archive or Survey
        As `source_of` gives it.
    """
    with _lock:
        client = _clients.pop(repr(source), None)
    if client is not None:
        client.close()


# Scales ---------------------------------------------------------------------------------------------------


def file_scale(image_scale, columns):
    """Find out how the scale of files is told.

    Parameters
    ----------
    image_scale : None, float or str
        Arcsec per pixel of the files, a column of the list that has it, or ``gz2`` for Galaxy Zoo 2's images.
    columns : callable
        ``columns()`` gives the names of the list's columns.

    Returns
    -------
    kind : {None, "number", "column", "gz2"}
    value : float or str
        The scale, or the name of a column of the list.

    Raises
    ------
    OptionError
        If it is none of these.
    """
    if image_scale is None:
        return None, None
    try:
        scale = float(image_scale)
    except ValueError:
        names = {name.lower(): name for name in columns()}
        if str(image_scale).lower() == "gz2":
            radius = next((names[name] for name in RADIUS_NAMES if name in names), None)
            if radius is None:
                raise OptionError("--image-scale gz2 needs a column petroR90_r in the list; add it") from None
            return "gz2", radius
        if str(image_scale).lower() not in names:
            raise OptionError(f"--image-scale {image_scale} is no number, no column of the list and not gz2") from None
        return "column", names[str(image_scale).lower()]
    if not 0 < scale < 36000:
        raise OptionError(f"--image-scale {image_scale} is not a pixel's size; give arcsec above 0")
    return "number", scale


def scale_of(told, target, width):
    """Scale of one target's file.

    Parameters
    ----------
    told : tuple
        As `file_scale` gives it.
    target : dict
        What the list says of the target.
    width : int
        Width of the file, pixels: smaller copies of Galaxy Zoo 2's images show the same field.

    Returns
    -------
    float or None
        Arcsec per pixel; None where it is the scale of the run.

    Raises
    ------
    ImageError
        If the list has no good value.
    """
    kind, value = told
    if kind is None:
        return None
    scale = float(value) if kind == "number" else float(target[value])
    if kind == "gz2":
        scale *= GZ2_SCALE * GZ2_SIDE / width
    if not 0 < scale < 36000:
        raise ImageError(f"its pixel scale is {scale:g} arcsec by column {value}")
    return scale


# Pictures -------------------------------------------------------------------------------------------------


class Picture:
    """A small colour picture at a known place: north up, TAN.

    Parameters
    ----------
    name : str
        What to call it.
    pixels : ndarray of uint8, shape (H, W, 3)
        Channels i, r, g.
    ra, dec : float
        ICRS degrees of the reference pixel.
    x, y : float
        That pixel: 0-based column and row.
    scale : (float, float)
        Arcsec per pixel along x and y.

    Attributes
    ----------
    bands, picture, shape, wcs
        As `surveycat.image.Image` has them; `wcs` is not None, and the projection is `pixel_to_sky`.
    """

    bands = ("g", "r", "i")
    picture = True
    wcs_source = "radec"

    def __init__(self, name, pixels, ra, dec, x, y, scale):
        self.name, self.pixels, self.shape = name, pixels, pixels.shape[:2]
        self.ra, self.dec, self.x, self.y, self.scale = ra, dec, x, y, scale
        self.wcs = (ra, dec, x, y, scale)

    def band(self, name, box):
        """Pixels of one band, float32; NaN outside. See `surveycat.image.Image.band`."""
        values = np.full((box[2] - box[0], box[3] - box[1]), np.nan, np.float32)
        inside, target = overlap(box, self.shape)
        if inside is not None:
            channel = 2 - self.bands.index(name)
            part = self.pixels[inside[0] : inside[2], inside[1] : inside[3], channel]
            values[target[0] : target[2], target[1] : target[3]] = part
        return values

    def tile(self, size):
        """The picture on a tile of `size` pixels, with the colour of its sky beyond it, uint8."""
        if self.shape == (size, size):
            return self.pixels
        tile = np.empty((size, size, 3), np.uint8)
        tile[:] = np.rint(np.median(self.pixels.reshape(-1, 3), axis=0))
        tile[: self.shape[0], : self.shape[1]] = self.pixels
        return tile

    def pixel_to_sky(self, x, y):
        """ICRS degrees of 0-based columns and rows (Calabretta & Greisen 2002, section 5.1.3)."""
        xi = np.radians((self.x - np.asarray(x, float)) * self.scale[0] / 3600)
        eta = np.radians((self.y - np.asarray(y, float)) * self.scale[1] / 3600)
        sin, cos = np.sin(np.radians(self.dec)), np.cos(np.radians(self.dec))
        down = cos - eta * sin
        ra = np.mod(self.ra + np.degrees(np.arctan2(xi, down)), 360)
        return ra, np.degrees(np.arctan2(sin + eta * cos, np.hypot(xi, down)))


def decode(name, data, target, told, scale, pixel_scale):
    """Make a picture at the scale of the run.

    Parameters
    ----------
    name : str
        What to call it.
    data : bytes
        A JPEG or PNG file whose pixel (W/2, H/2) is the target, as SkyServer makes them.
    target : dict
        What the list says of it.
    told : tuple
        As `file_scale` gives it.
    scale : float or None
        Arcsec per pixel of the file where the source knows it.
    pixel_scale : float
        Arcsec per pixel of the run: files of another scale are resampled (Lanczos).

    Returns
    -------
    Picture

    Raises
    ------
    ImageError
        If it is damaged, wholly black, or not in colour.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as picture:
            if picture.mode not in ("RGB", "RGBA"):
                raise ImageError(f"{name} is not in colour (mode {picture.mode})")
            picture = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = re.sub(r"<[^>]*>", "", str(error)).strip()
        raise ImageError(f"{name} is damaged or no picture: {reason}; it has {len(data)} bytes") from error
    width, height = picture.size
    own = scale or scale_of(told, target, width) or pixel_scale
    if abs(own / pixel_scale - 1) > SAME_SCALE:
        size = [max(1, round(side * own / pixel_scale)) for side in (width, height)]
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    if not pixels.any():
        raise ImageError(f"{name} is black")
    factors = picture.size[0] / width, picture.size[1] / height
    # Edges of pixels scale, not their centres.
    x, y = ((side / 2 + 0.5) * factor - 0.5 for side, factor in zip((width, height), factors, strict=True))
    scales = tuple(own / factor for factor in factors)
    return Picture(name, pixels, float(target["ra"]), float(target["dec"]), x, y, scales)
