"""Real fields of which nothing was trained on: completeness, purity, stars, repeats, stretches, Hubble's picture."""

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from training.evaluation import plots
from training.evaluation.figures import fraction, rate, rates_by

EPOCHS = {"run4192": "sdss_351.65+0.10_run4192", "run6377": "sdss_351.65+0.10_run6377"}
RADIUS = 2.0 / 0.396  # px: 2 arcsec
LIMITS = (18.5, 19.0, 19.5, 20.0, 20.5)
MAGNITUDES = (16, 17, 18, 18.5, 19, 19.5, 20, 20.5)
STAR_MAGNITUDES = (14, 15, 16, 17, 18, 19, 20, 21)
R50_EDGES = (1.5, 1.8, 2.0, 2.25, 2.5, 3.0, 4.0, 8.0)  # px, seeing included; a star has 1.5 to 1.7
SURE = 0.7
FIRST_ROW = 744  # of the fields whose upper part may be trained on
KEPT, CUTS = 0.95, (1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4)  # px, of half-light radii in the baseline
HALO = 30.0  # px around a saturated star of r = 13, growing by 10 ** 0.2 a magnitude


# Positions ------------------------------------------------------------------------------------------------


def distances(x, y, to_x, to_y):
    """Distance in px of every pair, shape (N, M)."""
    return np.hypot(np.asarray(x, float)[:, None] - np.asarray(to_x), np.asarray(y, float)[:, None] - np.asarray(to_y))


def nearest(x, y, to_x, to_y):
    """Distance in px from each (x, y) to the nearest of other points, and which one that is.

    Parameters
    ----------
    x, y : array_like, shape (N,)
    to_x, to_y : array_like, shape (M,)

    Returns
    -------
    distance : ndarray, shape (N,)
        Infinite where there is none.
    index : ndarray of int, shape (N,)
    """
    if not len(to_x):
        return np.full(len(x), np.inf), np.zeros(len(x), int)
    apart = distances(x, y, to_x, to_y)
    return apart.min(axis=1), apart.argmin(axis=1)


def place(table):
    """Pixel columns x, y of a catalogue as plain arrays."""
    return table["x"].value, table["y"].value


def below(table, row=FIRST_ROW):
    """The part of a catalogue at or below a row of the picture."""
    return table[table["y"].value >= row]


# The field with truth -------------------------------------------------------------------------------------


def read_truth(folder):
    """Galaxies, stars and ambiguous objects of one epoch, and the LSST detections, by name of the table."""
    names = ("galaxies", "stars", "ambiguous", "lsst_detections_r")
    return {name: pd.read_csv(folder / f"{name}.csv") for name in names}


def epoch_figures(x, y, truth):
    """Completeness by magnitude and size, and stars catalogued, of one epoch of the test field.

    Parameters
    ----------
    x, y : ndarray, shape (N,)
        Positions of a catalogue, px.
    truth : dict of pandas.DataFrame
        From `read_truth`.

    Returns
    -------
    dict
        The figures.
    """
    galaxies = truth["galaxies"]
    distance, _ = nearest(galaxies["x"], galaxies["y"], x, y)
    found, magnitude = distance <= RADIUS, galaxies["petromag_r"]
    figures = {"rows": len(x)}
    for limit in LIMITS:
        figures[f"galaxies_brighter_than_{limit}"] = rate(found[magnitude < limit])
    for limit in (19.0, 20.0):
        taken, usable = stars_taken(x, y, truth, limit)
        figures[f"stars_catalogued_brighter_than_{limit}"] = fraction(int(taken.sum()), int(usable.sum()))
    taken, usable = stars_taken(x, y, truth, np.inf)
    magnitudes = truth["stars"]["psfmag_r"].to_numpy()
    figures["stars_catalogued_by_magnitude"] = rates_by(magnitudes[usable], taken[usable], STAR_MAGNITUDES)
    figures["completeness_by_magnitude"] = rates_by(magnitude, found, MAGNITUDES)
    figures["completeness_by_half_light_radius"] = rates_by(galaxies["r50_px"], found, R50_EDGES)
    return figures


def stars_taken(x, y, truth, limit):
    """Which unsaturated stars brighter than a limit have a row within 2 arcsec that is no galaxy's.

    Parameters
    ----------
    x, y : ndarray, shape (N,)
        Positions of a catalogue, px.
    truth : dict of pandas.DataFrame
        From `read_truth`.
    limit : float
        Magnitude.

    Returns
    -------
    taken, usable : ndarray of bool
        For every star of the list; what lies within the radius of an ambiguous object is not counted as taken.
    """
    stars, galaxies, unclear = truth["stars"], truth["galaxies"], truth["ambiguous"]
    gap, row = nearest(stars["x"], stars["y"], x, y)
    on_galaxy, _ = nearest(stars["x"], stars["y"], galaxies["x"], galaxies["y"])
    unsure = (distances(stars["x"], stars["y"], unclear["x"], unclear["y"]) <= unclear["radius_px"].to_numpy()).any(1)
    # a row that is a real galaxy's is no star, however near the star is
    row_gap, _ = nearest(x, y, galaxies["x"], galaxies["y"])
    own = row_gap[row] > RADIUS if len(x) else np.zeros(len(stars), bool)
    usable = ((stars["psfmag_r"] < limit) & (stars["saturated"] == 0)).to_numpy()
    return (gap <= RADIUS) & own & ~unsure & (on_galaxy > RADIUS) & usable, usable


def what_rows_are(table, truth):
    """Say what each row of a catalogue of the test field is, from all that is known of it.

    Parameters
    ----------
    table : QTable
        Catalogue.
    truth : dict of pandas.DataFrame
        From `read_truth`.

    Returns
    -------
    pandas.DataFrame
        ``id``, ``x``, ``y``, ``score``, ``class``, ``side`` (px), ``magnitude`` (r, of the galaxy or the LSST detection
        there, NaN for none) and ``what``: galaxy, ambiguous, halo (of a saturated star), star, extended for LSST,
        point for LSST, or unknown.
    """
    x, y = place(table)
    what = np.full(len(table), "unknown", object)
    lsst = truth["lsst_detections_r"]
    gap, index = nearest(x, y, lsst["x"], lsst["y"])
    kind = lsst["extendedness"].to_numpy()[index] if len(lsst) else np.zeros(len(x))
    what[(gap <= RADIUS) & (kind == 0)] = "point for LSST"
    what[(gap <= RADIUS) & (kind == 1)] = "extended for LSST"
    stars = truth["stars"]
    what[nearest(x, y, stars["x"], stars["y"])[0] <= RADIUS] = "star"
    saturated = stars[stars["saturated"] == 1]
    reach = HALO * 10 ** (0.2 * (13.0 - np.clip(saturated["psfmag_r"].to_numpy(), 11.0, 16.0)))
    what[(distances(x, y, saturated["x"], saturated["y"]) <= reach).any(axis=1)] = "halo"
    unclear = truth["ambiguous"]
    what[(distances(x, y, unclear["x"], unclear["y"]) <= unclear["radius_px"].to_numpy()).any(axis=1)] = "ambiguous"
    galaxies = truth["galaxies"]
    of_galaxy, index_of_galaxy = nearest(x, y, galaxies["x"], galaxies["y"])
    what[of_galaxy <= RADIUS] = "galaxy"
    magnitude = (
        np.where(gap <= RADIUS, lsst["apmag_r"].to_numpy()[index], np.nan) if len(lsst) else np.full(len(x), np.nan)
    )
    magnitude[of_galaxy <= RADIUS] = galaxies["petromag_r"].to_numpy()[index_of_galaxy[of_galaxy <= RADIUS]]
    side = np.maximum(table["x_max"].value - table["x_min"].value, table["y_max"].value - table["y_min"].value)
    return pd.DataFrame(
        {
            "id": table["id"],
            "x": x,
            "y": y,
            "score": table["score"],
            "class": table["class"],
            "side": side,
            "magnitude": magnitude,
            "what": what,
        }
    )


def repeats(first, second, radius_arcsec=2.0, score=SURE):
    """Objects of one epoch that the other has too.

    Parameters
    ----------
    first, second : QTable
        Catalogues of the same sky.
    radius_arcsec : float
        Match radius.
    score : float
        Objects of `first` above this score are looked for.

    Returns
    -------
    dict
        The rate.
    """
    from astropy.coordinates import SkyCoord

    sure = first[first["score"] > score]
    if not len(sure) or not len(second):
        return fraction(0, len(sure))
    _, separation, _ = SkyCoord(sure["ra"], sure["dec"]).match_to_catalog_sky(SkyCoord(second["ra"], second["dec"]))
    return rate(separation.arcsec < radius_arcsec)


def same_class(tables, truths, limit=19.0):
    """Galaxies brighter than a limit that both epochs have: in how many is the class the same?"""
    classes = []
    for table, truth in zip(tables, truths, strict=True):
        galaxies = truth["galaxies"]
        galaxies = galaxies[galaxies["petromag_r"] < limit]
        gap, row = nearest(galaxies["x"], galaxies["y"], *place(table))
        sure = (gap <= RADIUS) & (np.asarray(table["score"])[row] > SURE) if len(table) else gap <= RADIUS
        named = np.asarray(table["class"])[row[sure]] if len(table) else []
        classes.append(dict(zip(galaxies["id"][sure], named, strict=True)))
    both = classes[0].keys() & classes[1].keys()
    return rate([classes[0][one] == classes[1][one] for one in both])


def section(subject, page):
    """Fields: completeness and purity against magnitude and size, stars, repeats in two epochs; M2 and NGC 6976."""
    tables, truths, figures = [], [], {}
    for epoch, folder in EPOCHS.items():
        table, truth = subject.catalogue(folder), read_truth(subject.data / "fields" / folder)
        tables.append(table)
        truths.append(truth)
        kinds = what_rows_are(table, truth)
        figures[epoch] = epoch_figures(*place(table), truth) | purity_figures(kinds)
        page.table(f"{epoch}_rows", kinds, f"What each row of {epoch} is")
        unmatched = kinds[(kinds["score"] > SURE) & (kinds["what"] != "galaxy")]
        picture = sheet(subject.field(folder), unmatched)
        page.picture(f"{epoch}_unmatched", f"Rows of {epoch} with score > {SURE} that are not in galaxies.csv", picture)
        page.overlay(f"{epoch}_catalogue", f"The catalogue of {epoch} (Fig. 15)", table, subject.field(folder))
    figures["run4192_score_0.7_repeated"] = repeats(*tables)
    figures["run6377_score_0.7_repeated"] = repeats(*tables[::-1])
    figures["same_class_brighter_than_19"] = same_class(tables, truths)
    for name, xlabel in (("magnitude", "r, Kron"), ("half_light_radius", "half-light radius with seeing, px")):
        lines = {epoch: figures[epoch][f"completeness_by_{name}"] for epoch in EPOCHS}
        page.plot(f"by_{name}", f"Completeness against {xlabel}", plots.rates, lines, xlabel, "completeness")
    for name, xlabel in (("side", "larger side, px"), ("magnitude", "r, Kron or LSST aperture")):
        lines = {epoch: figures[epoch][f"purity_by_{name}"] for epoch in EPOCHS}
        caption = f"Rows that are galaxies, or extended for LSST, against {xlabel}"
        page.plot(f"purity_by_{name}", caption, plots.rates, lines, xlabel, "purity")
    lines = {epoch: figures[epoch]["stars_catalogued_by_magnitude"] for epoch in EPOCHS}
    page.plot("stars", "Unsaturated stars that have a row", plots.rates, lines, "r, PSF", "rate")
    return figures | other_fields(subject)


def purity_figures(kinds):
    """What the rows of `what_rows_are` are, and the purity by side, ambiguous rows left out."""
    clear = kinds[kinds["what"] != "ambiguous"]
    good = clear["what"].isin(["galaxy", "extended for LSST"])
    return {
        "rows_by_kind": {str(name): int(count) for name, count in kinds["what"].value_counts().items()},
        "rows_in_halos": int((kinds["what"] == "halo").sum()),
        "purity": rate(good),
        "purity_score_0.7": rate(good[clear["score"] > SURE]),
        "purity_by_side": rates_by(clear["side"], good, (0, 8, 12, 16, 24, 48, 256)),
        "purity_by_magnitude": rates_by(clear["magnitude"], good, (*MAGNITUDES, 21, 22)),
    }


def other_fields(subject):
    """Rows in the M2 field and around NGC 6976, below the rows that may be trained on."""
    figures, folder = {}, "sdss_313.17-5.69_ngc6976"
    truth = pd.read_csv(subject.data / "fields" / folder / "galaxies.csv")
    truth = truth[truth["y"] >= FIRST_ROW]
    table = subject.catalogue(folder)
    distance, _ = nearest(truth["x"], truth["y"], *place(table))
    kept = below(table)
    figures["ngc6976_rows_at_y_744"] = len(kept)
    figures["ngc6976_large_galaxies"] = rate(distance < 10)
    figures["ngc6976_rows_on_large_galaxies"] = (distances(truth["x"], truth["y"], *place(kept)) < 30).sum(1).tolist()
    table = below(subject.catalogue("sdss_323.34-0.73_m2"))
    figures["m2_rows_at_y_744"] = len(table)
    figures["m2_rows_in_cluster_at_y_744"] = int((table["x"].value < 700).sum())
    return figures


def sheet(path, rows, most=48, side=64, zoom=2):
    """Contact sheet of places in a picture, each with its number, score and kind.

    Parameters
    ----------
    path : path
        Picture.
    rows : pandas.DataFrame
        ``id``, ``x``, ``y``, ``score``, ``what``.
    most : int
        Places at most.
    side, zoom : int
        Pixels around each place, and their enlargement.

    Returns
    -------
    PIL.Image.Image
        The sheet.
    """
    rows = rows.head(most)
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        cells = []
        for row in rows.itertuples():
            x0, y0 = round(row.x) - side // 2, round(row.y) - side // 2
            crop = picture.crop((x0, y0, x0 + side, y0 + side)).resize(
                (side * zoom, side * zoom), Image.Resampling.NEAREST
            )
            cells.append((crop, f"{row.id}  {row.score:.2f}", str(row.what)))
    return contact_sheet(cells, side * zoom)


def contact_sheet(cells, side, columns=8):
    """Pictures in rows, with lines of text below each, as many as the longest list of them has.

    Parameters
    ----------
    cells : list of (PIL.Image.Image, str, ...)
        Pictures of at most `side` pixels, and their lines.
    side, columns : int
        Size of a picture, pictures in a row.

    Returns
    -------
    PIL.Image.Image
        The sheet; empty but not of size 0 where there are no cells.
    """
    columns = max(min(columns, len(cells)), 1)
    lines = -(-max(len(cells), 1) // columns)
    height = side + 4 + 13 * max((len(texts) for _, *texts in cells), default=0)
    page = Image.new("RGB", (columns * (side + 4), lines * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (picture, *texts) in enumerate(cells):
        x, y = number % columns * (side + 4), number // columns * height
        page.paste(picture, (x, y))
        for line, text in enumerate(texts):
            draw.text((x + 2, y + side + 1 + 13 * line), text[: side // 6], fill="black")
    return page


# Stretches ------------------------------------------------------------------------------------------------


def stretches(subject, page):
    """Low-contrast stretches of two fields against the high-contrast ones: the same galaxies at y >= 744?"""
    figures = {}
    for name, folder in (("run1140", "sdss_183.76-3.44_run1140"), ("ngc6976", "sdss_313.17-5.69_ngc6976")):
        high, low = (below(subject.catalogue(folder, file)) for file in ("field.jpg", "field_low.jpg"))
        figures[name] = {
            "rows_high": len(high),
            "rows_low": len(low),
            "high_score_0.7_in_low": repeated_in_pixels(high, low),
            "low_score_0.7_in_high": repeated_in_pixels(low, high),
        }
    return figures


def repeated_in_pixels(first, second):
    """Rate of sure rows of one catalogue that another one of the same pixels has within 2 arcsec."""
    sure = first[first["score"] > SURE]
    return rate(nearest(*place(sure), *place(second))[0] <= RADIUS)


# Hubble ---------------------------------------------------------------------------------------------------


def hudf(subject, page):
    """Out of domain: the Hubble Ultra Deep Field, beside the published model (Fig. 15)."""
    table = subject.catalogue("hudf")
    bright = pd.read_csv(subject.data / "fields" / "hudf" / "bright.csv")
    rows = rows_on(bright, *place(table))
    listed = bright["published_model"].notna()
    is_galaxy, is_star = bright["kind"] == "galaxy", bright["kind"] == "star"
    largest = listed & is_galaxy
    page.table("objects", bright.assign(rows=rows))
    x, y = place(table)
    page.table("rows", pd.DataFrame({"x": x, "y": y, "score": table["score"], "class": table["class"]}))
    missed = bright[largest & (rows == 0)]
    shown = missed.assign(score=0.0, what="missed")
    picture = sheet(subject.field("hudf"), shown, side=128, zoom=1)
    page.picture("missed", "The largest galaxies that are missed", picture)
    page.overlay("catalogue", "The catalogue of Hubble's picture (Fig. 15)", table, subject.field("hudf"))
    by_size = rates_by(bright.loc[is_galaxy, "r50_px"], rows[is_galaxy] > 0, (0, 5, 7, 10, 15, 40))
    page.plot(
        "by_size",
        "Completeness against half-light radius",
        plots.rates,
        by_size,
        "half-light radius, px",
        "completeness",
    )
    theirs = bright.loc[largest, "published_model"].str.contains("miss")
    return {
        "rows": len(table),
        "largest_57_found": rate(rows[largest] > 0),
        "largest_57_found_by_published_model": rate(~theirs),
        "largest_57_twice": int((rows[largest] > 1).sum()),
        "missed_ids": missed["id"].tolist(),
        "stars_catalogued": fraction(int((rows[is_star] > 0).sum()), int(is_star.sum())),
        "all_galaxies_found": rate(rows[is_galaxy] > 0),
        "galaxies_and_ambiguous_found": rate(rows[~is_star] > 0),
        "completeness_by_half_light_radius": by_size,
    }


def rows_on(objects, x, y):
    """How many rows of a catalogue each object has.

    Parameters
    ----------
    objects : pandas.DataFrame
        ``x``, ``y``, ``r50_px``.
    x, y : ndarray, shape (N,)
        Rows of the catalogue.

    Returns
    -------
    ndarray of int
        Rows within its half-light radius (5 px at least), each row counting for the nearest object only.
    """
    apart = distances(objects["x"], objects["y"], x, y)
    if not apart.size:
        return np.zeros(len(objects), int)
    reach = np.maximum(5.0, objects["r50_px"].to_numpy())
    mine = apart.argmin(axis=0) == np.arange(len(objects))[:, None]
    return ((apart <= reach[:, None]) & mine).sum(axis=1)


# What a user would do instead -----------------------------------------------------------------------------


def sep_baseline(subject, page):
    """What a user would do instead: detection with sep on the JPEG, and a half-light radius cut against stars."""
    figures, curves = {"cut": f"the largest that keeps {KEPT} of the galaxies r < 19.5, which favours it"}, {}
    for epoch, folder in EPOCHS.items():
        path = subject.data / "fields" / folder
        x, y, radius = sep_objects(path / "field.jpg")
        truth = read_truth(path)
        cut = best_cut(x, y, radius, truth)
        figures[epoch] = {"cut_px": cut} | epoch_figures(x[radius > cut], y[radius > cut], truth)
        for cut in CUTS:
            one = epoch_figures(x[radius > cut], y[radius > cut], truth)
            curves.setdefault(f"{epoch}, galaxies r < 19.5", []).append(one["galaxies_brighter_than_19.5"])
            curves.setdefault(f"{epoch}, stars r < 19", []).append(one["stars_catalogued_brighter_than_19.0"])
    page.plot(
        "cuts", "Objects of sep kept by a cut in half-light radius", plots.curves, CUTS, curves, "cut, px", "rate"
    )
    return figures


def best_cut(x, y, radius, truth, kept=KEPT):
    """The largest cut in half-light radius that keeps a given share of the galaxies brighter than r = 19.5.

    Parameters
    ----------
    x, y, radius : ndarray, shape (N,)
        From `sep_objects`.
    truth : dict of pandas.DataFrame
        From `read_truth`.
    kept : float
        The share.

    Returns
    -------
    float
        Of `CUTS`, px.
    """
    share = [
        epoch_figures(x[radius > cut], y[radius > cut], truth)["galaxies_brighter_than_19.5"]["value"] for cut in CUTS
    ]
    return max((cut for cut, value in zip(CUTS, share, strict=True) if value >= kept), default=CUTS[0])


def sep_objects(path):
    """Detect with sep on the mean of the channels of a picture.

    Parameters
    ----------
    path : path
        Picture.

    Returns
    -------
    x, y, radius : ndarray, shape (N,)
        Position and radius of half of the isophotal light, px.
    """
    import sep

    with Image.open(path) as picture:
        values = np.ascontiguousarray(np.asarray(picture.convert("RGB"), np.float32).mean(axis=2))
    sep.set_extract_pixstack(2_000_000)
    background = sep.Background(values)
    above = values - background.back()
    found = sep.extract(above, 3.0, err=background.globalrms, minarea=5)
    radius, _ = sep.flux_radius(above, found["x"], found["y"], 6.0 * found["a"], 0.5, normflux=found["flux"], subpix=5)
    return found["x"], found["y"], radius
