"""Robustness of ensembles of trees in Linf: certified margins, and exact smallest distances.

A ball of Linf, cut to the box of legal inputs, reaches those leaves of a tree whose boxes it
meets. The sum over trees of the best leaf that is reached bounds a margin. Merged trees (pairs of
leaves whose boxes meet) give tighter sums (Chen et al. 2019, arXiv:1906.03849), and cutting the
input space until the best leaves of all trees meet is exact.

Inputs are float32, and legal points too. Sizes and distances are float64. A row that meets an error
or its time limit says nothing more than what was proved by then.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from holdfast.targets.trees import Trees

Box = tuple[Any, Any]  # the least and the largest legal inputs: numbers, [f], or [n, f]
Levels = Mapping[int, np.ndarray]  # of features that hold a few values alone: these, in order
# of inputs [m, f], and which rows they are changes of [m], the model's decisions [m]
Labels = Callable[[np.ndarray, np.ndarray], np.ndarray]

_CELLS = 50_000_000  # entries of one array of boxes of leaves, beyond which a row is left alone
_TRIED = 4  # features on which a cut is tried
_HELD = 20_000_000  # entries of such arrays of the rows that are searched at once
_MOST = 64  # of these rows
_STEP = 1 / 16  # less than the least margin of whole votes


@dataclass(frozen=True)
class Nearest:
    """What is known of the smallest perturbation that changes a row's decision."""

    safe: float  # every legal point of a smaller size is decided rightly
    size: float = math.inf  # of `point`
    point: np.ndarray | None = None  # [f] float32: legal, and decided wrongly by the model itself
    exact: bool = False  # `size` is the smallest; or, without a point, there is none within eps


Asking = Generator[np.ndarray, int, Nearest]  # what asks for the model's decisions of points [f]


def tied(trees: Trees, y: np.ndarray) -> np.ndarray:
    """The largest margins z_y - z_j at which a model may still decide for j: [n, k].

    What the library's sums may be off by; where they are exact, the first of equal classes wins.
    """
    if trees.rounding:
        return np.full((len(y), trees.value.shape[1]), trees.rounding)
    return np.where(np.arange(trees.value.shape[1]) < y[:, None], 0.0, -_STEP)


def proved(trees: Trees, margins: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether lower bounds of margins [n, k] prove that the model decides for y: [n] bool."""
    own = np.arange(margins.shape[1]) == y[:, None]
    return (own | (np.isfinite(margins) & (margins > tied(trees, y)))).all(1)


def lower(
    trees: Trees,
    x: np.ndarray,
    y: np.ndarray,
    eps: Any,
    box: Box,
    *,
    whole: np.ndarray | None = None,
    levels: Levels | None = None,
    merged: int = 0,
) -> np.ndarray:
    """Lower bounds [n, k] float64 of the margins z_y - z_j over all legal points; -inf: none.

    Args:
        x: float32 inputs [n, f], within the box.
        y: classes [n].
        eps: how far each feature may change: a number, [f], or [n, f]; 0: not at all. A judge's
            tolerance belongs into it: a leaf may begin just behind the threat's own eps.
        box: of legal inputs.
        whole, levels: as of `exact`.
        merged: up to how many leaves trees are merged to; 0: they are not.
    """
    k = trees.value.shape[1]
    found = np.full((len(x), k), -np.inf)
    for i, row in enumerate(_rows(x, box, eps, whole, levels)):
        leaves = _reached(trees, row, 1.0)
        if leaves is None:
            continue
        if merged:
            leaves = _merged(leaves, merged)
        margins = leaves.value[:, y[i], None] - leaves.value
        found[i] = trees.base[y[i]] - trees.base
        found[i] += np.minimum.reduceat(margins, leaves.starts, axis=0).sum(0)
    found[np.arange(len(x)), y] = np.inf
    return found


def exact(
    trees: Trees,
    x: np.ndarray,
    y: np.ndarray,
    labels: Labels,
    box: Box,
    *,
    scale: Any = 1.0,
    whole: np.ndarray | None = None,
    levels: Levels | None = None,
    eps: Any = math.inf,
    goal: Any = None,
    seconds: float = 10.0,
    regions: float = math.inf,
    repaired: bool = False,
) -> list[Nearest]:
    """The smallest legal perturbation of each row that the model decides wrongly.

    Best first: a region's key is the least size at which the sum over trees of the best leaves
    within it makes the margin small enough. Where these leaves meet, they hold a point of that
    size, and the model is asked about it; else they disagree on a feature, where the region is cut
    in two.

    Args:
        x: float32 inputs [n, f], within the box.
        y: classes [n].
        labels: the model itself. What it says of a point outweighs the sums.
        box: of legal inputs.
        scale: what a feature's change is measured in: a number, or [f]; 0: it may not change.
        whole: which features hold whole numbers, as the rows do: [f] bool; None: none.
        levels: of other features that hold a few values alone, as the rows do.
        eps: the largest size that matters, a judge's tolerance included: a number, or [n]; inf:
            any.
        goal: the class that the model is to decide for, a number or [n]; None: any but y.
        seconds: for one row, without the model's; what is safe by then is said.
        regions: the most that the search for one row opens; from there it takes the nearest half
            each time, and never goes back.
        repaired: whether the model is asked about another point nearby, so that what it says may
            not be what the sums say.
    """
    rows = _rows(x, box, scale, whole, levels)
    goals = [None] * len(x) if goal is None else np.broadcast_to(goal, len(x)).tolist()
    sizes = np.broadcast_to(np.asarray(eps, np.float64), len(x)).tolist()
    searches = [
        _Search(trees, row, int(label), aim, size, seconds, regions, repaired).run()
        for row, label, aim, size in zip(rows, y, goals, sizes, strict=True)
    ]
    cells = len(trees.low) * len(np.unique(trees.feature)) * trees.value.shape[1]
    return _together(searches, labels, max(1, min(_MOST, _HELD // cells)))


def _together(searches: list[Asking], labels: Labels, most: int) -> list[Nearest]:
    """What searches end with, of which so many ask the model at once."""
    found, waiting = [Nearest(0.0)] * len(searches), list(enumerate(searches))[::-1]
    asked = list[tuple[int, Asking, np.ndarray]]()

    def go_on(i: int, search: Asking, said: int | None) -> None:
        try:
            asked.append((i, search, next(search) if said is None else search.send(said)))
        except StopIteration as end:
            found[i] = end.value

    while waiting or asked:
        while waiting and len(asked) < most:
            go_on(*waiting.pop(), None)
        if asked:
            at, running, points = zip(*asked, strict=True)
            asked.clear()
            said = labels(np.stack(points), np.array(at)).tolist()
            for one in zip(at, running, said, strict=True):
                go_on(*one)
    return found


@dataclass(frozen=True, eq=False)
class _Leaves:
    """The leaves of all trees that one row's ball reaches, tree after tree."""

    features: np.ndarray  # [f'] those that the ball does not hold to one side of all limits
    low: np.ndarray  # [leaves, f'] float32
    high: np.ndarray
    value: np.ndarray  # [leaves, k]
    size: np.ndarray  # [leaves] how large a perturbation has to be to reach it
    starts: np.ndarray  # [trees] the first leaf of each

    def parts(self) -> list[slice]:
        return [slice(*ends) for ends in itertools.pairwise([*self.starts, len(self.size)])]


def _reached(trees: Trees, row: _Row, eps: float) -> _Leaves | None:
    """The leaves within eps of a row; None where the row is not within the box, or they are too
    many."""
    x, at = row.x, trees.feature
    if not ((row.least <= x) & (x <= row.most)).all():
        return None
    whole = row.whole[at]
    lows = np.where(whole, np.ceil(trees.low), trees.low)
    highs = np.where(whole, np.floor(trees.high), trees.high)
    for f, values in row.levels.items():
        own, ends = at == f, np.concatenate([[-np.inf], values, [np.inf]])
        lows[own] = ends[1 + np.searchsorted(values, lows[own])]
        highs[own] = ends[np.searchsorted(values, highs[own], "right")]
    low, high = np.maximum(lows, row.least[at]), np.minimum(highs, row.most[at])
    size = _size(np.maximum(low - x[at], x[at] - high), row.scale[at])
    kept = (size <= eps) & (size < np.inf) & (low <= high).all(1)
    span = np.multiply(row.scale, eps, out=np.zeros_like(row.scale), where=row.scale > 0)
    cut = (lows > np.maximum(x - span, row.least)[at]) | (
        highs < np.minimum(x + span, row.most)[at]
    )
    features = np.unique(at[kept][cut[kept]])
    if kept.sum() * len(features) > _CELLS:
        return None
    low, high = (
        _dense(at[kept], side[kept], features, len(x), fill)
        for side, fill in ((lows, -np.inf), (highs, np.inf))
    )
    starts = np.flatnonzero(np.diff(trees.tree[kept], prepend=-1))
    return _Leaves(features, low, high, trees.value[kept], size[kept], starts)


def _size(gap: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The Linf size of changes [n, d], which are at least these gaps, in units of `scale`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap > 0, gap / scale, 0.0).max(1, initial=0.0)


def _dense(
    at: np.ndarray, side: np.ndarray, features: np.ndarray, width: int, fill: float
) -> np.ndarray:
    """Ends of leaves [m, d], of the features `at`, as ends [m, f'] of these features."""
    places = np.full(width, len(features))
    places[features] = np.arange(len(features))
    found = np.full((len(at), len(features) + 1), fill, np.float32)
    rows, limited = np.arange(len(at)), np.isfinite(side)
    for at_one, side_one, some in zip(at.T, side.T, limited.T, strict=True):
        found[rows[some], places[at_one[some]]] = side_one[some]
    return found[:, :-1]


def _merged(leaves: _Leaves, most: int) -> _Leaves:
    """The same sum with fewer trees: the two smallest are one, while it has at most so many
    leaves."""
    sides = (leaves.low, leaves.high, leaves.value, leaves.size)
    count = itertools.count()
    heap = [
        (part.stop - part.start, next(count), tuple(side[part] for side in sides))
        for part in leaves.parts()
    ]
    heapq.heapify(heap)
    while True:
        few, _, one = heapq.heappop(heap)
        if not heap or few * heap[0][0] > most:
            break
        _, _, other = heapq.heappop(heap)
        low = np.maximum(one[0][:, None], other[0])
        high = np.minimum(one[1][:, None], other[1])
        meet = (low <= high).all(2)
        value = (one[2][:, None] + other[2])[meet]
        size = np.maximum(one[3][:, None], other[3])[meet]
        heapq.heappush(heap, (len(size), next(count), (low[meet], high[meet], value, size)))
    groups = [one, *(group for _, _, group in heap)]
    starts = np.cumsum([0, *(len(group[3]) for group in groups)])[:-1]
    low, high, value, size = map(np.concatenate, zip(*groups, strict=True))
    return _Leaves(leaves.features, low, high, value, size, starts)


@dataclass(frozen=True, eq=False)
class _Node:
    """A region of the input space, and what its best leaves say of one other class."""

    low: np.ndarray  # [f'] float32
    high: np.ndarray
    size: float  # of the smallest perturbation into the region
    open: np.ndarray  # [trees, leaves] bool: the leaves that meet it
    best: np.ndarray  # [trees] the best of them, at `key`
    key: float


class _OtherClass:
    """The leaves of one row, and its margin over one other class by them: [trees, leaves] each,
    nearest leaf first, padded."""

    def __init__(self, leaves: _Leaves, y: int, j: int, base: float, limit: float) -> None:
        margin = leaves.value[:, y] - leaves.value[:, j]
        parts = [part for part in leaves.parts() if np.ptp(margin[part]) > 0]
        fixed = [part for part in leaves.parts() if np.ptp(margin[part]) == 0]
        self.limit = limit - base - sum(float(margin[part.start]) for part in fixed)
        wide = max((part.stop - part.start for part in parts), default=0)
        place = np.full((len(parts), wide), -1)
        for i, part in enumerate(parts):
            place[i, : part.stop - part.start] = part.start + np.argsort(
                leaves.size[part], kind="stable"
            )
        self.there = place >= 0
        self.margin = np.where(self.there, margin[place], np.inf)
        self.size = np.where(self.there, leaves.size[place], np.inf)
        self.low, self.high = (
            np.moveaxis(side[place], 2, 0).copy() for side in (leaves.low, leaves.high)
        )
        later = self.size[:, 1:].ravel()
        self.order = np.argsort(later, kind="stable")
        self.later = later[self.order]
        self.rows = np.arange(len(parts))

    def node(
        self, low: np.ndarray, high: np.ndarray, size: float, open: np.ndarray
    ) -> _Node | None:
        """A region with its key; None where no point of it makes the margin small enough."""
        if not open.size:
            return _Node(low, high, size, open, self.rows, size) if self.limit >= 0 else None
        if not open.any(1).all():
            return None
        running = np.minimum.accumulate(np.where(open, self.margin, np.inf), 1)
        first = open.argmax(1)
        total = running[self.rows, first].sum()
        size = max(size, float(self.size[self.rows, first].max()))
        key = size
        if total > self.limit:
            known = np.isfinite(running[:, :-1])
            drops = np.zeros(known.shape)
            np.subtract(running[:, :-1], running[:, 1:], out=drops, where=known)
            low_enough = total - np.cumsum(drops.ravel()[self.order]) <= self.limit
            if not low_enough.any():
                return None
            key = max(size, float(self.later[low_enough.argmax()]))
        reached = open & (self.size <= key)
        best = np.where(reached, self.margin, np.inf).argmin(1)
        return _Node(low, high, size, open, best, key)

    def meeting(self, node: _Node) -> tuple[np.ndarray, np.ndarray]:
        """The ends [f'] of what the best leaves and the region have in common; the low one is above
        the high one where nothing is."""
        low = self.low[:, self.rows, node.best].max(1, initial=-np.inf)
        high = self.high[:, self.rows, node.best].min(1, initial=np.inf)
        return np.maximum(low, node.low), np.minimum(high, node.high)


@dataclass(frozen=True, eq=False)
class _Row:
    """A row, and how its features may change: [f] each, float64 but for `whole`; and their
    levels."""

    x: np.ndarray
    least: np.ndarray
    most: np.ndarray
    scale: np.ndarray
    whole: np.ndarray
    levels: Levels

    def take(self, features: np.ndarray) -> _Row:
        columns = (self.x, self.least, self.most, self.scale, self.whole)
        x, least, most, scale, whole = (column[features] for column in columns)
        places = enumerate(features.tolist())
        levels = {i: self.levels[f] for i, f in places if f in self.levels}
        return _Row(x, least, most, scale, whole, levels)

    def beyond(self, f: int, value: Any, side: float) -> np.float32:
        """The next value that feature f can have on this side (-1 or 1); infinite: none."""
        if f in self.levels:
            values = self.levels[f]
            others = values[values < value] if side < 0 else values[values > value]
            nearest = others[np.argsort(abs(others - value))[:1]]
            return np.float32(nearest[0] if len(nearest) else side * np.inf)
        after = np.nextafter(value, np.float32(side * np.inf))
        if self.whole[f] and abs(value + side - value) == 1:
            return np.float32(value + side)
        return after

    def part(self, other: _OtherClass, node: _Node, f: int, low: Any, high: Any) -> _Node | None:
        """The part of a region in which feature f lies between these."""
        gap = np.maximum(np.float64(low) - self.x[f], self.x[f] - np.float64(high))
        size = max(node.size, float(_size(gap[None, None], self.scale[f])[0]))
        if not low <= high or size == math.inf:
            return None
        lows, highs = node.low.copy(), node.high.copy()
        lows[f], highs[f] = low, high
        open = node.open & (other.low[f] <= high) & (other.high[f] >= low)
        return other.node(lows, highs, size, open)

    def halves(
        self, other: _OtherClass, node: _Node, low: np.ndarray, high: np.ndarray
    ) -> list[_Node | None]:
        """The region in two, cut where its best leaves, that meet in [low, high], do not: of a few
        features the one whose halves are farthest away."""
        apart = np.flatnonzero(low > high)
        wrong = other.low[apart][:, other.rows, node.best] > high[apart, None]
        tried = apart[
            np.argsort(-np.minimum(wrong.sum(1), (~wrong).sum(1)), kind="stable")[:_TRIED]
        ]
        found = []
        for f in tried.tolist():
            below, above = high[f], self.beyond(f, high[f], 1)
            halves = [
                self.part(other, node, f, node.low[f], below),
                self.part(other, node, f, above, node.high[f]),
            ]
            keys = sorted(math.inf if half is None else half.key for half in halves)
            found.append((keys, halves))
        return max(found, key=lambda one: one[0])[1]

    def around(
        self, other: _OtherClass, node: _Node, low: np.ndarray, high: np.ndarray
    ) -> list[_Node | None]:
        """The region without what lies within [low, high]."""
        found, rest = [], node
        for f in range(len(low)):
            if low[f] > node.low[f]:
                before = self.beyond(f, low[f], -1)
                found.append(self.part(other, rest, f, node.low[f], before))
            if high[f] < node.high[f]:
                after = self.beyond(f, high[f], 1)
                found.append(self.part(other, rest, f, after, node.high[f]))
            lows, highs = rest.low.copy(), rest.high.copy()
            lows[f], highs[f] = low[f], high[f]
            rest = replace(rest, low=lows, high=highs)
        return found


def _rows(x: np.ndarray, box: Box, scale: Any, whole: Any, levels: Levels | None) -> list[_Row]:
    """Rows [n, f], of whose features `scale`, and each side of the box, is a number, [f] or
    [n, f]."""
    least, most, scale = (
        np.broadcast_to(np.asarray(side, np.float64), x.shape) for side in (*box, scale)
    )
    whole = np.broadcast_to(np.asarray(False if whole is None else whole), x.shape)
    return [
        _Row(row.astype(np.float64), least[i], most[i], scale[i], whole[i], levels or {})
        for i, row in enumerate(x)
    ]


@dataclass(frozen=True, eq=False)
class _Search:
    """Of one row of class y: see `exact`."""

    trees: Trees
    row: _Row
    y: int
    goal: int | None
    eps: float
    seconds: float
    regions: float
    repaired: bool

    def run(self) -> Asking:
        """Asks about points [f], and is told what the model decides."""
        trees, row, y, goal = self.trees, self.row, self.y, self.goal
        eps, regions = self.eps, self.regions
        end = time.monotonic() + self.seconds
        leaves = _reached(trees, row, eps)
        if leaves is None:
            return Nearest(0.0)
        part = row.take(leaves.features)
        limits, count = tied(trees, np.array([y]))[0], itertools.count()
        heap: list[tuple[float, int, _OtherClass, _Node]] = []

        def push(other: _OtherClass, node: _Node | None) -> None:
            if node is not None and node.key <= eps:
                heapq.heappush(heap, (node.key, -next(count), other, node))  # of equals the deepest

        for j in range(len(limits)):
            if j != y and goal in (None, j):
                other = _OtherClass(leaves, y, j, trees.base[y] - trees.base[j], limits[j])
                whole = np.full(len(leaves.features), np.inf, np.float32)
                push(other, other.node(-whole, whole, 0.0, other.there))
        safe = 0.0
        while heap:
            key, _, other, node = heapq.heappop(heap)
            regions -= 1
            if regions >= 0:
                safe = key
            else:
                heap.clear()
            if time.monotonic() > end:
                return Nearest(safe)
            low, high = other.meeting(node)
            if (low > high).any():
                rest = part.halves(other, node, low, high)
            else:
                for point in self._tried(leaves.features, low, high):
                    begun = time.monotonic()
                    label = yield point
                    end += time.monotonic() - begun
                    if label == goal or (goal is None and label != y):
                        size = _size(abs(point.astype(np.float64) - row.x)[None], row.scale)
                        return Nearest(safe, float(size[0]), point, exact=regions >= 0)
                    if not self.repaired and _decided(trees, point, y, goal):
                        return Nearest(0.0)  # the model does not decide as its trees add up
                rest = part.around(other, node, low, high)
            for node in rest:
                push(other, node)
        none = Nearest(math.nextafter(eps, math.inf), exact=True)
        return none if regions >= 0 else Nearest(safe)

    def _tried(self, features: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
        """The nearest point [f] of a region of the input space; where the model is asked about
        others, also its middle, as far as legal points reach."""
        row, nearest = self.row.take(features), self.row.x.astype(np.float32)
        nearest[features] = np.clip(nearest[features], low, high)
        if not self.repaired:
            return [nearest]
        with np.errstate(invalid="ignore"):
            span = np.where(row.scale > 0, self.eps * row.scale, 0.0)
        least = np.maximum(low, np.maximum(row.least, row.x - span))
        most = np.minimum(high, np.minimum(row.most, row.x + span))
        middle = nearest.copy()
        middle[features] = np.where(least < most, (least + most) / 2, nearest[features])
        return [nearest, middle]


def _decided(trees: Trees, point: np.ndarray, y: int, goal: int | None) -> bool:
    """Whether the trees leave no doubt that a point [f] meets the goal."""
    z = trees.scores(point[None])[0]
    if goal is None:
        return bool(np.delete(z, y).max() - z[y] > trees.rounding)
    return bool(z[goal] - np.delete(z, goal).max() > trees.rounding)
