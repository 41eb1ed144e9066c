"""Hardening: recipes that make a network robust, the loop that trains it, and the measure before and after."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from holdfast.harden.harden import Hardened, harden

__all__ = ["Hardened", "harden"]


class _Callable(ModuleType):
    """`holdfast.harden(...)` is the function, also after Python has put this package under that name."""

    def __call__(self, *args: Any, **options: Any) -> Hardened:
        return harden(*args, **options)


sys.modules[__name__].__class__ = _Callable
