"""Findings on detectors and segmenters: what is planted is seen, what is sound is left in peace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.data import from_arrays
from holdfast.diagnostics.checks import FOLLOW_UPS
from holdfast.errors import InputError
from holdfast.evaluation import protocols
from holdfast.evaluation.verify import verify
from holdfast.runs.manifest import Finding
from holdfast.runs.run import Run
from holdfast.tasks import Detection, Segmentation, TaskWithTruth

Step = Callable[[Tensor], Tensor]
AT = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])


def same(x: Tensor) -> Tensor:
    return x


class Cells(nn.Module):
    """Boxes around the four cells of an image, whose scores are their mean brightness.

    Args:
        before: what images go through first.
        after: what the scores [n, 4] go through last.
        move: how far the boxes are off, in pixels.
    """

    def __init__(self, before: Step = same, after: Step = same, move: float = 0):
        super().__init__()
        self.before, self.after, self.at = before, after, AT + move

    def forward(self, x: Tensor) -> Any:
        scores = self.after(nn.functional.avg_pool2d(self.before(x), 8).flatten(1))
        boxes = self.at.expand(len(x), 4, 4)
        return {"boxes": boxes, "scores": scores, "labels": torch.zeros_like(scores)}


class Dropping(Cells):
    """The same as torchvision gives them, those of low scores dropped; losses in train mode."""

    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        if self.training:
            return {"loss_classifier": found["scores"].sum(), "loss_box_reg": x.sum()}
        kept = found["scores"] > 0.2
        return [
            {name: part[row][kept[row]] for name, part in found.items()} for row in range(len(x))
        ]


def scene(n: int = 16, bright: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Images with an object in one bright cell of four."""
    rng = np.random.default_rng(0)
    cell = rng.integers(4, size=n)
    value = np.full((n, 4), 0.3)
    value[np.arange(n), cell] = bright + 0.1 * rng.random(n)
    x = value.reshape(n, 1, 2, 2).repeat(8, 2).repeat(8, 3).astype(np.float32)
    y = np.concatenate([np.zeros((n, 1)), AT[cell].numpy()], 1).astype(np.float32)
    return x, y[:, None]


def measure(
    net: Any, task: TaskWithTruth | None = None, *, eps: float = 0.05, **options: Any
) -> Run:
    data = options.pop("data", scene())
    target = holdfast.wrap(net, task=task or Detection())
    return holdfast.evaluate(target, data, f"linf({eps})", **options)


def found(run: Run) -> list[Finding]:
    return [f for f in run.verdict.findings if f.severity != "info"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `standard` of one trial, and follow-ups of two."""
    one = dict.fromkeys(("standard", "quick"), ("apgd(steps=5)",))
    monkeypatch.setattr(protocols, "OF_TASK", {"detection": one, "segmentation": one})
    answers = dict.fromkeys(FOLLOW_UPS, ('pgd(steps=5, gradient="bpda")', "square(steps=20)"))
    monkeypatch.setattr("holdfast.diagnostics.checks.FOLLOW_UPS", answers)


@pytest.mark.usefixtures("short")
def test_what_is_sound_is_left_in_peace_and_the_probe_can_be_repeated() -> None:
    run = measure(Cells())
    assert found(run) == []
    assert run.manifest.probe_costs.backwards > 0
    target = holdfast.wrap(Cells(), task=Detection())
    assert verify(run.folder, target, from_arrays(*scene())) == []
    assert found(measure(segmenter(), Segmentation(), data=pixels())) == []


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["vanish", "ghost", "all"])
def test_a_sound_detector_is_trusted(goal: str) -> None:
    assert found(measure(Cells(), Detection(goal=goal))) == []


@pytest.mark.slow
def test_a_sound_segmenter_is_trusted() -> None:
    assert found(measure(segmenter(), Segmentation(), data=pixels())) == []


def pixels() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).random((16, 3, 8, 8), np.float32)
    return x, segmenter()(torch.from_numpy(x)).argmax(1).numpy()


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 1).eval()


STEPS = [lambda z: z.detach(), lambda z: (10 * z).round() / 10, lambda z: (z > 0.5).float()]


def seen_without_a_gradient(after: Step) -> None:
    run = measure(Cells(after=after), eps=0.2)
    first = found(run)[0]
    assert "zero_gradient" in (first.check, *first.explains)
    assert run.verdict.status == "upper-bound"
    assert run.robust_accuracy.value == 0
    if first.check == "zero_gradient":
        assert "before non-maximum suppression" in first.advice


@pytest.mark.usefixtures("short")
def test_boxes_without_a_gradient_are_seen_and_what_answers_breaks_them() -> None:
    seen_without_a_gradient(STEPS[0])


@pytest.mark.slow
@pytest.mark.parametrize("after", STEPS)
def test_each_step_that_cuts_gradients_is_seen(after: Step) -> None:
    seen_without_a_gradient(after)


class Turned(torch.autograd.Function):
    """Passes inputs on, and gradients back with the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return -g[0]


@pytest.mark.usefixtures("short")
def test_a_gradient_that_misleads_is_seen_as_of_classes() -> None:
    run = measure(Cells(before=Turned.apply), eps=0.2)
    first = found(run)[0]
    assert first.check == "wrong_gradient"
    assert {"black_box", "unbounded"} <= {*first.explains}
    assert run.robust_accuracy.value == 0


def quick_look(net: Any, task: TaskWithTruth | None = None, **options: Any) -> list[Finding]:
    """What is found without the probe, but for the effort that is small."""
    run = measure(net, task, attacks=["pgd(steps=2)"], **options)
    return [f for f in found(run) if f.check not in ("effort", "zero_gradients")]


def test_boxes_dropped_by_the_model_hide_ghosts() -> None:
    x, y = scene()
    x[:8] = np.where(x[:8] < 0.4, 0.1, x[:8])
    (seen,) = quick_look(Dropping(), Detection(goal="ghost"), data=(x, y))
    assert seen.check == "hidden_boxes"
    assert seen.value == pytest.approx(0.3)
    assert quick_look(Dropping(), Detection(), data=(x, y)) == []
    assert quick_look(Cells(), Detection(goal="ghost"), data=(x, y)) == []


def test_a_score_that_few_boxes_reach_is_seen() -> None:
    assert [f.check for f in quick_look(Cells(), Detection(score=0.65))] == []
    (seen,) = quick_look(Cells(), Detection(score=0.69, goal="ghost"))
    assert seen.check == "high_score"
    assert "above 0.69" in seen.text
    task = Detection(score=0.69, goal="ghost")
    run = measure(Cells(), task, attacks=["pgd(steps=2)"])
    assert verify(run.folder, holdfast.wrap(Cells(), task=task), from_arrays(*scene())) == []


def test_boxes_far_out_of_the_image_are_seen() -> None:
    x, y = scene()
    y[:, :, 1:] = np.clip(y[:, :, 1:] + 3, 0, 16)  # where they overlap the boxes that are off
    assert quick_look(Cells(move=3), Detection(iou=0.3), data=(x, y)) == []
    (seen,) = quick_look(Cells(move=5), Detection(iou=0.1), data=(x, y))
    assert seen.check == "boxes_outside"
    assert "16 x 16" in seen.text


def test_a_detector_in_train_mode_is_measured_in_eval_mode_or_refused() -> None:
    net = Dropping().train()
    run = measure(net, attacks=["pgd(steps=2)"])
    assert "train_mode" in [f.check for f in run.verdict.findings]
    assert net.training
    with pytest.raises(
        InputError, match=r"losses .loss_classifier, loss_box_reg.*train mode"
    ) as no:
        measure(net.__call__, attacks=["pgd(steps=2)"])
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("task", [Detection(), Segmentation()])
def test_outputs_that_depend_on_the_batch_are_seen(task: TaskWithTruth) -> None:
    norm = nn.BatchNorm2d(1, affine=False).train()
    data, net = scene(), Cells(before=lambda x: 0.5 + 0.1 * norm(x))
    if isinstance(task, Segmentation):
        norm, data = nn.BatchNorm2d(3).train(), pixels()
        net = nn.Sequential(segmenter())
    function = net.__call__ if isinstance(task, Detection) else lambda x: net(norm(x))
    seen = {f.check: f.severity for f in quick_look(function, task, data=data)}
    assert seen["batch_dependent"] == "red"
