"""Images under a square that shows anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.threats.transform import Transform


@dataclass(frozen=True)
class Patch(Transform):
    """One square of side x side pixels, at any place within the image, shows anything (Croce et al.
    2022, section 4).

    The first two parameters are its place, from one end of the image to the other; each of the
    others takes a value of a pixel under it from its own (0) to an end of the box (-1 or 1). So
    every content at every place can be had. Gradients go straight through that map, as if it rose
    by half of the box's width everywhere; none on the place.
    """

    side: int

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 1:
            raise SpecError(f"{spec.write(self)} has a side that is no whole number of at least 1.")

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        if self.side > min(h, w):
            raise InputError(f"{spec.write(self)} does not fit into images of {h} x {w} pixels.")
        return (2 + c * self.side**2,)

    def move(self, image: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        (n, c, h, w), span = image.shape, torch.arange(self.side, device=image.device)
        places = u.new_tensor([h - self.side + 1, w - self.side + 1])
        corner = ((u[:, :2] + 1) / 2 * places).minimum(places - 1).long()
        down, right = (corner[:, :, None] + span).unbind(1)  # [n, side] each
        cells = (down[:, :, None] * w + right[:, None]).view(n, 1, self.side**2).expand(-1, c, -1)
        u = u[:, 2:].reshape(n, c, self.side**2)
        end = torch.where(u > 0, high, low).to(image)
        shown = torch.lerp(image.flatten(2).gather(2, cells), end, u.detach().abs().clamp_max(1))
        shown = shown + (u - u.detach()) * (high - low) / 2
        return image.flatten(2).scatter(2, cells, shown).view_as(image)
