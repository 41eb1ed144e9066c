"""What random searches share: they propose a point, and keep it where the margin rises."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem, wide

# of 10,000 queries: after each the share halves
_MARKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Best(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its margin, [n]


def begin(p: Problem, d: Tensor) -> Best:
    """A search from d. One forward a row."""
    return Best(d, p.value(d, "margin"))


def keep_better(p: Problem, s: Any, d: Tensor) -> Any:
    """The state with d and its margin in place of its own, in the rows where d is better.

    One forward a row. The state is a named tuple with the fields of `Best`.
    """
    return better(s, d, p.value(d, "margin"))


def better(s: Any, d: Tensor, value: Tensor) -> Any:
    """The same where the margin at d is known."""
    up = value > s.value
    return s._replace(d=torch.where(wide(up, d), d, s.d), value=torch.where(up, value, s.value))


def halved(share: float, t: int, schedule: int) -> float:
    """What is left of a first share at step t, where it halves nine times in so many queries
    (arXiv:1912.00049)."""
    return share / 2 ** sum(int(t / schedule * 10000) > mark for mark in _MARKS)
