"""SIA: momentum on gradients at copies each of whose blocks is changed in its own way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.momentum import MomentumAttack, Moving
from holdfast.attacks.shared.transformed import mean_gradient, strips
from holdfast.rng import Keys


@dataclass(frozen=True)
class SIA(MomentumAttack):
    """Structure invariant attack (Wang et al. 2023, arXiv:2309.14700).

    Each block of a copy is rolled down or aside, mirrored either way, turned upside down, dimmed,
    or shaken.
    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    Differs from the paper: the input itself is one more copy, so that it is judged; blocks are not
    resized, filtered or dropped out.
    """

    copies: int = option(20, "changed copies, beside the input itself", at_least=0)
    blocks: int = option(3, "along each side", at_least=1)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: Moving, t: int) -> Moving:
        def change(image: Tensor, i: int) -> Tensor:
            return rebuilt(
                image, p.noise(f"copy {i}"), self.blocks, p.target.bounds.low, p.width * 16 / 255
            )

        return self.follow(p, s, mean_gradient(p, s.d, self.loss, self.copies, change))


ROLL_DOWN, ROLL_ASIDE, MIRROR, UPEND, HALF_TURN, DIM, SHAKE = range(7)


def rebuilt(image: Tensor, keys: Keys, blocks: int, black: float, shake: float) -> Tensor:
    """Images [n, c, h, w] whose blocks, cut at random lines, are each changed in one of seven
    ways."""
    n, c, h, w = image.shape
    row, top, height = strips(keys.fold("rows").uniform((blocks,), image.dtype), h)
    column, left, width = strips(keys.fold("columns").uniform((blocks,), image.dtype), w)
    block = (row[:, :, None] * blocks + column[:, None, :]).flatten(1)  # [n, h w]
    how, u = (
        keys.fold(name).uniform((blocks * blocks,), image.dtype).gather(1, block).view(n, h, w)
        for name in ("how", "u")
    )
    how = (how * 7).long()
    i = inside(row, top, height, h)[:, :, None].expand(n, h, w), height.gather(1, row)[:, :, None]
    j = (
        inside(column, left, width, w)[:, None, :].expand(n, h, w),
        width.gather(1, column)[:, None, :],
    )
    down = (
        moved(*i, u, how == ROLL_DOWN, (how == UPEND) | (how == HALF_TURN))
        + top.gather(1, row)[:, :, None]
    )
    aside = (
        moved(*j, u, how == ROLL_ASIDE, (how == MIRROR) | (how == HALF_TURN))
        + left.gather(1, column)[:, None, :]
    )
    source = (down * w + aside).flatten(1)[:, None].expand(n, c, h * w)
    placed = image.flatten(2).gather(2, source).view_as(image)
    share = torch.where(how == DIM, u, 1)[:, None]
    noise = (keys.fold("noise").uniform((c, h, w), image.dtype) * 2 - 1) * shake
    return black + share * (placed - black) + torch.where((how == SHAKE)[:, None], noise, 0)


def inside(strip: Tensor, start: Tensor, width: Tensor, size: int) -> Tensor:
    """How far each place lies from the start of its strip: [n, size]."""
    return torch.arange(size, device=strip.device) - start.gather(1, strip)


def moved(at: Tensor, size: Tensor, u: Tensor, roll: Tensor, mirror: Tensor) -> Tensor:
    """Where the pixel at this distance from its block's edge comes from, in the same block: [n, h,
    w]."""
    rolled = (at + (u * size).long()) % size.clamp_min(1)
    return torch.where(roll, rolled, torch.where(mirror, size - 1 - at, at))
