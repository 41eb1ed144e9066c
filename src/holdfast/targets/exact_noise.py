"""Noise that is drawn exactly: whole numbers, by a table of 64-bit masses.

What floating point adds to an input says something of the input in its last bits, so a proof of
what noise hides does not hold of it (Voracek and Hein, ICLR 2023, arXiv:2207.07209). Here noise is
a whole number of steps of a lattice, and is added as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from holdfast.rng import Keys

WHOLE = 1 << 64  # what all masses of a table add up to
TAIL = 8.0  # deviations; what lies beyond is drawn at the end
ERROR = 2.0**-44  # relative, of a tail of the Gaussian as `math.erfc` gives it; far above its own
AT_ONCE = 1 << 18  # numbers that are drawn at once: what a processor keeps close at hand


@dataclass(frozen=True)
class Table:
    """How whole numbers around 0 are drawn (the alias method of Walker 1977, in whole numbers).

    least, alias: of each column, of which there are a power of two: how many of its words give the
        column's own number, and what column the others give.
    zero: the column of the number 0.
    apart: at most this is the total variation distance between one draw and what the table is for.
    """

    least: Tensor
    alias: Tensor
    zero: int
    apart: float

    def draw(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        """Independent numbers, a function of each row's key alone: [n, *shape] int64."""
        free = 64 - (len(self.least).bit_length() - 1)  # bits of a word that do not say the column
        stride = max(1, AT_ONCE // max(1, math.prod(shape)))
        parts = [Keys(rows).bits(shape) for rows in keys.rows.split(stride)]
        return torch.cat([self._numbers(word, free) for word in parts])

    def _numbers(self, word: Tensor, free: int) -> Tensor:
        column = (word >> free) & (len(self.least) - 1)
        rest = word & ((1 << free) - 1)
        own = rest < self.least.to(word.device)[column]
        return torch.where(own, column, self.alias.to(word.device)[column]) - self.zero


@lru_cache(maxsize=8)
def gaussian(deviation: float) -> Table:
    """A Gaussian of this standard deviation, rounded to the nearest whole number."""
    last = math.ceil(TAIL * deviation)
    tails = [math.erfc((z - 0.5) / deviation / math.sqrt(2)) / 2 for z in range(1, last + 2)]
    ends = [int(WHOLE * tail) for tail in tails[:-1]] + [0]  # all beyond is drawn at the end
    side = [ends[i] - ends[i + 1] for i in range(last)]
    masses = [*side[::-1], WHOLE - 2 * ends[0], *side]
    return _table(masses, 2 * sum(ERROR * tail + 1 / WHOLE for tail in tails) + 2 * tails[-1])


@lru_cache(maxsize=8)
def uniform(last: int) -> Table:
    """Whole numbers from -last to last, each as likely as the others."""
    n = 2 * last + 1
    share, more = divmod(WHOLE, n)
    return _table([share + (i < more) for i in range(n)], n / WHOLE)


def _table(masses: Sequence[int], apart: float) -> Table:
    """The table of an odd count of numbers around 0 with these masses, which add up to `WHOLE`."""
    columns = 1 << (len(masses) - 1).bit_length()
    full = WHOLE // columns
    left = [*masses, *[0] * (columns - len(masses))]
    least, alias = [full] * columns, list(range(columns))
    short = [i for i, mass in enumerate(left) if mass < full]
    long = [i for i, mass in enumerate(left) if mass > full]
    while short:
        i, j = short.pop(), long[-1]
        least[i], alias[i] = left[i], j
        left[j] -= full - left[i]
        if left[j] <= full:
            long.pop()
        if left[j] < full:
            short.append(j)
    return Table(torch.tensor(least), torch.tensor(alias), len(masses) // 2, apart)
