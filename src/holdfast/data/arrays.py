"""Arrays in memory or memory-mapped, as a source."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from holdfast.data.files import one_line
from holdfast.data.source import Source, floats
from holdfast.errors import InputError


class Arrays(Source):
    """x [n, ...] of any number type and y [n, ...], kept as they are and converted row by row.

    Raises:
        InputError: x is not numeric, has no row axis, has no rows, or has another length than y.
    """

    def __init__(
        self, x: np.ndarray, y: np.ndarray, name: str, *, scale: bool, class_names: tuple[str, ...] | None = None
    ) -> None:
        if x.dtype.kind not in "biuf":
            raise InputError(f"x of {name} holds {x.dtype}; expected numbers.")
        if y.dtype.kind == "O":
            raise InputError(f"y of {name} holds Python objects; expected one integer a row.")
        if x.ndim < 2 or y.ndim < 1:
            raise InputError(f"{name} has x of shape {x.shape} and y of shape {y.shape}; expected [n, ...] and [n].")
        if len(x) != len(y):
            raise InputError(
                f"{name} has {len(x)} inputs and {len(y)} labels; expected as many of both: "
                "one of them is probably cut short or belongs to another set."
            )
        if x.size == 0:
            raise InputError(f"{name} is empty: its x has shape {x.shape}; expected at least one row and one value.")
        self._x, self._y, self._scale = np.asarray(x), np.asarray(y), scale
        self.name, self.shape, self.class_names = name, x.shape[1:], class_names

    def __len__(self) -> int:
        return len(self._x)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        y = self._y[start:stop]
        return floats(self._x[start:stop], self._scale), np.array(y, dtype=y.dtype.newbyteorder("="))


def like(value: np.ndarray, example: Any) -> Any:
    """The array as one of the framework, and on the device, of `example`; NumPy's where that is none of these."""
    root = type(example).__module__.partition(".")[0]
    if root == "torch":
        return sys.modules[root].from_numpy(value).to(example.device)
    if root == "tensorflow":
        return sys.modules[root].convert_to_tensor(value)
    if root in ("jax", "jaxlib"):
        return sys.modules["jax"].device_put(value, next(iter(example.devices())))
    return value


def to_numpy(value: Any, what: str) -> np.ndarray:
    """An array of whatever NumPy can read: arrays, lists, images, tensors of any framework.

    Raises:
        InputError: NumPy cannot read it (ragged lists, bfloat16 tensors); `what` names it.
    """
    try:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} ({type(value).__name__}) cannot become a NumPy array: {one_line(error)}.") from None
