"""The images that attacks mix in: some of the data, the same ones whichever rows are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.data import Source
from holdfast.targets.target import Target

ROWS = 64  # evenly spread over all of the data


def fill(target: Target, source: Source, attacks: Iterable[Attack]) -> None:
    """Give the target a pool of the source's rows, if it has none and one of these attacks takes
    images from it."""
    if target.pool is None and any(attack.mixes for attack in attacks):
        target.pool = spread(source, ROWS)


@contextmanager
def filled(target: Target, source: Source, attacks: Iterable[Attack]) -> Iterator[None]:
    """`fill`, until the end of the block."""
    before = target.pool
    fill(target, source, attacks)
    try:
        yield
    finally:
        target.pool = before


def spread(source: Source, rows: int) -> tuple[Tensor, Tensor]:
    """At most so many rows, evenly spread over the source: x [m, *shape], y [m] int64."""
    ids = np.unique(np.linspace(0, len(source) - 1, rows).astype(int))
    x, y = (
        np.concatenate(part) for part in zip(*(source.rows(i, i + 1) for i in ids), strict=True)
    )
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
