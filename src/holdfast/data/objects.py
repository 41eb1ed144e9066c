"""Objects of Python and of its libraries as sources: datasets, loaders, tables, iterators.

A library is known by what its objects have, and is imported by nobody but its user. What can be
asked for any row (a map-style dataset) is read piece by piece. What cannot (a loader, an iterator)
is read once and held in memory, up to `HELD` bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np

from holdfast import usercode
from holdfast.data.arrays import from_arrays, to_numpy
from holdfast.data.boxes import is_targets, of_targets
from holdfast.data.items import Items, channels_of, is_picture, numbers_of, pair_of
from holdfast.data.source import HELD, Source, sized
from holdfast.errors import InputError

FORMS = (
    "(x, y) arrays, a torch Dataset or DataLoader, a tf.data.Dataset, a Hugging Face dataset, a "
    "DataFrame with a column of labels, an iterator of (x, y), or a text such as mnist:DIR"
)
_OVERHEAD = 128  # bytes that Python takes for an array in addition to its content
_END = object()
_REMARK = (
    "The dataset gives other inputs when it is read again (random augmentation?), so each row was "
    "read once and kept."
)


def from_object(data: Any, *, scale: bool, name: str = "", label: str | None = None) -> Source:
    """Any object that holds labelled inputs, as a source.

    Args:
        name: of the data; that of the type, if none is given.
        label: of a table: the column of labels.

    Raises:
        InputError: it holds none, raises, or is too large to be held where it has to be.
    """
    if _is_pair(data):
        x, y = data
        return _of_pair(x, y, name or "arrays", scale)
    name = name or type(data).__name__
    if is_table(data):
        from holdfast.data.table import from_frame

        return from_frame(data, name, scale, label)
    if isinstance(data, Mapping):
        return _of_pair(*pair_of(data, f"data ({name})"), name, scale)
    if hasattr(data, "as_numpy_iterator"):
        if int(usercode.call(name, data.cardinality)) == -1:
            raise InputError(
                f"{name} has no end; leave repeat() out, or give as many rows as you want with "
                "take(n)."
            )
        return hold(data.as_numpy_iterator(), name, scale, _class_names(data))
    if hasattr(data, "batch_sampler"):
        return _loaded(data, name, scale)
    if hasattr(data, "on_epoch_end") and _has_length(data):  # Keras' datasets give batches
        return hold((data[i] for i in range(len(data))), name, scale, _class_names(data))
    if hasattr(data, "dtype"):
        raise InputError(
            f"data is one array ({name}) of shape {tuple(getattr(data, 'shape', ()))}, without "
            f"labels; expected {FORMS}."
        )
    if hasattr(data, "__getitem__") and _has_length(data):
        return _items(data, name, scale)
    if hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
        return hold(data, name, scale, _class_names(data))
    raise InputError(f"data is {data!r:.40} ({name}); expected {FORMS}.")


def _of_pair(x: Any, y: Any, name: str, scale: bool) -> Source:
    if is_targets(y):
        y = of_targets(y, name)
    return from_arrays(x, y, name, scale=scale)


def is_table(data: Any) -> bool:
    """Whether it is a DataFrame, a table of pyarrow, or a Series."""
    return hasattr(data, "__dataframe__") or hasattr(data, "to_frame")


def hold(
    pieces: Iterable[Any], name: str, scale: bool, class_names: tuple[str, ...] | None = None
) -> Source:
    """Rows or batches of an iterable, read once and held in memory: pairs (x, y), or dicts.

    A piece is a batch where its y has an axis as long as the first of x, and x has more axes than
    that one.

    Raises:
        InputError: more than `HELD` bytes, no rows, or pieces that are no pairs or differ in shape.
    """
    inputs: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    targets: list[Any] = []
    channels, size = None, 0
    for i, piece in enumerate(_pieces(pieces, name)):
        what = f"item {i} of {name}"
        x, y = pair_of(piece, what)
        if not channels and is_picture(x):
            channels = channels_of(x, what)
        if is_targets(y if isinstance(y, (list, tuple)) else [y]):
            one = isinstance(y, Mapping)
            x = np.stack([numbers_of(image, what, channels) for image in ([x] if one else x)])
            targets += [y] if one else y
            y = np.zeros(len(x), np.int64)
        else:
            x, y = numbers_of(x, what, channels), to_numpy(y, f"y of {what}")
        if not (y.ndim and x.ndim > 1 and len(x) == len(y)):
            x, y = x[None], y[None]
        if inputs and x.shape[1:] != inputs[0].shape[1:]:
            raise InputError(
                f"{what} has inputs of shape {x.shape[1:]}; expected {inputs[0].shape[1:]}, as "
                "item 0 has."
            )
        size += x.nbytes + y.nbytes + _OVERHEAD
        if size > HELD:
            raise InputError(
                f"{name} gives more than {sized(HELD)} of rows, and cannot be read piece by piece. "
                "Give a dataset that "
                "has a length and gives any row (of a DataLoader: its dataset, or shuffle=False), "
                "a file, or fewer rows."
            )
        inputs.append(np.array(x))
        labels.append(np.array(y))
    if not inputs:
        raise InputError(f"{name} is empty: it gives no rows; expected at least one.")
    y = of_targets(targets, name) if targets else np.concatenate(labels)
    return from_arrays(np.concatenate(inputs), y, name, scale=scale, class_names=class_names)


def _pieces(pieces: Iterable[Any], name: str) -> Iterator[Any]:
    """The pieces; whatever the user's code raises meanwhile becomes one sentence."""
    iterator = usercode.call(f"iterating over {name}", iter, pieces)
    for i in count():
        piece = usercode.call(f"item {i} of {name}", next, iterator, _END)
        if piece is _END:
            return
        yield piece


def _items(data: Any, name: str, scale: bool) -> Source:
    """A map-style dataset, read as rows are asked for; held, where its rows change or its labels
    are texts."""
    source = Items(data, name, scale, _class_names(data))
    checked = sorted({0, len(source) // 2, len(source) - 1})
    twice = [(source.item(row), source.item(row)) for row in checked]
    random = any(
        a.shape != b.shape or not np.array_equal(a, b, equal_nan=True) for (a, _), (b, _) in twice
    )
    if not random and twice[0][0][1].dtype.kind not in "UO":
        return source
    held = hold((data[i] for i in range(len(source))), name, scale, source.class_names)
    if random:
        held.remarks = (("loading", _REMARK),)
    return held


def _loaded(loader: Any, name: str, scale: bool) -> Source:
    """A torch DataLoader: read once with its own workers; where that is too large, its dataset in
    the same order."""
    names, dataset = _class_names(loader), loader.dataset
    any_row = hasattr(dataset, "__getitem__") and _has_length(dataset)
    ordered = type(loader.sampler).__name__ == "SequentialSampler" and not loader.drop_last
    collated = getattr(loader.collate_fn, "__name__", "") == "default_collate"
    if any_row and ordered and collated:
        source = Items(dataset, name, scale, names)
        if len(source) * source.item(0)[0].nbytes > HELD:
            return source
    return hold(loader, name, scale, names)


def _is_pair(data: Any) -> bool:
    """Whether it is (x, y), and not two rows."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    rows = all(isinstance(item, (tuple, Mapping)) and len(item) == 2 for item in data)
    return isinstance(data, tuple) or not rows


def _has_length(data: Any) -> bool:
    try:
        return len(data) >= 0
    except (TypeError, NotImplementedError):
        return False


def _class_names(data: Any) -> tuple[str, ...] | None:
    """The names that a dataset gives its classes, as torchvision, Keras and Hugging Face do."""
    features = getattr(data, "features", None)
    label = isinstance(features, dict) and (features.get("label") or features.get("labels"))
    named = (getattr(data, name, None) for name in ("classes", "class_names"))
    for found in (*named, getattr(label, "names", None)):
        if isinstance(found, (list, tuple)) and found and all(isinstance(n, str) for n in found):
            return tuple(found)
    inner = getattr(data, "dataset", data)
    return None if inner is data else _class_names(inner)
