"""How an input is read as an image, and squares within it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.problem import Problem


class ImageShape(NamedTuple):
    """How the features of one input lie in c channels of h rows and w columns."""

    c: int
    h: int
    w: int
    strides: tuple[int, int, int]  # features from one channel, row or column to the next

    @staticmethod
    def of(p: Problem) -> ImageShape:
        """Inputs that are no images are one channel; those with one axis, one row."""
        shape = (1,) * (4 - p.x.ndim) + tuple(p.x.shape[1:])
        if p.layout == "nhwc" and p.x.ndim == 4:
            h, w, c = shape
            return ImageShape(c, h, w, (1, w * c, c))
        h, w = shape[-2:]
        return ImageShape(math.prod(shape[:-2]), h, w, (h * w, w, 1))

    def window(self, share: float, least: int, odd: bool) -> tuple[int, int]:
        """Rows and columns of a square that covers this share of a channel, or of a rectangle where
        no square fits."""
        side = max(round(math.sqrt(share * self.h * self.w)), least)
        side += odd and side % 2 == 0
        if side > self.h:
            return self.h, min(max(round(share * self.w), side), self.w)
        return (
            (min(max(round(share * self.h), side), self.h), self.w)
            if side > self.w
            else (side, side)
        )

    def at(self, rows: int, columns: int, corner: Tensor) -> Tensor:
        """The features of one window a row, its corner drawn from u [n, 2] in [0, 1): [n, c, rows *
        columns]."""
        steps = [
            torch.arange(k, device=corner.device) * s
            for k, s in zip((self.c, rows, columns), self.strides, strict=True)
        ]
        cells = (steps[0][:, None, None] + steps[1][:, None] + steps[2]).flatten(1)
        room = corner.new_tensor([self.h - rows + 1, self.w - columns + 1])
        return (
            cells
            + ((corner * room).long() * cells.new_tensor(self.strides[1:])).sum(1)[:, None, None]
        )

    def split(self, x: Tensor) -> Tensor:
        """Inputs as images [n, c, h, w]."""
        if self.strides[0] == 1:
            return x.reshape(len(x), self.h, self.w, self.c).movedim(-1, 1)
        return x.reshape(len(x), self.c, self.h, self.w)

    def join(self, images: Tensor, like: Tensor) -> Tensor:
        """Images [n, c, h, w] as inputs."""
        return (images.movedim(1, -1) if self.strides[0] == 1 else images).reshape(like.shape)
