"""How a model is smoothed: the noise, the votes under it, and the radius that they give."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.spec import option
from holdfast.targets import exact_noise
from holdfast.targets.exact_noise import Table
from holdfast.targets.target import LEVELS, Bounds
from holdfast.threats.threat import Threat, as_threat

FINE = 1024  # steps of the lattice that the noise has at least
NARROW, WIDE = 2.0**-30, 16.0  # between which shares of the inputs' range sigma lies
MOST = 10_000_000  # votes of a row
SLACK = 1e-9  # of a probability: more than its computation in float64 is off


@dataclass(frozen=True)
class Smoothing(spec.Options, ABC):
    """Noise, and how it is voted."""

    sigma: float
    draws: int = option(10_000, "votes that are counted", at_least=1, at_most=MOST)
    first: int = option(100, "votes before, which choose the class", at_least=1, at_most=MOST)
    alpha: float = option(0.001, "chance, a row, of a radius too large", above=0, at_most=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lower(self.draws) > 0.5:
            raise SpecError(
                f"{self!r} abstains always: {self.draws:,} votes of {self.draws:,} show no "
                f"majority at alpha {self.alpha:g}; give at least {self.draws_for(0):,} draws."
            )

    @property
    def asked(self) -> int:
        """Questions of a row."""
        return self.first + self.draws

    def lower(self, votes: int) -> float:
        """What the chance of a class with so many of the draws exceeds, but for a chance of alpha
        (Clopper-Pearson)."""
        if not votes:
            return 0.0
        from scipy.special import betaincinv  # a third of a second

        return float(betaincinv(votes, self.draws - votes + 1, self.alpha)) - SLACK

    def draws_for(self, eps: float) -> float:
        """The least draws that prove a radius above eps, or above 0, where all votes agree; inf
        where `MOST` do not."""
        chance = self.chance(eps) + SLACK
        if self.alpha < chance**MOST:
            return math.inf
        return math.floor(math.log(self.alpha) / math.log(chance)) + 1

    @abstractmethod
    def chance(self, radius: float) -> float:
        """The chance of a class that is its radius's."""

    @abstractmethod
    def radius(self, chance: float, apart: float = 0.0) -> float:
        """Within what distance the smoothed model gives one class, where it gives it with this
        chance at least; not above 0: it may give another one at once.

        Args:
            apart: the total variation distance of the noise as drawn.
        """

    @abstractmethod
    def table(self, step: float) -> Table:
        """The noise in steps of a lattice."""


@dataclass(frozen=True)
class Gaussian(Smoothing):
    """Gaussian noise of standard deviation sigma: proves L2 (Cohen et al. 2019,
    arXiv:1902.02918)."""

    sigma: float = option(0.25, "standard deviation, in raw input units", above=0)

    def chance(self, radius: float) -> float:
        return NormalDist().cdf(radius / self.sigma)

    def radius(self, chance: float, apart: float = 0.0) -> float:
        least, most = chance - apart, 0.5 + apart
        if not least > most:
            return 0.0
        return self.sigma * (NormalDist().inv_cdf(least) - NormalDist().inv_cdf(most))

    def table(self, step: float) -> Table:
        return exact_noise.gaussian(self.sigma / step)


@dataclass(frozen=True)
class Uniform(Smoothing):
    """Uniform noise between -sigma and sigma in each feature: proves L1 (Lee et al. 2019,
    arXiv:1906.04948; Yang et al. 2020, arXiv:2002.08118)."""

    sigma: float = option(0.25, "half the width of the noise, in raw input units", above=0)

    def chance(self, radius: float) -> float:
        return min((1 + radius / self.sigma) / 2, 1.0)

    def radius(self, chance: float, apart: float = 0.0) -> float:
        # as drawn it reaches half a step beyond a whole number of them, and less than one below
        drawn = self.sigma * (1 - 1 / FINE)
        return drawn * (2 * (chance - apart) - 1 - 2 * apart)

    def table(self, step: float) -> Table:
        return exact_noise.uniform(math.floor(self.sigma / step - 0.5))


KINDS = {"gaussian": Gaussian, "uniform": Uniform}


def parse(given: Smoothing | str | float, threat: Threat | str) -> Smoothing:
    """The smoothing that a text such as `gaussian(0.25, draws=1000)` spells; a number is the sigma
    of the noise that proves the threat's norm.

    Raises:
        SpecError: it cannot be understood, or proves nothing under the threat.
    """
    if isinstance(given, Smoothing):
        return given
    try:
        sigma = float(given)
    except ValueError:
        return spec.build(str(given), KINDS, "smoothing")
    threat = as_threat(threat)
    if threat.norm.noise not in KINDS:
        raise SpecError(no_radius(threat))
    return KINDS[threat.norm.noise](sigma=sigma)


def no_radius(threat: Threat) -> str:
    """What is said of a threat whose norm no noise proves."""
    return (
        f"not supported: smoothing under {threat}; expected l2, which Gaussian noise proves, or "
        "l1, which uniform noise proves."
    )


class Lattice:
    """The points that the noise moves between: `fine` steps for each of the 255 that a file of 8
    bits knows, so that its images lie on it."""

    def __init__(self, bounds: Bounds, sigma: float) -> None:
        span = bounds.high - bounds.low
        if not NARROW <= sigma / span <= WIDE:
            raise InputError(
                f"sigma is {sigma:g}, but inputs span [{bounds.low:g}, {bounds.high:g}]; expected "
                f"a sigma between {NARROW * span:.1g} and {WIDE * span:g}, in the units of raw "
                "inputs."
            )
        fine = 2 ** max(0, math.ceil(math.log2(FINE * span / (LEVELS * sigma))))
        self.bounds, self.low, self.step = bounds, bounds.low, span / (LEVELS * fine)

    def places(self, x: Tensor) -> Tensor:
        """The nearest points to inputs, in steps: int64."""
        return ((x.double() - self.low) / self.step).round().long()

    def at(self, places: Tensor) -> Tensor:
        """Points as inputs, in float64: a function of the whole numbers alone."""
        return self.low + places.double() * self.step

    def farthest(self, threat: Threat) -> float:
        """The most by which a legal input is away from its nearest point, in any feature."""
        box = self.bounds
        most = 0.5000001 * self.step + 2.0**-50 * (abs(box.low) + abs(box.high))
        if threat.grid == "8bit":  # on the lattice, but for what float32 adds
            most = 2.0**-20 * (abs(box.low) + abs(box.high))
        return most
