"""Composed test scenes: galaxies of the test split, added to sky that no training scene shows.

What is in the sky already has no label: its pixels are ignored, out to the isophote at which masks of faint galaxies
end. Other objects that came along in the light of a labelled galaxy were sought by eye and are taken out of it
(``companions.csv``).
"""

import contextlib
import io
import pathlib
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import ndimage

from training import sky as sky_module
from training import stamps as stamps_module
from training.evaluation import plots
from training.evaluation.cutouts import read_cutouts
from training.evaluation.figures import confusion, rate, rates_by
from training.scenes import SMOOTHED, TILE, Composer, jpeg, overlap, visible_items
from training.stamps import WEIGHTS
from training.stretch import random_stretch

COUNT, SEED = 500, 500
MOST = 12  # galaxies in a scene
SIDES = (10.0, 250.0)  # px
OVERLAPPING, CUT = 0.27, 0.1  # of the galaxies added; with those under the first ones a third overlap
ROUGH, ROUGH_COUNTS = 0.04, (5.0, 80.0)  # share of pictures with strong noise added, and its sigma
CLUSTER_RADIUS = 600  # px of M2 whose sky is not used: among the cluster's stars nobody knows what is to be found
REACH = 2.0  # an unlabelled object ends at its isophote, at most at so many times the radius of its listed mask
COMPANIONS = pathlib.Path(__file__).parent / "companions.csv"
SIZE_EDGES = (0, 12, 16, 24, 32, 48, 64, 96, 256)
BLEND_EDGES = (0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
SMALL = 16, 64  # sides of squares, px, between the areas by which average precision is given
LEAST_SCORE = 0.05  # of the second set of average precisions


class TestComposer(Composer):
    """Composes scenes with given shares of overlapping and cut galaxies, all of them with a label to be trusted.

    Parameters
    ----------
    cache : pathlib.Path
        Where stamps and sky of the test split are, or will be, kept.
    data : pathlib.Path
        Shared data folder.
    split : str
        Split of the galaxies and of the sky.
    limit : int, optional
        Only the first so many stamps (for tests).
    """

    __test__ = False  # the name is not pytest's

    def __init__(self, cache, data, split="test", limit=None):
        stamps_module.build(split, cache / "stamps", data=data, limit=limit)
        super().__init__(split, cache)
        self.skies = [unseen_sky(source, cache / "sky", data) for source in sky_module.SOURCES if source.test_rows]
        area = np.array([sky.light.shape[0] * sky.light.shape[1] for sky in self.skies], float)
        self.sky_weight = area / area.sum()
        companions = pd.read_csv(COMPANIONS, dtype={"id": str})
        self.stamps = CleanStamps(self.stamps, companions)
        frame = read_cutouts(data, split)
        sure = np.isin(self.stamps.table["id"], frame.loc[frame["confident"] == 1, "id"].astype(str))
        sure &= ~np.isin(self.stamps.table["id"], companions.loc[companions["radius_arcsec"].isna(), "id"])
        self.groups = [group[sure[group]] for group in self.groups[:2]] + [np.array([], int)]

    def compose(self, rng):
        """One scene: real sky, up to 12 galaxies added, stars added, rendered as SDSS pictures are."""
        canvas, sky, stretch = self.crop_sky(random_stretch(rng), rng)
        rough = rng.uniform(*ROUGH_COUNTS) if rng.random() < ROUGH else 0.0
        canvas.noise = float(np.hypot(canvas.noise, SMOOTHED * np.sqrt(3.0) * rough / canvas.slope))
        before = np.maximum(ndimage.gaussian_filter(canvas.light @ WEIGHTS, 1.0), 0.0)
        set_aside(canvas, before)
        # `hidden` asks for three times a galaxy's light: under a star of its own brightness nobody can tell it either
        canvas.clutter = 3.0 * before
        psf_sigma = sky.psf / 1.1774 / 1.12
        targets = np.exp(rng.uniform(*np.log(SIDES), rng.integers(0, MOST + 1)))
        self.added = []
        for target in np.sort(targets)[::-1]:  # the largest first: there is room for the others
            self._add(canvas, target, psf_sigma, rng)
        # what is buried under an added galaxy cannot be found there
        after = ndimage.gaussian_filter(canvas.light @ WEIGHTS, 1.0)
        canvas.ignore &= after - before < 3.0 * np.maximum(before, canvas.noise)
        self.add_stars(canvas, 2.355 * psf_sigma, rng)
        picture = self.show(canvas, stretch, rng)
        if rough:
            picture = np.clip(picture + rng.normal(0.0, rough, picture.shape), 0, 255).astype(np.uint8)
        canvas.image = jpeg(picture, rng)
        return canvas

    def _add(self, canvas, target, psf_sigma, rng):
        light, item = self.galaxy(canvas, target, psf_sigma, rng)
        if item is None:
            return
        draw = rng.random()
        kind = "overlapping" if draw < OVERLAPPING else "cut" if draw < OVERLAPPING + CUT else "alone"
        if not self._find_place(canvas, item, kind, rng):
            return
        place = overlap(item.y0, item.x0, item.mask.shape)
        canvas.light[place[0]] += light[place[1]]
        canvas.items.append(item)
        self.added.append(item)

    def _find_place(self, canvas, item, kind, rng, tries=40):
        """Put a galaxy where it overlaps, is cut, or stands alone; False where no such place is found."""
        taken = np.zeros((TILE, TILE), bool)
        for other in self.added:
            place = overlap(other.y0, other.x0, other.mask.shape)
            taken[place[0]] |= other.mask[place[1]]
        near = ndimage.binary_dilation(taken, iterations=3) if taken.any() else taken
        for _ in range(tries):
            item.y0, item.x0 = (int(v) for v in rng.integers(-np.array(item.mask.shape) // 2, TILE, 2))
            place = overlap(item.y0, item.x0, item.mask.shape)
            if place is None:
                continue
            inside = int(item.mask[place[1]].sum()) / int(item.mask.sum())
            touched = taken[place[0]] & item.mask[place[1]]
            close = near[place[0]] & item.mask[place[1]]
            share = touched.sum() / item.mask.sum()
            if kind == "cut" and 0.3 < inside < 0.95 and not close.any():
                return True
            if kind == "overlapping" and inside == 1 and 0.02 < share < 0.8:
                return True
            if kind == "alone" and inside == 1 and not close.any():
                return True
        return False


class CleanStamps:
    """Stamps without the other objects that were seen in their light.

    Within the circle of each the fainter of the galaxy and its half-turn stays.

    Parameters
    ----------
    stamps : StampSet
        The stamps.
    companions : pandas.DataFrame
        ``id`` of the galaxy, ``dy_arcsec``, ``dx_arcsec`` from its brightest pixel, ``radius_arcsec``; a galaxy without
        these cannot be told from its companion and is not used.
    """

    def __init__(self, stamps, companions):
        self._stamps, self.table = stamps, stamps.table
        self._companions = {name: rows for name, rows in companions.dropna().groupby("id")}

    def stamp(self, index):
        """Light (h, w, 3) and mask (h, w) of one galaxy, as `StampSet.stamp` gives them, without companions."""
        light, mask = self._stamps.stamp(index)
        rows = self._companions.get(str(self.table["id"][index]))
        if rows is None:
            return light, mask
        y, x = np.unravel_index(np.argmax(ndimage.gaussian_filter(light @ WEIGHTS, 2.0) * mask), mask.shape)
        turned = half_turn(light, y, x)
        places = rows[["dy_arcsec", "dx_arcsec", "radius_arcsec"]].to_numpy() / self.table["scale"][index]
        yy, xx = np.indices(mask.shape, sparse=True)
        weight = np.zeros(mask.shape, np.float32)
        for dy, dx, radius in places:
            # the edge of the circle is soft: a hard one would be seen
            weight = np.maximum(weight, np.clip(radius + 1.5 - np.hypot(yy - y - dy, xx - x - dx), 0.0, 1.0))
        return light + weight[..., None] * (np.minimum(light, turned) - light), mask


def half_turn(light, y, x):
    """An image (h, w, 3) turned by 180 degrees about the pixel (y, x); dark where it has no pixels."""
    h, w = light.shape[:2]
    out = np.zeros_like(light)
    rows, columns = 2 * y - np.arange(h), 2 * x - np.arange(w)
    inside = np.ix_((rows >= 0) & (rows < h), (columns >= 0) & (columns < w))
    out[inside] = light[np.ix_(rows[(rows >= 0) & (rows < h)], columns[(columns >= 0) & (columns < w)])]
    return out


def unseen_sky(source, folder, data):
    """The part of a source's sky that is kept for testing, with everything extended in it listed; made once.

    Parameters
    ----------
    source : sky.Source
        The source. Of one with a star cluster only the part beside it is taken; galaxies that the field's own list
        knows are listed whatever the rules say of them.
    folder : pathlib.Path
        Where it is kept.
    data : pathlib.Path
        Shared data folder.

    Returns
    -------
    Sky
        The sky.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"listed_{source.name}.npz"
    if not path.exists():
        y0, y1 = source.test_rows
        x0 = 0 if source.cluster is None else int(source.cluster[1]) + CLUSTER_RADIUS
        known = data / "fields" / source.folder / "galaxies.csv"
        if known.exists():
            places = pd.read_csv(known)[["y", "x"]]
            source = replace(source, galaxies=(*source.galaxies, *places.itertuples(index=False, name=None)))
        sky, _, _ = sky_module.build_one(source, (y0, x0, y1, 2048), data)
        sky_module.save(sky, path)
    return sky_module.load(path)


def set_aside(canvas, light):
    """Ignore what is in the sky of a canvas, in place: nobody labelled it.

    Parameters
    ----------
    canvas : Canvas
        With the listed objects of the sky as items and as pixels to be ignored.
    light : ndarray, shape (256, 256)
        Its summed light, smoothed by 1 px.
    """
    listed = canvas.ignore.copy()
    for item in canvas.items:
        place = overlap(item.y0, item.x0, item.mask.shape)
        listed[place[0]] |= item.mask[place[1]]
        # its light still hides what is added below it
        item.positive, item.mask = False, np.zeros_like(item.mask)
    bright = light > 1.25 * canvas.noise
    canvas.ignore = listed.copy()
    parts, _ = ndimage.label(listed)
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        reach = (REACH - 1.0) * np.sqrt((parts[box] == number).sum() / np.pi) + 3.0
        wide = tuple(slice(max(int(one.start - reach), 0), int(one.stop + reach)) for one in box)
        seed = parts[wide] == number
        near = bright[wide] & (ndimage.distance_transform_edt(~seed) <= reach)
        canvas.ignore[wide] |= ndimage.binary_propagation(seed, mask=near | seed)


def truth(canvas):
    """What is to be found in a scene, and where nothing is to be said.

    Returns
    -------
    dict
        ``image``; ``ignore`` (bool, 256 x 256); ``masks`` (n, 256, 256) bool; ``is_spiral`` (n,) bool; ``side`` (px);
        ``gap``: distance to the nearest other galaxy in units of the sum of both radii, infinite for none;
        ``overlapping``: shares pixels with another one; ``cut``: by the border.
    """
    masks, spirals, cut, ignore = [], [], [], canvas.ignore.copy()
    for item, place, seen, keep in visible_items(canvas):
        if not keep or not plain(item, seen, canvas.noise):
            ignore[place[0]] |= seen
            continue
        mask = np.zeros((TILE, TILE), bool)
        mask[place[0]] = seen
        masks.append(mask)
        spirals.append(item.p_spiral > 0.5)
        cut.append(seen.sum() < item.mask.sum())
    masks = np.array(masks, bool).reshape(-1, TILE, TILE)
    ignore = ndimage.binary_dilation(ignore, iterations=3) if ignore.any() else ignore
    covered = masks.sum(axis=0)
    return {
        "image": canvas.image,
        "ignore": ignore,
        "masks": masks,
        "is_spiral": np.array(spirals, bool),
        "side": np.array([max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)) for mask in masks]),
        "gap": _gaps(masks),
        "overlapping": np.array([(mask & (covered > 1)).any() for mask in masks], bool),
        "cut": np.array(cut, bool),
    }


def plain(item, seen, noise):
    """Whether a person would see a galaxy: long enough inside of the picture, its peak thrice the noise of a pixel."""
    length = max(seen.any(axis).sum() for axis in (0, 1))
    return length >= SIDES[0] and ndimage.gaussian_filter(item.total, 1.0).max() > 3.0 * noise / SMOOTHED


def _gaps(masks):
    """Distance from each mask's centroid to the nearest other one's, in units of the sum of their radii."""
    centre = np.array([ndimage.center_of_mass(mask) for mask in masks]).reshape(-1, 2)
    radius = np.sqrt(masks.sum(axis=(1, 2)) / np.pi)
    apart = np.hypot(*(centre[:, None] - centre).transpose(2, 0, 1)) / (radius[:, None] + radius)
    np.fill_diagonal(apart, np.inf)
    return apart.min(axis=1, initial=np.inf)


def compose(cache, data, count=COUNT, seed=SEED):
    """The test scenes, one after the other, always the same."""
    composer = TestComposer(cache, data)
    for number in range(count):
        yield truth(composer.compose(np.random.default_rng([seed, number])))


def full_masks(found):
    """Masks of detections in a tile, (n, 256, 256) bool."""
    full = np.zeros((len(found), TILE, TILE), bool)
    which, y, x = found.pixels()
    full[which, y, x] = True
    return full


def mask_iou(first, second):
    """IoU of every pair of masks, shape (N, M), from (N, 256, 256) and (M, 256, 256) bool."""
    one, two = (masks.reshape(len(masks), TILE * TILE).astype(np.float32) for masks in (first, second))
    shared = one @ two.T
    return shared / np.maximum(one.sum(axis=1)[:, None] + two.sum(axis=1) - shared, 1)


def counting(masks, iou, ignore):
    """Which detections count: those on pixels to be ignored do not, unless they are a galaxy's.

    Parameters
    ----------
    masks : ndarray of bool, shape (N, H, W)
        Detections.
    iou : ndarray, shape (N, M)
        With the true ones.
    ignore : ndarray of bool, shape (H, W)
        Pixels with unlabelled objects.

    Returns
    -------
    ndarray of bool, shape (N,)
        True where less than half of the mask is ignored, or the IoU with a true one is 0.5 or more.
    """
    covered = (masks & ignore).sum(axis=(1, 2)) / np.maximum(masks.sum(axis=(1, 2)), 1)
    return (covered < 0.5) | (iou.max(axis=1, initial=0.0) >= 0.5)


def pair_off(iou, least=0.5):
    """Pairs of detections and true galaxies, the best first, each used once.

    Parameters
    ----------
    iou : ndarray, shape (N, M)
        Of detections (rows) and true ones.
    least : float
        Smallest IoU of a pair.

    Returns
    -------
    list of (int, int)
        Row and column of each pair.
    """
    order = np.dstack(np.unravel_index(np.argsort(-iou, axis=None, kind="stable"), iou.shape))[0]
    rows, columns, pairs = set(), set(), []
    for row, column in order.tolist():
        if iou[row, column] < least:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


class Coco:
    """True galaxies and detections of many pictures, for pycocotools.

    A detection's confidence in COCO's sense is the probability that it is a galaxy of that class.
    """

    def __init__(self):
        self.images, self.truths, self.found = [], [], []

    def add(self, true, masks, boxes, score, p_spiral):
        """Add a picture.

        Parameters
        ----------
        true : dict
            From `truth`.
        masks : ndarray of bool, shape (N, 256, 256)
        boxes : ndarray, shape (N, 4)
            [y0, x0, y1, x1).
        score, p_spiral : ndarray, shape (N,)
        """
        number = len(self.images) + 1
        self.images.append({"id": number, "height": TILE, "width": TILE})
        for mask, spiral in zip(true["masks"], true["is_spiral"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
            annotation = self._one(number, mask, box, spiral)
            # pycocotools takes an id of 0 for none
            self.truths.append(annotation | {"id": len(self.truths) + 1, "area": int(mask.sum()), "iscrowd": 0})
        for mask, box, s, p in zip(masks, boxes, score, p_spiral, strict=True):
            self.found.append(self._one(number, mask, box, p > 0.5) | {"score": float(s * max(p, 1 - p))})

    @staticmethod
    def _one(image, mask, box, spiral):
        from pycocotools import mask as rle

        y0, x0, y1, x1 = (float(edge) for edge in box)
        return {
            "image_id": image,
            "category_id": 1 if spiral else 2,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8))),
        }

    def average_precision(self, kind, by_class):
        """Mean average precision at IoU 0.5, and over 0.5 to 0.95 (Lin et al. 2014).

        Parameters
        ----------
        kind : {'bbox', 'segm'}
            Boxes or masks.
        by_class : bool
            Mean over the two classes, or all galaxies alike.

        Returns
        -------
        dict
            ``mAP50``, ``mAP50:95``.
        """
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not self.found or not self.truths:
            return {"mAP50": 0.0, "mAP50:95": 0.0, "mAP50_by_area": {}}
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = {
                "images": self.images,
                "annotations": self.truths,
                "categories": [{"id": 1, "name": "spiral"}, {"id": 2, "name": "elliptical"}],
            }
            known.createIndex()
            judge = COCOeval(known, known.loadRes([dict(one) for one in self.found]), kind)
            judge.params.useCats = int(by_class)
            areas = [0, SMALL[0] ** 2, SMALL[1] ** 2, 1e10]
            judge.params.areaRng = [[0, 1e10], *zip(areas[:-1], areas[1:], strict=True)]
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return {
            "mAP50": round(float(judge.stats[1]), 4),
            "mAP50:95": round(float(judge.stats[0]), 4),
            "mAP50_by_area": by_area(judge),
        }


def by_area(judge):
    """Mean average precision at IoU 0.5 of galaxies by area in px, from a `COCOeval` that has accumulated."""
    precision = judge.eval["precision"][0, :, :, 1:, -1]  # at IoU 0.5: recall, class, area but for "all"
    names = (f"under {SMALL[0]}^2", f"{SMALL[0]}^2 to {SMALL[1]}^2", f"over {SMALL[1]}^2")
    known = [values[values > -1] for values in np.moveaxis(precision, -1, 0)]
    return {name: round(float(one.mean()), 4) if one.size else None for name, one in zip(names, known, strict=True)}


class Tally:
    """Everything that is counted over the scenes at the catalogue's score of 0.5."""

    def __init__(self):
        self.side, self.gap, self.seen, self.cut, self.own_side, self.overlapping = [], [], [], [], [], []
        self.iou, self.found_side, self.purity, self.said, self.label = [], [], [], [], []

    def add(self, true, masks, iou, p_spiral):
        """Add a scene: its truth, masks that count (N, 256, 256), their IoU with the true ones, class probability."""
        pairs = dict((column, row) for row, column in pair_off(iou))
        hit = np.array([column in pairs for column in range(len(true["masks"]))], bool)
        self.side += list(true["side"])
        self.gap += list(true["gap"])
        self.cut += list(true["cut"])
        self.overlapping += list(true["overlapping"])
        self.seen += list(hit)
        for column, row in pairs.items():
            self.iou.append(float(iou[row, column]))
            self.found_side.append(true["side"][column])
            self.label.append(bool(true["is_spiral"][column]))
            self.said.append(bool(p_spiral[row] > 0.5))
        good = iou.max(axis=1, initial=0.0) >= 0.5
        self.purity += list(good)
        extent = [max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)) for mask in masks]
        self.own_side += extent

    def figures(self):
        """Completeness, purity, mask IoU and class figures."""
        gap, cut, seen = np.array(self.gap), np.array(self.cut, bool), np.array(self.seen, bool)
        return {
            "galaxies": len(seen),
            "overlapping_share": rate(self.overlapping),
            "cut_share": rate(cut),
            "completeness": rate(seen),
            "completeness_by_side": rates_by(self.side, seen, SIZE_EDGES),
            "completeness_of_cut": rate(seen[cut]),
            "completeness_of_overlapping": rate(seen[np.array(self.overlapping, bool)]),
            "completeness_by_separation": rates_by(gap, seen, BLEND_EDGES),
            "purity": rate(self.purity),
            "purity_by_side": rates_by(self.own_side, self.purity, SIZE_EDGES),
            "median_mask_iou": round(float(np.median(self.iou)), 4) if self.iou else None,
            "class": confusion(self.label, self.said),
            "class_accuracy_by_side": rates_by(self.found_side, np.equal(self.label, self.said), SIZE_EDGES),
        }


def section(subject, page):
    """Composed test scenes: mAP of boxes and masks, mask IoU (Fig. 14), completeness, purity and blends."""
    count = COUNT if subject.limit is None else min(COUNT, subject.limit)
    shown, tally, strict, loose = [], Tally(), Coco(), Coco()

    def images():
        for true in compose(subject.cache, subject.data, count):
            shown.append(true)
            yield true["image"]

    for number, found in enumerate(subject.look(images(), LEAST_SCORE)):
        true = shown[number]
        masks = full_masks(found)
        iou = mask_iou(masks, true["masks"])
        kept = counting(masks, iou, true["ignore"])
        for coco, chosen in ((loose, kept), (strict, kept & (found.score >= 0.5))):
            index = np.flatnonzero(chosen)
            coco.add(true, masks[index], found.box[index], found.score[index], found.p_spiral[index])
        tally.add(true, masks[index], iou[index], found.p_spiral[index])
        shown[number] = None
    figures = {"seed": SEED, "scenes": len(strict.images), **tally.figures()}
    for name, kind in (("mask", "segm"), ("box", "bbox")):
        for label, by_class in (("two_classes", True), ("class_agnostic", False)):
            figures[f"{name}_{label}"] = strict.average_precision(kind, by_class)
            figures[f"{name}_{label}_from_score_{LEAST_SCORE}"] = loose.average_precision(kind, by_class)
    draw(page, figures, tally)
    return figures


def draw(page, figures, tally):
    """Plots of the section."""
    page.plot("iou", "IoU of masks of found galaxies (Fig. 14)", plots.histogram, {"masks": tally.iou}, "IoU")
    both = {"completeness": figures["completeness_by_side"], "purity": figures["purity_by_side"]}
    page.plot("side", "Completeness and purity against larger side", plots.rates, both, "larger side, px", "rate")
    page.plot(
        "blends",
        "Completeness against distance to the nearest galaxy, in units of the sum of both radii",
        plots.rates,
        figures["completeness_by_separation"],
        "separation, sum of radii",
        "completeness",
    )
    page.plot("confusion", "Class of found galaxies", plots.confusion, figures["class"])
