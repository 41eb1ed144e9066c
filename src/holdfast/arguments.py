"""Arguments of public functions, held against the types that their signatures declare."""

from __future__ import annotations

import errno
import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from holdfast.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    Path: "a path",
    os.PathLike: "a path",
    Any: "anything",
    type(None): "None",
}
_OWN = {"threat"}  # which `as_threat` says more of
_NUMBERS: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}
_LARGEST = 2**63  # what 64 bits do not hold, neither a seed nor a size can be
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which first refuses an argument of another type than its signature declares.

    Raises:
        InputError: names the argument, what was given and what is taken.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python says it better: a name that is not taken
        for name, value in given.arguments.items():
            if isinstance(value, numbers.Number) and hasattr(value, "item"):
                given.arguments[name] = value = value.item()  # NumPy's numbers  # pyright: ignore
            if name in hints and name not in _OWN and not _fits(value, hints[name]):
                raise InputError(
                    f"{name} is {_shown(value)}, but {function.__name__} takes "
                    f"{_expected(hints[name])}."
                )
        try:
            return function(*given.args, **given.kwargs)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise InputError(
                f"{str(error.filename)[:60]}... is too long for the name of a file or folder."
            ) from None

    return call


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind in _NUMBERS:
        whole = isinstance(value, numbers.Integral)
        return (
            isinstance(value, _NUMBERS[kind])
            and not isinstance(value, bool)
            and not (whole and abs(int(value)) >= _LARGEST)
        )
    if kind is tuple:
        counted = isinstance(value, (tuple, list)) and len(value) == len(parts)
        return counted and all(map(_fits, value, parts))
    if kind is Sequence:
        value = value.tolist() if hasattr(value, "tolist") else value  # of an array or a tensor
        unordered = isinstance(value, (Mapping, Set))
        if unordered or isinstance(value, (str, bytes)) or not isinstance(value, Collection):
            return False
        return all(_fits(item, parts[0]) for item in value)
    if kind is Callable:
        return callable(value)
    return isinstance(value, kind)


def _expected(hint: Any) -> str:
    """What fits a type, in words."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        words = list(dict.fromkeys(map(_expected, parts)))
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if kind is tuple:
        return f"two {_PLURALS.get(parts[0], 'values')}"
    if kind is Sequence and parts[0] in _PLURALS:
        return f"a list of {_PLURALS[parts[0]]}"
    if kind is Sequence:
        return f"a list, each {_expected(parts[0])}"
    if kind is Callable:
        return "a function"
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return _WORDS.get(kind) or f"{article} {kind.__name__}"


def _shown(value: Any) -> str:
    """A value in a few characters, and its type."""
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    text = f"an array of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
    text = " ".join(text.split())
    if len(text) > 40:
        text = f"{text[:37]}..."
    return f"{text} ({type(value).__name__})"
