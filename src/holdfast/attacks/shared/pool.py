"""The images that attacks mix in: some of the data, the same ones whichever rows are measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from holdfast.data import Source
from holdfast.targets.batch import Batch, joined, read

ROWS = 64  # evenly spread over all of the data


def spread(source: Source, rows: int) -> tuple[Batch, Tensor]:
    """At most so many rows, evenly spread over the source, and their labels [m] int64."""
    ids = np.unique(np.linspace(0, len(source) - 1, rows).astype(int))
    batches, labels = zip(*(read(source, i, i + 1) for i in ids), strict=True)
    return joined(batches), torch.from_numpy(np.concatenate(labels).astype(np.int64))
