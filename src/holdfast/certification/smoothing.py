"""What the votes of a smoothed model prove: within a radius it gives no other class.

The radius is that of the noise's paper, less what is not exact: inputs are moved to a lattice, and
the noise is drawn with masses of 64 bits. It holds but for a chance of alpha, for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.bounds.margins import check_no_schema
from holdfast.certification.alone import answers_alone
from holdfast.errors import InputError
from holdfast.evaluation.certificates import OnStep, Proofs
from holdfast.runs.manifest import CertificationInfo
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.smoothing_noise import KINDS, no_radius
from holdfast.threats.threat import Threat

VERSION = 1  # of what counts as proved
METHOD = "votes"
CLOSE = 1e-9  # taken off each radius: what another library may compute otherwise, relatively


@dataclass(frozen=True)
class Votes:
    """A `holdfast.evaluation.certificates.Prover` of one smoothed model. It takes no time: votes
    are counted where the model is asked."""

    target: Smoothed

    @staticmethod
    def of(target: Smoothed, threat: Threat) -> Votes:
        """The prover for a model that has seen inputs, under a threat with one eps.

        Raises:
            InputError: its votes prove nothing there, however many agree; or what it smooths does
                not answer rows one by one.
        """
        check_no_schema(threat)
        smoothing, found = target.smoothing, Votes(target)
        if type(smoothing) is not KINDS.get(threat.norm.noise):
            raise InputError(f"{no_radius(threat)} The noise is that of {smoothing!r}.")
        most = float(found._within(torch.tensor([smoothing.draws]), threat))
        if most < (eps := float(threat.eps)):
            draws = smoothing.draws_for(1.01 * eps)
            more = f"about {draws:,} draws, or " if draws < math.inf else ""
            raise InputError(
                f"{smoothing!r} proves nothing at {threat}: where all {smoothing.draws:,} draws "
                f"agree, the radius is {most:.4g}. Give {more}a larger sigma."
            )
        answers_alone(target.inner)
        return found

    @property
    def info(self) -> CertificationInfo:
        return CertificationInfo(version=VERSION, methods=[METHOD], radius=True)

    def climb(self, x: Tensor, y: Tensor, threat: Threat, end: float, on_step: OnStep) -> Proofs:
        """See `Prover.climb`."""
        held, reasons = self.proves(x, y, threat, METHOD), list[str]()
        for radius in self._proved(x, y, threat).tolist():
            reasons.append(f"the votes prove a radius of {radius:.4g}")
        on_step(METHOD, len(x))
        by = [METHOD if one else "" for one in held]
        return Proofs(by, ["" if one else why for one, why in zip(held, reasons, strict=True)])

    def widest(
        self,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        low: Tensor,
        high: Tensor,
        end: float,
        on_step: OnStep,
    ) -> Tensor:
        """See `Prover.widest`: the votes say it, with no search."""
        return self._proved(x, y, threat)

    def proves(self, x: Tensor, y: Tensor, threat: Threat, method: str) -> Tensor:
        """See `Prover.proves`."""
        eps = torch.as_tensor(threat.eps, dtype=torch.float64)
        return self._proved(x, y, threat) >= eps * (1 - CLOSE)

    def _proved(self, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """The largest eps that is proved of each row: [n] float64."""
        voted, votes = self.target.votes(x)
        lattice = self.target.lattice
        x = x.to(self.target.inner.batcher.dtype)
        offset = threat.norm.size(x.double() - lattice.at(lattice.places(x)))
        return torch.where(voted == y, self._within(votes, threat, offset), 0.0)

    def _within(self, votes: Tensor, threat: Threat, offset: Tensor | float = 0.0) -> Tensor:
        """The largest eps whose legal inputs lie within the radius of so many votes for a class,
        around a row at this distance from its point of the lattice: [n] float64."""
        target, shape = self.target, self.target.shape or ()
        features = math.prod(shape)
        rounded = threat.norm.rounding(features, target.lattice.farthest(threat))
        slack = float(threat.legal_eps(shape, target.bounds.ulp, 0.0))  # that a judge allows
        return ((target.radii(votes) - offset - rounded - slack) / (1 + 2e-6 + CLOSE)).clamp_min(
            0.0
        )
