"""The judge, the protocols, and the one call that turns a model and data into evidence."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from holdfast.evaluate.evaluate import Names, evaluate
from holdfast.evaluate.run import Run

__all__ = ["Names", "Run", "evaluate"]


class _Callable(ModuleType):
    """`holdfast.evaluate(...)` is the function, also after Python has put this package under that name."""

    def __call__(self, *args: Any, **options: Any) -> Run:
        return evaluate(*args, **options)


sys.modules[__name__].__class__ = _Callable
