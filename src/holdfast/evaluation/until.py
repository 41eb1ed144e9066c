"""Until: a run in random order that ends as soon as the interval of its robust accuracy says
enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.errors import SpecError
from holdfast.intervals import Interval, anytime_interval
from holdfast.runs import gates
from holdfast.runs.gates import Gate
from holdfast.runs.manifest import UntilInfo
from holdfast.runs.metrics import HELD

ABOUT = "robust_accuracy"  # with its ends `.low` and `.high`: what the interval says something of


@dataclass(frozen=True)
class Until:
    """The interval is at most so wide; or, without a width, each gate is decided: its bound lies
    outside the interval."""

    width: float | None = None
    gates: tuple[Gate, ...] = ()

    def met(self, share: Interval) -> bool:
        """Whether an `anytime_interval` of the robust accuracy says enough."""
        if share.low is None or share.high is None:
            return False
        if self.width is not None:
            return share.high - share.low <= self.width
        return all(share.low > g.bound or share.high < g.bound for g in self.gates)

    def check_rows(self, rows: int) -> None:
        """Refuse a width that so many rows cannot give.

        Raises:
            SpecError: not even where all of them are alike.
        """
        least = 1 - (anytime_interval(rows, rows).low or 0)
        if self.width is not None and self.width < least:
            raise SpecError(
                f"until is a width of {self.width:g}, but {rows:,} rows give no interval narrower "
                f"than {least:.2g}, whatever they show; give more rows, or a larger width."
            )

    def info(self, rows: tuple[int, int]) -> UntilInfo:
        return UntilInfo(width=self.width, gates=[gate.text for gate in self.gates], rows=rows)


def parse(until: float | str | Sequence[str]) -> Until:
    """The rule from a width, or from one or more gates.

    Raises:
        SpecError: a width that is none, no gate, or one of which the interval says nothing.
    """
    if isinstance(until, (int, float)):
        if not 0 < until < 1:
            raise SpecError(
                f"until is a width of {until:g}; the width of an interval lies between 0 and 1, "
                "such as 0.05."
            )
        return Until(float(until))
    conditions = [gates.parse(text) for text in ([until] if isinstance(until, str) else until)]
    if not conditions:
        raise SpecError("until names no gate; give a width such as 0.05, or a gate.")
    for gate in conditions:
        if gate.name.removesuffix(".low").removesuffix(".high") != ABOUT:
            raise SpecError(
                f"until stops by the interval of the robust accuracy, which says nothing of the "
                f"gate {gate.text!r}; hold the finished run to it by holdfast report --gate."
            )
        if gate.compare in ("==", "!="):
            raise SpecError(
                f"no interval decides the gate {gate.text!r}; give a bound with >=, <=, > or <."
            )
    return Until(gates=tuple(conditions))


def read(info: UntilInfo) -> Until:
    """The rule of a run."""
    return parse(info.gates if info.width is None else info.width)


def stop(rule: Until, status: np.ndarray, finished: np.ndarray, ends: Sequence[int]) -> int | None:
    """After how many rows the rule is first met; None: after none.

    Args:
        status: of each row in the order of the run, [n] texts.
        finished: whether the whole protocol was run on it, [n] bool.
        ends: the numbers of rows after which one may stop, at the end of each chunk.
    """
    held, counted = np.isin(status, HELD).cumsum(), (status != "skipped").cumsum()
    for end in ends:
        if not finished[:end].all():  # time ran out: --resume goes on with these rows
            return None
        if rule.met(anytime_interval(int(held[end - 1]), int(counted[end - 1]))):
            return end
    return None
