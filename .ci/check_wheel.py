"""Check that an installed wheel loads its own weights; their golden tile is part of loading."""

import sys
from pathlib import Path

import surveycat
from surveycat.dispatch import loaded
from surveycat.mrcnn.detector import DetectorSpec
from surveycat.mrcnn.weights import preset_folder

site = Path(sys.argv[1]).resolve()
for path in (Path(surveycat.__file__), preset_folder("compact")):
    assert site in path.resolve().parents, f"{path} is not in {site}"
print(f"wheel: weights {loaded(DetectorSpec()).weights_id} load")
