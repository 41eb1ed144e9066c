"""Scenes of digits: small images of one to three digits, with boxes and masks as their truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from holdfast.data import open_data

MOST = 3  # digits of a scene
INK = 0.3  # a pixel of a digit from this value on


class Scenes(NamedTuple):
    """Images and both truths of n scenes.

    Attributes:
        x: float32 [n, 1, side, side] in [0, 1].
        boxes: float32 [n, 3, 5]: class (the digit, 0 to 9), x0, y0, x1, y1 in pixels, around what
            is not black; x1 and y1 are one past the last pixel. Rows of no digit are all -1.
        masks: int64 [n, side, side]: 0 where nothing is, 1 + the digit where its ink is.
    """

    x: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


def scenes_of_digits(
    n: int, seed: int = 0, *, split: str = "train", classes: int = 10, side: int = 64
) -> Scenes:
    """n scenes: digits of scikit-learn, enlarged, each in a quarter of its own.

    The same arguments give the same scenes, and the first rows do not depend on n.

    Args:
        split: "train" or "test": digits by other writers.
        classes: only the digits below.
        side: of the square images, at least 32 and a multiple of 32.
    """
    source = open_data("digits", split=split)
    digits, labels = source.rows(0, len(source))
    of_class = [digits[labels == c, 0] for c in range(classes)]
    x = np.zeros((n, 1, side, side), np.float32)
    boxes = np.full((n, MOST, 5), -1, np.float32)
    masks = np.zeros((n, side, side), np.int64)
    for row in range(n):
        rng = np.random.default_rng([seed, row])
        quarters = rng.permutation(4)[: rng.integers(1, MOST + 1)]
        for i, quarter in enumerate(quarters):
            c = int(rng.integers(classes))
            digit = of_class[c][rng.integers(len(of_class[c]))]
            factor = side // 32 + rng.integers(2)
            digit = digit.repeat(factor, 0).repeat(factor, 1)
            top, left = rng.integers(0, side // 2 - len(digit) + 1, 2)
            top, left = top + side // 2 * (quarter // 2), left + side // 2 * (quarter % 2)
            here = slice(top, top + len(digit)), slice(left, left + len(digit))
            x[row, 0][here] = digit
            masks[row][here][digit >= INK] = 1 + c
            down, across = np.nonzero(digit)
            first, last = (across.min(), down.min()), (across.max() + 1, down.max() + 1)
            boxes[row, i] = c, *np.add(first, (left, top)), *np.add(last, (left, top))
    return Scenes(x, boxes, masks)
