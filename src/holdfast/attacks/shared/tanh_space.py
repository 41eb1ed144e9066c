"""Adam on a size plus c times the margin, in a space without a box: tanh maps it onto the box
(Carlini and Wagner 2017, arXiv:1608.04644, section V-B)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem, wide

_EDGE = 0.9  # the box's edges lie at tanh = ±0.9, where the slope is a fifth of the middle's


class Descent(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    w: Tensor  # the same in tanh space
    mean: Tensor  # of the gradient there
    square: Tensor  # of its square
    age: Tensor  # steps since this search began, [n]
    c: Tensor  # weight of the margin, [n]
    unit: Tensor  # the clean margin, [n]; 0 until it is asked


def begin(p: Problem, c: float) -> Descent:
    """A descent that begins at x."""
    d = torch.zeros_like(p.x)
    none = torch.zeros_like(p.eps.flatten())
    w = (_EDGE * (-2 * p.lo / p.width - 1)).atanh()
    return Descent(d, w, mean=d, square=d, age=none, c=none + c, unit=none)


def margin(p: Problem, s: Descent, t: int) -> tuple[Tensor, Tensor, Descent]:
    """The margin below the goal (above 0: met), its gradient, and the descent that knows the
    clean one."""
    gap, g = p.gradient(s.d, "margin")
    return gap, g, s if t else s._replace(unit=gap.abs())  # the first question is about x


def hinge(p: Problem, s: Descent, gap: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """c max(margin, 0) in clean margins, and its gradient in widths."""
    pull = torch.where(gap < 0, s.c / torch.where(s.unit > 0, s.unit, 1), 0)
    return -pull * gap, -wide(pull, g) * g * p.width


def descend(p: Problem, s: Descent, g: Tensor, rate: float, over: Tensor, most: Tensor) -> Descent:
    """One step of Adam, of at most this size, against the gradient g by d / width.

    It forgets its past where a search is over.
    """
    bend = (1 - s.w.tanh().square()) / (2 * _EDGE)
    g = g * bend
    age = s.age + 1
    mean, square = 0.9 * s.mean + 0.1 * g, 0.999 * s.square + 0.001 * g.square()
    step = (
        rate * (mean / wide(1 - 0.9**age, g)) / ((square / wide(1 - 0.999**age, g)).sqrt() + 1e-8)
    )
    length = p.norm.size(step * bend) * p.width
    step = step * wide(torch.where(length > most, most / length, 1), step)
    far = math.atanh(_EDGE)
    w = (s.w - step).clamp(-far, far)
    again = wide(over, w)
    return s._replace(
        d=(p.lo + (p.hi - p.lo) * (w.tanh() / _EDGE + 1) / 2).clamp(p.lo, p.hi),
        w=w,
        mean=torch.where(again, 0, mean),
        square=torch.where(again, 0, square),
        age=torch.where(over, 0, age),
    )
