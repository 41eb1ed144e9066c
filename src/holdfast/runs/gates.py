"""Gates: conditions on a run, such as `robust_accuracy.low>=0.45` or `verdict==trusted`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.errors import SpecError, suggest
from holdfast.runs.manifest import Manifest

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_SHARES = (
    "clean_accuracy",
    "robust_accuracy",
    "certified_accuracy",
    "accuracy_8bit",
    "attack_success_rate",
    "corruptions.mean_accuracy",
    "worst_group.robust_accuracy",
)
_OF_BINARY = ("precision", "recall", "f1", "balanced_accuracy", "auroc", "auprc")
_PAIRS = (
    *("precision", "recall", "f1", "calibration.ece", "calibration.aurc"),
    *(f"binary.{name}" for name in _OF_BINARY),
)
# from the worst to the best, so that >= has a meaning
_VERDICTS = ("unreliable", "upper-bound", "trusted")
KNOWN = [
    *_SHARES,
    *(f"{name}.{part}" for name in _SHARES for part in ("low", "high")),
    *(f"{name}.{part}" for name in _PAIRS for part in ("clean", "attacked")),
    *("corruptions.relative_drop", "corruptions.mce", "median_queries", "verdict"),
]


@dataclass(frozen=True)
class Gate:
    """A figure, a comparison and a bound: a number, or the place of the verdict in `_VERDICTS`."""

    text: str
    name: str
    compare: str
    bound: float


@dataclass(frozen=True)
class Outcome:
    gate: Gate
    held: bool
    sentence: str


def parse(text: str) -> Gate:
    """A gate from text.

    Raises:
        SpecError: it is no comparison, or names no figure.
    """
    found = re.findall(r"\A\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*([-+.\w]+)\s*\Z", text)
    name, compare, bound = next(iter(found), ("", "", ""))
    if found and name not in KNOWN:
        raise SpecError(f"unknown figure {name!r} in the gate {text!r}; {suggest(name, KNOWN)}")
    if name == "verdict":
        if bound not in _VERDICTS:
            raise SpecError(
                f"unknown verdict {bound!r} in the gate {text!r}; it is one of "
                f"{', '.join(_VERDICTS)}."
            )
        return Gate(text.strip(), name, compare, _VERDICTS.index(bound))
    try:
        return Gate(text.strip(), name, compare, float(bound))
    except ValueError:
        raise SpecError(
            f'cannot read the gate {text!r}; expected for example "robust_accuracy>=0.45" or '
            '"verdict==trusted".'
        ) from None


def judge(gates: Sequence[Gate], manifest: Manifest) -> list[Outcome]:
    """Whether each gate holds. No gate holds on a figure that is undefined or was not measured."""
    return [_judge(gate, manifest) for gate in gates]


def _judge(gate: Gate, manifest: Manifest) -> Outcome:
    if gate.name == "verdict":
        seen, value = manifest.verdict.status, float(_VERDICTS.index(manifest.verdict.status))
        bound = _VERDICTS[int(gate.bound)]
    else:
        value = _figure(gate.name, manifest)
        seen, bound = ("not measured" if value is None else f"{value:.6g}"), f"{gate.bound:g}"
    held = value is not None and _COMPARE[gate.compare](value, gate.bound)
    return Outcome(
        gate, held, f"{gate.name} is {seen}, {'not ' * (not held)}{gate.compare} {bound}"
    )


def _figure(name: str, manifest: Manifest) -> float | None:
    found: Any = manifest.metrics
    for part in name.split("."):
        found = getattr(found, part, None)
    return getattr(found, "value", found)
