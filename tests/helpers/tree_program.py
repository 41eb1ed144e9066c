"""The nearest example of a forest by a mixed-integer program: other means than
`holdfast.bounds.trees`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, milp

from holdfast.targets.trees import at_most


def milp_distance(
    trees: list[Any],
    row: np.ndarray,
    y: int,
    scale: np.ndarray,
    box: tuple[Any, Any],
    whole: np.ndarray | None = None,
) -> float:
    """The smallest size at which a forest of two classes decides against y, by the program of
    Kantchelian et al. 2016 (arXiv:1509.07892), read from scikit-learn's own nodes; features that
    are `whole` ([f] bool) hold whole numbers; the sides of the box are numbers or [f]."""
    least, most = (np.broadcast_to(side, row.shape) for side in box)
    tables = [tree.tree_ for tree in trees]
    pairs = [np.stack([own.feature, own.threshold], 1)[own.feature >= 0] for own in tables]
    asked = sorted({(int(f), float(t)) for f, t in np.concatenate(pairs)})
    place = {question: i for i, question in enumerate(asked)}
    leaves = [(i, at) for i, own in enumerate(tables) for at in np.flatnonzero(own.feature < 0)]
    p, n = len(asked), len(asked) + len(leaves) + 1  # answers, leaves, the size
    rows, low, high = [], [], []

    def say(terms: dict[int, float], least: float, most: float) -> None:
        line = np.zeros(n)
        for at, weight in terms.items():
            line[at] += weight
        rows.append(line)
        low.append(least)
        high.append(most)

    for (f, t), i in place.items():  # answer i: x_f <= t
        nearest = float(at_most(t)) if row[f] > t else float(_next(at_most(t)))
        if whole is not None and whole[f]:
            nearest = math.floor(nearest) if row[f] > t else math.ceil(nearest)
        gap = abs(nearest - float(row[f]))
        fixed = scale[f] == 0 or not least[f] <= nearest <= most[f]
        changed = (1.0, 0.0) if row[f] > t else (-1.0, 1.0)  # weight of the answer, and constant
        if fixed:
            say({i: changed[0]}, -changed[1], -changed[1])
        else:
            cost = gap / scale[f]
            say({n - 1: 1.0, i: -cost * changed[0]}, cost * changed[1], np.inf)
        after = [j for (g, u), j in place.items() if g == f and u > t]
        for j in after[:1]:
            say({j: 1.0, i: -1.0}, 0, np.inf)
    margin: dict[int, float] = {}
    for tree, own in enumerate(tables):
        parent = {int(c): (a, s) for a in range(own.node_count) if own.feature[a] >= 0
                  for c, s in ((own.children_left[a], 1), (own.children_right[a], 0))}  # fmt: skip
        mine = [p + i for i, (t, _) in enumerate(leaves) if t == tree]
        say(dict.fromkeys(mine, 1.0), 1, 1)
        for i in mine:
            at = int(leaves[i - p][1])
            value = own.value[at, 0] / own.value[at, 0].sum()
            margin[i] = float(value[y] - value[1 - y])
            while at in parent:
                at, left = parent[at]
                answer = place[int(own.feature[at]), float(own.threshold[at])]
                if left:
                    say({answer: 1.0, i: -1.0}, 0, np.inf)
                else:
                    say({answer: 1.0, i: 1.0}, -np.inf, 1)
    say(margin, -np.inf, -1e-7)
    goal = np.zeros(n)
    goal[-1] = 1
    whole = np.ones(n)
    whole[-1] = 0
    found = milp(
        goal,
        integrality=whole,
        constraints=LinearConstraint(np.array(rows), low, high),
        bounds=(np.zeros(n), np.append(np.ones(n - 1), np.inf)),
    )
    return float(found.fun) if found.status == 0 else math.inf


def _next(value: Any) -> np.float32:
    return np.nextafter(np.float32(value), np.float32(np.inf))
