"""The seam rule: from what was found in tiles to one object per galaxy.

    objects = stitch(found, grid)                               # rules 1 to 4
    while looks := second_looks(objects, grid):                 # rule 5: which tiles to look at next
        objects = confirm(objects, detect(looks), grid)         # rules 5 to 7, when nothing is left to look at

Nothing here sees a pixel of the image, and nothing is glued together: of all the detections of a galaxy one is
chosen.  Rule 1 (what is cut by a tile's edge) is `surveycat.detections.flag_cut`, rule 2 (levels and homes) is
`surveycat.tiles.TileGrid`.

**Match (rule 3).**  Two detections from different tiles may be the same object if their masks have IoU >= 0.5 at
the coarser pixel size; or, both whole, if each one's centroid lies in the other's mask and their areas differ by
less than 4 times; or, one being cut, if half of the cut one's mask lies in the other.  Two that are whole and at
home do not match if both have a better match in the other's tile; nor if one of them has, and the tile that shows it
and that better match shows them overlap as much as the two: where a tile shows two galaxies that overlap by more than
half, they stay two, whichever tiles they are chosen from.  Two masks that overlap less than that in their own tile are
of one galaxy if the one mask of another tile matches both.

**Choose (rule 4).**  Detections are sorted: whole before cut, home level before others, nearness to the centre
of their tile, score, tile index.  Each one that is not yet taken becomes an object and takes its matches.  There are no
chains: A ~ B and B ~ C never joins A with C.  The outcome depends on positions and scores alone.

**Second look (rule 5).**  What is cut, or not at home on level 0, is looked at in a tile centred on it, at the
finest level where it takes at most 3/4 of the tile, and if it is not found there, on the next coarser one (a cut
one in turn until it is whole).  In each such tile objects and detections are paired one to one, best first; the
detection paired with the object gives it mask, class and score.  An object whose detection there belongs to
another object is that other object and goes.

**Blends.**  Two galaxies that a tile shows as two and as one more that is both are two: see `_without_blends` and
`_without_unsteady_blends`.

**On a larger one (rule 6).**  See `_companions`.
"""

from dataclasses import dataclass, replace

import numpy as np

from surveycat.detections import Detections
from surveycat.overlap import iou_of, overlaps
from surveycat.tiles import is_cut, parent_index

#: Bits of `Objects.flags` that are set here; their names are in the catalogue's list.
EDGE_TRUNCATED, SINGLE_LOOK, BLENDED, CAPPED = 1 << 0, 1 << 1, 1 << 2, 1 << 3

_SAME_IOU = 0.5
_SAME_AREA = 4
_SAME_CUT = 0.5
_AS_MUCH = 0.9
# Shares of a mask: what lies in a blend is a part of it, what lies on a galaxy has it as its host.
_INSIDE, _ON = 0.7, 0.5
_READABLE = 8
_GROWN = 1.1
# How far the area of a small or thin mask may be off once it is given in coarse pixels.
_SLACK = 2


@dataclass(frozen=True, eq=False)
class Objects:
    """One row per galaxy.

    Parameters
    ----------
    detections : Detections
        The detection that was chosen for each object, in pixels of its level.
    n_seen, n_tiles : (N,) int32 ndarray
        In how many tiles of its home level it was seen whole, and in how many it could have been.
    host : (N,) int64 ndarray
        Position of the larger object that it lies on, or -1.
    flags : (N,) int32 ndarray
        Bit mask, see the constants of this module.
    look : (N,) int16 ndarray
        Level on which it is to be looked at next, -1 when it needs no further look.
    seen_object, seen_tile : (M,) int64 ndarray
        Which object was seen as itself in which tile (in a tile of the grid whole, in a second look whole or cut):
        once each, sorted.
    n_looks : int
        Second looks so far, so that every tile has an index of its own.
    """

    detections: Detections
    n_seen: np.ndarray
    n_tiles: np.ndarray
    host: np.ndarray
    flags: np.ndarray
    look: np.ndarray
    seen_object: np.ndarray
    seen_tile: np.ndarray
    n_looks: int = 0

    def __len__(self):
        return len(self.detections)

    def select(self, index):
        """The objects at `index` (ints without repeats, in that order, or a bool for each).

        A `host` that is not among them becomes -1.
        """
        index = np.arange(len(self))[index]
        place = np.full(len(self) + 1, -1)
        place[index] = np.arange(len(index))
        seen_object = place[self.seen_object]
        kept = np.flatnonzero(seen_object >= 0)
        kept = kept[np.lexsort([self.seen_tile[kept], seen_object[kept]])]
        return Objects(
            detections=self.detections.select(index),
            n_seen=self.n_seen[index],
            n_tiles=self.n_tiles[index],
            host=place[self.host[index]],
            flags=self.flags[index],
            look=self.look[index],
            seen_object=seen_object[kept],
            seen_tile=self.seen_tile[kept],
            n_looks=self.n_looks,
        )


def stitch(found, grid):
    """One object per galaxy, from what was found in the tiles of a grid (rules 3 and 4).

    Parameters
    ----------
    found : Detections
        In pixels of the image's levels, with `cut` and `centre_distance` filled in.  Those without any mask
        pixel are left out.
    grid : TileGrid
        The grid whose tiles were searched.

    Returns
    -------
    Objects
        Sorted by position.  What needs a second look is marked in `look`; if nothing does, this is the end.
    """
    found = found.select(found.area > 0)
    if len(grid) == 1 and not np.any(found.tile):
        return _of_one_tile(found, grid)
    home = ~found.cut & _at_home(found, grid)
    i, j, iou = _matches(found)
    rank = _rank(found, ~home)
    allowed = ~(home[i] & home[j]) | ~_shown_apart(found, rank, i, j, iou)
    i, j = i[allowed], j[allowed]
    chosen = _walk(rank, i, j)
    seen_object, seen_tile = _sightings(found, chosen, i, j)
    n = np.count_nonzero(chosen)
    zeros = np.zeros(n, dtype=np.int32)
    objects = Objects(
        detections=found.select(chosen),
        n_seen=zeros,
        n_tiles=zeros,
        host=np.full(n, -1),
        flags=zeros,
        look=np.full(n, -1, dtype=np.int16),
        seen_object=seen_object,
        seen_tile=seen_tile,
    )
    return _finish_if_settled(_mark_looks(_flag_capped(objects, found.capped), grid), grid)


def _of_one_tile(found, grid):
    """The objects of an image that is one tile: nothing is cut or matches, and nothing needs a second look."""
    n = len(found)
    once = np.ones(n, dtype=np.int32)
    objects = Objects(
        detections=found,
        n_seen=once,
        n_tiles=once,
        host=np.full(n, -1),
        flags=np.zeros(n, dtype=np.int32),
        look=np.full(n, -1, dtype=np.int16),
        seen_object=np.arange(n),
        seen_tile=np.zeros(n, dtype=np.int64),
    )
    return _flag_edges(_flag_capped(objects, found.capped), grid).select(_by_position(found))


def second_looks(objects, grid):
    """The tiles to be looked at next (rule 5).

    Parameters
    ----------
    objects : Objects
        From `stitch` or `confirm`.
    grid : TileGrid
        The same grid.

    Returns
    -------
    list of Tile
        Each centred on an object that needs it; empty when nothing is left to look at.
    """
    return _looks(objects, grid)[2]


def confirm(objects, looks, grid):
    """What the second looks say of the objects (rules 5 and 6).

    To be repeated until `second_looks` has no more tiles: one that is not found at the finest level that fits
    gets another look on the next coarser one.

    Parameters
    ----------
    objects : Objects
        Those for which `second_looks` gave the tiles.
    looks : Detections
        What was found in those tiles, in pixels of the levels, with `cut` filled in.
    grid : TileGrid
        The same grid.

    Returns
    -------
    Objects
        Sorted by position.
    """
    targets, look_tile, tiles = _looks(objects, grid)
    looks = looks.select(looks.area > 0)
    own_tile = np.full(len(objects), -1)
    own_tile[targets] = look_tile
    i, j, iou = _matches_between(objects.detections, looks)
    seen_in = parent_index(looks.tile)[j]
    own = own_tile[i] == seen_in
    claims = _one_to_one(i, j, iou, looks.tile[j])
    objects = _add_sightings(objects, i[claims], seen_in[claims])
    whole = ~looks.cut[j]
    accepted = _best_of(len(objects), i, j, iou, own & claims & whole)
    grown = _best_of(len(objects), i, j, iou, own & claims & ~whole & objects.detections.cut[i])
    unclaimed = own & ~np.isin(i, i[own & claims])
    keep = _without_shared(objects, i[unclaimed], _claimant(i, j, claims, len(looks))[j[unclaimed]], accepted)
    # Of two objects that claim each other's detection the one that stays still has to get its own.
    spare = _best_of(len(objects), i, j, iou, unclaimed & whole)
    accepted = np.where(accepted < 0, spare, accepted)
    objects = _take_over(objects, looks, accepted, grown, grid)
    objects = replace(_flag_capped(objects, looks.capped), n_looks=objects.n_looks + len(tiles))
    return _finish_if_settled(objects.select(keep), grid)


def _at_home(found, grid):
    """Which detections may lie on their home level, their sides being known to a pixel of their level."""
    side, pixel = _full_side(found), 2.0**found.level
    return (grid.home_level(side - pixel) <= found.level) & (found.level <= grid.home_level(side + pixel))


# Rule 3 -----------------------------------------------------------------------------------------------------


def _matches(found, involving=None, between=False):
    """Pairs of detections that may be the same object: ``i, j, iou``.

    All of them; or those of which one, or `between` exactly one, is among those that `involving` is true for.
    """
    area = found.area * 4.0**found.level

    def plausible(i, j, room):
        pixel = 4.0 ** np.maximum(found.level[i], found.level[j])
        a, b = np.maximum(area[i], pixel) / pixel, np.maximum(area[j], pixel) / pixel
        alike = np.maximum(a, b) < _SLACK * _SAME_AREA * np.minimum(a, b)
        piece = _SLACK * room >= _SAME_CUT * np.where(found.cut[i], np.where(found.cut[j], np.minimum(a, b), a), b)
        return (found.tile[i] != found.tile[j]) & (alike | (piece & (found.cut[i] | found.cut[j])))

    parts = [_same(pairs, found.cut) for pairs in overlaps(found, plausible, involving, between)]
    return _join(parts, (np.int64, np.int64, float))


def _same(pairs, cut):
    """Those of some `Overlaps` that fulfil rule 3."""
    small, large = np.minimum(pairs.area_i, pairs.area_j), np.maximum(pairs.area_i, pairs.area_j)
    cut_i, cut_j = cut[pairs.i], cut[pairs.j]
    alike = pairs.centred & (large < _SAME_AREA * small) & ~cut_i & ~cut_j
    piece = cut_i & (pairs.shared >= _SAME_CUT * pairs.area_i) | cut_j & (pairs.shared >= _SAME_CUT * pairs.area_j)
    iou = pairs.iou
    same = (iou >= _SAME_IOU) | alike | piece
    return pairs.i[same], pairs.j[same], iou[same]


def _matches_between(first, second):
    """Pairs of one detection of `first` and one of `second` that may be the same object: ``i, j, iou``."""
    n = len(first)
    both = Detections.concatenate([first, second])
    i, j, iou = _matches(both, np.arange(len(both)) >= n, between=True)
    return np.minimum(i, j), np.maximum(i, j) - n, iou


def _shown_apart(found, rank, i, j, iou):
    """Whether a tile shows the two of a pair as two, one of them matching what is its own in that tile better."""
    who, other = np.concatenate([i, j]), np.concatenate([j, i])
    rival = _best_in_tile(who, other, np.concatenate([iou, iou]), found.tile, rank)
    better = rival != other
    apart = np.logical_and(*np.split(better, 2))
    # One tile shows two where the other shows one: the two are two if they overlap as much as the pair does.
    pair = np.arange(len(who)) % max(len(i), 1)
    asked = np.flatnonzero(better & ~apart[pair])
    sure = found.cut[rival[asked]] | (found.level[who[asked]] != found.level[other[asked]])
    apart[pair[asked[sure]]] = True
    asked = asked[~sure]
    overlap = iou_of(found, other[asked], rival[asked])
    apart[pair[asked]] = overlap >= _AS_MUCH * iou[pair[asked]]
    return apart


def _best_in_tile(who, other, iou, tile, rank):
    """For each pair, the best match of `who` in the tile of `other`: `other` itself where none is better."""
    group = _number(who, tile[other])
    most = np.zeros(group.max(initial=-1) + 1)
    np.maximum.at(most, group, iou)
    # Of several that are as good the last in rank.
    first = iou == most[group]
    last = np.full(len(most), -1)
    np.maximum.at(last, group[first], rank[other[first]])
    return np.where(first, other, _places(rank)[last[group]])


# Rule 4 -----------------------------------------------------------------------------------------------------


def _rank(found, *keys):
    """Place of each detection in the order of rule 4, after `keys`."""
    position = tuple(found.box.T) + tuple(found.mask_origin.T) + (found.p_spiral,)
    return _places(np.lexsort((*position, found.tile, -found.score, found.centre_distance, *keys[::-1], found.cut)))


def _walk(rank, i, j):
    """Which become objects when, in order of rank, each one not yet taken takes all its partners.

    Parameters
    ----------
    rank : (N,) int64 ndarray
        A permutation; the lowest comes first.
    i, j : (P,) int64 ndarray
        Partners.

    Returns
    -------
    (N,) bool ndarray
    """
    first, second = np.minimum(rank[i], rank[j]), np.maximum(rank[i], rank[j])
    taken = np.zeros(len(rank), dtype=bool)
    while len(first):
        # Whoever has no undecided partner of lower rank is an object: many at a time, the same as one by one.
        waits = np.zeros(len(rank), dtype=bool)
        waits[second] = True
        taken[second[~waits[first]]] = True
        undecided = waits[first] & ~taken[first] & ~taken[second]
        first, second = first[undecided], second[undecided]
    return ~taken[rank]


def _sightings(found, chosen, i, j):
    """In which tiles each chosen detection's object was seen whole: ``object, tile``."""
    place = np.cumsum(chosen) - 1
    itself = np.flatnonzero(chosen)
    who, what = np.concatenate([i, j, itself]), np.concatenate([j, i, itself])
    valid = chosen[who] & ~found.cut[what]
    return _unique_pairs(place[who[valid]], parent_index(found.tile[what[valid]]))


def _count_tiles(objects, grid):
    """Fill in `n_seen` and `n_tiles`."""
    found = objects.detections
    home = grid.home_level(_full_side(found))
    # Rounded outward, so that what was seen whole on the home level is never larger than this.
    scale = 2.0 ** (found.level - home)[:, None]
    extent = found.extent * scale
    extent = np.concatenate([np.floor(extent[:, :2]), np.ceil(extent[:, 2:])], axis=1)
    who, tile = objects.seen_object, objects.seen_tile
    of_grid = tile < len(grid)
    who, tile = who[of_grid], tile[of_grid]
    at_home = grid.level_of(tile) == home[who]
    who, tile = who[at_home], tile[at_home]
    shapes = np.array([grid.level_shape(k) for k in range(grid.n_levels)])[home]
    whole = ~is_cut(extent[who], grid.boxes(tile), shapes[who])
    n_seen = np.bincount(who[whole], minlength=len(objects))
    return replace(objects, n_seen=n_seen.astype(np.int32), n_tiles=grid.n_tiles(extent, home).astype(np.int32))


# Rule 5 -----------------------------------------------------------------------------------------------------


def _mark_looks(objects, grid):
    """Mark what needs a second look; on the top level there is nothing that its one tile has not shown."""
    found = objects.detections
    side = _full_side(found)
    needed = found.cut | (found.level > 0) | (grid.home_level(side) > 0)
    level = grid.look_level(side)
    look = np.where(needed & (level < grid.n_levels - 1), level, -1)
    return replace(objects, look=look.astype(np.int16))


def _looks(objects, grid):
    """Objects to be looked at, the index of the tile for each, and the tiles; equal tiles are made once."""
    targets = np.flatnonzero(objects.look >= 0)
    level = objects.look[targets]
    found = objects.detections
    extent = found.extent[targets] * 2.0 ** (found.level[targets] - level)[:, None]
    centre = (extent[:, :2] + extent[:, 2:]) / 2
    first = len(grid) + objects.n_looks
    tiles, index = {}, []
    for k, (y, x) in zip(level.tolist(), centre.tolist(), strict=True):
        tile = grid.centred_tile(first + len(tiles), k, y, x)
        index.append(tiles.setdefault((k, tile.y0, tile.x0), tile).index)
    return targets, np.array(index, dtype=np.int64), list(tiles.values())


def _one_to_one(i, j, iou, tile):
    """Pair objects and detections within each tile, best first; returns which of the pairs are made."""
    made = np.zeros(len(i), dtype=bool)
    left = _number(i, tile)
    edges = np.lexsort([j, i, -iou])
    while len(edges):
        new = edges[_is_first(left[edges]) & _is_first(j[edges])]
        made[new] = True
        edges = edges[~_is_among(left[edges], left[new]) & ~_is_among(j[edges], j[new])]
    return made


def _best_of(n, i, j, iou, valid):
    """For each of `n` objects the detection of its best valid pair, or -1."""
    best = np.full(n, -1)
    order = np.flatnonzero(valid)
    order = order[np.lexsort([-j[order], iou[order]])]
    best[i[order]] = j[order]
    return best


def _claimant(i, j, claims, n):
    claimant = np.full(n, -1)
    claimant[j[claims]] = i[claims]
    return claimant


def _without_shared(objects, i, other, accepted):
    """Which objects stay, when object i[p] and object other[p] were shown as one."""
    unsure = (accepted < 0) & (objects.look >= 0)
    return _walk(_rank(objects.detections, unsure), i, other)


def _take_over(objects, looks, accepted, grown, grid):
    """Give objects what their look shows of them, and mark which are to be looked at again."""
    found = objects.detections
    better = np.where(accepted >= 0, accepted, grown)
    source = np.where(better >= 0, len(objects) + better, np.arange(len(objects)))
    new = Detections.concatenate([found, looks]).select(source).replace(capped=found.capped)
    open_ = (objects.look >= 0) & (accepted < 0)
    finest = grid.look_level(_full_side(new))
    # Of a cut one more has come to light: centred on that, the same level may show all of it.
    recentred = _full_side(new) > _GROWN * _full_side(found)
    again = np.maximum(objects.look + ~recentred, finest)
    # A whole one gets one more chance on the next level, a cut one goes on to where it is whole.
    more = open_ & (new.cut | (objects.look == finest)) & (again < grid.n_levels - 1)
    single = open_ & ~more & ~new.cut
    return replace(
        objects,
        detections=new,
        look=np.where(more, again, -1).astype(np.int16),
        flags=objects.flags | np.where(single, SINGLE_LOOK, 0).astype(np.int32),
    )


def _add_sightings(objects, i, tile):
    seen = _unique_pairs(np.concatenate([objects.seen_object, i]), np.concatenate([objects.seen_tile, tile]))
    return replace(objects, seen_object=seen[0], seen_tile=seen[1])


# The end ----------------------------------------------------------------------------------------------------


def _finish_if_settled(objects, grid):
    """Rules 3 and 4 once more, and rule 6, when nothing is left to be looked at."""
    if not np.any(objects.look >= 0):
        objects = objects.select(~objects.detections.cut)
        objects = _without_unsteady_blends(_count_tiles(_merge_looked(objects, grid), grid))
        objects = _companions(_without_blends(objects, grid), grid)
        objects = _flag_edges(objects, grid)
    return objects.select(_by_position(objects.detections))


def _merge_looked(objects, grid):
    """Join objects that second looks have shown to be the same, never two that one tile has shown apart.

    Where both were looked at again only the looks count: two pieces of a galaxy in one tile of the grid turn out
    to be the same.
    """
    found = objects.detections
    looked = parent_index(found.tile) >= len(grid)
    i, j, _ = _matches(found, looked)
    who, tile = objects.seen_object, objects.seen_tile
    in_look = tile >= len(grid)
    apart = np.where(
        looked[i] & looked[j],
        _seen_together(i, j, who[in_look], tile[in_look]),
        _seen_together(i, j, who, tile),
    )
    rank = _rank(found, (objects.flags & SINGLE_LOOK) > 0, ~looked)
    return objects.select(_walk(rank, i[~apart], j[~apart]))


def _seen_together(i, j, seen_object, seen_tile):
    """Whether objects i[p] and j[p] were seen in one and the same tile, given sorted sightings."""
    first = np.searchsorted(seen_object, i)
    count = np.searchsorted(seen_object, i, side="right") - first
    pair = np.repeat(np.arange(len(i)), count)
    tile = seen_tile[np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)]
    hit = _is_in(j[pair], tile, seen_object, seen_tile)
    return np.bincount(pair[hit], minlength=len(i)) > 0


def _without_blends(objects, grid):
    """Drop what no second look has confirmed if finer objects lie in it: it was a blend of them."""
    home = grid.home_level(_full_side(objects.detections))
    single = (objects.flags & SINGLE_LOOK) > 0
    inner, outer = _inside(objects.detections, home, single, _INSIDE)
    blend = np.zeros(len(objects), dtype=bool)
    blend[outer] = True
    return objects.select(~blend)


def _without_unsteady_blends(objects):
    """Drop what smaller neighbours fill that more tiles show: where it was seen, a tile took them for one as well.

    Of two galaxies and the pair of them all three are kept only if they are seen equally often.  What most of the
    tiles that could do not show has to be filled by half alone.
    """
    found = objects.detections
    often = objects.n_seen / np.maximum(objects.n_tiles, 1)

    def may_fill(i, j, room):
        return often[i] != often[j]

    filled = np.zeros(len(objects))
    for pairs in overlaps(found, may_fill, often < 1):
        swap = often[pairs.i] < often[pairs.j]
        outer, area = np.where(swap, pairs.i, pairs.j), np.where(swap, pairs.area_i, pairs.area_j)
        smaller = np.where(swap, pairs.area_j, pairs.area_i) < area
        filled += np.bincount(outer, weights=smaller * pairs.shared / area, minlength=len(objects))
    return objects.select(filled < np.where(often < 0.5, _ON, _INSIDE))


def _companions(objects, grid):
    """Tell companions of larger objects from knots in them (rule 6).

    An object with half of its mask in one that would be at home on a coarser level, if there were no top, is a
    companion or a knot of it (of the smallest, if there are several).  It may stay if the larger one's last look shows
    it too, or if it would be under 8 px there; else it goes.  Inside the ellipse that holds half of the larger mask
    knots are common: there it must be shown by the larger one's look and by a tile of the grid on a level above 0; or
    by every tile of its home level that could, by a look of its own, for which it is marked first, and by the larger
    one's look or else on the coarsest level where it measures 8 px.
    """
    found = objects.detections
    side = _full_side(found)
    # The top level is home to galaxies of all larger sizes: there pieces and wholes would be of one level.
    home = grid.endless_home_level(side)
    inner, outer = _inside(found, home, home > 0, _ON)
    shown = _is_in(inner, parent_index(found.tile)[outer], objects.seen_object, objects.seen_tile)
    tiny = side[inner] < _READABLE * 2.0 ** found.level[outer]
    central = _in_half_ellipse(found, inner, outer)
    above, coarsest = _seen_above(objects, side, grid)
    sure = (shown | tiny) & (~central | (shown & above[inner]))
    steady = (objects.n_seen == objects.n_tiles)[inner] & (shown | (tiny & coarsest[inner]))
    # On the top level there is nothing that its one tile has not shown.
    looked = (parent_index(found.tile) >= len(grid)) | (grid.look_level(side) == grid.n_levels - 1)
    fresh = ~looked & (objects.flags & SINGLE_LOOK == 0)
    doubtful = np.zeros(len(objects), dtype=bool)
    doubtful[inner[steady & ~sure & fresh[inner]]] = True
    if doubtful.any():
        return replace(objects, look=np.where(doubtful, grid.look_level(side), -1).astype(np.int16))
    return _with_hosts(objects, home, inner, outer, sure | (steady & looked[inner]))


def _with_hosts(objects, home, inner, outer, good):
    """Give each inner object its host; those that lie on one without being `good` go."""
    area = objects.detections.area * 4.0**objects.detections.level
    host, stays = np.full(len(objects), -1), np.ones(len(objects), dtype=bool)
    # From large to small, so that a knot of a knot is left to the galaxy behind both.
    for level in np.unique(home)[::-1]:
        pairs = np.flatnonzero((home[inner] == level) & stays[outer])
        pairs = pairs[np.lexsort([-outer[pairs], -area[outer[pairs]]])]
        host[inner[pairs]] = outer[pairs]
        verdict = np.ones(len(objects), dtype=bool)
        verdict[inner[pairs]] = good[pairs]
        stays &= verdict
    flags = objects.flags | np.where(host >= 0, BLENDED, 0).astype(np.int32)
    return replace(objects, host=host, flags=flags).select(stays)


def _seen_above(objects, side, grid):
    """Which objects were seen in the grid above level 0, and which on the coarsest level where they measure 8 px."""
    level = np.clip(np.floor(np.log2(np.maximum(side / _READABLE, 1))), 0, grid.n_levels - 1)
    of_grid = objects.seen_tile < len(grid)
    who, seen_on = objects.seen_object[of_grid], grid.level_of(objects.seen_tile[of_grid])
    above, coarsest = np.zeros((2, len(objects)), dtype=bool)
    above[who[seen_on > 0]] = True
    coarsest[who[seen_on == level[who]]] = True
    return above, coarsest


def _in_half_ellipse(found, inner, outer):
    """Whether the middle of each inner one lies in the ellipse that holds half of the outer mask.

    A uniform ellipse with the mask's second moments ends at a Mahalanobis distance of 2; the concentric one of
    half its area ends at the square root of 2.
    """
    hosts, place = np.unique(outer, return_inverse=True)
    centre, covariance = _moments(found, hosts)
    middle = (found.extent[inner, :2] + found.extent[inner, 2:]) / 2 * 2.0 ** found.level[inner][:, None]
    away = (middle - centre[place])[:, :, None]
    return (away * np.linalg.solve(covariance[place], away)).sum(axis=(1, 2)) < 2


def _moments(found, index):
    """Centres and covariances of masks, in edge coordinates and pixels of level 0."""
    centre, covariance = np.zeros((len(index), 2)), np.zeros((len(index), 2, 2))
    for row, i in enumerate(index):
        scale = 2.0 ** found.level[i]
        _, y, x = found.pixels([i])
        points = (np.stack([y, x]) + 0.5) * scale
        centre[row] = points.mean(axis=1)
        # The variance within a pixel keeps that of a line from being singular.
        covariance[row] = np.cov(points, bias=True) + np.eye(2) * scale**2 / 12
    return centre, covariance


def _inside(found, home, around, share):
    """Pairs ``inner, outer`` with a `share` of the inner mask in the outer one, which `around` is true for.

    The inner one is at home on a finer level.
    """
    area = found.area * 4.0**found.level

    def wanted(inner, outer):
        return around[outer] & (home[inner] < home[outer])

    def plausible(i, j, room):
        pixel = 4.0 ** np.maximum(found.level[i], found.level[j])
        inner = np.where(wanted(i, j), area[i], area[j]) / pixel
        return (wanted(i, j) | wanted(j, i)) & (_SLACK * np.maximum(room, 1) >= share * inner)

    parts = []
    for pairs in overlaps(found, plausible, around):
        swap = ~wanted(pairs.i, pairs.j)
        inner, outer = np.where(swap, pairs.j, pairs.i), np.where(swap, pairs.i, pairs.j)
        within = pairs.shared >= share * np.where(swap, pairs.area_j, pairs.area_i)
        parts.append((inner[within], outer[within]))
    return _join(parts, (np.int64, np.int64))


def _flag_edges(objects, grid):
    found = objects.detections
    shapes = np.array([grid.level_shape(k) for k in range(grid.n_levels)])[found.level]
    mask_box = found.mask_box
    at_edge = ((mask_box[:, :2] <= 0) | (mask_box[:, 2:] >= shapes)).any(axis=1)
    return replace(objects, flags=objects.flags | np.where(at_edge, EDGE_TRUNCATED, 0).astype(np.int32))


def _flag_capped(objects, capped):
    hit = np.zeros(len(objects), dtype=bool)
    hit[objects.seen_object[np.isin(objects.seen_tile, parent_index(capped))]] = True
    return replace(objects, flags=objects.flags | np.where(hit, CAPPED, 0).astype(np.int32))


# Small tools ------------------------------------------------------------------------------------------------


def _full_side(found):
    """Larger side in pixels of level 0."""
    return found.side * 2.0**found.level


def _by_position(found):
    centre = (found.extent[:, :2] + found.extent[:, 2:]) / 2 * 2.0 ** found.level[:, None]
    return np.lexsort([found.p_spiral, found.score, found.tile, *found.extent.T, centre[:, 1], centre[:, 0]])


def _places(order):
    """The place of each item in an order; of places, the order."""
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def _is_first(values):
    """Whether each of some numbers from 0 on is there for the first time."""
    first = np.empty(values.max(initial=-1) + 1, dtype=np.int64)
    first[values[::-1]] = np.arange(len(values))[::-1]  # of equal ones the last stays
    return first[values] == np.arange(len(values))


def _is_among(values, others):
    """Whether each of some numbers from 0 on is among others, which are no larger than the largest of them."""
    there = np.zeros(values.max(initial=-1) + 1, dtype=bool)
    there[others] = True
    return there[values]


def _number(a, b):
    """A number for each distinct pair ``a[p], b[p]``, from 0 on."""
    order = np.lexsort([b, a])
    a, b = a[order], b[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    return number


def _unique_pairs(a, b):
    """Distinct pairs ``a[p], b[p]``, sorted."""
    order = np.lexsort([b, a])
    a, b = a[order], b[order]
    first = np.ones(len(a), dtype=bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return a[first], b[first]


def _is_in(a, b, sorted_a, sorted_b):
    """Whether each pair ``a[p], b[p]`` is among the given sorted ones."""
    width = max(b.max(initial=0), sorted_b.max(initial=0)) + 1
    wanted, known = a * width + b, sorted_a * width + sorted_b
    place = np.searchsorted(known, wanted)
    return np.append(known, -1)[place] == wanted


def _join(parts, dtypes):
    if not parts:
        return tuple(np.empty(0, dtype) for dtype in dtypes)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
