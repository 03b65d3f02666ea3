"""Examples that no test runs decay: each is compiled, and called with stand-ins for the clusters it asks for."""

import runpy
import sys
import types
from pathlib import Path

import pytest

import surveycat

EXAMPLES = Path(__file__).parents[1] / "examples"


class Cluster:
    """Stands for a cluster; notes how it was asked for."""

    scheduler_address = "tcp://10.0.0.1:8786"

    def __init__(self, **options):
        ASKED.update(options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        ASKED["ended"] = True

    def scale(self, jobs):
        """As SLURMCluster has it."""
        ASKED["jobs"] = jobs

    def wait_for_workers(self, n_workers, timeout):
        """As every cluster of distributed has it; with a bound."""
        ASKED["timeout"] = timeout


ASKED = {}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_python(path):
    """A slip of syntax is found here and not by a user."""
    compile(path.read_text(), path, "exec")


@pytest.mark.parametrize(
    ("script", "module", "kind", "arguments"),
    [
        ("slurm.py", "dask_jobqueue", "SLURMCluster", ["--jobs", "7", "--directive=--gres=gpu:1"]),
        ("several_gpus.py", "dask_cuda", "LocalCUDACluster", []),
    ],
)
def test_examples_search_with_their_cluster(monkeypatch, script, module, kind, arguments):
    """The scripts hand the cluster's scheduler to `surveycat.run`, and end what they started."""
    ASKED.clear()
    ran = {}
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{kind: Cluster}))
    monkeypatch.setattr(surveycat, "run", lambda *paths, **options: ran.update(options, paths=paths))
    monkeypatch.setattr(sys, "argv", [script, "big.fits", "cat.parquet", *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert ran == {"paths": ("big.fits", "cat.parquet"), "scheduler": Cluster.scheduler_address, "resume": True}
    assert ASKED["ended"] and (script != "slurm.py" or (ASKED["jobs"], ASKED["processes"]) == (7, 1))
    assert script != "slurm.py" or ASKED["job_extra_directives"] == ["--gres=gpu:1"]
