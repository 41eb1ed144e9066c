"""Orthonormal bases of the inputs: single features, or waves of each channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.attacks.shared.image_shape import ImageShape


class Pixel:
    """One feature each."""

    def band(self, shape: ImageShape, like: Tensor) -> Tensor:
        return like.new_zeros(math.prod(like.shape[1:]))

    def direction(self, shape: ImageShape, at: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like).flatten(1).scatter(1, at[:, None], 1).view_as(like)


class Cosine:
    """One wave each: channel c, u half periods down and v across, numbered as [c, u, v]."""

    def band(self, shape: ImageShape, like: Tensor) -> Tensor:
        u, v = (torch.arange(k, device=like.device) / k for k in (shape.h, shape.w))
        highest = torch.maximum(u[:, None], v)
        return (
            (((highest - 1 / 8) * 32).floor() + 1).clamp_min(0).flatten().repeat(shape.c).double()
        )

    def direction(self, shape: ImageShape, at: Tensor, like: Tensor) -> Tensor:
        c, u, v = at // (shape.h * shape.w), at // shape.w % shape.h, at % shape.w
        wave = _wave(u, shape.h, like)[:, :, None] * _wave(v, shape.w, like)[:, None]
        own = torch.arange(shape.c, device=at.device) == c[:, None]
        return shape.join(own[:, :, None, None] * wave[:, None], like)


def _wave(u: Tensor, k: int, like: Tensor) -> Tensor:
    """The u-th vector [n] of the orthonormal cosine basis (DCT-II) of k places: [n, k]."""
    place = (torch.arange(k, device=u.device).to(like) + 0.5) / k
    wave = (math.pi * u[:, None].to(like) * place).cos()
    return wave * torch.where(u > 0, math.sqrt(2 / k), math.sqrt(1 / k))[:, None].to(like)


BASES = {"pixel": Pixel(), "dct": Cosine()}
