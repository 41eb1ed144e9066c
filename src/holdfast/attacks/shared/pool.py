"""The images that attacks mix in: some of the data, the same ones whichever rows are measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Problem
from holdfast.data import Source
from holdfast.targets.batch import Batch, joined, read

ROWS = 64  # evenly spread over all of the data


def others(p: Problem, m: int) -> Tensor:
    """Inputs of other classes than the row's, drawn from the pool: [n, m, *shape].

    A row's draws are its own, and the pool is the same whichever rows are attacked.
    """
    assert p.pool is not None
    x, y = p.pool
    before = (y != p.y[:, None]).cumsum(1)  # [n, pool]: how many such lie up to each place
    nth = p.noise("others").uniform((m,), torch.float64) * before[:, -1:]
    return x[(before[:, None] > nth[:, :, None]).int().argmax(2)]


def spread(source: Source, rows: int) -> tuple[Batch, Tensor]:
    """At most so many rows, evenly spread over the source, and their labels [m] int64."""
    ids = np.unique(np.linspace(0, len(source) - 1, rows).astype(int))
    batches, labels = zip(*(read(source, i, i + 1) for i in ids), strict=True)
    return joined(batches), torch.from_numpy(np.concatenate(labels).astype(np.int64))
