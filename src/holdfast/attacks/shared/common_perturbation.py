"""Inputs that are to be fooled by one thing together: what the universal perturbation and the patch
share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.problem import Problem, meets_goal
from holdfast.errors import AccessError, SpecError
from holdfast.rng import Keys
from holdfast.targets.target import Access, Target
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class Fooled:
    """Which inputs an answer for all of them fools the model on."""

    fooled: Tensor  # [n] bool, of the inputs that it was made for
    held_out: Tensor  # [m] bool, of others

    @property
    def rate(self) -> float:
        """The fooling rate on inputs that it was not made for."""
        return float(self.held_out.double().mean())


class InputSet:
    """Inputs with the model's own decisions on them; with a goal, those that are not of that class
    already."""

    def __init__(self, target: Target, x: Tensor, threat: Threat) -> None:
        target.bind(tuple(x.shape[1:]))
        if target.access < Access.GRADIENTS:
            raise AccessError(
                "one answer for all inputs asks for GRADIENTS; the target gives "
                f"{target.access.name}."
            )
        if target.inputs.context:
            raise SpecError(
                "one answer for all inputs is searched in the whole input, and this target holds a "
                "part."
            )
        self.target, self.threat = target, threat
        x = target.batcher.place(x)
        y = self._decide(x)
        keep = (y >= 0) & ~meets_goal(threat, y, y)
        self.x, self.y = x[keep], y[keep]

    def drawn(self, rows: int, seed: int, *noise: str | int) -> Tensor:
        """The places of some inputs, others for each name of `noise`."""
        keys = Keys.of(seed, torch.zeros(1, dtype=torch.int64, device=self.x.device)).fold(*noise)
        return keys.uniform((len(self.x),), torch.float64)[0].argsort()[:rows]

    def problem(self, at: Tensor) -> Problem:
        """The search for the inputs at these places."""
        return Problem(self.target, self.x[at], self.y[at], self.threat, Keys.of(0, at), stop=False)

    def fooled(self, changed: Tensor) -> Tensor:
        """Which inputs fool the model when they are changed to these: [n] bool."""
        return meets_goal(self.threat, self._decide(changed), self.y)

    def _decide(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros(0).long()
        return self.target.batcher.in_parts(self.target.labels, x)


def slope(p: Problem, points: Tensor) -> Tensor:
    """The gradient at points near p's inputs, [n, *shape], of their margin, or of how far the goal
    leads."""
    return p.gradient(points - p.x, "margin")[1]


def check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SpecError(f"{name} is {count}, but at least 1 is needed.")
