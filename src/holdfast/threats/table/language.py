"""The language of relations between columns, read over `ast`; nothing in it is evaluated as code.

open_acc <= total_acc
installment == loan_amnt * rate / 12 within 0.1
term in {36, 60}
nb_www > 0 implies nb_dots > 0
ratio == (a / b if b > 0 else -1)
sum("bytes_*") == total
"""

from __future__ import annotations

import ast
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch

from holdfast.errors import SpecError, suggest
from holdfast.threats.table.expressions import (
    OPERATIONS,
    Choice,
    Column,
    Comparison,
    Condition,
    Constant,
    Every,
    Number,
    OneOf,
    Operation,
    Some,
    Total,
)

LONGEST = 20_000  # characters of one relation
DEEPEST = 200  # brackets and formulas within one another
LARGEST = 20_000  # numbers and operations of one relation, its formulas written out
_BINARY = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Mod: "%",
    ast.Pow: "**",
}
_FUNCTIONS = {"abs": 1, "floor": 1, "ceil": 1, "round": 1, "sqrt": 1, "log": 1, "exp": 1}
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_PATTERN = re.compile(r"\bsum\(\s*([A-Za-z_]\w*\*[\w*]*|\*[\w*]+)\s*\)")
_FORMULA = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\(([\w\s,]*)\))?\s*")


@dataclass(frozen=True)
class Formula:
    """A name for a part that relations share: `rate`, or `months(date)` with its parameters."""

    parameters: tuple[str, ...]
    body: ast.expr


@dataclass(frozen=True)
class Vocabulary:
    """What the names of a relation mean."""

    columns: Mapping[str, int]
    values: Mapping[int, Mapping[str, float]]  # of a column of named categories: their numbers
    formulas: Mapping[str, Formula]
    tolerance: float | None = None

    def with_formulas(self, texts: Mapping[str, str]) -> Vocabulary:
        """These with more formulas, by `name` or `name(parameter, ...)`; each may use the earlier
        ones.

        Raises:
            SpecError: a name is taken, or a text cannot be read.
        """
        known = dict(self.formulas)
        for head, text in texts.items():
            found = _FORMULA.fullmatch(head)
            if found is None:
                raise SpecError(f"{head[:60]!r} names no formula; expected rate, or months(date).")
            name, inside = found.groups()
            if name in known or name in self.columns or name in OPERATIONS or name == "sum":
                raise SpecError(f"the formula {name} has the name of something else.")
            parameters = tuple(p.strip() for p in (inside or "").split(",") if p.strip())
            formula = Formula(parameters, parse(text, f"formula {name}"))
            where = replace(self, formulas=known)
            # read once with any numbers, so that what is wrong with it is said here
            own = dict.fromkeys(parameters, Constant(1.0))
            _Reader(where, f"formula {name}", text, own).number(formula.body)
            known[name] = formula
        return replace(self, formulas=known)

    def condition(self, text: str, name: str) -> Condition:
        """The condition that a text says; `name` is what messages call it.

        Raises:
            SpecError: it says none.
        """
        return _condition(self, text, name)

    def number(self, text: str, name: str) -> Number:
        """The number that a formula gives.

        Raises:
            SpecError: it gives none.
        """
        return _Reader(self, name, text, {}).number(parse(text, name))


def parse(text: str, name: str) -> ast.expr:
    """A text as a tree of Python's grammar."""
    if not isinstance(text, str):
        raise SpecError(f"{name} is a {type(text).__name__}; expected a text, such as 'a <= b'.")
    if len(text) > LONGEST:
        raise SpecError(f"{name} has {len(text):,} characters; at most {LONGEST:,} are read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(_PATTERN.sub(r'sum("\1")', text).strip(), mode="eval").body
    except (RecursionError, MemoryError):
        raise SpecError(
            f"{name} ({_short(text)}) has too many operations within one another; write sums as "
            "sum('a_*'), or split it into relations."
        ) from None
    except (SyntaxError, ValueError):
        raise SpecError(
            f"{name} cannot be read: {_short(text)}; expected a relation such as 'a <= b', with "
            "names in quotes where they hold more than letters, digits and _."
        ) from None


def _condition(words: Vocabulary, text: str, name: str) -> Condition:
    """As `Vocabulary.condition`: what `implies` and `within` say is split off first."""
    if not isinstance(text, str) or len(text) > LONGEST:
        parse(text, name)
    bare = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), text)
    if len(re.findall(r"\bimplies\b", bare)) > DEEPEST:
        raise SpecError(
            f"{name} ({_short(text)}) has too many operations within one another: more than "
            f"{DEEPEST} times 'implies'."
        )
    if arrow := re.search(r"\bimplies\b", bare):
        first = _condition(words, text[: arrow.start()], name)
        return Some((first.negated(), _condition(words, text[arrow.end() :], name)))
    if close := re.search(r"\bwithin\b", bare):
        return _Reader(words, name, text, {}).within(
            parse(text[: close.start()], name), parse(text[close.end() :], name)
        )
    return _Reader(words, name, text, {}).condition(parse(text, name))


@dataclass(frozen=True)
class _Reader:
    """Reads the tree of one text."""

    words: Vocabulary
    name: str
    text: str
    parameters: Mapping[str, Number]
    depth: int = 0
    parts: Iterator[int] = field(default_factory=itertools.count)  # read so far

    def refused(self, what: str) -> SpecError:
        return SpecError(f"{self.name} ({_short(self.text)}) {what}")

    def deeper(self) -> _Reader:
        if next(self.parts) > LARGEST:
            raise self.refused("is too long once its formulas are written out.")
        if self.depth > DEEPEST:
            raise self.refused(f"has more than {DEEPEST} brackets within one another.")
        return replace(self, depth=self.depth + 1)

    # ------------------------------------------------------------------ conditions

    def condition(self, node: ast.expr) -> Condition:
        inner = self.deeper()
        match node:
            case ast.BoolOp(op=op, values=values):
                kind = Every if isinstance(op, ast.And) else Some
                return kind(tuple(inner.condition(v) for v in values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return inner.condition(operand).negated()
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = zip(sides, ops, others, strict=False)
                parts = tuple(inner.comparison(a, op, b) for a, op, b in pairs)
                return parts[0] if len(parts) == 1 else Every(parts)
        raise self.refused("says nothing that holds or not; expected a comparison such as a <= b.")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
        tolerance = self.words.tolerance
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Set, ast.List, ast.Tuple)) or not right.elts:
                raise self.refused("has an 'in' without a list of numbers, such as {36, 60}.")
            number = self.number(left)
            values = tuple(self.constant(v, number) for v in right.elts)
            found = OneOf(number, values, tolerance)
            return found if isinstance(op, ast.In) else found.negated()
        a, b = self.sides(left, right)
        match op:
            case ast.LtE():
                return _ordered(a, b, tolerance)
            case ast.GtE():
                return _ordered(b, a, tolerance)
            case ast.Lt():
                return Comparison(a, "<", b)
            case ast.Gt():
                return Comparison(b, "<", a)
            case ast.Eq():
                return Comparison(a, "==", b, tolerance)
            case ast.NotEq():
                return Comparison(a, "!=", b, tolerance)
        raise self.refused("compares by 'is'; expected <=, <, ==, !=, >, >= or in.")

    def within(self, relation: ast.expr, size: ast.expr) -> Condition:
        """A comparison with a tolerance of its own."""
        slack, found = self.number(size), self.condition(relation)
        if not isinstance(slack, Constant) or slack.number < 0:
            raise self.refused("has a 'within' without a number of at least 0 behind it.")
        if not isinstance(found, Comparison) or found.kind not in ("==", "<="):
            raise self.refused("has a 'within' that belongs to no ==, <= or >=.")
        return replace(found, within=slack.number)

    def sides(self, left: ast.expr, right: ast.expr) -> tuple[Number, Number]:
        """The two numbers of a comparison; a text may be a category of the other side."""
        if isinstance(left, ast.Constant) and isinstance(left.value, str):
            b = self.number(right)
            return self.category(left, b) or self.number(left), b
        a = self.number(left)
        return a, self.category(right, a) or self.number(right)

    def category(self, node: ast.expr, column: Number) -> Constant | None:
        """The number of a category of this column, where a text names one."""
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            return None
        known = self.words.values.get(getattr(column, "index", -1), {})
        return Constant(known[node.value]) if node.value in known else None

    # ------------------------------------------------------------------ numbers

    def number(self, node: ast.expr) -> Number:
        inner = self.deeper()
        match node:
            case ast.Constant(value=bool()):
                raise self.refused("holds True or False; write 1 or 0.")
            case ast.Constant(value=int() | float() as value):
                return self.finite(value)
            case ast.Constant(value=str() as name):
                return self.column(name)
            case ast.Name(id=name):
                return self.named(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.folded("-", Constant(0.0), inner.number(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return inner.number(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self.folded(_BINARY[type(op)], inner.number(left), inner.number(right))
            case ast.IfExp(test=test, body=body, orelse=other):
                return Choice(inner.condition(test), inner.number(body), inner.number(other))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return inner.call(name, arguments)
        raise self.refused(f"holds {_short(ast.unparse(node))}, which is no number of a row.")

    def folded(self, name: str, *arguments: Number) -> Number:
        """An operation, or the constant that it is."""
        whole = Operation(name, arguments)
        if whole.size > LARGEST:
            raise self.refused("is too long once its formulas are written out.")
        if all(isinstance(a, Constant) for a in arguments):
            value = float(whole.value([torch.zeros(1, dtype=torch.float64)])[0])
            if math.isfinite(value):
                return Constant(value)
        return whole

    def finite(self, value: float) -> Constant:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.refused("holds a number that is too large.")
        return Constant(number)

    def constant(self, node: ast.expr, column: Number) -> float:
        found = self.category(node, column) or self.number(node)
        if not isinstance(found, Constant):
            raise self.refused("has something else than numbers in the list behind 'in'.")
        return found.number

    def column(self, name: str) -> Column:
        if name not in self.words.columns:
            raise self.refused(f"names {name!r}, but {suggest(name, self.words.columns)}")
        return Column(self.words.columns[name])

    def named(self, name: str) -> Number:
        if name in self.parameters:
            return self.parameters[name]
        if name in self.words.columns:
            return self.column(name)
        if name in self.words.formulas:
            return self.formula(name, [])
        raise self.refused(
            f"names {name!r}, which is no column and no formula; "
            f"{suggest(name, [*self.words.columns, *self.words.formulas])}"
        )

    def formula(self, name: str, arguments: Sequence[Number]) -> Number:
        formula = self.words.formulas[name]
        if len(arguments) != len(formula.parameters):
            raise self.refused(
                f"gives {name} {len(arguments)} numbers, and it takes {len(formula.parameters)}."
            )
        given = dict(zip(formula.parameters, arguments, strict=True))
        return replace(self.deeper(), parameters=given).number(formula.body)

    def call(self, name: str, arguments: list[ast.expr]) -> Number:
        if name == "sum":
            return self.total(arguments)
        if name in self.words.formulas:
            return self.formula(name, [self.number(a) for a in arguments])
        if name not in _FUNCTIONS and name not in ("min", "max"):
            known = [*_FUNCTIONS, "min", "max", "sum", *self.words.formulas]
            raise self.refused(f"calls {name!r}, an unknown function; {suggest(name, known)}")
        if len(arguments) != _FUNCTIONS.get(name, len(arguments)) or not arguments:
            raise self.refused(f"gives {name} {len(arguments)} numbers.")
        return self.folded(name, *(self.number(a) for a in arguments))

    def total(self, arguments: list[ast.expr]) -> Number:
        """The sum of all columns whose names a pattern matches, or of the numbers given."""
        found: list[int] = []
        numbers: list[Number] = []
        for node in arguments:
            pattern = getattr(node, "value", None)
            if not isinstance(pattern, str):
                numbers.append(self.number(node))
                continue
            columns = self.words.columns
            matched = [i for name, i in columns.items() if fnmatchcase(name, pattern)]
            if not matched:
                raise self.refused(f"sums {pattern!r}, which matches no column.")
            found += matched
        if len(set(found)) < len(found):
            raise self.refused("sums a column twice.")
        if len(numbers) > DEEPEST:
            raise self.refused(
                f"has too many operations within one another: a sum of more than {DEEPEST} "
                "numbers; name columns by a pattern, such as sum('a_*')."
            )
        parts: list[Number] = [*([Total(tuple(found))] if found else []), *numbers]
        if not parts:
            raise self.refused("sums nothing.")
        whole = parts[0]
        for part in parts[1:]:
            whole = self.folded("+", whole, part)
        return whole


def _ordered(a: Number, b: Number, tolerance: float | None) -> Comparison:
    """`a <= b`; where a is an absolute value and b a number, that is an equality within b."""
    match a, b:
        case Operation(name="abs", arguments=(Operation(name="-", arguments=(left, right)),)), (
            Constant(number=size)
        ) if size >= 0:
            return Comparison(left, "==", right, tolerance, within=size)
    return Comparison(a, "<=", b, tolerance)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
