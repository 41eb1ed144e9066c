"""How much a change shows: PSNR, and the structural similarity of Wang et al. 2004 (doi:10.1109/TIP.2003.819861)."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.evaluate import filters
from holdfast.targets.spatial import planes
from holdfast.targets.target import Target


def looks(target: Target, x: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in decibels and SSIM of inputs `found` against inputs x [n, *shape], [n] float64 each; NaN for no images.

    The range is that of the bounds. SSIM has the paper's window (11 taps of a Gaussian of 1.5 pixels, reflected at
    the border) and constants, and is averaged over pixels and channels.
    """
    nothing = torch.full((len(x),), torch.nan, dtype=torch.float64)
    if target.free is not None or x.ndim != 4 or not len(x):
        return nothing, nothing.clone()
    a, b = planes(x, target.layout).double(), planes(found, target.layout).double()
    if a.shape[1] not in (1, 3):
        return nothing, nothing.clone()
    reach = target.bounds.high - target.bounds.low
    psnr = 10 * torch.log10(reach**2 / (a - b).square().mean((1, 2, 3)))
    return psnr.cpu(), ssim(a, b, reach).cpu()


def ssim(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """Structural similarity of images [n, c, h, w], float64: [n]."""

    def local(x: Tensor) -> Tensor:
        return filters.smooth(x, 1.5, "reflect", truncate=3.5)

    mean_a, mean_b = local(a), local(b)
    spread = local(a * a) - mean_a**2 + local(b * b) - mean_b**2
    joint = local(a * b) - mean_a * mean_b
    dim, flat = (0.01 * reach) ** 2, (0.03 * reach) ** 2
    light = (2 * mean_a * mean_b + dim) / (mean_a**2 + mean_b**2 + dim)
    return (light * (2 * joint + flat) / (spread + flat)).mean((1, 2, 3))
