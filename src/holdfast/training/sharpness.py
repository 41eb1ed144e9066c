"""Weights perturbed to where the loss is higher, while a step computes its gradient: for flatter
minima."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.training.inner_attack import evaluating

_TINY = 1e-12


def awp(weights: list[Tensor], slopes: list[Tensor], size: float) -> list[Tensor]:
    """Each tensor of two axes or more by `size` of its own length (Wu et al. 2020,
    arXiv:2004.05884).

    Differs from the authors' code: the step is taken on the network itself in eval mode, not on a
    proxy, so batch norms see the batch once.
    """
    return [
        g * (size * w.norm() / g.norm().clamp_min(_TINY)) if w.ndim > 1 else torch.zeros_like(w)
        for w, g in zip(weights, slopes, strict=True)
    ]


def sam(weights: list[Tensor], slopes: list[Tensor], size: float) -> list[Tensor]:
    """All together by the length `size` along the gradient (Foret et al. 2021,
    arXiv:2010.01412)."""
    length = torch.stack([g.norm() for g in slopes]).norm().clamp_min(_TINY)
    return [g * (size / length) for g in slopes]


def asam(weights: list[Tensor], slopes: list[Tensor], size: float) -> list[Tensor]:
    """The same, every weight measured in units of itself (Kwon et al. 2021, arXiv:2102.11600)."""
    length = (
        torch.stack([(w.abs() * g).norm() for w, g in zip(weights, slopes, strict=True)])
        .norm()
        .clamp_min(_TINY)
    )
    return [w.square() * g * (size / length) for w, g in zip(weights, slopes, strict=True)]


MOVES: dict[str, Callable[[list[Tensor], list[Tensor], float], list[Tensor]]] = {
    "awp": awp,
    "sam": sam,
    "asam": asam,
}


@contextmanager
def perturbed_weights(
    net: nn.Module,
    loss: Callable[[], Tensor],
    kind: str,
    size: float,
    mean: Callable[[list[Tensor]], None] = lambda _: None,
) -> Iterator[None]:
    """Within, the weights are where a move of this kind and size raises the loss most; of size 0,
    where they were.

    Args:
        mean: makes gradients on some rows those on all, in place.
    """
    weights = [w for w in net.parameters() if size and w.requires_grad]
    saved = [w.detach().clone() for w in weights]
    if weights:
        with evaluating(net):
            slopes = list(torch.autograd.grad(loss(), weights, materialize_grads=True))
        mean(slopes)
        with torch.no_grad():
            for w, move in zip(weights, MOVES[kind](saved, slopes, size), strict=True):
                w.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, old in zip(weights, saved, strict=True):
                w.copy_(old)
