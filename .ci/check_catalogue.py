"""Check that README's first command gave a catalogue with units, readable by astropy alone, and a preview."""

import sys

from astropy.table import Table
from PIL import Image

catalogue, preview = sys.argv[1:]
table = Table.read(catalogue)
units = {name: str(table[name].unit) for name in ("ra", "dec", "x", "y", "area")}
print(f"{catalogue}: {len(table)} rows, units {units}")
assert len(table) > 0, "no galaxy in the example field"
assert units["ra"] == units["dec"] == "deg" and units["x"] == units["y"] == "pix", units
with Image.open(preview) as picture:
    print(f"{preview}: {picture.size}")
