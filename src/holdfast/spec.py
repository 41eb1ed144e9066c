"""The constructor-call language: `apgd(steps=100, loss="dlr")`.

What a user types, what a protocol holds, what the manifest stores and what `repr` prints are one
text. It is read over `ast` as literals and arithmetic only; nothing in it is ever evaluated as
code.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from holdfast.errors import SpecError, suggest

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_NUMBERS = {"inf": math.inf, "nan": math.nan}
_LARGEST = 2**63 - 1  # what a tensor and a file of rows hold
_EXAMPLES = {  # of each kind, for a message about a text that is no call
    "norm": "linf(8/255)",
    "movement": "rotation(30, 3)",
    "preprocessing": "normalize(0.5, 0.5)",
    "task": "regression(tolerance=0.1)",
    "recipe": "standard(epochs=20)",
    "objective": "trades(beta=6)",
    "regularizer": "gradalign(weight=0.2)",
    "augmentation": "flip()",
    "poison": "badnets(share=0.1)",
    "smoothing": "gaussian(0.25)",
    "model": "gan(steps=2000)",
}


# of a field's values, by the type that it declares: what they are, and what that is called
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "str": (str, "a text"),
    "bool": (bool, "True or False"),
    "tuple": (tuple, "a list"),
}
_LIMITS: dict[str, Callable[[Any, Any], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


def option(
    default: Any,
    text: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Iterable[str] = (),
    finite: bool = True,
) -> Any:
    """A field of a dataclass that a spec can set: its default, what it is in one line of text, and
    what `check` takes for it.

    Args:
        choices: the texts that it may be; none: any.
        finite: whether infinity is refused.
    """
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    limits = {word: limit for word, limit in limits.items() if limit is not None}
    metadata = {"help": text, "limits": limits, "choices": tuple(choices), "finite": finite}
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """A dataclass whose fields are its options, and which only stores them; its text is its spec.

    A class may give options that it inherits defaults of its own: `class Fast(Base, steps=2)`.
    """

    def __init_subclass__(cls, **defaults: Any) -> None:
        cls.__repr__ = Options.__repr__  # or dataclass would write its own
        inherited = getattr(cls, "__dataclass_fields__", {})
        for name, value in defaults.items():
            field = copy.copy(inherited[name])
            field.default = value
            cls.__annotations__[name] = field.type
            setattr(cls, name, field)

    def __post_init__(self) -> None:
        check(self)

    def __repr__(self) -> str:
        return write(self)


def check(item: Any) -> None:
    """Hold the fields of a dataclass instance against their types, limits and choices.

    A field that is no `option` has a type alone; NaN fits none.

    Raises:
        SpecError: a value does not fit.
    """
    for field in dataclasses.fields(item):
        value, choices = getattr(item, field.name), field.metadata.get("choices")
        if not _fits(field, value):
            name = type(item).__name__.lower()
            raise SpecError(f"{name} has {field.name}={value!r}, but it must be {expected(field)}.")
        if choices and value not in choices:
            raise SpecError(
                f"unknown {field.name} {value!r} in {write(item)}; {suggest(value, choices)}"
            )


def limits(field: dataclasses.Field[Any]) -> str:
    """What values an option takes, as text: `above 0 and at most 1`, or its choices; "" for any."""
    choices = field.metadata.get("choices", ())
    bounds = field.metadata.get("limits", {})
    return ", ".join(choices) or " and ".join(f"{w} {number(limit)}" for w, limit in bounds.items())


def _fits(field: dataclasses.Field[Any], value: Any) -> bool:
    if (name := _type(field)) not in _TYPES:
        return True
    if not isinstance(value, _TYPES[name][0]) or isinstance(value, bool) != (name == "bool"):
        return False
    finite = field.metadata.get("finite", True)
    if isinstance(value, float) and (math.isnan(value) or (finite and math.isinf(value))):
        return False
    bounds = field.metadata.get("limits", {})
    return all(_LIMITS[word](value, limit) for word, limit in bounds.items())


def expected(field: dataclasses.Field[Any]) -> str:
    """What a value of the field must be, with its help; of a type of its own, its help alone."""
    kind, text = _type(field), field.metadata.get("help", "")
    if kind not in _TYPES:
        return text
    words = _TYPES[kind][1]
    if field.metadata.get("choices"):
        words = "one of"
    elif kind == "float" and field.metadata.get("finite", True):
        words = "a finite number"
    return " ".join(filter(None, [words, limits(field), text and f"({text})"]))


def _type(field: dataclasses.Field[Any]) -> str:
    """The name of the type that a field declares, without its parameters."""
    return getattr(field.type, "__name__", str(field.type)).partition("[")[0]


def call(text: str, kind: str = "attack") -> tuple[str, list[Any], dict[str, Any]]:
    """Split `name(1, key=2)` into its name, positional and keyword values; a bare `name` is
    `name()`.

    `kind` is the word for what was asked for; a message gives an example of it.

    Raises:
        SpecError: `text` is not one constructor call of literals.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(_unreadable(text, kind)) from None
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise SpecError(_unreadable(text, kind))
    if any(k.arg is None for k in node.keywords):
        raise SpecError(f"cannot read {text!r}; ** is not allowed in a spec.")
    names = [str(k.arg) for k in node.keywords]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"{text!r} gives {' and '.join(twice)} twice; give each option once.")
    values = [_value(a, text) for a in node.args]
    return node.func.id, values, {str(k.arg): _value(k.value, text) for k in node.keywords}


def parts(text: str) -> list[str]:
    """The calls of a list such as `linf(0.3), l2(2)`, each as text; of an empty one, none.

    Raises:
        SpecError: `text` is no such list.
    """
    try:
        nodes = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = None
    if not isinstance(nodes, ast.List):
        raise SpecError(
            f"cannot read {text!r}; expected calls with commas between them, such as linf(0.3), "
            "l2(2)."
        )
    return [ast.unparse(node) for node in nodes.elts]


def build(text: str, makers: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    """The object that `text` spells, made by the maker of that name.

    Args:
        text: a constructor call, for example `linf(8/255)`.
        makers: constructors by lower-case name.
        kind: the word for these objects in messages ("attack", "norm").

    Raises:
        SpecError: unknown name or option (with the nearest known ones), or a value that the maker
            refuses.
    """
    name, args, options = call(text, kind)
    if (maker := makers.get(name.lower())) is None:
        raise SpecError(f"unknown {kind} {name!r} in {text!r}; {suggest(name, makers)}")
    signature = inspect.signature(maker)
    for option in options:
        if option not in signature.parameters:
            raise SpecError(
                f"{name} has no option {option!r}; {suggest(option, signature.parameters)}"
            )
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        said = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        form = f"{name}{inspect.Signature(said)}"
        raise SpecError(f"cannot make {text!r}: {error}; it is {form}.") from None
    try:
        return maker(*args, **options)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SpecError(f"cannot make {text!r}: {error}.") from None


def write(
    item: Any, *, whole: bool = False, name: str = "", usual: Mapping[str, Any] | None = None
) -> str:
    """The spec of a dataclass instance: the fields that differ from their defaults, or all of
    them; in the order of its signature.

    Args:
        name: in place of the class's.
        usual: defaults that go with this name.
    """
    usual = usual or {}
    shown = []
    for field in sorted(dataclasses.fields(item), key=lambda field: bool(field.kw_only)):
        value = getattr(item, field.name)
        if field.repr and (whole or value != usual.get(field.name, field.default)):
            shown.append(
                f"{field.name}={number(value) if isinstance(value, float) else repr(value)}"
            )
    return f"{name or type(item).__name__.lower()}({', '.join(shown)})"


def number(value: float) -> str:
    """The shortest exact text of a float: 8/255 rather than 0.03137254901960784."""
    if not math.isfinite(value):
        return str(value)
    value += 0.0  # -0 is 0
    decimal = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    fraction = Fraction(value).limit_denominator(4096)
    exact = fraction.numerator / fraction.denominator == value
    return str(fraction) if exact and len(decimal) > 8 else decimal


def _unreadable(text: str, kind: str) -> str:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    article = "an" if kind[0] in "aeiou" else "a"
    what = {"norm": "a threat"}.get(kind, f"{article} {kind}")
    return (
        f"cannot read {shown!r} as {what}; expected a call such as "
        f"{_EXAMPLES.get(kind, 'pgd(steps=40)')}."
    )


def _value(node: ast.expr, text: str) -> Any:
    value = _value_of(node, text)
    if not isinstance(value, int) or abs(value) <= _LARGEST:
        return value
    try:
        return float(value)  # no longer a count, but a size may be so large
    except OverflowError:
        raise SpecError(f"a number in {text[:80]!r} is too large.") from None


def _value_of(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and (
        node.value is None or isinstance(node.value, (bool, int, float, str))
    ):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(item, text) for item in node.elts)
    if isinstance(node, ast.Name) and node.id in _NUMBERS:
        return _NUMBERS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _value(node.operand, text)
        if isinstance(inner, (int, float)):
            return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            try:
                return _ARITHMETIC[type(node.op)](left, right)
            except ArithmeticError:
                raise SpecError(f"cannot compute {ast.unparse(node)} in {text!r}.") from None
    hint = f'; write "{node.id}" if a name was meant' if isinstance(node, ast.Name) else ""
    raise SpecError(f"{ast.unparse(node)} in {text!r} is not a number, text or list{hint}.")
