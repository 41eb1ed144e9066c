"""Images in the layouts that models take, and read between their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.errors import InputError


def channel_axis(layout: str) -> int:
    """Where the channels are in the shape of one image, or of many."""
    return {"nhwc": -1}.get(layout, -3)


def channels_first(x: Tensor, layout: str) -> Tensor:
    """Images [n, *shape] as [n, c, h, w]; those without an axis of channels have one.

    Raises:
        InputError: the inputs are no images.
    """
    if x.ndim not in (3, 4):
        raise InputError(
            f"inputs of shape {tuple(x.shape[1:])} are no images, and only images can be moved."
        )
    if x.ndim == 3:
        return x[:, None]
    return x.movedim(channel_axis(layout), 1)


def from_channels_first(x: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """The images of this shape of which these are the `channels_first`."""
    if len(shape) == 2:
        return x[:, 0]
    return x.movedim(1, channel_axis(layout))


def sample(image: Tensor, at: Tensor, outside: float | None = None) -> Tensor:
    """Images [n, c, h, w] read at points [n, 2, *form] (row and column, from 0), bilinear: [n, c,
    *form].

    Beyond the border all is `outside`, or (None) as the nearest pixel. At a pixel's own place its
    value is exact.
    """
    n, c, h, w = image.shape
    y, x = at.unbind(1)
    if outside is None:
        y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    read = image.new_zeros(())
    for i, tall in ((top, 1 - down), (top + 1, down)):
        for j, wide in ((left, 1 - right), (left + 1, right)):
            place = (i.clamp(0, h - 1) * w + j.clamp(0, w - 1)).long().flatten(1)
            value = (
                image.flatten(2)
                .gather(2, place[:, None].expand(-1, c, -1))
                .view(n, c, *y.shape[1:])
            )
            inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
            read = read + (tall * wide)[:, None] * torch.where(
                inside[:, None], value, outside or 0.0
            )
    return read
