"""Images cut into blocks at random lines, and what becomes of the blocks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.shared.transformed import warped
from holdfast.rng import Keys

ROLL_DOWN, ROLL_ACROSS, MIRROR, UPEND, HALF_TURN, DIM, SHAKE = range(7)


def strips(u: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A side cut into strips whose widths go as u [..., b]: the strip of each place [..., size],
    starts and widths."""
    ends = (u.cumsum(-1) / u.sum(-1, keepdim=True).clamp_min(1e-9) * size).round().long()
    ends = torch.cat([ends[..., :-1], torch.full_like(ends[..., :1], size)], -1)
    start = torch.cat([torch.zeros_like(ends[..., :1]), ends[..., :-1]], -1)
    place = torch.arange(size, device=u.device)
    return (place[:, None] >= ends[..., None, :]).sum(-1), start, ends - start


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
        shifted(*i, u, how == ROLL_DOWN, (how == UPEND) | (how == HALF_TURN))
        + top.gather(1, row)[:, :, None]
    )
    across = (
        shifted(*j, u, how == ROLL_ACROSS, (how == MIRROR) | (how == HALF_TURN))
        + left.gather(1, column)[:, None, :]
    )
    source = (down * w + across).flatten(1)[:, None].expand(n, c, h * w)
    placed = image.flatten(2).gather(2, source).view_as(image)
    share = torch.where(how == DIM, u, 1)[:, None]
    noise = (keys.fold("noise").uniform((c, h, w), image.dtype) * 2 - 1) * shake
    return black + share * (placed - black) + torch.where((how == SHAKE)[:, None], noise, 0)


def inside(strip: Tensor, start: Tensor, width: Tensor, size: int) -> Tensor:
    """How far each place lies from the start of its strip: [n, size]."""
    return torch.arange(size, device=strip.device) - start.gather(1, strip)


def shifted(at: Tensor, size: Tensor, u: Tensor, roll: Tensor, mirror: Tensor) -> Tensor:
    """Where the pixel at this distance from its block's edge comes from, in the same block: [n, h,
    w]."""
    rolled = (at + (u * size).long()) % size.clamp_min(1)
    return torch.where(roll, rolled, torch.where(mirror, size - 1 - at, at))
