"""Artificial galaxies and stars on the test field: completeness and contamination with thousands of objects."""

import numpy as np

from surveycat import inject
from training.evaluation import plots
from training.evaluation.fields import EPOCHS
from training.evaluation.figures import rate, rates_by

ZERO_POINT = 23.54  # AB magnitude in r of one unit of white: the field's picture was made with 2.6 a nanomaggy
MAGNITUDES = (17.0, 21.0)
EACH = 1000  # galaxies, and stars, a magnitude
PART = 250  # galaxies, and stars, of one call
SIZES = (1.4, 2.0, 2.8, 4.0, 5.6)  # half-light radius before seeing, px: what galaxies of these magnitudes have


def section(subject, page):
    """1000 artificial galaxies and 1000 stars a magnitude on the test field, the fainter the more of them lost."""
    total = EACH * int(MAGNITUDES[1] - MAGNITUDES[0])
    total = total if subject.limit is None else min(total, subject.limit)
    kind, magnitude, size, found = [], [], [], []
    for number in range(-(-total // PART)):
        objects = one_part(subject, min(PART, total - number * PART), number)
        kind += list(objects["kind"])
        magnitude += list(objects["magnitude"])
        size += list(objects["half_light_radius"].value)
        found += list(objects["found"])
        if subject.out_of_time:
            break
    kind, magnitude, size, found = (np.array(column) for column in (kind, magnitude, size, found))
    galaxy = kind == "galaxy"
    edges = np.arange(MAGNITUDES[0], MAGNITUDES[1] + 0.1, 0.5)
    figures = {
        "galaxies_found_by_magnitude": rates_by(magnitude[galaxy], found[galaxy], edges),
        "stars_catalogued_by_magnitude": rates_by(magnitude[~galaxy], found[~galaxy], edges),
        "galaxies_found_by_half_light_radius": rates_by(size[galaxy], found[galaxy], SIZES),
    }
    for limit in (18.5, 19.5, 20.0):
        figures[f"galaxies_brighter_than_{limit}"] = rate(found[galaxy & (magnitude < limit)])
    for limit in (19.0, 20.0):
        figures[f"stars_catalogued_brighter_than_{limit}"] = rate(found[~galaxy & (magnitude < limit)])
    lines = {
        "galaxies found": figures["galaxies_found_by_magnitude"],
        "stars": figures["stars_catalogued_by_magnitude"],
    }
    page.plot("rates", "Artificial galaxies found and stars catalogued", plots.rates, lines, "r", "rate")
    return figures


def one_part(subject, count, number):
    """Objects of one call, less those that lie on an object of the field."""
    result = inject(
        subject.data / "fields" / EPOCHS["run4192"] / "field.jpg",
        galaxies=count,
        stars=count,
        magnitudes=MAGNITUDES,
        sizes=(SIZES[0], SIZES[-1]),
        zero_point=ZERO_POINT,
        seed=subject.seed + number,
        weights=str(subject.weights),
    )
    return result.objects[~np.asarray(result.objects["on_object"])]
