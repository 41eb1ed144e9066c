"""Holdfast: how robust is a trained model against adversarial examples, and how is it made so.

Names are imported when first used, so that the command line and the report start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast import attacks
    from holdfast.attacks.result import AttackResult
    from holdfast.certification.certify import certify
    from holdfast.errors import AccessError, HoldfastError, InputError, SpecError
    from holdfast.evaluation.attack import attack
    from holdfast.evaluation.evaluate import evaluate
    from holdfast.hardening.harden import harden
    from holdfast.runs.run import Run
    from holdfast.targets.preprocess import Normalize, Resize
    from holdfast.targets.wrapping import load, wrap
    from holdfast.threats.threat import Targeted, Threat, Untargeted

    __version__: str

_HOMES = {
    "holdfast.attacks.result": ("AttackResult",),
    "holdfast.certification.certify": ("certify",),
    "holdfast.evaluation.attack": ("attack",),
    "holdfast.errors": ("AccessError", "HoldfastError", "InputError", "SpecError"),
    "holdfast.evaluation.evaluate": ("evaluate",),
    "holdfast.runs.run": ("Run",),
    "holdfast.hardening.harden": ("harden",),
    "holdfast.targets.wrapping": ("load", "wrap"),
    "holdfast.targets.preprocess": ("Normalize", "Resize"),
    "holdfast.threats.threat": ("Targeted", "Threat", "Untargeted"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AccessError",
    "AttackResult",
    "HoldfastError",
    "InputError",
    "Normalize",
    "Resize",
    "Run",
    "SpecError",
    "Targeted",
    "Threat",
    "Untargeted",
    "__version__",
    "attack",
    "attacks",
    "certify",
    "evaluate",
    "harden",
    "load",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("holdfast.version").VERSION
    if name == "attacks":
        return importlib.import_module("holdfast.attacks")
    if name not in _HOME:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
