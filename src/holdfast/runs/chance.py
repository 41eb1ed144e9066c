"""Are a model's clean answers better than chance? Statistical tests for every kind of task.

Accuracy alone does not say: of 93 rows of one class and 7 of another, a model that always answers
the first is right on 93 %. So the tests ask whether answers and truth agree more often than the
same answers in a random order would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.intervals import interval

ENOUGH = 20  # rows on which a test can tell an honest model from chance
LEVEL = 0.05  # of every test, one-sided


@dataclass(frozen=True)
class Answers:
    """What clean answers to n rows of known classes are worth.

    Args:
        label: [n] classes, from 0.
        predicted: [n] classes; below 0 where the model gave none.
        classes: k, how many the model knows.
    """

    label: np.ndarray
    predicted: np.ndarray
    classes: int

    @property
    def right(self) -> int:
        return int((self.label == self.predicted).sum())

    @property
    def rows(self) -> np.ndarray:
        """How many rows each class has, [k]."""
        return np.bincount(self.label, minlength=self.classes)

    @property
    def given(self) -> np.ndarray:
        """How often each class is the answer, [k]."""
        return np.bincount(self.predicted[self.predicted >= 0], minlength=len(self.rows))[
            : len(self.rows)
        ]

    @property
    def one_class(self) -> int | None:
        """The only class that the rows have; None where they have several."""
        present = np.flatnonzero(self.rows)
        return int(present[0]) if len(present) == 1 else None

    @property
    def by_chance(self) -> float:
        """The share that would be right if the same answers were given out to the rows at
        random."""
        return float((self.rows / len(self.label)) @ (self.given / len(self.label)))

    @property
    def majority(self) -> tuple[int, float]:
        """The class with most rows, and its share of them."""
        return int(self.rows.argmax()), float(self.rows.max() / len(self.label))

    @property
    def mean_recall(self) -> float:
        """The mean over the classes that are there of the share of their rows that is right
        (balanced accuracy)."""
        hits = np.bincount(self.label[self.label == self.predicted], minlength=len(self.rows))
        there = self.rows > 0
        return float((hits[there] / self.rows[there]).mean())

    def chance_level(self) -> bool:
        """Whether the accuracy is no better than that of the same answers given out at random.

        True where a test sees no difference from chance, or where the upper end of the accuracy's
        interval is within 1.5 times the level of chance and within 5 points of it. With fewer than
        20 rows, true only of a model that is surely wrong on more than half.
        """
        n, expected = len(self.label), self.by_chance
        if not n or self.one_class is not None:
            return False
        high = float(interval(self.right, n).high or 0)
        if n < ENOUGH:
            return bool(self.right <= expected * n and high < 0.5)
        return bool(
            matches_p(self.label, self.predicted) > LEVEL
            or high <= min(1.5 * expected, expected + 0.05)
        )

    def never_given(self) -> list[int]:
        """Classes with enough rows, 20 (5 where the data have no other class), that are never the
        answer."""
        least = ENOUGH if self.one_class is None else 5
        return np.flatnonzero((self.rows >= least) & (self.given == 0)).tolist()

    def no_better_than_majority(self) -> bool:
        """Whether always answering the most frequent class would do as well: accuracy says little
        of such data."""
        share = self.majority[1]
        unequal = self.one_class is None and share > 1.5 / np.count_nonzero(self.rows)
        if not unequal or len(self.label) < ENOUGH:
            return False
        from scipy.special import bdtrc

        # how often so many answers of that class would be right at least as often
        return bool(bdtrc(self.right - 1, len(self.label), share) > LEVEL)


def matches_p(label: np.ndarray, predicted: np.ndarray) -> float:
    """The one-sided p-value: how often answers given out to the rows at random agree with the
    labels at least as often as these do.

    Exact for two values (Fisher's test); else the normal limit with the exact mean and variance of
    the agreement under fixed shares, and a correction for continuity.

    Args:
        label: [n] whole numbers.
        predicted: [n] whole numbers.
    """
    values, place = np.unique(np.concatenate([label, predicted]), return_inverse=True)
    n, k, hits = len(label), len(values), int((label == predicted).sum())
    rows, given = np.bincount(place[:n], minlength=k), np.bincount(place[n:], minlength=k)
    if k < 2 or n < 2:
        return 1.0
    if k == 2:
        from scipy.stats import hypergeom

        both = int(((label == predicted) & (label == values[1])).sum())
        return float(hypergeom.sf(both - 1, n, rows[1], given[1]))
    a, b = rows.astype(float), given.astype(float)
    mean, cross = a @ b / n, a * b
    variance = (cross @ ((n - a) * (n - b)) + cross.sum() ** 2 - cross @ cross) / (n * n * (n - 1))
    if variance <= 0:
        return 1.0
    return math.erfc((hits - 0.5 - mean) / math.sqrt(2 * variance)) / 2


def labels_follow(truth: np.ndarray, said: np.ndarray) -> bool:
    """Whether the answers of a multi-label model agree with the truth, by more than chance, for at
    least one label.

    Args:
        truth: [n, k] of 0 and 1.
        said: [n, k] of 0 and 1.
    """
    k = truth.shape[1]
    return any(matches_p(truth[:, i], said[:, i]) <= LEVEL / k for i in range(k))


def outputs_follow(truth: np.ndarray, said: np.ndarray) -> bool | None:
    """Whether an output of a regression is closer to its truth than the mean of the truths is, by
    more than chance.

    Args:
        truth: [n, k] finite numbers.
        said: [n, k] finite numbers.

    Returns:
        None where no truth varies, so that nothing can be told.
    """
    from scipy.stats import pearsonr

    varied = np.flatnonzero(truth.std(0) > 0)
    if not len(varied):
        return None

    def follows(t: np.ndarray, z: np.ndarray) -> bool:
        # but for rounding
        if z.std() == 0 or np.square(z - t).sum() >= 0.999 * np.square(t - t.mean()).sum():
            return False
        found: Any = pearsonr(t, z, alternative="greater")
        return bool(found.pvalue <= LEVEL / len(varied))

    return any(follows(truth[:, i], said[:, i]) for i in varied)
