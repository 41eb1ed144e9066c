"""Augmentation: training rows changed as a list in the recipe says, `flip, crop(padding=4),
noise(sigma=0.05)`.

The changes are kornia's, drawn from the training's seed and the step alone, so that a training that
was killed goes on with the same bits. Objectives then perturb and train at the changed rows as at
any others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.spec import Options, option
from holdfast.targets.adapter import need
from holdfast.targets.batch import picked
from holdfast.targets.target import Target, sealed
from holdfast.threats.images import channels_first, from_channels_first


@dataclass(frozen=True)
class Batch:
    """Rows to train on."""

    x: Tensor  # [n, *shape]
    y: Tensor  # [n], their classes
    other: Tensor | None = None  # [n], further classes of the same rows, where each is made of two
    share: float = 1.0  # of the classes y in the loss; the rest is that of the others
    views: tuple[Tensor, ...] = ()  # the same rows changed otherwise, to be answered alike
    weight: float = 0.0  # of how far the answers to them differ

    def loss(
        self, ask: Callable[[Tensor], tuple[Tensor, Tensor]], scores: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the scores that came with it, where `ask` gives both for classes [n]."""
        loss, z = ask(self.y)
        if self.other is not None:
            loss = self.share * loss + (1 - self.share) * ask(self.other)[0]
        if self.views:
            loss = loss + self.weight * disagreement([scores(x) for x in (self.x, *self.views)])
        return loss, z

    def part(self, rows: slice) -> Batch:
        """Some of the rows."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            other=picked(self.other, rows),
            views=tuple(v[rows] for v in self.views),
        )

    def further_forwards(self, asks: int) -> int:
        """Forwards that the loss takes in addition to the `asks` of one set of classes."""
        return (asks if self.other is not None else 0) + (1 + len(self.views) if self.views else 0)


def disagreement(answers: Sequence[Tensor]) -> Tensor:
    """The Jensen-Shannon divergence of several answers, scores [n, k] each; the mean of the
    rows."""
    logs = torch.stack([z.log_softmax(1) for z in answers])
    mean = logs.exp().mean(0).clamp_min(1e-7).log()
    return F.kl_div(mean.expand_as(logs), logs, reduction="none", log_target=True).sum(2).mean()


@dataclass(frozen=True)
class Augmentation(Options, ABC):
    """One change of images [n, c, h, w] in [0, 1]. What it draws, it draws from torch's
    generator."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Batch:
        """The batch, changed."""


class Change(Augmentation):
    """A change of each image by itself, whose class stays."""

    @abstractmethod
    def changed(self, x: Tensor) -> Tensor:
        """Images [n, c, h, w] like x; they may leave the box, to which they are then brought
        back."""

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, x=self.changed(batch.x).clamp(0, 1))


@dataclass(frozen=True)
class Flip(Change):
    """Left and right exchanged; no help where that makes another class, as of digits."""

    p: float = option(0.5, "share of the images", at_least=0, at_most=1)

    def changed(self, x: Tensor) -> Tensor:
        return _kornia().RandomHorizontalFlip(p=self.p)(x)


@dataclass(frozen=True)
class Rotate(Change):
    """A turn about the middle; what comes in is black."""

    degrees: float = option(15.0, "the largest, either way", at_least=0)

    def changed(self, x: Tensor) -> Tensor:
        return _kornia().RandomRotation(float(self.degrees), p=1.0)(x)


@dataclass(frozen=True)
class Crop(Change):
    """A window of the image's size, from the image with a black border."""

    padding: int = option(4, "width of the border, in pixels", at_least=0)

    def changed(self, x: Tensor) -> Tensor:
        return _kornia().RandomCrop((x.shape[2], x.shape[3]), padding=self.padding)(x)


@dataclass(frozen=True)
class Color(Change):
    """Brightness, contrast, saturation and hue changed by up to these shares; of images of three
    channels."""

    brightness: float = option(0.2, "largest change of brightness", at_least=0)
    contrast: float = option(0.2, "largest change of contrast", at_least=0)
    saturation: float = option(0.2, "largest change of saturation", at_least=0)
    hue: float = option(0.05, "largest change of hue", at_least=0, at_most=0.5)

    def changed(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise InputError(
                f"color changes images of three channels, but these have {x.shape[1]}."
            )
        return _kornia().ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)(x)


@dataclass(frozen=True)
class Noise(Change):
    """Gaussian noise."""

    sigma: float = option(0.05, "share of the bounds' width", at_least=0)

    def changed(self, x: Tensor) -> Tensor:
        return _kornia().RandomGaussianNoise(std=self.sigma, p=1.0)(x)


@dataclass(frozen=True)
class SaltPepper(Change):
    """Some pixels white or black."""

    amount: float = option(0.03, "share of the pixels", at_least=0, at_most=1)

    def changed(self, x: Tensor) -> Tensor:
        return _kornia().RandomSaltAndPepperNoise((self.amount, self.amount), p=1.0)(x)


@dataclass(frozen=True)
class Speckle(Change):
    """Gaussian noise in proportion to each value."""

    sigma: float = option(0.1, "share of the value", at_least=0)

    def changed(self, x: Tensor) -> Tensor:
        return x * (1 + self.sigma * torch.randn_like(x))


@dataclass(frozen=True)
class RandAugment(Change):
    """Some changes in a row, drawn for each step (Cubuk et al. 2020, arXiv:1909.13719). Gray images
    stay gray."""

    n: int = option(2, "how many changes", at_least=1)
    m: float = option(9.0, "how strong", at_least=0, at_most=29)

    def changed(self, x: Tensor) -> Tensor:
        return _chain(x, self.n, self.m, without=())


@dataclass(frozen=True)
class MixUp(Augmentation):
    """Pairs of images blended, and their losses with them (Zhang et al. 2018, arXiv:1710.09412).

    A step draws one share for all pairs. Of a pair the larger part gives the class that attacks are
    crafted against.
    """

    alpha: float = option(1.0, "of the Beta distribution of the share", above=0)

    def __call__(self, batch: Batch) -> Batch:
        share = float(torch.distributions.Beta(float(self.alpha), float(self.alpha)).sample())
        share = max(share, 1 - share)
        turned = torch.randperm(len(batch.x)).to(batch.x.device)
        x = share * batch.x + (1 - share) * batch.x[turned]
        return replace(batch, x=x, other=batch.y[turned], share=share)


@dataclass(frozen=True)
class CutMix(Augmentation):
    """A window of each image from another one, and the losses by area (Yun et al. 2019,
    arXiv:1905.04899).

    A step draws one window for all pairs. Of a pair the larger part gives the class that attacks
    are crafted against.
    """

    alpha: float = option(1.0, "of the Beta distribution of the window's area", above=0)

    def __call__(self, batch: Batch) -> Batch:
        classes = torch.arange(len(batch.y), device=batch.x.device)
        cut = _kornia().RandomCutMixV2(
            beta=float(self.alpha),
            p=1.0,
            same_on_batch=True,
            use_correct_lambda=True,
            data_keys=["input", "class"],
        )
        x, pairs = cut(batch.x, classes)
        own, other, share = pairs[0, :, 0].long(), pairs[0, :, 1].long(), float(pairs[0, 0, 2])
        y = batch.y
        if share < 0.5:
            return replace(batch, x=x, y=y[other], other=y[own], share=1 - share)
        return replace(batch, x=x, other=y[other], share=share)


@dataclass(frozen=True)
class AugMix(Augmentation):
    """Two more views of each image, each a blend of chains of changes, to be answered alike
    (arXiv:1912.02781).

    The loss is the objective's own at the images as they are, and `weight` times the divergence of
    the three answers.
    Differs from the paper: a step draws the changes of a chain for all rows, and the blend for
    each.
    """

    weight: float = option(12.0, "of the divergence", at_least=0)
    width: int = option(3, "chains of a view", at_least=1)
    strength: float = option(9.0, "of each change", at_least=0, at_most=29)

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, views=(self._view(batch.x), self._view(batch.x)), weight=self.weight)

    def _view(self, x: Tensor) -> Tensor:
        n, width = len(x), self.width
        parts = torch.distributions.Dirichlet(torch.ones(width)).sample((n,)).to(x)
        kept = torch.distributions.Beta(1.0, 1.0).sample((n, 1, 1, 1)).to(x)
        mixed = torch.zeros_like(x)
        for i in range(width):
            depth = int(torch.randint(1, 4, ()))
            mixed = mixed + parts[:, i].view(-1, 1, 1, 1) * _chain(
                x, depth, self.strength, without=_TONES
            )
        return (kept * x + (1 - kept) * mixed).clamp(0, 1)


AUGMENTATIONS = {
    kind.__name__.lower(): kind
    for kind in (
        Flip,
        Rotate,
        Crop,
        Color,
        Noise,
        SaltPepper,
        Speckle,
        RandAugment,
        MixUp,
        CutMix,
        AugMix,
    )
}
# which AugMix leaves out
_TONES = ("invert", "color", "contrast", "brightness", "sharpness", "solarize_add")


def parse(text: str) -> list[Augmentation]:
    """The augmentations that a list such as `flip, crop(padding=4)` spells; they are done in its
    order.

    Raises:
        SpecError: no such list, unknown names or options, or one after another that pairs or
            compares rows.
    """
    made = [spec.build(part, AUGMENTATIONS, "augmentation") for part in spec.parts(text)]
    if early := [one for one in made[:-1] if not isinstance(one, Change)]:
        raise SpecError(f"{early[0]!r} pairs or compares the rows as they come out; name it last.")
    return made


def augmented(
    changes: Sequence[Augmentation], x: Tensor, y: Tensor, target: Target, seed: int
) -> Batch:
    """The batch to train on of rows x [n, *shape] in the target's bounds, of classes y [n].

    Raises:
        InputError: the inputs are no images, or kornia is not installed.
    """
    if not changes:
        return Batch(x, y)
    if x.ndim not in (3, 4):
        raise InputError(
            f"augmentation changes images, but inputs have shape {tuple(x.shape[1:])}; leave "
            "augment out."
        )
    low, width = target.bounds.low, target.bounds.high - target.bounds.low
    batch = Batch(channels_first((x - low) / width, target.inputs.layout).float(), y)

    def back(image: Tensor) -> Tensor:
        return from_channels_first(
            image.to(x.dtype) * width + low, tuple(x.shape[1:]), target.inputs.layout
        )

    with sealed(seed % 2**63):
        for change in changes:
            batch = change(batch)
    return replace(batch, x=back(batch.x), views=tuple(map(back, batch.views)))


def _chain(x: Tensor, n: int, m: float, without: tuple[str, ...]) -> Tensor:
    """Images after n changes of RandAugment's list, drawn for all rows at once."""
    auto = _kornia(".auto")
    if x.shape[1] != 3:
        without = (*without, "color")
    known = _kornia(".auto.rand_augment.rand_augment").default_policy  # of one step each
    policy = [step for step in known if step[0][0] not in without]
    for i in torch.randperm(len(policy))[:n].tolist():
        x = auto.RandAugment(n=1, m=max(1, round(m)), policy=[policy[i]])(x)
    return x.clamp(0, 1)


def _kornia(part: str = "") -> Any:
    return need(f"kornia.augmentation{part}", "augment", "augment")
