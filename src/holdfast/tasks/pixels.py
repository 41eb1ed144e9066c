"""Losses of pixels, which attacks on a segmentation ascend (Croce et al. 2023, arXiv:2306.12941).

Functions of logits [n, c, H, W], classes [n, H, W] (int64, 0 to c - 1) and which pixels are judged
[n, H, W] (bool): [n] each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.losses import without

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def jsd(logits: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of the softmax and the true class, mean of judged pixels:
    [n]."""
    p = F.log_softmax(logits, 1).gather(1, truth[:, None])[:, 0].exp()
    least = torch.finfo(p.dtype).tiny
    divergence = math.log(2) + (p * p.clamp_min(least).log() - (1 + p) * (1 + p).log()) / 2
    return _weighted(divergence, judged)


def masked_ce(logits: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """Cross-entropy of the judged pixels that are still right: [n]."""
    ce = F.cross_entropy(logits, truth, reduction="none")
    return _weighted(ce, _right(logits, truth, judged))


def balanced_ce(logits: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """The same, where each class of the truth weighs alike: [n]. (In the authors' code its pixels
    weigh 1 - their share, which is nothing where there is one class.)"""
    return _balanced(F.cross_entropy(logits, truth, reduction="none"), logits, truth, judged)


def pair_ce(logits: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """The same against the best other class alone, so that each pixel is pulled straight to its
    nearest boundary: [n]. (Ours: the gradient of a cross-entropy of three or more classes points
    between them.)"""
    own = logits.gather(1, truth[:, None])[:, 0]
    other = without(logits, truth).amax(1)
    return _balanced(F.softplus(other - own), logits, truth, judged)


LOSSES: dict[str, Loss] = {
    "jsd": jsd,
    "masked_ce": masked_ce,
    "balanced_ce": balanced_ce,
    "pair_ce": pair_ce,
}


def _balanced(values: Tensor, logits: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """The sum over classes of the truth of the mean of values [n, H, W] over its pixels, those that
    are wrong as 0: [n]."""
    n, c = logits.shape[:2]
    held = torch.zeros(n, c, dtype=logits.dtype, device=logits.device)
    held.scatter_add_(1, truth.flatten(1), judged.flatten(1).to(held))
    weight = (1 / held.clamp_min(1)).gather(1, truth.flatten(1)).view_as(truth)
    return (weight * values.where(_right(logits, truth, judged), 0)).flatten(1).sum(1)


def _right(logits: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    return judged & (logits.argmax(1) == truth)


def _weighted(values: Tensor, which: Tensor) -> Tensor:
    """The sum of values [n, H, W] at some pixels, by the number of all."""
    return values.where(which, 0).flatten(1).mean(1)
