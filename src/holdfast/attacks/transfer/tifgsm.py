"""TI-FGSM: momentum on gradients that are smoothed over the image, as if it were asked at many
small shifts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.image_shape import ImageShape
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState


@dataclass(frozen=True)
class TIFGSM(MomentumAttack):
    """Translation invariant method (Dong et al. 2019, arXiv:1904.02884), with momentum.

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the width of the Gaussian goes with the image (its 15 pixels of 299 are
    the default), so that images of a few pixels are hardly smoothed at all unless a larger share is
    asked for.
    """

    width: float = option(
        0.05, "of the Gaussian out to three deviations, as a share of the image's side", at_least=0
    )
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        _, g = p.gradient(s.d, self.loss)
        shape = ImageShape.of(p)
        image = shape.split(g)
        smooth = blurred(blurred(image, self.width).transpose(2, 3), self.width).transpose(2, 3)
        return self.follow(p, s, shape.join(smooth, g))


def blurred(image: Tensor, width: float) -> Tensor:
    """Images [n, c, h, w] smoothed along w by a Gaussian of three deviations to either end of this
    share of it."""
    side = image.shape[-1]
    if (radius := min(int(width * side / 2), side - 1)) == 0:
        return image
    weights = [math.exp(-((3 * (i / radius - 1)) ** 2) / 2) for i in range(2 * radius + 1)]
    wide = pad(image, (radius, radius))
    return torch.stack(
        [wide[..., i : i + side] * w / sum(weights) for i, w in enumerate(weights)]
    ).sum(0)
