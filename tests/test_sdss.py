"""SDSS as a reference, from a server on loopback with the manners of the real one; no test reaches the network."""

import re

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner
from skyserver_loopback import Loopback

from surveycat import sdss
from surveycat.cli import main
from surveycat.errors import OptionError, PositionError, ServiceError
from surveycat.match import match
from surveycat.skyserver import SkyServer
from surveycat.tablefile import read_table

FIRST = 1237653651835781245
SPECTRUM = 12898206190063153152  # beyond int64


def objects(n=40, ra=359.99, dec=2.0):
    """Objects a quarter of an arcminute apart, over RA 0; every third a star, every second with a spectrum."""
    result = []
    for i in range(n):
        place = {"ra": (ra + i / 240) % 360, "dec": dec + 0.001 * (i % 3)}
        photo = {"objID": FIRST + i, **place, "type": 6 if i % 3 == 0 else 3, "petroMag_r": 15 + i / 10}
        photo |= {f"modelMag_{band}": 16.0 for band in "ugriz"} | {"petroR50_r": 2.0, "petroR90_r": 4.0 + i}
        spectrum = {"specObjID": SPECTRUM + i, "z": 0.1, "zErr": 1e-4, "class": "GALAXY"} if i % 2 else {}
        result.append(place | {f"p.{k}": v for k, v in photo.items()} | {f"s.{k}": v for k, v in spectrum.items()})
    return result


def answers(things):
    """What a database with these objects answers to `sdss.query`."""

    def sql(text):
        after = int(re.search(r"p\.objID > (-?\d+)", text)[1])
        low, high = map(float, re.search(r"dec BETWEEN (\S+) AND (\S+)", text).groups())
        names = re.findall(r"([ps]\.\w+)(?: AS (\w+))?[,\s]", text.partition(" FROM ")[0] + " ")
        rows = [
            [thing.get(name, "null") for name, _ in names]
            for thing in things
            if thing["p.objID"] > after and low <= thing["dec"] <= high and in_range(thing["ra"], text)
        ]
        return [alias or name[2:] for name, alias in names], rows

    return sql


def in_range(ra, text):
    between = re.search(r"ra BETWEEN (\S+) AND (\S+)", text)
    if between:
        return float(between[1]) <= ra <= float(between[2])
    low, high = map(float, re.search(r"p\.ra > (\S+) OR p\.ra < ([\d.]+)", text).groups())
    return ra > low or ra < high


def client(server, **options):
    quick = {"backoff": 0.01, "rate": 1000, "query_rate": 1000, "attempts": 3, "timeout": 5, "query_timeout": 5}
    return SkyServer(server.url, **quick | options)


def catalogue(things, arcsec=0.3):
    """Every second object as our catalogue would have it, and one thing that SDSS does not know."""
    ra = np.array([thing["ra"] for thing in things[::2]] + [5.0]) + arcsec / 3600
    return Table({"ra": ra % 360, "dec": [thing["dec"] for thing in things[::2]] + [2.0]})


def test_match_with_sdss():
    """Each object gets the survey's numbers, identifiers exact, spectra where there are any."""
    things = objects()
    with Loopback(objects=things) as server:
        result = match(catalogue(things), "sdss", service=client(server))
    assert result["sdss_objID"].tolist() == [FIRST + i for i in range(0, 40, 2)] + [0]
    assert {
        "sdss_type",
        "sdss_petroMag_r",
        "sdss_modelMag_g",
        "sdss_petroR90_r",
        "sdss_spec_z",
        "sdss_spec_class",
    } < set(result.colnames)
    with Loopback(objects=things) as server:
        result = match(catalogue(things[1:]), "sdss", service=client(server))
    assert result["sdss_spec_specObjID"].tolist() == [str(SPECTRUM + i) for i in range(1, 40, 2)] + [""]
    assert [kind for kind, _ in server.requests] == ["CrossIdSearch"] * 2


@pytest.mark.parametrize("manner", ["partial", "html-200", "throttled", "cut", "busy-503", "empty"])
def test_bad_manners_do_not_lose_partners(manner, monkeypatch):
    """A partial or wrong answer must not look like objects that SDSS does not have."""
    monkeypatch.setattr("surveycat.skyserver.LONGEST_PAUSE", 0.05)
    things = objects()
    with Loopback(objects=things, manners=[manner]) as server:
        result = match(catalogue(things), "sdss", service=client(server))
    assert (np.asarray(result["match_flag"]) > 0).sum() == 20 and len(server.requests) > 1


def test_no_answer_is_an_error_and_no_file(tmp_path, monkeypatch):
    """Where SkyServer stays away there is one line, and nothing half-written."""
    monkeypatch.setattr("surveycat.skyserver.LONGEST_PAUSE", 0.05)
    with Loopback(objects=objects(), manners=["html-200"] * 9) as server, pytest.raises(ServiceError):
        match(catalogue(objects()), "sdss", tmp_path / "m.parquet", service=client(server))
    assert not any(tmp_path.iterdir())


def test_report_asks_for_the_whole_field(tmp_path):
    """Completeness needs the objects that we missed, so the field is asked for, in pieces, over RA 0."""
    things = objects()
    with Loopback(objects=things, sql=answers(things)) as server:
        service = client(server)
        plain = service.sql
        service.sql = lambda query, key: plain(query, key, row_limit=16)  # SkyServer cuts there
        server.row_limit = 16
        table = catalogue(things)[:-1]
        outline = "POLYGON ICRS 359.98 1.99 359.98 2.01 0.17 2.01 0.17 1.99"
        table.meta["inputs"] = [{"name": "field.jpg", "s_region": outline}]
        match(table, "sdss", report=tmp_path / "r", unmatched=tmp_path / "missed.ecsv", service=service)
    assert [kind for kind, _ in server.requests].count("SqlSearch") == 3
    missed = read_table(tmp_path / "missed.ecsv")
    assert sorted(missed["objID"].tolist()) == [FIRST + i for i in range(1, 40, 2)]
    assert "14 of these are stars" in (tmp_path / "r" / "report.txt").read_text()


@pytest.mark.parametrize("centre", [(0.0, 0.0), (359.99, 60.0), (10.0, -89.0), (200.0, 89.95)])
def test_query_holds_every_place_of_the_field(centre):
    """The box in RA and Dec must hold the field, wherever it lies; a box is larger, never smaller."""
    rng = np.random.default_rng(1)
    ra, dec = (
        centre[0] + rng.uniform(-0.2, 0.2, 300) / np.cos(np.radians(centre[1])),
        centre[1] + rng.uniform(-0.05, 0.05, 300),
    )
    corners = np.column_stack([ra % 360, dec])
    text = sdss.query(corners)
    low, high = map(float, re.search(r"dec BETWEEN (\S+) AND (\S+)", text).groups())
    assert all(low <= each <= high for each in dec) and all(in_range(each, text) for each in corners[:, 0])
    assert text.startswith("SELECT TOP 500000 p.objID") and "{after}" in text


def test_too_large_a_field_is_refused():
    """A catalogue of the whole sky is no field; the message says what to do without."""
    with pytest.raises(OptionError, match="match parts"):
        sdss.query(np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    with pytest.raises(OptionError, match="--radius 0: SDSS needs"):
        sdss.nearest(np.zeros(1), np.zeros(1), 0.0, None)


def test_catalogue_in_pixels_has_no_place_to_ask_for():
    """The message says what is missing, and nobody is asked."""
    with Loopback() as server, pytest.raises(PositionError, match="the catalogue: no columns with positions"):
        match(Table({"x": [1.0], "y": [2.0]}), "sdss", service=client(server))
    assert not server.requests


def test_command(tmp_path, monkeypatch):
    """`surveycat match cat sdss` with the server's address, as a user would give it."""
    things = objects()
    catalogue(things).write(tmp_path / "cat.ecsv")
    with Loopback(objects=things) as server:
        options = ["--out", tmp_path / "m.parquet", "--skyserver", server.url, "--no-cache"]
        result = CliRunner().invoke(main, ["match", str(tmp_path / "cat.ecsv"), "sdss", *map(str, options)])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("20 of 21 objects have a partner among the 20 of sdss")
