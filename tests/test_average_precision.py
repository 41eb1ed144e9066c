"""Average precision is pycocotools', on random boxes and where there is little to count."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.errors import InputError
from holdfast.runs.average_precision import average_precision, require

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")
NONE, NO_BOX = np.empty((0, 5)), np.empty((0, 6))


def official(objects: list[np.ndarray], boxes: list[np.ndarray], home: Path) -> tuple[float, float]:
    """AP50 and AP50:95 by the way that its authors describe: files, loadRes and summarize."""
    truths: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (own, found) in enumerate(zip(objects, boxes, strict=True)):
        for c, x0, y0, x1, y1 in own.tolist():
            truths.append(
                {
                    "id": len(truths) + 1, "image_id": image + 50, "category_id": int(c) + 7,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0,
                }
            )  # fmt: skip
        for c, score, x0, y0, x1, y1 in found.tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append(
                {"image_id": image + 50, "category_id": int(c) + 7, "bbox": box, "score": score}
            )
    content = {
        "images": [{"id": image + 50} for image in range(len(objects))],
        "annotations": truths,
        "categories": [{"id": c} for c in range(7, 20)],
    }
    (home / "truths.json").write_text(json.dumps(content))
    (home / "results.json").write_text(json.dumps(results))
    with redirect_stdout(io.StringIO()):
        ground = coco.COCO(str(home / "truths.json"))
        e = cocoeval.COCOeval(ground, ground.loadRes(str(home / "results.json")), "bbox")
        e.evaluate()
        e.accumulate()
        e.summarize()
    return float(e.stats[1]), float(e.stats[0])


def random_case(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Objects of some classes, boxes close to them or anywhere, with scores that repeat."""
    rng = np.random.default_rng(seed)
    objects, boxes = [], []
    for _ in range(rng.integers(2, 8)):
        corner = rng.uniform(0, 60, (rng.integers(0, 6), 2))
        own = np.column_stack(
            [rng.integers(0, 5, len(corner)), corner, corner + rng.uniform(3, 40, corner.shape)]
        )
        close = own[rng.random(len(own)) < 0.8].repeat(2, 0)
        close[:, 1:] += rng.normal(0, 2, close[:, 1:].shape)
        low = rng.uniform(0, 60, (3, 2))
        free = np.column_stack([rng.integers(0, 6, 3), low, low + rng.uniform(2, 30, low.shape)])
        found = np.concatenate([close, free])
        score = np.round(rng.random(len(found)), 1)
        objects.append(own)
        boxes.append(np.column_stack([found[:, 0], score, found[:, 1:]]))
    return objects, boxes


@pytest.mark.parametrize("seed", range(12))
def test_average_precision_is_that_of_pycocotools(seed: int, tmp_path: Path):
    objects, boxes = random_case(seed)
    found = average_precision(objects, boxes)
    assert (found.at_50, found.mean) == pytest.approx(official(objects, boxes, tmp_path), abs=1e-12)
    assert np.mean(list(found.by_class.values())) == pytest.approx(found.at_50)
    assert set(found.by_class) == {int(c) for own in objects for c in own[:, 0]}


def test_what_can_be_said_by_hand():
    own = np.array([[2, 10, 10, 30, 30], [2, 40, 40, 60, 60.0]])
    exact = np.column_stack([own[:, 0], [0.9, 0.8], own[:, 1:]])
    assert average_precision([own], [exact]) == (1, 1, {2: 1})
    assert average_precision([own], [NO_BOX]) == (0, 0, {2: 0})
    assert average_precision([NONE], [exact]) == (None, None, {})
    assert average_precision([NONE], [NO_BOX]) == (None, None, {})
    # one of two objects: precision 1 up to a recall of 0.5, which 51 of 101 marks reach
    assert average_precision([own, NONE], [exact[:1], NO_BOX]).at_50 == pytest.approx(51 / 101)
    # a false box of the same score counts by its place in the list
    false = np.array([[2, 0.9, 0, 0, 5, 5]])
    after = average_precision([own[:1]], [np.concatenate([exact[:1], false])])
    before = average_precision([own[:1]], [np.concatenate([false, exact[:1]])])
    assert (after.at_50, before.at_50) == pytest.approx((1, 0.5))
    # two boxes on one object: one of them is false
    twice = average_precision([own], [np.concatenate([exact[:1], exact])])
    assert twice.at_50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]):
    average_precision(*random_case(0))
    assert capsys.readouterr() == ("", "")


def test_without_pycocotools_it_is_said_before_a_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'holdfast\[detection\]'"):
        require()
