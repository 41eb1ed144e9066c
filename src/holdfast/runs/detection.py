"""The figures of a detector: which objects are found, and which boxes find none.

Truths and answers are as `holdfast.tasks.detection` keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.intervals import Interval, interval
from holdfast.runs.answered import Answered
from holdfast.runs.average_precision import average_precision
from holdfast.runs.manifest import ObjectMetrics, TaskFigure

KINDS = ("clean", "attacked")


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


@dataclass(frozen=True)
class Found:
    """All objects of a set, and the boxes of each kind, "clean" and "attacked", that find none.

    Attributes:
        label: the class of each object, [k].
        hit: whether it is found, by kind: [k] bool.
        free: the classes of boxes without an object, by kind: [g].
        images: how many there are.
    """

    label: np.ndarray
    hit: dict[str, np.ndarray]
    free: dict[str, np.ndarray]
    images: int

    def of_class(self, c: int) -> Found:
        own = self.label == c
        hit = {kind: found[own] for kind, found in self.hit.items()}
        free = {kind: labels[labels == c] for kind, labels in self.free.items()}
        return Found(self.label[own], hit, free, self.images)


def figures(rows: Answered) -> dict[str, Any]:
    """The figures of all rows, clean and under attack, and those of each class."""
    truths = [objects(truth) for truth in rows.truth]
    given = {kind: [boxes(answer) for answer in getattr(rows, kind)] for kind in KINDS}
    found = _found(truths, given, rows.options["score"], rows.options["iou"])
    precision = {kind: average_precision(truths, given[kind]) for kind in KINDS}
    of_task = _shares(found) | {
        "AP50": _figure({kind: of.at_50 for kind, of in precision.items()}),
        "AP50:95": _figure({kind: of.mean for kind, of in precision.items()}),
    }
    of_objects = [
        ObjectMetrics(
            label=c,
            name=rows.names.get(c, str(c)),
            n=int((found.label == c).sum()),
            figures=_shares(found.of_class(c))
            | {"AP50": _figure({kind: of.by_class[c] for kind, of in precision.items()})},
        )
        for c in np.unique(found.label).astype(int).tolist()
    ]
    return {"of_task": of_task, "of_objects": of_objects}


def _found(
    truths: list[np.ndarray], given: dict[str, list[np.ndarray]], score: float, least: float
) -> Found:
    """What the boxes of images with these objects find, from this score and overlap on."""
    label = np.concatenate([np.empty(0), *(of[:, 0] for of in truths)])
    hit: dict[str, np.ndarray] = {}
    free: dict[str, np.ndarray] = {}
    for kind, images in given.items():
        hits, labels = [np.empty(0, bool)], [np.empty(0)]
        for of, found in zip(truths, images, strict=True):
            left = found[found[:, 1] > score]
            which = matched(left, of, least)
            hits.append(np.isin(np.arange(len(of)), which))
            labels.append(left[which < 0, 0])
        hit[kind], free[kind] = np.concatenate(hits), np.concatenate(labels)
    return Found(label, hit, free, len(truths))


def _shares(found: Found) -> dict[str, TaskFigure]:
    """The figures of boxes that count, by their names."""
    total, count = len(found.label), {kind: int(hit.sum()) for kind, hit in found.hit.items()}
    share = {kind: hits / total if total else None for kind, hits in count.items()}
    lost = interval(int((found.hit["clean"] & ~found.hit["attacked"]).sum()), count["clean"])
    per_image = {kind: len(free) / max(found.images, 1) for kind, free in found.free.items()}
    return {
        "objects found": _figure(share, interval(count["attacked"], total)),
        "objects lost, of those found clean": TaskFigure(
            clean=0.0, attacked=lost.value, interval=lost
        ),
        "boxes without an object per image": _figure(per_image),
    }


def _figure(of: Mapping[str, float | None], within: Interval | None = None) -> TaskFigure:
    return TaskFigure(clean=of["clean"], attacked=of["attacked"], interval=within)
