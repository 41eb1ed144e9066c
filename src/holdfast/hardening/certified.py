"""Objectives for networks that are to be proved robust: they pay for lower bounds of the margins
over all that the threat allows.

Below, B is the cross-entropy of the scores that the bounds leave possible: 0 of the true class, and
of each other one the bound of its margin, negated. Margins are folded into the last affine layers.
Batch norms normalise bounds by the mean and variance of the points x' (Shi et al. 2021,
arXiv:2102.06700).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.bounds.differentiable import margins_by, rows_of, statistics
from holdfast.bounds.graph import Program, unsupported
from holdfast.bounds.margins import check_no_schema, check_threat, region
from holdfast.bounds.propagate import Rows
from holdfast.errors import InputError, SpecError, listed
from holdfast.spec import option
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Threat
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.objective import Net, Objective

AT_ONCE = 128  # rows held out that are bounded together


class Bounding(Objective):
    """One that pays for bounds. Where a subclass says no more, x' is x."""

    steps: int = 0
    smoothing = 0.0
    reach: float  # of the bounds, multiples of eps

    @property
    def passes(self) -> int:
        return 6  # a centre, a radius, and x itself

    def program(self, target: TorchTarget, threat: Threat) -> Program:
        check_threat(threat)
        check_no_schema(threat)
        if not threat.norm.boxed:
            raise SpecError(
                f"{self!r} bounds every input by itself, so the threat is to be linf, and not "
                f"{threat}, whose ball is far smaller than the box around it."
            )
        if not isinstance(target.model, nn.Module):
            raise InputError(
                f"{self!r} bounds a network of torch, but the model is a {target.name}."
            )
        assert target.shape is not None
        example = target.batcher.place(torch.zeros(1, *target.shape))
        program = Program.of(target.network(), example)
        program.graph()  # refuses operators without bounds
        own = {f"model.{name}" for name, _ in target.model.named_parameters(remove_duplicate=False)}
        if others := program.parameters - own:
            raise unsupported(f"training by bounds of a network with {listed(sorted(others), 3)}")
        return program

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return x

    def proved(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        """By the larger of the bounds by intervals and by lines."""
        found = []
        for part, own in zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True):
            rows = self.rows(inner, part, own, {}, 1.0)
            lower = torch.maximum(margins_by(rows, lines=False), margins_by(rows, lines=True))
            found.append((lower.scatter(1, own[:, None], torch.inf) > 0).all(1))
        return torch.cat(found)

    def rows(
        self, inner: InnerAttack, x: Tensor, y: Tensor, others: dict[str, Tensor], reach: float
    ) -> Rows:
        """Intervals in the network as it is now, of so many times eps around rows."""
        assert inner.program is not None
        assert isinstance(inner.live.model, nn.Module)
        around = region(x, inner.threat.at(reach * float(inner.threat.eps)), inner.live.bounds)
        return rows_of(inner.program, inner.live.model, around, y, others)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert net.inner is not None
        assert isinstance(net.inner.live.model, nn.Module)
        with statistics(net.inner.live.model) as others:
            z = net(x_adv)
        lower = self.lower(self.rows(net.inner, x, y, others, self.reach), net.inner.share)
        return self.priced(F.cross_entropy(-lower, y, reduction="none"), z, y), z

    def lower(self, rows: Rows, share: float) -> Tensor:
        """Below the margins of rows, where the threat has reached this share of its eps: [n, k], 0
        for the true class."""
        return margins_by(rows, lines=False)

    @abstractmethod
    def priced(self, bounded: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """The loss of rows [n], from B and the scores z [n, k] at x'."""


@dataclass(frozen=True)
class IBP(Bounding):
    """B by intervals (IBP: Gowal et al. 2018, arXiv:1810.12715)."""

    reach: float = option(1.0, "of the bounds, multiples of eps", above=0)

    def priced(self, bounded: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return bounded


@dataclass(frozen=True)
class CROWN_IBP(IBP):
    """B by lines in intervals, and more and more by intervals alone while eps rises (Zhang et al.
    2020, arXiv:1906.06316).

    Their weight goes from 1 to 0 with eps from 0 to its whole size. A class costs as much as x
    itself.
    """

    def lower(self, rows: Rows, share: float) -> Tensor:
        intervals = margins_by(rows, lines=False)
        if share >= 1:
            return intervals
        return torch.lerp(margins_by(rows, lines=True), intervals, share)


@dataclass(frozen=True)
class MTL_IBP(Bounding):
    """alpha B + (1 - alpha) CE(f(x'), y), x' at the end of projected ascent (De Palma et al. 2024,
    arXiv:2305.13991).

    A small alpha keeps more clean accuracy, and leaves more to prove to methods beyond intervals.
    """

    alpha: float = option(0.02, "share of the bounds", at_least=0, at_most=1)
    reach: float = option(1.0, "of the bounds, multiples of eps", above=0)
    steps: int = option(8, "of the inner attack", at_least=1)
    step_size: float = option(0.25, "fraction of eps", at_least=0)

    @property
    def passes(self) -> int:
        return super().passes + 2 * self.steps

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return Objective.points(self, inner, x, y)

    def priced(self, bounded: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return torch.lerp(F.cross_entropy(z, y, reduction="none"), bounded, self.alpha)
