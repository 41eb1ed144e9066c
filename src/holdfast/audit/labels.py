"""Labels that a model's view of the rows speaks against, and rows that occur twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from holdfast.audit.groups import reduced

NEIGHBOURS = 10  # of each row, among all others
MOST_AGREEING = 1  # of these with the row's label, where a label is doubted
DIRECTIONS = 20  # of largest variance, in which neighbours are sought
ALIKE = 0.01  # of the range of inputs: the most by which rows that count as one differ (RMS)


def agreeing(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many of a row's NEIGHBOURS have its label, [n]: neighbours by the values [n, d] before
    the last layer, of labels y [n]."""
    flat = reduced(values, DIRECTIONS)
    _, at = KDTree(flat).query(flat, k=min(NEIGHBOURS + 1, len(y)))
    own = np.arange(len(y))[:, None]
    same = (y[at] == y[:, None]) & (at != own)
    # where more than these lie at distance 0, the row itself may not be among them
    return np.where((at == own).any(1), same.sum(1), same[:, :NEIGHBOURS].sum(1))


@dataclass(frozen=True)
class Twins:
    """Rows [n] that occur more than once: bool each."""

    twice: np.ndarray  # another row differs by at most ALIKE
    at_odds: np.ndarray  # and one of these has another label


def twins(x: np.ndarray, y: np.ndarray, width: float) -> Twins:
    """Which rows of inputs x [n, m], of labels y [n], occur more than once, by the NEIGHBOURS
    closest to each.

    Args:
        width: of the range of the inputs.
    """
    limit = ALIKE * width * np.sqrt(x.shape[1])
    flat = reduced(x, DIRECTIONS)  # which brings no two rows further apart
    most = min(NEIGHBOURS + 1, len(y))
    _, at = KDTree(flat).query(flat, k=most, distance_upper_bound=limit * (1 + 1e-6))
    twice, at_odds = np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
    for other in np.asarray(at).T:
        one = np.flatnonzero((other < len(y)) & (other != np.arange(len(y))))
        one = one[np.linalg.norm(x[one] - x[other[one]], axis=1) <= limit]
        twice[one] = True
        at_odds[one] |= y[one] != y[other[one]]
    return Twins(twice, at_odds)
