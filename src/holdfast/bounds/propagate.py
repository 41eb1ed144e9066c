"""Bounds of every value in a network over a region of inputs: intervals forward, lines backward.

IBP: Gowal et al. 2018, arXiv:1810.12715. CROWN: Zhang et al. 2018, arXiv:1811.00866.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.func import vjp, vmap

from holdfast.bounds.graph import Graph, Node
from holdfast.bounds.relaxations import Lines
from holdfast.norms import Norm, wide

Interval = tuple[Tensor, Tensor]
PART = 1 << 22  # numbers in the largest tensor of one backward pass


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

    def least(self, a: Tensor, rows: Tensor) -> Tensor:
        """The smallest <a, input> over the regions of these rows [p]: [p], of a [p, *shape]."""
        centre = (a * self.x[rows]).flatten(1).sum(1)
        return centre + self.norm.least(a, self.eps[rows], self.lo[rows], self.hi[rows])


class Rows:
    """What is known of a network over the regions of some rows; it only ever gets tighter.

    `intervals` holds a pair l <= u, [n, *node.shape] each, for every node.
    """

    def __init__(self, graph: Graph, region: Region) -> None:
        self.graph = graph
        self.region = region
        self.intervals: list[Interval] = []
        for node in graph.nodes:
            self.intervals.append(self._forward(node))
        self.lines: dict[int, Lines] = {}

    def _forward(self, node: Node) -> Interval:
        """The interval of a node from those of its parents."""
        if not node.parents:
            l, u = self.region.interval()
            return l[:, None], u[:, None]
        given = [self.intervals[i] for i in node.parents]
        if node.rule is not None:
            return node.rule.interval(*given[0])
        centre = vmap(node.value)(*((l + u) / 2 for l, u in given))
        radius = vmap(node.spread)(*((u - l) / 2 for l, u in given))
        return centre - radius, centre + radius

    def tighten(self) -> None:
        """CROWN's bounds of what every relaxation stands on, each with those before it."""
        asking: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            if node.rule is not None:
                asking.setdefault(node.parents[0], []).append(node)
        for i, node in enumerate(self.graph.nodes):
            if not node.parents:
                continue
            self._narrow(i, *self._forward(node))
            if node.rule is not None:
                self.lines[i] = node.rule.lines(*self.intervals[node.parents[0]])
            if i in asking:
                asks = [one.rule.asks(*self.intervals[i]) for one in asking[i] if one.rule]
                self._ask(i, torch.stack(asks).any(0))

    def _narrow(self, i: int, l: Tensor, u: Tensor) -> None:
        held = self.intervals[i]
        l, u = torch.maximum(l, held[0]), torch.minimum(u, held[1])
        self.intervals[i] = torch.minimum(l, u), torch.maximum(l, u)  # where rounding crossed them

    def _ask(self, i: int, asks: Tensor) -> None:
        """Bound these entries [n, *shape] of a node, each row its own."""
        places = asks.flatten(1).nonzero()
        rows, entries = places[:, 0], places[:, 1]
        shape = self.graph.nodes[i].shape
        unit = lambda at: (
            torch.zeros(len(at), prod(shape), dtype=torch.float64, device=rows.device)
            .scatter_(1, entries[at, None], 1)
            .view(-1, *shape)
        )
        pairs = torch.arange(len(rows), device=rows.device)
        low = self._in_parts(lambda at: self.backward(i, rows[at], unit(at)), pairs)
        high = self._in_parts(lambda at: -self.backward(i, rows[at], -unit(at)), pairs)
        l, u = (side.flatten(1).clone() for side in self.intervals[i])
        l[rows, entries], u[rows, entries] = low, high
        self._narrow(i, l.view_as(asks), u.view_as(asks))

    def _in_parts(self, bound: Callable[[Tensor], Tensor], pairs: Tensor) -> Tensor:
        if not len(pairs):
            return pairs.double()
        return torch.cat([bound(at) for at in pairs.split(max(1, PART // self.graph.largest))])

    def margins(self, y: Tensor, *, through: bool) -> Tensor:
        """Lower bounds of the score of class y [n] less that of each class, [n, k]; inf for y
        itself. `through`: by the lines of all activations, else by the intervals of the last."""
        last = len(self.graph.nodes) - 1
        n, k = len(y), self.graph.nodes[last].shape[1]
        one = torch.eye(k, dtype=torch.float64, device=y.device)
        a = (one[y][:, None] - one).view(n * k, 1, k)
        rows = torch.arange(n, device=y.device).repeat_interleave(k)
        bound = lambda at: self.backward(last, rows[at], a[at], through=through)
        lower = self._in_parts(bound, torch.arange(n * k, device=y.device))
        return lower.view(n, k).scatter(1, y[:, None], torch.inf)

    def backward(
        self,
        start: int,
        rows: Tensor,
        a: Tensor,
        *,
        through: bool = True,
        slopes: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Lower bounds [p] of <a, value of a node> over the regions of these rows [p].

        Args:
            start: the node.
            rows: the row of each pair, [p].
            a: coefficients, [p, *shape].
            through: whether to go on through activations, else their intervals are taken.
            slopes: lower slopes of activations where they are free, by node, [p, *shape] each.
        """
        held = {start: a}
        total = a.new_zeros(len(a))
        for i in range(start, 0, -1):
            if i not in held:
                continue
            node, a = self.graph.nodes[i], held.pop(i)
            if node.rule is None:
                origin = [a.new_zeros(self.graph.nodes[p].shape) for p in node.parents]
                bias, pull = vjp(node.value, *origin)
                total = total + a.flatten(1) @ bias.flatten().detach()
                pulled = vmap(pull)(a)
            elif through:
                slope = slopes.get(i) if slopes else None
                pulled, at_0 = _relaxed(node, self.lines[i], rows, a, slope)
                total = total + at_0
                pulled = (pulled,)
            else:
                l, u = (side[rows] for side in self.intervals[i])
                total = total + (a.clamp_min(0) * l + a.clamp_max(0) * u).flatten(1).sum(1)
                continue
            for parent, part in zip(node.parents, pulled, strict=True):
                held[parent] = held[parent] + part if parent in held else part
        if 0 in held:
            total = total + self.region.least(held[0].squeeze(1), rows)
        return total


def _relaxed(
    node: Node, lines: Lines, rows: Tensor, a: Tensor, slope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Coefficients [p, ...] on an activation's result as those on its input, and what the lines
    add: [p]."""
    low = lines.low[rows]
    if slope is not None and lines.free is not None:
        low = torch.where(lines.free[rows], slope, low)
    above, below = a.clamp_min(0), a.clamp_max(0)
    at_0 = above * lines.low_at_0[rows] + below * lines.up_at_0[rows]
    assert node.rule is not None
    above, below = node.rule.widened(above), node.rule.widened(below)
    return above * low + below * lines.up[rows], at_0.flatten(1).sum(1)
