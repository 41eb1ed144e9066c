"""The figures of a detector: which objects are found, and which boxes find none.

Truths and answers are as `holdfast.tasks.detection` keeps them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from holdfast.intervals import interval
from holdfast.runs.answered import Answered
from holdfast.runs.manifest import TaskFigure


def objects(truth: np.ndarray) -> np.ndarray:
    """The objects of one image, [m, 5] of class, x0, y0, x1, y1, from a row of truths."""
    rows = truth.reshape(-1, 5)[1:]  # the first says how many boxes found none before
    found = rows[rows[:, 0] != -1].copy()
    missed = found[:, 0] < -1
    found[missed, 0] = -2 - found[missed, 0]
    return found


def boxes(answer: np.ndarray, above: float = 0.0) -> np.ndarray:
    """The boxes of one image, [d, 6] of class, score, x0, y0, x1, y1, the best first."""
    rows = answer.reshape(-1, 6)
    return rows[rows[:, 1] > above]  # NaN fills up


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [p, 4] and [q, 4]: [p, q]."""
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    shared = (high - low).clip(0).prod(-1)
    size = [(c[:, 2:] - c[:, :2]).clip(0).prod(-1) for c in (a, b)]
    return shared / np.maximum(size[0][:, None] + size[1][None] - shared, 1e-12)


def matched(found: np.ndarray, of: np.ndarray, least: float) -> np.ndarray:
    """Which object of [m, 5] each box of [d, 6] finds, -1 for none: greedy, as the judge does."""
    overlap = iou(found[:, 2:], of[:, 1:])
    fits = (overlap >= least) & (found[:, :1] == of[None, :, 0])
    which = np.full(len(found), -1)
    for i in np.flatnonzero(fits.any(1)):
        free = np.where(fits[i], overlap[i], -1)
        if free.max() >= least:
            which[i] = free.argmax()
            fits[:, which[i]] = False
    return which


def figures(rows: Answered) -> dict[str, Any]:
    """The figures of all rows, clean and under attack."""
    score, least = rows.options["score"], rows.options["iou"]
    found = {"clean": 0, "attacked": 0}
    ghosts = {"clean": 0, "attacked": 0}
    total = lost = 0
    for i, truth in enumerate(rows.truth):
        of, hit = objects(truth), {}
        total += len(of)
        for kind in found:
            left = boxes(getattr(rows, kind)[i], score)
            which = matched(left, of, least)
            hit[kind] = set(which[which >= 0].tolist())
            found[kind] += len(hit[kind])
            ghosts[kind] += int((which < 0).sum())
        lost += len(hit["clean"] - hit["attacked"])
    n = max(len(rows.truth), 1)
    share = {kind: count / total if total else None for kind, count in found.items()}
    return {
        "of_task": {
            "objects found": TaskFigure(**share, interval=interval(found["attacked"], total)),
            "objects lost, of those found clean": TaskFigure(
                clean=0.0,
                attacked=lost / found["clean"] if found["clean"] else None,
                interval=interval(lost, found["clean"]),
            ),
            "boxes without an object per image": TaskFigure(
                **{kind: count / n for kind, count in ghosts.items()}
            ),
        }
    }
