"""SimBA: step by step along random orthonormal directions, pixels or waves, keeping each that
raises the margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.image_planes import Planes
from holdfast.norms import wide


class Turns(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its loss, [n]
    order: Tensor  # the directions in the order of their turns, [n, f]
    turn: Tensor  # whose turn it is, [n]
    back: Tensor  # whether its other side is to be tried, [n] bool


@dataclass(frozen=True)
class SimBA(Attack):
    """Simple black-box attack (Guo et al. 2019, arXiv:1905.07121, algorithm 1).

    Directions are single features, or the waves of a discrete cosine transform of each plane: those
    of the lowest eighth of the frequencies in random order, then bands of a 32nd more each (as in
    the authors' code).

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: the loss is the margin, not the class's probability; points are
    projected to the ball; in Linf a step has its length there; when all directions had their turn
    they begin again, in the same order.
    """

    needs = Access.SCORES
    norms: ClassVar = frozenset({"linf", "l2"})

    steps: int = option(10000, "points asked about")
    basis: str = option("pixel", "directions: single features, or waves", choices=("pixel", "dct"))
    step_size: float = option(0.2, "length of a step, a share of the box's width", above=0)

    def start(self, p: Problem) -> Turns:
        d = torch.zeros_like(p.x)
        chance = p.noise("order").uniform((math.prod(p.x.shape[1:]),), torch.float64)
        band = _BASES[self.basis].band(Planes.of(p), p.x)
        order = (band + chance).argsort(dim=1)
        turn = torch.zeros_like(order[:, 0])
        return Turns(d, p.value(d, "margin"), order, turn, turn > 0)

    def step(self, p: Problem, s: Turns, t: int) -> Turns:
        at = s.order.gather(1, s.turn[:, None])[:, 0]
        q = _BASES[self.basis].direction(Planes.of(p), at, p.x)
        length = self.step_size * p.width / p.norm.size(q)
        d = p.project(s.d + wide(torch.where(s.back, -length, length), q) * q)
        value = p.value(d, "margin")
        up = value > s.value
        done = up | s.back
        turn = (s.turn + done) % s.order.shape[1]
        return Turns(
            torch.where(wide(up, d), d, s.d), torch.where(up, value, s.value), s.order, turn, ~done
        )


class Pixel:
    """One feature each."""

    def band(self, planes: Planes, like: Tensor) -> Tensor:
        return like.new_zeros(math.prod(like.shape[1:]))

    def direction(self, planes: Planes, at: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like).flatten(1).scatter(1, at[:, None], 1).view_as(like)


class Cosine:
    """One wave each: plane c, u half periods down and v across, numbered as [c, u, v]."""

    def band(self, planes: Planes, like: Tensor) -> Tensor:
        u, v = (torch.arange(k, device=like.device) / k for k in (planes.h, planes.w))
        highest = torch.maximum(u[:, None], v)
        return (
            (((highest - 1 / 8) * 32).floor() + 1).clamp_min(0).flatten().repeat(planes.c).double()
        )

    def direction(self, planes: Planes, at: Tensor, like: Tensor) -> Tensor:
        c, u, v = at // (planes.h * planes.w), at // planes.w % planes.h, at % planes.w
        wave = _wave(u, planes.h, like)[:, :, None] * _wave(v, planes.w, like)[:, None]
        own = torch.arange(planes.c, device=at.device) == c[:, None]
        return planes.join(own[:, :, None, None] * wave[:, None], like)


def _wave(u: Tensor, k: int, like: Tensor) -> Tensor:
    """The u-th vector [n] of the orthonormal cosine basis (DCT-II) of k places: [n, k]."""
    place = (torch.arange(k, device=u.device).to(like) + 0.5) / k
    wave = (math.pi * u[:, None].to(like) * place).cos()
    return wave * torch.where(u > 0, math.sqrt(2 / k), math.sqrt(1 / k))[:, None].to(like)


_BASES = {"pixel": Pixel(), "dct": Cosine()}
