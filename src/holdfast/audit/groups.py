"""Rows of one label that a model sees as two kinds, one of which looks like other labels: the mark
that a planted trigger leaves in training data.

A model that learned a trigger answers the poisoned rows of a label for another reason than the
rest: in the values before its last layer they form a group of their own (activation clustering,
Chen et al. 2018, arXiv:1811.03728), along the direction of largest variance (spectral signatures,
Tran et al. 2018, arXiv:1811.00636). Which of two groups is planted, its inputs say: less what all
of the group share, such as the trigger, they resemble those of other labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from holdfast.targets.target import Target

STARTS = 8  # of the search for two groups; those furthest apart are taken
DIRECTIONS = 10  # of largest variance, in which groups are sought
MANY = 1024  # values of a row: of more, the directions are sought among MANY / 8 random ones
LOOKED_AT, AMONG = 300, 5000  # rows of a group whose nearest are sought, and rows sought among
FEWEST = 20  # rows of a label, or of a group, that can be judged
# A flag takes two groups whose means lie so many standard deviations apart, along the line through
# them: halves of a uniform distribution are 3.5 apart, of a normal one 2.7
LEAST_GAP = 4.0
MOST_RESEMBLANCE = 0.8  # of one group's `apart` to the other's


@dataclass(frozen=True)
class Groups:
    """Two groups of the rows of one label."""

    gap: float  # distance of their means, in standard deviations within them along it
    planted: np.ndarray  # [n] bool: the group that resembles other labels the more
    apart: tuple[float, float]  # of that group and of the other: see `apart_of`

    @property
    def flagged(self) -> bool:
        suspect, rest = self.apart
        return self.gap >= LEAST_GAP and suspect <= MOST_RESEMBLANCE * rest


def features(target: Target, x: Tensor) -> Tensor:
    """What the last layer of weights takes of inputs x [n, *shape]: [n, d] float64; of a model
    that is no module of torch, its scores [n, k]."""
    model, seen = getattr(target, "model", None), list[tuple[nn.Module, Tensor]]()
    layers = model.modules() if isinstance(model, nn.Module) else ()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0].detach())))
        for layer in layers
        if isinstance(layer, nn.Linear)
    ]
    try:
        scores = target.scores(x)
    finally:
        for hook in hooks:
            hook.remove()
    parts = [values.flatten(1) for layer, values in seen if layer is seen[-1][0]]
    whole = bool(parts) and sum(map(len, parts)) == len(x)
    return (torch.cat(parts) if whole else scores).double().cpu()


def spectral(values: np.ndarray) -> np.ndarray:
    """The score of each row of one label: its squared part along the direction in which the values
    [n, d] vary most: [n]."""
    return reduced(values, 1)[:, 0] ** 2


def two_groups(values: np.ndarray, x: np.ndarray, others: np.ndarray, seed: int) -> Groups | None:
    """The two groups of the rows of one label; None: they are too few.

    Args:
        values: of these rows before the last layer: [n, d].
        x: the rows, flat: [n, m].
        others: rows of other labels, flat: [l, m].
    """
    if len(values) < 2 * FEWEST or len(others) < FEWEST:
        return None
    z = reduced(values, DIRECTIONS)
    tries = [_parts(z, seed + start) for start in range(STARTS)]
    gap, first = max(tries, key=itemgetter(0))
    if gap <= 0:
        return None
    found = [apart_of(x[part], others, seed) for part in (first, ~first)]
    planted = first if found[0] <= found[1] else ~first
    return Groups(gap, planted, (min(found), max(found)))


def _parts(z: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Two groups of points [n, d] by 2-means: how far they are apart, and which is the first;
    0 apart where one is too small to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty group is one that is too small
        first = kmeans2(z, 2, rng=seed, minit="++")[1] == 0
    if min(first.sum(), (~first).sum()) < FEWEST:
        return 0.0, first
    line = z[first].mean(0) - z[~first].mean(0)
    along = z @ line / (np.linalg.norm(line) + 1e-300)
    within = np.where(first, along - along[first].mean(), along - along[~first].mean()).std()
    return float(np.linalg.norm(line) / (within + 1e-300)), first


def parted(values: np.ndarray, x: np.ndarray, others: np.ndarray, seed: int) -> Groups | None:
    """As `two_groups`; where they are flagged, what is left is parted again, for rows of many
    labels may be planted, which the model sees as many kinds."""
    found = two_groups(values, x, others, seed)
    more = found
    while found is not None and more is not None and more.flagged:
        rest = ~found.planted
        more = two_groups(values[rest], x[rest], others, seed)
        if more is not None and more.flagged:
            found.planted[rest] = more.planted
    return found


def apart_of(x: np.ndarray, others: np.ndarray, seed: int) -> float:
    """How far rows x [n, m] lie from rows of other labels [l, m], in distances to the nearest of
    their own: the median. Each set is taken less its mean, which holds a trigger that all share."""
    draw = np.random.default_rng(seed)
    own, far = (
        torch.from_numpy(rows[draw.permutation(len(rows))[:AMONG]]).double() for rows in (x, others)
    )
    own, far = own - own.mean(0), far - far.mean(0)
    looked = own[:LOOKED_AT]
    own_kind = torch.cdist(looked, own).topk(2, dim=1, largest=False).values[:, 1]  # but itself
    return float((torch.cdist(looked, far).amin(1) / own_kind.clamp_min(1e-12)).median())


def reduced(values: np.ndarray, count: int) -> np.ndarray:
    """The values [n, d], less their mean, in the directions in which they vary most: [n, at most
    count]. Of many values, the directions are sought among random ones."""
    centred = values - values.mean(0)
    if centred.shape[1] > MANY:
        draw = np.random.default_rng(0).standard_normal((centred.shape[1], MANY // 8))
        centred = centred @ np.linalg.qr(draw)[0].astype(centred.dtype)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, ::-1][:, :count]
