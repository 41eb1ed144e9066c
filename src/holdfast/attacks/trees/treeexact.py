"""The nearest example of an ensemble of trees, found by its leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.problem import legal_size
from holdfast.attacks.result import UNLIMITED
from holdfast.bounds.tree_models import changes, follows, trees_of
from holdfast.bounds.trees import exact

# by how much a point is moved away from x where it was rounded to the wrong side of a split
OUTWARDS = 1 + 2.0**-21


@dataclass(frozen=True)
class TreeExact(Attack):
    """The exact smallest change that an ensemble of trees decides wrongly (the problem of
    Kantchelian et al. 2016, arXiv:1509.07892).

    It opens the nearest region of the input space first. Where the leaves that favour another class
    most meet, they hold the nearest example; else the region is cut in two. A search that needs no
    more than its steps is exact: it finds the smallest example, or there is none within eps.

    Under a schema it is exact for scales, bounds, whole numbers, values, and what may change. Where
    there are groups, relations or derived features it searches without them, and the model is asked
    about the repaired point: the search goes on where that is decided rightly, and is not exact.

    Cost: one forward a row, seldom more; under groups and relations one for each point tried.
    Differs from the paper: best first, not by a mixed-integer program.
    """

    needs = Access.LABELS
    of_trees = True
    norms = frozenset({"linf"})
    bounded = False
    random = False

    steps: int = option(
        2000, "regions of the input space that a row's search opens before it only descends"
    )

    @property
    def expected_passes(self) -> float:
        return 1

    def start(self, p: Problem) -> Tensor:
        """All of the search; none of its steps depends on another row."""
        trees, rows = trees_of(p.target), p.rows.float()
        limit = legal_size(p.threat, p.target, len(rows), p.eps.flatten())
        limit[limit >= UNLIMITED] = torch.inf
        d = torch.zeros_like(p.x)
        exact(
            trees,
            rows.cpu().numpy(),
            p.y.cpu().numpy(),
            partial(self._labels, p, d),
            **changes(p.target, p.threat, rows),
            eps=limit.cpu().numpy(),
            goal=None if p.goal is None else p.goal.cpu().numpy(),
            seconds=np.inf,
            regions=self.steps,
            repaired=not follows(p.threat.schema),
        )
        p.stop_asking(p.live)
        return d

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        return s

    def _labels(self, p: Problem, d: Tensor, points: np.ndarray, at: np.ndarray) -> np.ndarray:
        """What the model decides for points [m, f] of rows [m]: the goal, another class than y
        (-1), or y."""
        rows = torch.from_numpy(at).to(d.device)
        d[rows] = p.threat.located(p.x, torch.from_numpy(points).to(d)) - p.x[rows]
        asked = torch.zeros(len(d), dtype=torch.bool, device=d.device)
        asked[rows] = True
        met = p.adversarial(d, asked)
        if follows(p.threat.schema) and bool((again := asked & ~met).any()):
            d[again] *= OUTWARDS
            met |= p.adversarial(d, again)
        wrong = -1 if p.goal is None else p.goal
        return torch.where(met, wrong, p.y)[rows].cpu().numpy()
