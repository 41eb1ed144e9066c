"""Losses that attacks ascend: functions of scores z [n, k], true classes y [n] and aims t [n] or
None: [n].

With an aim the loss pulls class t up (over y), without one it pulls any wrong class over y. All are
invariant to a shift of the scores. An attack uses a loss's gradient direction and its order, never
its units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def without(z: Tensor, c: Tensor) -> Tensor:
    """Scores with class c [n] at -inf. (A product with a 0/1 mask would let 0 win over negative
    scores.)"""
    return z.scatter(1, c[:, None], -torch.inf)


def ce(z: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """Cross-entropy as log-odds: log((1 - p_y) / p_y), or log(p_t / (1 - p_t)).

    A monotone function of the cross-entropy with the same gradient direction, so order and
    direction are those of the original; but it stays exact where the softmax saturates in float32
    and the original's gradient vanishes.
    """
    c, sign = (y, 1) if t is None else (t, -1)
    return sign * (without(z, c).logsumexp(1) - _at(z, c))


def margin(z: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """max_{j != y} z_j - z_y, or z_t - z_y (Carlini and Wagner 2017, arXiv:1608.04644, f6)."""
    other = without(z, y).amax(1) if t is None else _at(z, t)
    return other - _at(z, y)


def dlr(z: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """Difference of logits ratio, invariant to scale (Croce and Hein 2020, arXiv:2003.01690, eq. 6
    and 7).

    Untargeted it needs 3 classes, targeted 4; with fewer it is the margin, which an attack follows
    alike.
    """
    if z.shape[1] < (3 if t is None else 4):
        return margin(z, y, t)
    top = z.sort(1, descending=True).values
    spread = top[:, 0] - (top[:, 2] if t is None else (top[:, 2] + top[:, 3]) / 2)
    return margin(z, y, t) / (spread + 1e-12)


def mifpe(z: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """Gap-scaled cross-entropy: its gradient is that of `ce` on z / (gap of the top two), gap held
    fixed.

    Minimises the impact of floating-point errors (Yu and Xu 2023, "Efficient Loss Function by
    Minimizing the Detrimental Effect of Floating-Point Errors on Gradient-Based Attacks"). The gap
    changes from point to point, so the loss does not order points; its value here is the margin,
    which does.
    """
    top = z.detach().topk(2, 1).values
    gap = (top[:, :1] - top[:, 1:]).clamp_min(torch.finfo(z.dtype).tiny)
    # Past e^±1e4 nothing changes but overflow comes near.
    pull = ce((z - top[:, :1]).div(gap).clamp_min(-1e4), y, t)
    return _as_margin(pull, z, y, t)


def by_margin(loss: str) -> str | Loss:
    """What has the gradient of a loss of EVERY_LOSS, and the margin for its value."""
    if loss not in ("ce", "dlr"):
        return loss
    pull = LOSSES[loss]
    return lambda z, y, t: _as_margin(pull(z, y, t), z, y, t)


def _as_margin(pull: Tensor, z: Tensor, y: Tensor, t: Tensor | None) -> Tensor:
    return margin(z, y, t).detach() + (pull - pull.detach())


def _at(z: Tensor, c: Tensor) -> Tensor:
    return z.gather(1, c[:, None])[:, 0]


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr, "mifpe": mifpe}
# Of the pixels of a segmentation, by the functions in `holdfast.tasks.pixels`. Its scores are of an
# image as a whole, and of these each is the margin, with the gradient of that function.
PIXEL_LOSSES = ("jsd", "masked_ce", "balanced_ce", "pair_ce")
EVERY_LOSS: dict[str, Loss] = LOSSES | dict.fromkeys(PIXEL_LOSSES, margin)
