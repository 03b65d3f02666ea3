"""The page of README that leads from the sky to a matched catalogue and its report, as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skyserver_loopback import Loopback, Sky
from test_sdss import answers

from surveycat.tablefile import read_table

ROOT = Path(__file__).resolve().parents[1]
CENTRE = 351.65, 0.10
GALAXIES = [  # those brighter than r = 20 within 2 arcmin, and their r magnitudes
    (351.664590, 0.108087, 17.889),
    (351.670254, 0.117745, 18.969),
    (351.676386, 0.114243, 19.057),
    (351.643116, 0.116571, 19.221),
    (351.658120, 0.124075, 19.823),
    (351.674287, 0.114198, 19.931),
]


class RealSky(Sky):
    """The sky as `examples/field.jpg` shows it."""

    def __init__(self):
        super().__init__([])
        with Image.open(ROOT / "examples" / "field.jpg") as picture:
            self.pixels = np.asarray(picture.convert("RGB"))

    def picture(self, ra, dec, scale, width, height):
        assert (ra, dec) == CENTRE and abs(scale - 0.396127) < 1e-6
        top, left = self.pixels.shape[0] // 2 - height // 2, self.pixels.shape[1] // 2 - width // 2
        return self.pixels[top : top + height, left : left + width].copy()


def things():
    """What SDSS would know of the galaxies."""
    for number, (ra, dec, mag) in enumerate(GALAXIES):
        columns = {"objID": 1237653651835781245 + number, "ra": ra, "dec": dec, "type": 3, "petroMag_r": mag}
        columns |= {f"modelMag_{band}": mag for band in "ugriz"} | {"petroR50_r": 2.0, "petroR90_r": 4.0 + number}
        yield {"ra": ra, "dec": dec} | {f"p.{name}": value for name, value in columns.items()}


def commands():
    """The commands of README's section, one a line."""
    section = (ROOT / "README.md").read_text().partition("## From the sky to a matched catalogue")[2]
    return re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].strip().split("\n")


def surveycat_of_this_tree(folder):
    """Put a command `surveycat` into a folder, which is to come first in the path."""
    folder.mkdir()
    (folder / "surveycat").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m surveycat "$@"\n')
    (folder / "surveycat").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_readme_leads_from_the_sky_to_a_report(tmp_path):
    """Each command as README has it, in processes of their own, the shipped network, a server on loopback."""
    objects = list(things())
    with Loopback(RealSky(), objects=objects, sql=answers(objects)) as server:
        environment = os.environ | {"SURVEYCAT_SKYSERVER": server.url, "SURVEYCAT_CACHE": str(tmp_path / "cache")}
        environment |= {"PYTHONPATH": str(ROOT), "PATH": surveycat_of_this_tree(tmp_path / "bin")}
        said = []
        for command in commands():
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            said.append(done.stdout)
    assert {kind for kind, _ in server.requests} == {"getjpeg", "CrossIdSearch", "SqlSearch"}
    matched = read_table(tmp_path / "matched.parquet")
    found = {each for each in matched["sdss_objID"].tolist() if each}
    assert len(found) >= 4 and objects[0]["p.objID"] in found  # one of them is as compact as a star
    assert np.nanmedian(matched["separation"]) < 0.3
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["completeness"]["overall"]["with_partner"] == len(found)
    assert report["wcs"]["verdict"] != "wrong"
    assert said[3] == (tmp_path / "report" / "report.txt").read_text() and "completeness" in said[3]
    assert (tmp_path / "report" / "sky.png").stat().st_size > 5000
