"""The registry of frameworks: which one a live model or a file belongs to.

A framework is one file, or one package, in `targets/frameworks`, with a constant `FRAMEWORK` that
says all that the rest of Holdfast needs to know. It is found there, so that adding one changes no
other file; what it imports of the framework itself, it imports when it is used.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import usercode
from holdfast.errors import InputError

HEAD = 64  # bytes of a file that `recognises` is shown


def _nothing(*_: Any) -> bool:
    return False


def _as_it_is(model: Any, **_: Any) -> Any:
    return model


def _no_files(path: Path, **_: Any) -> Any:
    raise InputError(f"{path} cannot be opened: its framework has no files of models.")


@dataclass(frozen=True)
class Framework:
    """What a framework declares of itself.

    Args:
        name: as in `wrap(model, framework=name)`.
        matches: whether a live model is its own, by the modules of the model's type.
        adapt: `adapt(model, *, output, gives, classes)`, the model as a function of torch tensors,
            mostly an `Adapter`; options are those of `wrap`.
        suffixes: how the names of its files end. An empty one means any file that exists.
        weights: those of them that may hold weights alone, and take an `arch`.
        recognises: `recognises(path, head)`, whether a file or a folder is its own by its content,
            whatever its name; head are its first `HEAD` bytes, none of a folder.
        load: `load(path, *, arch, trust, output)`, the model of a file. Nothing in the file may be
            run without `trust`.
        native: how the name of the file ends that `model.save_model(file)` writes, where it does.
        of_rows: `of_rows(model, split, features)`, a model of several inputs as one of flat rows,
            where a function around it would not do.
        arrays: top modules of the types of its arrays, by which a function of them is known.
        also: names of more general frameworks that its models may be given under.
        general: it is asked last, since models and files of others look like its own.
    """

    name: str
    matches: Callable[[Any], bool] = _nothing
    adapt: Callable[..., Any] = _as_it_is
    suffixes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    recognises: Callable[[Path, bytes], bool] = _nothing
    load: Callable[..., Any] = _no_files
    native: str = ""
    of_rows: Callable[[Any, Any, int], Any] | None = None
    arrays: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    general: bool = False


@functools.cache
def frameworks() -> tuple[Framework, ...]:
    """All frameworks, the general ones last."""
    place = importlib.import_module("holdfast.targets.frameworks")
    names = [f"{place.__name__}.{module.name}" for module in pkgutil.iter_modules(place.__path__)]
    modules = map(importlib.import_module, names)
    found = [module.FRAMEWORK for module in modules if hasattr(module, "FRAMEWORK")]
    return tuple(sorted(found, key=lambda framework: framework.general))


def of_model(model: Any) -> Framework | None:
    """The framework of a live model; None where its type does not tell."""
    return next((found for found in frameworks() if found.matches(model)), None)


def of_arrays(value: Any) -> Framework | None:
    """The framework of an array, or of an error about one."""
    root = type(value).__module__.partition(".")[0]
    return next((found for found in frameworks() if root in found.arrays), None)


def of_file(path: Path) -> Framework | None:
    """The framework that opens a file or folder: it knows its content, else its name.

    Raises:
        InputError: the file is not there, cannot be read, or is none but a failed download.
    """
    head = _head(path)
    for framework in frameworks():
        if framework.recognises(path, head):
            return framework
    name = path.name.lower()
    found = {
        suffix: framework
        for framework in frameworks()
        for suffix in framework.suffixes
        if name.endswith(suffix) and (suffix or path.is_file())
    }
    if not found:
        return None
    if not path.is_file():
        raise InputError(f"there is no file {path}; check its path.")
    return found[max(found, key=len)]


def _head(path: Path) -> bytes:
    """The first bytes of a file that holds what it should; of a folder, or of nothing, none."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page (HTML), not weights: the download probably failed.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer: the file itself was never fetched.")
    return head


def named(name: str, model: Any = None) -> Framework:
    """The framework of this name, or the more special one that the model is of.

    Raises:
        InputError: there is none.
    """
    special = [found for found in frameworks() if name in found.also and found.matches(model)]
    found = special + [found for found in frameworks() if found.name == name]
    if not found:
        raise InputError(
            f"framework is {name!r}; it is one of {', '.join(f.name for f in frameworks())}."
        )
    return found[0]


def adapted(model: Any, framework: str | None = None, **options: Any) -> Callable[[Tensor], Any]:
    """The model as a function of torch tensors; a function whose arrays are not known yet, as it
    is.

    Raises:
        InputError: unknown framework, or nothing that can be called or predicts.
    """
    found = of_model(model) if framework is None else named(framework, model)
    if found is not None:
        return found.adapt(model, **options)
    if not callable(model):
        raise InputError(
            f"cannot wrap a {type(model).__name__}; give a torch module, a Keras model, an "
            f"estimator that predicts, or a callable of one array."
        )
    return model


def adapted_by_trial(
    model: Callable[..., Any], x: Tensor, **options: Any
) -> Callable[[Tensor], Any]:
    """A function whose arrays its type does not tell: tried on the rows x, of torch and then of
    numpy."""
    for given in (x.clone().requires_grad_(), x.cpu().clone().numpy()):
        try:
            with torch.enable_grad():  # or a function of numpy arrays would take a tensor too
                answer = model(given)
        except SystemExit as error:
            raise usercode.raised("the model", error) from error
        except Exception as error:  # noqa: BLE001  # a function of other arrays may raise anything
            if (
                found := of_arrays(error)
            ) is not None:  # its arrays are right, and the layout is not
                return found.adapt(model, **options)
            continue
        first = answer
        if isinstance(first, dict):
            first = tuple(first.values())
        if isinstance(first, (list, tuple)) and first:
            first = first[0]
        if (found := of_arrays(first)) is not None:
            return found.adapt(model, **options)
        if isinstance(given, Tensor) or isinstance(first, Tensor):
            return model
        gives = "scores"
        if np.asarray(first).ndim == 1 and np.asarray(first).dtype.kind in "iu":
            gives = "labels"
        return named("numpy").adapt(model, **{**options, "gives": gives})
    return model  # the error of its first question says more
