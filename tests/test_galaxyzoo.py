"""The published Galaxy Zoo tables: one name for each column, identifiers exact, fetched once and whole."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from astropy.table import Table

from surveycat import galaxyzoo
from surveycat.errors import ServiceError, SurveycatError
from surveycat.galaxyzoo import Release, features_fraction, fetched, load
from surveycat.match import match

GZ1 = """\
OBJID,RA,DEC,NVOTE,P_EL,P_CW,P_ACW,P_EDGE,P_DK,P_MG,P_CS,P_EL_DEBIASED,P_CS_DEBIASED,SPIRAL,\
ELLIPTICAL,UNCERTAIN
587727178986356823,00:00:00.41,-10:22:25.7,59,0.61,0.034,0,0.153,0.153,0.051,0.186,0.61,0.186,0,0,1
587727227300741210,00:00:00.74,-09:13:20.2,18,0.056,0,0,0.9,0,0.05,0.9,0.05,0.9,1,0,0
"""
GZ2 = """\
dr7objid,ra,dec,rastring,decstring,sample,gz2_class,total_classifications,total_votes,\
{0}_count,{0}_fraction,{0}_debiased
587732591714893851,179.0429,60.522518,11:56:10.3,+60:31:21.1,original,Sc+t,45,342,45,1.0,1.0
588009368545984617,135.0842,52.494006,09:00:20.2,+52:29:39.3,original,Sb+t,42,332,42,1.0,0.9
""".format("t01_smooth_or_features_a02_features_or_disk")


def test_galaxy_zoo_1(tmp_path):
    """The table as published: hours as text, identifiers of DR7, columns in capitals."""
    (tmp_path / "gz1.csv").write_text(GZ1)
    table = load("gz1", tmp_path / "gz1.csv")
    assert table["dr7objid"].tolist() == [587727178986356823, 587727227300741210]
    assert {"ra", "dec", "nvote", "p_el_debiased", "p_cs_debiased", "spiral", "uncertain"} < set(table.colnames)
    result = match(Table({"ra": [0.003083], "dec": [-9.222278]}), f"gz1:{tmp_path / 'gz1.csv'}")
    assert result["gz1_dr7objid"].tolist() == [587727227300741210] and result["gz1_p_cs"][0] == 0.9
    name, fraction = features_fraction(table)
    assert name == "p_cs_debiased"
    np.testing.assert_array_equal(fraction, [np.nan, 0.9])  # the first is uncertain


def test_galaxy_zoo_2(tmp_path):
    """Either name of the class is the same column; counts are left out, fractions stay; by identifier too."""
    (tmp_path / "gz2.csv").write_text(GZ2)
    table = load("gz2", tmp_path / "gz2.csv")
    assert {"dr7objid", "gz2class", "sample", "total_votes"} < set(table.colnames)
    assert not any(name.endswith("_count") for name in table.colnames)
    assert features_fraction(table)[1].tolist() == [1.0, 0.9]
    named = Table({"ra": [1.0], "dec": [1.0], "dr7objid": ["588009368545984617"]})
    result = match(named, f"gz2:{tmp_path / 'gz2.csv'}", on="dr7objid")
    assert result["gz2_gz2class"].tolist() == ["Sb+t"] and result["gz2_dr7objid"].tolist() == [588009368545984617]


def test_real_tables(shared_data):
    """Excerpts and flags as people keep them are read too; DR8 identifiers are not called DR7's."""
    catalogs = shared_data / "catalogs"
    assert "dr7objid" in load("gz1", catalogs / "gz1_flags_datamath28.csv.gz").colnames
    assert "objid" in load("gz1", catalogs / "gz1_flags_r90_jurijw.csv.gz").colnames
    table = load("gz2", catalogs / "gz2_stripe82_coadd.csv.gz")
    assert table["objid"].dtype == np.int64 and str(table["objid"][0]) == "8647474690312307154"
    name, fraction = features_fraction(table)
    assert name.endswith("disk_debiased") and 0.9 < np.isfinite(fraction).mean() < 1  # artifacts are left out
    with pytest.raises(SurveycatError, match="is no table of gz1"):
        load("gz1", catalogs / "sdss_stars_s82_ra350-354.csv.gz")


class Server:
    """A server on loopback that gives answers in turn: bytes, or a status; `asked` counts."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                answer = outer.answers.pop(0)
                self.send_response(answer if isinstance(answer, int) else 200)
                body = b"" if isinstance(answer, int) else answer
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


def published(monkeypatch, server):
    url = f"http://127.0.0.1:{server.http.server_port}/gz2.csv.gz"
    monkeypatch.setitem(galaxyzoo.RELEASES, "gz2", Release(url, **_rest(galaxyzoo.RELEASES["gz2"])))


def _rest(release):
    return {"keep": release.keep, "rename": release.rename, "needs": release.needs}


def test_table_is_fetched_once_and_whole(tmp_path, monkeypatch):
    """Refused, a web page, half a file: asked again; the second use asks nobody."""
    whole = gzip.compress(GZ2.encode())
    with Server(503, b"<html>busy</html>", whole[:-20], whole) as server:
        published(monkeypatch, server)
        path = fetched("gz2", tmp_path, pause=0.01)
        assert server.asked == 4 and path.read_bytes() == whole
        assert fetched("gz2", tmp_path) == path and server.asked == 4
        monkeypatch.setenv("SURVEYCAT_CACHE", str(tmp_path))
        assert len(load("gz2")) == 2
        monkeypatch.setenv("SURVEYCAT_CACHE", str(tmp_path / "elsewhere"))
        assert len(match(Table({"ra": [1.0], "dec": [1.0]}), "gz2", cache=tmp_path)) == 1


def test_table_that_cannot_be_fetched(tmp_path, monkeypatch):
    """One line says how to go on without the net, and no half file stays to be believed later."""
    with Server(*[503] * 4) as server:
        published(monkeypatch, server)
        with pytest.raises(ServiceError, match="503 .*4 attempts.*give gz2:FILE"):
            fetched("gz2", tmp_path, pause=0.01)
    assert not any((tmp_path / "galaxyzoo").iterdir())
