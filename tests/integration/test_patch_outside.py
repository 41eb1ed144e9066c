"""Patches on scenes: at a stated place, and at any place outside of the objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import holdfast
from holdfast.errors import HoldfastError, InputError, SpecError
from holdfast.evaluation import judge
from holdfast.evaluation.prepare import prepare
from holdfast.runs import store
from holdfast.targets.batch import read
from holdfast.tasks import Detection, Segmentation, TaskWithTruth
from holdfast.threats.patch import Patch
from holdfast.threats.spatial import parse

AT = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
CELL = np.array([0, 1, 2, 3, 0, 1])  # of the object in each image


class Cells(nn.Module):
    """A box around each of the four cells of an image, whose score is `own` of its mean brightness
    and the rest that of the whole image."""

    def __init__(self, own: float = 1.0) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        cells = nn.functional.avg_pool2d(x, 8).flatten(1)
        scores = self.own * cells + (1 - self.own) * cells.mean(1, keepdim=True)
        boxes = AT.expand(len(x), 4, 4)
        return {"boxes": boxes, "scores": scores, "labels": torch.zeros_like(scores)}


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Images with an object in one bright cell of four."""
    value = np.full((len(CELL), 4), 0.3, np.float32)
    value[np.arange(len(CELL)), CELL] = 0.7
    x = value.reshape(-1, 1, 2, 2).repeat(8, 2).repeat(8, 3)
    return x, np.concatenate([0 * CELL[:, None], AT[CELL].numpy()], 1)[:, None].astype(np.float32)


def measure(patch: str, task: TaskWithTruth, net: nn.Module | None = None, **options: Any) -> Any:
    options = {"attacks": ["patchrs(steps=60)", "apgd(steps=20)"], **options}
    target = holdfast.wrap(net or Cells(), task=task)
    return holdfast.evaluate(target, options.pop("data", scene()), patch, **options)


def broken(run: Any) -> np.ndarray:
    return np.array(run.samples.column("status").to_pylist()) == "broken"


def test_a_patch_at_a_stated_place_breaks_what_it_can_reach_and_changes_nothing_else(
    tmp_path: Path,
) -> None:
    """It covers 36 of the first cell's 64 pixels, so that its score goes anywhere from 28 / 64 of
    what it was to 36 / 64 more."""
    x, y = scene()
    for goal, reached in (("vanish", CELL == 0), ("ghost", CELL != 0)):
        task = Detection(goal=goal)
        run = measure("patch(6, top=2, left=1)", task, out=tmp_path / goal)
        np.testing.assert_array_equal(broken(run), reached)
        for held in store.evidence(run.folder):
            changed = held["x"] != x[held["id"]]
            assert changed[:, :, 2:8, 1:7].any()
            changed[:, :, 2:8, 1:7] = False
            assert not changed.any()
        assert holdfast.verify(run.folder, holdfast.wrap(Cells(), task=task), (x, y)) == []


def test_gradients_alone_find_the_content_of_a_patch_at_a_stated_place() -> None:
    run = measure("patch(6, top=2, left=1)", Detection(), attacks=["apgd(steps=20)"])
    np.testing.assert_array_equal(broken(run), CELL == 0)


def test_a_patch_outside_of_the_objects_covers_none_and_finds_what_is_left() -> None:
    x, y = scene()
    assert not broken(measure("patch(6, outside=True)", Detection())).any()
    # half of the score is that of the whole image: a black patch takes 0.5 x 0.3 x 36 / 256 of it
    score, loss = 0.5 * 0.7 + 0.5 * 0.4, 0.5 * 0.3 * 36 / 256
    for least, reached in ((score - 0.9 * loss, True), (score - 1.1 * loss, False)):
        task = Detection(score=least)
        run = measure("patch(6, outside=True)", task, Cells(own=0.5))
        assert (broken(run) == reached).all()
        for held in store.evidence(run.folder):
            changed = (held["x"] != x[held["id"]])[:, 0]
            for image, row in zip(changed, held["id"], strict=True):
                _, left, top, right, bottom = y[row, 0].astype(int)
                assert image.any()
                assert not image[top:bottom, left:right].any()


@pytest.mark.parametrize(
    "patch", ["patch(8, outside=True)", "patch(6, top=9, left=9, outside=True)"]
)
def test_a_patch_that_fits_nowhere_is_said(patch: str, tmp_path: Path) -> None:
    x, y = scene()
    full = np.array([3]) if "top" in patch else np.array([1, 3])
    if "top" not in patch:
        y[full, 0, 1:] = [0, 0, 16, 16]
    run = measure(patch, Detection(score=0.3, iou=0.2), data=(x, y), out=tmp_path / "run")
    (said,) = [f for f in run.verdict.findings if f.check == "no_place"]
    assert said.ids == full.tolist()
    assert said.value == len(full) / len(x)
    assert not broken(run)[full].any()
    target = holdfast.wrap(Cells(), task=Detection(score=0.3, iou=0.2))
    assert holdfast.verify(run.folder, target, (x, y)) == []


def test_a_place_that_covers_an_object_is_refused_by_the_judge() -> None:
    target = holdfast.wrap(Cells(), task=Detection())
    ready = prepare(target, scene(), "patch(6, outside=True)", attacks=["pgd(steps=1)"])
    spatial = ready.threat.spatial
    assert spatial is not None
    batch = read(ready.source, 0, len(CELL))[0]
    point = torch.zeros(len(CELL), *spatial.form)  # all black, in the upper left corner
    legal, _ = judge.within(ready.target, ready.threat, batch, point)
    np.testing.assert_array_equal(legal.numpy(), CELL != 0)
    point[:, 2:] = 0.5  # which changes nothing
    assert judge.within(ready.target, ready.threat, batch, point)[0].all()


def test_a_run_whose_patch_was_moved_onto_an_object_is_not_confirmed(tmp_path: Path) -> None:
    run = measure("patch(6, outside=True)", Detection(goal="ghost"), out=tmp_path / "run")
    assert broken(run).all()
    (file,) = (run.folder / "adversarial").glob("*")
    arrays = load_file(file)
    x, _ = scene()
    transform = parse("patch(6, outside=True)")
    assert isinstance(transform, Patch)
    point = torch.ones(len(x), 2 + 36)
    point[:, :2] = (torch.tensor([[0, 0], [0, 8], [8, 0], [8, 8], [0, 0], [0, 8]]) + 0.5) / 11
    arrays["point"] = point.numpy()
    arrays["x"] = transform.move(torch.from_numpy(x), 2 * point - 1, 0, 1).numpy()
    save_file(arrays, file)
    target = holdfast.wrap(Cells(), task=Detection(goal="ghost"))
    wrong = holdfast.verify(run.folder, target, scene())
    assert "outside the threat" in str(wrong)


def test_a_patch_on_a_segmenter_stays_outside_of_its_objects() -> None:
    x = np.random.default_rng(0).random((4, 3, 12, 12)).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 5, padding=2).eval()
    y = np.zeros((4, 12, 12), np.int64)
    y[:, 3:6, 3:6] = 1
    said = net(torch.from_numpy(x)).argmax(1).numpy()
    y = np.where(y == 1, 1, np.where(said == 1, 255, said))
    y = np.where((y == 2), 255, y)
    task = Segmentation(accuracy=0.9)
    run = measure("patch(4, outside=True)", task, net, data=(x, y))
    for held in store.evidence(run.folder):
        changed = (held["x"] != x[held["id"]]).any(1)
        assert not (changed & (y[held["id"]] == 1)).any()
    assert run.samples.num_rows == 4


WRONG: list[tuple[str, type[HoldfastError], str]] = [
    ("patch(6, top=2)", SpecError, "give top and left"),
    ("patch(6, top=-1, left=2)", SpecError, "give top and left"),
    ("patch(6, top=2, left=11)", InputError, "reaches out of images of 16 x 16"),
    ("patch(6, outside=3)", SpecError, "neither True nor False"),
]


@pytest.mark.parametrize(("text", "kind", "said"), WRONG)
def test_a_patch_that_is_none_is_refused_in_one_sentence(
    text: str, kind: type[HoldfastError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        measure(text, Detection())
    assert "\n" not in str(caught.value)


def test_classes_have_no_objects_to_stay_outside_of() -> None:
    x, y = holdfast.data.open_data("digits").rows(0, 8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(SpecError, match="of detectors and segmenters"):
        holdfast.evaluate(net, (x, y), "patch(3, outside=True)", attacks=["pgd(steps=1)"])
