"""The features of a table, of any type, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from holdfast.data.columns import CATEGORY, TEXT, Column
from holdfast.errors import InputError, first_line


def of_frame(data: Any, what: str) -> tuple[np.ndarray, tuple[Column, ...] | None]:
    """The numbers x [n, n_features] of a DataFrame of features alone, and its columns.

    Raises:
        InputError: a column is neither of numbers nor of texts, or two have one name.
    """
    table = arrow(data, what)
    if len(set(table.column_names)) < table.num_columns:
        raise InputError(f"{what} has two columns of one name; expected different ones.")
    for name in table.column_names:
        check_feature(table.schema, name, what)
    return features_of(table, what)


def arrow(data: Any, what: str) -> pa.Table:
    """A DataFrame of pandas as a table."""
    try:
        table = pa.Table.from_pandas(data, preserve_index=False)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{what} holds what is neither numbers nor texts: {first_line(error)}."
        ) from None
    return table.rename_columns([str(name) for name in data.columns])


def features_of(table: pa.Table, what: str) -> tuple[np.ndarray, tuple[Column, ...] | None]:
    """The numbers x [n, n_features] of columns, and the columns; None of a list column.

    Raises:
        InputError: a text is missing, or lists differ in length.
    """
    columns = described(table, what)
    x = np.column_stack([numbers_of(table, name, columns, what) for name in table.column_names])
    if x.dtype.kind not in "fu":
        x = x.astype(np.float32)
    return x, columns


def described(table: pa.Table, what: str, first: int = 0) -> tuple[Column, ...] | None:
    """What the columns of a table are; None of a list column.

    Texts are numbered in their sorted order, categories in their own.

    Args:
        first: the number of its first row.

    Raises:
        InputError: a row has no text.
    """
    if any(is_list(kind) for kind in table.schema.types):
        return None
    columns: list[Column] = []
    for name in table.column_names:
        cells, kind = table.column(name), table.schema.field(name).type
        if not is_coded(kind):
            dtype = "float64" if pa.types.is_null(kind) else str(np.dtype(kind.to_pandas_dtype()))
            columns.append(Column(name, dtype))
            continue
        if cells.null_count:
            row = first + cells.is_null().to_pylist().index(True)
            raise InputError(
                f"row {row} of {what} has no value in its column {name}; drop it, or give it one, "
                "such as a text of its own."
            )
        if pa.types.is_dictionary(kind):
            values = cells.unify_dictionaries().chunk(0).dictionary.to_pylist()
            columns.append(Column(name, CATEGORY, tuple(values)))
        else:
            columns.append(Column(name, TEXT, tuple(sorted(cells.unique().to_pylist()))))
    return tuple(columns)


def numbers_of(
    table: pa.Table, name: str, columns: Sequence[Column] | None, what: str
) -> np.ndarray:
    """The numbers that the values of a column are in x: [n], or [n, width] of a list column."""
    values = next((column.values for column in columns or () if column.name == name), ())
    if not values:
        return values_of(table, name, what)
    places = {value: number for number, value in enumerate(values)}
    codes = [places[cell] for cell in table.column(name).to_pylist()]
    return np.array(codes, np.int16 if len(values) < 1 << 15 else np.int32)


def check_feature(schema: pa.Schema, column: str, what: str, *, lists: bool = False) -> None:
    """Raises InputError: a column is neither of numbers nor of texts; nor, if `lists`, of lists of
    numbers."""
    kind = schema.field(column).type
    if not (is_numeric(kind) or is_coded(kind) or (lists and is_numeric(kind.value_type))):
        raise InputError(
            f"column {column} of {what} holds {kind}; expected numbers or texts: encode or drop it."
        )


def values_of(table: pa.Table, column: str, what: str) -> np.ndarray:
    """[n] of a plain column, [n, width] of a list column."""
    cells = table.column(column)
    if pa.types.is_null(cells.type):
        return np.full(len(cells), np.nan)
    if not is_list(cells.type):
        return cells.to_numpy()
    widths = pc.call_function("list_value_length", [cells]).unique().to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise InputError(
            f"column {column} of {what} has lists of {widths} values; expected one length for all "
            "rows."
        )
    return pc.call_function("list_flatten", [cells]).to_numpy().reshape(len(cells), -1)


def is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Texts, or categories of texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def is_coded(kind: pa.DataType) -> bool:
    """Whether the values of a column are no numbers, but are numbered in x."""
    return pa.types.is_dictionary(kind) or is_text(kind)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column holds numbers; one of empty cells alone holds NaN."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in tests)
