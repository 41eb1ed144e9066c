"""Detectors: boxes, suppression, matching, heads and goals; a linear one whose optimum is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import case
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import from_arrays
from holdfast.errors import InputError
from holdfast.evaluation.verify import verify
from holdfast.runs import detection as figures
from holdfast.targets.preprocess import BGR, Normalize
from holdfast.targets.truth import WithTruth
from holdfast.tasks.boxes import Boxes, iou, kept, matched

SIDE, CELL = 16, 8  # pixels of an image, and of each of its four cells


class Cells(nn.Module):
    """A box around each cell of an image; its score is 0.5 plus the mean brightness less a half."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        score = torch.nn.functional.avg_pool2d(x, CELL).flatten(1)
        at = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
        place = at.expand(len(x), 4, 4) + 0 * score[:, :, None]
        return {"place": place, "score": score[:, :, None]}


def read(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return outputs["place"], outputs["score"]


def scene(n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images with an object in each bright cell, their boxes, and the brightness of the cells."""
    rng = np.random.default_rng(0)
    bright = np.where(rng.random((n, 4)) < 0.6, 0.5 + 0.2 * rng.random((n, 4)), 0.3)
    bright[:, 0] = 0.55
    x = bright.reshape(n, 1, 2, 2).repeat(CELL, 2).repeat(CELL, 3).astype(np.float32)
    at = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
    y = np.full((n, 4, 5), -1.0, np.float32)
    for i in range(n):
        for j, c in enumerate(np.flatnonzero(bright[i] > 0.5)):
            y[i, j] = [0, *at[c]]
    return x, y, bright


def linear(**options: Any) -> Any:
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    from holdfast.tasks import parse

    task = parse(f"detection({said})")
    return holdfast.wrap(Cells(), task=task)


HEAD = f"{Path(__file__)}:read"


@pytest.mark.parametrize("attack", ["apgd(steps=20)", "square(steps=500)"])
@pytest.mark.parametrize("lose", ["any", "all"])
def test_a_linear_detector_loses_what_eps_can_lower(lose: str, attack: str, tmp_path: Path) -> None:
    x, y, bright = scene()
    target = linear(head=HEAD, lose=lose)
    run = holdfast.evaluate(target, (x, y), "linf(0.1)", attacks=[attack], out=tmp_path / "run")
    there, gone = bright > 0.5, (bright > 0.5) & (bright < 0.6)
    lost = gone.any(1) if lose == "any" else (gone == there).all(1)
    status = np.array(run.samples.column("status").to_pylist())
    assert run.clean_accuracy.value == 1
    np.testing.assert_array_equal(status == "broken", lost)
    shares = run.metrics.of_task
    if attack.startswith("apgd"):
        count = gone[lost].sum() / there.sum()
        assert shares["objects lost, of those found clean"].attacked == pytest.approx(count)
    assert verify(run.folder, target, from_arrays(x, y)) == []


def test_shards_merge_into_the_run_of_one_process(tmp_path: Path) -> None:
    x, y, _ = scene()
    how: Any = {"attacks": ["apgd(steps=20)"]}
    whole = holdfast.evaluate(linear(head=HEAD), (x, y), "linf(0.1)", **how)
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, rows in zip(parts, ((0, 3), (3, 8)), strict=True):
        holdfast.evaluate(linear(head=HEAD), (x, y), "linf(0.1)", samples=rows, out=part, **how)
    merged = holdfast.merge(parts, tmp_path / "whole")
    assert repr(merged.samples.to_pydict()) == repr(whole.samples.to_pydict())  # NaN too
    assert merged.metrics.of_task == whole.metrics.of_task


def test_ghosts_appear_where_cells_can_be_lifted() -> None:
    x, y, bright = scene()
    x, bright = x + 0.12 * (x < 0.4), bright + 0.12 * (bright < 0.4)
    run = holdfast.evaluate(
        linear(head=HEAD, goal="ghost"), (x, y), "linf(0.1)", attacks=["apgd(steps=20)"]
    )
    dark = (bright < 0.5).sum(1)
    status = np.array(run.samples.column("status").to_pylist())
    np.testing.assert_array_equal(status == "broken", dark > 0)
    ghosts = run.metrics.of_task["boxes without an object per image"]
    assert (ghosts.clean, ghosts.attacked) == (0, dark.mean())


def test_suppression_and_matching_are_greedy_by_score() -> None:
    generator = torch.Generator().manual_seed(0)
    for by_class in (False, True):
        corner = 20 * torch.rand(3, 30, 2, generator=generator)
        size = 4 + 12 * torch.rand(3, 30, 2, generator=generator)
        place, scores = (
            torch.cat([corner, corner + size], 2),
            torch.rand(3, 30, 3, generator=generator),
        )
        boxes = Boxes.of_scores(place, scores)
        at, keep = kept(boxes, 0.4, 0.3, by_class=by_class)
        found = boxes.take(at)
        objects, classes = place[:, ::5], boxes.label[:, ::5].clone()
        classes[:, 1] = -1
        which = matched(found, keep, objects, classes, 0.5)
        for i in range(3):
            mine: list[int] = []
            for j in boxes.score[i].argsort(descending=True).tolist():
                close = [
                    k for k in mine
                    if float(iou(place[i, j : j + 1], place[i, k : k + 1])) > 0.3
                    and (not by_class or boxes.label[i, j] == boxes.label[i, k])
                ]  # fmt: skip
                if float(boxes.score[i, j]) > 0.4 and not close:
                    mine.append(j)
            assert at[i][keep[i]].tolist() == mine
            rows = torch.cat([found.label[i, :, None], found.score[i, :, None], found.place[i]], 1)[
                keep[i]
            ]
            of = torch.cat([classes[i, :, None], objects[i]], 1)
            again = figures.matched(rows.numpy(), of.numpy(), 0.5)
            np.testing.assert_array_equal(which[i][keep[i]].numpy(), again)
            assert (again >= 0).any()


def photographs(cases: Path, side: int, kind: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The photographs [n, side, side, 3], their labelled boxes, and their names."""
    net, data = case(cases, f"onnx_{kind}"), case(cases, "data_photos")
    images = data.images(side)
    names, labels = getattr(net, "NAMES", ["face"]), data.labels()
    of = labels["objects352"] if side == 352 else labels["faces320"]
    rows = {
        name: [[names.index(o[0]), *o[1:]] if side == 352 else [0, *o] for o in of[name]]
        for name in images
    }
    y = np.full((len(images), max(map(len, rows.values())), 5), -1, np.float32)
    for i, name in enumerate(images):
        y[i, : len(rows[name])] = rows[name]
    return np.stack(list(images.values())), y, list(images)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fastestdet_answers_as_it_is_known_to(cases: Path) -> None:
    x, _, names = photographs(cases, 352, "fastestdet_coco")
    target = holdfast.wrap(
        str(cases / "onnx_fastestdet_coco/FastestDet.onnx"),
        task="detection()",
        preprocess=BGR(),
        layout="nhwc",
        shape=x.shape[1:],
    )
    rule = WithTruth(target).rule
    z = target.scores(torch.from_numpy(x).float() / 255)
    expected = case(cases, "onnx_fastestdet_coco").expected()
    for name, answer in zip(names, rule.answers(z).numpy(), strict=True):
        rows = figures.boxes(answer, 0.5)
        mine = rows[:, [2, 3, 4, 5, 1, 0]]
        np.testing.assert_allclose(mine, expected[name], atol=1e-3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("file", ["yunet_n_320_320.onnx", "yunet_n_dynamic.onnx"])
def test_yunet_answers_as_it_is_known_to(file: str, cases: Path) -> None:
    x, _, names = photographs(cases, 320, "yunet_face")
    target = holdfast.wrap(
        str(cases / "onnx_yunet_face" / file),
        task="detection()",
        preprocess=[BGR(), Normalize(0, 1 / 255)],
        layout="nhwc",
        shape=x.shape[1:],
    )
    rule = WithTruth(target).rule
    z = target.scores(torch.from_numpy(x).float() / 255)
    expected = case(cases, "onnx_yunet_face").expected()
    assert set(names) == set(expected)
    for name, answer in zip(names, rule.answers(z).numpy(), strict=True):
        rows = figures.boxes(answer, 0.5)
        assert (rows[:, 0] == 0).all()
        np.testing.assert_allclose(rows[:, [2, 3, 4, 5, 1]], expected[name], atol=1e-3)


def refused(y: np.ndarray, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        holdfast.evaluate(
            linear(head=HEAD, **options), (scene()[0], y), "linf(0.1)", attacks=["apgd(steps=2)"]
        )
    assert "\n" not in str(caught.value)


def test_boxes_of_another_convention_are_noticed() -> None:
    y = scene()[1]
    there = y[..., 0] >= 0
    refused(np.where(there[..., None], y - [0, 0, 0, *y[0, 0, 1:3]], y)[:, :, :4], r"n, m, 5")
    sized = y.copy()
    sized[..., 3:] -= sized[..., 1:3]
    refused(sized, "x, y, width, height")
    refused(np.where(there[..., None], y / [1, 16, 16, 16, 16], y), "pixels")
    later = y.copy()
    later[there, 0] = 1
    refused(later, "class")
    refused(0 * y - 1, "no object in any of the 8 rows")
    wide = y.copy()
    wide[there, 1:] *= 40
    refused(wide, "out of an image")


def test_images_without_an_object_are_skipped_unless_boxes_may_appear(tmp_path: Path) -> None:
    x, y, bright = scene()
    y[2] = -1
    x[5], y[5], bright[5] = 0.7, -1, 0.7  # with four boxes that find none
    how: Any = {"attacks": ["apgd(steps=4)", "square(steps=4)"]}
    run = holdfast.evaluate(linear(head=HEAD), (x, y), "linf(0.1)", out=tmp_path / "run", **how)
    rows = run.samples.to_pydict()
    skipped = [i in (2, 5) for i in range(len(x))]
    assert [status == "skipped" for status in rows["status"]] == skipped
    assert rows["nothing_to_lose"] == skipped
    assert rows["forwards"][2] == rows["forwards"][5] == 0
    assert run.robust_accuracy.n == 6
    (found,) = [f for f in run.verdict.findings if f.check == "nothing_to_lose"]
    assert (found.severity, found.ids) == ("info", [2, 5])
    assert "skipped" not in {f.check for f in run.verdict.findings}
    # as in COCO, boxes of such images count
    said = (bright > 0.5).sum()
    ghosts = run.metrics.of_task["boxes without an object per image"]
    assert ghosts.clean == (said - (y[..., 0] >= 0).sum()) / 8
    assert verify(run.folder, linear(head=HEAD), from_arrays(x, y)) == []
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, span in zip(parts, ((2, 3), (3, 8)), strict=True):
        holdfast.evaluate(linear(head=HEAD), (x, y), "linf(0.1)", samples=span, out=part, **how)
    holdfast.merge(parts, tmp_path / "whole")
    result = holdfast.attack(linear(head=HEAD), x, y, "linf(0.1)", "apgd(steps=4)")
    assert result.skipped.tolist() == skipped
    ghost = linear(head=HEAD, goal="ghost")
    run = holdfast.evaluate(ghost, (x, 0 * y - 1), "linf(0.3)", attacks=["apgd(steps=4)"])
    assert run.metrics.counts["skipped"] == 0
    assert run.metrics.counts["broken"] > 0


def test_boxes_that_only_the_model_can_tell_are_noticed_too() -> None:
    x, y, _ = scene()
    # corners of the right order, but the width and height of boxes at the left upper corner
    y[..., 1:] = np.where(y[..., :1] >= 0, [0, 0, 8, 8], -1)
    x, y = np.repeat(x[:1], 6, 0), np.repeat(y[:1], 6, 0)
    y[:, 1:] = -1
    y[:, 0] = [0, 4, 4, 8, 8]  # the cell's center and size
    target = linear(head=HEAD)
    with pytest.raises(InputError, match="center x, center y"):
        holdfast.evaluate(target, (x, y), "linf(0.1)", attacks=["apgd(steps=2)"])


def test_a_run_folder_does_not_say_what_code_is_run(tmp_path: Path) -> None:
    x, y, _ = scene()
    np.savez(tmp_path / "scene.npz", x=x, y=y)
    (tmp_path / "cells.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_detection import Cells, read\n"
    )
    model, task = [f"{tmp_path}/cells.py:Cells", tmp_path / "scene.npz"], "detection(head={!r})"
    said = ["--task", task.format(f"{tmp_path}/cells.py:read")]
    out = tmp_path / "run"
    done = command(
        "evaluate", *model, *said, "--threat", "linf(0.1)", "--protocol", "quick", "--out", out
    )
    assert done.exit_code == 0, done.output
    assert "Right means that of the objects found without an attack each" in done.stdout.replace(
        "\n", " "
    )
    assert command("verify", out, *model, *said).exit_code == 0
    assert command("verify", out, *model).exit_code == 2


def command(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "file", "side", "eps", "steps"),
    [
        ("fastestdet_coco", "FastestDet.onnx", 352, "1/255", ["bgr"]),
        ("yunet_face", "yunet_n_320_320.onnx", 320, "1.5/255", ["bgr", "normalize(0, 1/255)"]),
    ],
)
def test_one_line_leaves_no_labelled_object(
    kind: str, file: str, side: int, eps: str, steps: list[str], cases: Path, tmp_path: Path
) -> None:
    x, y, _ = photographs(cases, side, kind)
    np.savez(tmp_path / "photographs.npz", x=x, y=y)
    model = [cases / f"onnx_{kind}" / file, tmp_path / "photographs.npz"]
    first = [word for step in steps for word in ("--preprocess", step)]
    out = tmp_path / "run"
    done = command(
        "evaluate", *model, *first, "--threat", f"linf({eps})", "--task", "detection()",
        "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["metrics"]["of_task"]["objects found"]
    assert found["clean"] >= 5 / 6 - 1e-9
    assert found["attacked"] == 0
    assert command("verify", out, *model, *first).exit_code == 0
