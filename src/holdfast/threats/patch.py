"""Images under a square that shows anything: at any place, at a stated one, or at any place that
covers no object."""

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

    With `top` and `left` it lies there, counted in pixels from 0. With `outside` it covers no pixel
    of an object: of a detector's truth no box, of a segmenter's no pixel of a class but 0, or of
    its `region`. Where a search proposes another place, the nearest that is free is taken; where
    there is none, the image stays as it is.

    The first two parameters are its place, from one end of the image to the other; each of the
    others takes a value of a pixel under it from its own (0) to an end of the box (-1 or 1). So
    every content at every place can be had. Gradients go straight through that map, as if it rose
    by half of the box's width everywhere; none on the place.
    """

    side: int
    top: int | None = None
    left: int | None = None
    outside: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 1:
            raise SpecError(f"{spec.write(self)} has a side that is no whole number of at least 1.")
        if (self.top is None) != (self.left is None) or not all(map(_place, (self.top, self.left))):
            raise SpecError(
                f"{spec.write(self)} has no place: give top and left, both in pixels from 0, or "
                "neither."
            )
        if not isinstance(self.outside, bool):
            raise SpecError(f"{spec.write(self)} has an outside that is neither True nor False.")

    @property
    def text(self) -> str:
        return spec.write(self)

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        if self.side > min(h, w):
            raise InputError(f"{spec.write(self)} does not fit into images of {h} x {w} pixels.")
        if max((self.top or 0) - h, (self.left or 0) - w) > -self.side:
            raise InputError(
                f"{spec.write(self)} reaches out of images of {h} x {w} pixels (height, width)."
            )
        return (2 + c * self.side**2,)

    def corner(self, u: Tensor, h: int, w: int) -> Tensor:
        """The row and column of the patch's first pixel in images of h x w: [n, 2] int64."""
        if self.top is not None and self.left is not None:
            return torch.tensor([self.top, self.left], device=u.device).expand(len(u), 2)
        places = u.new_tensor([h - self.side + 1, w - self.side + 1])
        return ((u[:, :2] + 1) / 2 * places).minimum(places - 1).long()

    def settled(self, u: Tensor, taken: Tensor) -> Tensor:
        """Parameters [n, k] at the nearest place where no pixel is `taken` ([n, h, w] bool); where
        there is none, those that change nothing."""
        h, w = taken.shape[1:]
        free, corner = self._free(taken), self.corner(u, h, w)
        rows, columns = (torch.arange(k, device=u.device) for k in free.shape[1:])
        far = (rows[:, None] - corner[:, 0, None, None]) ** 2
        far = far + (columns - corner[:, 1, None, None]) ** 2
        if self.top is not None:
            free = free & (far == 0)
        nearest = far.where(free, 4 * (h + w) ** 2).flatten(1).argmin(1)
        at = torch.stack([nearest // free.shape[2], nearest % free.shape[2]], 1)
        places = u.new_tensor(free.shape[1:])
        other = torch.cat([(at + 0.5) / places * 2 - 1, u[:, 2:]], 1)
        other = torch.where((at == corner).all(1, keepdim=True), u, other)
        return torch.where(free.flatten(1).any(1, keepdim=True), other, 0)

    def clear(self, u: Tensor, taken: Tensor) -> Tensor:
        """Whether the patch covers no pixel that is `taken`, or changes nothing: [n] bool."""
        corner = self.corner(u, *taken.shape[1:])
        there = self._free(taken)[torch.arange(len(u), device=u.device), corner[:, 0], corner[:, 1]]
        return there | (u[:, 2:] == 0).all(1)

    def fits(self, taken: Tensor) -> Tensor:
        """Whether there is a place where no pixel is `taken` ([n, h, w] bool): [n] bool."""
        free = self._free(taken)
        if self.top is not None:
            free = free[:, self.top, self.left, None, None]
        return free.flatten(1).any(1)

    def _free(self, taken: Tensor) -> Tensor:
        """At which corners the patch would cover no taken pixel: [n, h - side + 1, w - side + 1]
        bool."""
        s, sums = self.side, taken.long().cumsum(1).cumsum(2)
        sums = torch.nn.functional.pad(sums, (1, 0, 1, 0))
        held = sums[:, s:, s:] - sums[:, :-s, s:] - sums[:, s:, :-s] + sums[:, :-s, :-s]
        return held == 0

    def move(self, image: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        (n, c, h, w), span = image.shape, torch.arange(self.side, device=image.device)
        down, right = (self.corner(u, h, w)[:, :, None] + span).unbind(1)  # [n, side] each
        cells = (down[:, :, None] * w + right[:, None]).view(n, 1, self.side**2).expand(-1, c, -1)
        u = u[:, 2:].reshape(n, c, self.side**2)
        end = torch.where(u > 0, high, low).to(image)
        shown = torch.lerp(image.flatten(2).gather(2, cells), end, u.detach().abs().clamp_max(1))
        shown = shown + (u - u.detach()) * (high - low) / 2
        return image.flatten(2).scatter(2, cells, shown).view_as(image)


def _place(at: object) -> bool:
    """Whether this can be a row or a column, or says none."""
    return at is None or (isinstance(at, int) and not isinstance(at, bool) and at >= 0)
