"""Other sources of gradients, for models whose own gradient misleads. The model itself still
judges."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch

from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Pool
from holdfast.attacks.shared.pool import ROWS, spread
from holdfast.data import Source
from holdfast.errors import SpecError
from holdfast.runs.manifest import Costs
from holdfast.targets.frameworks.pytorch.bpda import hard_steps, with_bpda
from holdfast.targets.surrogate import distil
from holdfast.targets.target import Access, Target, sealed
from holdfast.targets.wrappers import Estimated, SmoothedGradient, Surrogate
from holdfast.threats.threat import Threat

SHOWN = 512  # rows of the source that a surrogate learns from; it sees no labels
LOOKED = 8  # rows, evenly spread, at which there has to be a gradient, if one is to be smoothed
TINY = 1e-4  # of the range of the inputs: how near to them scores are compared
QUERIES = 2048  # that it may put to the model, and how many of them for each of these rows
EACH = 32


@dataclass
class GradientSources:
    """The sources of gradients for one target under one threat, each made when first asked for."""

    target: Target
    threat: Threat
    source: Source
    pool: Pool | None = None  # images that an attacker holds; None: some of the source's rows
    made: dict[str, Target] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)  # of finding out which of them there are

    def __call__(self, name: str) -> Target:
        """The target to attack in the place of the model.

        Raises:
            SpecError: this model has no such source.
        """
        if not name:
            return self.target
        if name not in self.made:
            self.made[name] = getattr(self, f"_{name}")()
        return self.made[name]

    def images(self, attack: Attack) -> Pool | None:
        """What an attack that mixes images in takes them from: the same ones whichever rows are
        measured."""
        if attack.mixes and self.pool is None:
            batch, y = spread(self.source, ROWS)
            self.pool = batch.x, y
        return self.pool

    def has(self, name: str) -> bool:
        """Whether the target has this source."""
        if name == "bpda":
            return with_bpda(self.target) is not None
        if name == "smoothed" and (self.threat.spatial is not None or not self._has_gradient):
            return False
        if name == "surrogate" and self.target.inputs.context:
            return False
        return self.target.access >= {"smoothed": Access.GRADIENTS, "estimated": Access.SCORES}.get(
            name, Access.LABELS
        )

    @functools.cached_property
    def steps(self) -> str:
        """What steps without a gradient do to a torch model, which `bpda` goes straight through.

        `flat`: next to most inputs its scores do not change at all; `hidden`: they do, but it has
        no gradient; else nothing.
        """
        if self.target.inputs.context or not self.has("bpda"):
            return ""
        x = self.target.batcher.place(spread(self.source, LOOKED)[0])
        if not hard_steps(self.target, x[:1]):
            return ""
        self._pay(2)
        close = TINY * (self.target.bounds.high - self.target.bounds.low)
        with sealed(0):
            slight = self.target.bounds.clamp(x.x + close * torch.randn_like(x.x).sign())
            z, other = (self.target.scores(x.with_x(point)) for point in (x.x, slight))
        if int((z == other).all(1).sum()) > len(z) / 2:
            return "flat"
        return "" if self._has_gradient else "hidden"

    def _pay(self, forwards: int) -> None:
        """Count so many forwards of the rows that are looked at."""
        passes = forwards * min(LOOKED, len(self.source)) * self.target.cost.forwards
        self.costs.forwards += passes
        self.costs.queries += passes

    @functools.cached_property
    def _has_gradient(self) -> bool:
        """Whether the model has a gradient at all: the mean of zeros is zero."""
        if self.target.access < Access.GRADIENTS:
            return False
        x = spread(self.source, LOOKED)[0]
        passes, estimated = len(x) * self.target.cost.forwards, len(x) * self.target.cost.pullback
        self.costs.forwards += passes + estimated
        self.costs.queries += passes + estimated
        self.costs.backwards += passes * (not estimated)
        with sealed(0):
            z, pull = self.target.linearize(self.target.batcher.place(x))
            return bool((pull(torch.randn_like(z)) != 0).any())

    def _bpda(self) -> Target:
        if (bpda := with_bpda(self.target)) is None:
            raise SpecError("gradient='bpda' needs a model of torch; try gradient='estimated'.")
        return bpda

    def _smoothed(self) -> Target:
        if self.target.access < Access.GRADIENTS:
            raise SpecError("gradient='smoothed' needs gradients; try gradient='estimated'.")
        if self.threat.spatial is not None:
            raise SpecError(
                "gradient='smoothed' averages over a ball of inputs, and a movement has none."
            )
        return SmoothedGradient(self.target, self.threat.norm, float(self.threat.eps) / 2)

    def _estimated(self) -> Target:
        return Estimated(self.target, sigma=0.05)

    def _surrogate(self) -> Target:
        if self.target.inputs.context:
            raise SpecError(
                "gradient='surrogate' learns from inputs alone, and to these more belongs: "
                f"{', '.join(self.target.inputs.context)}."
            )
        x = torch.from_numpy(self.source.rows(0, min(SHOWN, len(self.source)))[0])
        return Surrogate(
            self.target,
            distil(
                self.target,
                x.to(self.target.batcher.dtype),
                queries=min(QUERIES, EACH * len(x)),
                epochs=8,
            ),
        )
