"""Train: the undefended baseline, plain cross-entropy with a cosine schedule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data import Source
from holdfast.errors import InputError
from holdfast.targets.preprocess import Preprocess
from holdfast.targets.target import sealed


def train(
    model: nn.Module,
    data: Source,
    *,
    epochs: int = 15,
    batch_size: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    preprocess: tuple[Preprocess, ...] = (),
    device: str = "cpu",
    watch: Callable[[int, int, float, float], None] = lambda *_: None,
) -> nn.Module:
    """Train a model on labelled rows, in place, with Adam; returns it in eval mode.

    Rows are shuffled by `seed`; the same seed gives the same weights on the same machine.

    Args:
        watch: told of each epoch: its number from 1, their count, the mean loss and the training accuracy.

    Raises:
        InputError: the loss is no longer finite.
    """
    model.to(device).train()
    adam = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * -(-len(data) // batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    with sealed(seed), torch.enable_grad():
        for epoch in range(1, epochs + 1):
            total, right = 0.0, 0
            for x, y in _shuffled(data, batch_size, seed + epoch):
                x, y = x.to(device), y.to(device)
                for step in preprocess:
                    x = step(x)
                z = model(x)
                loss = F.cross_entropy(z, y)
                adam.zero_grad()
                loss.backward()
                adam.step()
                cosine.step()
                total, right = total + float(loss.detach()) * len(y), right + int((z.argmax(1) == y).sum())
            if not np.isfinite(total):
                raise InputError(f"the loss is not finite in epoch {epoch}; try a lower --rate than {rate:g}.")
            watch(epoch, epochs, total / len(data), right / len(data))
    return model.eval()


def _shuffled(data: Source, batch_size: int, seed: int):
    # Shuffled within blocks that are themselves shuffled: a set larger than memory streams.
    block = 8192
    order = np.random.default_rng(seed)
    starts = np.arange(0, len(data), block)
    for start in order.permutation(starts):
        x, y = data.rows(int(start), min(int(start) + block, len(data)))
        rows = order.permutation(len(x))
        for at in range(0, len(rows), batch_size):
            part = rows[at : at + batch_size]
            if len(part) == 1 < batch_size and at:
                continue  # BatchNorm takes no batch of one; the next epoch's shuffle brings the row back
            yield torch.from_numpy(x[part]), torch.from_numpy(np.asarray(y[part], dtype=np.int64))
