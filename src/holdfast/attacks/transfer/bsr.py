"""BSR: momentum on gradients at copies whose blocks change places and turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.momentum import MomentumAttack, Moving
from holdfast.attacks.shared.transformed import mean_gradient, strips, warped
from holdfast.rng import Keys


@dataclass(frozen=True)
class BSR(MomentumAttack):
    """Block shuffle and rotation (Wang et al. 2024, arXiv:2308.10299).

    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    Differs from the paper: the input itself is one more copy, so that it is judged; where a turned
    block leaves its place bare stands what lies beside the block, not black.
    """

    copies: int = option(20, "shuffled copies, beside the input itself", at_least=0)
    blocks: int = option(2, "along each side", at_least=1)
    turn: float = option(24.0, "degrees by which a block may turn either way", at_least=0)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: Moving, t: int) -> Moving:
        def change(image: Tensor, i: int) -> Tensor:
            if i % 2:  # columns of blocks first, then the blocks of each
                return change(image.transpose(2, 3), i - 1).transpose(2, 3)
            return shuffled(
                image, p.noise(f"copy {i}"), self.blocks, self.turn, p.target.bounds.low
            )

        return self.follow(p, s, mean_gradient(p, s.d, self.loss, self.copies, change))


class Trade(NamedTuple):
    """For each place of a side whose strips have changed places: [..., size] each."""

    strip: Tensor  # the strip that now lies there
    home: Tensor  # the middle of where it came from
    off: Tensor  # how far the place lies from the middle of where it is now


def traded(u: Tensor, size: int) -> Trade:
    """Strips of widths and order drawn by u [..., 2, b]."""
    _, start, width = strips(u[..., 0, :], size)
    order = u[..., 1, :].argsort(-1)
    ends = width.gather(-1, order).cumsum(-1)
    place = torch.arange(size, device=u.device)
    strip = order.gather(-1, (place[:, None] >= ends[..., None, :]).sum(-1))
    # of each strip, where it is now
    begins = torch.zeros_like(ends).scatter(-1, order, ends - width.gather(-1, order))
    half = (width.gather(-1, strip) - 1).to(u.dtype) / 2
    return Trade(strip, start.gather(-1, strip) + half, place - begins.gather(-1, strip) - half)


def shuffled(image: Tensor, keys: Keys, blocks: int, turn: float, black: float) -> Tensor:
    """Images [n, c, h, w] whose rows of blocks change places, then the blocks of each row, and each
    block turns."""
    h, w = image.shape[-2:]
    rows = traded(keys.fold("rows").uniform((2, blocks), image.dtype), h)
    columns = traded(keys.fold("columns").uniform((blocks, 2, blocks), image.dtype), w)
    at = rows.strip[:, :, None].expand(-1, -1, w)
    strip, home, off = (part.gather(1, at) for part in columns)  # [n, h, w]
    angles = (keys.fold("turns").uniform((blocks * blocks,), torch.float64) * 2 - 1) * math.radians(
        turn
    )
    angle = angles.gather(1, (at * blocks + strip).flatten(1)).view_as(home).to(image.dtype)
    cos, sin, up = angle.cos(), angle.sin(), rows.off[:, :, None]
    return warped(
        image, rows.home[:, :, None] + cos * up - sin * off, home + sin * up + cos * off, black
    )
