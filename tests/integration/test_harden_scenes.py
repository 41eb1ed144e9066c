"""Hardening of detectors and segmenters: with a loss of the user's own, or that of the pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import detector, segmenter
from helpers.commands import holdfast as command
from helpers.commands import names, refused
from safetensors.torch import save_file
from torch import Tensor, nn

import holdfast
from holdfast.errors import InputError, SpecError
from holdfast.hardening.harden import Hardened
from holdfast.tasks import Detection, Form, Segmentation
from holdfast.testing import Scenes, scenes_of_digits
from holdfast.training.state import State
from holdfast.training.truths import OfTruths

keep = State.keep

SHORT = (
    "finetune(objective='pgd(steps=2, step_size=0.6)', epochs=1, judge='pgd(steps=2)', "
    "optimiser='adam', rate=0.002)"
)
LONGER = (
    "finetune(objective='pgd(steps=3, step_size=0.5)', epochs={}, optimiser='adam', rate=0.002, "
    "batch_size=32)"
)
DETECTOR = Detection(head=detector.read)


def own_loss(model: nn.Module, x: Tensor, truth: Tensor) -> Tensor:
    assert truth.dtype == torch.float32
    assert truth.shape[1:] == (3, 5)
    return detector.loss_of(model(x), truth)


def scenes(n: int, seed: int, split: str = "train", side: int = 32) -> Scenes:
    return scenes_of_digits(n, seed, split=split, classes=3, side=side)


def of_detector(net: nn.Module, n: int, m: int, threat: str, **options: Any) -> Hardened:
    train, test = scenes(n, 7, side=64), scenes(m, 1, "test", side=64)
    options = {"task": DETECTOR, "loss": own_loss, "protocol": "quick", **options}
    judged = test.x, test.boxes
    return holdfast.harden(net, (train.x, train.boxes), threat, test=judged, **options)


def of_segmenter(net: nn.Module, n: int, m: int, threat: str, **options: Any) -> Hardened:
    train, test = scenes(n, 7), scenes(m, 1, "test")
    options = {"task": Segmentation(accuracy=0.9), "protocol": "quick", **options}
    judged = test.x, test.masks
    return holdfast.harden(net, (train.x, train.masks), threat, test=judged, **options)


def figure(made: Hardened, name: str) -> tuple[float, float]:
    """What is left of a figure under attack, before and after."""
    of = [run.metrics.of_task[name].attacked for run in (made.before, made.after)]
    return tuple(of)  # pyright: ignore


@pytest.mark.slow
def test_a_small_detector_becomes_robust(tmp_path: Path) -> None:
    made = of_detector(
        detector.trained(), 1000, 40, "linf(0.02)", recipe=LONGER.format(4), out=tmp_path / "run"
    )
    before, after = figure(made, "objects lost, of those found clean")
    assert before > 0.3
    assert after < before / 3
    assert made.comparison.figures[1].low > 0.2
    assert made.after.metrics.of_task["objects found"].clean > 0.9  # pyright: ignore


@pytest.mark.slow
def test_a_small_segmenter_becomes_robust(tmp_path: Path) -> None:
    net, _, _ = segmenter.trained(400, 4)
    made = of_segmenter(net, 1000, 24, "linf(0.1)", recipe=LONGER.format(6), out=tmp_path / "run")
    before, after = figure(made, "pixel accuracy")
    assert 1 - after < 0.7 * (1 - before)
    before, after = figure(made, "mIoU of all pixels")
    assert after > before + 0.1


def test_a_segmenter_is_hardened_by_the_loss_of_its_pixels_and_resumed(tmp_path: Path) -> None:
    net, _, _ = segmenter.trained(4, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options: dict[str, Any] = {"recipe": SHORT, "out": tmp_path / "run"}
    made = of_segmenter(net, 40, 4, "linf(0.05)", **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    (epoch,) = made.log
    assert 0 < epoch.robust <= epoch.clean <= 1
    assert np.isnan(epoch.trained)
    asked = json.loads((made.folder / "harden.json").read_text())
    assert "cross-entropy of the pixels" in str(asked)
    assert "segmentation(accuracy=0.9)" in str(asked)
    shown = {f.name: f for f in made.comparison.of_task}
    assert (
        shown["pixel accuracy"].attacked[1] == made.after.metrics.of_task["pixel accuracy"].attacked
    )
    assert "mIoU of all pixels" in made.report().read_text()
    again = of_segmenter(net, 40, 4, "linf(0.05)", resume=True, **options)
    assert again.comparison == made.comparison
    weights = [m.model.state_dict() for m in (made, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_detector_is_hardened_by_the_loss_that_the_user_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = detector.Grid().eval()
    net.net[-1].bias.data[0] = 3  # pyright: ignore  # it sees objects everywhere
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    helpers = Path(detector.__file__).parents[1]
    (tmp_path / "own.py").write_text(
        f"import sys; sys.path.insert(0, {str(helpers)!r})\n"
        "from helpers.detector import Grid, read, loss_of\n"
        "def make():\n"
        "    from safetensors.torch import load_file\n"
        f"    net = Grid(); net.load_state_dict(load_file({str(tmp_path / 'net.safetensors')!r}))\n"
        "    return net.eval()\n"
        "def loss(model, x, truth):\n"
        "    return loss_of(model(x), truth)\n"
    )
    for name, n in (("train", 24), ("test", 4)):
        found = scenes(n, 1, name, side=64)
        np.savez(tmp_path / f"{name}.npz", x=found.x, y=found.boxes)
    said = [
        "harden", f"{tmp_path}/own.py:make", tmp_path / "train.npz",
        "--test", tmp_path / "test.npz", "--threat", "linf(0.02)", "--protocol", "quick",
        "--task", f"detection(head='{tmp_path}/own.py:read')", "--recipe", SHORT,
    ]  # fmt: skip
    done = command(*said, "--loss", f"{tmp_path}/own.py:loss", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "objects found" in done.output
    assert (tmp_path / "run" / "model.safetensors").exists()
    names(refused(*said, "--out", tmp_path / "other"), "--loss")


class Listed(detector.Grid):
    """As torchvision's detectors: takes a list of images; in train mode with their targets, for a
    dict of losses, and in eval mode alone, for a list of dicts of boxes."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        z = super().forward(torch.stack(list(images)))
        if self.training:
            rows = [torch.cat([t["labels"][:, None].float(), t["boxes"]], 1) for t in targets]
            full = torch.full((len(rows), 3, 5), -1.0)
            for row, own in zip(full, rows, strict=True):
                row[: len(own)] = own
            return {"loss_boxes": detector.loss_of(z, full)}
        place, scores = detector.read(z)
        best = scores.max(2)
        return [
            {"boxes": p[keep], "scores": score[keep], "labels": label[keep]}
            for p, score, label in zip(place, best.values, best.indices, strict=True)
            for keep in [score > 0.05]
        ]


def loss_of_lists(model: nn.Module, x: Tensor, truth: Tensor) -> Tensor:
    """The losses that such a module gives in train mode; it is left in the mode that it was in."""
    own = [row[row[:, 0] >= 0] for row in truth]
    targets = [{"boxes": row[:, 1:], "labels": row[:, 0].long()} for row in own]
    before = model.training
    losses = model.train()(list(x), targets)
    model.train(before)
    return sum(losses.values())  # pyright: ignore


def test_a_detector_that_gives_lists_of_dicts_is_hardened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Listed().eval()
    net.net[-1].bias.data[0] = 3  # pyright: ignore  # it sees objects everywhere
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"task": Detection(score=0.3), "loss": loss_of_lists, "recipe": SHORT}
    made = of_detector(net, 24, 4, "linf(0.02)", out=tmp_path / "run", **options)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(made.model, Listed)
    assert any(not torch.equal(v, before[name]) for name, v in made.model.state_dict().items())
    assert made.after.metrics.of_task["objects found"].clean is not None


def test_weights_below_the_floor_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    said, kept = iter([(0.9, 0.2), (0.1, 0.5)]), []

    def judge(self: OfTruths, *_: object) -> tuple[float, ...]:
        clean, robust = next(said)
        return clean, robust, robust, clean, np.nan

    monkeypatch.setattr(OfTruths, "_judge", judge)
    monkeypatch.setattr(State, "keep", lambda s: (kept.append(s.progress.epoch), keep(s)))
    recipe = SHORT.replace("epochs=1", "epochs=2")
    net, _, _ = segmenter.trained(1, 1)
    of_segmenter(net, 20, 2, "linf(0.05)", recipe=recipe, min_clean=0.5)
    assert kept == [0, 1]  # before the first epoch, and after it


def test_the_loss_of_pixels_is_that_of_all_classes_and_of_masks_with_an_axis_more() -> None:
    z, y = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    y[:, 0] = 255
    form = Form((("", (3, 4, 4)),), image=(4, 4))
    expected = nn.functional.cross_entropy(z[:, :, 1:], y[:, 1:], reduction="none")
    for task in (Segmentation(), Segmentation(region=1)):
        for mask in (y, y[:, None]):
            paid = task.fitted(form).cross_entropy(z.flatten(1), mask)
            torch.testing.assert_close(paid, expected.flatten(1).mean(1))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"loss": lambda model, x, truth: model(x)}, r"gives \[2, 8, 8, 8\] for 2 rows"),
    ({"loss": lambda model, x, truth: 1.0}, "gives float for 2 rows"),
    ({"loss": lambda model, x, truth: model(x).detach().mean()}, "no gradient"),
    ({"loss": lambda model, x, truth: model(x, truth)}, "the loss raised TypeError"),
    ({"loss": None}, "needs the loss of a model whose task is detection"),
    ({"class_weights": "balanced"}, "are of classes"),
    ({"devices": 2}, "trained by one process"),
    ({"task": "multilabel"}, "hardening trains classifiers, detectors and segmenters"),
    ({"task": None}, "a loss of your own is of a detector or a segmenter"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_be_trained_is_refused_in_one_sentence(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        of_detector(detector.Grid().eval(), 8, 2, "linf(0.02)", recipe=SHORT, **options)
    assert "\n" not in str(caught.value)


def test_parts_of_a_recipe_that_are_of_classes_are_refused() -> None:
    for recipe in ("strong", "fast(augment='flip')", "fast(regularize='gradalign')"):
        with pytest.raises(SpecError, match="is of classes"):
            of_detector(detector.Grid().eval(), 8, 2, "linf(0.02)", recipe=recipe)
