"""Convolutions, pools and extremes as other frameworks have them, of operators that bounds
follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from holdfast.errors import InputError

Pads = Sequence[tuple[int, int]]


def convolved(
    x: Any, w: Tensor, strides: Sequence[int], pads: Pads, dilation: Sequence[int], groups: int
) -> Any:
    """Convolution of x [n, c, *sides] by w [out, c / groups, *window], each side with its own
    padding of zeros."""
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(strides)]
    padding = _symmetric(pads)
    if padding is None:
        x, padding = _padded(x, pads), [0]
    return conv(x, w, None, tuple(strides), padding, tuple(dilation), groups)


def permuted(x: Any, order: Sequence[int]) -> Any:
    """With its axes in another order."""
    return x if list(order) == list(range(len(order))) else x.permute(*order)


def _symmetric(pads: Pads) -> list[int] | None:
    """The padding at both ends of each axis; None where the ends differ."""
    return [low for low, _ in pads] if all(low == high >= 0 for low, high in pads) else None


def _padded(x: Any, pads: Pads, mode: str = "constant") -> Any:
    """With padding at each end of the last axes."""
    flat = [side for pair in reversed(pads) for side in pair]
    return F.pad(x, flat, mode) if any(flat) else x


def pooled(
    x: Any,
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    *,
    largest: bool,
) -> Any:
    """The largest entry of each window, or the sum of its entries: x, window, strides and padding
    of the same axes, at most two of them longer than 1.

    Raises:
        InputError: windows over more axes, or padding wider than a window.
    """
    axes = [i for i in range(len(shape)) if (window[i], strides[i], *pads[i]) != (1, 1, 0, 0)]
    if len(axes) > 2 or any(max(pads[i]) >= window[i] for i in axes):
        raise InputError(f"not supported: windows {tuple(window)} with padding {tuple(pads)}.")
    axes = [*(i for i in range(len(shape)) if i not in axes), *axes][-2:]
    rest = [i for i in range(len(shape)) if i not in axes]
    sizes = [shape[i] for i in axes]
    x = permuted(x, [*rest, *axes]).reshape(1, -1, *sizes)
    size, stride = ([given[i] for i in axes] for given in (window, strides))
    # a repeated edge is in each window that reaches beyond it, so that it changes no maximum
    x = _padded(x, [pads[i] for i in axes], "replicate" if largest else "constant")
    if largest:
        x = F.max_pool2d(x, size, stride)
    else:
        x = F.avg_pool2d(x, size, stride, divisor_override=1)
    made = [(sum(pads[i]) + shape[i] - window[i]) // strides[i] + 1 for i in axes]
    order = [*rest, *axes]
    x = x.reshape(*(shape[i] for i in rest), *made)
    return permuted(x, [order.index(i) for i in range(len(shape))])


def same(sides: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pads:
    """The padding that gives ceil(side / stride) results a side, the odd one at the end."""
    total = [
        max((math.ceil(n / step) - 1) * step + size - n, 0)
        for n, size, step in zip(sides, window, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) for t in total]
