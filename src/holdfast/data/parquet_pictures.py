"""Pictures in a column of Parquet files, as the bytes of PNG, JPEG, ..., with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from holdfast.data.features import is_coded, is_numeric
from holdfast.data.images import Resizing, Stored
from holdfast.data.parquet_columns import Labels, grouped, pictures_in
from holdfast.data.parquet_files import Cursor, Files
from holdfast.data.pictures import Pictures
from holdfast.data.table import columns_of
from holdfast.errors import InputError, listed

_AT_ONCE = 1 << 22  # bytes of pictures that are read at once


class ParquetPictures(Pictures):
    """Pictures of one column: bytes, or a struct of bytes and path as Hugging Face stores them. Of
    the other columns one holds the labels and `group` the groups; the rest are left out.

    Raises:
        InputError: two columns of pictures, no column of labels; or as `Pictures`.
    """

    def __init__(
        self,
        files: Files,
        what: str,
        name: str,
        scale: bool,
        label: str | None = None,
        resize: str | None = None,
        crop: str | None = None,
    ) -> None:
        columns = pictures_in(files.schema, label)
        if len(columns) > 1:
            raise InputError(
                f"{what} has the columns {listed(columns, 5)} of pictures; expected one: drop the "
                "others."
            )
        # to whom a picture is a feature like any other
        fields = [pa.field(columns[0], pa.float32())]
        fields += [f for f in files.schema if is_numeric(f.type) or is_coded(f.type)]
        self._labels = Labels(files, columns_of(pa.schema(fields), what, label)[0], what)
        super().__init__(_Cells(files, columns[0], what), name, scale, Resizing.parse(resize, crop))
        self.class_names, self.groups = self._labels.class_names, grouped(files, name)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self._images(start, stop), self.labels(start, stop)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._labels.rows(start, min(stop, len(self)))


class _Cells(Sequence[Stored]):
    """The pictures of a column, read as they are asked for."""

    def __init__(self, files: Files, column: str, what: str) -> None:
        self._count, self._column, self._what = files.edges[-1], column, what
        self._cursor = Cursor(files, [column], max(1, _AT_ONCE // files.row_bytes))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> Stored: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Stored]: ...

    def __getitem__(self, row: int | slice) -> Stored | Sequence[Stored]:
        if isinstance(row, slice):
            return [self[i] for i in range(self._count)[row]]
        row = range(self._count)[row]
        where = f"row {row} of column {self._column} of {self._what}"
        cell = self._cursor.rows(row, row + 1).column(0)[0].as_py()
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            raise InputError(
                f"{where} has no picture; expected the bytes of an image file in each row."
            )
        return Stored(content, where)
