"""Large galaxies: one row each, and the right class, from real images.

    python tests/benchmarks/large_galaxies.py --out large.json            # all four parts
    python tests/benchmarks/large_galaxies.py --only hudf --previews .    # with a picture to look at

ngc6976   the three galaxies of NGC 6976's field, enlarged 2, 4 and 8 times, the declared scale kept at 0.396"/px
cutouts   galaxies of the test split, enlarged to 300 to 1500 px and added to the real sky of run 4192
hcg7      a picture of SkyServer: four galaxies within 2", none of the artefacts
hudf      the Hubble Ultra Deep Field: the two largest galaxies, and none of its bright ones twice

A galaxy's row is the largest one whose footprint holds its middle.  It is *one row* if no other one is a double or a
piece of it: centred in its footprint without naming a `host`, or with a tenth of its area there.  Counted beside that,
but for those that the same sky shows without the galaxy: smaller rows *on it* (they name a host: companions, stars,
knots), and *around it* (for the cutouts: centred in the true mask, not in the footprint).
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from catalogues import doubles, options, polygons, rate, report, said, search
from PIL import Image

from training.stamps import make_stamp, read_labels, resize
from training.stretch import FRAME_IRG

NGC6976 = "sdss_313.17-5.69_ngc6976"
SKY = "sdss_351.65+0.10_run4192"
SCALE = 0.396
HCG7 = {"NGC 192": (9.80596, 0.86433), "NGC 196": (9.82433, 0.91275), "NGC 197": (9.82829, 0.89192)}
HCG7["NGC 201"] = (9.89508, 0.85989)
HCG7_POSITION = {"ra": 9.81625, "dec": 0.88806, "pixel_scale": 0.703125}
# Boxes y0, x0, y1, x1 of what is no galaxy there: two trails and the blue bar.
ARTEFACTS = {"trail, upper right": (105, 940, 165, 1024), "blue bar": (205, 995, 225, 1024)}
ARTEFACTS["red and violet stars, lower right"] = (880, 900, 980, 940)


LEAST_PIECE = 0.1  # of a galaxy's area
TOLD = ["y", "x", "area_pix", "score", "host"]  # of other rows


def row_of(table, shapes, y, x):
    """Position of the largest row whose footprint holds a point; None if there is none."""
    holds = np.flatnonzero(shapely.contains_xy(shapes, x, y)) if len(shapes) else []
    return int(holds[np.argmax(shapely.area(shapes[holds]))]) if len(holds) else None


def rows_on(table, shapes, row, truth):
    """Positions of rows other than a galaxy's: doubles or pieces of it, smaller ones on it, and around it."""
    inside, around = (shapely.contains_xy(shape, table["x"], table["y"]) for shape in (shapes[row], truth))
    large = shapely.area(shapely.intersection(shapes, shapes[row])) >= LEAST_PIECE * shapely.area(shapes[row])
    hosted = table["host"].to_numpy() > 0
    doubles = large | (inside & ~hosted)
    kinds = {"doubles": doubles, "on_it": inside & ~doubles, "around_it": around & ~inside & ~doubles}
    return {kind: [i for i in np.flatnonzero(which).tolist() if i != row] for kind, which in kinds.items()}


def outcome(table, y, x, label, truth=None, known=None):
    """What became of one galaxy.

    Parameters
    ----------
    table : DataFrame
        The catalogue.
    y, x : float
        Its middle.
    label : str
        Its class.
    truth : shapely Polygon, optional
        Its true outline; that of its row by default.
    known : (N, 2) ndarray, optional
        Places y, x of rows that are there without the galaxy.

    Returns
    -------
    dict
    """
    shapes = polygons(table)
    row = row_of(table, shapes, y, x)
    if row is None:
        return {"found": False, "one_row": False, "right_class": False}
    others = rows_on(table, shapes, row, shapes[row] if truth is None else truth)
    if known is not None and len(known):
        places = table[["y", "x"]].to_numpy()
        new = {i for i in range(len(table)) if np.hypot(*(known - places[i]).T).min() > 3}
        others = {kind: [i for i in rows if i in new] for kind, rows in others.items()}
    said_of = table.iloc[row]
    return {
        "found": True,
        "one_row": not others["doubles"],
        "right_class": bool(said_of["class"] == label),
        "score": round(float(said_of["score"]), 3),
        "p_spiral": round(float(said_of["p_spiral"]), 3),
        "side": int(max(said_of["y_max"] - said_of["y_min"], said_of["x_max"] - said_of["x_min"])),
        "level": int(said_of["level"]),
        "flags": int(said_of["flags"]),
    } | {kind: table.iloc[rows][TOLD].round(2).to_dict("records") for kind, rows in others.items()}


def pooled(cases):
    """Rates over outcomes."""
    return {
        "found": rate(sum(c["found"] for c in cases), len(cases)),
        "one_row": rate(sum(c["one_row"] for c in cases), len(cases)),
        "right_class": rate(sum(c["found"] and c["right_class"] for c in cases), sum(c["found"] for c in cases)),
    }


def more_rows(cases):
    """How many rows there are beside those of the galaxies themselves, by kind."""
    return {kind: sum(len(c.get(kind, [])) for c in cases) for kind in OTHERS}


def ngc6976(asked):
    """Three spirals, enlarged; of the field the part that holds them and that nothing was trained on."""
    folder = asked.data / "fields" / NGC6976
    field = Image.open(folder / "field.jpg").convert("RGB")
    box = (0, 0, *field.size) if asked.whole else (0, 744, 1100, field.height)
    truth = pd.read_csv(folder / "galaxies.csv")
    cases = []
    for factor in (1, 2, 4, 8):
        part = field.crop(box)
        part = part.resize((part.width * factor, part.height * factor), Image.Resampling.BICUBIC)
        table = search(np.asarray(part), asked.weights, ra=313.17, dec=-5.69, pixel_scale=SCALE)
        for _, galaxy in truth.iterrows():
            y, x = ((galaxy[axis] - edge + 0.5) * factor - 0.5 for axis, edge in (("y", box[1]), ("x", box[0])))
            cases.append({"name": galaxy["name"], "factor": factor} | outcome(table, y, x, galaxy["class"]))
    enlarged = [case for case in cases if case["factor"] > 1]
    return {"cases": cases, "rates": pooled(enlarged), "other_rows": more_rows(enlarged)}


def cutouts(asked):
    """Large galaxies of the test split on real sky, enlarged to sizes spread evenly in their logarithm."""
    labels = read_labels(asked.data)
    labels = labels[(labels["split"] == "test") & (labels["confident"] == 1)]
    labels = labels[labels["label"].isin(["spiral", "elliptical"])]
    field = np.asarray(Image.open(asked.data / "fields" / SKY / "field.jpg").convert("RGB"))
    # Mirrored downwards, so that the largest ones have sky around them.
    sky = FRAME_IRG.invert(np.concatenate([field, field[::-1]]))
    bare = search(FRAME_IRG.render(sky), asked.weights)[["y", "x"]].to_numpy()
    rng = np.random.default_rng(asked.seed)
    cases = []
    for label in ("spiral", "elliptical"):
        largest = labels[labels["label"] == label].sort_values("a_2sigma_arcsec", ascending=False)
        stamps = (stamp for stamp in map(make_stamp, largest.to_dict("records")) if not isinstance(stamp, str))
        sizes = rng.permutation(np.geomspace(300, 1500, asked.galaxies // 2))
        for size, stamp in zip(sizes, stamps, strict=False):
            cases.append({"id": stamp["id"], "label": label} | on_sky(stamp, label, size, sky, bare, rng, asked))
    return {"cases": cases, "rates": pooled(cases), "other_rows": more_rows(cases)}


def on_sky(stamp, label, size, sky, bare, rng, asked):
    """Outcome of one galaxy, enlarged and added to a window of the sky."""
    factor = size / stamp["side"]
    shape = tuple(round(n * factor) for n in stamp["mask"].shape)
    light = resize(stamp["light"].astype(np.float32), shape)
    mask = resize(stamp["mask"].astype(np.float32)[..., None], shape)[..., 0] > 0.5
    window = [min(max(768, n + 200), limit) for n, limit in zip(shape, sky.shape, strict=False)]
    origin = [int(rng.integers(0, limit - n + 1)) for n, limit in zip(window, sky.shape, strict=False)]
    y0, x0 = (int(rng.integers(0, max(1, n - m + 1))) for n, m in zip(window, shape, strict=True))
    picture = sky[origin[0] : origin[0] + window[0], origin[1] : origin[1] + window[1]].copy()
    target = picture[y0 : y0 + shape[0], x0 : x0 + shape[1]]
    target += light[: target.shape[0], : target.shape[1]]
    table = search(FRAME_IRG.render(picture), asked.weights)
    middle = np.argwhere(mask).mean(axis=0) + [y0, x0]
    result = outcome(table, *middle, label, _outline(mask, y0, x0), bare - origin)
    return {"enlarged_to": round(size), "factor": round(float(factor), 2)} | result


def _outline(mask, y0, x0):
    from surveycat.footprint import Footprint

    print_ = Footprint.from_mask(mask, (y0, x0), 0, (y0 + mask.shape[0], x0 + mask.shape[1]))
    return shapely.Polygon(np.column_stack(print_.outline))


def hcg7(asked):
    """A group of four large galaxies as SkyServer shows it."""
    from astropy.coordinates import SkyCoord

    path = asked.data / "wild" / "A" / "sdss_hcg7_12arcmin_1024.jpg"
    table = search(path, asked.weights, **HCG7_POSITION, preview=_preview(asked, "hcg7"), overwrite=True)
    rows = SkyCoord(table["ra"], table["dec"], unit="deg")
    away = {name: rows.separation(SkyCoord(*position, unit="deg")).arcsec for name, position in HCG7.items()}
    nearest = [int(np.argmin(apart)) for apart in away.values()]
    places, cases = table[["y", "x"]].to_numpy(), []
    for (name, apart), best in zip(away.items(), nearest, strict=True):
        case = {"name": name, "arcsec": round(float(apart[best]), 2), "rows_within_2_arcsec": int((apart < 2).sum())}
        others = places[[i for i in nearest if i != best]]  # NGC 196 and 197 overlap
        cases.append(case | outcome(table, *places[best], table["class"][best], known=others))
        cases[-1] |= {"class": table["class"][best], "found": bool(apart[best] < 2)}
    artefacts = {}
    for name, (y0, x0, y1, x1) in ARTEFACTS.items():
        inside = table["y"].between(y0, y1) & table["x"].between(x0, x1)
        artefacts[name] = table[inside][["y", "x", "score", "area_pix"]].round(2).to_dict("records")
    return {
        "cases": cases,
        "rates": {"found": pooled(cases)["found"], "one_row": pooled(cases)["one_row"]},
        "artefacts": artefacts,
        "rows": len(table),
    }


def hudf(asked):
    """The picture on which the paper's authors show their model, which misses its two largest galaxies."""
    folder = asked.data / "fields" / "hudf"
    table = search(folder / "field.jpg", asked.weights, preview=_preview(asked, "hudf"), overwrite=True)
    bright = pd.read_csv(folder / "bright.csv")
    cases, twice = [], []
    for _, each in bright[bright["kind"] == "galaxy"].iterrows():
        inner = np.flatnonzero(np.hypot(table["x"] - each["x"], table["y"] - each["y"]) < each["r50_px"])
        case = {"id": int(each["id"]), "found": bool(len(inner)), "rows": len(inner)}
        cases.append(case | {"published_model": each["published_model"]})
        if len(inner) > 1:
            twice.append(case | {"x": each["x"], "y": each["y"], "r50": each["r50_px"]})
    two = [outcome(table, each["y"], each["x"], "spiral") for _, each in bright[:2].iterrows()]
    return {
        "largest_two": [{"id": k} | case for k, case in enumerate(two)],
        "rates": {"found": rate(sum(c["found"] for c in cases), len(cases))},
        "twice": twice,
        "doubled_rows": [table.iloc[list(pair)][["y", "x", "area_pix"]].to_dict("records") for pair in doubles(table)],
        "rows": len(table),
    }


def _preview(asked, name):
    return asked.previews and asked.previews / f"{name}.png"


VERDICTS, OTHERS = ("found", "one_row", "right_class"), ("doubles", "on_it", "around_it")
PARTS = {"ngc6976": ngc6976, "cutouts": cutouts, "hcg7": hcg7, "hudf": hudf}


def show(part, figures):
    """Print the figures of one part."""
    for case in figures.get("cases", []) if part != "hudf" else figures["largest_two"]:
        marks = "".join(key[0] if case.get(key) else "-" for key in VERDICTS)
        rest = {k: v for k, v in case.items() if k not in (*VERDICTS, *OTHERS)}
        print(f"  {marks} {rest}", *(f"{kind}: {len(case[kind])}" for kind in OTHERS if case.get(kind)))
    for name, value in figures["rates"].items():
        print(f"{part}: {name:14}{said(value)}")
    for name in ("other_rows", "artefacts", "twice", "doubled_rows"):
        if name in figures:
            print(f"{part}: {name}: {figures[name]}")


def main():
    """Run the parts, print what became of each galaxy, write JSON."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--galaxies", type=int, default=40, help="number of enlarged cutouts")
    parser.add_argument("--whole", action="store_true", help="enlarge the whole field of NGC 6976 (8 times: 585 MB)")
    parser.add_argument("--previews", type=Path, help="folder for pictures of hcg7 and hudf")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    figures = {}
    for part in asked.only:
        started = time.perf_counter()
        figures[part] = PARTS[part](asked)
        show(part, figures[part])
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        report({"weights": asked.weights, **figures}, asked.out)


if __name__ == "__main__":
    main()
