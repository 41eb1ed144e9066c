"""Randomised smoothing: a model whose answer is the class that it gives most often under noise.

Labels are enough, so any model can be smoothed, an endpoint too. What is proved of a smoothed model
is in `holdfast.certification.smoothing`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import torch
from scipy.special import betaincinv
from torch import Tensor

from holdfast import spec
from holdfast.data.columns import Column
from holdfast.decisions import REFUSED, SILENT
from holdfast.errors import AccessError, InputError, SpecError
from holdfast.rng import Keys, content
from holdfast.spec import option
from holdfast.targets import exact_noise
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.exact_noise import Table
from holdfast.targets.target import LEVELS, Access, Bounds, Cost, Target, sealed
from holdfast.targets.wrappers import Around
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


class Smoothed(Around):
    """A model that answers with the class that another one, its `inner`, gives most often under
    noise; it refuses where the votes show no majority.

    Inputs go to the nearest point of a lattice, the noise is drawn exactly and added as a whole
    number of its steps, and nothing is clipped. A draw is a function of the seed, what the input
    holds and the number of the draw. An answer that is no class (NaN, or none at all) counts
    against every class.

    Args:
        inner: the model whose answers are counted; its labels are enough.
        smoothing: the noise and the votes.
        seed: of the noise.

    Raises:
        InputError: it is no model of k classes, or sigma is far from the range of its inputs.
    """

    access = Access.LABELS

    def __init__(self, inner: Target, smoothing: Smoothing, seed: int = 0) -> None:
        self.smoothing, self.seed = smoothing, seed
        self.lattice = Lattice(inner.bounds, smoothing.sigma)
        self.known: dict[
            bytes, tuple[int, int]
        ] = {}  # by the hash of an input: its class, and votes
        super().__init__(inner)

    def _check(self) -> None:
        if (task := self.inner.head.truth_task) is not None:
            raise InputError(f"smoothing counts votes for classes, and this is a model of {task}.")
        if self.inner.inputs.context:
            raise InputError("smoothing adds noise to one input, and this model takes several.")
        if self.inner.shape is not None and self.inner.task.refuses:
            raise InputError(
                "smoothing is of the bare model, and this one has a detector before it."
            )

    def of_table(self, columns: Sequence[Column]) -> Target:
        if odd := [column.name for column in columns if column.values]:
            raise InputError(
                f"column {odd[0]} holds texts, to which no noise can be added: smoothing takes "
                "tables of numbers."
            )
        return super().of_table(columns)

    @property
    def cost(self) -> Cost:
        one = self.inner.cost
        return replace(one, forwards=self.smoothing.asked * one.forwards)

    @cached_property
    def table(self) -> Table:
        return self.smoothing.table(self.lattice.step)

    def scores(self, x: Rows) -> Tensor:
        raise AccessError("a smoothed model gives labels alone: the classes that are voted.")

    def labels(self, x: Rows) -> Tensor:
        voted, votes = self.votes(x)
        label = torch.where(self.radii(votes) > 0, voted, REFUSED)
        return torch.where(voted < 0, SILENT, label).to(Batch.of(x).x.device)

    def radii(self, votes: Tensor) -> Tensor:
        """Within what distance of its point of the lattice a class that got so many of the draws is
        the only answer: [n] float64; 0: it is not even there."""
        apart = math.prod(self.shape or ()) * self.table.apart
        lower = [self.smoothing.lower(k) for k in votes.tolist()]
        found = [max(self.smoothing.radius(chance, apart), 0.0) for chance in lower]
        return torch.tensor(found, dtype=torch.float64)

    def votes(self, x: Rows) -> tuple[Tensor, Tensor]:
        """The class that the first votes choose (negative: none got any), and how many of the draws
        it gets: [n], [n] int64."""
        batch = self._asked(x)
        found = list[tuple[int, int]]()
        for i, name in enumerate(self._names(batch.x)):
            if name not in self.known:
                self.known[name] = self._counted(batch[i : i + 1])
            found.append(self.known[name])
        voted, votes = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return voted, votes

    def remember(self, x: Tensor, voted: Tensor, votes: Tensor) -> None:
        """What was counted for inputs before, so that it is not counted again."""
        pairs = zip(voted.tolist(), votes.tolist(), strict=True)
        self.known |= dict(zip(self._names(self._asked(x).x), pairs, strict=True))

    def chosen(self, x: Rows) -> Tensor:
        """The class that the first votes choose, asked for now: [n] int64."""
        batch = self._asked(x)
        return torch.tensor([self._first(batch[i : i + 1]) for i in range(len(batch))])

    def _asked(self, x: Rows) -> Batch:
        """Rows as a judge has them: in the numbers that the model takes."""
        batch = Batch.of(x)
        return batch.to(batch.x.device, self.inner.batcher.dtype)

    def _names(self, x: Tensor) -> list[bytes]:
        """A hash of the point of the lattice of each input."""
        places = self.lattice.places(x.cpu()).flatten(1).contiguous()
        return [hashlib.sha256(row.numpy().tobytes()).digest() for row in places]

    def _counted(self, row: Batch) -> tuple[int, int]:
        voted = self._first(row)
        if voted < 0:
            return voted, 0
        return voted, int(self._tally(row, "count", self.smoothing.draws)[voted])

    def _first(self, row: Batch) -> int:
        tally = self._tally(row, "choose", self.smoothing.first)
        return int(tally.argmax()) if tally.any() else SILENT

    def _tally(self, row: Batch, what: str, n: int) -> Tensor:
        """How many of n answers under noise each class gets: [k]."""
        batcher, shape = self.inner.batcher, tuple(row.x.shape[1:])
        row = row.to(batcher.device, row.x.dtype)
        places = self.lattice.places(row.x)
        own = Keys(content(self.lattice.at(places))).fold(self.seed, "votes", what)

        def ask(part: slice) -> Tensor:
            numbers = torch.arange(part.start, part.stop, device=row.x.device)
            noise = self.table.draw(own.draws(numbers), shape)
            x = self.lattice.at(places + noise).to(batcher.dtype)
            return self.inner.labels(row[torch.zeros_like(numbers)].with_x(x))

        with sealed(self.seed):
            given = torch.cat([labels.cpu() for labels in batcher.parts(ask, n)])
        k = self.task.k
        return torch.bincount(given[(given >= 0) & (given < k)], minlength=k)

    def describe(self) -> dict[str, object]:
        said = {"smoothing": spec.write(self.smoothing, whole=True)}
        return super().describe() | {"access": self.access.name.lower()} | said
