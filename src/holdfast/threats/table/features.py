"""One column of a table: what its values are, and what an adversary may do to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from holdfast.errors import InputError, SpecError, listed, suggest

TYPES = ("real", "integer", "binary", "ordinal", "category")
MUTABILITIES = ("free", "increase", "decrease", "fixed")
FREE = (-math.inf, math.inf)  # without a bound


@dataclass(frozen=True)
class Feature:
    """A column of numbers.

    Raises:
        SpecError: a bound, value or word that cannot be one.
    """

    name: str
    type: str = "real"
    mutability: str = "free"  # or may only increase, only decrease, or is fixed
    bounds: tuple[float, float] = FREE
    change: tuple[float, float] = FREE  # most that it may fall and rise
    scale: float | None = None  # what counts as a change of 1; None: the width of the bounds
    # of an ordinal or a category: numbers, or names, which the rows hold by their places from 0
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecError(f"a feature is named {self.name!r}; expected a text.")
        for what, known in (("type", TYPES), ("mutability", MUTABILITIES)):
            if getattr(self, what) not in known:
                word = str(getattr(self, what))
                raise SpecError(
                    f"feature {self.name} has the {what} {word!r}; {suggest(word, known)}"
                )
        for what in ("bounds", "change"):
            object.__setattr__(self, what, self._pair(what))
        self._check_values()
        if self.type == "binary":
            low, high = self.bounds
            object.__setattr__(self, "bounds", (max(low, 0.0), min(high, 1.0)))
        elif self.levels:
            low, high = self.bounds
            bounds = max(low, min(self.levels)), min(high, max(self.levels))
            object.__setattr__(self, "bounds", bounds)
        if self.bounds[0] > self.bounds[1]:
            raise SpecError(
                f"feature {self.name} has the bounds [{self.bounds[0]:g}, {self.bounds[1]:g}], "
                "whose low is above the high."
            )
        low, high = self.bounds
        if self.whole and high - low < 1 and math.ceil(low) > math.floor(high):
            raise SpecError(
                f"feature {self.name} is {self.type}, but no whole number lies within its bounds "
                f"[{low:g}, {high:g}]."
            )
        if not self.change[0] <= 0 <= self.change[1]:
            raise SpecError(
                f"feature {self.name} may change by [{self.change[0]:g}, {self.change[1]:g}], but "
                "a row as it is must be legal: the first is at most 0, the second at least 0."
            )
        if self.scale is not None and not (is_number(self.scale) and 0 < self.scale < math.inf):
            raise SpecError(
                f"feature {self.name} has the scale {self.scale!r:.60}; expected a number above 0."
            )
        if self.mutability != "fixed" and not all(map(math.isfinite, self.bounds)):
            raise SpecError(
                f"feature {self.name} may change, but has no bounds; give bounds = [LOW, HIGH], or "
                "mutability = 'fixed'."
            )

    def _pair(self, what: str) -> tuple[float, float]:
        pair = getattr(self, what)
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_number, pair)):
            raise SpecError(
                f"feature {self.name} has the {what} {pair!r:.80}; expected two numbers, the lower "
                "first."
            )
        return float(pair[0]), float(pair[1])

    def _check_values(self) -> None:
        values = self.values
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise SpecError(f"feature {self.name} has the values {values!r:.80}; expected a list.")
        object.__setattr__(self, "values", tuple(values))
        if values and self.type not in ("ordinal", "category"):
            raise SpecError(
                f"feature {self.name} has values, but is {self.type}; only an ordinal or a "
                "category has some."
            )
        if self.type == "category" and not values:
            raise SpecError(f"feature {self.name} is a category; give its values.")
        alike = all(map(is_number, values)) or all(isinstance(v, str) for v in values)
        if not alike or len(set(values)) < len(values):
            raise SpecError(
                f"feature {self.name} has the values {list(values)!r:.80}; expected numbers, or "
                "names, each once."
            )

    @property
    def levels(self) -> tuple[float, ...]:
        """The numbers that a column with values holds."""
        if self.values and isinstance(self.values[0], str):
            return tuple(float(i) for i in range(len(self.values)))
        return tuple(float(v) for v in self.values)

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers and has no list of values."""
        return self.type in ("integer", "binary", "ordinal") and not self.values

    @property
    def names(self) -> dict[str, float]:
        """The numbers of named values."""
        named = self.values and isinstance(self.values[0], str)
        return dict(zip(self.values, self.levels, strict=True)) if named else {}

    def numbers(self, cells: np.ndarray) -> np.ndarray:
        """The values of a column of a table [n] as the numbers that rows hold.

        Raises:
            InputError: a text is none of its values.
        """
        if not self.names:
            return cells
        if unknown := [cell for cell in cells if cell not in self.names]:
            raise InputError(
                f"the column {self.name} has {unknown[0]!r:.60}, which is none of its values: "
                f"{listed(self.values, 5)}."
            )
        return np.array([self.names[cell] for cell in cells])

    @property
    def reach(self) -> tuple[float, float]:
        """How far it may fall and rise from its value in a row."""
        fall, rise = self.change
        if self.mutability in ("increase", "fixed"):
            fall = 0.0
        if self.mutability in ("decrease", "fixed"):
            rise = 0.0
        return fall, rise

    @property
    def unit(self) -> float:
        """What counts as a change of 1."""
        width = self.bounds[1] - self.bounds[0]
        if self.scale is not None:
            return self.scale
        return width if 0 < width < math.inf else 1.0

    @staticmethod
    def of(name: str, said: Mapping[str, Any]) -> Feature:
        """A feature from its table in a file.

        Raises:
            SpecError: as the constructor, or there is a word that it does not know.
        """
        if not isinstance(said, Mapping):
            raise SpecError(f"feature {name} is {said!r:.60}; expected {{ type = 'real', ... }}.")
        known = [field.name for field in fields(Feature)][1:]
        for word in said:
            if word not in known:
                raise SpecError(f"feature {name} has {word!r}; {suggest(word, known)}")
        return Feature(name, **said)


def is_number(value: object) -> bool:
    """Whether a value of a file is a number that float64 holds, or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not math.isnan(value) if isinstance(value, float) else abs(value) < 2**1023
