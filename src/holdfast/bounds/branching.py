"""Branch and bound: a margin's region is split by the signs of what ReLUs take, until the margin is
proved on every part.

beta-CROWN: Wang et al. 2021, arXiv:2103.06624. Which ReLU is split is tried on the best candidates
(De Palma et al. 2021, arXiv:2104.06718).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from holdfast.bounds.affine import Window
from holdfast.bounds.alpha import best_values
from holdfast.bounds.propagate import LEAST, SLOPES, Rows
from holdfast.bounds.relaxations import Bent
from holdfast.norms import wide

METHODS = (*SLOPES, "beta-crown")  # each at least as tight as the last
# Of Adam: on the whole region, on each part, and on a part in which every ReLU has a sign.
FIRST_STEPS, STEPS, LAST_STEPS = 50, 5, 200
SPLIT = 32  # parts that are split at once
TRIED = 3  # ReLUs of a part that are tried
MOST = 1 << 30  # bytes of the parts that are left
# Of the search for wrong inputs: starts of each margin before its region is split, parts after
# which it starts again, at first and at most, in how many of them, steps of each kind, how far the
# first one goes, the first short one in eps, what is kept of the last direction, and the share of
# the gap to the bound below which short ones follow.
STARTS, AT_FIRST, EVERY, SHOWN, DOWN = 4, 64, 256, 8, 60
STRIDE, SHORT, MOMENTUM, CLOSE = 0.3, 0.1, 0.75, 0.1

# Of parts of a region: by a name and an activation's node, [parts, *shape] each.
#   sign: 1 or -1 where the part is that of one sign of what the activation takes, else 0: int8
#   slope: of lower lines
#   multiplier: of the signs, at least 0
# and by a name and 0, [parts] each.
#   lower: a bound of the margin
#   split: the place of the ReLU to split next, among all; -1: every one has a sign
#   turn: where asked for, in which turn the part was made
State = dict[tuple[str, int], Tensor]
Key = TypeVar("Key")

# Whether one of these inputs [p, *shape] of a row is found to be wrong.
Judge = Callable[[int, Tensor], bool]


def nobody(row: int, x: Tensor) -> bool:
    """A judge who finds nothing wrong."""
    return False


def climb(rows: Rows, method: str, seconds: float = 1.0, judge: Judge = nobody) -> Tensor:
    """Bound by one of METHODS, and keep what is better: `rows.lower`.

    "beta-crown" is to follow "alpha-crown". It takes up to so many seconds for each row that is
    left, and tries the margin first that is lowest at some input. Inputs that it takes for wrong
    are shown to `judge`, and the row is left where one is.
    """
    if method in SLOPES:
        return rows.climb(method)
    for row in rows.left.any(1).nonzero():
        end, part = time.monotonic() + seconds, rows.at(row)
        shown = partial(judge, int(row))
        for wrong in nearest(part, end, shown):
            if not branch(part, wrong, end, shown):
                break
            for held in (rows.lower, rows.rounded):
                held[row, wrong] = held[row, wrong].clamp_min(LEAST)
    return rows.lower


def nearest(rows: Rows, end: float, judge: Callable[[Tensor], bool]) -> Tensor:
    """The classes over which a single row's margin is not proved, those first whose margin is the
    lowest at the inputs met before a time `end`; none where `judge` finds one of these wrong."""
    classes = rows.left[0].nonzero()[:, 0]
    every = classes.repeat(STARTS)
    noise = torch.randn(
        (len(every), *rows.region.x.shape[1:]), generator=torch.Generator().manual_seed(0)
    )
    x = _lowest(rows, noise.to(rows.region.x))
    margin = rows.margins(torch.zeros_like(every), every)[:, 0]
    lowest, _, wrong = _walked(rows, x, margin, end)
    if len(wrong) and judge(wrong):
        return classes[:0]
    return classes[lowest.view(STARTS, -1).amin(0).argsort()]


def _far(rows: Rows, x: Tensor, along: Tensor, left: float) -> Tensor:
    """Some of the way to where a linear function is lowest in the region (Frank and Wolfe 1956), so
    that it is never left."""
    return torch.lerp(x, _lowest(rows, along), STRIDE * left)


def _short(rows: Rows, x: Tensor, along: Tensor, left: float) -> Tensor:
    """A projected step, which ends lower where not all of an input is at the region's edge."""
    region = rows.region
    return region.closest(x - SHORT * left * region.eps * region.norm.steepest(along))


def _walked(
    rows: Rows,
    x: Tensor,
    margin: Tensor,
    end: float,
    onward: Callable[[Rows, Tensor, Tensor, float], Tensor] = _far,
) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest values of margins [p, k] on the way from inputs x [p, *shape] downwards, [p],
    where they are met, and the inputs at which some are not above 0; a time `end` cuts it short.

    Each step goes `onward` from a point, along a direction, with the share of steps left.
    """
    lowest, best = torch.full_like(x.flatten(1)[:, 0], torch.inf), x
    wrong, along = [x[:0]], torch.zeros_like(x)
    for step in range(DOWN):
        if time.monotonic() >= end:
            break
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            value = (rows.graph(given) * margin).sum(1)
            (a,) = torch.autograd.grad(value.sum(), given)
        value = value.detach()
        best = torch.where(wide(value < lowest, x), x, best)
        lowest = torch.minimum(lowest, value)
        wrong.append(x[value <= 0])
        size = a.abs().flatten(1).sum(1).clamp_min(torch.finfo(a.dtype).tiny)
        along = MOMENTUM * along + a / wide(size, a)
        x = onward(rows, x, along, 1 - step / DOWN)
    return lowest, best, torch.cat(wrong)


def lowest(rows: Rows, over: Tensor) -> Tensor:
    """Where the lower line of each row's margin over a class [n] is lowest in its region."""
    every = torch.arange(len(over), device=over.device)
    windows: dict[int, Window] = dict.fromkeys(range(len(rows.graph.nodes)), ())
    a, _ = rows.pulled(rows.last, every, rows.margins(every, over), windows=windows)
    assert a is not None
    return _lowest(rows, a, every)


def _lowest(rows: Rows, a: Tensor, at: Tensor | None = None) -> Tensor:
    """Where <a, input> is least in the regions of rows [p], of a [p, *shape] of their dtype;
    without rows, in that of a single one."""
    at = torch.zeros(len(a), dtype=torch.long, device=a.device) if at is None else at
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        return torch.autograd.grad(rows.region.least(a, at, ()).sum(), a)[0]


def branch(
    rows: Rows, over: Tensor, end: float, judge: Callable[[Tensor], bool] = lambda _: False
) -> bool:
    """Whether the margin of a single row over a class is proved before a time `end` (of
    `time.monotonic`), and before `judge` finds an input wrong."""
    if not any(isinstance(node.rule, Bent) for node in rows.graph.nodes):
        return False
    margin = _Margin(rows, over)
    state, due = margin.opened(margin.whole(), FIRST_STEPS), float(AT_FIRST)
    while parts := len(state["lower", 0]):
        if due <= 0:
            lowest, wrong = margin.met(state, end)
            if len(wrong) and judge(wrong):
                return False
            # often where 0 is close to the upper end of what the margin is between
            gap = lowest - float(state["lower", 0].min())
            due = EVERY * min(1.0, 4 * lowest / max(gap, LEAST))
        if time.monotonic() >= end or parts * margin.size > MOST:
            return False
        able = state["split", 0] >= 0
        if not bool(able.all()):  # only the multipliers are left to do better
            left = margin.opened(_taken(state, ~able), LAST_STEPS)
            if len(left["lower", 0]):
                _, wrong = margin.met(left, end)
                if len(wrong):
                    judge(wrong)
                return False
            state = _taken(state, able)
            continue
        later, new = margin.split(state)
        due -= 2 * (parts - len(later["lower", 0]))
        state = _joined(later, new)
    return True


def low_points(rows: Rows, over: Tensor, parts: int, after: int = 0) -> Tensor:
    """Inputs at which the margin of a single row over a class may be low: where its lines are
    lowest, on at most so many parts that branch and bound splits its region into, after `after`
    times as many; [p, *shape] in float32. None where the margin is proved; of a network without
    ReLUs, which is not split, one.
    """
    if not any(isinstance(node.rule, Bent) for node in rows.graph.nodes):
        return lowest(rows, over[None])
    margin = _Margin(rows, over)
    state = margin.opened(margin.whole(), FIRST_STEPS)
    state["turn", 0] = torch.zeros_like(state["split", 0])  # in which a part was made
    for turn in range(after + 1):
        while True:
            able = state["split", 0] >= 0
            if not bool(able.any()) or int((state["turn", 0] == turn).sum()) >= parts:
                break
            later, halves = margin.split(_taken(state, able))
            halves["turn", 0] = torch.full_like(halves["turn", 0], turn)
            state = _joined(_taken(state, ~able), later, halves)
    order = state["lower", 0].argsort()
    latest = state["turn", 0][order].argsort(descending=True, stable=True)
    a, _ = margin.lines(_taken(state, order[latest][:parts]))
    return _lowest(margin.single, a)


def _taken(state: dict[Key, Tensor], at: Tensor) -> dict[Key, Tensor]:
    return {key: value[at] for key, value in state.items()}


def _joined(*states: State) -> State:
    return {key: torch.cat([state[key] for state in states]) for key in states[0]}


class _Margin:
    """A margin of a single row: bounds are sought in float32, and what they prove is proved in
    float64."""

    def __init__(self, rows: Rows, wrong: Tensor) -> None:
        self.double = rows
        self.single = rows.each(lambda part: part.float() if part.is_floating_point() else part)
        nodes = rows.graph.nodes
        self.bent = [i for i, node in enumerate(nodes) if isinstance(node.rule, Bent)]
        self.shapes = [nodes[i].shape for i in self.bent]
        self.units = sum(map(prod, self.shapes))
        self.size = 9 * self.units  # bytes of a part: a sign, a slope and a multiplier for each
        self.windows: dict[int, Window] = dict.fromkeys(range(len(nodes)), ())
        self.margin = rows.margins(torch.zeros_like(wrong)[None], wrong[None])
        # what rounding takes, and a quarter more
        real, rounded = self._bound(*self._fitted(self.whole(), rows)).flatten().tolist()
        self.enough = 1.25 * (real - rounded) + 1e-6

    def whole(self) -> State:
        """The whole region as the only part."""
        state: State = {}
        for k, shape in zip(self.bent, self.shapes, strict=True):
            state["sign", k] = torch.zeros((1, *shape), dtype=torch.int8, device=self.margin.device)
            state["slope", k] = self.single.lines[k].low
            state["multiplier", k] = torch.zeros_like(state["slope", k])
        return state

    def halves(self, state: State, places: Tensor) -> State:
        """Each part twice: where the ReLU at its place is positive, then where it is negative."""
        made = {key: torch.cat([value, value]) for key, value in state.items()}
        places, first = torch.cat([places, places]), 0
        side = torch.ones_like(places)
        side[len(side) // 2 :] = -1
        for k, shape in zip(self.bent, self.shapes, strict=True):
            here = ((places >= first) & (places < first + prod(shape))).nonzero().flatten()
            flat = made["sign", k].flatten(1)
            flat[here, places[here] - first] = side[here].to(flat)
            first += prod(shape)
        return made

    def opened(self, state: State, steps: int) -> State:
        """The parts on which the margin is not proved, bounded with the best slopes and
        multipliers that so many steps find, and what to split of each next."""
        rows, state = self._fitted(state, self.single)
        limits = {}
        for k in self.bent:
            line, sign = rows.lines[k], state["sign", k]
            if line.free:
                limits["slope", k] = line.least, line.most
            if bool(sign.any()):
                limits["multiplier", k] = (
                    torch.zeros_like(line.low),
                    torch.where(sign == 0, 0.0, torch.inf),
                )

        def bound(values: Mapping[tuple[str, int], Tensor], at: Tensor) -> Tensor:
            signs = {key: sign[at] for key, sign in state.items() if key[0] == "sign"}
            return self._bound(rows, {**signs, **values}, at)[0]

        start = {key: state[key] for key in limits}
        state |= best_values(bound, start, limits, steps, self.enough)
        seen: dict[int, Tensor] = {}
        state["lower", 0] = self._bound(rows, state, seen=seen)[0]
        open_ = self._open(state).nonzero().flatten()
        state, seen = _taken(state, open_), _taken(seen, open_)
        state["split", 0] = self._chosen(state, seen)
        return state

    def split(self, state: State) -> tuple[State, State]:
        """The parts that wait, and what is open of the halves of those of the lowest bounds."""
        order = state["lower", 0].argsort()
        now, later = (_taken(state, at) for at in (order[:SPLIT], order[SPLIT:]))
        return later, self.opened(self.halves(now, now["split", 0]), STEPS)

    def lines(self, state: State) -> tuple[Tensor, Tensor]:
        """As `Rows.pulled`, of the margin on these parts in float32."""
        return self._pulled(*self._fitted(state, self.single))

    def met(self, state: State, end: float) -> tuple[float, Tensor]:
        """The lowest margin met before a time `end`, from where the lines of the lowest parts are
        lowest; and the inputs at which it was not above 0."""
        rows, lower = self.single, state["lower", 0]
        at = lower.argsort()[:SHOWN]
        a, _ = self.lines(_taken(state, at))
        margin = self.margin[:, 0].to(a)
        lowest, best, wrong = _walked(rows, _lowest(rows, a), margin, end)
        least = float(lowest.min())
        if not len(wrong) and least < CLOSE * (least - float(lower.min())):
            lowest, _, wrong = _walked(rows, best, margin, end, _short)
            least = min(least, float(lowest.min()))
        return least, self.double.region.closest(wrong.double())

    def _fitted(self, state: State, of: Rows) -> tuple[Rows, State]:
        """The row once a part, with the lines that the signs leave it, and slopes within them."""
        parts = len(state["sign", self.bent[0]])
        rows, state = of.each(lambda part: part.expand(parts, *part.shape[1:])), dict(state)
        for k in self.bent:
            node, sign = rows.graph.nodes[k], state["sign", k]
            lo, hi = rows.intervals[node.parents[0]]
            lo = torch.where(sign > 0, lo.clamp_min(0), lo)
            hi = torch.where(sign < 0, hi.clamp_max(0), hi)
            assert node.rule is not None
            rows.lines[k] = line = node.rule.lines(lo, hi, lo + hi)
            assert line.least is not None
            assert line.most is not None
            slope = state["slope", k].to(lo)
            state["slope", k] = torch.minimum(torch.maximum(slope, line.least), line.most)
            state["multiplier", k] = state["multiplier", k].to(lo)
        return rows, state

    def _bound(
        self,
        rows: Rows,
        state: State,
        at: Tensor | None = None,
        *,
        seen: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Lower bounds of the margin on these parts: as `Rows.backward`."""
        at = torch.arange(len(rows.y), device=rows.y.device) if at is None else at
        a, at_0 = self._pulled(rows, state, at, seen=seen)
        return at_0 + rows.region.least(a, at, ())

    def _pulled(
        self,
        rows: Rows,
        state: State,
        at: Tensor | None = None,
        *,
        seen: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `Rows.pulled`, of the margin on these parts."""
        at = torch.arange(len(rows.y), device=rows.y.device) if at is None else at
        exact = rows.region.x.dtype == torch.float64
        signs = {
            k: multiplier * state["sign", k]
            for (name, k), multiplier in state.items()
            if name == "multiplier"
        }
        a, at_0 = rows.pulled(
            rows.last,
            at,
            self.margin.to(rows.region.x).expand(len(at), -1, -1),
            windows=self.windows,
            slopes={k: slope for (name, k), slope in state.items() if name == "slope"},
            signs=signs,
            search=not exact,
            seen=seen,
        )
        assert a is not None
        return a, at_0

    def _open(self, state: State) -> Tensor:
        """Parts on which float64 does not prove the margin: bool [parts]."""
        open_ = ~(state["lower", 0] > self.enough)
        at = (~open_).nonzero().flatten()
        if len(at):
            found = self._bound(*self._fitted(_taken(state, at), self.double))
            open_[at] = ~(found[1] > 0)
        return open_

    def _chosen(self, state: State, seen: Mapping[int, Tensor]) -> Tensor:
        """The place of the ReLU to split of each part, -1 for none: of those whose lines may cost
        the bound the most, the one whose halves have the highest bounds."""
        costs, (rows, state) = [], self._fitted(state, self.single)
        for k in self.bent:
            line, slope, a = rows.lines[k], state["slope", k], seen[k]
            lo, hi = rows.intervals[rows.graph.nodes[k].parents[0]]
            assert line.least is not None
            assert line.most is not None
            below = torch.minimum((line.most - slope) * hi, (slope - line.least) * -lo)
            cost = torch.where(a > 0, a * below, -a * line.up_at_0)
            costs.append(torch.where(line.least < line.most, cost, -1).flatten(1))
        highest, places = torch.cat(costs, 1).topk(min(TRIED, self.units), 1)
        gains = []
        for cost, place in zip(highest.T, places.T, strict=True):
            fitted = self._fitted(self.halves(state, place), self.single)
            bounds = self._bound(*fitted)[0].clamp_max(self.enough)
            gains.append(torch.where(cost < 0, -torch.inf, bounds.view(2, -1).sum(0)))
        best = torch.stack(gains, 1).argmax(1, keepdim=True)
        return torch.where(highest[:, 0] < 0, -1, places.gather(1, best)[:, 0])
