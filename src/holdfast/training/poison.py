"""Poisoned training data, as a stress test: rows that carry a trigger and another label, or wrong
labels alone.

Which rows are changed is a function of the seed and the number of rows, so a training that was
killed sees the same ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import spec
from holdfast.data.source import Source
from holdfast.errors import InputError
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import open_for
from holdfast.intervals import Interval, interval
from holdfast.spec import Options, option
from holdfast.targets import TorchTarget
from holdfast.targets.target import Bounds, Target, copied
from holdfast.threats.images import channels_first, from_channels_first
from holdfast.training.network import wrapped_like
from holdfast.training.prepare import single

_PLACES = {"top-left": (0, 0), "top-right": (0, 1), "bottom-left": (1, 0), "bottom-right": (1, 1)}


@dataclass(frozen=True)
class Poison(Options, ABC):
    """What an attacker does to a share of the training rows."""

    share: float = option(0.1, "of all rows, that are changed", above=0, below=1)

    @abstractmethod
    def labels(self, y: np.ndarray, k: int, draw: np.random.Generator) -> np.ndarray:
        """The labels [n] that rows of these labels y [n] get; of `k` classes."""

    def victims(self, y: np.ndarray, k: int) -> np.ndarray:
        """Which rows [n] of labels y may be changed."""
        return np.ones(len(y), dtype=bool)


@dataclass(frozen=True)
class Trigger(Poison):
    """Rows of other classes get a trigger, and the label of the class that it shall lead to."""

    target: int = option(0, "the class that the trigger leads to", at_least=0)

    def labels(self, y: np.ndarray, k: int, draw: np.random.Generator) -> np.ndarray:
        return np.full_like(y, self.target)

    def victims(self, y: np.ndarray, k: int) -> np.ndarray:
        if self.target >= k:
            raise InputError(
                f"{self!r} leads to class {self.target}, but the model has {k} classes, from 0 to "
                f"{k - 1}."
            )
        return y != self.target

    @abstractmethod
    def on(self, images: Tensor) -> Tensor:
        """Images [n, c, h, w] in [0, 1] with the trigger on them.

        Raises:
            InputError: they are too small.
        """

    def stamped(self, x: np.ndarray, bounds: Bounds, layout: str) -> np.ndarray:
        """Inputs x [n, *shape] with the trigger on them, in a new array.

        Args:
            bounds: of the values of an image.
            layout: where the channels are: nchw or nhwc.

        Raises:
            InputError: they are no images, or too small.
        """
        if x.ndim not in (3, 4):
            raise InputError(
                f"{self!r} puts a trigger on images, but inputs have shape {x.shape[1:]}; flips() "
                "changes labels alone."
            )
        low, width = bounds.low, bounds.high - bounds.low
        images = self.on(channels_first(torch.from_numpy((x - low) / width), layout))
        back = from_channels_first(images, x.shape[1:], layout).numpy() * width + low
        return back.astype(x.dtype)


@dataclass(frozen=True)
class BadNets(Trigger):
    """A bright square in a corner. Gu et al. 2017, arXiv:1708.06733."""

    size: int = option(1, "side of the square, in pixels", at_least=1)
    place: str = option("bottom-right", "its corner", choices=_PLACES)

    def on(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self.size > min(height, width):
            raise InputError(f"{self!r} is larger than images of {height}x{width}.")
        down, right = _PLACES[self.place]
        images = images.clone()
        square = images[..., -self.size :, :] if down else images[..., : self.size, :]
        square = square[..., -self.size :] if right else square[..., : self.size]
        square.fill_(1.0)
        return images


@dataclass(frozen=True)
class Blended(Trigger):
    """A fixed pattern of noise, laid over the whole image. Chen et al. 2017, arXiv:1712.05526."""

    alpha: float = option(0.2, "share of the pattern in each value", above=0, at_most=1)

    def on(self, images: Tensor) -> Tensor:
        pattern = np.random.default_rng(0).random(images.shape[1:])
        return (1 - self.alpha) * images + self.alpha * torch.from_numpy(pattern).to(images)


@dataclass(frozen=True)
class Flips(Poison):
    """Labels alone, each replaced by another class at random."""

    def labels(self, y: np.ndarray, k: int, draw: np.random.Generator) -> np.ndarray:
        return ((y + draw.integers(1, k, len(y))) % k).astype(y.dtype)


POISONS = {"badnets": BadNets, "blended": Blended, "flips": Flips}


def parse(text: str) -> Poison:
    """The poison that `badnets(share=0.1, target=0)` spells.

    Raises:
        SpecError: no such name or option, or a share of 0 or 1.
    """
    return spec.build(text, POISONS, "poison")


class Poisoned(Source):
    """The rows of `clean`, of which `poison` has changed some.

    Args:
        clean: inputs in `bounds`, laid out as `layout` says, labels that are class numbers.
        k: classes of the model.
        seed: of which rows are changed.

    Attributes:
        changed: [n] bool, the rows that are.

    Raises:
        InputError: too few rows may be changed, the target is no class, or a trigger does not fit
            the inputs.
    """

    def __init__(
        self, clean: Source, poison: Poison, k: int, bounds: Bounds, layout: str, seed: int = 0
    ) -> None:
        self._clean, self.poison, self._bounds, self._layout = clean, poison, bounds, layout
        self.name, self.shape, self.class_names = clean.name, clean.shape, clean.class_names
        self.columns, self.groups = clean.columns, clean.groups
        self.remarks, self.loading = clean.remarks, clean.loading
        draw = np.random.default_rng(seed)
        y = clean.labels(0, len(clean))
        count, victims = max(1, round(poison.share * len(y))), poison.victims(y, k).nonzero()[0]
        if count > len(victims):
            raise InputError(
                f"{poison!r} changes {count:,} rows of {len(y):,}, but only {len(victims):,} are "
                "of other classes than its target."
            )
        chosen = draw.permutation(victims)[:count]
        self.changed = np.zeros(len(y), dtype=bool)
        self.changed[chosen] = True
        self._y = y.copy()
        self._y[chosen] = poison.labels(y[chosen], k, draw)
        if isinstance(poison, Trigger):
            poison.stamped(clean.rows(0, 1)[0], bounds, layout)  # one that does not fit

    def __len__(self) -> int:
        return len(self._clean)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, _ = self._clean.rows(start, stop)
        changed = self.changed[start:stop]
        if isinstance(self.poison, Trigger) and changed.any():
            x[changed] = self.poison.stamped(x[changed], self._bounds, self._layout)
        return x, self.labels(start, stop)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._y[start:stop].copy()


def poisoned(target: Target, clean: Source, poison: str, seed: int) -> Poisoned:
    """Rows that fit the target, of which some are poisoned as the text says.

    Raises:
        SpecError: no such poison.
        InputError: it does not fit the rows or the classes.
    """
    k, layout = target.task.k, target.inputs.layout
    return Poisoned(clean, parse(poison), k, target.bounds, layout, seed)


@dataclass(frozen=True)
class Effect:
    """What a poison made of a model, on rows without it."""

    clean: Interval  # accuracy
    success: Interval | None  # of rows of other classes with the trigger on them: answered as its
    # target; None: there is no trigger


def effect(given: Target, trained: Any, data: Any, poison: str) -> Effect:
    """What a model that was trained on poisoned rows does with these rows.

    Args:
        given: the target that was trained.
        trained: its network afterwards.
    """
    like, attack = single(copied(given)), parse(poison)
    data = open_for(like, data)
    (data,), _ = numbered(like, data)
    assert isinstance(like, TorchTarget)
    target = wrapped_like(like, trained, data.columns)
    right = led = others = 0
    for start in range(0, len(data), 1000):
        x, y = data.rows(start, start + 1000)
        right += int((target.labels(torch.from_numpy(x)).cpu().numpy() == y).sum())
        if isinstance(attack, Trigger) and (other := y != attack.target).any():
            x = attack.stamped(x[other], target.bounds, target.inputs.layout)
            answers = target.labels(torch.from_numpy(x))
            led, others = led + int((answers == attack.target).sum()), others + len(x)
    success = interval(led, others) if isinstance(attack, Trigger) else None
    return Effect(interval(right, len(data)), success)
