"""Starting the network's backend leaves the process as fast as it would be outside Dask."""

import os
import platform
import subprocess
import sys

import pytest

AGAIN = """
import resource, sys
import numpy as np
from surveycat.quiet import start_backend
start_backend()
np.ones(2**20)  # 8 MiB, as the network's arrays are
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="MALLOC_TRIM_THRESHOLD_ is glibc's")
def test_memory_is_kept_where_dask_gives_it_back():
    """Arrays of megabytes whose pages are fetched anew each time made the network in Dask's workers half as fast."""
    asked = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    ran = subprocess.run([sys.executable, "-c", AGAIN], env=asked, capture_output=True, text=True, timeout=300)
    assert int(ran.stdout) < 1000, ran.stderr  # pages of 4 KiB, of which the arrays have 2048 each
