"""Bounds of every value in a network over a region of inputs: intervals forward, lines backward.

IBP: Gowal et al. 2018, arXiv:1810.12715. CROWN: Zhang et al. 2018, arXiv:1811.00866.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.func import vmap

from holdfast.bounds.affine import Window, cropped, sides, whole
from holdfast.bounds.alpha import best_values
from holdfast.bounds.graph import Graph, Node
from holdfast.bounds.regions import Interval, Region
from holdfast.bounds.relaxations import Lines, Rule

SLOPES = {"ibp": 0, "crown": 0, "alpha-crown": 20}  # steps; each at least as tight as the last
# Numbers in the largest tensor of one backward pass: on a CPU what its caches hold.
PART, PART_ON_CPU = 1 << 25, 1 << 17
SPARE = 8  # operations of an entry that are no sum, such as those of a batch normalisation
# What the computation of bounds itself, in float64, rounds by: 512 times its unit, for an entry may
# be in more sums of a backward pass than it sums of a forward one.
OWN_UNIT = 2.0**-44
LEAST = 1e-9  # a margin that cannot be below it is said to be it
REACH = 8  # a margin is given up that so many more gains like the last one would not prove


class Rows:
    """What is known of a network over the regions of rows of classes y [n]; it only gets tighter.

    The network is that of real arithmetic, and also any that computes the same with every operation
    rounded by `unit`, relatively. The result of an operator of the latter is off by at most its
    `noise` from what real arithmetic makes of the same arguments.

    intervals: a pair lo <= hi, [n, *node.shape] each, for every node, of both.
    lower: below score of y less score of class j, in real arithmetic: [n, k]; inf for y itself, and
        for all but the classes that are aimed at, [n], where some are.
    rounded: the same of the network that rounds.

    Where `unit` is None, rounding is left out, that of the bounds themselves, too: nothing is
    proved then.
    """

    def __init__(
        self,
        graph: Graph,
        region: Region,
        y: Tensor,
        unit: float | None = 0.0,
        aims: Tensor | None = None,
    ) -> None:
        self.graph = graph
        self.region = region
        self.y = y
        self.unit = None if unit is None else unit + OWN_UNIT
        self.intervals: list[Interval] = []
        self.noise: dict[int, Tensor] = {}
        for i, node in enumerate(graph.nodes):
            self.intervals.append(self._forward(i, node))
        self.lines: dict[int, Lines] = {}
        self.sums: dict[int, Tensor] = {}  # lo + hi where CROWN alone says them
        scores = self.intervals[-1][0][:, 0]
        every = torch.arange(scores.shape[1], device=y.device)
        free = every == y[:, None]
        if aims is not None:
            free = free | (every != aims[:, None])
        self.lower = torch.full_like(scores, -torch.inf).masked_fill(free, torch.inf)
        self.rounded = self.lower.clone()

    def each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The same with every tensor changed."""
        part = copy(self)
        part.region = self.region.each(change)
        part.y, part.lower, part.rounded = map(change, (self.y, self.lower, self.rounded))
        part.intervals = [(change(lo), change(hi)) for lo, hi in self.intervals]
        part.noise = {i: change(noise) for i, noise in self.noise.items()}
        part.lines = {i: lines.each(change) for i, lines in self.lines.items()}
        part.sums = {i: change(total) for i, total in self.sums.items()}
        return part

    def at(self, rows: Tensor) -> Rows:
        """What is known of these rows alone, to climb on with."""
        return self.each(lambda part: part[rows])

    @property
    def last(self) -> int:
        """The node of the scores."""
        return len(self.graph.nodes) - 1

    @property
    def left(self) -> Tensor:
        """The margins that are not proved of the network that rounds: bool [n, k]."""
        return ~(self.rounded > 0)

    def climb(self, method: str) -> Tensor:
        """Bound by one of SLOPES, and keep what is better: `lower`.

        "alpha-crown" goes on only where a margin is not proved, and seeks slopes for the intervals
        of those rows alone that it does not prove without.
        """
        steps = SLOPES[method]
        if method == "ibp":
            self._keep(through=False)
        elif not steps:
            self._tighten()
            self._keep()
        else:
            if not self.lines:
                self._tighten()
            self._suppose(steps)
            rows = self.left.any(1).nonzero().flatten()
            if len(rows):
                part = self.at(rows)
                part._tighten(steps)
                part._keep()
                self._put(rows, part)
                part._suppose(steps)
                self.lower[rows], self.rounded[rows] = part.lower, part.rounded
        return self.lower

    def _put(self, rows: Tensor, part: Rows) -> None:
        """Take over what is known of these rows' intervals, and lines in them."""
        for i, ((lo, hi), own) in enumerate(zip(self.intervals, part.intervals, strict=True)):
            self.intervals[i] = lo.index_copy(0, rows, own[0]), hi.index_copy(0, rows, own[1])
        self.draw_lines()

    def draw_lines(self) -> None:
        """Lines in the intervals of every activation, as they are known."""
        for i, node in enumerate(self.graph.nodes):
            if node.rule is not None:
                lo, hi = self.intervals[node.parents[0]]
                self.lines[i] = node.rule.lines(lo, hi, lo + hi)

    def _forward(self, i: int, node: Node) -> Interval:
        """The interval of a node from those of its parents, and its noise."""
        if not node.parents:
            lo, hi = self.region.interval()
            return lo[:, None], hi[:, None]
        given = [self.intervals[p] for p in node.parents]
        if node.rule is not None:
            lo, hi = node.rule.interval(*given[0])
        else:
            centre = vmap(node.value)(*((lo + hi) / 2 for lo, hi in given))
            radius = vmap(node.spread)(*((hi - lo) / 2 for lo, hi in given)).abs()
            lo, hi = centre - radius, centre + radius
        noise = None if self.unit is None else self._noise(node, given, self.unit)
        if noise is None:
            return lo, hi
        self.noise[i] = noise
        return lo - noise, hi + noise

    def _noise(self, node: Node, given: list[Interval], unit: float) -> Tensor | None:
        """The most that rounding takes an operator's result off, from the intervals of what it
        takes; None: 0.

        A sum of m terms, in whatever order, is off by at most m unit / (1 - m unit) times the sum
        of their sizes (Higham 2002, section 3.1). Terms that are 0 are added without an error.
        """
        if node.rule is not None:
            return node.rule.noise(*given[0], unit)
        if node.terms is None:
            return None
        sizes = [torch.maximum(-lo, hi) for lo, hi in given]
        terms = vmap(node.terms)(*((size > 0).double() for size in sizes)) + SPARE
        share = terms * unit / (1 - terms * unit)
        return share * (vmap(node.spread)(*sizes) + node.shift)

    def _tighten(self, steps: int = 0) -> None:
        """CROWN's bounds of what every activation takes, each with those before it; alpha-CROWN's
        with so many steps."""
        asking: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            if node.rule is not None:
                asking.setdefault(node.parents[0], []).append(node)
        for i, node in enumerate(self.graph.nodes):
            if not node.parents:
                continue
            self._narrow(i, *self._forward(i, node))
            if node.rule is not None:
                origin = node.parents[0]
                lo, hi = self.intervals[origin]
                self.lines[i] = node.rule.lines(lo, hi, self.sums.get(origin, lo + hi))
            exact = self.region.norm.boxed and self.region.slope is None
            rules = [one.rule for one in asking.get(i, ()) if one.rule]
            if rules and not (exact and i in self.graph.separate):
                asks = [rule.asks(*self.intervals[i]) for rule in rules]
                enough = 0.0 if all(rule.bent for rule in rules) else torch.inf
                self._ask(i, torch.stack(asks).any(0), steps, enough)

    def _narrow(self, i: int, lo: Tensor, hi: Tensor) -> None:
        held = self.intervals[i]
        lo, hi = torch.maximum(lo, held[0]), torch.minimum(hi, held[1])
        # where rounding crossed them
        self.intervals[i] = torch.minimum(lo, hi), torch.maximum(lo, hi)

    def _ask(self, i: int, asks: Tensor, steps: int, enough: float) -> None:
        """Bound these entries [n, *shape] of a node, each row its own."""
        entries, rows = asks.flatten(1).T.nonzero(as_tuple=True)  # rows of one entry together
        if not len(rows):
            return
        lo, hi = (side.flatten(1).clone() for side in self.intervals[i])
        for window, at in self._tiles(i, entries):
            windows = self.graph.windows(i, window)
            ask = partial(self._both, i, windows, steps, enough)
            for part in at.split(self._at_once(windows)):
                row, entry = rows[part], entries[part]
                lo[row, entry], hi[row, entry] = ask(row, entry)
        self.sums[i] = (lo + hi).view_as(asks)
        self._narrow(i, lo.view_as(asks), hi.view_as(asks))

    def _at_once(self, windows: dict[int, Window]) -> int:
        """As many backward passes over these windows as memory should hold."""
        most = PART_ON_CPU if self.graph.device.type == "cpu" else PART
        return max(1, most // self.graph.widest(windows))

    def _tiles(self, i: int, entries: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """Windows of a node that hold these entries [p], and the places of those in each, where
        there are enough entries for it, and less of the network is behind a window than behind the
        whole."""
        shape = self.graph.nodes[i].shape
        all_at = torch.arange(len(entries), device=entries.device)
        sizes, every = shape[2:], self.graph.windows(i, ())
        corner = tuple(slice(size // 2, size // 2 + 1) for size in sizes)
        behind = self.graph.widest(self.graph.windows(i, corner))
        few = prod(sizes) * self._at_once(every) > 4 * len(entries)
        if few or behind * 2 > self.graph.widest(every):
            yield (), all_at
            return
        place = entries % prod(sizes)
        order = place.argsort(stable=True)
        places, counts = place[order].unique_consecutive(return_counts=True)
        for spot, at in zip(places.tolist(), order.split(counts.tolist()), strict=True):
            first = [int(one) for one in torch.unravel_index(torch.tensor(spot), sizes)]
            yield tuple(slice(one, one + 1) for one in first), at

    def _both(
        self,
        i: int,
        windows: dict[int, Window],
        steps: int,
        enough: float,
        rows: Tensor,
        entries: Tensor,
    ) -> Interval:
        """Bounds of an entry each of these rows, of either network, below and above: [p] each.

        Down to the first activation all rows have the same coefficients.
        """
        shape = self.graph.nodes[i].shape
        entries, share = entries.unique_consecutive(return_inverse=True)
        every = torch.arange(prod(shape), device=rows.device).view(shape)
        at = torch.searchsorted(cropped(every, windows[i]).flatten().contiguous(), entries)
        spans = [hi - lo for lo, hi in sides(windows[i], shape)]
        a = torch.zeros(len(at), prod(shape[:2]) * prod(spans), device=rows.device).double()
        a = a.scatter(1, at[:, None], 1).view(-1, *shape[:2], *spans)
        both = torch.cat([rows, rows])
        share = torch.cat([share, share + len(at)])
        pairs = both, torch.cat([a, -a]), share
        slopes = self._slopes(i, *pairs, windows, steps, enough)
        _, low = self.backward(i, *pairs, windows=windows, slopes=slopes)
        lo, hi = low.view(2, -1)
        return lo, -hi

    def _slopes(
        self,
        i: int,
        rows: Tensor,
        a: Tensor,
        share: Tensor | None,
        windows: dict[int, Window],
        steps: int,
        enough: float,
    ) -> dict[int, Tensor] | None:
        """The lower slopes that some steps find for what `backward` bounds."""
        if not steps:
            return None
        start, limits = {}, {}
        for k, line in self.lines.items():
            if k < i and k in windows and line.free:
                line = line.each(partial(cropped, window=windows[k]))
                assert line.least is not None
                assert line.most is not None
                start[k], limits[k] = line.low[rows], (line.least[rows], line.most[rows])

        def bound(slopes: Mapping[int, Tensor], at: Tensor) -> Tensor:
            pairs = (a[at], None) if share is None else (a, share[at])
            return self.backward(i, rows[at], *pairs, windows=windows, slopes=slopes, search=True)[
                0
            ]

        return best_values(bound, start, limits, steps, enough)

    def _keep(self, *, through: bool = True) -> None:
        """Bound all margins, and keep what is better."""
        rows, classes = (self.lower < torch.inf).nonzero(as_tuple=True)
        found = [
            self.backward(self.last, rows[at], self.margins(rows[at], classes[at]), through=through)
            for at in self._in_parts(rows)
        ]
        self.lower, self.rounded = self.lower.clone(), self.rounded.clone()
        self._raise(rows, classes, torch.cat(found, 1))

    def _raise(self, rows: Tensor, classes: Tensor, found: Tensor) -> None:
        """Keep what is better of bounds [2, p] of the margins of rows over classes."""
        for held, values in zip((self.lower, self.rounded), found, strict=True):
            held[rows, classes] = torch.maximum(held[rows, classes], values)

    def _in_parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Places of as many pairs as are bounded from the scores at once."""
        size = self._at_once(self.graph.windows(self.last, ()))
        return torch.arange(len(rows), device=rows.device).split(size)

    def margins(self, rows: Tensor, classes: Tensor) -> Tensor:
        """The coefficients of margins of rows over classes on the scores: [p, 1, k]."""
        one = torch.eye(self.lower.shape[1], dtype=torch.float64, device=self.y.device)
        return (one[self.y[rows]] - one[classes])[:, None]

    def _below(self, rows: Tensor, classes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """`pulled` for margins of rows over classes, with the slopes that some steps find."""
        windows, found = self.graph.windows(self.last, ()), []
        for at in self._in_parts(rows):
            a = self.margins(rows[at], classes[at])
            slopes = self._slopes(self.last, rows[at], a, None, windows, steps, 0.0)
            slope, at_0 = self.pulled(self.last, rows[at], a, windows=windows, slopes=slopes)
            assert slope is not None
            found.append((whole(slope, self.graph.nodes[0].shape, windows[0]), at_0))
        slope, at_0 = zip(*found, strict=True)
        return torch.cat(slope), torch.cat(at_0, 1)

    def _suppose(self, steps: int) -> None:
        """Bound margins that are not proved as though they were at most `LEAST`, the smallest of
        every row first, another one where it is proved.

        Where a margin is at most that, so is a linear function below it. That leaves a part of the
        region, over which all is bounded anew, the margin and the function, too, as long as it
        pays (Zhou et al. 2025, arXiv:2512.11087; Kotha et al. 2023, arXiv:2302.01404).
        """
        rows = self.left.any(1).nonzero().flatten()
        while len(rows):
            classes = self.rounded.where(self.left, torch.inf)[rows].argmin(1)
            part, at = self.at(rows), torch.arange(len(rows), device=rows.device)
            last = part.rounded[at, classes] - torch.inf
            while True:
                every = torch.arange(len(at), device=rows.device)
                slope, at_0 = part._below(every, classes[at], steps)
                found = at_0 + part.region.least(slope, every, ())
                if part.region.slope is not None:
                    found = found.clamp_max(LEAST)
                self._raise(rows[at], classes[at], found)
                now = found[1]
                going = (now <= 0) & (now + REACH * (now - last) > 0) & now.isfinite()
                at, last, part = at[going], now[going], part.at(going)
                if not len(at):
                    break
                part.region = part.region.within(slope[going], at_0[1, going] - LEAST)
                part._tighten()
            proved = self.rounded[rows, classes] > 0
            rows = rows[proved & self.left[rows].any(1)]

    def backward(
        self,
        start: int,
        rows: Tensor,
        a: Tensor,
        share: Tensor | None = None,
        *,
        windows: dict[int, Window] | None = None,
        through: bool = True,
        slopes: Mapping[int, Tensor] | None = None,
        search: bool = False,
    ) -> Tensor:
        """Lower bounds of <a, value of a node> over the regions of these rows [p], of the network
        in real arithmetic and of the one that rounds: [2, p]. Args: see `pulled`."""
        windows = self.graph.windows(start, ()) if windows is None else windows
        slope, at_0 = self.pulled(
            start,
            rows,
            a,
            share,
            windows=windows,
            through=through,
            slopes=slopes,
            search=search,
        )
        return at_0 if slope is None else at_0 + self.region.least(slope, rows, windows[0])

    def pulled(
        self,
        start: int,
        rows: Tensor,
        a: Tensor,
        share: Tensor | None = None,
        *,
        windows: dict[int, Window],
        through: bool = True,
        slopes: Mapping[int, Tensor] | None = None,
        search: bool = False,
        signs: Mapping[int, Tensor] | None = None,
        seen: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """A linear function of the input below <a, value of a node> over the regions of these rows
        [p]: its coefficients in the input's window, [p, *shape], None for none, and its value at 0
        for the network in real arithmetic and for the one that rounds: [2, p].

        Args:
            start: the node.
            rows: the row of each pair, [p].
            a: coefficients in the node's window, [p, *shape].
            share: the place in `a` of each pair's, [p], where several pairs share them.
            windows: of every node before it.
            through: whether to go on through activations, else their intervals are taken.
            slopes: lower slopes of activations where they are free, by node, [p, *shape] each.
            search: leave out what rounding takes.
            signs: multipliers of what activations take, by node, [p, *shape] each, where that is
                known to have their sign: >= 0 where it is at least 0, <= 0 where it is at most 0.
            seen: is given the coefficients on the result of every activation, [p, *shape].
        """
        held, total = {start: a}, a.new_zeros(len(a))
        off: Tensor | float = 0.0
        slope = None
        for i in range(start, -1, -1):
            if i not in held:
                continue
            node, window = self.graph.nodes[i], windows[i]
            a = held.pop(i)
            if i in self.noise and not search:
                off = off + _taken(a, cropped(self.noise[i], window), rows, share)
            if node.affine:
                if node.at_0 is not None:
                    at_0 = cropped(node.at_0, window).to(a)
                    total = total + a.flatten(1) @ at_0.flatten()
                parts = node.affine.pull(a, window, [windows[p] for p in node.parents])
            else:
                if share is not None:
                    a, total = a[share], total[share]
                    held = {k: part[share] for k, part in held.items()}
                    share = None
                if not node.parents:
                    slope = a.squeeze(1)
                    break
                if not through:
                    lo, hi = (side[rows] for side in self.intervals[i])
                    total = total + _dot(a, lo, hi)
                    continue
                if windows[node.parents[0]] != window:
                    a, window = whole(a, node.shape, window), ()
                lines = self.lines[i].each(partial(cropped, window=window))
                at_0, parts = _relaxed(node.rule, lines, rows, a, (slopes or {}).get(i))
                total = total + at_0
                if seen is not None:
                    seen[i] = a
                if signs and i in signs:  # Lagrange's dual
                    parts = (parts[0] - cropped(signs[i], window),)
            _add(held, node.parents, parts)
        return slope, torch.stack([total, total - off])


def _add(held: dict[int, Tensor], nodes: tuple[int, ...], parts: tuple[Tensor, ...]) -> None:
    """Add coefficients on nodes to those that are held: at a fork each branch brings its own."""
    for i, part in zip(nodes, parts, strict=True):
        held[i] = held[i] + part if i in held else part


def _taken(a: Tensor, noise: Tensor, rows: Tensor, share: Tensor | None) -> Tensor:
    """What noise [n, *shape] can take off <a, value>: [p]."""
    sizes, noise = a.abs().flatten(1), noise.flatten(1)
    if share is None:
        return (sizes * noise[rows]).sum(1)
    return (sizes @ noise.T)[share, rows]


def _relaxed(
    rule: Rule | None, lines: Lines, rows: Tensor, a: Tensor, slope: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Coefficients on an activation's result as those on its input, by its lines: that below where
    the coefficient is positive, that above where it is negative."""
    low = lines.low[rows] if slope is None else slope
    at_0 = _dot(a, lines.low_at_0[rows], lines.up_at_0[rows])
    a = a.view(*a.shape, *(1,) * (low.ndim - a.ndim))  # windows have an axis more
    return at_0, (a * torch.where(a > 0, low, lines.up[rows]),)


def _dot(a: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """The least of <a, v> over below <= v <= above: [p]."""
    return (a * torch.where(a > 0, below, above)).flatten(1).sum(1)
