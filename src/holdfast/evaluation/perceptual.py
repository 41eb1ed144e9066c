"""How much a change shows: PSNR, the structural similarity of Wang et al. 2004
(doi:10.1109/TIP.2003.819861), and what a network of the user's says, as LPIPS (Zhang et al. 2018,
arXiv:1801.03924)."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from holdfast import usercode
from holdfast.corruptions import filters
from holdfast.errors import InputError
from holdfast.targets.frameworks.pytorch.target import content_of, frozen
from holdfast.targets.loading import made
from holdfast.targets.target import Target, sealed
from holdfast.threats.images import channels_first
from holdfast.threats.threat import Threat


def image_distances(
    target: Target, threat: Threat, x: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """PSNR in decibels and SSIM of inputs `found` against inputs x [n, *shape], [n] float64 each;
    NaN for no images, and under a spatial threat, whose pixels are not compared one by one.

    The range is that of the bounds. SSIM has the paper's window (11 taps of a Gaussian of 1.5
    pixels, reflected at the border) and constants, and is averaged over pixels and channels.
    """
    nothing = torch.full((len(x),), torch.nan, dtype=torch.float64)
    if threat.spatial is not None or not pictures(target, x) or not len(x):
        return nothing, nothing.clone()
    a, b = (
        channels_first(x, target.inputs.layout).double(),
        channels_first(found, target.inputs.layout).double(),
    )
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


class PerceptualDistance:
    """How different two images look to a network, in float64.

    Args:
        network: a module, or the `path/file.py:factory` of one, which gives a distance a row, [n]
            or [n, 1, 1, 1], of two batches of images [n, 3, h, w] in [-1, 1]; grey ones come with
            three equal channels. That is the interface of the package `lpips`. It is copied, in
            eval mode.
        target: whose inputs [n, *shape] are to be compared; bound to their shape.

    Raises:
        InputError: it is no module, fails on two images of that shape, or the inputs are no images.
    """

    def __init__(self, network: str | nn.Module, target: Target) -> None:
        found = made(network) if isinstance(network, str) else network
        if not isinstance(found, nn.Module):
            raise InputError(
                f"perceptual distances need a torch module, but got a {type(found).__name__}."
            )
        shape = tuple(target.shape or ())
        ramp = torch.linspace(target.bounds.low, target.bounds.high, math.prod(shape))
        pair = torch.stack([ramp, ramp.flip(0)]).reshape(2, *shape)
        if not pictures(target, pair):
            raise InputError(
                "perceptual distances are of images of one or three channels, not of inputs "
                f"{shape}."
            )
        self.name, self.target = f"the perceptual network {type(found).__name__}", target
        digest = hashlib.sha256()
        for part in content_of(found):
            digest.update(part)
        self.fingerprint = digest.hexdigest()
        self.network = frozen(found, target.batcher.device).double()
        usercode.call(self.name, self, pair, pair.flip(0))

    def __call__(self, x: Tensor, found: Tensor) -> Tensor:
        """Of inputs `found` from inputs x [n, *shape]: [n] float64, on the CPU.

        Raises:
            InputError: the network gives something else, or a value that is not finite.
        """
        with sealed(0):
            parts = self.target.batcher.parts(lambda rows: self._ask(x[rows], found[rows]), len(x))
            return torch.cat(list(parts) or [torch.zeros(0, dtype=torch.float64)])

    def _ask(self, *pair: Tensor) -> Tensor:
        low, high = self.target.bounds.low, self.target.bounds.high
        images = [
            channels_first(x.to(self.target.batcher.device).double(), self.target.inputs.layout)
            for x in pair
        ]
        answer = self.network(
            *((2 * (u - low) / (high - low) - 1).expand(-1, 3, -1, -1).contiguous() for u in images)
        )
        n = len(images[0])
        if not isinstance(answer, Tensor) or answer.shape[:1] != (n,) or answer.numel() != n:
            given = (
                tuple(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            )
            raise InputError(
                f"{self.name} gives {given} for {n} pairs of images; it must give one distance a "
                "pair."
            )
        distance = answer.double().flatten().cpu()
        if not distance.isfinite().all():
            odd = float(distance[~distance.isfinite()][0])
            raise InputError(
                f"{self.name} gives {odd} for a pair of images; a distance must be a finite number."
            )
        return distance


def pictures(target: Target, x: Tensor) -> bool:
    """Whether inputs x [n, *shape] are images that colours or greys can be told of."""
    return (
        not target.inputs.context
        and x.ndim == 4
        and channels_first(x, target.inputs.layout).shape[1] in (1, 3)
    )
