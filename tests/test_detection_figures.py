"""The figures of a detector: objects found and lost, boxes without an object, by class."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.intervals import interval
from holdfast.runs.answered import Answered
from holdfast.runs.detection import figures

pytest.importorskip("pycocotools")
A, B = (10, 10, 30, 30), (40, 40, 60, 60)


def answered(boxes: list[tuple[float, ...]]) -> np.ndarray:
    rows = np.full((6, 6), np.nan, np.float32)
    rows[: len(boxes)] = np.array(boxes).reshape(-1, 6)
    return rows.ravel()


def truth(*objects: tuple[float, ...]) -> np.ndarray:
    rows = np.full((4, 5), -1, np.float32)
    rows[0] = 0
    rows[1 : 1 + len(objects)] = np.array(objects).reshape(-1, 5)
    return rows.ravel()


def case() -> Answered:
    """Of three objects two are found, then one; a box of class 1 appears. The object of class 2
    (written -4) was never found. The third image has no object."""
    clean = [[(1, 0.9, *A), (1, 0.8, *B)], [(1, 0.7, *A)], []]
    attacked = [[(1, 0.9, *A), (1, 0.4, *B)], [(1, 0.7, *A)], [(1, 0.6, *A), (5, 0.6, *B)]]
    return Answered(
        np.stack([truth((1, *A), (1, *B)), truth((-4, *A)), truth()]),
        np.stack([answered(boxes) for boxes in clean]),
        np.stack([answered(boxes) for boxes in attacked]),
        {"score": 0.5, "iou": 0.5},
        {1: "cat", 2: "dog"},
    )


def test_objects_lost_and_boxes_without_one():
    found = figures(case())
    shown = {name: (of.clean, of.attacked) for name, of in found["of_task"].items()}
    assert shown["objects found"] == pytest.approx((2 / 3, 1 / 3))
    assert shown["objects lost, of those found clean"] == (0, 0.5)
    assert shown["boxes without an object per image"] == (1 / 3, 1)
    lost = found["of_task"]["objects lost, of those found clean"]
    assert lost.interval == interval(1, 2)
    # AP counts boxes below the score, too: the class 2 has none
    assert shown["AP50"] == pytest.approx((0.5, (51 + 50 * 2 / 4) / 101 / 2))


def test_figures_by_class():
    cat, dog = figures(case())["of_objects"]
    assert (cat.label, cat.name, cat.n, dog.label, dog.name, dog.n) == (1, "cat", 2, 2, "dog", 1)
    assert cat.figures["objects found"].attacked == 0.5
    assert cat.figures["boxes without an object per image"].attacked == pytest.approx(2 / 3)
    assert dog.figures["objects found"].clean == 0
    assert dog.figures["objects lost, of those found clean"].attacked is None


def test_no_rows_and_no_objects():
    empty = Answered(np.empty((0, 20)), np.empty((0, 36)), np.empty((0, 36)), case().options, {})
    found = figures(empty)
    assert found["of_objects"] == []
    assert {of.clean for of in found["of_task"].values()} == {None, 0.0}
