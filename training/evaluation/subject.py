"""What is evaluated: a preset, the data, and what was already seen of them."""

import pathlib
import time
from dataclasses import dataclass, field

import numpy as np

import surveycat
from surveycat.mrcnn.detector import load_detector
from training.evaluation.tiles import look


@dataclass
class Subject:
    """A preset under evaluation.

    Parameters
    ----------
    weights : str
        Preset name or folder.
    data : pathlib.Path
        Shared data folder.
    cache : pathlib.Path
        Where stamps and sky of the test split are kept.
    limit : int or None
        Only so many cutouts or scenes in each section, drawn at random; None takes all.
    seconds : float
        Time for a section: what it cannot look at by then is left out, and the figures' totals say so.
    seed : int
        Of every random draw.
    """

    weights: str
    data: pathlib.Path
    cache: pathlib.Path
    limit: int | None = None
    seconds: float = 3600.0
    seed: int = 2020
    _end: float = field(default=np.inf, repr=False)
    _seen: dict = field(default_factory=dict, repr=False)

    @property
    def detector(self):
        """Detector : loaded once."""
        return load_detector(str(self.weights))

    def start(self):
        """Begin a section: its time runs from now."""
        self._end = time.monotonic() + self.seconds

    @property
    def out_of_time(self):
        """bool : whether the section's time is over."""
        return time.monotonic() > self._end

    def shares(self, count):
        """Split what is left of the section's time into equal parts.

        Parameters
        ----------
        count : int
            Parts.

        Yields
        ------
        callable
            Says whether the next part is over; time that a part does not need is left to those after it.
        """
        for left in range(count, 0, -1):
            end = time.monotonic() + max(self._end - time.monotonic(), 0.0) / left
            yield lambda end=end: time.monotonic() > end

    def rng(self, name):
        """Random numbers of a section, which do not depend on the others."""
        return np.random.default_rng([self.seed, *name.encode()])

    def sample(self, frame):
        """Rows of a table in random order, at most `limit` of them: what time cuts off is a random part."""
        shuffled = frame.sample(frac=1.0, random_state=self.seed).reset_index(drop=True)
        return shuffled if self.limit is None else shuffled.head(self.limit)

    def once(self, name, make):
        """What `make` gives, made once."""
        if name not in self._seen:
            self._seen[name] = make()
        return self._seen[name]

    def look(self, images, min_score=0.5):
        """Run the detector on pictures that fit into a tile each, until the section's time is over.

        Parameters
        ----------
        images : iterable of ndarray of uint8, shape (h, w, 3)
            At most 256 px a side; a generator keeps memory small.
        min_score : float
            Least score.

        Returns
        -------
        iterator of Detections
            As `tiles.look` gives them.
        """
        return look(self.detector, images, min_score, lambda: self.out_of_time)

    def field(self, folder, name="field.jpg"):
        """pathlib.Path : a picture of a test field."""
        return self.data / "fields" / folder / name

    def catalogue(self, folder, name="field.jpg", **options):
        """Catalogue of a test field, made once.

        Parameters
        ----------
        folder : str
            Below ``fields`` of the data.
        name : str
            Picture in it.
        **options
            Of `surveycat.run`; the folder's ``wcs.hdr`` is given where there is one.

        Returns
        -------
        QTable
            The catalogue.
        """
        path = self.data / "fields" / folder
        wcs = path / "wcs.hdr"
        options = {"wcs": wcs if wcs.exists() else None, **options}
        return self.once(
            (folder, name, repr(options)),
            lambda: surveycat.run(path / name, weights=str(self.weights), **options),
        )
