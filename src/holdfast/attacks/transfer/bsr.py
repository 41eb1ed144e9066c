"""BSR: momentum on gradients at copies whose blocks change places and turn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.image_blocks import shuffled
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState
from holdfast.attacks.shared.transformed import mean_gradient


@dataclass(frozen=True)
class BSR(MomentumAttack):
    """Block shuffle and rotation (Wang et al. 2024, arXiv:2308.10299).

    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    Differs from the paper: the input itself is one more copy, so that it is judged; where a turned
    block leaves its place bare is what lies next to the block, not black.
    """

    copies: int = option(20, "shuffled copies, besides the input itself", at_least=0)
    blocks: int = option(2, "along each side", at_least=1)
    turn: float = option(24.0, "degrees by which a block may turn either way", at_least=0)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        def change(image: Tensor, i: int) -> Tensor:
            if i % 2:  # columns of blocks first, then the blocks of each
                return change(image.transpose(2, 3), i - 1).transpose(2, 3)
            return shuffled(
                image, p.noise(f"copy {i}"), self.blocks, self.turn, p.target.bounds.low
            )

        return self.follow(p, s, mean_gradient(p, s.d, self.loss, self.copies, change))
