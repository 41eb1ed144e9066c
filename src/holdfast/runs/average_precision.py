"""Average precision of boxes, as COCO's own code computes it."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np

from holdfast.errors import InputError


class AveragePrecision(NamedTuple):
    """In [0, 1], means over the classes that have objects; None where there are no objects.

    Attributes:
        at_50: AP50, at an overlap of 0.5.
        mean: AP50:95, the mean over overlaps of 0.5, 0.55, ... 0.95.
        by_class: AP50 of each class.
    """

    at_50: float | None
    mean: float | None
    by_class: dict[int, float]


def average_precision(
    objects: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
) -> AveragePrecision:
    """The average precision of the boxes of n images: pycocotools', with its 100 best boxes of each
    image and class.

    Args:
        objects: [m, 5] of each image: class, x0, y0, x1, y1.
        boxes: [d, 6] of each image: class, score, x0, y0, x1, y1.

    Raises:
        InputError: pycocotools is not installed.
    """
    require()
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it prints its progress
        found = COCOeval(_set(objects), _set(boxes, scored=True), "bbox")
        found.params.areaRng, found.params.areaRngLbl = found.params.areaRng[:1], ["all"]
        found.params.maxDets = [100]
        found.evaluate()
        found.accumulate()
    precision = found.eval["precision"][..., 0, 0]  # [overlap, recall, class], -1 where none
    classes = found.params.catIds
    known = [k for k in range(len(classes)) if (precision[:, :, k] > -1).all()]
    if not known:
        return AveragePrecision(None, None, {})
    by_class = {int(classes[k]): float(precision[0, :, k].mean()) for k in known}
    precision = precision[:, :, known]
    return AveragePrecision(float(precision[0].mean()), float(precision.mean()), by_class)


def require() -> None:
    """Raises InputError: pycocotools is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise InputError(
            "the average precision of a detector needs pycocotools: pip install "
            "'holdfast[detection]'."
        )


def _set(images: Sequence[np.ndarray], scored: bool = False) -> Any:
    """Objects, or boxes with their scores, as one of COCO's sets."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, own in enumerate(images):
        for box in own.astype(np.float64).tolist():
            x0, y0, x1, y1 = box[-4:]
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would mean that it is not matched
                    "image_id": image,
                    "category_id": int(box[0]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    **({"score": box[1]} if scored else {}),
                }
            )
    made = COCO()
    dataset: Any = {
        "images": [{"id": image} for image in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": c} for c in sorted({one["category_id"] for one in annotations})],
    }
    made.dataset = dataset
    made.createIndex()
    return made
