"""Bounds of every value in a network over a region of inputs: intervals forward, lines backward.

IBP: Gowal et al. 2018, arXiv:1810.12715. CROWN: Zhang et al. 2018, arXiv:1811.00866.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.func import vjp, vmap

from holdfast.bounds.alpha import best_slopes
from holdfast.bounds.graph import Graph, Node
from holdfast.bounds.relaxations import Lines, Rule
from holdfast.norms import Norm

Interval = tuple[Tensor, Tensor]
METHODS = {"ibp": 0, "crown": 0, "alpha-crown": 20}  # steps; each at least as tight as the last
# Numbers in the largest tensor of one backward pass: on a CPU what its caches hold.
PART, PART_ON_CPU = 1 << 25, 1 << 17


@dataclass(frozen=True)
class Region:
    """The balls around rows x [n, *shape], cut to a box: perturbations of size at most eps [n, 1,
    ...] within [lo, hi], lo <= 0 <= hi. All in float64."""

    norm: Norm
    x: Tensor
    eps: Tensor
    lo: Tensor
    hi: Tensor

    def interval(self) -> Interval:
        lo, hi = self.norm.hull(self.eps, self.lo, self.hi)
        return self.x + lo, self.x + hi

    def at(self, rows: Tensor) -> Region:
        return Region(self.norm, *(part[rows] for part in (self.x, self.eps, self.lo, self.hi)))

    def least(self, a: Tensor, rows: Tensor) -> Tensor:
        """The smallest <a, input> over the regions of these rows [p]: [p], of a [p, *shape]."""
        centre = (a * self.x[rows]).flatten(1).sum(1)
        return centre + self.norm.least(a, self.eps[rows], self.lo[rows], self.hi[rows])


class Rows:
    """What is known of a network over the regions of rows of classes y [n]; it only gets tighter.

    intervals: a pair lo <= hi, [n, *node.shape] each, for every node.
    lower: below score of y less score of class j, in real arithmetic: [n, k]; inf for y itself.
    """

    def __init__(self, graph: Graph, region: Region, y: Tensor) -> None:
        self.graph = graph
        self.region = region
        self.y = y
        self.intervals: list[Interval] = []
        for node in graph.nodes:
            self.intervals.append(self._forward(node))
        self.lines: dict[int, Lines] = {}
        self.sums: dict[int, Tensor] = {}  # lo + hi where CROWN alone says them
        self.lower = torch.full_like(self.intervals[-1][0][:, 0], -torch.inf)

    def at(self, rows: Tensor) -> Rows:
        """What is known of these rows alone, to climb on with."""
        part = copy(self)
        part.region, part.y, part.lower = self.region.at(rows), self.y[rows], self.lower[rows]
        part.lines, part.sums = {}, {}
        part.intervals = [(lo[rows], hi[rows]) for lo, hi in self.intervals]
        return part

    def climb(self, method: str) -> Tensor:
        """Bound by one of METHODS, and keep what is better: `lower`."""
        if method == "ibp":
            lower = self._margins(through=False)
        else:
            steps = METHODS[method]
            self._tighten(steps)
            lower = self._margins(steps=steps)
        self.lower = torch.maximum(self.lower, lower)
        return self.lower

    def _forward(self, node: Node) -> Interval:
        """The interval of a node from those of its parents."""
        if not node.parents:
            lo, hi = self.region.interval()
            return lo[:, None], hi[:, None]
        given = [self.intervals[i] for i in node.parents]
        if node.rule is not None:
            return node.rule.interval(*given[0])
        centre = vmap(node.value)(*((lo + hi) / 2 for lo, hi in given))
        radius = vmap(node.spread)(*((hi - lo) / 2 for lo, hi in given))
        return centre - radius.abs(), centre + radius.abs()

    def _tighten(self, steps: int) -> None:
        """CROWN's bounds of what every activation takes, each with those before it; alpha-CROWN's
        with so many steps."""
        asking: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            if node.rule is not None:
                asking.setdefault(node.parents[0], []).append(node)
        for i, node in enumerate(self.graph.nodes):
            if not node.parents:
                continue
            self._narrow(i, *self._forward(node))
            if node.rule is not None:
                origin = node.parents[0]
                lo, hi = self.intervals[origin]
                self.lines[i] = node.rule.lines(lo, hi, self.sums.get(origin, lo + hi))
            if i in asking:
                asks = [one.rule.asks(*self.intervals[i]) for one in asking[i] if one.rule]
                self._ask(i, torch.stack(asks).any(0), steps)

    def _narrow(self, i: int, lo: Tensor, hi: Tensor) -> None:
        held = self.intervals[i]
        lo, hi = torch.maximum(lo, held[0]), torch.minimum(hi, held[1])
        self.intervals[i] = (
            torch.minimum(lo, hi),
            torch.maximum(lo, hi),
        )  # where rounding crossed them

    def _ask(self, i: int, asks: Tensor, steps: int) -> None:
        """Bound these entries [n, *shape] of a node, each row its own."""
        entries, rows = asks.flatten(1).T.nonzero(as_tuple=True)  # rows of one entry together
        if not len(rows):
            return
        low, high = self._in_parts(lambda part: self._both(i, *part, steps=steps), rows, entries)
        lo, hi = (side.flatten(1).clone() for side in self.intervals[i])
        lo[rows, entries], hi[rows, entries] = low, high
        self.sums[i] = (lo + hi).view_as(asks)
        self._narrow(i, lo.view_as(asks), hi.view_as(asks))

    def _both(self, i: int, rows: Tensor, entries: Tensor, *, steps: int) -> Tensor:
        """Bounds of an entry each of these rows, below and above: [2, p].

        Down to the first activation all rows have the same coefficients.
        """
        shape = self.graph.nodes[i].shape
        entries, row = entries.unique_consecutive(return_inverse=True)
        a = torch.zeros(len(entries), prod(shape), dtype=torch.float64, device=rows.device)
        a = a.scatter(1, entries[:, None], 1).view(-1, *shape)

        def of_rows(held: Tensor) -> Tensor:
            return torch.cat([held[row], -held[row]])

        bound = partial(self.backward, i, rows.repeat(2), a, of_rows=of_rows)
        low, high = self._best(bound, i, rows.repeat(2), steps).view(2, -1)
        return torch.stack([low, -high])

    def _best(self, bound: Callable[..., Tensor], i: int, rows: Tensor, steps: int) -> Tensor:
        if not steps:
            return bound()
        lines = {k: held for k, held in self.lines.items() if k < i}
        return best_slopes(lambda slopes: bound(slopes=slopes), lines, rows, steps)

    def _in_parts(self, bound: Callable[..., Tensor], *pairs: Tensor) -> Tensor:
        """Bounds [..., p] of pairs, given as columns [p], of as many at once as memory holds."""
        most = PART_ON_CPU if self.graph.device.type == "cpu" else PART
        size = max(1, most // self.graph.largest)
        parts = zip(*(column.split(size) for column in pairs), strict=True)
        return torch.cat([bound(part) for part in parts], -1)

    def _margins(self, *, through: bool = True, steps: int = 0) -> Tensor:
        last = len(self.graph.nodes) - 1
        n, k = self.lower.shape
        one = torch.eye(k, dtype=torch.float64, device=self.y.device)
        a = (one[self.y][:, None] - one).view(n * k, 1, k)
        rows = torch.arange(n, device=self.y.device).repeat_interleave(k)

        def bound(part: tuple[Tensor, Tensor]) -> Tensor:
            backward = partial(self.backward, last, part[0], part[1], through=through)
            return self._best(backward, last, part[0], steps)

        lower = self._in_parts(bound, rows, a)
        return lower.view(n, k).scatter(1, self.y[:, None], torch.inf)

    def rounding(self, unit: float) -> Tensor:
        """How far each score may lie from real arithmetic where every operation rounds by `unit`,
        relatively: [n, k].

        A sum of m products, in whatever order, is off by at most m unit / (1 - m unit) times the
        sum of their sizes (Higham 2002, section 3.1).
        """
        errors: list[Tensor] = []
        for node in self.graph.nodes:
            given = [errors[p] for p in node.parents]
            around = [self.intervals[p] for p in node.parents]
            sizes = [torch.maximum(-lo, hi) for lo, hi in around]
            if not node.parents:
                errors.append(torch.zeros_like(self.intervals[0][0]))
            elif node.rule is not None:
                errors.append(node.rule.passes(given[0], *around[0], unit))
            else:
                share = node.terms * unit / (1 - node.terms * unit)
                sums = vmap(node.spread)(*map(torch.add, sizes, given)) + node.shift
                errors.append(vmap(node.spread)(*given) + share * sums)
        return errors[-1][:, 0]

    def backward(
        self,
        start: int,
        rows: Tensor,
        a: Tensor,
        *,
        through: bool = True,
        of_rows: Callable[[Tensor], Tensor] | None = None,
        slopes: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Lower bounds [p] of <a, value of a node> over the regions of these rows [p].

        Args:
            start: the node.
            rows: the row of each pair, [p].
            a: coefficients, [p, *shape].
            through: whether to go on through activations, else their intervals are taken.
            of_rows: makes the coefficients of pairs out of `a`, where several share them.
            slopes: lower slopes of activations where they are free, by node, [p, *shape] each.
        """
        held, total = {start: a}, a.new_zeros(len(a))
        for i in range(start, -1, -1):
            if i not in held:
                continue
            node = self.graph.nodes[i]
            if of_rows and (node.rule or not node.parents):
                held, total = {k: of_rows(part) for k, part in held.items()}, of_rows(total)
                of_rows = None
            a = held.pop(i)
            if not node.parents:
                return total + self.region.least(a.squeeze(1), rows)
            if node.rule is None:
                at_0, parts = _pulled(node, self.graph, a)
            elif through:
                at_0, parts = _relaxed(node.rule, self.lines[i], rows, a, (slopes or {}).get(i))
            else:
                lo, hi = (side[rows] for side in self.intervals[i])
                total = total + _dot(a, lo, hi)
                continue
            total = total + at_0
            for parent, part in zip(node.parents, parts, strict=True):
                held[parent] = held[parent] + part if parent in held else part
        return total


Pulled = tuple[Tensor, tuple[Tensor, ...]]  # what is added, [p], and coefficients on each parent


def _pulled(node: Node, graph: Graph, a: Tensor) -> Pulled:
    """Coefficients on an affine operator's result, as those on its parents."""
    bias, pull, *_ = vjp(node.value, *(a.new_zeros(graph.nodes[p].shape) for p in node.parents))
    parts: tuple[Tensor, ...] = vmap(pull)(a)
    return a.flatten(1) @ bias.flatten().detach(), parts


def _relaxed(rule: Rule, lines: Lines, rows: Tensor, a: Tensor, slope: Tensor | None) -> Pulled:
    """Coefficients on an activation's result as those on its input, by its lines: that below where
    the coefficient is positive, that above where it is negative."""
    low = lines.low[rows] if slope is None else slope
    at_0 = _dot(a, lines.low_at_0[rows], lines.up_at_0[rows])
    a = rule.widened(a)
    return at_0, (a * torch.where(a > 0, low, lines.up[rows]),)


def _dot(a: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """The least of <a, v> over below <= v <= above: [p]."""
    return (a * torch.where(a > 0, below, above)).flatten(1).sum(1)
