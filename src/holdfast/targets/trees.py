"""Ensembles of trees as arrays, whichever library grew them.

Inputs are float32, so that every split of a library (`x < t`, `x <= t`, of float32 or float64) is
one between two neighbouring float32 numbers, and every leaf a closed box of such numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.errors import InputError

_EPS = float(np.finfo(np.float32).eps)
NO_TREES = (
    "the model is no ensemble of trees whose leaves can be read; expected one of scikit-learn, "
    "XGBoost, LightGBM or CatBoost."
)
_ROWS = 200  # on which a reading is held against the library


@dataclass(frozen=True)
class Nodes:
    """The nodes of one tree, [n] each; the root is the first."""

    feature: np.ndarray  # that a node asks about; negative at a leaf
    limit: np.ndarray  # float32: the largest input that goes left
    left: np.ndarray  # the next node; of a leaf, anything
    right: np.ndarray
    value: np.ndarray  # [n, k] float64: what a leaf adds to the scores


@dataclass(frozen=True, eq=False)
class Trees:
    """A sum of trees: of each tree the value of the leaf that holds the input.

    Leaves stand tree after tree, and each names the features that lead to it; where it names fewer
    than others, the rest are feature 0 without limits.
    """

    feature: np.ndarray  # [leaves, d] int64
    low: np.ndarray  # [leaves, d] float32: the least and the largest input that the leaf holds
    high: np.ndarray
    value: np.ndarray  # [leaves, k] float64
    tree: np.ndarray  # [leaves] int64: which tree it is of, from 0
    base: np.ndarray  # [k] float64: what all inputs have in common
    rounding: float = 0.0  # by how much a library's own scores, or their margins, may differ

    @property
    def features(self) -> int:
        """The least number of features that an input has."""
        return int(self.feature.max(initial=0)) + 1

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Scores [n, k] float64 of inputs [n, f], which are taken as float32."""
        x = np.asarray(x, np.float32)
        return np.array([self.base + self.value[self._holds(row)].sum(0) for row in x])

    def _holds(self, row: np.ndarray) -> np.ndarray:
        at = row[self.feature]
        return np.all((self.low <= at) & (at <= self.high), axis=1)


def below(limit: Any) -> np.ndarray:
    """The largest float32 numbers below these, which are float32 themselves."""
    return np.nextafter(np.asarray(limit, np.float32), np.float32(-np.inf))


def at_most(limit: Any) -> np.ndarray:
    """The largest float32 numbers that are no larger than these float64 ones."""
    limit = np.asarray(limit, np.float64)
    with np.errstate(over="ignore"):
        close = limit.astype(np.float32)
    return np.where(close > limit, below(close), close)


def read(
    trees: Sequence[Nodes], ask: Callable[[np.ndarray], Any], features: int, kind: str
) -> Trees:
    """The trees of a model, held against what the model itself says of some inputs.

    Args:
        trees: one or several; values of one column are a single logit, of class 1.
        ask: the model's own sums, [n] or [n, k], of float32 inputs [n, f]. What they have in common
            besides the leaves is the base.
        features: of one input.
        kind: what the model is, for messages.

    Raises:
        InputError: the leaves do not add up to the model's scores, as where a split is one that
            this reading does not know.
    """
    parts = [_leaves(nodes) for nodes in trees]
    wide = max((part[0].shape[1] for part in parts), default=0)
    feature, low, high = (
        np.concatenate([_padded(part[i], wide, fill) for part in parts])
        for i, fill in enumerate((0, -np.inf, np.inf))
    )
    value = np.concatenate([part[3] for part in parts])
    tree = np.repeat(np.arange(len(parts)), [len(part[3]) for part in parts])
    found = Trees(feature, low, high, value, tree, np.zeros(value.shape[1]))
    x = samples(found, features)
    said = np.asarray(ask(x), np.float64).reshape(len(x), -1)
    base = said - found.scores(x)
    most = np.abs(base).max(0) + sum(np.abs(part[3]).max(0) for part in parts)
    count = sum(part[3].any(0) for part in parts)
    # of a margin: two sums in float32, and what a sigmoid or softmax in float32 adds
    rounding = _EPS * (float(((count + 1) * most).max()) + 8)
    centre = np.median(base, 0)
    if not np.isfinite(said).all() or float(np.abs(base - centre).max()) > rounding:
        raise InputError(
            f"the trees of {kind} do not add up to its own scores as they were read: it has splits "
            "or leaves of a kind that is not supported."
        )
    if _whole_steps(value, float(most.max())) and not np.abs(centre).max() > rounding:
        centre, rounding = np.zeros_like(centre), 0.0
    if value.shape[1] == 1:  # class 0 has no tree, and a score of 0
        value = np.concatenate([np.zeros_like(value), value], 1)
        centre = np.concatenate([np.zeros(1), centre])
    return Trees(feature, low, high, value, tree, centre, rounding)


def _whole_steps(value: np.ndarray, most: float) -> bool:
    """Whether every sum of these values is exact in float32: multiples of 1/8 that stay small, as
    the votes of pure leaves are."""
    return bool((value * 8 == np.round(value * 8)).all()) and most < 2**20


def _leaves(nodes: Nodes) -> tuple[np.ndarray, ...]:
    """Features, lows and highs [leaves, d] and values [leaves, k] of a tree's leaves that hold any
    input."""
    paths: list[tuple[int, dict[int, tuple[Any, Any]]]] = [(0, {})]
    found = []
    while paths:
        at, sides = paths.pop()
        feature = int(nodes.feature[at])
        if feature < 0:
            found.append((at, sides))
            continue
        low, high = sides.get(feature, (-np.inf, np.inf))
        limit = np.float32(nodes.limit[at])
        if low <= limit:
            paths.append((int(nodes.left[at]), sides | {feature: (low, min(high, limit))}))
        above = np.nextafter(limit, np.float32(np.inf))
        if above <= high:
            paths.append((int(nodes.right[at]), sides | {feature: (max(low, above), high)}))
    wide = max(len(sides) for _, sides in found)
    feature = np.zeros((len(found), wide), np.int64)
    low = np.full((len(found), wide), -np.inf, np.float32)
    high = np.full((len(found), wide), np.inf, np.float32)
    for i, (_, sides) in enumerate(found):
        for j, (name, (least, most)) in enumerate(sides.items()):
            feature[i, j], low[i, j], high[i, j] = name, least, most
    return feature, low, high, nodes.value[[at for at, _ in found]].astype(np.float64)


def _padded(array: np.ndarray, wide: int, fill: float) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, wide - array.shape[1])), constant_values=fill)


def samples(trees: Trees, features: int) -> np.ndarray:
    """Float32 inputs [n, features]: numbers at the ends of leaves, each at its own feature and, in
    every second row, at any; and in every fourth between 0 and 1."""
    rng = np.random.default_rng(0)
    ends = np.concatenate([trees.low, trees.high])
    of = np.concatenate([trees.feature, trees.feature])[np.isfinite(ends)]
    ends = ends[np.isfinite(ends)]
    x = rng.choice(np.append(ends, 0), (_ROWS, features)).astype(np.float32)
    x[::4] = rng.random((len(x[::4]), features))
    for feature in np.unique(of):
        x[1::2, feature] = rng.choice(np.unique(ends[of == feature]), len(x[1::2]))
    return x
