"""The class that each row must be driven to, where the threat gives rows goals of their own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.errors import InputError, SpecError
from holdfast.rng import Keys
from holdfast.targets.target import Access, Target
from holdfast.threats.threat import Targeted, Threat


def differ(threat: Threat) -> bool:
    """Whether rows have goals of their own."""
    return isinstance(threat.goal, Targeted) and not isinstance(threat.goal.t, int)


def resolved(
    threat: Threat, y: Tensor, ids: Tensor, scores: Tensor | None, k: int, seed: int
) -> Threat:
    """The threat of these rows: of classes y [n] among k, ids [n] and clean scores [n, k']
    (least-likely needs them).

    A row's goal depends on the row alone. Where one class is given for each row of the data, ids
    say which.
    """
    if not isinstance(threat.goal, Targeted) or isinstance(threat.goal.t, int):
        return threat
    rule = threat.goal.t
    if isinstance(rule, Tensor):
        goal = rule[ids.to(rule.device)]
    elif rule == "random":
        goal = Keys.of(seed, ids).fold("target").integers(k - 1).to(y.device)
        goal = goal + (goal >= y)
    else:
        assert scores is not None  # `check` refused a target without
        own = torch.arange(k, device=scores.device) == y.to(scores.device)[:, None]
        goal = scores[:, :k].masked_fill(own, torch.inf).nan_to_num(nan=torch.inf).argmin(1)
    return replace(threat, goal=Targeted(goal.to(torch.int64).to(y.device)))


def check(threat: Threat, target: Target, rows: int, name: str) -> None:
    """Refuse a goal that these rows of the data called `name` cannot have.

    Raises:
        InputError: there is not one class for each row.
        SpecError: a class that the model does not know, or a rule that needs scores.
    """
    threat.check_classes(target.task.k)
    if not isinstance(threat.goal, Targeted):
        return
    if isinstance(threat.goal.t, Tensor) and len(threat.goal.t) != rows:
        raise InputError(
            f"the target holds {len(threat.goal.t)} classes, but {name} has {rows} rows; give one "
            "a row."
        )
    if (
        isinstance(threat.goal.t, str)
        and threat.goal.t == "least-likely"
        and target.access < Access.SCORES
    ):
        raise SpecError(
            "the least likely class is that of the lowest score, but the model gives labels; try "
            "random."
        )
