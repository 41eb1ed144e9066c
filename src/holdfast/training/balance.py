"""Classes of unequal size: the weight of their rows in the loss, how weights are chosen, how rows
are held out.

Where one class has most of the rows, its constant answer has a high accuracy, clean and robust:
training drifts there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.data import Source
from holdfast.data.part import Part, divide

CLASS_WEIGHTS = ("balanced", "none", "auto")
UNEQUAL = 3.0  # times as many rows as the smallest class has make classes unequal


@dataclass(frozen=True)
class Balance:
    """How many training rows each class has, and what follows.

    Args:
        counts: rows of each class, k of them.
        mode: one of `CLASS_WEIGHTS`.
        odds: log odds of the probability from which on class 1 of two is decided for.
    """

    counts: tuple[int, ...]
    mode: str = "auto"
    odds: float = 0.0

    @property
    def unequal(self) -> bool:
        """Whether the weights are chosen by means over the classes, and not over the rows."""
        there = [c for c in self.counts if c]
        return len(there) > 1 and max(there) >= UNEQUAL * min(there)

    @property
    def weights(self) -> tuple[float, ...]:
        """What a row of each class weighs in the loss, 1 in the mean of the rows; empty where all
        weigh alike.

        With a threshold t a row of class 1 weighs (1 - t) / t times as much as one of class 0: the
        loss at scores shifted by the threshold is then least where probabilities are those of the
        data, or of balanced classes where that is asked for.
        """
        if not self.balanced and not self.odds:
            return ()
        there, total = sum(c > 0 for c in self.counts), sum(self.counts)
        each = [total / (there * c) if c and self.balanced else 1.0 for c in self.counts]
        if self.odds:
            each[1] *= math.exp(-self.odds)
            mean = sum(w * c for w, c in zip(each, self.counts, strict=True)) / total
            each = [w / mean for w in each]
        return tuple(each)

    @property
    def balanced(self) -> bool:
        """Whether each class counts alike. A threshold is of probabilities that take the classes as
        they are."""
        return self.mode == "balanced" or (self.mode == "auto" and self.unequal and not self.odds)

    @property
    def note(self) -> str:
        """What is done because of it, for the log; empty where nothing is."""
        if not self.unequal and not self.weights:
            return ""
        most = int(np.argmax(self.counts))
        least = min(range(len(self.counts)), key=lambda c: self.counts[c] or np.inf)
        said = (
            f"class {most} has {self.counts[most]} training rows and class {least} has "
            f"{self.counts[least]}"
        )
        if self.unequal:
            said += ": figures on held-out rows are means over the classes"
        weighed = "none"
        if self.balanced:
            weighed = (
                "balanced, so that each counts alike in the loss (--class-weights none: as they "
                "are)"
            )
        if self.odds:
            weighed += (
                f"; a row of class 1 counts {math.exp(-self.odds):.3g} times as much, as the "
                "threshold says"
            )
        return f"{said}. Class weights: {weighed}."


def balance_of(source: Source, k: int, mode: str, odds: float = 0.0) -> Balance:
    """The balance of a source of k classes."""
    return Balance(tuple(np.bincount(labels_of(source), minlength=k).tolist()), mode, odds)


def labels_of(source: Source) -> np.ndarray:
    """All labels, [n] int64."""
    parts = [np.asarray(source.labels(a, a + 1024), np.int64) for a in range(0, len(source), 1024)]
    return np.concatenate(parts)


def divide_fairly(
    whole: Source, share: float, most: int, seed: int, what: str
) -> tuple[Source, Source]:
    """As `divide`; where classes are unequal the same share of each, and at least one row, is set
    apart."""
    labels = labels_of(whole)
    if not Balance(tuple(np.bincount(labels).tolist())).unequal:
        return divide(whole, share, most, seed, what)
    share, draw = min(share, most / len(whole)), np.random.default_rng(seed)
    parts = [draw.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    apart = np.sort(
        np.concatenate(
            [rows[: max(1, round(share * len(rows)))] for rows in parts if len(rows) > 1]
        )
    )
    rest = np.setdiff1d(np.arange(len(whole)), apart)
    return Part(whole, rest, f"without its {what} rows"), Part(whole, apart, f"{what} rows")
