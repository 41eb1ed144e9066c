"""What relations between the columns of a table are made of: numbers, and conditions on them.

Both are computed for all rows at once from `columns`, a float64 tensor [features, n] or a list of
its rows. A condition gives how far it is from holding, [n]: 0 where it holds, inf where it cannot
be computed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

Columns = Tensor | Sequence[Tensor]
UNEQUAL = 1e-6  # of two numbers without a stated tolerance: relative, and absolute below 1
LEAST = 1e-9  # how far at least a condition is from holding that does not


class Number(ABC):
    """A number of each row."""

    size: int = 1  # how many parts it has

    @abstractmethod
    def value(self, columns: Columns) -> Tensor:
        """The number of each row: [n]."""

    @cached_property
    def used(self) -> frozenset[int]:
        """The columns that it depends on."""
        raise NotImplementedError

    @abstractmethod
    def degree(self, column: int) -> float:
        """0 where a column does not matter, 1 where it does as in a straight line, else inf."""

    def terms(self, factor: float) -> list[tuple[float, Number]]:
        """The sum that `factor` times it is, as far as it can be told: factors and numbers."""
        return [(factor, self)]


@dataclass(frozen=True)
class Constant(Number):
    number: float

    @cached_property
    def used(self) -> frozenset[int]:
        return frozenset()

    def value(self, columns: Columns) -> Tensor:
        return torch.full_like(columns[0], self.number)

    def degree(self, column: int) -> float:
        return 0


@dataclass(frozen=True)
class Column(Number):
    index: int

    def value(self, columns: Columns) -> Tensor:
        return columns[self.index]

    @cached_property
    def used(self) -> frozenset[int]:
        return frozenset([self.index])

    def degree(self, column: int) -> float:
        return float(column == self.index)


@dataclass(frozen=True)
class Total(Number):
    """The sum of columns."""

    indices: tuple[int, ...]

    def value(self, columns: Columns) -> Tensor:
        if isinstance(columns, Tensor):
            return columns[list(self.indices)].sum(0)
        return torch.stack([columns[i] for i in self.indices]).sum(0)

    @cached_property
    def used(self) -> frozenset[int]:
        return frozenset(self.indices)

    def degree(self, column: int) -> float:
        return float(column in self.used)

    def terms(self, factor: float) -> list[tuple[float, Number]]:
        return [(factor, Column(i)) for i in self.indices]


@dataclass(frozen=True)
class Operation(Number):
    """A function of numbers, by its name."""

    name: str
    arguments: tuple[Number, ...]

    def value(self, columns: Columns) -> Tensor:
        return OPERATIONS[self.name](*(a.value(columns) for a in self.arguments))

    @cached_property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 + sum(a.size for a in self.arguments)

    @cached_property
    def used(self) -> frozenset[int]:
        return frozenset().union(*(a.used for a in self.arguments))

    def degree(self, column: int) -> float:
        degrees = [a.degree(column) for a in self.arguments]
        if max(degrees) == 0 or self.name in ("+", "-"):
            return max(degrees)
        if self.name == "*":
            return 1 if sum(degrees) == 1 else math.inf
        return 1 if self.name == "/" and degrees == [1, 0] else math.inf

    def terms(self, factor: float) -> list[tuple[float, Number]]:
        first, *others = self.arguments
        if self.name == "+":
            return first.terms(factor) + others[0].terms(factor)
        if self.name == "-":
            return first.terms(factor) + others[0].terms(-factor)
        if self.name == "*" and isinstance(first, Constant):
            return others[0].terms(factor * first.number)
        if self.name == "*" and isinstance(others[0], Constant):
            return first.terms(factor * others[0].number)
        if self.name == "/" and isinstance(others[0], Constant) and others[0].number:
            return first.terms(factor / others[0].number)
        return super().terms(factor)


@dataclass(frozen=True)
class Choice(Number):
    """One number where a condition holds, else another."""

    condition: Condition
    then: Number
    otherwise: Number

    def value(self, columns: Columns) -> Tensor:
        holds = self.condition.distance(columns) == 0
        return torch.where(holds, self.then.value(columns), self.otherwise.value(columns))

    @cached_property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 + self.then.size + self.otherwise.size

    @cached_property
    def used(self) -> frozenset[int]:
        return self.condition.used | self.then.used | self.otherwise.used

    def degree(self, column: int) -> float:
        if column in self.condition.used:
            return math.inf
        return max(self.then.degree(column), self.otherwise.degree(column))


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "%": torch.remainder,
    "**": torch.pow,
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "exp": torch.exp,
    "min": lambda *parts: torch.stack(parts).amin(0),
    "max": lambda *parts: torch.stack(parts).amax(0),
}


class Condition(ABC):
    """What holds of a row, or not."""

    @abstractmethod
    def distance(self, columns: Columns) -> Tensor:
        """How far it is from holding: [n], 0 where it does."""

    @cached_property
    def used(self) -> frozenset[int]:
        """The columns that it depends on."""
        raise NotImplementedError

    @abstractmethod
    def negated(self) -> Condition:
        """What holds exactly where it does not."""


@dataclass(frozen=True)
class Comparison(Condition):
    """`left` is at most, below, equal or unequal to `right`.

    Numbers within a slack of each other count as equal: `within`, and the tolerance, which is
    relative where None.
    """

    left: Number
    kind: str  # "<=", "<", "==", "!="
    right: Number
    tolerance: float | None = 0.0
    within: float = 0.0
    side: int = 1  # -1: the slack is on the other side, as where "<=" was negated

    @cached_property
    def difference(self) -> Number:
        return Operation("-", (self.left, self.right))

    @cached_property
    def used(self) -> frozenset[int]:
        return self.left.used | self.right.used

    def slack(self, left: Tensor, right: Tensor) -> Tensor | float:
        tolerance: Tensor | float | None = self.tolerance
        if tolerance is None:
            tolerance = UNEQUAL * left.abs().maximum(right.abs()).clamp_min(1)
        return self.side * (self.within + tolerance)

    def distance(self, columns: Columns) -> Tensor:
        left, right = self.left.value(columns), self.right.value(columns)
        gap, slack = left - right, self.slack(left, right)
        if self.kind in ("==", "!="):
            gap = gap.abs()
        holds = gap < slack if self.kind == "<" else gap <= slack
        if self.kind == "!=":
            holds, gap = gap > slack, torch.ones_like(gap)
        return torch.where(holds, 0, gap.nan_to_num(torch.inf).clamp_min(LEAST))

    def negated(self) -> Condition:
        kind = {"<=": "<", "<": "<=", "==": "!=", "!=": "=="}[self.kind]
        if self.kind in ("==", "!="):
            return replace(self, kind=kind)
        return replace(self, left=self.right, kind=kind, right=self.left, side=-self.side)


@dataclass(frozen=True)
class OneOf(Condition):
    """A number is one of these values."""

    number: Number
    values: tuple[float, ...]
    tolerance: float | None = 0.0

    @cached_property
    def used(self) -> frozenset[int]:
        return self.number.used

    def distance(self, columns: Columns) -> Tensor:
        value = self.number.value(columns)
        gap = (value - value.new_tensor(self.values)[:, None]).abs().amin(0)
        slack = UNEQUAL if self.tolerance is None else self.tolerance
        return torch.where(gap <= slack, 0, gap.nan_to_num(torch.inf))

    def negated(self) -> Condition:
        alike = (Comparison(self.number, "!=", Constant(v), self.tolerance) for v in self.values)
        return Every(tuple(alike))


@dataclass(frozen=True)
class Every(Condition):
    """All of these hold."""

    parts: tuple[Condition, ...]

    @cached_property
    def used(self) -> frozenset[int]:
        return frozenset().union(*(part.used for part in self.parts))

    def distance(self, columns: Columns) -> Tensor:
        return torch.stack([part.distance(columns) for part in self.parts]).amax(0)

    def negated(self) -> Condition:
        return Some(tuple(part.negated() for part in self.parts))


@dataclass(frozen=True)
class Some(Condition):
    """At least one of these holds."""

    parts: tuple[Condition, ...]

    @cached_property
    def used(self) -> frozenset[int]:
        return frozenset().union(*(part.used for part in self.parts))

    def distance(self, columns: Columns) -> Tensor:
        return torch.stack([part.distance(columns) for part in self.parts]).amin(0)

    def negated(self) -> Condition:
        return Every(tuple(part.negated() for part in self.parts))
