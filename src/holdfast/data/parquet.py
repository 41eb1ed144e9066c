"""Tables in Parquet files: columns of numbers or texts, one list column `x`, or one column of
pictures, with the labels in a column of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from holdfast.data.columns import TEXT, Column
from holdfast.data.features import described, is_coded, numbers_of
from holdfast.data.parquet_columns import ROWS, Labels, grouped, pictures_in
from holdfast.data.parquet_files import Cursor, Files
from holdfast.data.source import Source
from holdfast.data.table import columns_of
from holdfast.errors import InputError

_VALUES = 1 << 18  # of x that are read at once


def open_parquet(
    at: Path | str, name: str, split: str, scale: bool, loading: Mapping[str, str]
) -> Source:
    """A Parquet file or a folder of some, or its URL: see `parquet_files.Files`.

    Args:
        loading: the column `label`; and `resize` and `crop` of pictures.

    Raises:
        InputError: no Parquet files, damaged, empty, without labels, or with columns that cannot be
            inputs.
    """
    files = Files(at, split)
    if not files.edges[-1]:
        raise InputError(f"{at} is empty: it has no rows; expected at least one.")
    label = loading.get("label")
    if not pictures_in(files.schema, label):
        if given := next((name for name in ("resize", "crop") if name in loading), None):
            raise InputError(f"--{given} is for pictures, and {at} holds none; leave it out.")
        return Table(files, f"{at}", name, scale, label)
    from holdfast.data.parquet_pictures import ParquetPictures

    sizes = [loading.get(option) for option in ("resize", "crop")]
    return ParquetPictures(files, f"{at}", name, scale, label, *sizes)


class Table(Source):
    """x [n_features] in the order of the columns, or [width] of `x`, or the shape in the schema's
    metadata `shape`.

    An empty cell (null) becomes NaN. A column `group` (texts, whole numbers or categories) says
    what group each row belongs to, and is no feature. Texts as labels become class numbers in their
    sorted order.

    Raises:
        InputError: no column of labels, or columns that are not numbers.
    """

    def __init__(
        self, files: Files, what: str, name: str, scale: bool, label: str | None = None
    ) -> None:
        self._what, self.name, self._files, schema = what, name, files, files.schema
        label, self._features = columns_of(schema, what, label)
        kinds = [schema.field(column).type for column in self._features]
        kinds = [getattr(kind, "value_type", kind) for kind in kinds]
        self._dtype = np.float64 if any(pa.types.is_float64(kind) for kind in kinds) else np.float32
        self._divisor = 255 if scale and all(pa.types.is_uint8(kind) for kind in kinds) else 1
        self._labels = Labels(files, label, what)
        self.class_names, self.groups = self._labels.class_names, grouped(files, name)
        self.columns = self._described(schema)
        first = Cursor(files, self._features, 1).rows(0, 1)
        width = self._x(first).shape[1]
        self._cursor = Cursor(files, [*self._features, label], max(1, _VALUES // width))
        self.shape = _shape(schema, width, what)
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
                f"{self._what} has rows of {x[0].size} values; expected {math.prod(self.shape)} in "
                "each."
            )
        return x.reshape(-1, *self.shape), self._labels.of(table)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._labels.rows(start, min(stop, len(self)))

    def _described(self, schema: pa.Schema) -> tuple[Column, ...] | None:
        """What the columns are; the texts and categories of all rows are read for it."""
        coded = [name for name in self._features if is_coded(schema.field(name).type)]
        others = [name for name in self._features if name not in coded]
        numbers = described(schema.empty_table().select(others), self._what)
        if numbers is None:
            return None
        known = {column.name: column for column in (*numbers, *self._coded(coded))}
        return tuple(known[name] for name in self._features)

    def _coded(self, names: Sequence[str]) -> list[Column]:
        """The columns of texts and categories, with all values that rows have."""
        seen: dict[str, dict[str, None]] = {name: {} for name in names}
        found: dict[str, Column] = {}
        for start, piece in Cursor(self._files, names, ROWS).pieces() if names else ():
            for column in described(piece, self._what, start) or ():
                seen[column.name] |= dict.fromkeys(column.values)
                found[column.name] = column
        return [
            replace(c, values=tuple(sorted(seen[c.name]) if c.dtype == TEXT else seen[c.name]))
            for c in found.values()
        ]

    def _x(self, table: pa.Table) -> np.ndarray:
        parts = [numbers_of(table, name, self.columns, self._what) for name in self._features]
        x = parts[0].reshape(table.num_rows, -1) if len(parts) == 1 else np.column_stack(parts)
        x = x.astype(self._dtype)
        if self._divisor != 1:
            x /= self._dtype(self._divisor)
        return x


def _shape(schema: pa.Schema, width: int, what: str) -> tuple[int, ...]:
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
            f"{what} gives the shape {text.decode(errors='replace')} for rows of {width} values; "
            "expected a JSON list with that product, such as [1, 28, 28]."
        )
    return shape
