"""SIA: momentum on gradients at copies each of whose blocks is changed in its own way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.image_blocks import rebuilt
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState
from holdfast.attacks.shared.transformed import mean_gradient


@dataclass(frozen=True)
class SIA(MomentumAttack):
    """Structure invariant attack (Wang et al. 2023, arXiv:2309.14700).

    Each block of a copy is rolled down or aside, mirrored either way, turned upside down, dimmed,
    or shaken.
    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    Differs from the paper: the input itself is one more copy, so that it is judged; blocks are not
    resized, filtered or dropped out.
    """

    copies: int = option(20, "changed copies, besides the input itself", at_least=0)
    blocks: int = option(3, "along each side", at_least=1)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        def change(image: Tensor, i: int) -> Tensor:
            return rebuilt(
                image, p.noise(f"copy {i}"), self.blocks, p.target.bounds.low, p.width * 16 / 255
            )

        return self.follow(p, s, mean_gradient(p, s.d, self.loss, self.copies, change))
