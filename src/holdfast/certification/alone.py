"""What every proof rests on: that a model answers a row by itself, whatever the others of its
batch."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.bounds.graph import unsupported
from holdfast.targets.batch import Batch
from holdfast.targets.target import Access, Target

TRIED = 4  # random rows at which a model is held against itself


def answers_alone(target: Target) -> tuple[Tensor, Tensor]:
    """Random rows of the box [n, *shape], and what the model answers to each alone: its scores, or
    its labels where it gives no more.

    Raises:
        InputError: it answers otherwise where they are of one batch.
    """
    ask = target.scores if target.access >= Access.SCORES else target.labels
    shape, batcher = target.shape or (), target.batcher
    noise = torch.rand((TRIED, *shape), generator=torch.Generator().manual_seed(0))
    noise = noise.to(batcher.device, batcher.dtype)
    low, high = (torch.as_tensor(side).to(noise) for side in target.bounds.sides(noise))
    x = low + (high - low) * noise
    both, *each = (ask(Batch(rows)) for rows in (x, *x.split(1)))
    alone = torch.cat(each)
    same = alike(both, alone) if target.access >= Access.SCORES else torch.equal(both, alone)
    if not same:
        raise unsupported(
            "proofs of a model whose answer to an input depends on the others of its batch; "
            "expected one that takes rows one by one, such as after model.eval()"
        )
    return x, alone


def alike(scores: Tensor, others: Tensor) -> bool:
    scores, others = scores.nan_to_num(), others.nan_to_num()
    return torch.allclose(scores, others, rtol=1e-3, atol=1e-3 * float(others.abs().max()))
