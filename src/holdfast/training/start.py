"""The weights that a training starts from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from holdfast.errors import InputError

LAYERS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d


def given(net: nn.Module, seed: int) -> None:
    """Those that the network has."""


def ibp(net: nn.Module, seed: int) -> None:
    """New ones, in place, by which intervals grow by no layer: normal, of deviation sqrt(2 pi) over
    the inputs of an entry (Shi et al. 2021, arXiv:2102.06700), and biases of 0.

    Batch norms begin anew. What is frozen stays, and so do the weights of other layers.
    """
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in net.modules():
            weights = [w for w in part.parameters(recurse=False) if w.requires_grad]
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and weights:
                part.reset_parameters()
            for weight in weights if isinstance(part, LAYERS) else ():
                if weight.ndim == 1:
                    weight.zero_()
                    continue
                deviation = math.sqrt(2 * math.pi) / weight[0].numel()
                weight.copy_(deviation * torch.randn(weight.shape, generator=draws))


def fresh(net: nn.Module) -> None:
    """New ones, in place, as each layer draws its own, by torch's random numbers.

    Raises:
        InputError: a layer has weights, and no `reset_parameters` that draws new ones.
    """
    for name, part in net.named_modules():
        reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if reset is not None:
            reset()
        elif list(part.parameters(recurse=False)):
            raise InputError(
                f"{name or 'the network'} ({type(part).__name__}) has weights of its own and no "
                "reset_parameters() that draws new ones."
            )


STARTS: dict[str, Callable[[nn.Module, int], None]] = {"given": given, "ibp": ibp}
