"""Rows that break a schema, mended: the legal rows nearby that a search really asks about.

Columns are float64 [features, n], so that one relation is computed for all rows at once. What
becomes of a row depends on that row alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from holdfast.threats.table.expressions import (
    Column,
    Comparison,
    Condition,
    Every,
    Number,
    OneOf,
    Some,
)
from holdfast.threats.table.projection import Relations, linear

ROUNDS = 4  # of all relations: one may break what another mended
BROKEN = 1e12  # what a broken relation counts, compared with the square of a change
GRAIN = 1e-6  # of a feature's unit: by how much it is moved past a bound that it must not touch


@dataclass
class Rows:
    """Rows under repair, as columns."""

    start: Tensor  # [features, n] float64: unchanged
    low: Tensor  # how far each feature may go
    high: Tensor
    found: Tensor  # as they are now; changed in place
    dtype: torch.dtype  # of the rows as they are stored

    def stored(self, value: Tensor) -> Tensor:
        """Numbers as stored rows hold them."""
        return value.to(self.dtype).double()

    def back(self, value: Tensor, goal: Tensor) -> Tensor:
        """The next numbers that stored rows hold on the way to the goal."""
        return torch.nextafter(value.to(self.dtype), goal.to(self.dtype)).double()

    def nearest(self, j: int, value: Tensor, levels: Tensor) -> Tensor:
        """The nearest of some levels within the limits of feature j, or the value where none is
        there: [n]."""
        levels = levels.to(value)[:, None]
        gap = (value - levels).abs()
        inside = (levels >= self.low[j]) & (levels <= self.high[j])
        least, at = torch.where(inside, gap, torch.inf).min(0)
        return torch.where(least.isfinite(), levels[:, 0][at], value)


@dataclass(frozen=True)
class Mender:
    """Mends columns so that relations hold, by moving features within the limits of their rows."""

    conditions: Sequence[Condition]
    # what a feature is by a formula, in an order in which each needs only earlier ones
    formulas: Sequence[tuple[int, Number]]
    whole: Tensor  # [features] bool
    levels: dict[int, Tensor]  # of features with a list of values
    groups: Sequence[Tensor]  # columns of each one-hot group
    unit: Tensor  # [features] what counts as a change of 1
    still: frozenset[int]  # features that no relation may move
    middle: Tensor  # [features, 1]: a row in the middle of the bounds
    movers: dict[tuple[int, int], list[tuple[int, float | None]]] = field(default_factory=dict)
    others: dict[int, list[Condition]] = field(default_factory=dict)

    @cached_property
    def linear(self) -> list[Relations]:
        """The linear relations, but for those of groups."""
        grouped = {int(j) for group in self.groups for j in group}
        return linear(self.conditions, self.unit, grouped)

    def mend(self, rows: Rows) -> Tensor:
        """Legal columns near those found, or ones that still break something: [features, n]."""
        self._typed(rows)
        for _ in range(ROUNDS):
            self.compute(rows)
            clean = True
            for condition in self.conditions:
                clean &= self._fix(condition, rows)
            self.compute(rows)
            if clean:
                break
        return rows.found

    # ------------------------------------------------------------------ the row format

    def _typed(self, rows: Rows) -> None:
        found, whole = rows.found.clamp(rows.low, rows.high), self.whole
        low, high = rows.low[whole].ceil(), rows.high[whole].floor()
        found[whole] = found[whole].round().clamp(low, high)
        for j, levels in self.levels.items():
            found[j] = rows.nearest(j, found[j], levels)
        for group in self.groups:
            free = (rows.high[group] > rows.low[group]).all(0)
            chosen = torch.zeros_like(found[group])
            chosen.scatter_(0, found[group].argmax(0, keepdim=True), 1.0)
            found[group] = torch.where(free, chosen, rows.start[group])
        rows.found = rows.stored(found)

    def compute(self, rows: Rows) -> None:
        """Give the features that formulas say their values, where what they are made of changed."""
        for j, formula in self.formulas:
            used = list(formula.used)
            changed = (rows.found[used] != rows.start[used]).any(0)
            value = formula.value(rows.found)
            value = torch.where(value.isfinite(), value, rows.start[j])
            rows.found[j] = torch.where(changed, self._in_format(j, value, rows), rows.start[j])

    def _in_format(self, j: int, value: Tensor, rows: Rows) -> Tensor:
        """Values of feature j within its limits, of its type."""
        low, high = rows.low[j], rows.high[j]
        if j in self.levels:
            return rows.nearest(j, value, self.levels[j])
        if self.whole[j]:
            value, low, high = value.round(), low.ceil(), high.floor()
        return rows.stored(value.clamp(low, high))

    # ------------------------------------------------------------------ relations

    def _fix(self, condition: Condition, rows: Rows) -> bool:
        """Make a condition hold in the rows in which it does not, as far as can be; whether it held
        in all."""
        broken = condition.distance(rows.found) > 0
        if not bool(broken.any()):
            return True
        match condition:
            case Comparison():
                self._fix_comparison(condition, broken, rows)
            case OneOf(number=Column(index=j), values=values) if j not in self.still:
                nearest = rows.nearest(j, rows.found[j], rows.found.new_tensor(values))
                rows.found[j] = torch.where(broken, nearest, rows.found[j])
            case Every(parts=parts):
                for part in parts:
                    self._fix(part, rows)
            case Some(parts=parts):
                self._fix_some(condition, parts, broken, rows)
        return False

    def _fix_some(
        self, condition: Condition, parts: Sequence[Condition], broken: Tensor, rows: Rows
    ) -> None:
        """Make that part hold in each row that breaks the fewest other relations; of these, that
        which needs the smallest change."""
        used = list(condition.used)
        before = rows.found[used]
        best, least = before.clone(), torch.full_like(before[0], torch.inf)
        for part in parts:
            rows.found[used] = before
            self._fix(part, rows)
            now = rows.found[used]
            change = ((now - before) / self.unit[used, None]).square().sum(0)
            for other in self._touching(condition):
                change = change + BROKEN * (other.distance(rows.found) > 0)
            change = torch.where(part.distance(rows.found) > 0, torch.inf, change)
            better = broken & (change < least)
            best, least = torch.where(better, now, best), torch.where(better, change, least)
        rows.found[used] = best

    def _fix_comparison(self, condition: Comparison, broken: Tensor, rows: Rows) -> None:
        """Move features one by one, those first that change least for it, until it holds."""
        left, right = condition.left.value(rows.found), condition.right.value(rows.found)
        gap, slack = left - right, condition.slack(left, right) + torch.zeros_like(left)
        aim = torch.zeros_like(gap) if condition.kind == "==" else slack.clamp_max(0)
        for side in (1, -1):
            for j, slope in self._movers(condition, side):
                late = broken & ((gap >= aim) if side > 0 else (gap < aim))
                if not bool(late.any()):
                    break
                own = rows.found[j].clone()
                rate = self._slope(condition, j, rows.found) if slope is None else slope
                goal = self._goal(condition, j, own, (aim - gap) / rate, rate, rows)
                rows.found[j] = torch.where(late, goal, own)
                gap = gap + rate * (rows.found[j] - own)
                broken = broken & ~_within(condition, gap, slack)

    def _goal(
        self,
        condition: Comparison,
        j: int,
        own: Tensor,
        move: Tensor,
        rate: Tensor | float,
        rows: Rows,
    ) -> Tensor:
        """Where feature j goes from its `own` values so that a comparison comes to hold."""
        grain = 1.0 if self.whole[j] else GRAIN * float(self.unit[j])
        move = move.nan_to_num(0, 0, 0)
        if condition.kind == "<":
            move = move - grain * torch.sign(rate + 0 * own)
        if condition.kind == "!=":
            move = torch.where(own + grain <= rows.high[j], grain, -grain)
        goal = own + move
        if self.whole[j]:
            toward = torch.where(move > 0, goal.floor(), goal.ceil())
            away = torch.where(move > 0, goal.ceil(), goal.floor())
            goal = toward if condition.kind == "==" else away
        goal = self._in_format(j, goal, rows)
        if condition.kind == "==":  # past it by what the type of the rows rounds
            past = (goal - own).abs() > move.abs()
            goal = torch.where(past, rows.back(goal, own), goal)
        return goal

    def _movers(self, condition: Comparison, side: int) -> list[tuple[int, float | None]]:
        """The features that can make a comparison hold whose difference is above (`side` 1) or
        below 0, and what it gains from a change of each by 1, where that is one number.

        First those whose move breaks the fewest other relations; of these, those that change least.
        """
        if (id(condition), side) not in self.movers:
            known = dict(_slopes(condition, self.still))
            order = {}
            for j, slope in known.items():
                rate = self._slope(condition, j, self.middle) if slope is None else slope
                gain, up = abs(float(rate)) * float(self.unit[j]), float(rate) * side < 0
                order[j] = (self._locks.get((j, up), 0), -gain if math.isfinite(gain) else 0.0)
            found = [(j, known[j]) for j in sorted(known, key=order.__getitem__)]
            self.movers[id(condition), side] = found
        return self.movers[id(condition), side]

    def _touching(self, condition: Condition) -> list[Condition]:
        """The other relations between some of the same features."""
        if id(condition) not in self.others:
            used = condition.used
            alike = [c for c in self.conditions if c is not condition and c.used & used]
            self.others[id(condition)] = alike
        return self.others[id(condition)]

    @cached_property
    def _locks(self) -> Counter[tuple[int, bool]]:
        """How many relations a feature can break that goes up (True), or down."""
        said = dict(self.formulas)
        found: Counter[tuple[int, bool]] = Counter()
        for condition in self.conditions:
            sides = getattr(condition, "left", None), getattr(condition, "right", None)
            if not any(formula in sides for formula in said.values()):
                found.update(_locks_of(condition))
        return found

    def _slope(self, condition: Comparison, j: int, columns: Tensor) -> Tensor:
        """What the difference of its sides gains from a change of 1 in a column: [n]."""
        ends = []
        for value in (0.0, 1.0):
            rows = list(columns)
            rows[j] = torch.full_like(columns[j], value)
            ends.append(condition.difference.value(rows))
        return ends[1] - ends[0]


def _slopes(
    condition: Comparison, still: frozenset[int] = frozenset()
) -> Iterator[tuple[int, float | None]]:
    """The features on which the difference of the sides depends as in a straight line, but for
    those that stay, and its slope on each, where that is one number."""
    difference = condition.difference
    bare: dict[int, float] = {}
    others = frozenset[int]()
    for factor, number in difference.terms(1.0):
        if isinstance(number, Column):
            bare[number.index] = bare.get(number.index, 0.0) + factor
        else:
            others |= number.used
    for j in sorted(condition.used - still):
        if j in bare and j not in others:
            if bare[j]:
                yield j, bare[j]
        elif difference.degree(j) == 1:
            yield j, None


def _locks_of(condition: Condition) -> set[tuple[int, bool]]:
    """The moves, up (True) or down, of features that can break a condition."""
    if isinstance(condition, (Every, Some)):
        return set().union(*map(_locks_of, condition.parts))
    both = {(j, up) for j in condition.used for up in (True, False)}
    if not isinstance(condition, Comparison) or condition.kind not in ("<", "<="):
        return both
    slopes = {j: slope for j, slope in _slopes(condition) if slope is not None}
    return {(j, up) for j, up in both if j not in slopes or (slopes[j] > 0) == up}


def _within(condition: Comparison, gap: Tensor, slack: Tensor) -> Tensor:
    """Whether sides this far apart satisfy a comparison: [n] bool."""
    match condition.kind:
        case "==":
            return gap.abs() <= slack
        case "!=":
            return gap.abs() > slack
        case "<":
            return gap < slack
    return gap <= slack
