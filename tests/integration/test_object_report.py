"""What the report and the figures show of detectors and segmenters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import Tensor, nn

import holdfast
from holdfast.data import from_arrays
from holdfast.evaluation.verify import verify
from holdfast.reporting import scenes
from holdfast.runs import store
from holdfast.runs.answered import Answered
from holdfast.runs.segmentation import figures

pytest.importorskip("pycocotools")
SIDE = 16
PLACES = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])


class Cells(nn.Module):
    """A box around each quarter, scored by its mean brightness."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        score = nn.functional.avg_pool2d(x, 8).flatten(1)
        return {"place": PLACES.expand(len(x), 4, 4) + 0 * score[..., None], "score": score}


def read(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return outputs["place"], outputs["score"][..., None]


def bright(n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Images whose first quarter is an object that can be lost; in odd rows also the last, which
    cannot."""
    x = np.full((n, 1, SIDE, SIDE), 0.1, np.float32)
    x[:, :, :8, :8] = 0.55
    x[1::2, :, 8:, 8:] = 0.9
    y = np.full((n, 2, 5), -1, np.float32)
    y[:, 0], y[1::2, 1] = (0, 0, 0, 8, 8), (0, 8, 8, 16, 16)
    return x, y


class Named(holdfast.Source):
    """Boxes whose class has a name that is markup."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y, self.name, self.shape = x, y, "quarters", x.shape[1:]
        self.class_names = ('<b title="x">quarter',)

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x[start:stop].copy(), self.y[start:stop].copy()


def detector() -> Any:
    return holdfast.wrap(Cells(), task=f"detection(head='{Path(__file__)}:read')")


def test_the_report_draws_boxes_before_and_after(tmp_path: Path):
    source = Named(*bright())
    run = holdfast.evaluate(
        detector(), source, "linf(0.1)", attacks=["apgd(steps=10)"], out=tmp_path / "run"
    )
    page = Path(run.report()).read_text()
    drawings = re.findall(r'<svg [^>]*class="scene".*?</svg>', page, re.DOTALL)
    assert len(drawings) == 2 * 6
    before, after = drawings[2:4]
    assert before.count('class="object"') == 2
    assert before.count('<rect class="box"') == 2
    assert after.count('class="object lost"') == 1
    assert after.count('<rect class="box"') == 1
    assert "2 of 2 found, 0 boxes without an object" in page
    assert "1 of 2 found, 0 boxes without an object" in page
    assert "<b title" not in page
    assert "&lt;b title=&#34;x&#34;&gt;quarter" in page
    (own,) = run.metrics.of_objects
    assert (own.n, own.figures["objects found"].attacked) == (9, pytest.approx(3 / 9))
    # twice of each image and example; again what is found before, and of both what the table keeps
    assert run.manifest.costs.judge_forwards == 2 * (6 + 6) + 6 + (6 + 6)
    assert verify(run.folder, detector(), source) == []


def pixels(n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, SIDE, SIDE))
    x = (0.5 + 0.2 * (y - 0.5) + 0.02 * rng.random(y.shape))[:, None].astype(np.float32)
    y[:, 0] = 255
    return x, y


def segmenter() -> Any:
    net = nn.Conv2d(1, 2, 1)
    net.load_state_dict(
        {"weight": torch.tensor([-1.0, 1]).reshape(2, 1, 1, 1), "bias": torch.tensor([0.5, -0.5])}
    )
    return holdfast.wrap(net, task="segmentation(accuracy=0.9)")


def test_the_report_draws_masks_before_and_after_and_shards_merge_to_the_same(tmp_path: Path):
    x, y = pixels()
    how = {"threat": "linf(0.2)", "attacks": ["apgd(steps=5)"]}
    run = holdfast.evaluate(segmenter(), (x, y), out=tmp_path / "run", **how)
    kept = store.read_gallery(run.folder)
    np.testing.assert_array_equal(kept["truth"], y[kept["id"]])
    judged = y[kept["id"]] != 255
    assert (kept["clean"] == kept["truth"])[judged].mean() > 0.9
    assert (kept["attacked"] == kept["truth"])[judged].mean() < 0.9
    page = Path(run.report()).read_text()
    assert page.count('alt="truth of sample') == len(kept["id"])
    # twice of each image and example; of both what the table keeps; the worst answer, thrice
    assert run.manifest.costs.judge_forwards == 2 * (6 + 6) + (6 + 6) + 3 * 6
    assert verify(run.folder, segmenter(), from_arrays(x, y)) == []
    for part in ((0, 3), (3, 6)):
        holdfast.evaluate(segmenter(), (x, y), samples=part, out=tmp_path / str(part), **how)
    whole = holdfast.merge([tmp_path / "(0, 3)", tmp_path / "(3, 6)"], tmp_path / "whole")
    for name, values in store.read_gallery(whole.folder).items():
        np.testing.assert_array_equal(values, kept[name])


def test_masks_of_another_run_are_noticed(tmp_path: Path):
    x, y = pixels(2)
    run = holdfast.evaluate(
        segmenter(), (x, y), "linf(0.2)", attacks=["apgd(steps=5)"], out=tmp_path / "run"
    )
    kept = store.read_gallery(run.folder)
    kept["attacked"] = 1 - kept["attacked"]
    store.write_tensors(run.folder / "gallery.safetensors", kept)
    assert any("gallery" in line for line in verify(run.folder, segmenter(), from_arrays(x, y)))


@pytest.mark.parametrize("seed", range(5))
def test_segmentation_figures_are_those_of_scikit_learn(seed: int):
    rng = np.random.default_rng(seed)
    n, c = 4, 5
    truth = rng.integers(0, c - seed % 2, (n, 9, 7))
    answer = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, c, truth.shape))
    judged = rng.random(truth.shape) < 0.9

    def counts(t: np.ndarray, a: np.ndarray) -> list[np.ndarray]:
        of = (t[t == a], a, t)
        return [np.bincount(values, minlength=c).astype(float) for values in of]

    each = [counts(t[j], a[j]) for t, a, j in zip(truth, answer, judged, strict=True)]
    hits, said, held = (np.stack(column) for column in zip(*each, strict=True))
    given = np.concatenate([hits, said], 1)
    found = figures(Answered(held, given, given, {}, {2: "two"}))
    shown = {name: of.attacked for name, of in found["of_task"].items()}
    pairs = [(t[j], a[j]) for t, a, j in zip(truth, answer, judged, strict=True)]
    accuracy = [float((t == a).mean()) for t, a in pairs]
    iou = [float(jaccard_score(t, a, average="macro")) for t, a in pairs]
    assert shown["pixel accuracy"] == pytest.approx(np.mean(accuracy))
    assert shown["pixel accuracy, worst image"] == pytest.approx(min(accuracy))
    assert shown["mIoU of an image"] == pytest.approx(np.mean(iou))
    assert shown["mIoU of an image, worst image"] == pytest.approx(min(iou))
    t, a = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    assert shown["mIoU of all pixels"] == pytest.approx(jaccard_score(t, a, average="macro"))
    matrix = confusion_matrix(t, a, labels=range(c))
    for own in found["of_objects"]:
        k = own.label
        assert own.figures["pixel accuracy"].clean == pytest.approx(matrix[k, k] / matrix[k].sum())
        assert own.figures["IoU"].clean == pytest.approx(
            jaccard_score(t, a, labels=[k], average="macro")
        )
    assert {own.name for own in found["of_objects"]} >= {"0", "two"}


def test_many_boxes_are_drawn_without_names_and_classes_have_colours_of_their_own():
    boxes = np.array([[0, 0.9, i, i, i + 5, i + 5] for i in range(scenes.LABELLED + 1)], float)
    objects = np.array([[0, 0, 0, 5, 5.0]])
    drawn = scenes.boxed("data:,", (32, 32), objects, boxes, 0.5, {}, "after")
    assert drawn.count("<rect") == len(boxes) + 1
    assert "<text" not in drawn
    assert "<text" in scenes.boxed("data:,", (32, 32), objects, boxes[:2], 0.5, {}, "after")
    assert len({scenes.colour(c) for c in range(100)}) == 100
    grey = np.full((2, 2, 3), 0.5)
    shown = scenes.coloured(grey, np.array([[0, 255], [1, 1]]))
    assert shown[0, 0].tolist() == [0.5] * 3
    assert shown[0, 1] == pytest.approx([0.8] * 3)
    assert (shown[1, 0] == shown[1, 1]).all()
