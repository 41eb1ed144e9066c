"""The images that attacks mix in: some of the data, the same ones whichever rows are measured."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from holdfast.attacks.attack import Attack
from holdfast.data import Source
from holdfast.targets.target import Target

ROWS = 64  # evenly spread over all of the data


def fill(target: Target, source: Source, attacks: Iterable[Attack]) -> None:
    """Give the target a pool of the source's rows, if one of these attacks takes images from it."""
    if any(attack.mixes for attack in attacks):
        ids = np.unique(np.linspace(0, len(source) - 1, ROWS).astype(int))
        x, y = (np.concatenate(part) for part in zip(*(source.rows(i, i + 1) for i in ids), strict=True))
        target.pool = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
