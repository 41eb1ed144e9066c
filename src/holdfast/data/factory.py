"""The user's own data: what `path/file.py:factory` or `package.module:factory` returns. This form runs code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from holdfast.data.arrays import Arrays, to_numpy
from holdfast.data.files import one_line
from holdfast.data.source import Source, floats
from holdfast.errors import HoldfastError, InputError, suggest


def open_factory(where: str, factory: str, name: str, scale: bool) -> Source:
    """Call `factory` of the file or module `where`; it gives (x, y), a map-style dataset, or a `Source`.

    Raises:
        InputError: no such file, module or factory; it raised; or it returned something else.
    """
    is_file = where.endswith(".py")
    with _importable(str(Path(where).parent.absolute()) if is_file else os.getcwd()):
        module = _run_file(Path(where)) if is_file else _import(where)
        make = getattr(module, factory, None)
        if not callable(make):
            raise InputError(f"{where} has no function {factory!r}; {suggest(factory, _public(module))}")
        made = _call(name, make)
    if isinstance(made, Source):
        return made
    if isinstance(made, tuple) and len(made) == 2:
        return Arrays(to_numpy(made[0], f"x of {name}"), to_numpy(made[1], f"y of {name}"), name, scale=scale)
    if hasattr(made, "__len__") and hasattr(made, "__getitem__"):
        return Dataset(made, name, scale)
    raise InputError(f"{name} returned {type(made).__name__}; expected (x, y), a dataset of (x, y) items, or a Source.")


class Dataset(Source):
    """A map-style dataset (`len`, and items (x, y)), asked item by item; x of the first item sets the shape.

    Raises:
        InputError: it is empty, raises, gives no pairs, or its inputs differ in shape.
    """

    def __init__(self, items: Any, name: str, scale: bool) -> None:
        self._items, self._scale, self.name = items, scale, name
        self._count: int = _call(f"len of {name}", len, items)
        if not self._count:
            raise InputError(f"{name} is empty: its dataset has no items; expected at least one.")
        self.shape = self._item(0)[0].shape

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = [self._item(row) for row in range(start, min(stop, self._count))]
        odd = next((row for row, (x, _) in enumerate(pairs, start) if x.shape != self.shape), None)
        if odd is not None:
            shape = pairs[odd - start][0].shape
            raise InputError(f"item {odd} of {self.name} has shape {shape}; expected {self.shape}, as item 0 has.")
        x = np.stack([x for x, _ in pairs]) if pairs else np.empty((0, *self.shape), np.float32)
        return x, to_numpy([y for _, y in pairs], f"y of {self.name}")

    def _item(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        what = f"item {row} of {self.name}"
        item = _call(what, lambda: self._items[row])
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise InputError(f"{what} is {type(item).__name__}; expected a pair (x, y).")
        x, y = to_numpy(item[0], f"x of {what}"), to_numpy(item[1], f"y of {what}")
        if x.dtype.kind not in "biuf" or not x.ndim or not x.size:
            raise InputError(f"x of {what} holds {x.dtype} of shape {x.shape}; expected an array of numbers.")
        return floats(x, self._scale), y


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"holdfast_user_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"there is no file {path}; expected path/file.py:factory.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up by name
    _call(str(path), spec.loader.exec_module, module)
    return module


def _import(where: str) -> ModuleType:
    try:
        return _call(where, importlib.import_module, where)
    except InputError as error:
        cause = error.__cause__
        if not (isinstance(cause, ModuleNotFoundError) and f"{where}.".startswith(f"{cause.name}.")):
            raise
    raise InputError(
        f"there is no module {where!r}; expected path/file.py:factory, package.module:factory, or one of "
        "mnist:DIR, fashion-mnist:DIR, cifar10:DIR, idx:IMAGES,LABELS."
    )


def _public(module: ModuleType) -> list[str]:
    return [word for word, item in vars(module).items() if callable(item) and not word.startswith("_")]


def _call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except HoldfastError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
        raise InputError(f"{what} raised {type(error).__name__}: {one_line(error)} ({place}).") from error


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
