"""Tables in Parquet files: columns of numbers or texts, or one list column `x`, with the labels in
a column of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from holdfast.data.columns import TEXT, Column
from holdfast.data.features import described, is_coded, is_text, numbers_of, values_of
from holdfast.data.parquet_files import Cursor, Files
from holdfast.data.source import Source
from holdfast.data.table import columns_of, groups_of, is_group, labels_of
from holdfast.errors import InputError

_VALUES = 1 << 18  # of x that are read at once
_LABELS = 1 << 16  # likewise


class Table(Source):
    """x [n_features] in the order of the columns, or [width] of `x`, or the shape in the schema's
    metadata `shape`.

    An empty cell (null) becomes NaN. A column `group` (texts, whole numbers or categories) says
    what group each row belongs to, and is no feature. Texts as labels become class numbers in their
    sorted order.

    Args:
        at: a file or a folder of some, or its URL: see `parquet_files.Files`.

    Raises:
        InputError: no Parquet files, damaged, without labels, or with columns that are not numbers.
    """

    def __init__(
        self, at: Path | str, name: str, split: str, scale: bool, label: str | None = None
    ) -> None:
        self._at, self.name = at, name
        self._files = files = Files(at, split)
        schema = files.schema
        self._label, self._features = columns_of(schema, f"{at}", label)
        kinds = [schema.field(column).type for column in self._features]
        kinds = [getattr(kind, "value_type", kind) for kind in kinds]
        self._dtype = np.float64 if any(pa.types.is_float64(kind) for kind in kinds) else np.float32
        self._divisor = 255 if scale and all(pa.types.is_uint8(kind) for kind in kinds) else 1
        if not len(self):
            raise InputError(f"{at} is empty: it has no rows; expected at least one.")
        self._labels = Cursor(files, [self._label], _LABELS)
        if is_text(schema.field(self._label).type):
            self.class_names = self._texts()
        if is_group(schema, "group"):
            pieces = Cursor(files, ["group"], _LABELS).pieces()
            self.groups = groups_of(pa.concat_tables(piece for _, piece in pieces), name)
        self.columns = self._described(schema)
        first = Cursor(files, self._features, 1).rows(0, 1)
        width = self._x(first).shape[1]
        self._cursor = Cursor(files, [*self._features, self._label], max(1, _VALUES // width))
        self.shape = _shape(schema, width, at)
        if len(self.shape) > 1:  # pixels of an image, each in a column
            self.columns = None

    def __len__(self) -> int:
        return self._files.edges[-1]

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if start >= min(stop, len(self)):
            return np.empty((0, *self.shape), self._dtype), np.empty(0, np.int64)
        table = self._cursor.rows(start, stop)
        x = self._x(table)
        if x[0].size != math.prod(self.shape):
            raise InputError(
                f"{self._at} has rows of {x[0].size} values; expected {math.prod(self.shape)} in "
                "each."
            )
        return x.reshape(-1, *self.shape), self._y(table)

    def labels(self, start: int, stop: int) -> np.ndarray:
        if start >= min(stop, len(self)):
            return np.empty(0, np.int64)
        return self._y(self._labels.rows(start, stop))

    def _texts(self) -> tuple[str, ...]:
        """The labels that there are, sorted."""
        found: set[str] = set()
        for start, piece in self._labels.pieces():
            found |= set(labels_of(piece.column(0), self._label, f"{self._at}", start).tolist())
        return tuple(sorted(found))

    def _described(self, schema: pa.Schema) -> tuple[Column, ...] | None:
        """What the columns are; the texts and categories of all rows are read for it."""
        coded = [name for name in self._features if is_coded(schema.field(name).type)]
        others = [name for name in self._features if name not in coded]
        numbers = described(schema.empty_table().select(others), f"{self._at}")
        if numbers is None:
            return None
        known = {column.name: column for column in (*numbers, *self._coded(coded))}
        return tuple(known[name] for name in self._features)

    def _coded(self, names: Sequence[str]) -> list[Column]:
        """The columns of texts and categories, with all values that rows have."""
        seen: dict[str, dict[str, None]] = {name: {} for name in names}
        found: dict[str, Column] = {}
        for start, piece in Cursor(self._files, names, _LABELS).pieces() if names else ():
            for column in described(piece, f"{self._at}", start) or ():
                seen[column.name] |= dict.fromkeys(column.values)
                found[column.name] = column
        return [
            replace(c, values=tuple(sorted(seen[c.name]) if c.dtype == TEXT else seen[c.name]))
            for c in found.values()
        ]

    def _x(self, table: pa.Table) -> np.ndarray:
        parts = [numbers_of(table, name, self.columns, f"{self._at}") for name in self._features]
        x = parts[0].reshape(table.num_rows, -1) if len(parts) == 1 else np.column_stack(parts)
        x = x.astype(self._dtype)
        if self._divisor != 1:
            x /= self._dtype(self._divisor)
        return x

    def _y(self, table: pa.Table) -> np.ndarray:
        if self.class_names is None:
            return np.array(values_of(table, self._label, f"{self._at}"))
        texts = labels_of(table.column(self._label), self._label, f"{self._at}")
        return np.searchsorted(np.array(self.class_names), texts).astype(np.int64)


def _shape(schema: pa.Schema, width: int, at: Path | str) -> tuple[int, ...]:
    text = (schema.metadata or {}).get(b"shape")
    if text is None:
        return (width,)
    try:
        shape = tuple(json.loads(text))
        fits = all(type(size) is int and size > 0 for size in shape) and math.prod(shape) == width
    except (ValueError, TypeError, RecursionError):
        fits, shape = False, ()
    if not fits:
        raise InputError(
            f"{at} gives the shape {text.decode(errors='replace')} for rows of {width} values; "
            "expected a JSON list with that product, such as [1, 28, 28]."
        )
    return shape
