"""Properties of networks as verifiers exchange them: VNN-LIB 1.0 (https://www.vnnlib.org).

A file says a box of inputs X_i, or many boxes, and which outputs Y_j are unsafe. What is read of
SMT-LIB: `declare-const` and `assert` with `and`, `or`, `<=`, `>=`, sums, differences and products
with numbers. Numbers are read as float64.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from holdfast.errors import InputError

MOST = 100_000  # alternatives that the asserts of a file may have together
DEEPEST = 64  # parentheses within each other
LARGEST = 1 << 28  # bytes of a file, unpacked
SILENT = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}
_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
_NUMBER = re.compile(r"[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?")
_VARIABLE = re.compile(r"([XY])_([0-9]{1,9})")

Linear = dict[str, float]  # a coefficient of each variable; that of "" is the constant
Conjunction = tuple[Linear, ...]  # each is at most 0


class Outputs(NamedTuple):
    """A set of outputs y [k]: those with a @ y <= b, of a [r, k] and b [r] in float64."""

    a: np.ndarray
    b: np.ndarray

    def hold(self, y: np.ndarray) -> bool:
        return bool((self.a @ y <= self.b).all())


@dataclass(frozen=True, eq=False)
class Part:
    """A box of inputs lo <= x <= hi, [n] each in float64, and the outputs that are unsafe in it:
    those that are in any of some sets."""

    lo: np.ndarray
    hi: np.ndarray
    unsafe: tuple[Outputs, ...]

    def broken(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Whether x [n] is in the box, and its output y [k] unsafe."""
        inside = bool(((x >= self.lo) & (x <= self.hi)).all())
        return inside and any(outputs.hold(y) for outputs in self.unsafe)


@dataclass(frozen=True, eq=False)
class Property:
    """What a file asks: has any input of one of the parts an output that is unsafe in it?"""

    inputs: int
    outputs: int
    parts: tuple[Part, ...]


def load(path: Path | str) -> Property:
    """The property of a file, which may be packed by gzip.

    Raises:
        InputError: it cannot be read, or is none that `parse` takes.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"the property {path} cannot be read: {reason}.") from None
    if len(content) > LARGEST:
        raise InputError(f"the property {path} is larger than {LARGEST >> 20} MiB.")
    try:
        return parse(text)
    except InputError as error:
        raise InputError(f"the property {path} cannot be used: {error}") from None


def parse(text: str) -> Property:
    """The property that a text says.

    Raises:
        InputError: it is no VNN-LIB 1.0, its inputs are no boxes, or what it says of the outputs is
            not linear.
    """
    names: set[str] = set()
    common: list[Linear] = []
    choices: list[list[Conjunction]] = []
    for command in _commands(text):
        match command:
            case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                if name in names or not _VARIABLE.fullmatch(name):
                    raise InputError(f"it declares {name}; expected X_0, X_1, ..., Y_0, ... once.")
                names.add(name)
            case ["assert", formula]:
                found = _alternatives(formula, names)
                if len(found) == 1:
                    common.extend(found[0])
                else:
                    choices.append(found)
            case [str(name), *_] if name in SILENT:
                pass
            case _:
                raise InputError(
                    f"{_shown(command)} is no declare-const of a Real or assert of VNN-LIB 1.0."
                )
    return _boxed(_count(names, "X"), _count(names, "Y"), common, _product(choices))


def _commands(text: str) -> Iterator[list[Any]]:
    """The expressions of a text: lists of words and of lists."""
    open_: list[list[Any]] = [[]]
    for token in _TOKEN.findall(text):
        if token.startswith(";"):
            continue
        if token == "(":
            open_.append([])
        elif token != ")":
            open_[-1].append(token)
        elif len(open_) > 1:
            done = open_.pop()
            open_[-1].append(done)
        else:
            raise InputError("it closes a parenthesis that was never opened.")
        if len(open_) > DEEPEST:
            raise InputError(f"more than {DEEPEST} parentheses are within each other.")
        if len(open_) == 1 and open_[0]:
            yield _command(open_[0].pop())
    if len(open_) > 1:
        raise InputError("a parenthesis is not closed: the file may be cut short.")


def _command(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise InputError(f"it says {found[:40]!r} outside of parentheses.")
    return found


def _count(names: set[str], kind: str) -> int:
    """How many inputs or outputs there are."""
    n = sum(name.startswith(kind) for name in names)
    missing = next((i for i in range(n) if f"{kind}_{i}" not in names), None)
    if not n or missing is not None:
        raise InputError(f"{kind}_{missing or 0} is not declared.")
    return n


def _alternatives(formula: Any, names: set[str]) -> list[Conjunction]:
    """A formula as alternatives, of which one has to hold."""
    match formula:
        case ["or", _, *_]:
            return [one for part in formula[1:] for one in _alternatives(part, names)]
        case ["and", _, *_]:
            return _product([_alternatives(part, names) for part in formula[1:]])
        case ["<=" | ">=", _, _, *_]:
            terms = [_linear(part, names) for part in formula[1:]]
            if formula[0] == ">=":
                terms.reverse()
            return [tuple(_sum(low, high, -1.0) for low, high in pairwise(terms))]
    raise InputError(f"{_shown(formula)} is none of: and, or, <=, >=.")


def _product(choices: Iterable[list[Conjunction]]) -> list[Conjunction]:
    """Alternatives of which each holds where one of every choice does."""
    found: list[Conjunction] = [()]
    for choice in choices:
        if len(found) * len(choice) > MOST:
            raise InputError(f"its asserts have more than {MOST:,} alternatives together.")
        if len(choice) == 1 and len(found) == 1:
            found[0] += choice[0]
        else:
            found = [one + other for one in found for other in choice]
    return found


def _linear(term: Any, names: set[str]) -> Linear:
    """A sum of variables times numbers."""
    match term:
        case str(name) if name in names:
            return {name: 1.0}
        case str(number):
            return {"": _number(number)}
        case ["+", *parts] if parts:
            return _total([_linear(part, names) for part in parts], 1.0)
        case ["-", part]:
            return _sum({}, _linear(part, names), -1.0)
        case ["-", *parts] if parts:
            return _total([_linear(part, names) for part in parts], -1.0)
        case ["*", first, second]:
            one, other = _linear(first, names), _linear(second, names)
            if one.keys() - {""}:
                one, other = other, one
            if one.keys() - {""}:
                raise InputError(f"{_shown(term)} is not linear.")
            return {name: _finite(one.get("", 0.0) * value) for name, value in other.items()}
    raise InputError(f"{_shown(term)} is no sum of variables times numbers.")


def _total(parts: Sequence[Linear], sign: float) -> Linear:
    found = parts[0]
    for part in parts[1:]:
        found = _sum(found, part, sign)
    return found


def _sum(one: Linear, other: Linear, sign: float) -> Linear:
    found = dict(one)
    for name, value in other.items():
        found[name] = _finite(found.get(name, 0.0) + sign * value)
    return found


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise InputError(f"{text[:40]!r} is no number, and no variable that is declared.")
    return _finite(float(text))


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise InputError("a number in it is beyond float64.")
    return value


def _shown(found: Any) -> str:
    text = str(found).replace("'", "").replace(",", "").replace("[", "(").replace("]", ")")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _boxed(n: int, k: int, common: list[Linear], alternatives: list[Conjunction]) -> Property:
    """The property that has all of `common`, and one of the alternatives."""
    free = np.full(n, -np.inf), np.full(n, np.inf), list[Linear]()
    base = _narrowed(free, common)
    parts: dict[bytes, tuple[np.ndarray, np.ndarray, list[Outputs]]] = {}
    for found in (_narrowed(base, own) for own in alternatives) if base is not None else ():
        if found is None:
            continue
        lo, hi, rows = found
        _check_box(lo, hi)
        if not rows:
            raise InputError("it says nothing of the outputs; expected a comparison of some Y_j.")
        key = lo.tobytes() + hi.tobytes()
        parts.setdefault(key, (lo, hi, []))[2].append(_outputs(rows, k))
    if not parts:
        raise InputError("it holds for no input, whatever the outputs are.")
    return Property(n, k, tuple(Part(lo, hi, tuple(sets)) for lo, hi, sets in parts.values()))


def _narrowed(
    found: tuple[np.ndarray, np.ndarray, list[Linear]], more: Iterable[Linear]
) -> tuple[np.ndarray, np.ndarray, list[Linear]] | None:
    """A box and conditions of outputs with more of both; None where one is never met."""
    lo, hi, rows = found[0].copy(), found[1].copy(), list(found[2])
    for atom in more:
        varying = {name: value for name, value in atom.items() if name and value}
        shift = atom.get("", 0.0)
        kinds = {name[0] for name in varying}
        if not varying:
            if shift > 0:
                return None
        elif kinds == {"Y"}:
            rows.append({**varying, "": shift})
        elif len(varying) == 1:
            ((name, slope),) = varying.items()
            i, limit = int(name[2:]), -shift / slope
            if slope > 0:
                hi[i] = min(hi[i], limit)
            else:
                lo[i] = max(lo[i], limit)
        elif kinds == {"X"}:
            raise InputError(f"{' and '.join(sorted(varying)[:2])} are compared: that is no box.")
        else:
            raise InputError("it compares an input with an output; expected a box and outputs.")
    return lo, hi, rows


def _check_box(lo: np.ndarray, hi: np.ndarray) -> None:
    for i in np.flatnonzero(~np.isfinite(lo) | ~np.isfinite(hi)):
        side = "upper" if np.isfinite(lo[i]) else "lower"
        raise InputError(f"X_{i} has no {side} bound; expected a box.")
    for i in np.flatnonzero(lo > hi):
        raise InputError(f"X_{i} is at least {lo[i]:g} and at most {hi[i]:g}: the box is empty.")


def _outputs(rows: Sequence[Mapping[str, float]], k: int) -> Outputs:
    a, b = np.zeros((len(rows), k)), np.zeros(len(rows))
    for r, row in enumerate(rows):
        for name, value in row.items():
            if name:
                a[r, int(name[2:])] = value
            else:
                b[r] = -value
    return Outputs(a, b)


def written(lo: np.ndarray, hi: np.ndarray, unsafe: Sequence[Outputs], said: str = "") -> str:
    """The text of one part: `parse` gives the same numbers again.

    Args:
        lo, hi: the box, [n] each.
        unsafe: at least one set of outputs.
        said: a comment, one line.
    """
    k = unsafe[0].a.shape[1]
    lines = [f"; {said}"] if said else []
    lines += [f"(declare-const X_{i} Real)" for i in range(len(lo))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(k)]
    for i, (low, high) in enumerate(zip(lo, hi, strict=True)):
        lines += [f"(assert (>= X_{i} {_decimal(low)}))", f"(assert (<= X_{i} {_decimal(high)}))"]
    sets = [f"(and {' '.join(map(_row, a, b))})" for a, b in unsafe]
    return "\n".join([*lines, "(assert (or", *sets, "))", ""])


def _row(a: np.ndarray, b: float) -> str:
    """One condition; a difference of two outputs as their comparison."""
    named = [(f"Y_{j}", a[j]) for j in np.flatnonzero(a)]
    if sorted(value for _, value in named) == [-1.0, 1.0] and b == 0:
        low, high = sorted(named, key=lambda one: -one[1])
        return f"(<= {low[0]} {high[0]})"
    terms = [f"(* {_decimal(value)} {name})" for name, value in named]
    return f"(<= (+ {' '.join(terms)} 0.0) {_decimal(b)})"


def _decimal(value: float) -> str:
    """A number without an exponent, which gives the same float64 again."""
    return np.format_float_positional(value, trim="0")


def counterexample(x: np.ndarray, y: np.ndarray) -> str:
    """An input x [n] and its output y [k], as the verifiers' competition writes them."""
    rows = [f"(X_{i} {_decimal(value)})" for i, value in enumerate(x)]
    rows += [f"(Y_{j} {_decimal(value)})" for j, value in enumerate(y)]
    return "sat\n(" + "\n ".join(rows) + ")\n"
