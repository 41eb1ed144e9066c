"""The books of one run: per row the best adversarial point, its size, the costs and how it ended.

The only mutable object of a search. Rows are those that `run` was given, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor


class Outcome(IntEnum):
    """How a row's search ended."""

    SURVIVED = 0  # all steps done, nothing found
    BROKEN = 1  # a legal point meets the goal
    FAILED = 2  # the model gave non-finite scores or gradients
    SPENT = 3  # the budget ended the search


@dataclass
class Ledger:
    """Columns of n rows."""

    size: Tensor  # [n] float64: the smallest perturbation that met the goal; inf if none
    best: Tensor  # [n, *shape]: the input at it; if none, the legal one of the lowest margin (from labels: the last)
    limit: Tensor  # [n] float64: the largest legal size
    margin: Tensor  # [n] float64: the lowest margin at a legal point (NaN for a target that gives labels)
    outcome: Tensor  # [n] int8
    queries: Tensor  # [n] int64: points asked about
    forwards: Tensor  # [n] int64: model passes, more than queries where one question costs several
    backwards: Tensor  # [n] int64
    dull: Tensor  # [n] int64: gradients that were exactly zero

    @staticmethod
    def open(x: Tensor, limit: Tensor) -> Ledger:
        """Empty books for rows x."""
        count = [torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(4)]
        far = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        outcome = torch.zeros(len(x), dtype=torch.int8, device=x.device)
        return Ledger(far, x.clone(), limit, far.clone(), outcome, *count)

    @property
    def broken(self) -> Tensor:
        return self.size <= self.limit

    def charge(
        self,
        rows: Tensor,
        *,
        queries: int | Tensor = 0,
        forwards: int | Tensor = 0,
        backwards: int = 0,
    ) -> None:
        for column, cost in (
            (self.queries, queries),
            (self.forwards, forwards),
            (self.backwards, backwards),
        ):
            if isinstance(cost, Tensor) or cost:
                column[rows] += cost

    def record(self, rows: Tensor, x: Tensor, size: Tensor) -> None:
        """Points x that met the goal, at these sizes; kept where smaller than what is known."""
        better = (size < self.size[rows]).nonzero()[:, 0]
        at = rows[better]
        self.size[at] = size[better]
        self.best[at] = x[better]
        self.outcome[rows[size <= self.limit[rows]]] = Outcome.BROKEN

    def end(self, rows: Tensor, outcome: Outcome) -> None:
        self.outcome[rows[self.outcome[rows] == Outcome.SURVIVED]] = outcome

    def columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
