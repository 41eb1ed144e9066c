"""Parquet files: columns of numbers or texts, or one list column `x`, with the labels in a column
of their own; by row group."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.data.columns import Column
from holdfast.data.features import described, is_coded, is_text, numbers_of, values_of
from holdfast.data.files import kind_of_file
from holdfast.data.source import HELD, Source, sized
from holdfast.data.table import columns_of, groups_of, is_group, labels_of
from holdfast.errors import InputError, first_line


class Table(Source):
    """x [n_features] in the order of the columns, or [width] of `x`, or the shape in the schema's
    metadata `shape`.

    An empty cell (null) becomes NaN. The last row group read is kept. A column `group` (texts,
    whole numbers or categories) says what group each row belongs to, and is no feature. Texts as
    labels become class numbers in their sorted order.

    Raises:
        InputError: not a Parquet file, damaged, without labels, or with columns that are not
            numbers.
    """

    def __init__(self, path: Path, name: str, scale: bool, label: str | None = None) -> None:
        self._path, self.name = path, name
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                schema, meta = file.schema_arrow, file.metadata
            columns = columns_of(schema, f"{path}", label)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            seen = kind_of_file(path)
            cut = {"a Parquet file": " that is damaged or cut short"}.get(seen, "")
            raise InputError(f"{path} is {seen}{cut}; expected a whole Parquet file.") from None
        self._label, self._features = columns
        kinds = [schema.field(column).type for column in self._features]
        kinds = [getattr(kind, "value_type", kind) for kind in kinds]
        self._dtype = np.float64 if any(pa.types.is_float64(kind) for kind in kinds) else np.float32
        self._divisor = 255 if scale and all(pa.types.is_uint8(kind) for kind in kinds) else 1
        groups = [meta.row_group(group) for group in range(meta.num_row_groups)]
        self._edges = list(accumulate((group.num_rows for group in groups), initial=0))
        self._group: tuple[int, pa.Table] | None = None
        if not len(self):
            raise InputError(f"{path} is empty: it has no rows; expected at least one.")
        held = max(max(group.total_byte_size, 8 * group.num_rows * len(kinds)) for group in groups)
        if held > HELD:
            raise InputError(
                f"{path} has a row group of {sized(held)}, more than the {sized(HELD)} that are "
                "read at once; write it with a smaller row_group_size."
            )
        if is_text(schema.field(self._label).type):
            texts = labels_of(self._whole(self._label).column(0), self._label, f"{path}")
            self.class_names = tuple(np.unique(texts).tolist())
        if is_group(schema, "group"):
            self.groups = groups_of(self._whole("group"), name)
        self.columns = self._described(schema)
        width = self._x(
            self._read(next(g for g, group in enumerate(groups) if group.num_rows)).slice(0, 1)
        ).shape[1]
        self.shape = _shape(schema, width, path)
        if len(self.shape) > 1:  # pixels of an image, each in a column
            self.columns = None

    def __len__(self) -> int:
        return self._edges[-1]

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        tables = [
            self._read(group).slice(max(start - first, 0), min(stop, last) - max(start, first))
            for group, (first, last) in enumerate(pairwise(self._edges))
            if max(start, first) < min(stop, last)
        ]
        if not tables:
            return np.empty((0, *self.shape), self._dtype), np.empty(0, np.int64)
        table = pa.concat_tables(tables)
        x = self._x(table)
        if x[0].size != math.prod(self.shape):
            raise InputError(
                f"{self._path} has rows of {x[0].size} values; expected {math.prod(self.shape)} in "
                "each."
            )
        return x.reshape(-1, *self.shape), self._y(table)

    def _described(self, schema: pa.Schema) -> tuple[Column, ...] | None:
        """What the columns are; the texts and categories of all rows are read for it."""
        coded = [name for name in self._features if is_coded(schema.field(name).type)]
        others = [name for name in self._features if name not in coded]
        numbers = described(schema.empty_table().select(others), f"{self._path}")
        texts = described(self._whole(*coded), f"{self._path}") if coded else ()
        if numbers is None or texts is None:
            return None
        known = {column.name: column for column in (*numbers, *texts)}
        return tuple(known[name] for name in self._features)

    def _x(self, table: pa.Table) -> np.ndarray:
        what = f"{self._path}"
        parts = [numbers_of(table, name, self.columns, what) for name in self._features]
        return np.column_stack(parts).astype(self._dtype) / self._dtype(self._divisor)

    def _y(self, table: pa.Table) -> np.ndarray:
        if self.class_names is None:
            return np.array(values_of(table, self._label, f"{self._path}"))
        texts = labels_of(table.column(self._label), self._label, f"{self._path}")
        return np.searchsorted(np.array(self.class_names), texts).astype(np.int64)

    def _read(self, group: int) -> pa.Table:
        if self._group is None or self._group[0] != group:
            self._group = (
                group,
                self._guarded(
                    lambda file: file.read_row_group(group, [*self._features, self._label])
                ),
            )
        return self._group[1]

    def _whole(self, *columns: str) -> pa.Table:
        """Some columns of all rows."""
        return self._guarded(lambda file: file.read(list(columns)))

    def _guarded(self, ask: Callable[[pq.ParquetFile], pa.Table]) -> pa.Table:
        try:
            with pq.ParquetFile(self._path, memory_map=True) as file:
                return ask(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self._path} is damaged ({first_line(error)}); expected a whole Parquet file."
            ) from None


def _shape(schema: pa.Schema, width: int, path: Path) -> tuple[int, ...]:
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
            f"{path} gives the shape {text.decode(errors='replace')} for rows of {width} values; "
            "expected a JSON list with that product, such as [1, 28, 28]."
        )
    return shape
