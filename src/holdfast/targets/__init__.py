"""Targets: models behind one narrow door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

from holdfast.errors import InputError
from holdfast.targets import loading
from holdfast.targets.preprocess import Preprocess
from holdfast.targets.target import Access, Bounds, Target
from holdfast.targets.torch import TorchTarget

__all__ = ["Access", "Bounds", "Target", "TorchTarget", "load", "wrap"]


def load(spec: str, *, arch: str | None = None, trust: bool = False, **options: Any) -> Target:
    """The model that a command line names, behind the door: `loading.load`, then `wrap` with the options.

    Raises:
        InputError: missing, damaged or dangerous file, wrong architecture, or weights that do not fit it.
    """
    return wrap(loading.load(spec, arch=arch, trust=trust), **options)


def wrap(
    model: Any,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    preprocess: Preprocess | Sequence[Preprocess] = (),
    **options: Any,
) -> Target:
    """Put a model behind the door: picks the adapter by the model's kind.

    Args:
        model: a torch module, or a differentiable callable from a tensor [n, *shape] to scores; a Target is returned
            as it is.
        bounds: the range of raw inputs; eps is in the same units.
        preprocess: what happens to raw inputs before the model, one step or several in order.
        options: see the adapter, `TorchTarget`.

    Raises:
        InputError: no adapter takes a model of this kind.
    """
    if isinstance(model, Target):
        return model
    steps: Sequence[Preprocess] = (preprocess,) if isinstance(preprocess, Callable) else preprocess
    odd = [step for step in steps if not is_dataclass(step)]
    if odd:
        raise InputError(
            f"preprocess holds a {type(odd[0]).__name__}, which a manifest cannot name; give Normalize or Resize, or "
            f"put it into the model."
        )
    if not callable(model):
        raise InputError(f"cannot wrap a {type(model).__name__}; give a torch module, or a callable of one tensor.")
    return TorchTarget(model, bounds=bounds, preprocess=steps, **options)
