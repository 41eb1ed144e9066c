"""Gates: conditions on a run's figures, such as `robust_accuracy>=0.45`."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

from holdfast.errors import SpecError, suggest

if TYPE_CHECKING:
    from holdfast.runs.manifest import Metrics

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_SHARES = ("clean_accuracy", "robust_accuracy", "attack_success_rate")
_PAIRS = ("precision", "recall", "f1")
KNOWN = [*_SHARES, *(f"{name}.{part}" for name in _SHARES for part in ("low", "high"))]
KNOWN += [*(f"{name}.{part}" for name in _PAIRS for part in ("clean", "attacked"))]


def parse(text: str) -> tuple[str, str, float]:
    """(figure, comparison, bound) of a gate.

    Raises:
        SpecError: it is no comparison, or names no figure.
    """
    found = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", text)
    try:
        name, compare, bound = found.groups() if found else ("", "", "")
        limit = float(bound)
    except ValueError:
        raise SpecError(f'cannot read the gate {text!r}; expected for example "robust_accuracy>=0.45".') from None
    if name not in KNOWN:
        raise SpecError(f"unknown figure {name!r} in the gate {text!r}; {suggest(name, KNOWN)}")
    return name, compare, limit


def holds(gate: tuple[str, str, float], metrics: Metrics) -> tuple[bool, float | None]:
    """Whether a gate holds, and the figure it looked at. A figure that is undefined holds no gate."""
    name, compare, limit = gate
    figure, _, part = name.partition(".")
    value = getattr(getattr(metrics, figure), part or "value")
    return value is not None and _COMPARE[compare](value, limit), value
