"""The digits embedded in scikit-learn: 1797 images [1, 8, 8] in [0, 1], the last 360 by other
writers."""

from __future__ import annotations

import functools

import numpy as np

from holdfast.data.arrays import Arrays

SPLITS = {"train": slice(0, 1437), "test": slice(1437, 1797)}


def open_digits(name: str, split: str) -> Arrays:
    """The rows of `split`, a key of `SPLITS`; always in [0, 1], since these are not bytes but
    counts of 0 to 16."""
    x, y = (part[SPLITS[split]].copy() for part in _read())
    return Arrays(x, y, name, scale=False)


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    return (np.asarray(images) / 16).astype(np.float32).reshape(-1, 1, 8, 8), np.asarray(y)
