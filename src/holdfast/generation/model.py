"""What a generative model is to the loop that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast import spec
from holdfast.rng import Keys


@dataclass(frozen=True)
class Model(ABC):
    """How to learn to draw rows. The fields are the hyperparameters; all noise comes from the keys
    given.

    Rows are u [n, *shape] in [-1, 1], classes y [n] int64.
    """

    steps: int
    batch_size: int
    rate: float
    ema: float
    rounds: int
    glance: int
    judged: int

    @abstractmethod
    def nets(self, shape: tuple[int, ...], k: int) -> nn.ModuleDict:
        """What is trained, freshly drawn; its "generator" draws, and its average is what is
        kept."""

    @abstractmethod
    def optimiser(self, nets: nn.ModuleDict) -> torch.optim.Optimizer: ...

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

    def __post_init__(self) -> None:
        spec.check(self)

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Model.__repr__  # or dataclass would write its own

    def __repr__(self) -> str:
        return spec.write(self)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss; weights without a gradient stay."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
