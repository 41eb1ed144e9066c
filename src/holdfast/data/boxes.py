"""Objects in images: boxes of a class each, brought to one form and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from holdfast.data.arrays import to_numpy
from holdfast.errors import InputError

NONE = -1  # fills the rows of a truth [m, 5] that are no object
# of a dict of objects: torchvision's, and those of Hugging Face, whose boxes are COCO's
KEYS = (("boxes", "labels"), ("bbox", "category"), ("bbox", "label"), ("bbox", "category_id"))


def padded(boxes: Sequence[np.ndarray], most: int) -> np.ndarray:
    """Boxes [m_i, 5] of n images as one truth: float32 [n, most, 5], filled with -1."""
    truth = np.full((len(boxes), most, 5), NONE, np.float32)
    for row, own in zip(truth, boxes, strict=True):
        row[: len(own)] = own
    return truth


def is_targets(y: Any) -> bool:
    """Whether labels are boxes of each image: dicts as torchvision's detectors take them, or arrays
    [m, 5] that differ in length."""
    if not isinstance(y, (list, tuple)) or not y:
        return False
    if all(isinstance(one, Mapping) for one in y):
        return True
    shapes = {tuple(getattr(one, "shape", ())) for one in y}
    return len(shapes) > 1 and all(shape[1:] == (5,) for shape in shapes)


def of_targets(targets: Sequence[Any], name: str) -> np.ndarray:
    """The truth float32 [n, m, 5] of targets of n images: dicts with `boxes` [m_i, 4] (x0, y0, x1,
    y1 in pixels) and `labels` [m_i], as torchvision's detectors take them; dicts with `bbox` (x, y,
    width, height) and `category`, as Hugging Face has them; or arrays [m_i, 5].

    Raises:
        InputError: they are no such targets.
    """
    boxes = [_boxes_of(one, f"row {row} of {name}") for row, one in enumerate(targets)]
    return padded(boxes, max(1, *map(len, boxes)))


def of_counts(boxes: np.ndarray, counts: np.ndarray, name: str) -> np.ndarray:
    """The truth float32 [n, m, 5] of the boxes [k, 5] of n images, one after the other, of which
    each has as many as counts [n] says.

    Raises:
        InputError: they are no boxes, or not as many.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 5 or counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise InputError(
            f"{name} holds boxes of shape {boxes.shape} and counts {counts.dtype} of shape "
            f"{counts.shape}; expected boxes [k, 5] of (class, x0, y0, x1, y1) and counts [n]."
        )
    if (counts < 0).any() or counts.sum() != len(boxes):
        raise InputError(
            f"the counts of {name} sum up to {counts.sum():,}, but it holds {len(boxes):,} boxes; "
            "expected as many."
        )
    return padded(np.split(boxes, np.cumsum(counts)[:-1]), max(1, int(counts.max(initial=0))))


def _boxes_of(target: Any, what: str) -> np.ndarray:
    """Boxes [m, 5] of one image."""
    if not isinstance(target, Mapping):
        boxes = to_numpy(target, f"the boxes of {what}")
        boxes = boxes.reshape(-1, 5) if not boxes.size else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 5 or boxes.dtype.kind not in "iuf":
            raise InputError(
                f"the boxes of {what} are {boxes.dtype} of shape {boxes.shape}; expected [m, 5] of "
                "(class, x0, y0, x1, y1)."
            )
        return boxes
    keys = next((keys for keys in KEYS if {*keys} <= target.keys()), None)
    if keys is None:
        raise InputError(
            f"the truth of {what} is a dict with {', '.join(map(str, target)) or 'nothing'}; "
            "expected boxes [m, 4] and labels [m]."
        )
    boxes, labels = (to_numpy(target[key], f"{key} of {what}") for key in keys)
    if not boxes.size and not labels.size:
        return np.empty((0, 5))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise InputError(
            f"the boxes of {what} are of shape {boxes.shape} and its labels of shape "
            f"{labels.shape}; expected [m, 4] and [m]."
        )
    if keys[0] == "bbox":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return np.concatenate([labels[:, None].astype(np.float64), boxes], 1)
