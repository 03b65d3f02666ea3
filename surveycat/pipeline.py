"""From images to one catalogue: the straight line, and what surrounds it.

`search` is the line itself, for one open image. `run` checks everything that can be checked before the work
starts, walks the line for each image, and says in ``table.meta`` what was done.
"""

import dataclasses
import logging
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from surveycat import __version__, catalog, products
from surveycat.auxiliary import auxiliary_paths
from surveycat.bands import Bands, gather
from surveycat.blanks import cut_to_data
from surveycat.contrast import Brightened, gain_of
from surveycat.coverage import FORMATS as MAPS
from surveycat.coverage import capped_tiles, write_coverage
from surveycat.detections import FILE_VERSION
from surveycat.dispatch import BATCH, cluster, detect, network_of
from surveycat.errors import OptionError, RunFailed
from surveycat.image import open_image
from surveycat.measure import measure
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.overlays import overlay_note
from surveycat.preview import FORMATS as PICTURES
from surveycat.preview import preview as draw
from surveycat.region import parse_region
from surveycat.sampling import Shrunk, asked_level, shrink_level
from surveycat.stitch import confirm, second_looks, stitch
from surveycat.tiles import TileGrid
from surveycat.unfinished import Finished, check_unfinished, work_folder

__all__ = ["check_min_score", "run", "search"]

SUFFIXES = {**products.SUFFIXES, "preview": PICTURES, "coverage": MAPS}  # of what is written beside the catalogue

# an enlarged picture of a single galaxy has neither stars nor sky that would tell how finely it is sampled
NOTHING = "no galaxy was found; if the picture is enlarged, --resample 2 or 4 searches it as it was before"

log = logging.getLogger(__name__)


def run(
    images,
    out=None,
    *,
    bands="auto",
    ra=None,
    dec=None,
    pixel_scale=None,
    rotation=0.0,
    wcs=None,
    mask=None,
    weight=None,
    region=None,
    weights="compact",
    preset=None,
    detector=None,
    min_score=0.5,
    resample="auto",
    workers=0,
    scheduler=None,
    overwrite=False,
    resume=False,
    preview=None,
    regions=None,
    segmap=None,
    moc=None,
    coverage=None,
    progress=None,
):
    """Find the galaxies in images, classify and measure them.

    Parameters
    ----------
    images : path, uint8 array of shape (H, W, 3), or a sequence of these
        What to search. Several images give one table whose column ``image`` says which, but several FITS files
        may be the bands of one image; see `bands`.
    out : path, optional
        Where to write the catalogue; the suffix chooses the format. The file appears whole or not at all.
    bands : str or sequence of str, optional
        ``"auto"``: FITS files with different filters that show the same sky are the bands of one image.
        ``"none"``: each file is an image by itself. Else the names of the bands, in the order of the files
        (``"i,r,g"``), which makes them one image.
    ra, dec : float, optional
        Position of the centre of an image with north up, degrees.
    pixel_scale : float, optional
        Arcseconds per pixel, with `ra` and `dec`; the image's own or 0.396127 by default.
    rotation : float, optional
        Angle from up to north, towards east, degrees, with `ra` and `dec`.
    wcs : path or `~astropy.wcs.WCS`, optional
        Where the image lies on the sky.
    mask : path, optional
        FITS image on the same pixels (with several bands those of r, or of the middle one): what is not 0 there is
        blank, as NaN is, and neither sky nor galaxy.
    weight : path or sequence of paths, optional
        FITS image of inverse variances on the same pixels, in units of the image; with several bands one for each
        file, on its own pixels. Errors come from it; what has no weight above 0 is blank.
    region : str or sequence of float, optional
        Part of the image to search: x0, y0, x1, y1 in pixels, or ``"RA0d,DEC0d,RA1d,DEC1d"``.
    weights : str or path, optional
        Preset, folder of weights, or ``.h5`` file of the ``mrcnn`` package.
    preset : str, optional
        Which network an ``.h5`` file is for.
    detector : callable, optional
        A detector of your own instead of `weights`, as `surveycat.dispatch.detect` takes it.
    min_score : float, optional
        Least probability of being a galaxy.
    resample : str or int, optional
        ``"auto"``: an image whose PSF is wider than 5 px is searched at 1/2, 1/4 or 1/8 of its resolution, and
        measured at its own. ``"none"``: as it is. Else the factor: 1, 2, 4 or 8.
    workers : int, optional
        Processes that share the work; 0 works in this one. A script that asks for workers needs the usual
        ``if __name__ == "__main__":``, since each process imports it.
    scheduler : str, optional
        Address of a running Dask scheduler, ``tcp://host:port``, whose workers do the work; they must see the
        same files under the same names.
    overwrite : bool, optional
        Replace outputs that exist, and start afresh where an unfinished run lies.
    resume : bool, optional
        Go on with an unfinished run, if there is one: until it ends, a run keeps in the folder ``<out>.partial``
        what it has done.
    preview : path, optional
        Where to write a picture of what was found (.png or .jpg), for a single image.
    regions : path, optional
        Where to write the outlines as DS9 regions (.reg), for a single image.
    segmap : path, optional
        Where to write a segmentation map (.fits), whose labels are the ids, for a single image.
    moc : path, optional
        Where to write the area of the sky that was searched as a MOC (.fits or .json), for a single image.
    coverage : path, optional
        Where to write a map of what was searched (.fits), for a single image; see `surveycat.coverage`.
    progress : callable, optional
        Called with the name of a stage, the number of tiles done and their total.

    Returns
    -------
    `~astropy.table.QTable`
        The catalogue, as `surveycat.catalog.SCHEMA` describes it; ``table.meta`` says how it was made.

    Raises
    ------
    SurveycatError
        If an input, an option or an output cannot be used. Nothing is written then.
    """
    started = time.monotonic()
    images, notes = gather(_as_list(images), bands)
    for note in notes:
        log.info("%s", note)
    position = {"ra": ra, "dec": dec, "pixel_scale": pixel_scale, "rotation": rotation, "wcs": wcs}
    masks, weight_images = auxiliary_paths(mask, weight)
    _check_options(images, position, [*masks, *weight_images], min_score)
    going_on = check_unfinished(out, resume, overwrite)
    beside = {"preview": preview, "regions": regions, "segmap": segmap, "moc": moc, "coverage": coverage}
    beside = {kind: path for kind, path in beside.items() if path is not None}
    _check_outputs(images, [*masks, *weight_images], out, beside, overwrite or going_on)
    _check_images(images[1:], position, region)  # the first is opened next
    detector = detector or DetectorSpec(os.fspath(weights), preset=preset)
    batch = getattr(detector, "batch_size", BATCH)  # as it is now: short of memory it gets less

    asked_level(resample)
    options = {**position, "region": region, "min_score": min_score, "resample": str(resample)}
    tables, inputs, lost_tiles = [], [], []
    with work_folder(out, going_on) as folder, cluster(workers, scheduler) as client:
        for number, each in enumerate(images):
            with open_image(each, **position, mask=mask, weight=weight, scratch=folder / "scratch") as whole:
                image = _part(whole, region)
                if moc is not None and image.wcs is None:
                    raise OptionError(f"{moc} needs the image's place on the sky: add --wcs, or --ra and --dec")
                network = network_of(detector, client)
                made_by = _made_by(network)
                manifest = _manifest(image, batch, {**made_by, "versions": network.versions}, options)
                finished = Finished(folder / str(number), manifest)
                look, why = way_to_look(image, resample)
                _say([*image.notes, *overlay_note(image), *why], image.name)
                capped = []
                found, failed = search(image, detector, client, min_score, progress, finished, capped, **look)
                if image.picture and look["level"] == 0 and not len(found):
                    _say([NOTHING], image.name)
                lost = [tile for tile, _ in failed]
                _write_beside(beside, catalog.finish(found), image, lost)
                if coverage is not None:
                    write_coverage(coverage, image, lost, capped, folder / "scratch")
                tables.append(_in_whole(found, image.offset))
                inputs.append({**_about(image), **{f"searched_{name}": value for name, value in look.items()}})
                lost_tiles += [(number, tile, reason) for tile, reason in failed]

        names = _distinct([about["name"] for about in inputs], images)
        inputs = [{**about, "name": name} for about, name in zip(inputs, names, strict=True)]
        meta = {
            **made_by,
            "options": options,
            "inputs": inputs,
            "tiles_failed": [_failure(names[number], tile, reason) for number, tile, reason in lost_tiles],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run_seconds": round(time.monotonic() - started, 1),
        }
        one = tables[0] if len(tables) == 1 else catalog.join(tables, names)
        table = catalog.finish(one, meta)
        if out is not None:
            catalog.write(table, out, overwrite=overwrite or going_on)
    return table


def way_to_look(image, resample="auto"):
    """Choose how an image is shown to the network: how coarsely, and how much brighter.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Open image.
    resample : str or int
        As in `surveycat.sampling.shrink_level`.

    Returns
    -------
    look : dict
        ``level`` and ``gain``, as `search` takes them.
    notes : list of str
        What the user should know of the choice.
    """
    level, coarse = shrink_level(image, resample)
    gain, dim = gain_of(image)
    return {"level": level, "gain": gain}, [*coarse, *dim]


def search(image, detector, workers=0, min_score=0.5, progress=None, finished=None, capped=None, level=0, gain=1.0):
    """Walk the line for one image: tiles, network, stitch, second looks, measure.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Open image.
    detector, workers, min_score
        As in `surveycat.dispatch.detect`.
    progress : callable, optional
        Called with the name of a stage, the number of tiles done and their total.
    finished : `~surveycat.unfinished.Finished`, optional
        What need not be done again.
    capped : list, optional
        Gets the tiles, or windows of them, in which the network may have missed something for a limit of its own.
    level : int, optional
        Level of the image that is shown to the network as the finest, for one that is sampled too finely (see
        `surveycat.sampling`).
    gain : float, optional
        By how much faint light is shown brighter to the network, for a picture of low contrast (see
        `surveycat.contrast`).

    Returns
    -------
    table : `~astropy.table.QTable`
        A row for each galaxy, as `measure` gives it.
    failed : list of (`~surveycat.tiles.Tile`, str)
        Tiles that could not be searched, and why.

    Raises
    ------
    RunFailed
        If no tile at all could be searched.
    """
    failed = []
    options = {"workers": workers, "min_score": min_score, "failed": failed, "finished": finished}
    image.build_levels()  # here, once: no disk that fills up may look like tiles that fail
    looked_at = Shrunk(image, level) if level else image
    looked_at = looked_at if gain == 1 else Brightened(looked_at, gain)
    grid = TileGrid(looked_at.shape)

    def find(tiles, stage):
        found = detect(looked_at, tiles, detector, progress=_stage(progress, stage), **options)
        if capped is not None:
            capped.extend(_at_level(tile, level) for tile in capped_tiles(found.capped, tiles))
        return found

    found = find(list(grid.tiles()), "tiles")
    if len(failed) == len(grid):
        raise RunFailed(f"{image.name}: none of its tiles could be searched; the first: {failed[0][1]}")
    objects = stitch(found, grid)
    while looks := second_looks(objects, grid):
        looks = find(looks, "second looks")
        objects = confirm(objects, looks, grid)
    found = objects.detections
    objects = dataclasses.replace(objects, detections=found.replace(level=found.level + level))
    objects = cut_to_data(objects, image)
    failed = [(_at_level(tile, level), why) for tile, why in failed]
    table = measure(objects, image)
    table = table[np.asarray(table["score"]) >= min_score]  # point sources have lost theirs
    if image.oddities:
        table["flags"] = np.asarray(table["flags"]) | 1 << catalog.FLAGS["outside_domain"]
    return _flag_near(table, failed), failed


def _at_level(tile, level):
    """Bring a tile of an image that was looked at from a coarser level to levels of the image itself."""
    return dataclasses.replace(tile, level=tile.level + level)


# Before the work ---------------------------------------------------------------------------------------


def _as_list(images):
    """Make one image a list of one."""
    if isinstance(images, (str, os.PathLike, np.ndarray)):
        return [images]
    return list(images)


def _check_options(images, position, auxiliary, min_score):
    """Refuse options that cannot be meant."""
    if not images:
        raise OptionError("no image was given; name at least one")
    files = [Path(path).resolve() for image in images for path in _paths(image)]
    twice = next((path for path in files if files.count(path) > 1), None)
    if twice is not None:
        raise OptionError(f"{twice} was given twice; name each image once")
    check_min_score(min_score)
    if len(images) > 1 and any(position[name] is not None for name in ("ra", "dec", "wcs")):
        raise OptionError(f"one sky position for {len(images)} images; run them one by one, or give each its own WCS")
    if len(images) > 1 and auxiliary:
        raise OptionError(
            f"{', '.join(auxiliary)} as mask or weight for {len(images)} images; run them one by one, or say by "
            "--bands that they are the bands of one"
        )


def check_min_score(min_score):
    """Refuse a least score that is no probability.

    Parameters
    ----------
    min_score : float
        Least probability of being a galaxy.

    Raises
    ------
    OptionError
    """
    if not 0 <= min_score <= 1:
        raise OptionError(f"min-score is {min_score:g}; give a probability from 0 to 1")


def _check_outputs(images, auxiliary, out, beside, overwrite):
    """Refuse outputs that could not be written at the end."""
    outputs = [] if out is None else [catalog.check_output(out, overwrite)]
    for kind, path in beside.items():
        if len(images) > 1:
            raise OptionError(f"one {kind} {path} for {len(images)} images; run them one by one")
        products.check_needs(kind)
        outputs.append(catalog.check_output(path, overwrite, known=SUFFIXES[kind]))
    catalog.check_distinct(outputs, [*(path for image in images for path in _paths(image)), *auxiliary])


def _paths(image):
    """The files of an image: none of an array, all of its bands."""
    if isinstance(image, np.ndarray):
        return ()
    return image.paths if isinstance(image, Bands) else (image,)


def _write_beside(beside, table, image, failed):
    """Write what goes beside the catalogue: pictures and maps of one image."""
    if "preview" in beside:
        draw(table, image, beside["preview"])
    if "regions" in beside:
        products.write_regions(table, image, beside["regions"])
    if "segmap" in beside:
        products.write_segmap(table, image, beside["segmap"])
    if "moc" in beside:
        products.write_moc(image, failed, beside["moc"])


def _stage(progress, name):
    """Tell `progress` which stage it hears of."""
    return None if progress is None else partial(progress, name)


def _check_images(images, position, region):
    """Open each image for a moment: the last of many must not turn out unreadable after hours."""
    for each in images:
        with open_image(each, **position) as image:
            _part(image, region)


def _part(image, region):
    """Give the part of an image that is wanted."""
    return image if region is None else image.region(parse_region(region, image))


# What is said of the work ------------------------------------------------------------------------------


def _say(notes, name):
    """Log what the user should know of an image."""
    for note in notes:
        log.info("%s: %s", name, note)


def _flag_near(table, failed):
    """Flag what touches a tile that could not be searched: more of it, or a neighbour, may be missing."""
    flags = np.asarray(table["flags"])
    low, high = (np.stack([table[f"y_{end}"], table[f"x_{end}"]], axis=1) for end in ("min", "max"))
    for tile, _ in failed:
        box = np.array(tile.box) * 2**tile.level
        near = ((np.asarray(low) < box[2:]) & (np.asarray(high) > box[:2])).all(axis=1)
        flags = flags | near << catalog.FLAGS["near_failed_tile"]
    table["flags"] = flags
    return table


def _in_whole(table, offset):
    """Bring positions in a region of an image to pixels of the whole one."""
    for axis, shift in zip("yx", offset, strict=True):
        names = (axis, f"{axis}_iso", f"{axis}_min", f"{axis}_max", f"footprint_{axis}")
        for name in (name for name in names if name in table.colnames):
            table[name] = np.asarray(table[name]) + shift  # units come back with the schema
    return table


def _made_by(network):
    """Say what program and weights the answers come from."""
    return {
        "surveycat_version": __version__,
        "weights": network.weights_id,
        "weights_sha256": network.sha256,
    }


def _manifest(image, batch, made_by, options):
    """Say everything on which the answers about an image depend: an interrupted run goes on only with the same."""
    grid = TileGrid(image.shape)
    return {
        "input": _about(image),
        "options": options,
        **made_by,
        "grid": {"size": grid.size, "overlap": grid.overlap, "batch": batch},
        "layout": FILE_VERSION,
    }


def _about(image):
    """Say what an image was, for the table's meta."""
    return {
        "name": image.name,
        "sha256": image.sha256,
        "shape": list(image.shape),
        "wcs_source": image.wcs_source,
        "pixel_scale": image.pixel_scale,
        "s_region": _outline(image),
        **image.auxiliary,
        "zero_points": {band: _zero_point(known) for band, known in image.calibration.items()},
    }


def _zero_point(calibration):
    """What a unit of a band is worth, which keyword says so, and how far that can be trusted."""
    worth = None if np.isnan(calibration.nanomaggy) else calibration.nanomaggy
    said = {"nanomaggy_per_unit": worth, "from": calibration.source}
    return said | {"caveat": calibration.caveat} if calibration.caveat else said


def _outline(image):
    """Border of an image as a polygon on the sky, like the column s_region; "" without a position all around."""
    if image.wcs is None:
        return ""
    height, width = image.shape
    along, start, end = np.arange(4) / 4, np.zeros(4), np.ones(4)
    x = np.concatenate([along, end, 1 - along, start]) * width - 0.5
    y = np.concatenate([start, along, end, 1 - along]) * height - 0.5
    ra, dec = image.pixel_to_sky(x, y)
    if not np.isfinite(ra + dec).all():
        return ""
    return "POLYGON ICRS " + " ".join(f"{a:.6f} {d:.6f}" for a, d in zip(ra % 360, dec, strict=True))


def _distinct(names, images):
    """Names that tell images apart: of files that are called the same their paths, of arrays their numbers."""
    longer = [", ".join(map(str, _paths(image))) for image in images]
    return [
        name if names.count(name) == 1 else path or f"{name} {number}"
        for number, (name, path) in enumerate(zip(names, longer, strict=True), start=1)
    ]


def _failure(name, tile, reason):
    """Say which tile of an image could not be searched, and why."""
    where = {"level": tile.level, "y0": tile.y0, "x0": tile.x0, "size": tile.size}
    return {"image": name, **where, "reason": reason}
