"""Arrays in memory or memory-mapped, as a source."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from holdfast.data.source import Source, floats
from holdfast.errors import InputError, first_line


class Arrays(Source):
    """x [n, ...] of any number type and y [n, ...], kept as they are and converted row by row.

    Args:
        further: the context of these rows, x2, x3, ...: [n, ...] each. Bytes of it are never
            rescaled.

    Raises:
        InputError: x is not numeric, has no row axis, has no rows, or has another length than y.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        name: str,
        *,
        scale: bool,
        class_names: tuple[str, ...] | None = None,
        further: Sequence[np.ndarray] = (),
    ) -> None:
        if x.dtype.kind not in "biuf":
            raise InputError(f"x of {name} holds {x.dtype}; expected numbers, and real ones.")
        if y.dtype.kind == "O":
            raise InputError(f"y of {name} holds Python objects; expected one integer a row.")
        if x.ndim < 2 or y.ndim < 1:
            raise InputError(
                f"{name} has x of shape {x.shape} and y of shape {y.shape}; expected [n, ...] and "
                "[n]."
            )
        if len(x) != len(y):
            raise InputError(
                f"x and y of {name} are {len(x)} inputs and {len(y)} labels; expected as many: "
                "one of them is probably cut short or belongs to another set."
            )
        if x.size == 0:
            raise InputError(
                f"{name} is empty: its x has shape {x.shape}; expected at least one row and one "
                "value."
            )
        self._x, self._y, self._scale = np.asarray(x), np.asarray(y), scale
        self.name, self.shape, self.class_names = name, x.shape[1:], class_names
        self._further = {
            f"x{i}": Arrays(
                a.reshape(len(a), *(a.shape[1:] or (1,))), y, f"{name}, x{i}", scale=False
            )
            for i, a in enumerate(further, 2)
        }
        if further:
            self.inputs = (self.shape, *(other.shape for other in self._further.values()))

    def __len__(self) -> int:
        return len(self._x)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return floats(self._x[start:stop], self._scale), self.labels(start, stop)

    def labels(self, start: int, stop: int) -> np.ndarray:
        y = self._y[start:stop]
        return np.array(y, dtype=y.dtype.newbyteorder("="))

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {name: other.rows(start, stop)[0] for name, other in self._further.items()}


def like(value: np.ndarray, example: Any) -> Any:
    """The array as one of the framework, and on the device, of `example`; NumPy's where that is
    none of these."""
    if isinstance(example, tuple):  # the inputs of a model that takes several
        return like(value, example[0])
    roots = {kind.__module__.partition(".")[0] for kind in type(example).__mro__}
    if "torch" in roots:
        return sys.modules["torch"].from_numpy(value).to(example.device)
    if "tensorflow" in roots:
        return sys.modules["tensorflow"].convert_to_tensor(value)
    if roots & {"jax", "jaxlib"}:
        return sys.modules["jax"].device_put(value, next(iter(example.devices())))
    return value


def from_arrays(
    x: Any,
    y: Any,
    name: str = "arrays",
    *,
    scale: bool = True,
    class_names: tuple[str, ...] | None = None,
) -> Arrays:
    """x [n, ...] and y [n] as a source: arrays or tensors of any framework, not copied; lists or
    tables.

    Texts as labels become class numbers in their sorted order, and are kept as `class_names`.
    Labels [n, 1] are taken as [n]. The columns of a DataFrame keep their names and types. Of a
    model that takes several inputs x is a tuple: the array that may change, and then the others in
    their order.

    Raises:
        InputError: not arrays of numbers, empty, or of different length.
    """
    labels = to_numpy(y, f"y of {name}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim and labels.dtype.kind in "UOT" and labels.size:
        from holdfast.data.classes import numbered

        labels, class_names = numbered(labels, name)
    elif labels.dtype == np.bool_ and labels.ndim == 1:
        labels = labels.astype(np.int64)
    columns = None
    if is_frame(x):
        from holdfast.data.features import of_frame

        x, columns = of_frame(x, f"x of {name}")
    parts = x if isinstance(x, tuple) else (x,)
    first, *further = [to_numpy(part, f"x of {name}") for part in parts]
    source = Arrays(first, labels, name, scale=scale, class_names=class_names, further=further)
    source.columns = columns
    return source


def is_frame(value: Any) -> bool:
    """Whether it is a DataFrame of pandas."""
    return hasattr(value, "iloc") and hasattr(value, "columns")


def to_numpy(value: Any, what: str) -> np.ndarray:
    """An array of whatever NumPy can read: arrays, lists, images, tensors of any framework.

    Raises:
        InputError: NumPy cannot read it (ragged lists, bfloat16 tensors); `what` names it.
    """
    if value is None:
        raise InputError(f"{what} is None; expected an array.")
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        array = np.asarray(value)
        kinds = {k.kind for k in getattr(value, "dtypes", ())} if array.ndim == 2 else set()
        if array.dtype == object and kinds and kinds <= {*"biuf"}:
            return array.astype(np.float64)  # a DataFrame of numbers and truth values
        return array
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} ({type(value).__name__}) cannot become a NumPy array: {first_line(error)}."
        ) from None
