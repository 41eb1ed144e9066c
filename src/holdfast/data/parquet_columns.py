"""Columns of Parquet files that are no features: labels, groups, and pictures."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from holdfast.data.features import is_text, values_of
from holdfast.data.files import printable
from holdfast.data.parquet_files import Cursor, Files
from holdfast.data.table import LABELS, groups_of, is_group, labels_of

ROWS = 1 << 16  # whose labels, groups or texts are read at once


def pictures_in(schema: pa.Schema, label: str | None) -> list[str]:
    """The columns that may hold the bytes of pictures' files, alone or as Hugging Face does."""
    known = {label} if label is not None else {name for pair in LABELS for name in pair}
    found = []
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if field.name not in known and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            found.append(field.name)
    return found


class Labels:
    """The column of labels. Texts become class numbers in their sorted order.

    Attributes:
        class_names: those texts, or the names that Hugging Face keeps in the schema.
    """

    def __init__(self, files: Files, column: str, what: str) -> None:
        self.column, self._what = column, what
        self._cursor = Cursor(files, [column], ROWS)
        self._coded = is_text(files.schema.field(column).type)
        self.class_names = self._texts() if self._coded else _names_in(files.schema, column)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Those of rows `start` to `stop`."""
        if start >= stop:
            return np.empty(0, np.int64)
        return self.of(self._cursor.rows(start, stop))

    def of(self, table: pa.Table) -> np.ndarray:
        """Those of the rows of a table."""
        if not self._coded:
            return np.array(values_of(table, self.column, self._what))
        texts = labels_of(table.column(self.column), self.column, self._what)
        return np.searchsorted(np.array(self.class_names), texts).astype(np.int64)

    def _texts(self) -> tuple[str, ...]:
        """The labels that there are, sorted."""
        found: set[str] = set()
        for start, piece in self._cursor.pieces():
            found |= set(labels_of(piece.column(0), self.column, self._what, start).tolist())
        return tuple(sorted(found))


def _names_in(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The names of the classes that Hugging Face's metadata give the numbers of a column."""
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])
        names = said["info"]["features"][column]["names"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return None
    return tuple(map(printable, names))


def grouped(files: Files, name: str) -> np.ndarray | None:
    """The group of each row, where there is a column of them."""
    if not is_group(files.schema, "group"):
        return None
    pieces = Cursor(files, ["group"], ROWS).pieces()
    return groups_of(pa.concat_tables(piece for _, piece in pieces), name)
