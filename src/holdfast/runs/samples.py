"""samples.parquet column by column, so that a table of a million rows is never held whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.errors import InputError
from holdfast.runs.metrics import SAMPLES, schema_of
from holdfast.runs.migration import COLUMNS
from holdfast.runs.store import check_values, readable


class Samples:
    """The table of samples of a run, of schema version 1 too.

    Attributes:
        names: its columns, by the names of today.
        kinds: their types.

    Raises:
        InputError: the file is missing or damaged, or lacks a column that every run has.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "samples.parquet"
        if not self.path.is_file():  # to open a pipe would wait for ever
            raise InputError(f"{folder} holds no samples.parquet; it is damaged or not a run.")
        with readable(self.path):
            stored = pq.read_schema(self.path)
            texts = [field.name for field in stored if pa.types.is_string(field.type)]
            self._file = pq.ParquetFile(self.path, read_dictionary=texts)
            self._stored = {COLUMNS.get(n, n): n for n in stored.names}
            self._schema = schema_of(self._stored)
            if lacking := set(SAMPLES.names) - set(self._stored):
                raise ValueError(f"it has no column {min(lacking)}")
            groups = range(self._file.num_row_groups)
            rows = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._ends = np.cumsum([0, *rows])  # of the row groups, from 0
        self.names = list(self._schema.names)
        self.kinds = {field.name: field.type for field in self._schema}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column [n]; texts as a dictionary.

        Raises:
            InputError: the file is damaged, or the column is of another type than a run's.
        """
        with readable(self.path):
            groups = list(range(self._file.num_row_groups))
            column = self._read(groups, name)
        pa.default_memory_pool().release_unused()
        return column

    def rows(self, at: Sequence[int] | np.ndarray, names: Sequence[str]) -> pa.Table:
        """Some columns of the rows at these places, in their order.

        Raises:
            InputError: as `column`.
        """
        places = np.asarray(at, dtype=np.int64)
        held = np.searchsorted(self._ends, places, side="right") - 1
        groups, group_of = np.unique(held, return_inverse=True)
        starts = np.cumsum([0, *np.diff(self._ends)[groups]])[:-1]  # of what is read
        local = pa.array(places - self._ends[held] + starts[group_of])
        with readable(self.path):
            columns = {
                name: self._read(groups.tolist(), name).take(local).cast(self.kinds[name])
                for name in names
            }
            found = pa.table(columns)
        pa.default_memory_pool().release_unused()  # what was read to take a few rows of
        return found

    def of_ids(self, ids: Sequence[int]) -> pa.Table:
        """All columns of the samples of these ids, in the order of the file; of those alone that it
        holds.

        Raises:
            InputError: as `column`.
        """
        return self.rows(np.flatnonzero(np.isin(self.column("id").to_numpy(), ids)), self.names)

    def _read(self, groups: list[int], name: str) -> pa.ChunkedArray:
        """A column of some row groups, of the type and with the values that a run's has."""
        # in one thread: each that reads would keep memory of its own
        stored = [self._stored[name]]
        column = self._file.read_row_groups(groups, columns=stored, use_threads=False).column(0)
        check_values(name, column)
        kind = self.kinds[name]
        if pa.types.is_dictionary(column.type) and column.type.value_type == kind:
            return column
        return column.cast(kind)
