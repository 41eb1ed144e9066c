"""Images whose pixels are taken from places nearby."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.threats.images import sample
from holdfast.threats.transform import Transform


@dataclass(frozen=True)
class Flow(Transform):
    """Every pixel is taken from its own place nearby (StAdv: Xiao et al. 2018, arXiv:1801.02612).

    Differs from the paper: the flow is bounded for each pixel, where the paper trades its roughness
    against success.
    """

    pixels: float  # how far from its own place, each way along each axis

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        return 2, h, w

    def move(self, image: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        h, w = image.shape[2:]
        own = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(u)
        return sample(image, own + self.pixels * u)
