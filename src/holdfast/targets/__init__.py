"""Models under test, of any framework, behind one small interface.

Names are imported when first used: a framework's file is then not loaded through this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.targets.frameworks.pytorch.target import TorchTarget
    from holdfast.targets.target import Access, Bounds, Target
    from holdfast.targets.wrapping import load, wrap

_HOME = {
    "Access": "target",
    "Bounds": "target",
    "Target": "target",
    "TorchTarget": "frameworks.pytorch.target",
    "load": "wrapping",
    "wrap": "wrapping",
}

__all__ = ["Access", "Bounds", "Target", "TorchTarget", "load", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
