"""The one interface of data: rows of inputs and labels, read in pieces, and a fingerprint of the
whole."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from holdfast.data.columns import Column
from holdfast.errors import InputError

HELD = 2 << 30  # bytes: the most that is held in memory of data that cannot be read piece by piece
_VALUES_AT_ONCE = 1 << 20  # values of x that a pass over the whole set holds at a time


class Source(ABC):
    """Labelled inputs that stream: a whole set is never held as decoded floats.

    Attributes:
        name: what the user typed, for example `mnist:DIR`; "arrays" for arrays.
        shape: of one input, without the row axis.
        inputs: shapes of x, x2, ..., where a row is several arrays, of which x may change.
        class_names: one text a class, in the order of the labels, where the data names them.
        objects: one text a class, where truths are boxes or masks, which name several classes.
        columns: of a table: what each feature is called, and how its values are numbers in x.
        groups: [len] of texts, where the data says what group each row belongs to.
        remarks: what a report should say of how the data were read: check, text.
        loading: options of `open_data` that were given: label, classes, resize, crop.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...] | None = None
    class_names: tuple[str, ...] | None = None
    objects: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    groups: np.ndarray | None = None
    remarks: tuple[tuple[str, str], ...] = ()
    loading: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows, at least 1."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows `start` to `stop` (clipped to the end), in fresh arrays that the caller may change.

        Returns:
            x: float32 [n, *shape], or float64 where the data holds float64; may hold NaN or inf.
            y: labels as stored, [n, ...], of any type: judging them is the contract check's work.

        Raises:
            InputError: a row cannot be read (a damaged image, the user's own dataset raised).
        """

    def labels(self, start: int, stop: int) -> np.ndarray:
        """y of `rows`; cheaper, where x need not be read for it."""
        return self.rows(start, stop)[1]

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """What goes with these rows and never changes, by name: further inputs x2, x3, ..., or the
        truth that outputs are held to."""
        return {}

    def fitted(self, *, channels: int | None = None, size: tuple[int, int] | None = None) -> Source:
        """This source with its pictures made to fit a model; what holds arrays is returned as it
        is.

        Args:
            channels: 1 or 3, where the model's are known.
            size: height and width of all images, where they differ in size.
        """
        return self

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all rows as a model sees them; one pass over the data.

        Equal x and y give equal text whatever the file format and the width of integer labels.
        """
        x_hash, y_hash = hashlib.sha256(), hashlib.sha256()
        step = max(1, _VALUES_AT_ONCE // math.prod(self.shape))
        for start in range(0, len(self), step):
            x, y = self.rows(start, start + step)
            if y.dtype.kind in "iu":
                y = y.astype(np.int64)
            for part in (*self.context(start, start + step).values(), x):
                x_hash.update(part.tobytes())
            y_hash.update(y.tobytes())
        whole = f"{len(self)} {self.shape} {x_hash.hexdigest()} {y_hash.hexdigest()}"
        if texts := [(c.name, c.values) for c in self.columns or () if c.values]:
            whole += f" {texts}"
        return hashlib.sha256(whole.encode()).hexdigest()


def floats(x: np.ndarray, scale: bool) -> np.ndarray:
    """A copy as float32, or float64 if `x` is float64; only bytes (uint8) are divided by 255, and
    only if `scale`."""
    wide = x.dtype.kind == "f" and x.dtype.itemsize >= 8
    out = x.astype(np.float64 if wide else np.float32, order="C")
    if scale and x.dtype == np.uint8:
        out /= np.float32(255)
    return out


def sized(count: int) -> str:
    """A number of bytes, in words: 2 GiB."""
    if count >= 1 << 28:
        return f"{count / (1 << 30):.4g} GiB"
    return f"{count / (1 << 20):.4g} MiB"


def group_names(values: object, rows: int, name: str) -> np.ndarray:
    """A group for each of so many rows, as texts.

    Raises:
        InputError: not one text or whole number a row.
    """
    found = np.asarray(values)
    if found.shape != (rows,) or found.dtype.kind not in "iubU":
        raise InputError(
            f"the groups of {name} are {found.dtype} of shape {found.shape}; expected one text or "
            f"whole number for each of its {rows:,} rows."
        )
    return found.astype(str)
