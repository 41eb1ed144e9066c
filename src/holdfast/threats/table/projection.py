"""The nearest rows within linear relations and limits, before what is left is mended one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.threats.table.expressions import Column, Comparison, Condition, Constant, Some

SWEEPS = 100  # over all relations
FEW = 4  # after which most columns have come to rest


@dataclass(frozen=True)
class Relations:
    """Linear relations of which no two share a feature: a constant and a sum of features, in their
    units, are at most 0, or equal 0."""

    at: Tensor  # [entries] the feature of each term
    of: Tensor  # [entries] its relation
    weight: Tensor  # [entries, 1] float64
    constant: Tensor  # [relations, 1] float64
    equal: Tensor  # [relations, 1] bool
    optional: Tensor  # [relations, 1] bool: one of several choices, kept where it holds at first

    @staticmethod
    def of_lines(lines: Sequence[Line], unit: Tensor) -> Relations:
        at = torch.tensor([j for line in lines for j in line.weights])
        of = torch.tensor([i for i, line in enumerate(lines) for _ in line.weights])
        weight = unit.new_tensor([w for line in lines for w in line.weights.values()]) * unit[at]
        columns = zip(*((line.constant, line.equal, line.optional) for line in lines), strict=True)
        constant, equal, optional = (torch.tensor(column)[:, None] for column in columns)
        return Relations(at, of, weight[:, None], constant.double(), equal, optional)

    def sums(self, columns: Tensor) -> Tensor:
        """What is to be at most 0, of columns [features, n]: [relations, n]."""
        constant = self.constant.expand(-1, columns.shape[1])
        return constant.index_add(0, self.of, self.weight * columns[self.at])


@dataclass(frozen=True)
class Line:
    """One linear relation: see `Relations`; the weights are in the units of the table."""

    weights: dict[int, float]
    constant: float
    equal: bool
    optional: bool

    @staticmethod
    def of(condition: Condition) -> Line | None:
        """What a condition says, where that is linear; of several choices the first that is."""
        if isinstance(condition, Some):
            parts = [part for part in map(Line.of, condition.parts) if part is not None]
            return (
                Line(parts[0].weights, parts[0].constant, parts[0].equal, True) if parts else None
            )
        if not isinstance(condition, Comparison) or condition.kind == "!=":
            return None
        weights, constant = dict[int, float](), 0.0
        for factor, number in condition.difference.terms(1.0):
            if isinstance(number, Constant):
                constant += factor * number.number
            elif isinstance(number, Column):
                weights[number.index] = weights.get(number.index, 0.0) + factor
            else:
                return None
        if len(weights) < 2:
            return None  # a limit of one feature is soon mended
        return Line(weights, constant, condition.kind == "==", False)


def linear(conditions: Sequence[Condition], unit: Tensor, still: set[int]) -> list[Relations]:
    """The linear relations between features that may all be moved, those that share none
    together."""
    groups: list[tuple[set[int], list[Line]]] = []
    for line in map(Line.of, conditions):
        if line is None or line.weights.keys() & still:
            continue
        fits = (group for group in groups if not group[0] & line.weights.keys())
        used, lines = next(fits, (set[int](), list[Line]()))
        if not lines:
            groups.append((used, lines))
        used.update(line.weights)
        lines.append(line)
    return [Relations.of_lines(lines, unit) for _, lines in groups]


def project(
    relations: Sequence[Relations], start: Tensor, point: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The columns nearest to `point` within relations and limits, but for what some sweeps leave:
    [features, n] float64, all in units of the features.

    Dykstra's projections (Boyle and Dykstra 1986), of relations that share no feature at once.
    What becomes of a column depends on that column alone.
    """
    sides = (start, point, low, high)
    found, unsettled = _sweep(relations, *sides, FEW)
    if len(unsettled):
        start, point, low, high = (side[:, unsettled] for side in sides)
        rest, _ = _sweep(relations, start, point, low, high, SWEEPS)
        found = found.index_copy(1, unsettled, rest)
    return found


def _sweep(
    relations: Sequence[Relations],
    start: Tensor,
    point: Tensor,
    low: Tensor,
    high: Tensor,
    sweeps: int,
) -> tuple[Tensor, Tensor]:
    """The columns after so many sweeps, and the places of those that another would still move."""
    found, outside = point, torch.zeros_like(point)
    unsettled = torch.ones_like(point[0], dtype=torch.bool)
    free = (high > low).to(point)
    pressure = [torch.zeros_like(r.sums(start)) for r in relations]
    void = [r.optional & (r.sums(start) > 0) for r in relations]
    squares = [
        p.index_add(0, r.of, r.weight.square() * free[r.at])
        for r, p in zip(relations, pressure, strict=True)
    ]
    for t in range(sweeps):
        before = (found, outside, *pressure)
        for i, r in enumerate(relations):
            new = pressure[i] + torch.where(squares[i] > 0, r.sums(found) / squares[i], 0)
            new = torch.where(r.equal, new, new.clamp_min(0)).masked_fill(void[i], 0)
            found = found.index_add(0, r.at, (pressure[i] - new)[r.of] * r.weight * free[r.at])
            pressure[i] = new
        ahead = found + outside
        found = ahead.clamp(low, high)
        outside = ahead - found
        if (t + 1) % FEW:
            continue
        after = (found, outside, *pressure)
        unsettled = torch.stack([(a != b).any(0) for a, b in zip(before, after, strict=True)]).any(
            0
        )
        if not bool(unsettled.any()):
            break
    return found, unsettled.nonzero()[:, 0]
