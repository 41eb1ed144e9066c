"""What a generative model is to the loop that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.rng import Keys
from holdfast.spec import Options, option


@dataclass(frozen=True)
class Model(Options, ABC):
    """How to learn to draw rows. The fields are the hyperparameters; all noise comes from the keys
    given.

    Rows are u [n, *shape] in [-1, 1], classes y [n] int64.
    """

    steps: int = option(4000, "of training", at_least=1)
    batch_size: int = option(64, "rows of a step", at_least=2)
    rate: float = option(1e-3, "Adam's learning rate at first", at_least=0)
    ema: float = option(
        0.998,
        "share of the past in the moving average of the generator, which is what is kept",
        at_least=0,
        below=1,
    )
    rounds: int = option(
        20, "parts of the training, each ended by a look at the samples", at_least=1
    )
    glance: int = option(1000, "samples looked at then", at_least=1)
    judged: int = option(2000, "samples measured at the end", at_least=1)

    @abstractmethod
    def nets(self, shape: tuple[int, ...], k: int) -> nn.ModuleDict:
        """What is trained, freshly drawn; its "generator" draws, and its average is what is
        kept."""

    @abstractmethod
    def optimiser(self, nets: nn.ModuleDict) -> torch.optim.Optimizer:
        """What moves their weights."""

    @abstractmethod
    def learn(
        self,
        nets: nn.ModuleDict,
        optimiser: torch.optim.Optimizer,
        u: Tensor,
        y: Tensor,
        keys: Keys,
        t: int,
    ) -> tuple[Tensor | None, Tensor]:
        """Step t (from 0) on these rows; returns the generator's loss (None: not in this step) and
        the critic's.

        What they hold is not read here: a device that works ahead is waited for once a step, by the
        loop.
        """

    @abstractmethod
    def draw(self, net: nn.Module, shape: tuple[int, ...], y: Tensor, keys: Keys) -> Tensor:
        """New rows u [n, *shape] of the classes y, by a generator in eval mode; each by its own key
        alone."""


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss; weights without a gradient stay."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
