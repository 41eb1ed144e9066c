"""Tables: which columns are features, labels and groups; CSV files and tables in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from holdfast.data.arrays import from_arrays
from holdfast.data.features import arrow, check_feature, features_of, is_list, is_numeric, is_text
from holdfast.data.files import kind_of_file, read_whole
from holdfast.data.source import HELD, Source, group_names
from holdfast.errors import InputError, first_line, listed, suggest

# the first pair of which the table has one names its labels
LABELS = (("y", "label"), ("target", "class"))
# pandas writes its index under this name, or (CSV) under none
_INDEX = re.compile(r"__index_level_\d+__")
_DELIMITERS = (",", ";", "\t", "|")


def open_csv(path: Path, name: str, scale: bool, label: str | None = None) -> Source:
    """A CSV file with a header, held in memory: see `from_table`. Comma, semicolon, tab or bar
    are between cells.

    Raises:
        InputError: no such table, no header, rows of different length, or more than `HELD` bytes.
    """
    content = read_whole(path, HELD)
    if (seen := kind_of_file(path)).startswith("a ") and seen != "a gzip file":
        raise InputError(f"{path} is {seen}; expected CSV: text with a header.")
    first = (
        content.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode(errors="replace").strip()
    )
    delimiter = max(_DELIMITERS, key=first.count)
    if first and all(_is_number(cell) for cell in first.split(delimiter)):
        raise InputError(
            f"the first line of {path} holds numbers ({first:.40}), where the names of the columns "
            "are expected; add a header such as a,b,c,label."
        )
    try:
        table = _parsed(content, delimiter, ".")
        if delimiter == ";" and _texts(table):
            table = min(table, _parsed(content, delimiter, ","), key=_texts)
        table = table.rename_columns([column.strip() for column in table.column_names])
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as CSV: {first_line(error)}; expected UTF-8 text, a "
            "header and as many cells in each row."
        ) from None
    return from_table(table, f"{path}", name, scale, label)


def from_frame(data: Any, name: str, scale: bool, label: str | None = None) -> Source:
    """A DataFrame of pandas, or a table of pyarrow: see `from_table`.

    Raises:
        InputError: as there.
    """
    if isinstance(data, pa.Table):
        return from_table(data, name, name, scale, label)
    if not hasattr(data, "columns"):
        raise InputError(
            f"data is a {name} without labels; expected (x, y), or a DataFrame with a column of "
            "labels."
        )
    return from_table(arrow(data, name), name, name, scale, label)


def from_table(
    table: pa.Table, what: str, name: str, scale: bool, label: str | None = None
) -> Source:
    """A table in memory: x [n, n_features] in the order of its columns, and its column of labels.

    A column `group` says what group each row belongs to. Texts as labels become class numbers in
    their sorted order; texts and categories as features become numbers too, see `coded`.

    Raises:
        InputError: no column of labels, features that are neither numbers nor texts, no rows, or
            a row without a label.
    """
    if not table.num_rows:
        raise InputError(f"{what} is empty: it has no rows; expected at least one.")
    chosen, features = columns_of(table.schema, what, label)
    x, columns = features_of(table.select(features), what)
    y = labels_of(table.column(chosen), chosen, what)
    source = from_arrays(x, y, name, scale=scale)
    source.columns = columns
    if is_group(table.schema, "group"):
        source.groups = groups_of(table, name)
    return source


def columns_of(schema: pa.Schema, what: str, label: str | None) -> tuple[str, list[str]]:
    """The column of labels, and those of features.

    Raises:
        InputError: `label`, or one of `LABELS`, is not there once; or a feature is neither a number
            nor a text.
    """
    names = [
        name
        for name in schema.names
        if name and not _INDEX.fullmatch(name) and not is_group(schema, name)
    ]
    if label is not None and label not in names:
        raise InputError(
            f"{what} has no column {label!r} of labels (--label); {suggest(label, names)}"
        )
    found = [[name for name in names if name in known] for known in ((label,), *LABELS)]
    labels = next((some for some in found if some), [])
    if len(labels) != 1 or len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"{what} has the columns {listed(names, 10) or 'none'}; expected features under "
            "different names and one column of labels: y, label, target or class (rename yours), "
            "or what --label names (in Python: as_source(data, label=...))."
        )
    lists = "x" in names and "x" not in labels and is_list(schema.field("x").type)
    features = [name for name in names if name not in labels and (name == "x" or not lists)]
    for column in features:
        check_feature(schema, column, what, lists=lists)
    kind = schema.field(labels[0]).type
    if not (is_text(kind) or is_numeric(getattr(kind, "value_type", kind))):
        raise InputError(
            f"column {labels[0]} of {what} holds {kind}; expected class numbers or texts."
        )
    return labels[0], features


def labels_of(cells: pa.ChunkedArray, column: str, what: str, first: int = 0) -> np.ndarray:
    """The labels of rows: whole numbers as int64, other numbers as they are, texts as texts.

    Args:
        first: the number of the first of the rows.

    Raises:
        InputError: a row has none.
    """
    if cells.null_count:
        row = first + cells.is_null().to_pylist().index(True)
        raise InputError(
            f"row {row} of {what} has no label in its column {column}; drop it, or give it one."
        )
    if is_text(cells.type):
        return np.array([str(text) for text in cells.to_pylist()], dtype=np.str_)
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    y = cells.to_numpy()
    if y.dtype.kind == "f" and np.array_equal(y, np.rint(y)):
        return y.astype(np.int64)
    return y


def groups_of(table: pa.Table, name: str) -> np.ndarray:
    """The group of each row.

    Raises:
        InputError: a row has none.
    """
    texts = table.column("group").to_pylist()
    if None in texts:
        raise InputError(f"{name} gives row {texts.index(None)} no group; name one for each row.")
    return group_names(texts, len(texts), name)


def is_group(schema: pa.Schema, name: str) -> bool:
    kinds = [schema.field(i).type for i in schema.get_all_field_indices(name)]
    return (name == "group" and len(kinds) == 1) and any(
        test(kinds[0]) for test in (is_text, pa.types.is_integer, pa.types.is_dictionary)
    )


def _parsed(content: bytes, delimiter: str, point: str) -> pa.Table:
    how = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return csv.read_csv(
        pa.BufferReader(content),
        parse_options=how,
        convert_options=csv.ConvertOptions(decimal_point=point),
    )


def _texts(table: pa.Table) -> int:
    """How many columns hold texts."""
    return sum(map(is_text, table.schema.types))


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True
