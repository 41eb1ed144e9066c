"""DI-FGSM: momentum on gradients at the input and at copies of it that are smaller and lie
elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option, wide
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState
from holdfast.attacks.shared.transformed import mean_gradient, warped
from holdfast.rng import Keys


@dataclass(frozen=True)
class DIFGSM(MomentumAttack):
    """Diverse inputs (Xie et al. 2019, arXiv:1803.06978), with momentum.

    A copy is shrunk by up to `room` and lies anywhere in a black frame of the image's own size.
    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    Differs from the paper: a step asks about the input and its copy, where there a coin chooses one
    of them.
    """

    copies: int = option(1, "smaller copies, besides the input itself", at_least=0)
    room: float = option(0.1, "share of its side by which a copy may be smaller", at_least=0)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        def change(image: Tensor, i: int) -> Tensor:
            return smaller(image, p.noise(f"copy {i}"), self.room, p.target.bounds.low)

        return self.follow(p, s, mean_gradient(p, s.d, self.loss, self.copies, change))


def smaller(image: Tensor, keys: Keys, room: float, black: float) -> Tensor:
    """Images [n, c, h, w] shrunk to a share in (1 - room, 1], somewhere within a black frame of
    their size."""
    u = keys.uniform((3,), image.dtype)
    share = wide(1 - room * u[:, 0], image[:, 0]).clamp_min(0.01)
    sides = [
        torch.arange(size, dtype=image.dtype, device=image.device) + 0.5
        for size in image.shape[-2:]
    ]
    h, w = image.shape[-2:]
    i = (sides[0][:, None] - wide(u[:, 1], share) * (1 - share) * h) / share - 0.5
    j = (sides[1] - wide(u[:, 2], share) * (1 - share) * w) / share - 0.5
    i, j = torch.broadcast_tensors(i, j)
    return warped(image, i, j, black)
