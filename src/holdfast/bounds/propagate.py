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
from holdfast.bounds.alpha import best_slopes
from holdfast.bounds.graph import Graph, Node
from holdfast.bounds.regions import Interval, Region
from holdfast.bounds.relaxations import Lines, Rule

METHODS = {"ibp": 0, "crown": 0, "alpha-crown": 20}  # steps; each at least as tight as the last
# Numbers in the largest tensor of one backward pass: on a CPU what its caches hold.
PART, PART_ON_CPU = 1 << 25, 1 << 17
SPARE = 8  # operations of an entry that are no sum, such as those of a batch normalisation
# What the computation of bounds itself, in float64, rounds by: 512 times its unit, for an entry may
# be in more sums of a backward pass than it sums of a forward one.
OWN_UNIT = 2.0**-44


class Rows:
    """What is known of a network over the regions of rows of classes y [n]; it only gets tighter.

    The network is that of real arithmetic, and also any that computes the same with every operation
    rounded by `unit`, relatively. The result of an operator of the latter is off by at most its
    `noise` from what real arithmetic makes of the same arguments.

    intervals: a pair lo <= hi, [n, *node.shape] each, for every node, of both.
    lower: below score of y less score of class j, in real arithmetic: [n, k]; inf for y itself.
    rounded: the same of the network that rounds.
    """

    def __init__(self, graph: Graph, region: Region, y: Tensor, unit: float = 0.0) -> None:
        self.graph = graph
        self.region = region
        self.y = y
        self.unit = unit + OWN_UNIT
        self.intervals: list[Interval] = []
        self.noise: dict[int, Tensor] = {}
        for i, node in enumerate(graph.nodes):
            self.intervals.append(self._forward(i, node))
        self.lines: dict[int, Lines] = {}
        self.sums: dict[int, Tensor] = {}  # lo + hi where CROWN alone says them
        self.lower = torch.full_like(self.intervals[-1][0][:, 0], -torch.inf)
        self.rounded = self.lower

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
    def left(self) -> Tensor:
        """The margins that are not proved of the network that rounds: bool [n, k]."""
        return ~(self.rounded > 0)

    def climb(self, method: str) -> Tensor:
        """Bound by one of METHODS, and keep what is better: `lower`.

        "alpha-crown" goes on only where a margin is not proved, and changes intervals only of rows
        that better lines of the margins alone do not prove.
        """
        steps = METHODS[method]
        if method == "ibp":
            self._keep(through=False)
        elif not steps:
            self._tighten()
            self._keep()
        else:
            if not self.lines:
                self._tighten()
            self._keep(steps=steps)
            rows = self.left.any(1).nonzero().flatten()
            if len(rows):
                part = self.at(rows)
                part._tighten(steps)
                part._keep(steps=steps)
                self.lower[rows], self.rounded[rows] = part.lower, part.rounded
        return self.lower

    def _forward(self, i: int, node: Node) -> Interval:
        """The interval of a node from those of its parents, and its noise."""
        if not node.parents:
            lo, hi = self.region.interval()
            return lo[:, None], hi[:, None]
        given = [self.intervals[p] for p in node.parents]
        if node.rule is not None:
            noise = node.rule.noise(*given[0], self.unit)
            lo, hi = node.rule.interval(*given[0])
        else:
            noise = self._noise(node, [torch.maximum(-lo, hi) for lo, hi in given])
            centre = vmap(node.value)(*((lo + hi) / 2 for lo, hi in given))
            radius = vmap(node.spread)(*((hi - lo) / 2 for lo, hi in given)).abs()
            lo, hi = centre - radius, centre + radius
        if noise is None:
            return lo, hi
        self.noise[i] = noise
        return lo - noise, hi + noise

    def _noise(self, node: Node, sizes: list[Tensor]) -> Tensor | None:
        """The most that rounding takes an affine operator's result off, from the sizes of what it
        takes.

        A sum of m terms, in whatever order, is off by at most m unit / (1 - m unit) times the sum
        of their sizes (Higham 2002, section 3.1). Terms that are 0 are added without an error.
        """
        if node.terms is None:
            return None
        terms = vmap(node.terms)(*((size > 0).double() for size in sizes)) + SPARE
        share = terms * self.unit / (1 - terms * self.unit)
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
            exact = self.region.norm.boxed and i in self.graph.separate
            rules = [one.rule for one in asking.get(i, ()) if one.rule]
            if rules and not exact:
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
        _, low = self._bound(i, both, torch.cat([a, -a]), share, windows, steps, enough)
        lo, hi = low.view(2, -1)
        return lo, -hi

    def _bound(
        self,
        i: int,
        rows: Tensor,
        a: Tensor,
        share: Tensor | None,
        windows: dict[int, Window],
        steps: int,
        enough: float,
    ) -> Tensor:
        """`backward`, with the lower slopes that some steps find: [2, p]."""
        slopes = None
        if steps:
            lines = {
                k: line.each(lambda part, window=windows[k]: cropped(part, window))
                for k, line in self.lines.items()
                if k < i and k in windows
            }

            def bound(slopes: Mapping[int, Tensor], at: Tensor) -> Tensor:
                pairs = (a[at], None) if share is None else (a, share[at])
                return self.backward(
                    i, rows[at], *pairs, windows=windows, slopes=slopes, search=True
                )[0]

            slopes = best_slopes(bound, lines, rows, steps, enough)
        return self.backward(i, rows, a, share, windows=windows, slopes=slopes)

    def _keep(self, *, through: bool = True, steps: int = 0) -> None:
        """Bound the margins, and keep what is better; with steps, only those not proved."""
        last, k = len(self.graph.nodes) - 1, self.lower.shape[1]
        asks = self.left if steps else torch.ones_like(self.left)
        rows, classes = asks.scatter(1, self.y[:, None], False).nonzero(as_tuple=True)
        one = torch.eye(k, dtype=torch.float64, device=self.y.device)
        windows = self.graph.windows(last, ())
        found = []
        for at in torch.arange(len(rows), device=rows.device).split(self._at_once(windows)):
            a = (one[self.y[rows[at]]] - one[classes[at]])[:, None]
            if through:
                found.append(self._bound(last, rows[at], a, None, windows, steps, 0.0))
            else:
                found.append(self.backward(last, rows[at], a, windows=windows, through=False))
        for name, values in zip(("lower", "rounded"), torch.cat(found, 1), strict=True):
            held = getattr(self, name).scatter(1, self.y[:, None], torch.inf)
            held[rows, classes] = torch.maximum(held[rows, classes], values)
            setattr(self, name, held)

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
        in real arithmetic and of the one that rounds: [2, p].

        Args:
            start: the node.
            rows: the row of each pair, [p].
            a: coefficients in the node's window, [p, *shape].
            share: the place in `a` of each pair's, [p], where several pairs share them.
            windows: of every node before it; None: all.
            through: whether to go on through activations, else their intervals are taken.
            slopes: lower slopes of activations where they are free, by node, [p, *shape] each.
            search: leave out what rounding takes.
        """
        windows = self.graph.windows(start, ()) if windows is None else windows
        held, total = {start: a}, a.new_zeros(len(a))
        off: Tensor | float = 0.0
        for i in range(start, -1, -1):
            if i not in held:
                continue
            node, window = self.graph.nodes[i], windows[i]
            a = held.pop(i)
            if i in self.noise and not search:
                off = off + _taken(a, cropped(self.noise[i], window), rows, share)
            if node.affine:
                if node.at_0 is not None:
                    at_0 = cropped(node.at_0, window)
                    total = total + a.flatten(1) @ at_0.flatten()
                parts = node.affine.pull(a, window, [windows[p] for p in node.parents])
            else:
                if share is not None:
                    a, total = a[share], total[share]
                    held = {k: part[share] for k, part in held.items()}
                    share = None
                if not node.parents:
                    total = total + self.region.least(a.squeeze(1), rows, window)
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
            _add(held, node.parents, parts)
        return torch.stack([total, total - off])


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
