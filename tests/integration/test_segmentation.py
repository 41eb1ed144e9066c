"""A class for every pixel: what is right, what attacks find of it, and what a run says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import case
from helpers.commands import holdfast as command
from helpers.commands import names, refused, same_run
from helpers.segmenter import trained
from torch import Tensor, nn

import holdfast
from holdfast.attacks import parse, run
from holdfast.errors import InputError, SpecError
from holdfast.runs.run import Run
from holdfast.targets import Target
from holdfast.targets.preprocess import BGR, Normalize
from holdfast.targets.truth import WithTruth
from holdfast.tasks import Segmentation
from holdfast.tasks import parse as task_of
from holdfast.tasks.pixels import LOSSES
from holdfast.threats.threat import Threat

EPS = 0.1


def linear(classes: int = 3, seed: int = 0) -> nn.Module:
    """A class for each pixel by its own channels alone."""
    torch.manual_seed(seed)
    return nn.Conv2d(3, classes, 1).eval()


def data(net: nn.Module, n: int = 6, side: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images far from the box, and masks of which a tenth is wrong and the first row not
    judged."""
    keys = torch.Generator().manual_seed(seed)
    x = 0.2 + 0.6 * torch.rand(n, 3, side, side, generator=keys)
    with torch.no_grad():
        y = net(x).argmax(1)
    other = torch.rand(y.shape, generator=keys) < 0.1
    y[other] = (y[other] + 1) % net(x).shape[1]
    y[:, 0] = 255
    return x, y


def target(net: nn.Module, task: str = "segmentation", **options: Any) -> Target:
    return holdfast.wrap(net, task=task, **options)


def left(net: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The pixel accuracy that the best adversary leaves of a linear model: [n]."""
    with torch.no_grad():
        z, w = net(x), net.weight.flatten(1)
    held, true = y != 255, y.clamp(0, len(w) - 1)
    lead = z.gather(1, true[:, None]) - z
    price = eps * (w[true] - w[:, None, None, None]).abs().sum(-1).movedim(0, 1)
    robust = ((lead > price) | (torch.arange(len(w))[:, None, None] == true[:, None])).all(1) & held
    return robust.flatten(1).sum(1) / held.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("classes", "loss"),
    [(2, "jsd"), (2, "masked_ce"), (2, "balanced_ce"), (3, "pair_ce"), (3, "margin")],
)
def test_an_attack_finds_the_optimum_of_a_linear_model(classes: int, loss: str):
    net = linear(classes)
    x, y = data(net)
    best = left(net, x, y, EPS)
    assert 0.2 < float(best.mean()) < 0.8
    attack = parse(f"sea(steps=60, loss={loss!r})")
    found = run(attack, target(net, "segmentation(accuracy=0.9)"), x, y, Threat.linf(EPS))
    # in the box's middle every pixel falls alone
    np.testing.assert_allclose(0.9 + found.margin.numpy(), best, atol=1e-6)


def test_more_eps_leaves_less():
    net = linear()
    x, y = data(net)
    runs = [
        run(parse("sea(steps=20)"), target(net), x, y, Threat.linf(eps)).margin
        for eps in (0.01, 0.03, 0.06)
    ]
    assert (runs[0] >= runs[1]).all()
    assert (runs[1] >= runs[2]).all()
    assert (runs[0] > runs[2]).all()


@pytest.mark.parametrize(
    "task", ["segmentation(accuracy=0.7)", "segmentation(miou=0.5)", "segmentation(region=1)"]
)
def test_the_margin_is_the_measure(task: str):
    net = linear()
    x, y = data(net)
    judged = WithTruth(bound(target(net, task), x))
    scores = judged.scores(judged.with_truths(x, y))
    with torch.no_grad():
        said = net(x).argmax(1)
    for row in range(len(x)):
        at = y[row] != 255
        if "region" in task:
            at &= y[row] == 1
        true, given = y[row][at], said[row][at]
        measure, tau = (true == given).double().mean(), 0.7 if "accuracy" in task else 0.5
        if "miou" in task:
            shares = [
                ((true == c) & (given == c)).sum() / ((true == c) | (given == c)).sum()
                for c in range(3)
                if ((true == c) | (given == c)).any()
            ]
            measure = torch.stack(shares).double().mean()
        assert float(scores[row, 0] - scores[row, 1]) == pytest.approx(float(measure) - tau)


def bound(found: Target, x: Tensor) -> Target:
    found.bind(tuple(x.shape[1:]))
    return found


class Small(nn.Module):
    """Logits at a quarter of the size, as in a list or dict that libraries give them in."""

    def __init__(self, form: str = "tensor", classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.form, self.layer = form, nn.Conv2d(3, classes, 5, stride=4, padding=2)

    def forward(self, x: Tensor) -> Any:
        z = self.layer(x)
        both = {"out": z, "aux": z - 1}
        return {
            "tensor": z, "dict": both, "last": z.movedim(1, 3), "bare": z[:, 0],
        }[self.form]  # fmt: skip


def upsampled(z: Tensor) -> Tensor:
    return nn.functional.interpolate(z, (16, 16), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("form", ["tensor", "dict", "last"])
def test_logits_of_another_size_or_form_are_the_same_model(form: str):
    x = torch.rand(4, 3, 16, 16)
    net = Small()
    with torch.no_grad():
        y = upsampled(net(x)).argmax(1)
    judged = WithTruth(bound(target(Small(form)), x))
    assert isinstance(judged.rule, Segmentation)
    assert judged.rule.classes == 3
    scores = judged.scores(judged.with_truths(x, y))
    torch.testing.assert_close(scores[:, 1], torch.full((4,), -0.5))


@pytest.mark.parametrize("ending", [None, nn.Sigmoid(), nn.Softmax(1)])
@pytest.mark.parametrize("form", ["tensor", "bare"])
def test_one_logit_says_one_of_two_classes(form: str, ending: nn.Module | None):
    if isinstance(ending, nn.Softmax):
        net: nn.Module = nn.Sequential(Small("tensor", 2), ending)
    else:
        net = nn.Sequential(Small(form, 1), *filter(None, [ending]))
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        z = Small("tensor", 2 if isinstance(ending, nn.Softmax) else 1)(x)
        z = torch.cat([torch.zeros_like(z), z], 1) if z.shape[1] == 1 else z
        y = upsampled(z).argmax(1)
    own = target(net, probabilities=ending is not None)
    seen = run(parse("pgd(steps=2)"), own, x, y, Threat.linf(1e-6))
    torch.testing.assert_close(seen.margin, torch.full((4,), 0.5).double(), atol=0.05, rtol=0)
    found = run(parse("sea(steps=20)"), own, x, y, Threat.linf(0.5))
    assert found.margin.mean() < 0


@pytest.mark.parametrize("last", [False, True])
def test_probabilities_of_each_pixel_are_seen_and_read_as_log_odds(last: bool):
    bare = linear()
    bare.weight.data *= 40  # sure of most pixels
    x, y = data(bare)
    y = y.where(y == 255, bare(x).argmax(1))
    left: list[float] = []
    for net in (bare, nn.Sequential(bare, nn.Softmax(1), Last() if last else nn.Identity())):
        options = {"attacks": ["acg(steps=20)"]}
        done = holdfast.evaluate(target(net.eval()), (x, y), "linf(0.02)", **options)
        accuracy = done.metrics.of_task["pixel accuracy"]
        assert accuracy.clean == 1
        left.append(accuracy.attacked or 0)
    (said,) = [f for f in done.verdict.findings if f.check == "probabilities"]
    assert (said.severity, "for each pixel" in said.text) == ("info", True)
    assert left[1] == pytest.approx(left[0], abs=0.02)


class Last(nn.Module):
    """Channels last."""

    def forward(self, z: Tensor) -> Tensor:
        return z.movedim(1, 3)


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=16, num_labels=4,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config).eval()


def test_segformer_has_the_gradients_of_its_loss():
    net = segformer().double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        z = net(x).logits
        assert z.shape == (2, 4, 8, 8)
        y = nn.functional.interpolate(z, (32, 32), mode="bilinear").argmax(1)
    judged = WithTruth(bound(target(net, "segmentation(accuracy=0.9)"), x))
    batch = judged.with_truths(x, y)
    for loss in judged.losses:
        z, pull = judged.ascending(loss).linearize(batch)
        g = pull(torch.tensor([[0.0, 1.0]] * 2).to(z))
        u = torch.randn_like(x)

        def value(at: Tensor, loss: str = loss, judged: Any = judged) -> Tensor:
            return LOSSES[loss](*judged.rule._pixels(judged.inner.scores(at), y))

        slope = (value(x + 1e-6 * u) - value(x - 1e-6 * u)) / 2e-6
        torch.testing.assert_close((g * u).flatten(1).sum(1), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("spec", ["sea(steps=8)", "pgd(steps=4, loss='jsd')", "square(steps=10)"])
def test_rows_are_independent_and_a_poisoned_one_harms_no_other(spec: str):
    net = segformer()
    x = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        y = nn.functional.interpolate(net(x).logits, (32, 32), mode="bilinear").argmax(1)
    ids, threat = torch.arange(5), Threat.linf(0.1)
    whole = run(parse(spec), target(net), x, y, threat, ids=ids)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = run(parse(spec), target(net), x[order], y[order], threat, ids=order)
    for name, column in whole.columns().items():
        assert torch.equal(column[order], turned.columns()[name]), name
    poisoned = x.clone()
    poisoned[2, 0, 5, 5] = torch.nan
    harmed = run(parse(spec), target(net), poisoned, y, threat, ids=ids)
    others = [0, 1, 3, 4]
    for name, column in whole.columns().items():
        assert torch.equal(column[others], harmed.columns()[name][others]), name
    assert int(harmed.outcome[2]) == 2


def test_budgets_are_kept():
    net = linear()
    x, y = data(net)
    found = run(parse("sea(steps=50)"), target(net), x, y, Threat.linf(0.01), budget=13)
    assert (found.forwards <= 13).all()


def test_a_run_is_verified_resumed_and_says_its_figures(tmp_path: Path):
    net = linear()
    x, y = data(net)
    options: dict[str, Any] = {"attacks": ["sea(steps=10)"], "seed": 3}
    own = target(net, "segmentation(accuracy=0.5)")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    done = holdfast.evaluate(own, (x, y), "linf(0.1)", out=tmp_path / "a", **options)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert holdfast.verify(tmp_path / "a", model=own, data=(x, y)) == []
    of_task = done.metrics.of_task
    accuracy = of_task["pixel accuracy"]
    best = left(net, x, y, EPS)
    assert accuracy.attacked == pytest.approx(float(best.mean()), abs=0.01)
    assert accuracy.interval is not None
    assert accuracy.interval.value == accuracy.attacked
    assert of_task["pixel accuracy, worst image"].attacked == pytest.approx(
        float(best.min()), abs=0.03
    )
    assert 0.5 < (of_task["mIoU of all pixels"].clean or 0) < 1
    again = holdfast.evaluate(own, (x, y), "linf(0.1)", out=tmp_path / "b", **options)
    same_run(done.folder, again.folder)


def test_images_without_the_region_are_skipped(tmp_path: Path):
    net = linear()
    x, y = data(net)
    y[1][y[1] == 2] = 255
    y[4] = 255
    own = target(net, "segmentation(region=2)")
    run = holdfast.evaluate(own, (x, y), "linf(0.1)", attacks=["sea(steps=4)"], out=tmp_path / "a")
    assert [s == "skipped" for s in run.samples.column("status").to_pylist()] == [
        False, True, False, False, True, False,
    ]  # fmt: skip
    assert 0 < run.metrics.of_task["pixel accuracy"].clean <= 1
    assert holdfast.verify(tmp_path / "a", model=own, data=(x, y)) == []
    few = target(net, "segmentation(miou=0.5)")
    run = holdfast.evaluate(few, (x, y), "linf(0.1)", attacks=["sea(steps=4)"])
    assert run.metrics.counts["skipped"] == 1
    with pytest.raises(InputError, match="no pixel of class 2 in any of the 6 rows"):
        holdfast.evaluate(own, (x, 0 * y), "linf(0.1)", attacks=["sea(steps=4)"])


WRONG: dict[str, tuple[Any, str]] = {
    "masks of another size": (
        lambda y: y[:, :4],
        "masks of arrays are 4 x 8, but its images are 8 x 8",
    ),
    "a class too many": (lambda y: y.clamp(max=3) + 0 * y, "has the classes 0 to 2"),
    "below 0": (lambda y: y.where(y == 255, -1), "holds -1"),
    "halves": (lambda y: y + 0.5, "holds"),
    "no masks": (lambda y: y[:, 0, 0], "takes a mask of classes for each image"),
    "nothing judged": (lambda y: y * 0 + 255, "no judged pixel"),
}


@pytest.mark.parametrize("case", WRONG)
def test_masks_that_are_none_are_refused(case: str):
    net = linear()
    x, y = data(net)
    change, said = WRONG[case]
    with pytest.raises(InputError, match=said):
        holdfast.attack(target(net), x, change(y), "linf(0.05)", "pgd(steps=1)")


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path):
    (tmp_path / "model.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Conv2d(3, 3, 1).eval()\n"
    )
    x, y = data(linear())
    np.savez(tmp_path / "small.npz", x=x.numpy(), y=y[:, :4].numpy())
    said = refused(
        "evaluate", f"{tmp_path}/model.py:make", tmp_path / "small.npz", "--task", "segmentation",
        "--threat", "linf(0.05)", "--out", tmp_path / "run",
    )  # fmt: skip
    names(said, "4 x 8", "8 x 8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("segmentation(accuracy=0.5, miou=0.5)", "give accuracy or miou"),
        ("segmentation(accuracy=0)", "a tau above 0"),
        ("segmentation(miou=1.5)", "at most 1"),
        ("segmentation(region=-1)", "a class from 0"),
        ("segmentation(region=1, miou=0.5)", "give accuracy, not miou"),
        ("segmentation(ignore=0.5)", "a whole number"),
    ],
)
def test_taus_that_are_none_are_refused(text: str, said: str):
    with pytest.raises(SpecError, match=said):
        task_of(text)


def test_a_model_of_other_outputs_or_classes_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    x, y = data(linear())
    with pytest.raises(InputError, match=r"takes logits \[n, classes, h, w\], but the model gives"):
        holdfast.attack(target(net), x, y, "linf(0.05)", "pgd(steps=1)")
    own = target(linear(), "segmentation(region=7)")
    with pytest.raises(InputError, match="speaks of class 7, but the model gives 3 classes"):
        holdfast.attack(own, x, y, "linf(0.05)", "pgd(steps=1)")


def test_its_text_is_read_again():
    for task in (Segmentation(), Segmentation(miou=0.25, ignore=-1), Segmentation(region=2)):
        assert task_of(str(task)) == task
    assert math.isclose(Segmentation().tau, 0.5)


MEAN, STD = (102.890434, 111.25247, 126.91212), (62.93292, 62.82138, 66.355705)  # blue first
PORTRAITS = f"normalize({tuple(m / 255 for m in MEAN)}, {STD})"


def portraits(cases: Path, tmp_path: Path) -> Path:
    """Two photographs, RGB of bytes, and their masks, drawn by hand: 255 is not judged."""
    photos, truths = case(cases, "data_photos").images(320), case(cases, "onnx_sinet_portrait")
    masks = truths.trimap()
    np.savez(
        tmp_path / "portraits.npz",
        x=np.stack([photos[name] for name in truths.NAMES]),
        y=np.stack([masks[name] for name in truths.NAMES]),
    )
    return tmp_path / "portraits.npz"


def test_a_network_of_onnx_gives_its_known_masks(cases: Path, tmp_path: Path):
    known = case(cases, "onnx_sinet_portrait")
    with np.load(portraits(cases, tmp_path)) as data:
        x = torch.from_numpy(data["x"].transpose(0, 3, 1, 2) / np.float32(255))
    steps = [BGR(), Normalize(np.divide(MEAN, 255).tolist(), STD)]
    path = cases / "onnx_sinet_portrait" / "SINet.onnx"
    found = bound(target(str(path), preprocess=steps), x)  # pyright: ignore
    masks = found.scores(x).unflatten(1, found.form.one).argmax(1)
    for name, mask in zip(known.NAMES, masks, strict=True):
        assert np.array_equal(mask.numpy() == 1, known.expected()[name])


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "most"), [(1, 0.50), (2, 0.007), (4, 0.0005)])
def test_standard_is_stronger_on_portraits_than_steps_of_the_sign(
    cases: Path, tmp_path: Path, eps: int, most: float
):
    """Sixty steps of the sign leave a pixel accuracy of 0.52, 0.008 and 0."""
    done = command(
        "evaluate", cases / "onnx_sinet_portrait" / "SINet.onnx", portraits(cases, tmp_path),
        "--task", "segmentation", "--preprocess", "bgr", "--preprocess", PORTRAITS,
        "--threat", f"linf({eps}/255)", "--protocol", "standard", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figure = Run(tmp_path / "run").metrics.of_task["pixel accuracy"]
    assert (figure.clean or 0) > 0.995
    assert (figure.attacked or 0) <= most
    model, data = cases / "onnx_sinet_portrait" / "SINet.onnx", tmp_path / "portraits.npz"
    judged = command("verify", tmp_path / "run", model, data)
    assert judged.exit_code == 0, judged.output


@pytest.mark.parametrize(
    ("steps", "n", "clean", "epsilons"),
    [
        (30, 4, 0.2, (0.3,)),
        pytest.param(400, 24, 0.6, (0.02, 0.3), marks=pytest.mark.slow),
    ],
)
def test_a_small_segmenter_of_scenes_of_digits(
    steps: int, n: int, clean: float, epsilons: tuple[float, ...], tmp_path: Path
):
    net, x, y = trained(steps, n)
    own = target(net, f"segmentation(miou={clean / 2})")
    left: list[float] = []
    for eps in epsilons:
        done = holdfast.evaluate(
            own, (x, y), f"linf({eps})", protocol="quick", out=tmp_path / str(eps)
        )
        of_task = done.metrics.of_task
        assert (of_task["mIoU of all pixels"].clean or 0) > clean
        left.append(of_task["mIoU of an image"].attacked or 0)
        assert left[-1] < (of_task["mIoU of an image"].clean or 0)
    assert sorted(left, reverse=True) == left
    assert left[-1] < 0.25
    by_region = target(net, "segmentation(region=0, accuracy=0.5)")
    attacked = holdfast.attack(by_region, x, y, "linf(0.1)", "pgd(steps=5)")
    assert 0 <= float(attacked.robust_accuracy) <= 1
