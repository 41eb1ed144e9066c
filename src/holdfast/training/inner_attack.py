"""What objectives and regularisers find points with: attacks on the network as it is now, and keyed
noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.attack import Attack, perturb
from holdfast.attacks.problem import Problem
from holdfast.bounds.graph import Program
from holdfast.rng import Keys
from holdfast.targets import Target, TorchTarget
from holdfast.targets.batch import Rows
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class AttackNetwork:
    """A network that makes adversarial points and is trained in turns with the model, and its
    optimiser."""

    net: nn.Module
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True)
class InnerAttack:
    """Calls run an attack's rule on rows: x [n, *shape], y [n] to points close to x.

    The network is in eval mode meanwhile, so that the search does not change its batch norms.
    """

    live: TorchTarget  # around the network that is trained
    given: Target  # the network as it was given
    threat: Threat  # at the eps that is trained against now
    seed: int  # of this step's noise
    share: float = 1.0  # of the whole eps that the threat has reached
    start: int = 0  # the place in its step of the first row: a row's noise depends on its place
    attack_network: AttackNetwork | None = None  # where the objective trains one
    program: Program | None = None  # of the network, where the objective bounds it

    def __call__(
        self,
        attack: Attack,
        x: Rows,
        y: Tensor,
        threat: Threat | None = None,
        on: Target | None = None,
        among: Tensor | None = None,
    ) -> Tensor:
        """Under another threat, `on` another target, of the rows at these places `among` the batch
        ([n], from 0), where given."""
        ids = self.start + (torch.arange(len(y), device=y.device) if among is None else among)
        with evaluating(self.live.model):
            return perturb(
                attack, on or self.live, x, y, threat or self.threat, ids=ids, seed=self.seed
            )

    def threats(self, also: Sequence[Threat]) -> list[Threat]:
        """The threat, and others that have reached the same share of theirs, of the same table."""
        at = [float(other.eps) * self.share for other in also]
        schema = self.threat.schema
        return [
            self.threat,
            *(replace(other, eps=eps, schema=schema) for other, eps in zip(also, at, strict=True)),
        ]

    def worst(self, points: list[Tensor], y: Tensor) -> Tensor:
        """Of several points a row, each [n, *shape], the one where the cross-entropy is highest."""
        with evaluating(self.live.model), torch.no_grad():
            losses = [
                F.cross_entropy(
                    self.live.batcher.in_parts(self.live.scores, at), y, reduction="none"
                )
                for at in points
            ]
        return torch.stack(points)[
            torch.stack(losses).argmax(0), torch.arange(len(y), device=y.device)
        ]

    def keys(self, x: Tensor, name: str) -> Keys:
        """Random keys of the rows; each name gives an independent draw."""
        return Keys.of(self.seed, self.start + torch.arange(len(x), device=x.device)).fold(name)

    def around(self, x: Tensor, name: str) -> Tensor:
        """Points uniform in the ball, drawn into the box."""
        p = self.problem(x)
        return self._legal(x, p, p.eps * p.norm.sample(self.keys(x, name), p.x))

    def ascend(self, x: Tensor, point: Tensor, g: Tensor, step_size: float) -> Tensor:
        """One step of this share of eps from a `point` close to x along the gradient g there, all
        [n, *shape]."""
        p, point = self.problem(x), self.threat.located(x, point)
        g = self.threat.pullback(x, point, g)
        return self._legal(x, p, point - p.x + p.stride(g, step_size))

    def aligned(self, x: Tensor, y: Tensor) -> Tensor:
        """The cosine between the gradients of the cross-entropy at x and at points uniform in the
        ball: [n]."""
        p = self.problem(x, y)
        with evaluating(self.live.model), torch.no_grad():
            _, here = p.gradient(torch.zeros_like(p.x), "ce")
            _, there = p.gradient(p.random_start(), "ce")
        return F.cosine_similarity(here.flatten(1), there.flatten(1))

    def problem(self, x: Tensor, y: Tensor | None = None) -> Problem:
        """The search for points close to x, [n, *shape], of labels y [n]."""
        if y is None:
            y = x.new_zeros(len(x), dtype=torch.int64)
        return Problem(self.live, x, y, self.threat, self.keys(x, "geometry"))

    def _legal(self, x: Tensor, p: Problem, d: Tensor) -> Tensor:
        return self.threat.apply(x, p.points(p.project(d)))


@contextmanager
def evaluating(net: object) -> Iterator[None]:
    """Eval mode, each module's own flag restored afterwards."""
    assert isinstance(net, nn.Module)
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
