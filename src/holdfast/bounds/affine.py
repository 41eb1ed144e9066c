"""Affine operators as what they do to coefficients: those on a result become those on its parents.

Coefficients are [p, *shape], or those of a window of it, in float64; in float32 where bounds are
only sought. A window is a slice of each axis after the channels, or () for all; what lies outside
has coefficient 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]
Window = tuple[slice, ...]


class Affine(Protocol):
    """An affine operator of the values of its parents."""

    def needs(self, window: Window) -> tuple[Window, ...]:
        """The window of each parent that a window of the result depends on."""
        ...

    def pull(self, a: Tensor, window: Window, parents: list[Window]) -> tuple[Tensor, ...]:
        """Coefficients on the result, in a window, as those on its parents, in theirs."""
        ...


@dataclass(frozen=True)
class General:
    """Any, by torch's own vector-Jacobian product."""

    value: Callable[..., Tensor]
    shape: Shape
    parents: tuple[Shape, ...]
    dtype: torch.dtype

    def needs(self, window: Window) -> tuple[Window, ...]:
        return ((),) * len(self.parents)

    def pull(self, a: Tensor, window: Window, parents: list[Window]) -> tuple[Tensor, ...]:
        own = whole(a, self.shape, window).to(self.dtype)
        zeros = (own.new_zeros(shape) for shape in self.parents)
        _, pull, *_ = torch.func.vjp(self.value, *zeros)
        return tuple(part.to(a) for part in torch.func.vmap(pull)(own))


@dataclass(frozen=True)
class Reshape:
    """The same entries in the same order."""

    shape: Shape
    parent: Shape

    def needs(self, window: Window) -> tuple[Window, ...]:
        return ((),)

    def pull(self, a: Tensor, window: Window, parents: list[Window]) -> tuple[Tensor, ...]:
        return (whole(a, self.shape, window).reshape(len(a), *self.parent),)


@dataclass(frozen=True)
class Elementwise:
    """Entry by entry: the sum of its parents times scales of their shape."""

    scales: tuple[Tensor, ...]

    def needs(self, window: Window) -> tuple[Window, ...]:
        return (window,) * len(self.scales)

    def pull(self, a: Tensor, window: Window, parents: list[Window]) -> tuple[Tensor, ...]:
        shape = self.scales[0].shape
        made = (a * cropped(scale, window).to(a) for scale in self.scales)
        return tuple(
            part if parent == window else cropped(whole(part, shape, window), parent)
            for part, parent in zip(made, parents, strict=True)
        )


@dataclass(frozen=True)
class Linear:
    """x @ weight.T on the last axis."""

    weight: Tensor
    shape: Shape

    def needs(self, window: Window) -> tuple[Window, ...]:
        return ((),)

    def pull(self, a: Tensor, window: Window, parents: list[Window]) -> tuple[Tensor, ...]:
        return (whole(a, self.shape, window) @ self.weight.to(a),)


@dataclass(frozen=True)
class Convolution:
    """A convolution of 1 to 3 axes."""

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    shape: Shape
    parent: Shape

    def _reads(self, window: Window) -> list[tuple[int, int]]:
        """From where to where along each axis of its parent; its padding lies outside of that."""
        sizes = self.weight.shape[2:]
        options = zip(sides(window, self.shape), self.stride, self.padding, strict=True)
        firsts = [(lo * s - p, (hi - 1) * s - p) for (lo, hi), s, p in options]
        reach = [d * (size - 1) + 1 for d, size in zip(self.dilation, sizes, strict=True)]
        return [(lo, hi + r) for (lo, hi), r in zip(firsts, reach, strict=True)]

    def needs(self, window: Window) -> tuple[Window, ...]:
        ends = zip(self._reads(window), self.parent[2:], strict=True)
        return (tuple(slice(max(lo, 0), min(hi, size)) for (lo, hi), size in ends),)

    def pull(self, a: Tensor, window: Window, parents: list[Window]) -> tuple[Tensor, ...]:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        made = transposed[len(self.stride) - 1](
            a.flatten(0, 1),
            self.weight.to(a),
            None,
            self.stride,
            0,
            0,
            self.groups,
            self.dilation,
        )
        ends = zip(self._reads(window), sides(parents[0], self.parent), strict=True)
        missing = [side for (lo, hi), (q, r) in reversed(list(ends)) for side in (lo - q, r - hi)]
        return (F.pad(made, missing)[:, None],)  # what it reads beyond its parent is cut off


def sides(window: Window, shape: Shape) -> list[tuple[int, int]]:
    """From where to where along each axis."""
    if not window:
        return [(0, size) for size in shape[2:]]
    return [(part.start, part.stop) for part in window]


def hull(one: Window, other: Window) -> Window:
    """The smallest window that holds both."""
    if not one or not other:
        return ()
    pairs = zip(one, other, strict=True)
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)


def size(window: Window, shape: Shape) -> int:
    """Entries of a window."""
    return prod(shape[:2]) * prod(hi - lo for lo, hi in sides(window, shape))


def cropped(value: Tensor, window: Window) -> Tensor:
    return value[(..., *window)] if window else value


def whole(a: Tensor, shape: Shape, window: Window) -> Tensor:
    """Coefficients of a window, as those of all."""
    if not window:
        return a
    ends = zip(sides(window, shape), shape[2:], strict=True)
    around = [side for (lo, hi), size in reversed(list(ends)) for side in (lo, size - hi)]
    return F.pad(a, around)
