"""The figures of a segmentation: pixel accuracy and mean intersection over union.

Truths and answers are the counts that `holdfast.tasks.segmentation` keeps of each image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from holdfast.intervals import mean_interval
from holdfast.runs.answered import Answered
from holdfast.runs.manifest import ObjectMetrics, TaskFigure


def figures(rows: Answered) -> dict[str, Any]:
    """Means over images with their intervals, those of the worst image, and the mIoU of the pixels
    of all images together; NaN of no images."""
    given = {"clean": rows.clean, "attacked": rows.attacked}
    counts = {kind: (*np.split(answer, 2, 1), rows.truth) for kind, answer in given.items()}
    found: dict[str, TaskFigure] = {}
    for name, measure in (("pixel accuracy", pixel_accuracy), ("mIoU of an image", mean_iou)):
        each = {kind: measure(*of) for kind, of in counts.items()}
        means = {kind: float(v.mean()) if len(v) else np.nan for kind, v in each.items()}
        lowest = {kind: float(v.min(initial=np.inf)) for kind, v in each.items()}
        found[name] = TaskFigure(**means, interval=mean_interval(each["attacked"]))
        found[f"{name}, worst image"] = TaskFigure(**lowest)
    together = {
        kind: float(mean_iou(*(count.sum(0, keepdims=True) for count in of))[0])
        for kind, of in counts.items()
    }
    of_task = found | {"mIoU of all pixels": TaskFigure(**together)}
    return {"of_task": of_task, "of_objects": _by_class(rows, counts)}


def _by_class(rows: Answered, counts: dict[str, tuple[np.ndarray, ...]]) -> list[ObjectMetrics]:
    """Of the judged pixels of all images, by the class that they are of."""
    sums = {kind: [count.sum(0) for count in of] for kind, of in counts.items()}
    found: list[ObjectMetrics] = []
    for c in np.flatnonzero(rows.truth.sum(0)).tolist():
        each = {kind: [float(count[c]) for count in of] for kind, of in sums.items()}
        right = {kind: hits / held for kind, (hits, _, held) in each.items()}
        shared = {kind: hits / (said + held - hits) for kind, (hits, said, held) in each.items()}
        figures = {"pixel accuracy": TaskFigure(**right), "IoU": TaskFigure(**shared)}
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
