"""Data: inputs and labels from files, folders, arrays or the user's own code, behind one `Source`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from holdfast.data.arrays import Arrays, to_numpy
from holdfast.data.joined import Joined
from holdfast.data.source import Source
from holdfast.errors import InputError, suggest

__all__ = ["KINDS", "Source", "as_source", "from_arrays", "open_data"]

KINDS = {
    "digits": "digits: scikit-learn's 8x8 digits, embedded; [1, 8, 8]",
    "mnist": "mnist:DIR: MNIST's IDX files, plain or .gz; [1, 28, 28]",
    "fashion-mnist": "fashion-mnist:DIR: Fashion-MNIST's IDX files, plain or .gz; [1, 28, 28]",
    "cifar10": "cifar10:DIR: CIFAR-10's binary version; [3, 32, 32]",
    "idx": "idx:IMAGES,LABELS: any pair of IDX files, plain or .gz",
    "libsvm": "libsvm:FILE: LIBSVM's text, one row a line; index i is feature i",
    "npz": "FILE.npz: the arrays x and y (or x_test, y_test); further inputs are x2, x3, ..., groups group",
    "folder": "DIR: one sub-folder of images for each class, under train/ and test/ if there are splits",
    "parquet": "FILE.parquet: numeric columns or a list column x, and y or label; a column group names groups",
    "factory": "path/file.py:factory or package.module:factory: your own code, which is run",
}
_FORMS = {kind: KINDS[kind].split(": ")[0] for kind in ("mnist", "fashion-mnist", "cifar10", "idx", "libsvm")}


def open_data(spec: str, *, split: str = "test", scale: bool = True) -> Source:
    """The source that `spec` names, in one of the forms of `KINDS`.

    Args:
        spec: for example `mnist:DIR` or `set.npz`.
        split: "test" or "train"; ignored by data that has no splits.
        scale: bytes become float32 in [0, 1]; else float32 in 0..255. Floats are never rescaled.

    Raises:
        InputError: unknown, missing, damaged or empty data, or a split that it lacks.
    """
    try:
        return _open(spec, split, scale)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no file {error.filename}; check its path, which starts from {os.getcwd()} if relative."
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {error.filename or spec}: {error.strerror or error}.") from None


def from_arrays(x: Any, y: Any, name: str = "arrays", *, scale: bool = True) -> Source:
    """x [n, ...] and y [n], NumPy arrays or tensors of any framework, as a source; nothing is copied.

    Of a model that takes several inputs x is a tuple: the array that may change, and then the others in their order.

    Raises:
        InputError: not arrays of numbers, empty, or of different length.
    """
    if isinstance(x, tuple):
        arrays = [to_numpy(part, f"x of {name}") for part in x]
        return Joined(arrays, to_numpy(y, f"y of {name}"), name, scale=scale)
    return Arrays(to_numpy(x, f"x of {name}"), to_numpy(y, f"y of {name}"), name, scale=scale)


def as_source(data: Any, *, scale: bool = True) -> Source:
    """Data in any form that a caller may hold, as a source: every command and function takes the same forms.

    Args:
        data: a `Source`; the text that a command line takes; or (x [n, ...], y [n]), arrays of any framework.
        scale: bytes become float32 in [0, 1]; else float32 in 0..255.

    Raises:
        InputError: none of these, or data that cannot be read.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str):
        return open_data(data, scale=scale)
    return from_arrays(*data, scale=scale)


def _open(spec: str, split: str, scale: bool) -> Source:
    kind, _, rest = spec.partition(":")
    if kind.lower() == "digits" or kind.lower() in _FORMS:
        return _named(kind.lower(), rest, spec, split, scale)
    path = _path(spec)
    if path.suffix.lower() == ".npz":
        from holdfast.data.npz import open_npz

        return open_npz(path, spec, split, scale)
    if path.suffix.lower() in (".parquet", ".pq"):
        from holdfast.data.parquet import Table

        return Table(path, spec, scale)
    if spec and path.is_dir():
        from holdfast.data.folder import Folder

        return Folder(path, spec, split, scale)
    where, _, factory = spec.rpartition(":")
    if where and factory.isidentifier():
        from holdfast.data.factory import open_factory

        return open_factory(spec, scale)
    if spec and path.exists():
        forms = ", ".join(line.split(": ")[0] for line in KINDS.values())
        raise InputError(f"{spec} is not a kind of data that can be read; expected one of {forms}.")
    raise InputError(f"there is no data {spec!r}, neither a kind nor a file or folder; {suggest(kind, KINDS)}")


def _named(kind: str, rest: str, spec: str, split: str, scale: bool) -> Source:
    if kind == "digits":
        from holdfast.data import digits

        if rest:
            raise InputError(f"digits is embedded and takes nothing after it, but got {rest!r}; write digits.")
        return digits.open_digits(spec, _known(split, digits.SPLITS, kind))
    if not rest:
        raise InputError(f"{kind} needs the place of its files; write {_FORMS[kind]}.")
    if kind == "cifar10":
        from holdfast.data import cifar10

        return cifar10.open_cifar10(_path(rest), spec, _known(split, cifar10.SPLITS, kind), scale)
    if kind == "libsvm":
        from holdfast.data import libsvm

        return libsvm.open_libsvm(_path(rest), spec)
    from holdfast.data import idx

    if kind != "idx":
        return idx.open_mnist(kind, _path(rest), spec, _known(split, idx.SPLITS, kind), scale)
    files = rest.split(",")
    if len(files) != 2 or not all(files):
        raise InputError(f"{spec!r} does not name two files; write {_FORMS[kind]}.")
    return idx.open_idx(_path(files[0]), _path(files[1]), spec, scale)


def _known(split: str, splits: dict[str, Any], kind: str) -> str:
    if split not in splits:
        raise InputError(f"{kind} has no split {split!r}; {suggest(split, splits)}")
    return split


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))
