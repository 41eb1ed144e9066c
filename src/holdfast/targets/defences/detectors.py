"""Detectors: steps before a model that refuse an input, and pass on unchanged what they do not.

A refusal is a further score of the model's, which wins above a limit: see `holdfast.tasks.Classes`.
To be refused is no right answer to a clean input, and no success of an adversary's, who has to come
below every limit besides; the gradient of each detector is followed.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.spec import option
from holdfast.targets.defences.purify import Purifier
from holdfast.targets.target import sealed

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Detector(Purifier):
    """A network by which inputs are refused whose `distance` is above `limit`.

    Raises:
        SpecError: a field is out of its range.
    """

    gradient_note: ClassVar[str] = (
        "It refuses inputs: attacks had to come below its limit, by its own gradient."
    )
    passes: ClassVar[int] = 0  # of the model, besides its own answer
    limit: float = option(
        math.inf, "above it an input is refused; see `fitted`", above=0, finite=False
    )

    def __call__(self, x: Tensor) -> Tensor:
        return x

    @abstractmethod
    def distance(self, x: Tensor, answer: Answer) -> Tensor:
        """How odd images x in [0, 1] are to a model whose scores of such images are `answer`:
        [n]."""

    def fitted(self, target: Any, x: Tensor, rate: float = 0.01) -> Self:
        """This detector with the limit that refuses at most this share of clean inputs x [n,
        *shape].

        Rows on which neither model nor detector was trained, so that the rate holds for others.
        The target is that of the model alone, as `holdfast.wrap` makes it.

        Raises:
            SpecError: the rate is not in [0, 1).
            InputError: the distance at this rate is no finite number above 0.
        """
        if not 0 <= rate < 1:
            raise SpecError(
                f"a detector is to refuse a share of {rate!r} of the clean inputs; it lies in [0, "
                "1)."
            )
        target.bind(tuple(x.shape[1:]))
        low, width = target.bounds.low, target.bounds.high - target.bounds.low

        def far(rows: slice) -> Tensor:
            images = target.images(target.batcher.place(x[rows]))
            return self.distance((images - low) / width, lambda u: target.bare(low + width * u))

        with sealed(0):
            found = torch.cat(list(target.batcher.parts(far, len(x)))).sort().values
        limit = float(found[len(found) - 1 - int(rate * len(found))])
        if not 0 < limit < math.inf:
            raise InputError(
                f"{spec.write(self)} finds a distance of {limit:g} in clean inputs; it has to be "
                "above 0."
            )
        own = copy.copy(self)
        object.__setattr__(own, "limit", limit)
        return own


@dataclass(frozen=True)
class Reconstruction(Detector):
    """How far an autoencoder's image is from its input, the mean of |d|^power (Meng and Chen 2017,
    arXiv:1705.09064).

    The network takes images to images, in [0, 1]. MagNet's detector by reconstruction error.
    """

    power: int = option(1, "the paper takes 1 and 2", at_least=1, at_most=2)

    def distance(self, x: Tensor, answer: Answer) -> Tensor:
        return (self.ask(x, x) - x).abs().pow(self.power).flatten(1).mean(1)


@dataclass(frozen=True)
class Divergence(Detector):
    """How far the model's softmax moves when an autoencoder reforms its input (Meng and Chen 2017,
    arXiv:1705.09064).

    The Jensen-Shannon divergence, in nats, of the softmax of scores / temperature, before and
    after. MagNet's detector by probability divergence. Costs two passes of the model more.
    """

    passes: ClassVar[int] = 2
    temperature: float = option(10.0, "the paper takes 10 and 40", above=0)

    def distance(self, x: Tensor, answer: Answer) -> Tensor:
        both = torch.stack(
            [answer(u) / self.temperature for u in (x, self.ask(x, x).clamp(0, 1))]
        ).log_softmax(2)
        middle = both.logsumexp(0) - math.log(2)
        return (both.exp() * (both - middle)).sum(2).mean(0)


def refusal(z: Tensor, excess: Tensor) -> Tensor:
    """The score of a refusal, to go with scores z [n, k]: above the best where there is an excess,
    and below elsewhere.

    [n, 1], in units of 0.3 of the lead of the best over the mean, held fixed. The unit decides
    nothing but which of the two an attack minds more: with 0.1 or 1 twice as many rows were left on
    digits.
    """
    top = z.amax(1)
    unit = 0.3 * (top - z.mean(1)).detach().clamp_min(1e-3)
    return (top + unit * excess)[:, None]


DETECTORS = {kind.__name__.lower(): kind for kind in (Reconstruction, Divergence)}
