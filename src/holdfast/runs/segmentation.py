"""The figures of a segmentation: pixel accuracy and mean intersection over union.

Truths and answers are the counts that `holdfast.tasks.segmentation` keeps of each image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from holdfast.intervals import Interval, mean_interval
from holdfast.runs.answered import Answered
from holdfast.runs.manifest import ObjectMetrics, TaskFigure

Counts = tuple[np.ndarray, np.ndarray, np.ndarray]  # of pixels: see `pixel_accuracy`


def figures(rows: Answered) -> dict[str, Any]:
    """Means over images with their intervals, those of the worst image, and the mIoU of the pixels
    of all images together; NaN of no images. Those without a judged pixel are none."""
    judged = rows.truth.any(1)
    truth, clean, attacked = (v[judged] for v in (rows.truth, rows.clean, rows.attacked))
    rows = replace(rows, truth=truth, clean=clean, attacked=attacked)
    counts = {"clean": _counts(rows.clean, rows), "attacked": _counts(rows.attacked, rows)}
    found: dict[str, TaskFigure] = {}
    for name, measure in (("pixel accuracy", pixel_accuracy), ("mIoU of an image", mean_iou)):
        each = {kind: measure(*of) for kind, of in counts.items()}
        means = {kind: float(v.mean()) if len(v) else np.nan for kind, v in each.items()}
        lowest = {kind: float(v.min(initial=np.inf)) for kind, v in each.items()}
        found[name] = _figure(means, mean_interval(each["attacked"]))
        found[f"{name}, worst image"] = _figure(lowest)
    together = {
        kind: float(mean_iou(hits.sum(0)[None], said.sum(0)[None], held.sum(0)[None])[0])
        for kind, (hits, said, held) in counts.items()
    }
    of_task = found | {"mIoU of all pixels": _figure(together)}
    return {"of_task": of_task, "of_objects": _by_class(rows, counts)}


def _counts(answer: np.ndarray, rows: Answered) -> Counts:
    hits, said = np.split(answer, 2, 1)
    return hits, said, rows.truth


def _figure(of: Mapping[str, float], within: Interval | None = None) -> TaskFigure:
    return TaskFigure(clean=of["clean"], attacked=of["attacked"], interval=within)


def _by_class(rows: Answered, counts: Mapping[str, Counts]) -> list[ObjectMetrics]:
    """Of the judged pixels of all images, by the class that they are of."""
    sums = {kind: [count.sum(0) for count in of] for kind, of in counts.items()}
    found: list[ObjectMetrics] = []
    for c in np.flatnonzero(rows.truth.sum(0)).tolist():
        each = {kind: [float(count[c]) for count in of] for kind, of in sums.items()}
        right = {kind: hits / held for kind, (hits, _, held) in each.items()}
        shared = {kind: hits / (said + held - hits) for kind, (hits, said, held) in each.items()}
        figures = {"pixel accuracy": _figure(right), "IoU": _figure(shared)}
        n = int((rows.truth[:, c] > 0).sum())
        found.append(ObjectMetrics(label=c, name=rows.names.get(c, str(c)), n=n, figures=figures))
    return found


def pixel_accuracy(hits: np.ndarray, said: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The share of judged pixels that are right, of images with these counts [n, c] of each class:
    of pixels rightly said to be of it, of those said to be, and of those that are: [n]."""
    return hits.sum(1) / held.sum(1)


def mean_iou(hits: np.ndarray, said: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The mean intersection over union, over the classes that an image holds or is said to hold:
    [n]; NaN where there is none."""
    union = said + held - hits
    shares = (hits / np.maximum(union, 1)).sum(1)
    return shares / np.where(there := (union > 0).sum(1), there, np.nan)
