"""Masks of one tile: one row for one object."""

import numpy as np

from surveycat.mrcnn.masks import distinct


def disc(radius):
    """A disc in its own crop."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y**2 + x**2 <= radius**2


def test_two_masks_of_one_object_in_a_tile_are_one():
    """Boxes can differ more than masks do: the better of two with half their pixels in common stays."""
    crops = [disc(9), disc(10), disc(4), disc(9)]
    origins = np.array([[20, 20], [20, 21], [26, 26], [20, 20]])
    keep = distinct(crops, origins, np.array([0, 0, 0, 1]), np.array([0.6, 0.9, 0.8, 0.5]))
    # the small one on the large one is a companion; the last is in another tile
    np.testing.assert_array_equal(keep, [False, True, True, True])


def test_masks_around_one_middle_are_one():
    """A faint galaxy outlined with and without what lies around it is one row; a neighbour at its end is another."""
    crops = [np.ones((12, 25), bool), np.ones((11, 12), bool)]
    tile, score = np.zeros(2, int), np.array([0.9, 0.8])
    # in both places they share 0.44 of what they cover together
    for column, stays in ((6, False), (13, True)):
        keep = distinct(crops, np.array([[0, 0], [1, column]]), tile, score)
        np.testing.assert_array_equal(keep, [True, stays])


def test_what_was_dropped_drops_nothing_itself():
    """Suppression is greedy: a mask that overlaps only one that went stays."""
    crops = [disc(10)] * 3
    origins = np.array([[20, 20], [20, 25], [20, 30]])
    tile = np.zeros(3, int)
    np.testing.assert_array_equal(distinct(crops, origins, tile, np.array([0.9, 0.8, 0.7])), [True, False, True])
    assert distinct([], np.zeros((0, 2), int), tile[:0], np.zeros(0)).shape == (0,)
