"""The client of SkyServer against a server on loopback with all the manners of the real one."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from skyserver_loopback import Loopback, Sky, text_picture

from surveycat.errors import OptionError, OutsideFootprint, PositionError, ServiceError
from surveycat.skyserver import SCALE, SkyServer, black_fraction, cutout_request, has_overlay

GALAXY = [150.0, 2.0, 2.0, 150.0]
OBJECTS = [
    {"ra": 150.0 + i / 100, "dec": 2.0, "p.objID": 1237653651835781245 + i, "p.ra": 150.0 + i / 100, "p.dec": 2.0}
    | ({"s.specObjID": 12898206190063153152 + i, "s.z": 0.1 * i} if i % 2 else {})
    for i in range(8)
]


def client(server, **options):
    """Give a client of a loopback server that does not wait long."""
    quick = {"backoff": 0.01, "rate": 1000, "query_rate": 1000, "attempts": 3, "timeout": 5, "query_timeout": 5}
    return SkyServer(server.url, **quick | options)


@pytest.fixture
def quick_retry(monkeypatch):
    """Shorten what a server may have us wait, so that tests need not."""
    monkeypatch.setattr("surveycat.skyserver.LONGEST_PAUSE", 0.05)


# Pictures -------------------------------------------------------------------------------------------------


def test_cutout_shows_the_place():
    """The position asked for comes to pixel (W/2, H/2), at the scale asked for, and nothing is painted on it."""
    with Loopback(Sky([GALAXY])) as server:
        cutout = client(server).cutout(150.0, 2.0, 200, 128, scale=0.5)
    assert cutout.pixels.shape == (128, 200, 3) and cutout.pixels.dtype == np.uint8
    assert np.unravel_index(cutout.pixels.sum(axis=2).argmax(), (128, 200)) == (64, 100)
    assert cutout.black == 0
    (kind, asked), *_ = server.requests
    assert kind == "getjpeg" and asked["opt"] == "" and float(asked["scale"]) == 0.5


@pytest.mark.parametrize(
    "manner",
    "text-200 error-500 html-200 proxy json-200 json-500 busy-429 busy-503 cut cut-unseen refuse garbage empty "
    "wrong-type damaged".split(),
)
def test_bad_answer_is_not_believed_and_asked_again(manner, quick_retry, tmp_path):
    """Whatever comes instead of a picture, with whatever status: it is neither given nor kept, the next one is."""
    with Loopback(Sky([GALAXY]), [manner, manner]) as server:
        first = client(server, cache=tmp_path).cutout(150.0, 2.0)
        assert len(server.requests) == 3
        again = client(server, cache=tmp_path).cutout(150.0, 2.0)
    assert len(server.requests) == 3  # the second one came from the cache
    assert first.pixels[128, 128, 0] > 100 and (first.pixels == again.pixels).all()


@pytest.mark.parametrize(
    "manner, said",
    [
        ("text-200", "text on black"),
        ("error-500", "HTTP 500 Timeout expired"),
        ("html-200", "a web page titled 'Skyserver Error' instead of a picture"),
        ("proxy", "a web page titled 'Guest WLAN' instead of a picture (Guest WLAN Please log in)"),
        ("json-500", "HTTP 500 Internal Server Error: no database"),
        ("busy-503", "HTTP 503 Service Unavailable"),
        ("cut", "no answer"),
        ("damaged", "the picture is damaged"),
        ("wrong-type", "application/octet-stream"),
        ("json-200", "an error instead of a picture: connection pool"),
        ("busy-429", "HTTP 429 Too Many Requests"),
        ("slow", "the answer did not end in 0.3 s"),
        ("hang", "no answer"),
        ("cut-unseen", "the picture is damaged"),
        ("refuse", "no answer (Remote end closed connection"),
        ("garbage", "the picture is damaged (cannot identify image file"),
        ("empty", "the picture is damaged"),
    ],
)
def test_what_stays_bad_is_said(manner, said, quick_retry):
    """After all attempts the error says, in one line, what came last and how often it was asked for."""
    timeout = 0.3 if manner in ("slow", "hang") else 5
    with Loopback(Sky([GALAXY]), [manner] * 3) as server, pytest.raises(ServiceError) as error:
        client(server, timeout=timeout).cutout(150.0, 2.0)
    assert said in str(error.value) and "3 attempts" in str(error.value) and "\n" not in str(error.value)
    assert server.url.removeprefix("http://") in str(error.value)


@pytest.mark.parametrize(
    "manner, said",
    [
        ("small", "64 x 64 pixels instead of 256 x 256"),
        ("overlay", "a grid is painted on the picture"),
        ("json-400", "refuses the request: HTTP 400 Bad Request: scale is missing"),
        ("html-404", "is the data release right"),
    ],
)
def test_what_cannot_get_better_is_not_asked_again(manner, said):
    """A wrong size, an overlay, a refusal: an error at once."""
    with Loopback(Sky([GALAXY]), [manner]) as server, pytest.raises(ServiceError, match=said):
        client(server).cutout(150.0, 2.0)
    assert len(server.requests) == 1


@pytest.mark.parametrize("manner", ["black", None])
def test_outside_of_the_footprint(manner):
    """404 with a picture of an error, and a wholly black picture with status 200, both mean: no image there."""
    nowhere = Sky([], inside=lambda ra, dec: np.array(False))
    with Loopback(nowhere, [manner]) as server, pytest.raises(OutsideFootprint, match="150.0"):
        client(server).cutout(150.0, 2.0)
    assert len(server.requests) == 1


def test_black_areas_are_reported():
    """What was never painted, beyond an edge of the survey, is measured."""
    half = Sky([GALAXY], inside=lambda ra, dec: (ra > 150.0) & (dec > 0))
    with Loopback(half) as server:
        cutout = client(server).cutout(150.0, 2.0)
    assert cutout.black == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("manner", ["slow", "hang"])
def test_waits_have_an_end(manner):
    """A server that drips or says nothing is left after the time-out, each time."""
    started = time.monotonic()
    with Loopback(Sky([GALAXY]), [manner] * 2) as server:
        cutout = client(server, timeout=0.3).cutout(150.0, 2.0)
    assert cutout.pixels[128, 128, 0] > 100
    assert time.monotonic() - started < 30


def test_no_server_is_one_line():
    """An address where nothing listens is named, with what went wrong."""
    with Loopback() as server:
        url = server.url
    with pytest.raises(ServiceError, match=r"127.0.0.1:\d+ \(getjpeg\): no answer \(.*refused.*2 attempts"):
        SkyServer(url, attempts=2, backoff=0.01).cutout(150.0, 2.0)


def test_retry_after_holds_everyone(monkeypatch):
    """When the server says how long to leave it alone, no request begins before, of whatever thread."""
    with Loopback(Sky([GALAXY]), ["busy-429"]) as server:
        ask = client(server)
        ask.cutout(150.0, 2.0)
    first, second = server.times
    assert second - first >= 0.9


def test_concurrency_is_bounded():
    """However many threads share a client, no more requests are under way than it allows."""
    with Loopback(Sky([GALAXY])) as server:
        ask = client(server, concurrency=2)
        threads = [threading.Thread(target=ask.cutout, args=(150.0 + i / 1000, 2.0)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(server.requests) == 12 and server.most_at_once <= 2


def test_rate_is_bounded():
    """Requests begin no faster than the rate allows."""
    with Loopback(Sky([GALAXY])) as server:
        ask = client(server, rate=50)
        for i in range(6):
            ask.cutout(150.0 + i / 1000, 2.0)
    assert server.times[-1] - server.times[0] >= 0.09


def test_many_cutouts_come_with_their_keys():
    """Each place gives a picture or its own error, and the list is taken from as needed."""
    taken = []

    def places():
        for i in range(20):
            taken.append(i)
            yield i, 150.0 + i / 100, 2.0

    def manners(kind, number, parameters):
        return "small" if parameters["ra"].startswith("150.05") else None

    with Loopback(Sky([GALAXY]), manners) as server:
        found = client(server, concurrency=2).cutouts(places(), width=64, height=64)
        outcomes = dict([next(found)])
        assert len(taken) <= 6
        outcomes |= dict(found)
    assert sorted(outcomes) == list(range(20))
    assert all(outcome.ra == 150.0 + i / 100 for i, outcome in outcomes.items())


@pytest.mark.parametrize(
    "asked, error, said",
    [
        ({"width": 63}, OptionError, "63 x 256 pixels; SkyServer makes 64 to 2048"),
        ({"height": 2049}, OptionError, "2049"),
        ({"scale": 100.0}, OptionError, "pixel scale of 100"),
        ({"ra": 360.0}, PositionError, "ra 360.0"),
        ({"dec": -91.0}, PositionError, "dec -91.0"),
        ({"ra": float("nan")}, PositionError, "ra nan"),
    ],
)
def test_values_that_the_service_would_change_are_refused(asked, error, said):
    """SkyServer wraps and clamps without a word; so such values are never sent."""
    usual = {"release": 18, "ra": 150.0, "dec": 2.0, "width": 256, "height": 256, "scale": SCALE}
    with pytest.raises(error, match=said):
        cutout_request(**usual | asked)


def test_address_and_release_are_configurable(monkeypatch):
    """By argument, else by environment; a value that cannot be meant is refused."""
    monkeypatch.setenv("SURVEYCAT_SKYSERVER", "http://mirror.example/")
    monkeypatch.setenv("SURVEYCAT_SDSS_RELEASE", "DR12")
    assert (SkyServer().base_url, SkyServer().release) == ("http://mirror.example", 12)
    assert SkyServer("https://other.example", 7).release == 7
    for options in ({"base_url": "skyserver.sdss.org"}, {"release": "newest"}, {"rate": 0}, {"attempts": -1}):
        with pytest.raises(OptionError):
            SkyServer(**options)
    assert cutout_request(17, 1.0, 2.0, 64, 64, 1.0)[0].startswith("dr17/SkyServerWS/")


# What pictures are told by ----------------------------------------------------------------------------------


def test_real_pictures_pass_and_real_overlays_do_not(shared_data):
    """No real cutout is taken for black, text or overlay; those with SkyServer's grid are recognised."""
    plain = sorted((shared_data / "cutouts" / "gz2" / "val").glob("*.jpg"))[::20]
    plain += [shared_data / "wild" / "A" / "sdss_hcg7_12arcmin_1024.jpg"]
    plain += sorted((shared_data / "fields").glob("sdss_*/field.jpg"))[:1]
    assert len(plain) > 30
    for path in plain:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert not has_overlay(pixels) and black_fraction(pixels) < 0.02, path
    painted = [*(shared_data / "wild" / "A").glob("*_0.25_GLS.jpg"), shared_data / "skyserver" / "TestGalaxy.jpeg"]
    painted += [shared_data / "wild" / "A" / "sdss_0266.51602.001_0.5_overlay.jpg"]
    assert len(painted) == 5
    for path in painted:
        assert has_overlay(np.asarray(Image.open(path).convert("RGB"))), path


def test_text_is_found_in_pictures_of_all_sizes(tmp_path):
    """An error message on black counts as such, clipped as it is in small pictures."""
    from skyserver_loopback import jpeg

    from surveycat.skyserver import judge_picture

    for size in (64, 128, 256, 2048):
        with pytest.raises(ServiceError, match="text on black"):
            judge_picture(jpeg(text_picture((size, size), "Requested (ra, dec) is outside" * 3)), size, size)


# Tables ---------------------------------------------------------------------------------------------------


def test_cross_id_completes_partial_answers():
    """Rows that an answer leaves out are asked for again; positions without an object have no row."""
    ra = [thing["ra"] for thing in OBJECTS] + [10.0]
    dec = [2.0] * 8 + [0.0]
    with Loopback(manners=["partial"], objects=OBJECTS) as server:
        table = client(server).cross_id(ra, dec, spectra=["specObjID", "z"])
    assert table["row"].tolist() == list(range(8))
    assert table["objID"].dtype == np.int64 and table["objID"].tolist() == [thing["p.objID"] for thing in OBJECTS]
    assert table["spec_z"].mask.tolist() == [True, False] * 4
    assert table["spec_specObjID"].dtype == np.uint64 and int(table["spec_specObjID"][1]) == 12898206190063153153
    assert len(server.requests) > 1


def test_cross_id_in_pieces(monkeypatch):
    """Long lists go in several requests, and rows keep their places."""
    monkeypatch.setattr("surveycat.skyserver.CHUNK", 3)
    with Loopback(objects=OBJECTS) as server:
        table = client(server).cross_id([thing["ra"] for thing in OBJECTS], [2.0] * 8)
    assert table["row"].tolist() == list(range(8)) and len(server.requests) == 3
    assert all(len(asked["upload"].split("\n")) <= 4 for _, asked in server.requests)


def test_identifiers_stay_exact_over_several_requests(monkeypatch):
    """One request brings no spectrum, one an identifier below 2^63, one above: numpy would make floats of them."""
    monkeypatch.setattr("surveycat.skyserver.CHUNK", 1)
    spectra = [None, 1237653651835781247, 12898206190063153153]
    objects = [
        {"ra": 150.0 + i / 100, "dec": 2.0, "p.objID": 5 + i} | ({"s.specObjID": each} if each else {})
        for i, each in enumerate(spectra)
    ]
    with Loopback(objects=objects) as server:
        table = client(server).cross_id([150.0, 150.01, 150.02], [2.0] * 3, photo=["objID"], spectra=["specObjID"])
    assert table["spec_specObjID"].tolist() == spectra and table["objID"].dtype == np.int64


@pytest.mark.parametrize(
    "manner",
    "html-200 proxy json-200 json-500 busy-503 throttled cut cut-unseen refuse garbage empty uneven plain "
    "other-columns stranger".split(),
)
def test_bad_table_is_asked_for_again(manner, quick_retry):
    """Whatever comes instead of the table: the next good answer is given."""
    with Loopback(manners=[manner], objects=OBJECTS) as server:
        table = client(server).cross_id([150.0, 150.01], [2.0, 2.0])
    assert table["objID"].tolist() == [OBJECTS[0]["p.objID"], OBJECTS[1]["p.objID"]]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "manner, said",
    [
        ("html-200", "a web page titled 'Skyserver Error' instead of a table"),
        ("proxy", "a web page titled 'Guest WLAN' instead of a table"),
        ("json-200", "an error instead of a table: connection pool"),
        ("throttled", "Maximum 60 queries allowed per minute"),
        ("empty", "an empty answer"),
        ("plain", "a line of text instead of a table: 'Service unavailable for maintenance until noon'"),
        ("other-columns", "a table with columns 'name,dec'"),
        ("stranger", "holds 'n777', which was not asked for"),
        ("cut-unseen", "the table is cut off after"),
    ],
)
def test_what_stays_bad_instead_of_a_table_is_said(manner, said, quick_retry):
    """After all attempts the error says, in one line, what came last and how often it was asked for."""
    with Loopback(manners=[manner] * 3, objects=OBJECTS) as server, pytest.raises(ServiceError) as error:
        client(server).cross_id([150.0, 150.01], [2.0, 2.0])
    assert said in str(error.value) and "3 attempts" in str(error.value) and "\n" not in str(error.value)


def test_refused_query_is_an_error():
    """A one-row table error_message is the server's way to say no; its words are passed on, once."""
    with Loopback(manners=["refused"]) as server, pytest.raises(ServiceError, match="Invalid column name 'objjd'"):
        client(server).sql("SELECT TOP 1 objjd FROM PhotoObj")
    assert len(server.requests) == 1


def test_recorded_answers_are_read(shared_data):
    """Answers of the real service come out whole, ids as integers."""
    folder = shared_data / "skyserver" / "astroquery"
    with Loopback(recorded=(folder / "xid_im.txt").read_bytes()) as server:
        table = client(server).sql("SELECT ra, dec, objid, run, rerun, camcol, field FROM PhotoObj")
    assert table.colnames == ["ra", "dec", "objid", "run", "rerun", "camcol", "field"]
    assert table["objid"][0] == 1237653651835781245 and table["objid"].dtype == np.int64
    assert table["ra"].dtype == np.float64 and len(table) == 18
    with Loopback(recorded=(folder / "xid_sp.txt").read_bytes()) as server:
        table = client(server).sql("SELECT * FROM SpecObj")
    assert table["specobjid"][0] == 845594848269461504 and table["instrument"][0] == "SDSS"


def test_answer_at_the_row_limit_is_completed_by_key_or_refused():
    """The service cuts without a word: by key the rest is fetched, without one it is an error, never a short table."""

    def answer(query):
        after = int(query.split("objID >")[1].split()[0]) if "objID >" in query else -1
        return ["objID", "r"], [[i, i / 2] for i in range(after + 1, 25)]

    with Loopback(sql=answer, row_limit=10) as server:
        query = "SELECT objID, r FROM PhotoObj WHERE objID > {after} ORDER BY objID"
        table = client(server).sql(query, key="objid", row_limit=10)
        assert table["objid"].tolist() == list(range(25))
        with pytest.raises(ServiceError, match="10 rows, at which SkyServer cuts"):
            client(server).sql("SELECT objID, r FROM PhotoObj", row_limit=10)
        with pytest.raises(ServiceError, match="stays at"):
            client(server).sql("SELECT objID, r FROM PhotoObj /* {after} */", key="objID", row_limit=10)


def test_nothing_found_is_a_table_with_columns():
    """An answer of a header alone is an empty table, and no positions need no request."""
    with Loopback(sql=lambda query: (["objID", "z"], [])) as server:
        table = client(server).sql("SELECT objID, z FROM SpecObj WHERE z < 0")
        assert table.colnames == ["objID", "z"] and len(table) == 0
        none = client(server).cross_id([], [], spectra=["z"])
    assert none.colnames == ["row", "objID", "ra", "dec", "spec_z"] and len(none) == 0 and len(server.requests) == 1
    with Loopback(objects=OBJECTS) as server:
        assert len(client(server).cross_id([10.0], [0.0])) == 0


def test_long_queries_do_not_go_into_the_url():
    """A query beyond what URLs carry is sent by POST, and answered."""
    with Loopback(sql=lambda query: (["n"], [[len(query)]])) as server:
        query = "SELECT TOP 1 n FROM t WHERE objID IN (" + ",".join(map(str, range(1000))) + ")"
        assert client(server).sql(query)["n"][0] == len(query)


@pytest.mark.parametrize("query", ["DROP TABLE x", "SELECT 1; SELECT 2"])
def test_queries_that_the_service_would_spoil_are_refused(query):
    """SkyServer replaces what it does not like by #; such a query is not sent."""
    with pytest.raises(OptionError, match="not one SELECT"):
        SkyServer("http://127.0.0.1:9").sql(query)


def test_column_lists_are_known_columns(shared_data):
    """The columns that we ask for by default are columns of the real tables."""
    folder = shared_data / "skyserver" / "astroquery"
    rows = json.loads((folder / "PhotoObjAll_dr12.json").read_text())[0]["Rows"]
    assert {"objid", "ra", "dec"} <= {row["name"].lower() for row in rows}
