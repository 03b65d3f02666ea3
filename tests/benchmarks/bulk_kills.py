"""A bulk run killed ten times at random, one request in ten failing: the dataset of an undisturbed run.

python tests/benchmarks/bulk_kills.py --kills 10 --targets 200
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bulk_fixtures import killed_again_and_again, same_datasets, survey, write_cutouts, write_list
from detectors import BlobDetector

from surveycat.bulk import bulk


def main():
    """Say what was compared."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--targets", type=int, default=200)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        targets, sky = survey(options.targets)
        listed, cutouts = write_list(folder / "list.csv", targets), write_cutouts(folder / "cutouts", targets, sky)
        manifest = bulk(listed, cutouts, folder / "undisturbed", detector=BlobDetector(threshold=60))
        requests = killed_again_and_again(listed, sky, folder / "killed", options.kills)
        same_datasets(folder / "undisturbed", folder / "killed")
    print(f"{options.kills} kills, {requests} requests for {options.targets} targets; the same: {manifest['counts']}")


if __name__ == "__main__":
    main()
