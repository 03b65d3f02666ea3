"""Do catalogues of real fields depend on where the seams are?  Rates over many shifts of the grid.

    python tests/benchmarks/seams_real.py --out seams.json

From each field 1 to 191 px are cut off at the top and at the left, so that every seam moves, at random and 20 times.
Objects with a score above 0.7 of the whole field are looked for in the catalogue of each crop, and those of the crop in
that of the whole field: a row within 1.5 px is the same object.  Left out are those that the crop's border cuts
(nearer to it than 4 px), nothing else.  The distance to a seam is that of the object's middle from the nearest edge of
a tile, in the catalogue searched, in pixels of the object's home level.  Whether it matters is asked of every object
of any catalogue, looked for in all of them: found here and not there, it says something of the distance, whatever
makes it easy or hard to find.  The rate of each bin stands beside the one expected if distance did not matter, and
`chance_of_flat` is the share of shuffles, of distances among the catalogues of each object, that scatter as much.

One that is not found has moved (a row lies near, its mask is another), or the seam rule has lost it (a tile of its home
level has it whole, with the score that a row needs), or the network does not see it: its scores depend on where in a
tile a galaxy lies.  Rows with more than 30 % of their outline on a tile's edge are counted beside those on lines half a
step away, which nothing cuts.
"""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from catalogues import doubles, near, options, outline_on_seams, rate, report, said, seams, search
from PIL import Image

from surveycat.dispatch import detect
from surveycat.image import open_image
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.tiles import MARGIN, TileGrid, is_cut

FIELDS = (
    "sdss_351.65+0.10_run4192",
    "sdss_351.65+0.10_run6377",
    "sdss_313.17-5.69_ngc6976",
    "sdss_183.76-3.44_run1140",
)
SURE, NEAR, MOST_ON_SEAM = 0.7, 1.5, 0.3
BINS = (0, 4, 8, 16, 32, 64)


@dataclass
class Searched:
    """An image, its rows, and the grid they were found on."""

    pixels: np.ndarray
    weights: str

    def __post_init__(self):
        self.rows = search(self.pixels, self.weights)
        self.grid = TileGrid(self.pixels.shape[:2])

    def seen_in_a_tile(self, y, x, side):
        """Whether the network itself, in a tile that holds the object whole, gives it the score that a row needs."""
        level = int(self.grid.home_level(side))
        box = np.array([y - side / 2, x - side / 2, y + side / 2, x + side / 2]) / 2**level
        with open_image(self.pixels) as image:
            tiles = [tile for tile in self.grid.tiles() if tile.level == level and _inside(box, tile, image)]
            found = detect(image, tiles, DetectorSpec(self.weights))
        middle = (found.box[:, :2] + found.box[:, 2:]) / 2 - 0.5
        return bool((np.hypot(*(middle * 2**level - [y, x]).T) < _about(side)).any())


def _about(side):
    """How far, in pixels, the middle of one and the same object may move when its mask changes."""
    return max(3.0, side / 8)


def _why(searched, at, side, nearest):
    """Why there is no row within 1.5 px."""
    if nearest < _about(side):
        return "moved"
    return "lost by the seam rule" if searched.seen_in_a_tile(*at, side) else "not seen by the network"


def _inside(box, tile, image):
    return not is_cut(box[None], tile.box, image.level_shape(tile.level))[0]


def looked_for(source, target, offset, first):
    """Each sure object of one catalogue, looked for in another.

    Parameters
    ----------
    source, target : Searched
        Both in pixels of their own image.
    offset : (int, int)
        What is added to y and x of the source to get pixels of the target.
    first : (int, int)
        Row and column of the source before which it is cut in one of the two images.

    Returns
    -------
    list of dict
        One for each object: where, how large, whether it is there, with which class, how often, how near the seam is.
    """
    objects, grid, searched = [], target.grid, target
    source, target = source.rows, target.rows
    y, x = target["y"].to_numpy(), target["x"].to_numpy()
    uncut = (source["y_min"] >= first[0] + MARGIN) & (source["x_min"] >= first[1] + MARGIN)
    for _, row in source[uncut & (source["score"] > SURE)].iterrows():
        at = np.array([row["y"], row["x"]], dtype=float) + offset
        away = np.hypot(y - at[0], x - at[1])
        match = away <= NEAR
        side = max(row["y_max"] - row["y_min"], row["x_max"] - row["x_min"])
        best = int(np.argmin(away)) if len(away) else -1
        home = int(grid.home_level(side))
        lines = seams(grid, home)
        middle = np.array([row["y_min"] + row["y_max"], row["x_min"] + row["x_max"]]) / 2 + offset
        objects.append(
            {
                "y": round(float(row["y"]), 2),
                "x": round(float(row["x"]), 2),
                "side": int(side),
                "level": int(row["level"]),
                "home": home,
                "score": round(float(row["score"]), 3),
                "host": int(row["host"]),
                "found": bool(match.any()),
                "rows": int(match.sum()),
                "same_class": bool(match.any() and target["class"].iloc[best] == row["class"]),
                "p_spiral": round(float(row["p_spiral"]), 3),
                "nearest": round(float(away.min(initial=np.inf)), 2),
                "distance": float(min(near(edges, m / 2**home) for edges, m in zip(lines, middle, strict=True))),
            }
        )
        if not match.any():
            objects[-1]["why"] = _why(searched, at, side, away.min(initial=np.inf))
    return objects


def survey(field, data, weights, shifts, rng):
    """All comparisons of one field: objects, doubles, rows along seams, and every object in every catalogue."""
    pixels = np.asarray(Image.open(data / "fields" / field / "field.jpg").convert("RGB"))
    whole = Searched(pixels, weights)
    found = {"rows": len(whole.rows), "objects": [], "doubles": [], "along_seams": [], "along_other_lines": 0}
    _look_over(found, whole, (0, 0))
    catalogues = [((0, 0), whole)]
    for dy, dx in rng.integers(1, 192, (shifts, 2)).tolist():
        crop = Searched(np.ascontiguousarray(pixels[dy:, dx:]), weights)
        _look_over(found, crop, (dy, dx))
        ways = {
            "whole in crop": looked_for(whole, crop, (-dy, -dx), (dy, dx)),
            "crop in whole": looked_for(crop, whole, (dy, dx), (0, 0)),
        }
        for way, objects in ways.items():
            found["objects"] += [{"way": way, "shift": [dy, dx], **each} for each in objects]
        catalogues.append(((dy, dx), crop))
    found["trials"] = trials(catalogues)
    return found


def trials(catalogues):
    """Every sure object of any catalogue, looked for in all that hold it uncut.

    Parameters
    ----------
    catalogues : list of ((int, int), Searched)
        Each with the row and column of the whole field where it begins.

    Returns
    -------
    list of (int, bool, float)
        Number of the object, whether it is there, and its distance from the nearest seam there.
    """
    places, boxes = np.empty((0, 2)), np.empty((0, 4))
    for corner, searched in catalogues:
        rows = searched.rows[searched.rows["score"] > SURE]
        here = rows[["y", "x"]].to_numpy(dtype=float) + corner
        new = np.array([np.hypot(*(places - place).T).min(initial=np.inf) > NEAR for place in here], dtype=bool)
        places = np.concatenate([places, here[new]])
        box = rows[["y_min", "x_min", "y_max", "x_max"]].to_numpy(dtype=float) + np.tile(corner, 2)
        boxes = np.concatenate([boxes, box[new]])
    return [trial for corner, searched in catalogues for trial in _looks_in(searched, places - corner, boxes, corner)]


def _looks_in(searched, places, boxes, corner):
    """The trials of one catalogue: `places` in its own pixels, `boxes` in those of the whole field."""
    rows, grid = searched.rows[["y", "x"]].to_numpy(dtype=float), searched.grid
    for number, (place, box) in enumerate(zip(places, boxes, strict=True)):
        low, high = box[:2] - corner, box[2:] - corner
        if (low < MARGIN).any():
            continue
        home = int(grid.home_level((high - low).max()))
        middle = (low + high) / 2 / 2**home
        distance = min(near(edges, m) for edges, m in zip(seams(grid, home), middle, strict=True))
        yield number, bool(np.hypot(*(rows - place).T).min(initial=np.inf) <= NEAR), float(distance)


def _look_over(found, searched, shift):
    """Note which rows of a catalogue are there twice, and which lie along seams."""
    rows, grid = searched.rows, searched.grid
    for a, _ in doubles(rows):
        found["doubles"].append(
            {"shift": shift, "y": round(float(rows["y"][a]), 1), "x": round(float(rows["x"][a]), 1)}
        )
    for _, row in rows.iterrows():
        share = outline_on_seams(row, grid)
        if share > MOST_ON_SEAM:
            where = {"y": round(float(row["y"]), 1), "x": round(float(row["x"]), 1)}
            found["along_seams"].append({"shift": shift, **where, "share": round(share, 3)})
        found["along_other_lines"] += outline_on_seams(row, grid, moved=grid.step // 2) > MOST_ON_SEAM


def by_distance(trials, shuffles=2000):
    """Rates against the distance to the nearest seam, and how likely they would scatter as much if it did not matter.

    Parameters
    ----------
    trials : list of (int, bool, float)
        As `trials` gives them, with a number of its own for each object.
    shuffles : int, optional
        Of distances among the trials of each object.

    Returns
    -------
    rates : dict
        A rate for each bin, with what is ``expected`` there from the rates of its objects.
    chance : float
    """
    number, found, distance = (np.array(column) for column in zip(*sorted(trials), strict=True))
    _, number = np.unique(number, return_inverse=True)
    which = np.clip(np.digitize(distance, BINS) - 1, 0, len(BINS) - 1)
    of_object = np.bincount(number, weights=found) / np.bincount(number)
    total = np.bincount(which, minlength=len(BINS))

    def scatter(bins):
        hits = np.bincount(bins, weights=found, minlength=len(BINS))
        expected = np.bincount(bins, weights=of_object[number], minlength=len(BINS))
        return ((hits - expected) ** 2 / np.maximum(total, 1)).sum()

    rng = np.random.default_rng(0)
    shuffled = [scatter(which[np.lexsort([rng.random(len(which)), number])]) for _ in range(shuffles)]
    chance = (1 + np.sum(np.array(shuffled) >= scatter(which))) / (1 + shuffles)
    names = [f"{low} to {high} px" for low, high in zip(BINS, BINS[1:], strict=False)] + [f"{BINS[-1]} px or more"]
    rates = {}
    for k, name in enumerate(names):
        here = which == k
        expected = round(float(of_object[number[here]].mean()), 4) if here.any() else None
        rates[name] = rate(found[here].sum(), here.sum()) | {"expected": expected}
    return rates, float(chance)


def figures_of(surveys):
    """The figures that are asked for, pooled over fields and shifts."""
    objects = [each for found in surveys.values() for each in found["objects"]]
    each = [(f"{field} {n}", *rest) for field, found in surveys.items() for n, *rest in found["trials"]]
    rates, flat = by_distance(each)
    figures = {
        "found": rate(sum(o["found"] for o in objects), len(objects)),
        "same_class": rate(sum(o["same_class"] for o in objects), sum(o["found"] for o in objects)),
        "matched_twice": sum(o["rows"] > 1 for o in objects),
        "doubled_rows": sum(len(found["doubles"]) for found in surveys.values()),
        "not_found": dict(Counter(o["why"] for o in objects if not o["found"])),
        "rows_along_other_lines": sum(found["along_other_lines"] for found in surveys.values()),
        "rows_along_seams": sum(len(found["along_seams"]) for found in surveys.values()),
        "found_by_distance": rates,
        "chance_of_flat": flat,
    }
    for name, key in (("way", "way"), ("home level", "home")):
        for value in sorted({each[key] for each in objects}):
            part = [each for each in objects if each[key] == value]
            figures[f"found, {name} {value}"] = rate(sum(o["found"] for o in part), len(part))
    for field, found in surveys.items():
        part = found["objects"]
        figures[f"found, {field}"] = rate(sum(o["found"] for o in part), len(part))
        matched = [o for o in part if o["found"]]
        figures[f"same class, {field}"] = rate(sum(o["same_class"] for o in matched), len(matched))
    return figures


def worst(found, n=12):
    """The objects of a field that are missed most often."""
    missed = Counter()
    for each in found["objects"]:
        if not each["found"]:
            dy, dx = each["shift"] if each["way"] == "crop in whole" else (0, 0)
            missed[round((each["y"] + dy) / 4), round((each["x"] + dx) / 4)] += 1
    return [{"y": 4 * y, "x": 4 * x, "missed": n} for (y, x), n in missed.most_common(n)]


def main():
    """Run all fields, print a table, write JSON."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--fields", nargs="+", default=list(FIELDS), help="folders of fields/")
    parser.add_argument("--shifts", type=int, default=20, help="of each field")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    surveys = {}
    for number, field in enumerate(asked.fields):
        started = time.perf_counter()
        rng = np.random.default_rng([asked.seed, number])
        surveys[field] = survey(field, asked.data, asked.weights, asked.shifts, rng)
        print(f"{field}: {surveys[field]['rows']} rows, {time.perf_counter() - started:.0f} s", flush=True)
        figures = figures_of(surveys)
        details = {name: {"missed_most": worst(found), **found} for name, found in surveys.items()}
        for found in details.values():
            del found["trials"]
        report({"weights": asked.weights, "figures": figures, "fields": details}, asked.out)
    for name, figure in figures.items():
        if name == "found_by_distance":
            for distance, value in figure.items():
                print(f"  {distance + ' from a seam':40}{said(value)}, expected {value['expected']}")
        else:
            print(f"{name:42}{said(figure) if isinstance(figure, dict) and 'low' in figure else figure}")


if __name__ == "__main__":
    main()
