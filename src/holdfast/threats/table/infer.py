"""What the rows of a table show of its columns, for a person to correct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.threats.table.features import Feature

LEAST = 3  # columns of a one-hot group


def infer(
    x: np.ndarray, names: Sequence[str], texts: Sequence[Sequence[str]]
) -> tuple[list[Feature], dict[str, list[str]]]:
    """The features and the one-hot groups that rows x [n, features] show; all but those of one
    value may change, within what was seen. `texts`: of each column those that its numbers 0, 1, ...
    mean, or none.

    Raises:
        InputError: there are no rows, or one holds no finite number.
    """
    if x.ndim != 2 or not len(x) or x.shape[1] != len(names):
        raise InputError(
            f"a schema is inferred from rows [n, {len(names)}], not from inputs of shape {x.shape}."
        )
    if not np.isfinite(x).all():
        row, at = np.argwhere(~np.isfinite(x))[0]
        raise InputError(
            f"row {row} has {x[row, at]:g} in the column {names[at]}; expected numbers."
        )
    features = [
        _feature(name, x[:, j], values)
        for j, (name, values) in enumerate(zip(names, texts, strict=True))
    ]
    return features, _groups(x, features)


def seen(column: np.ndarray, feature: Feature) -> str:
    """What a column holds, in few words."""
    count = len(np.unique(column))
    if count == 1:
        return "one value"
    if feature.values:
        return f"{count:,} texts, which stay as they are; if free, give a scale"
    return f"{count:,} values, median {np.median(column):.6g}"


def coded(table: Any) -> tuple[np.ndarray, list[Sequence[str]]]:
    """The rows of an array or a DataFrame as numbers [n, features], and of each column the texts
    that its numbers mean: sorted, or in the order of a categorical column.

    Raises:
        TypeError, ValueError: it holds what is neither.
    """
    if not hasattr(table, "columns"):
        rows = np.atleast_1d(np.asarray(table, dtype=np.float64))
        return rows, [()] * rows.shape[-1]
    columns, texts = list[np.ndarray](), list[Sequence[str]]()
    for place in range(table.shape[1]):
        cells = table.iloc[:, place]
        known = getattr(cells.dtype, "categories", None)
        if known is None and cells.dtype.kind == "O":
            known = sorted(set(cells))
        if known is None or not all(isinstance(value, str) for value in known):
            columns.append(cells.to_numpy(np.float64))
            texts.append(())
            continue
        codes = {value: code for code, value in enumerate(known)}
        columns.append(np.array([codes.get(cell, np.nan) for cell in cells]))
        texts.append(tuple(known))
    return np.stack(columns, 1), texts


def _feature(name: str, column: np.ndarray, values: Sequence[str]) -> Feature:
    if values:
        # a step from one text to another has no size until a person gives it one
        return Feature(name, "category", "fixed", values=tuple(values))
    low, high = float(column.min()), float(column.max())
    if low == high:
        return Feature(name, "real", "fixed", (low, high))
    kind = "real"
    if (column == np.rint(column)).all():
        kind = "binary" if (low, high) == (0.0, 1.0) else "integer"
    return Feature(name, kind, "free", (low, high))


def _groups(x: np.ndarray, features: Sequence[Feature]) -> dict[str, list[str]]:
    """Columns of 0 and 1 with one beginning of their names, of which each row has one 1."""
    stems: dict[str, list[int]] = {}
    for j, feature in enumerate(features):
        if feature.type == "binary":
            parts = feature.name.split("_")
            for end in range(1, len(parts)):
                stems.setdefault("_".join(parts[:end]), []).append(j)
    found: dict[str, list[str]] = {}
    # `purpose_credit_card` is of `purpose`; of two beginnings of the same columns the longer
    for stem in sorted(stems, key=len, reverse=True):
        names = [features[j].name for j in stems[stem]]
        one_each = len(names) >= LEAST and (x[:, stems[stem]].sum(1) == 1).all()
        if one_each and names not in found.values():
            found[stem] = names
    return {stem: found[stem] for stem in stems if stem in found}
