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
from holdfast.bounds.tree_models import ball, trees_of
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

    Cost: one forward a row, seldom more.
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
        trees = trees_of(p.target)
        scale, box = ball(p.target, p.threat)
        limit = legal_size(p.threat, p.target, len(p.x), p.eps.flatten())
        limit[limit >= UNLIMITED] = torch.inf
        d = torch.zeros_like(p.x)
        for i, row in enumerate(p.x.float().cpu().numpy()):
            goal = None if p.goal is None else int(p.goal[i])
            exact(
                trees, row[None], p.y[i : i + 1].cpu().numpy(), partial(self._label, p, d, i),
                box, scale=scale, eps=float(limit[i]), goal=goal, regions=self.steps,
                seconds=np.inf,
            )  # fmt: skip
        p.stop_asking(p.live)
        return d

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        return s

    def _label(self, p: Problem, d: Tensor, i: int, point: np.ndarray) -> np.ndarray:
        """What the model decides for row i at a point [1, f]: the goal, another class than y (-1),
        or y."""
        own = torch.arange(len(d), device=d.device) == i
        d[i] = torch.from_numpy(point[0]).to(d) - p.x[i]
        for _ in range(2):
            if bool(p.adversarial(d, own)[i]):
                return np.array([-1 if p.goal is None else int(p.goal[i])])
            d[i] *= OUTWARDS
        return p.y[i : i + 1].cpu().numpy()
