"""Parquet tables: numeric columns, or one list column `x`, with the labels in `y` or `label`; by row group."""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from holdfast.data.files import looks_like, one_line
from holdfast.data.source import Source, group_names
from holdfast.errors import InputError

_INDEX = re.compile(r"__index_level_\d+__")  # pandas writes its index under this name


class Table(Source):
    """x [n_features] in the order of the columns, or [width] of `x`, or the shape in the schema's metadata `shape`.

    An empty cell (null) becomes NaN. The last row group read is kept. A column `group` (texts, whole numbers or
    categories) says what group each row belongs to, and is no feature.

    Raises:
        InputError: not a Parquet file, damaged, without labels, or with columns that are not numbers.
    """

    def __init__(self, path: Path, name: str, scale: bool) -> None:
        self._path, self.name = path, name
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                schema, meta = file.schema_arrow, file.metadata
        except (pa.ArrowException, OSError):
            seen = looks_like(path)
            cut = " that is damaged or cut short" if seen == "a Parquet file" else ""
            raise InputError(f"{path} is {seen}{cut}; expected a whole Parquet file.") from None
        self._label, self._features = _columns(schema, path)
        kinds = [_numbers_of(schema.field(column).type) for column in self._features]
        self._dtype = np.float64 if any(pa.types.is_float64(kind) for kind in kinds) else np.float32
        self._divisor = 255 if scale and all(pa.types.is_uint8(kind) for kind in kinds) else 1
        counts = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._edges = list(accumulate(counts, initial=0))
        self._group: tuple[int, pa.Table] | None = None
        if not len(self):
            raise InputError(f"{path} is empty: it has no rows; expected at least one.")
        if _is_group(schema, "group"):
            texts = pq.read_table(path, columns=["group"]).column("group").to_pylist()
            if None in texts:
                raise InputError(f"{path} gives row {texts.index(None)} no group; name one for each row.")
            self.groups = group_names(texts, len(self), name)
        width = self._x(self._read(next(g for g, count in enumerate(counts) if count)).slice(0, 1)).shape[1]
        self.shape = _shape(schema, width, path)

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
        x, y = self._x(table), _values(table, self._label, self._path)
        if x[0].size != math.prod(self.shape):
            raise InputError(f"{self._path} has rows of {x[0].size} values; expected {math.prod(self.shape)} in each.")
        return x.reshape(-1, *self.shape), np.array(y)

    def _x(self, table: pa.Table) -> np.ndarray:
        parts = [_values(table, column, self._path) for column in self._features]
        x = parts[0] if parts[0].ndim == 2 else np.stack(parts, axis=1)
        return x.astype(self._dtype) / self._dtype(self._divisor)

    def _read(self, group: int) -> pa.Table:
        if self._group is None or self._group[0] != group:
            try:
                with pq.ParquetFile(self._path, memory_map=True) as file:
                    self._group = group, file.read_row_group(group, [*self._features, self._label])
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{self._path} is damaged ({one_line(error)}); expected a whole Parquet file."
                ) from None
        return self._group[1]


def _columns(schema: pa.Schema, path: Path) -> tuple[str, list[str]]:
    names = [name for name in schema.names if not _INDEX.fullmatch(name) and not _is_group(schema, name)]
    labels = [name for name in names if name in ("y", "label")]
    if len(labels) != 1 or len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"{path} has the columns {', '.join(names) or 'none'}; "
            "expected features under different names and one column of labels, y or label."
        )
    features = ["x"] if "x" in names and _is_list(schema.field("x").type) else [n for n in names if n not in labels]
    for column in (*features, *labels):
        kind = schema.field(column).type
        plain = _numbers_of(kind) if column in ("x", *labels) else kind
        if not (pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_boolean(plain)):
            raise InputError(f"column {column} of {path} holds {kind}; expected numbers: encode or drop it.")
    return labels[0], features


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


def _values(table: pa.Table, column: str, path: Path) -> np.ndarray:
    """[n] of a plain column, [n, width] of a list column."""
    cells = table.column(column)
    if not _is_list(cells.type):
        return cells.to_numpy()
    widths = pc.call_function("list_value_length", [cells]).unique().to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise InputError(f"column {column} of {path} has lists of {widths} values; expected one length for all rows.")
    return pc.call_function("list_flatten", [cells]).to_numpy().reshape(len(cells), -1)


def _is_group(schema: pa.Schema, name: str) -> bool:
    kinds = [schema.field(i).type for i in schema.get_all_field_indices(name)]
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_dictionary)
    return name == "group" and len(kinds) == 1 and any(test(kinds[0]) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _numbers_of(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if _is_list(kind) else kind
