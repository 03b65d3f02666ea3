"""The paper's data set, made anew: Galaxy Zoo 1 x Galaxy Zoo 2, cutouts from SkyServer, masks, COCO annotations.

Examples:
  python -m training.dataset build --gz1 GalaxyZoo1_DR_table2.csv.gz --gz2 gz2_hart16.csv.gz --out dataset
  python -m training.dataset shards --annotations dataset/train.json --images dataset/train --out scenes --split train

``build`` joins both tables by ``dr7objid``, keeps galaxies whose debiased votes are above 0.8 in both, draws as many
spirals as ellipticals, splits them 8000 / 2000 / 2000, fetches 256 x 256 pixels at 0.396127 arcsec/px around each, and
draws its mask: Otsu's threshold, as in the paper, or the better one of `training.stamps`. What is there already is not
fetched again. ``shards`` turns COCO or VIA annotations, these or others, into scenes for `training.train`.
"""

import argparse
import contextlib
import json
import pathlib
import sys

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from surveycat import galaxyzoo
from surveycat.catalog import atomic_write
from surveycat.errors import ImageError, ServiceError, SurveycatError
from surveycat.footprint import outline
from surveycat.skyserver import SkyServer
from training import scenes, stamps
from training.command import exit_code
from training.stretch import FRAME_IRG

CLASSES = ("spiral", "elliptical")
CATEGORY = {name: number for number, name in enumerate(CLASSES, 1)}
SPLITS = {"train": 8000, "val": 2000, "test": 2000}
LEAST_VOTE = 0.8
SIZE, SCALE = 256, 0.396127  # pixels, arcsec per pixel
VOTES = {
    "spiral": (("p_cs_debiased", "spiral"), "t01_smooth_or_features_a02_features_or_disk_debiased"),
    "elliptical": (("p_el_debiased", "elliptical"), "t01_smooth_or_features_a01_smooth_debiased"),
}


# Which galaxies -------------------------------------------------------------------------------------------


def choose(gz1, gz2, splits=None, least=LEAST_VOTE, seed=0):
    """Choose galaxies on which both Galaxy Zoos agree, as many of each class, and split them.

    Parameters
    ----------
    gz1, gz2 : `~astropy.table.Table`
        From `surveycat.galaxyzoo.load`. Where the first one has no debiased fractions its flags count, which have the
        same threshold.
    splits : dict, optional
        Galaxies in each split; where there are fewer, all splits are smaller by the same factor.
    least : float
        Debiased votes must be above this.
    seed : int
        Of the draw.

    Returns
    -------
    pandas.DataFrame
        ``dr7objid``, ``ra``, ``dec``, ``label``, ``vote_gz1``, ``vote_gz2``, ``split``; sorted by split and identifier.

    Raises
    ------
    SurveycatError
        If no galaxy of a class is in both tables.
    """
    splits = splits or SPLITS
    both = joined(gz1, gz2)
    rng, chosen = np.random.default_rng(seed), {}
    for label in CLASSES:
        agreed = both[(both[f"{label}_gz1"] > least) & (both[f"{label}_gz2"] > least)]
        if not len(agreed):
            raise SurveycatError(
                f"of {len(both)} galaxies in both tables none has votes above {least:g} for {label} in both; "
                "are they tables of Galaxy Zoo 1 and 2?"
            )
        votes = {"vote_gz1": agreed[f"{label}_gz1"], "vote_gz2": agreed[f"{label}_gz2"]}
        chosen[label] = agreed[["dr7objid", "ra", "dec"]].assign(label=label, **votes)
    count = min(sum(splits.values()) // len(CLASSES), *(len(rows) for rows in chosen.values()))
    ends = np.rint(count * np.cumsum(list(splits.values())) / sum(splits.values())).astype(int)
    parts = []
    for rows in chosen.values():
        drawn = rows.iloc[rng.permutation(len(rows))[:count]]
        parts.append(drawn.assign(split=np.array(list(splits))[np.searchsorted(ends, np.arange(count), side="right")]))
    return pd.concat(parts).sort_values(["split", "dr7objid"]).reset_index(drop=True)


def joined(gz1, gz2):
    """Galaxies of both tables with their votes: ``dr7objid``, ``ra``, ``dec``, and ``<class>_gz1``, ``<class>_gz2``."""
    frames = []
    for number, table in enumerate((gz1, gz2), 1):
        if "dr7objid" not in table.colnames:
            raise SurveycatError(
                f"the table of Galaxy Zoo {number} has no identifiers of data release 7 (dr7objid, or OBJID): take the "
                "published one"
            )
        frame = pd.DataFrame({"dr7objid": np.asarray(table["dr7objid"]).astype(np.int64)})
        for label, (first, second) in VOTES.items():
            wanted = first if number == 1 else (second,)
            column = next((name for name in wanted if name in table.colnames), None)
            if column is None:
                raise SurveycatError(f"the table of Galaxy Zoo {number} has no column {wanted[0]}; give another one")
            values = np.ma.filled(np.ma.asarray(table[column]).astype(float), np.nan)
            frame[f"{label}_gz{number}"] = values
        if number == 2:
            frame["ra"], frame["dec"] = (np.asarray(table[axis], float) for axis in ("ra", "dec"))
        frames.append(frame.drop_duplicates("dr7objid"))
    return frames[0].merge(frames[1], on="dr7objid", validate="one_to_one")


# Their pictures -------------------------------------------------------------------------------------------


def fetch(sample, out, service):
    """Fetch the cutouts that are not there yet.

    Parameters
    ----------
    sample : pandas.DataFrame
        From `choose`.
    out : pathlib.Path
        Pictures go to ``out/<split>/<dr7objid>.jpg``, as SkyServer sent them.
    service : `~surveycat.skyserver.SkyServer`
        Where they come from.

    Returns
    -------
    pandas.DataFrame
        ``dr7objid`` and ``reason`` of those that could not be had; to be asked for once more by the next call.
    """
    paths = {row.dr7objid: out / row.split / f"{row.dr7objid}.jpg" for row in sample.itertuples()}
    for split in sample["split"].unique():
        (out / split).mkdir(parents=True, exist_ok=True)
    missing = [(row.dr7objid, row.ra, row.dec) for row in sample.itertuples() if not paths[row.dr7objid].exists()]
    failed = []
    for done, (objid, answer) in enumerate(service.cutouts(missing, width=SIZE, height=SIZE, scale=SCALE), 1):
        if isinstance(answer, ServiceError):
            failed.append((objid, str(answer)))
        else:
            data = answer.data
            atomic_write(paths[objid], lambda partial, data=data: pathlib.Path(partial).write_bytes(data))
        if done % 100 == 0 or done == len(missing):
            print(f"{done} of {len(missing)} cutouts, {len(failed)} not to be had", flush=True)
    return pd.DataFrame(failed, columns=["dr7objid", "reason"])


# Their masks ----------------------------------------------------------------------------------------------


def otsu_threshold(values):
    """Threshold that parts grey levels best (Otsu 1979): the largest variance between both sides.

    Parameters
    ----------
    values : ndarray of uint8
        Grey picture.

    Returns
    -------
    int
        Values above it are bright.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    below, levels = np.cumsum(counts), np.arange(256)
    above = below[-1] - below
    sum_below = np.cumsum(counts * levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = sum_below / below - (sum_below[-1] - sum_below) / above
    return int(np.argmax(np.nan_to_num(below * above * difference**2)))


def otsu_mask(picture):
    """The paper's mask: what is brighter than Otsu's threshold and hangs together with the middle.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)

    Returns
    -------
    ndarray of bool, shape (h, w), or None
        Holes filled; None if the middle is dark.
    """
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    smooth = ndimage.gaussian_filter(grey, 1.0)
    labels, _ = ndimage.label(smooth > otsu_threshold(smooth))
    return _of_the_middle(labels)


def our_mask(picture):
    """The mask that `training.stamps` draws: to 1.75 sigma of the light, neighbours parted, knots joined.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)

    Returns
    -------
    ndarray of bool, shape (h, w), or None
        None if nothing is in the middle.
    """
    _, level, sigma, total = stamps.sky_level(FRAME_IRG.invert(picture))
    objects, segments = stamps.segment(total, level, sigma)
    mask, _ = stamps.central_mask(objects, segments, total)
    return mask


MASKS = {"otsu": otsu_mask, "ours": our_mask}


def _of_the_middle(labels):
    """The largest of the labelled parts within 4 px of the middle, holes filled."""
    y, x = (n // 2 for n in labels.shape)
    near = labels[y - 4 : y + 5, x - 4 : x + 5]
    near = near[near > 0]
    return ndimage.binary_fill_holes(labels == np.bincount(near).argmax()) if near.size else None


def annotate(sample, folder, kind="ours"):
    """Draw the masks of all pictures of a split that were fetched.

    Parameters
    ----------
    sample : pandas.DataFrame
        Rows of one split.
    folder : pathlib.Path
        With their pictures.
    kind : {'ours', 'otsu'}
        Which mask.

    Returns
    -------
    list of dict
        As `read_coco` gives them; pictures without a mask are left out.
    """
    found = []
    for row in sample.itertuples():
        path = folder / f"{row.dr7objid}.jpg"
        if not path.exists():
            continue
        mask = MASKS[kind](read_picture(path))
        if mask is not None:
            found.append({"file": path.name, "shape": mask.shape, "masks": [mask], "labels": [row.label]})
    return found


def read_picture(path):
    """Pixels of a picture, uint8, shape (h, w, 3)."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path} cannot be read as a picture ({error}); remove it and fetch it again") from error


# Annotations: COCO and VIA --------------------------------------------------------------------------------


def write_coco(annotated, path):
    """Write annotations as COCO JSON (Lin et al. 2014), masks as polygons along the edges of pixels.

    Parameters
    ----------
    annotated : list of dict
        ``file``, ``shape`` (h, w), ``masks`` (list of bool arrays of that shape) and ``labels``.
    path : path
        JSON file; it appears whole or not at all.
    """
    images, annotations = [], []
    for number, one in enumerate(annotated, 1):
        height, width = one["shape"]
        images.append({"id": number, "file_name": one["file"], "height": height, "width": width})
        for mask, label in zip(one["masks"], one["labels"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORY[label],
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [int(value) for value in box],
                    "segmentation": polygons(mask),
                }
            )
    categories = [{"id": number, "name": name, "supercategory": "galaxy"} for name, number in CATEGORY.items()]
    content = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    atomic_write(path, lambda partial: pathlib.Path(partial).write_text(content))


def polygons(mask):
    """Outlines of all parts of a mask, as flat lists x, y, x, y of the edges of pixels; holes are filled."""
    labels, count = ndimage.label(ndimage.binary_fill_holes(mask))
    outlines = (outline(labels == number) for number in range(1, count + 1))
    return [np.stack([x, y], axis=1).ravel().tolist() for x, y in outlines]


def read_coco(path):
    """Read COCO JSON; masks may be polygons or run lengths, crowds are left out.

    Parameters
    ----------
    path : path
        JSON file. Categories whose names hold "spiral" or "elliptical" are those; others have no class.

    Returns
    -------
    list of dict
        ``file``, ``shape``, ``masks``, ``labels`` (None where the class is another).
    """
    content = _json(path, ("images", "annotations", "categories"), "COCO")
    try:
        names = {one["id"]: label_of(one["name"]) for one in content["categories"]}
        found = {
            one["id"]: {"file": one["file_name"], "shape": (one["height"], one["width"]), "masks": [], "labels": []}
            for one in content["images"]
        }
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                image = found[annotation["image_id"]]
                image["masks"].append(_coco_mask(annotation["segmentation"], image["shape"]))
                image["labels"].append(names[annotation["category_id"]])
    except (KeyError, TypeError, ValueError) as error:
        raise SurveycatError(
            f"{path} is no COCO file: an entry has no {error}, or names an image or category that is not there"
        ) from error
    return list(found.values())


def _coco_mask(segmentation, shape):
    """Mask of a COCO segmentation."""
    if isinstance(segmentation, list):
        parts = [paint(np.reshape(corners, (-1, 2)), shape) for corners in segmentation]
        return np.any(parts, axis=0)
    from pycocotools import mask as run_lengths

    if isinstance(segmentation["counts"], list):
        segmentation = run_lengths.frPyObjects(segmentation, *shape)
    return run_lengths.decode(segmentation).astype(bool)


def paint(corners, shape):
    """Pixels whose centres lie in a polygon.

    Parameters
    ----------
    corners : array_like, shape (n, 2)
        x, y; the first pixel spans 0 to 1.
    shape : tuple of int
        (h, w).

    Returns
    -------
    ndarray of bool, shape (h, w)
    """
    import shapely

    polygon = shapely.make_valid(shapely.Polygon(corners))
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(polygon, x, y)


def read_via(path, folder):
    """Read JSON of the VGG Image Annotator, versions 1 and 2: polygons, rectangles, circles and ellipses.

    Parameters
    ----------
    path : path
        JSON file, of a project or of annotations alone.
    folder : path
        With the pictures, whose sizes VIA does not store.

    Returns
    -------
    list of dict
        As `read_coco` gives them. The class is that of the first attribute of a region that names one.
    """
    content = _json(path, (), "VIA")
    entries = content.get("_via_img_metadata", content)
    found = []
    for entry in entries.values():
        if not isinstance(entry, dict) or "filename" not in entry or "regions" not in entry:
            raise SurveycatError(
                f"{path} is no JSON of the VGG Image Annotator: an entry has no filename or no regions"
            )
        regions = entry["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        shape = read_picture(pathlib.Path(folder) / entry["filename"]).shape[:2]
        labels = [_via_label(region.get("region_attributes", {})) for region in regions]
        masks = [_via_mask(region["shape_attributes"], shape, path) for region in regions]
        found.append({"file": entry["filename"], "shape": shape, "masks": masks, "labels": labels})
    return found


def _via_label(attributes):
    """Class of a region: text, or the chosen one of several options."""
    values = []
    for value in attributes.values():
        chosen = [name for name, on in value.items() if on] if isinstance(value, dict) else [value]
        values += [label_of(str(name)) for name in chosen]
    return next((label for label in values if label), None)


def _via_mask(shape_attributes, shape, path):
    """Mask of a region of VIA."""
    a, turn = shape_attributes, np.linspace(0, 2 * np.pi, 180, endpoint=False)
    kind = a["name"]
    if kind in ("polygon", "polyline"):
        corners = np.column_stack([a["all_points_x"], a["all_points_y"]])
    elif kind == "rect":
        x, y, w, h = a["x"], a["y"], a["width"], a["height"]
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    elif kind in ("circle", "ellipse"):
        rx, ry = (a["r"], a["r"]) if kind == "circle" else (a["rx"], a["ry"])
        angle = a.get("theta", 0.0)
        along, across = rx * np.cos(turn), ry * np.sin(turn)
        x = a["cx"] + along * np.cos(angle) - across * np.sin(angle)
        corners = np.column_stack([x, a["cy"] + along * np.sin(angle) + across * np.cos(angle)])
    else:
        raise SurveycatError(f"{path} has a region of the kind {kind!r}, which has no area; draw it as a polygon")
    return paint(corners, shape)


def label_of(name):
    """Class that a name stands for, None for another."""
    name = name.lower()
    found = [label for label in CLASSES if label in name or name in (label[0], label[:2])]
    return found[0] if found else None


def _json(path, needs, what):
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SurveycatError(f"{path} cannot be read as JSON ({error}); give a file of {what} annotations") from error
    lacking = [name for name in needs if not isinstance(content, dict) or name not in content]
    if lacking or not isinstance(content, dict):
        raise SurveycatError(f"{path} is no {what} file: it has no {', '.join(lacking) or 'names'}; give another one")
    return content


# Scenes for training --------------------------------------------------------------------------------------


def write_shards(annotated, folder, out, split, size=scenes.SHARD):
    """Write annotated pictures as scenes, which `training.train` reads.

    Parameters
    ----------
    annotated : list of dict
        From `read_coco` or `read_via`.
    folder : path
        With the pictures.
    out : path
        Where ``scenes_<split>_annotated_<number>.npz`` go.
    split : {'train', 'val'}
        Their split.
    size : int
        Scenes in a shard.

    Returns
    -------
    list of pathlib.Path
        The shards. Larger pictures are cut to the tile in their middle, smaller ones filled up as the tiler does;
        galaxies without a class are not used to teach one.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(annotated), size)):
        part = [
            scene_of(one, read_picture(pathlib.Path(folder) / one["file"])) for one in annotated[start : start + size]
        ]
        paths.append(out / f"scenes_{split}_annotated_{number:04d}.npz")
        scenes.write_shard(part, paths[-1])
    return paths


def scene_of(one, picture):
    """One annotated picture as `training.scenes.finish` gives a scene."""
    from training.evaluation.tiles import as_tile

    top, left = (max((n - scenes.TILE) // 2, 0) for n in picture.shape[:2])
    inside = np.s_[top : top + scenes.TILE, left : left + scenes.TILE]
    blank = np.zeros((1, 1, 3), np.float32)
    canvas = scenes.Canvas(blank, 0.01, FRAME_IRG.slope, kind=scenes.CUTOUT, image=as_tile(picture[inside]))
    for mask, label in zip(one["masks"], one["labels"], strict=True):
        known = label is not None
        p_spiral = float(label == "spiral") if known else 0.5
        item = scenes.Item(-top, -left, mask, mask.astype(np.float32), p_spiral, float(known))
        canvas.items.append(item)
    return scenes.finish(canvas)


# The command ----------------------------------------------------------------------------------------------


def build(gz1, gz2, out, count=None, masks="ours", seed=0, service=None):
    """Make the whole data set, or go on with it.

    Parameters
    ----------
    gz1, gz2 : path or None
        Tables of Galaxy Zoo 1 and 2; None takes the published ones, fetched once.
    out : path
        Folder: ``sample.csv``, pictures, ``train.json``, ``val.json``, ``test.json`` and ``missing.csv``.
    count : int, optional
        Galaxies in all, 12,000 by default.
    masks : {'ours', 'otsu'}
        Kind of mask.
    seed : int
        Of the draw.
    service : `~surveycat.skyserver.SkyServer`, optional
        Where pictures come from.

    Returns
    -------
    pandas.DataFrame
        The sample.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    factor = 1.0 if count is None else count / sum(SPLITS.values())
    splits = {name: max(1, round(number * factor)) for name, number in SPLITS.items()}
    sample = choose(galaxyzoo.load("gz1", gz1), galaxyzoo.load("gz2", gz2), splits, seed=seed)
    atomic_write(out / "sample.csv", lambda partial: sample.to_csv(partial, index=False))
    missing = fetch(sample, out, service or SkyServer())
    atomic_write(out / "missing.csv", lambda partial: missing.to_csv(partial, index=False))
    for split, rows in sample.groupby("split"):
        write_coco(annotate(rows, out / split, masks), out / f"{split}.json")
    return sample


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("build", help="choose, fetch and annotate galaxies")
    one.add_argument("--gz1", help="table of Galaxy Zoo 1; the published one by default")
    one.add_argument("--gz2", help="table of Galaxy Zoo 2; the published one by default")
    one.add_argument("--out", required=True)
    one.add_argument("--count", type=int, help="galaxies in all (12000)")
    one.add_argument("--masks", choices=sorted(MASKS), default="ours")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--skyserver", help="address of SkyServer; or set SURVEYCAT_SKYSERVER")
    one.set_defaults(run=_build)
    two = commands.add_parser("shards", help="turn annotations into scenes for training")
    two.add_argument("--annotations", required=True, help="COCO JSON, or VIA JSON with --via")
    two.add_argument("--images", required=True, help="folder of the pictures")
    two.add_argument("--out", required=True)
    two.add_argument("--split", choices=("train", "val"), default="train")
    two.add_argument("--via", action="store_true", help="the annotations are of the VGG Image Annotator")
    two.set_defaults(run=_shards)
    given = parser.parse_args(arguments)
    return exit_code(lambda: given.run(given))


def _build(given):
    with contextlib.closing(SkyServer(given.skyserver)) as service:
        build(given.gz1, given.gz2, given.out, given.count, given.masks, given.seed, service)


def _shards(given):
    read = read_via if given.via else lambda path, folder: read_coco(path)
    write_shards(read(given.annotations, given.images), given.images, given.out, given.split)


if __name__ == "__main__":
    sys.exit(main())
