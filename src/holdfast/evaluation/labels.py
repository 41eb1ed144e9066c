"""Labels as people bring them (names, -1 and 1, 1 to k, one-hot rows) as class numbers, and what a
report says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from holdfast.data.source import Source
from holdfast.errors import InputError, listed
from holdfast.runs.manifest import Finding
from holdfast.targets.target import Target

STRIDE = 1024  # labels read at once
_LISTED = 8  # classes that a sentence names


class Numbered(Source):
    """The rows of `inner`, whose labels count the classes from 0: `values` [m], in order, are
    `positions` [m]; `said` is what was made of the labels, in sentences."""

    def __init__(
        self,
        inner: Source,
        values: np.ndarray,
        positions: list[int],
        class_names: tuple[str, ...] | None,
        said: tuple[str, ...],
    ) -> None:
        self.said = said
        self.inner, self.values, self.positions = inner, values, np.array(positions, np.int64)
        self.name, self.shape, self.class_names = inner.name, inner.shape, class_names
        self.inputs, self.groups, self.columns = inner.inputs, inner.groups, inner.columns
        self.remarks, self.loading = inner.remarks, inner.loading

    def __len__(self) -> int:
        return len(self.inner)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.inner.rows(start, stop)
        return x, self._numbers(y)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._numbers(self.inner.labels(start, stop))

    def _numbers(self, y: np.ndarray) -> np.ndarray:
        return self.positions[np.searchsorted(self.values, _column(y))]

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return self.inner.context(start, stop)


def numbered(target: Target | None, *sources: Source) -> tuple[list[Source], list[Finding]]:
    """The sources with labels that are the model's class numbers, and what was made of them.

    Labels that count from 0 stay as they are. Those that equal the classes that the model names
    (`class_labels`, as an estimator's `classes_`) become their positions; names of classes are
    matched by name. Of a model that names none, k evenly spaced values are taken in their order.
    One-hot rows [n, k] become the place of their 1.

    Args:
        target: the model, which is bound to the shape of the first inputs; None: there is none, and
            the labels say what classes are.
        sources: data whose labels mean the same, such as rows to train and to test on.

    Raises:
        InputError: labels that are no classes of the model, or that could be read in several ways.
    """
    k = known = None
    if target is not None:
        target.bind(sources[0].shape)
        k, known = target.task.k, target.identity.class_labels
    seen = [_seen(source, k) for source in sources]
    tables: list[list[int] | None]
    if known is not None and len(known) == k:
        tables, names, said = _by_class(sources, seen, known)
    else:
        tables, names, said = _by_order(sources, seen, k)
    ones = [np.asarray(source.labels(0, 1)) for source in sources]
    if hot := [source.name for source, y in zip(sources, ones, strict=True) if _hot(y)]:
        said.append(f"The labels of {hot[0]} are one-hot rows: the place of the 1 is the class.")
    earlier = [text for source in sources if isinstance(source, Numbered) for text in source.said]
    texts = tuple(dict.fromkeys([*earlier, *said]))
    made: list[Source] = []
    for source, y, values, table in zip(sources, ones, seen, tables, strict=True):
        if table is None and y.ndim == 1 and y.dtype.kind in "iu":
            made.append(source)
            continue
        places = table or [int(v) for v in values]
        class_names = names or source.class_names
        made.append(Numbered(source, np.array(list(values)), places, class_names, texts))
    return made, [Finding(check="labels", severity="info", text=text) for text in texts]


def _by_class(
    sources: tuple[Source, ...], seen: list[dict[Any, int]], known: tuple[Any, ...]
) -> tuple[list[list[int] | None], tuple[str, ...], list[str]]:
    """Positions of the values of each source in the classes that the model names."""
    tables: list[list[int] | None] = []
    said = [f"Labels are the model's classes in its own order: {_pairs(known)}."]
    places, texts = {c: i for i, c in enumerate(known)}, {str(c): i for i, c in enumerate(known)}
    for source, values in zip(sources, seen, strict=True):
        called = _called(source, values)
        if all(v in places for v in called):
            tables.append([places[v] for v in called])
        elif all(str(v) in texts for v in called):
            tables.append([texts[str(v)] for v in called])
        elif source.class_names is None and all(
            _counts(v, len(known)) and places.get(v, v) == v for v in called
        ):
            tables.append([int(v) for v in called])
            said.append(
                f"The labels of {source.name} are {_list(called)}, and the model's classes "
                f"{_list(known)}: the labels are taken for positions in the model's order."
            )
        else:
            odd = next(v for v in called if str(v) not in texts)
            raise InputError(
                f"row {values[list(values)[called.index(odd)]]} of {source.name} has the label "
                f"{odd!r}, but the "
                f"model's classes are {_list(known)}; use those as labels, or their positions 0 to "
                f"{len(known) - 1}."
            )
    return tables, tuple(map(str, known)), said


def _by_order(
    sources: tuple[Source, ...], seen: list[dict[Any, int]], k: int | None
) -> tuple[list[list[int] | None], tuple[str, ...] | None, list[str]]:
    """Positions of the values of each source, where the model says nothing of its classes; None: as
    they are."""
    if (named := sources[0].class_names) is not None:
        return _by_first(sources, seen, named, k)
    whole = list({v: None for values in seen for v in values})
    if len({isinstance(v, str) for v in whole}) > 1:
        raise InputError(
            f"some labels are texts and some numbers ({_list(whole)}); use one of the two "
            "everywhere."
        )
    whole.sort()
    count = k or len(whole)
    # without a model, gaps are the caller's to judge
    if all(_counts(v, k or math.inf) for v in whole):
        return [None] * len(sources), None, []
    steps = np.diff(whole) if not isinstance(whole[0], str) else np.zeros(0)
    if len(whole) != count or count < 2 or (len(steps) and not np.allclose(steps, steps[0])):
        _refuse(sources, seen, whole, k)
    tables: list[list[int] | None] = [[whole.index(v) for v in values] for values in seen]
    text = (
        f"The labels of {sources[0].name} do not count from 0; they are taken in their order: "
        f"{_pairs(whole)}."
    )
    return tables, tuple(map(str, whole)), [text]


def _by_first(
    sources: tuple[Source, ...], seen: list[dict[Any, int]], named: tuple[str, ...], k: int | None
) -> tuple[list[list[int] | None], tuple[str, ...], list[str]]:
    """The classes that the first source names are the model's; further sources that name theirs are
    matched by name."""
    said: list[str] = []
    if k is not None and len(named) < k:
        said.append(
            f"{sources[0].name} names {len(named)} classes and the model has {k} outputs: they are "
            f"taken for its first ones in their order, {_pairs(named)}."
        )
    tables: list[list[int] | None] = []
    for source, values in zip(sources, seen, strict=True):
        called = _called(source, values)
        strange = [c for c in called if c not in named]
        if source.class_names in (None, named) or len(strange) == len(called):
            if bad := [v for v in values if not _counts(v, k or len(named))]:
                _refuse(sources, seen, bad, k)
            tables.append(None)
        elif strange:
            raise InputError(
                f"{source.name} has the class {strange[0]!r}, but {sources[0].name} has "
                f"{_list(named)}; leave such rows out, or name the classes alike."
            )
        else:
            tables.append([named.index(c) for c in called])
    return tables, named, said


def _refuse(
    sources: tuple[Source, ...], seen: list[dict[Any, int]], whole: list[Any], k: int | None
) -> None:
    """Raises InputError: names the first row whose label is no class, and the likely cause."""
    count = k or len(whole)
    odd = next(v for v in reversed(whole) if not _counts(v, count))
    source, row = next(
        (s, values[odd]) for s, values in zip(sources, seen, strict=True) if odd in values
    )
    if k is None:
        raise InputError(
            f"{source.name} has the labels {_list(whole)}, but classes count from 0: convert them."
        )
    if isinstance(odd, str):
        raise InputError(
            f"{source.name} has {len(whole)} classes ({_list(whole)}), but the model has {k} and "
            f"does not name them; give class numbers from 0 to {k - 1} as labels."
        )
    if (below := next((v for v in whole if v < 0), None)) is not None:
        source, row = next(
            (s, values[below]) for s, values in zip(sources, seen, strict=True) if below in values
        )
        raise InputError(f"row {row} of {source.name} has label {below}, but classes count from 0.")
    hint = " Do they count from 1?" if odd == k else ""
    raise InputError(
        f"row {row} of {source.name} has label {odd}, but the model knows {k} classes, numbered 0 "
        f"to {k - 1}.{hint}"
    )


def _seen(source: Source, k: int | None) -> dict[Any, int]:
    """The different labels of a source, in order, each with the first row that has it; of one-hot
    rows, places.

    Raises:
        InputError: labels that are no classes at all.
    """
    first: dict[Any, int] = {}
    for start in range(0, len(source), STRIDE):
        y = np.asarray(source.labels(start, min(start + STRIDE, len(source))))
        _check(y, start, k)
        values, at = np.unique(_column(y), return_index=True)
        for value, row in zip(values.tolist(), at.tolist(), strict=True):
            first.setdefault(value, start + row)
    return dict(sorted(first.items()))


def _check(y: np.ndarray, start: int, k: int | None) -> None:
    """Raises InputError: labels of another form than one class a row, or one-hot rows."""
    if _hot(y):
        return _check_hot(y, start, k)
    if y.ndim == 0 or y.ndim > 2 or y.size != len(y):
        raise InputError(
            f"labels have shape {_shape(y.shape)}, but one class number a row is expected."
        )
    if y.dtype.kind in "US":
        return
    whole = np.isfinite(y) & (y == np.rint(y)) if y.dtype.kind in "biuf" else np.zeros(len(y), bool)
    if not whole.all():
        raise InputError(
            f"labels are {y.dtype} (such as {y.ravel()[int(np.argmin(whole))]!s}), but class "
            "numbers are integers: "
            f'convert with astype(int). For a regression say --task "regression(tolerance=0.1)".'
        )


def _check_hot(y: np.ndarray, start: int, k: int | None) -> None:
    """Raises InputError: rows [n, m] that are not one-hot, or of another number of classes than
    k."""
    shape = _shape(y.shape)
    if k is not None and y.shape[1] != k:
        raise InputError(
            f"labels have shape {shape}, as one-hot rows of {y.shape[1]} classes do, but the model "
            f"has {k} classes; give one class number a row."
        )
    zero_one = (y == 0) | (y == 1)
    odd = ~zero_one.all(1) | ((y == 1).sum(1) != 1)
    if odd.any():
        row = int(np.argmax(odd))
        raise InputError(
            f"labels have shape {shape}, but row {start + row} is {_list(y[row].tolist())} and not "
            "one-hot (one 1, "
            "else 0). Give class numbers instead, such as y.argmax(1); or, if several labels may "
            f"hold at once, say --task multilabel (in Python: wrap(..., task='multilabel'))."
        )


def _column(y: np.ndarray) -> np.ndarray:
    """Labels as one value a row: whole floats and booleans as integers, one-hot rows as places."""
    y = y.argmax(1) if _hot(y) else y.reshape(len(y))
    return y.astype(str if y.dtype.kind in "US" else np.int64)


def _hot(y: np.ndarray) -> bool:
    """Whether labels are rows, such as one-hot ones."""
    return y.ndim == 2 and y.shape[1] > 1


def _called(source: Source, values: dict[Any, int]) -> list[Any]:
    """The labels of a source, by the names that it gives to its classes."""
    if (names := source.class_names) is None:
        return list(values)
    return [names[v] if isinstance(v, int) and _counts(v, len(names)) else v for v in values]


def _counts(value: Any, k: float) -> bool:
    """Whether a label is one of 0..k-1."""
    return not isinstance(value, str) and 0 <= value < k


def _list(values: Any) -> str:
    return listed(values, _LISTED)


def _pairs(values: Any) -> str:
    return _list([f"{v} is {i}" for i, v in enumerate(values)])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if len(shape) > 1 else str(shape)
