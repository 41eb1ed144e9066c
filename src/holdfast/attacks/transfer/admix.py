"""Admix: the mean gradient over copies of an input into which a little of images of other classes
is mixed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.image_shape import ImageShape
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState
from holdfast.attacks.shared.pool import others
from holdfast.attacks.shared.transformed import mean_gradient


@dataclass(frozen=True)
class Admix(MomentumAttack):
    """Admix (Wang et al. 2021, arXiv:2102.00436, algorithm 1).

    A copy is the input with a `share` of an image of another class over the lower bound added to
    it, and faded as in SI-FGSM: copy i has its brightness divided by 2 ** i, from i = 0.
    Cost: `samples` x `copies` + 1 forwards and backwards a step and row, and one forward for the
    last point.
    Differs from the paper: the images come from a `pool`, not from the batch; the input
    itself is one more copy, so that it is judged; copies are cut at the bounds.
    """

    mixes = True

    samples: int = option(3, "images that are mixed in, one at a time", at_least=1)
    share: float = option(0.2, "of such an image", at_least=0)
    copies: int = option(5, "of each mixture, the first of full brightness", at_least=1)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        black, mixed = p.target.bounds.low, others(p, self.samples)

        def change(image: Tensor, i: int) -> Tensor:
            other = ImageShape.of(p).split(mixed[:, i // self.copies])
            return black + (image - black + self.share * (other - black)) / 2 ** (i % self.copies)

        g = mean_gradient(p, s.d, self.loss, self.samples * self.copies, change)
        return self.follow(p, s, g)
