"""When Auto-PGD and its kin check their progress, and whose step they halve (arXiv:2003.01690,
section 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def checkpoints(steps: int) -> list[int]:
    """Steps after which progress is checked, after a leading 0: 0, 22, 41, 57, ... of 100."""
    window, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks = [0]
    while marks[-1] + window <= steps:
        marks.append(marks[-1] + window)
        window = max(window - shrink, least)
    return marks


def check(s: Any, steps: int, t: int, rho: float) -> tuple[Tensor | None, Any]:
    """Which rows halve their step after step t ([n] bool; None: no checkpoint), and the state with
    its books renewed.

    The state's books: `rises` counts the steps since the last checkpoint that raised the loss,
    `best_value` is the best loss, `checked` that at the last checkpoint, `halved` whether it halved
    the step, `size` the step.
    """
    marks = checkpoints(steps)
    if t + 1 not in marks:
        return None, s
    window = t + 1 - marks[marks.index(t + 1) - 1]
    halve = (s.rises <= rho * window) | ~s.halved & (s.checked >= s.best_value)
    size = s.size.where(~halve, s.size / 2)
    return halve, s._replace(checked=s.best_value, rises=s.rises * 0, halved=halve, size=size)
