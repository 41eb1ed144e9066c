"""Changed copies of inputs, and the gradients that come back through the change.

A change takes images [n, c, h, w] to images of the same shape, each row by its own keys, and
torch's autograd takes gradients back through it. The copies are no answers: they may lie beyond
eps, though never beyond the box or the mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from holdfast.attacks.problem import Problem
from holdfast.attacks.shared.image_shape import ImageShape

Change = Callable[[Tensor, int], Tensor]  # images and the number of the copy, from 0


def mean_gradient(p: Problem, d: Tensor, loss: str, samples: int, change: Change) -> Tensor:
    """Of the loss at d itself, which is judged, and at some changed copies of x + d: [n,
    *shape]."""
    _, g = p.gradient(d, loss)
    shape = ImageShape.of(p)
    for i in range(samples):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (p.x + d).detach().requires_grad_()
            changed = (shape.join(change(shape.split(leaf), i), leaf) - p.x).clamp(p.lo, p.hi)
        _, slope = p.gradient(changed.detach(), loss, within=True)
        with torch.enable_grad():
            g = g + torch.autograd.grad((changed * slope).sum(), leaf)[0]
    return g / (samples + 1)


def warped(image: Tensor, i: Tensor, j: Tensor, empty: float) -> Tensor:
    """Images [n, c, h, w] whose pixels come from rows i and columns j ([n, h, w], in between:
    bilinear)."""
    h, w = image.shape[-2:]
    grid = torch.stack([(2 * j + 1) / w - 1, (2 * i + 1) / h - 1], -1).to(image.dtype)
    return grid_sample(image - empty, grid, align_corners=False) + empty
