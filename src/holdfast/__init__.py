"""Holdfast: how robust is a trained model against adversarial examples, and how is it made so.

Names are imported when first used, so that the command line and the report start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast import attacks, targets
    from holdfast.attacks.result import AttackResult
    from holdfast.certification.certify import certify
    from holdfast.data import Source, as_source
    from holdfast.errors import AccessError, HoldfastError, InputError, SpecError
    from holdfast.evaluation.attack import attack
    from holdfast.evaluation.evaluate import evaluate
    from holdfast.evaluation.merge import merge
    from holdfast.evaluation.verify import verify
    from holdfast.generation.train import generate
    from holdfast.hardening.harden import harden
    from holdfast.intervals import Interval
    from holdfast.reporting.pages import report
    from holdfast.runs.compare import compare
    from holdfast.runs.run import Run
    from holdfast.targets.preprocess import Normalize, Resize
    from holdfast.targets.target import Bounds
    from holdfast.targets.wrapping import load, wrap
    from holdfast.threats.table.features import Feature
    from holdfast.threats.table.schema import Schema
    from holdfast.threats.threat import Targeted, Threat, Untargeted
    from holdfast.training.train import train

    __version__: str

_HOMES = {
    "holdfast.attacks.result": ("AttackResult",),
    "holdfast.certification.certify": ("certify",),
    "holdfast.data": ("Source", "as_source"),
    "holdfast.errors": ("AccessError", "HoldfastError", "InputError", "SpecError"),
    "holdfast.evaluation.attack": ("attack",),
    "holdfast.evaluation.evaluate": ("evaluate",),
    "holdfast.evaluation.merge": ("merge",),
    "holdfast.evaluation.verify": ("verify",),
    "holdfast.generation.train": ("generate",),
    "holdfast.hardening.harden": ("harden",),
    "holdfast.intervals": ("Interval",),
    "holdfast.reporting.pages": ("report",),
    "holdfast.runs.compare": ("compare",),
    "holdfast.runs.run": ("Run",),
    "holdfast.targets.preprocess": ("Normalize", "Resize"),
    "holdfast.targets.target": ("Bounds",),
    "holdfast.targets.wrapping": ("load", "wrap"),
    "holdfast.threats.table.features": ("Feature",),
    "holdfast.threats.table.schema": ("Schema",),
    "holdfast.threats.threat": ("Targeted", "Threat", "Untargeted"),
    "holdfast.training.train": ("train",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AccessError",
    "AttackResult",
    "Bounds",
    "Feature",
    "HoldfastError",
    "InputError",
    "Interval",
    "Normalize",
    "Resize",
    "Run",
    "Schema",
    "Source",
    "SpecError",
    "Targeted",
    "Threat",
    "Untargeted",
    "__version__",
    "as_source",
    "attack",
    "attacks",
    "certify",
    "compare",
    "evaluate",
    "generate",
    "harden",
    "load",
    "merge",
    "report",
    "targets",
    "train",
    "verify",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("holdfast.version").VERSION
    if name in ("attacks", "targets"):
        return importlib.import_module(f"holdfast.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
