"""BaB: branch and bound says where descents begin, and where they go on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.bounds import Graph, Region, Rows, graph_of, low_points, lowest
from holdfast.errors import InputError, SpecError
from holdfast.losses import margin, without
from holdfast.norms import Linf
from holdfast.targets.batch import picked
from holdfast.targets.target import Target
from holdfast.targets.wrappers import itself
from holdfast.threats.threat import Threat

MOST = 1 << 14  # activations of a network that it follows
MOMENTUM = 0.75  # what is kept of the last direction
FAR, SHORT, CLOSE = 0.3, 0.1, 0.15  # first strides: of the way to a corner, of eps, of a radius
BOUNDED = 0.4  # radii, in eps, from which intervals are worth CROWN's passes
LOOK = 6  # descents after which `close` counts
GOES_ON = 6  # times `close`, the share of rows that then go on, as measured with 0.025
RADII = (1, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 10, 1 / 15)  # of balls around points, in eps


class Round(NamedTuple):
    """Descents from each of the best points: their length in units, and in what ball around a point
    they begin."""

    points: int
    units: int
    radius: float = 0.0


class Descents(NamedTuple):
    d: Tensor  # where the descent is, [n, *shape]
    along: Tensor  # its direction
    aim: Tensor  # the class that is to win, [n]
    starts: Tensor  # of the descents of this round, [n, parts, *shape]
    points: Tensor  # the best points, as many
    values: Tensor  # how far the aim is from winning there, [n, parts]; above 0: it won
    clean: Tensor  # the same at x, [n]


@dataclass(frozen=True)
class BaB(Attack):
    """A search guided by branch and bound, for networks of ReLUs (after Zhang et al. 2022, "A
    Branch and Bound Framework for Stronger Adversarial Attacks of ReLU Networks", ICML).

    Branch and bound splits the ball by the signs of what ReLUs take; a descent begins where the
    margin's lower line is lowest on each of the parts. Shorter descents go on from the points of
    the lowest margins, and then in smaller and smaller balls around the best of them, where the
    line over such a ball is lowest. The margin is that over the best wrong class, at the best point
    known before, that is not proved never to win. A restart goes on with the parts that follow.

    It needs a network that `certify` can follow, of at most 16,384 activations. In a protocol it
    does nothing for another.

    Cost: one forward and one backward a step and row, and one forward for the start, with `close`
    one more at x; the bounds ask the model nothing, but take about as long.
    Differs from the paper: gradients of the bounds choose no activations; the search within balls
    takes the place of the one that fixes most signs.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf"})
    of_networks = True

    steps: int = option(2880, "gradient steps of all descents")
    parts: int = option(48, "parts of the ball, in each of which a descent begins", at_least=6)
    close: float = option(
        1.0,
        f"after {LOOK} descents, go on with rows whose lowest margin is at most this share of the "
        "clean one",
        above=0,
        at_most=1,
    )

    @property
    def warm(self) -> bool:
        return True

    @property
    def expected_passes(self) -> float:
        look = LOOK * self._unit if self.close < 1 else self.steps
        return 2 * (look + min(GOES_ON * self.close, 1) * (self.steps - look)) + 1

    def check_target(self, target: Target, threat: Threat) -> None:
        try:
            _fit(graph_of(itself(target), threat))
        except InputError as error:
            raise SpecError(f"{self!r} has to follow the network by bounds: {error}") from None

    @property
    def rounds(self) -> list[Round]:
        far = [Round(self.parts, 1), Round(self.parts // 3, 2)]
        return far + [Round(self.parts // 6, 1, radius) for radius in RADII]

    def start(self, p: Problem) -> Descents:
        d = p.random_start("best")
        points = d[:, None].repeat(1, self.parts, *[1] * (d.dim() - 1))
        values = d.new_full(points.shape[:2], -torch.inf)
        aim = torch.zeros_like(p.y) if p.aim is None else p.aim.clone()
        try:
            _fit(p.graph)
        except InputError:
            p.stop_asking(p.live)
            return Descents(d, d, aim, points, points, values, values[:, 0])
        z, starts = p.scores(d), points.clone()
        proved = torch.zeros_like(p.live)
        for row in range(len(d)):
            at = slice(row, row + 1)
            around = _around(p, torch.zeros_like(d[at]), row, picked(p.aim, at), 1.0)
            low = d[:0]
            for one in without(z[at], p.y[at])[0].argsort(descending=True):
                if around.lower[0, one] <= 0:
                    low = low_points(around, one, self.parts, int(p.restart[row]))
                if len(low):
                    aim[row] = one
                    break
            starts[row, : len(low)] = low.to(d) - p.x[row]
            proved[row] = not len(low)
        values[:, 0] = _gap(z, p.y, None, aim)
        p.stop_asking(proved)
        clean = values[:, 0]
        if self.close < 1:
            clean = _gap(p.scores(torch.zeros_like(d)), p.y, None, aim)
        return Descents(d, d, aim, starts, points, values, clean)

    def step(self, p: Problem, s: Descents, t: int) -> Descents:
        turn, descent, of, steps = self._place(t)
        if self.close < 1 and t == LOOK * self._unit:
            p.stop_asking(s.values.amax(1) < self.close * s.clean)
        if not of:
            s = self._begun(p, s, self.rounds[turn]) if turn and not descent else s
            s = s._replace(d=s.starts[:, descent], along=torch.zeros_like(s.d))
        value, g = p.gradient(s.d, _gap, s.aim)
        better = value > s.values[:, descent]
        s.points[better, descent], s.values[better, descent] = s.d[better], value[better]
        size = g.abs().flatten(1).sum(1).clamp_min(torch.finfo(g.dtype).tiny)
        along, left = MOMENTUM * s.along + g / wide(size, g), 1 - of / steps
        lo, hi = p.norm.hull(p.eps, p.lo, p.hi)
        if not turn:
            return s._replace(d=s.d.lerp(torch.where(along > 0, hi, lo), FAR * left), along=along)
        stride = CLOSE * self.rounds[turn].radius or SHORT
        d = s.d + stride * left * _reach(lo, hi) * along.sign()
        return s._replace(d=torch.minimum(torch.maximum(d, lo), hi), along=along)

    @property
    def _unit(self) -> int:
        """Steps of a unit."""
        return -(-self.steps // sum(one.points * one.units for one in self.rounds))

    def _place(self, t: int) -> tuple[int, int, int, int]:
        """The round of step t, its descent in it, its place in that, and the steps of that."""
        for turn, one in enumerate(self.rounds):
            steps = one.units * self._unit
            if t < one.points * steps:
                return turn, t // steps, t % steps, steps
            t -= one.points * steps
        raise AssertionError

    def _begun(self, p: Problem, s: Descents, turn: Round) -> Descents:
        """The best points first, and the starts of descents from so many of them."""
        order = s.values.argsort(1, descending=True)
        rows = torch.arange(len(order), device=order.device)[:, None]
        points, values = s.points[rows, order], s.values[rows, order]
        starts = points.clone()
        if turn.radius:
            for row in p.asking.nonzero()[:, 0].tolist():
                best = points[row, : turn.points]
                aims = s.aim[row].expand(len(best))
                low = lowest(_around(p, best, row, aims, turn.radius), aims)
                starts[row, : turn.points] = low.to(best) - p.x[row]
        return s._replace(starts=starts, points=points, values=values)


def _gap(z: Tensor, y: Tensor, t: Tensor | None, aim: Tensor) -> Tensor:
    """How far the class aimed at is from winning over y: above 0 it has won."""
    return margin(z, y, aim)


def _reach(lo: Tensor, hi: Tensor) -> Tensor:
    """The largest change that a box allows: [n, 1, ...]."""
    return wide(torch.maximum(-lo, hi).flatten(1).amax(1), lo)


def _around(p: Problem, d: Tensor, row: int, aims: Tensor | None, radius: float) -> Rows:
    """What is known of margins over aims [m] (None: over every class) in balls of so much of eps
    around perturbations d [m, *shape] of a row, within what it may be."""
    eps, lo, hi = (side[row : row + 1] for side in (p.eps, p.lo, p.hi))
    lo, hi = p.norm.hull(eps, lo, hi)
    reach = radius * _reach(lo, hi).double()
    lo, hi = (side.double() - d for side in (lo, hi))
    lo, hi = lo.maximum(-reach).clamp_max(0), hi.minimum(reach).clamp_min(0)
    region = Region(Linf(), (p.x[row] + d).double(), reach.expand(len(d), *reach.shape[1:]), lo, hi)
    rows = Rows(p.graph, region, p.y[row].expand(len(d)), None, aims)
    if radius > BOUNDED:
        rows.climb("crown")
    else:
        rows.draw_lines()
    return rows


def _fit(graph: Graph) -> None:
    """Raises InputError: it has too many activations to follow."""
    units = sum(prod(node.shape) for node in graph.nodes if node.rule is not None)
    if units > MOST:
        raise InputError(
            f"it has {units:,} activations, more than {MOST:,}; relay searches larger ones."
        )
