"""Detectors: steps before a model that refuse an input, and pass on unchanged what they do not.

A refusal is a further score of the model's, which wins above a limit: see `holdfast.tasks.Classes`.
To be refused is no right answer to a clean input, and no success of an adversary's, who has to come
below every limit besides; the gradient of each detector is followed.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from holdfast import spec
from holdfast.data import open_data
from holdfast.data.part import Part
from holdfast.errors import InputError, SpecError
from holdfast.rng import Keys
from holdfast.spec import option
from holdfast.targets.defences.purify import Purifier
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.target import sealed
from holdfast.tensors import as_tensor

Answer = Callable[[Tensor], Tensor]
LEAST = 1e-12  # an entropy that is told from none


@dataclass(frozen=True)
class Detector(Defence):
    """Inputs are refused whose `distance` is above `limit`.

    Raises:
        SpecError: a field is out of its range.
    """

    gradient_note: ClassVar[str] = (
        "It refuses inputs: attacks had to come below its limit, by its own gradient."
    )
    limit: float = option(
        math.inf, "above it an input is refused; see `fitted`", above=0, finite=False
    )

    def __call__(self, x: Tensor) -> Tensor:
        return x

    @property
    def passes(self) -> int:
        """Of the model, besides its own answer."""
        return 0

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
class Reconstruction(Detector, Purifier):
    """How far an autoencoder's image is from its input, the mean of |d|^power (Meng and Chen 2017,
    arXiv:1705.09064).

    The network takes images to images, in [0, 1]. MagNet's detector by reconstruction error.
    """

    power: int = option(1, "the paper takes 1 and 2", at_least=1, at_most=2)

    def distance(self, x: Tensor, answer: Answer) -> Tensor:
        return (self.ask(x, x) - x).abs().pow(self.power).flatten(1).mean(1)


@dataclass(frozen=True)
class Divergence(Detector, Purifier):
    """How far the model's softmax moves when an autoencoder reforms its input (Meng and Chen 2017,
    arXiv:1705.09064).

    The Jensen-Shannon divergence, in nats, of the softmax of scores / temperature, before and
    after. MagNet's detector by probability divergence. Costs two passes of the model more.
    """

    temperature: float = option(10.0, "the paper takes 10 and 40", above=0)

    @property
    def passes(self) -> int:
        return 2

    def distance(self, x: Tensor, answer: Answer) -> Tensor:
        both = torch.stack(
            [answer(u) / self.temperature for u in (x, self.ask(x, x).clamp(0, 1))]
        ).log_softmax(2)
        middle = both.logsumexp(0) - math.log(2)
        return (both.exp() * (both - middle)).sum(2).mean(0)


@dataclass(frozen=True)
class CleanImages(Defence):
    """A defence that has clean images.

    Raises:
        InputError: there are fewer than it takes, or they are not in [0, 1].
        SpecError: a field is out of its range.
    """

    clean: str | Tensor = option(MISSING, "DATA (list data), or images in [0, 1]")  # noqa: RUF009
    count: int = option(20, "of clean images, drawn once from these", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.clean, str):
            source = open_data(self.clean, split="train")
            at = self._drawn(len(source))
            given = torch.from_numpy(Part(source, at.numpy(), "clean").rows(0, len(at))[0])
        else:
            whole = as_tensor(self.clean, "the clean images")
            given = whole[self._drawn(len(whole))]
        if not (given.is_floating_point() and given.min() >= 0 and given.max() <= 1):
            raise InputError(
                f"the clean images of {type(self).__name__.lower()} span [{float(given.min()):g}, "
                f"{float(given.max()):g}], but they have to lie in [0, 1]."
            )
        object.__setattr__(self, "_images", given.detach().cpu())
        if not isinstance(self.clean, str):  # what a manifest can hold
            object.__setattr__(self, "clean", f"images:{self.digest().hex()[:12]}")

    def _drawn(self, n: int) -> Tensor:
        if n < self.count:
            raise InputError(
                f"{type(self).__name__.lower()} takes {self.count} clean images, and there are "
                f"{n}; give more of them, or a smaller count."
            )
        draws = Keys.of(0, torch.arange(n)).fold("clean").uniform((), torch.float64)
        return draws.argsort()[: self.count].sort().values

    def digest(self) -> bytes:
        images: Tensor = self._images  # pyright: ignore[reportAttributeAccessIssue]
        return hashlib.sha256(images.contiguous().numpy().tobytes()).digest()

    def images(self, like: Tensor) -> Tensor:
        """The clean images [count, c, h, w], as images `like` [n, c, h, w] are."""
        found: Tensor = self._images.to(like)  # pyright: ignore[reportAttributeAccessIssue]
        shape = tuple(like.shape[1:])
        laid = (found, found.movedim(-1, 1), found[:, None])  # nhwc; gray without an axis for it
        fits = [one for one in laid if tuple(one.shape[1:]) == shape]
        if not fits:
            raise InputError(
                f"the clean images of {type(self).__name__.lower()} are {tuple(found.shape[1:])}, "
                f"and the model's inputs {shape}; give images of the same kind."
            )
        return fits[0]


@dataclass(frozen=True)
class Strip(Detector, CleanImages):
    """How sure the model stays of an image when clean images are added to it (Gao et al. 2019,
    arXiv:1902.06531).

    ln(1 + 1/H), where H is the mean entropy of the softmax, in nats, of the image plus each of the
    clean ones, cut to [0, 1]: a trigger of a backdoor decides whatever is added to it. Costs
    `count` passes of the model more.
    Differs from the paper: all inputs have the same clean images added, so that no answer is drawn,
    and the limit is a quantile of clean inputs, not of a normal distribution fitted to them.
    """

    @property
    def passes(self) -> int:
        return self.count

    def distance(self, x: Tensor, answer: Answer) -> Tensor:
        entropies = [self._entropy((x + one).clamp(0, 1), answer) for one in self.images(x)]
        return (1 / torch.stack(entropies).mean(0).clamp_min(LEAST)).log1p()

    def _entropy(self, x: Tensor, answer: Answer) -> Tensor:
        def entropy(x: Tensor) -> Tensor:
            logs = answer(x).log_softmax(1)
            return -(logs.exp() * logs).sum(1)

        if not (x.requires_grad and torch.is_grad_enabled()):
            return entropy(x)
        # computed again on the way back, so that memory holds one pass
        found: Any = checkpoint(entropy, x, use_reentrant=False, preserve_rng_state=False)
        return found


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


DETECTORS = {kind.__name__.lower(): kind for kind in (Reconstruction, Divergence, Strip)}
