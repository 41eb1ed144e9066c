"""Operators that are written in terms of others, such as a limit by two ReLUs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from holdfast.bounds.relaxations import (
    GATES,
    Largest,
    Product,
    Rule,
    cells,
    gate,
    slices,
    windows,
)
from holdfast.errors import InputError

aten = torch.ops.aten


@dataclass(frozen=True)
class At:
    """A value that is that of a node."""

    node: int


class Write(Protocol):
    """Appends operators of torch to a graph; a value is an `At`, or a constant."""

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> At: ...

    def rule(self, name: str, rule: Rule, x: At) -> At:
        """An activation."""
        ...

    def shape(self, value: At | Tensor) -> tuple[int, ...]: ...

    def taken(self, x: At, names: Collection[str]) -> tuple[str, At] | None:
        """The name of an activation and what it takes, where it is one of these that gives x."""
        ...

    def lines(self, x: At) -> dict[At, tuple[float, float]]:
        """By the values that x is a line of, each entry of its own one: slope and value at 0."""
        ...


def largest(write: Write, x: At, places: Tensor) -> At:
    """The largest of the entries at each of these places [*shape, window]."""
    flat = write(aten.reshape.default, x, [-1])
    return write.rule("largest", Largest(), write(aten.index.Tensor, flat, [places]))


def maximum(write: Write, a: Any, b: Any) -> At:
    if not isinstance(a, At):
        a, b = b, a
    if not isinstance(b, At) and not torch.as_tensor(b).any():
        return write(aten.relu.default, a)
    return write(aten.add.Tensor, write(aten.relu.default, write(aten.sub.Tensor, a, b)), b)


def minimum(write: Write, a: Any, b: Any) -> At:
    if not isinstance(a, At):
        a, b = b, a
    less = aten.rsub.Tensor if isinstance(b, At | Tensor) else aten.rsub.Scalar
    return write(less, write(aten.relu.default, write(less, a, b)), b)


def limited(write: Write, x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else maximum(write, x, low)
    return x if high is None else minimum(write, x, high)


def hard_sigmoid(write: Write, x: At) -> At:
    return limited(write, write(aten.add.Tensor, write(aten.div.Tensor, x, 6.0), 0.5), 0.0, 1.0)


def product(write: Write, a: At, b: At) -> At:
    """Of two values that both depend on the input."""
    if a == b:
        return write(aten.square.default, a)
    for one, other in ((a, b), (b, a)):
        gated = _gated(write, one, other)
        if gated is not None:
            return write.rule("gate", *gated)
    shape = torch.broadcast_shapes(write.shape(a), write.shape(b))
    a, b = (
        one if write.shape(one) == shape else write(aten.expand.default, one, list(shape))
        for one in (a, b)
    )
    return write.rule("product", Product(), write(aten.stack.default, [a, b], -1))


def _gated(write: Write, a: At, b: At) -> tuple[Rule, At] | None:
    """The rule of x * (outer * f(inner * x) + shift), and x, where that is the product of two
    values: SiLU, or GELU, as formulas."""
    for value, (outer, shift) in write.lines(b).items():
        name, x = write.taken(value, GATES) or ("", value)
        own, given = write.lines(a), write.lines(x)
        for x in own.keys() & given.keys() if name else ():
            (scale, own_at_0), (inner, at_0) = own[x], given[x]
            if own_at_0 == at_0 == 0 and abs(scale) * (abs(outer) + abs(shift)) <= 2 + 1e-6:
                return gate(name, scale * outer, inner, scale * shift), x
    return None


def power(write: Write, x: Any, exponent: Any) -> At:
    if exponent != 2 or not isinstance(x, At):
        raise InputError("not supported: operator pow, but for squares.")
    return write(aten.square.default, x)


def max_pool(write: Write, x: At, *options: Any) -> At:
    return largest(write, x, windows(write.shape(x), *options))


def _first(value: At) -> tuple[At, None]:
    """What an operator gives that also gives places, which are not known."""
    return value, None


def adaptive_max_pool(write: Write, x: At, made: Any) -> tuple[At, None]:
    return _first(largest(write, x, cells(write.shape(x), list(made))))


def maximum_over(write: Write, x: At, axes: Sequence[int] = (), keepdim: bool = False) -> At:
    return largest(write, x, slices(write.shape(x), list(axes), keepdim))


def max_(write: Write, x: Any, *options: Any) -> Any:
    """Of all entries, along an axis, or of two values."""
    if not options:
        return maximum_over(write, x)
    if isinstance(options[0], int):
        return _first(maximum_over(write, x, [options[0]], *options[1:]))
    return maximum(write, x, *options)


def split(write: Write, x: At, sizes: int | Sequence[int], axis: int = 0) -> tuple[At, ...]:
    """Parts of these sizes along an axis."""
    side = write.shape(x)[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, side - first) for first in range(0, side, sizes)]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return tuple(
        write(aten.slice.Tensor, x, axis, end - size, end)
        for end, size in zip(ends, sizes, strict=True)
    )


def chunk(write: Write, x: At, parts: int, axis: int = 0) -> tuple[At, ...]:
    return split(write, x, -(-write.shape(x)[axis] // parts), axis)


def unbind(write: Write, x: At, axis: int = 0) -> tuple[At, ...]:
    return tuple(write(aten.select.int, x, axis, i) for i in range(write.shape(x)[axis]))


def glu(write: Write, x: At, axis: int = -1) -> At:
    a, b = chunk(write, x, 2, axis)
    return product(write, a, write(aten.sigmoid.default, b))


def instance_norm(
    write: Write, x: At, w: Any, b: Any, mean: Any, var: Any, own: bool, *options: Any
) -> At:
    if own:
        raise InputError("not supported: operator instance_norm by the statistics of the input.")
    return write(aten.batch_norm.default, x, w, b, mean, var, False, *options)


FORMS: dict[str, Callable[..., Any]] = {
    "maximum": maximum,
    "minimum": minimum,
    "clamp": limited,
    "clip": limited,
    "clamp_min": maximum,
    "clamp_max": minimum,
    "hardtanh": lambda write, x, low=-1.0, high=1.0: limited(write, x, low, high),
    "relu6": lambda write, x: limited(write, x, 0.0, 6.0),
    "hardsigmoid": hard_sigmoid,
    "pow": power,
    "max_pool1d": max_pool,
    "max_pool2d": max_pool,
    "max_pool3d": max_pool,
    "adaptive_max_pool1d": adaptive_max_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    "adaptive_max_pool3d": adaptive_max_pool,
    "amax": maximum_over,
    "max": max_,
    "split": split,
    "split_with_sizes": split,
    "chunk": chunk,
    "unbind": unbind,
    "glu": glu,
    "instance_norm": instance_norm,
}
