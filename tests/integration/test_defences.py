"""Defences in front of a model: what they do to an input, and that attacks come through them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import draw
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.errors import InputError, SpecError
from holdfast.spec import write
from holdfast.targets import wrap
from holdfast.targets.defences.transforms import (
    DEFENCES,
    JPEG,
    BitDepth,
    Defence,
    Median,
    RandomResizePad,
    TotalVariation,
)
from holdfast.targets.demo import demo_model
from holdfast.targets.preprocess import Normalize, parse
from holdfast.targets.target import drawing, sealed

ALL = [
    JPEG(),
    BitDepth(3),
    Median(),
    RandomResizePad(9, 12),
    TotalVariation(),
    TotalVariation(keep=0.6),
]


class Inside(nn.Module):
    """The demo network behind a defence as its makers would put it: no gradient comes through."""

    def __init__(self, defence: Defence) -> None:
        super().__init__()
        self.net, self.defence = demo_model(), defence

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.defence(x).detach())


@pytest.mark.parametrize("defence", ALL, ids=write)
def test_each_row_is_changed_by_itself_and_stays_in_the_box(defence: Defence) -> None:
    x = draw(6, 3, 12, 12)
    with sealed(1):
        y, again, alone = defence(x), defence(x), torch.cat([defence(row[None]) for row in x])
        turned = defence(x.flip(0)).flip(0)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert not torch.allclose(y, x, atol=1e-3)
    assert torch.equal(y, again)
    assert torch.equal(y, alone)
    assert torch.equal(y, turned)
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    with sealed(2):
        other = defence(x)
    with sealed(1), drawing(1):
        later = defence(x)
    assert bool((other != y).any()) == bool((later != y).any()) == defence.random
    assert parse([write(defence)]) == (defence,)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_reads_from_a_file(channels: int) -> None:
    x = draw(3, channels, 9, 14)
    for image, seen in zip(x, JPEG(40)(x), strict=True):
        levels = (image * 255).round().byte().movedim(0, -1).numpy()
        file = io.BytesIO()
        Image.fromarray(levels[..., 0] if channels == 1 else levels).save(file, "JPEG", quality=40)
        read = np.asarray(Image.open(file)).reshape(levels.shape)
        assert np.array_equal((seen * 255).round().byte().movedim(0, -1).numpy(), read)


def test_median_is_scipys() -> None:
    x = draw(2, 2, 7, 9)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, 5, 5), mode="mirror")
    assert np.array_equal(Median(5)(x).numpy(), expected)


def test_total_variation_finds_the_known_least() -> None:
    """A step of two halves: each moves towards the other by weight / its width, and stays flat."""
    x = torch.full((1, 1, 6, 10), 0.2, dtype=torch.float64)
    x[..., 5:] = 0.9
    u = TotalVariation(weight=0.5, steps=1000)(x)
    expected = x + torch.where(x < 0.5, 0.1, -0.1)
    assert torch.allclose(u, expected, atol=1e-3)


def test_a_resize_to_the_image_itself_moves_nothing() -> None:
    x = draw(3, 1, 8, 8)
    assert torch.equal(RandomResizePad(8, 8)(x), x)
    small = RandomResizePad(4, 8)(torch.ones(200, 1, 8, 8) * draw(200, 1, 1, 1).clamp_min(0.1))
    sides = (small > 0).sum(3).amax(2)[:, 0]  # [n]: each row's own side
    assert set(sides.tolist()) == {4, 5, 6, 7, 8}


@pytest.mark.parametrize("defence", [JPEG(60), BitDepth(2)], ids=write)
def test_the_gradient_is_that_of_the_model_behind(defence: Defence) -> None:
    x, cotangent = draw(4, 1, 8, 8).float() * 255, draw(4, 10).float()
    _, pullback = wrap(demo_model(), preprocess=defence, bounds=(0, 255)).linearize(x)
    leaf = (defence(x / 255) * 255).requires_grad_()
    g = torch.autograd.grad(demo_model()(leaf), leaf, cotangent)[0]
    assert torch.allclose(pullback(cotangent), g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("defence", [JPEG(75), BitDepth(4)], ids=write)
def test_what_fools_a_plain_attack_is_seen_through(defence: Defence) -> None:
    data = tuple(open_data("digits").rows(0, 60))
    usual = holdfast.evaluate(wrap(Inside(defence)), data, "linf(0.2)", attacks=["apgd(steps=20)"])
    adaptive = holdfast.evaluate(
        wrap(demo_model(), preprocess=defence), data, "linf(0.2)", attacks=["apgd(steps=20)"]
    )
    assert usual.metrics.clean_accuracy == adaptive.metrics.clean_accuracy  # one model
    assert usual.robust_accuracy.value > 0.8
    assert usual.verdict.status == "unreliable"
    assert adaptive.robust_accuracy.value < 0.1
    said = [f.text for f in adaptive.verdict.findings if f.check == "defence"]
    assert len(said) == 1
    assert write(defence) in said[0]
    assert "straight through" in said[0]


def test_a_random_defence_is_judged_by_its_mean() -> None:
    data = tuple(open_data("digits").rows(0, 12))
    target = wrap(demo_model(), preprocess=RandomResizePad(7, 8))
    run = holdfast.evaluate(target, data, "linf(0.3)", attacks=["pgd(steps=4, step_size=0.5)"])
    assert run.manifest.model.draws == 20
    assert {"defence", "randomised"} <= {f.check for f in run.verdict.findings}
    assert not any(f.check == "randomised" and f.severity != "info" for f in run.verdict.findings)
    assert run.robust_accuracy.value < 0.2
    part = holdfast.evaluate(
        target, data, "linf(0.3)", attacks=["pgd(steps=4, step_size=0.5)"], samples=(4, 8)
    )
    whole = run.samples.to_pylist()[4:8]
    columns = ("status", "forwards", "backwards")
    assert [[row[c] for c in columns] for row in part.samples.to_pylist()] == [
        [row[c] for c in columns] for row in whole
    ]


def test_from_the_command_line_to_the_verified_run(tmp_path: Path) -> None:
    asked = [
        "evaluate",
        "demo",
        "digits",
        "--threat",
        "linf(0.1)",
        "--attack",
        "pgd(steps=3)",
        "--samples",
        "12",
    ]
    steps = [
        "--preprocess",
        "randomresizepad(7, 8)",
        "--preprocess",
        "bitdepth(bits=4)",
        "--eot",
        "4",
    ]
    cli = CliRunner()
    assert cli.invoke(app, [*asked, *steps, "--out", str(tmp_path / "a")]).exit_code == 0
    assert cli.invoke(app, ["verify", str(tmp_path / "a"), "demo", "digits"]).exit_code == 0
    listed = cli.invoke(app, ["list", "defences"]).output
    assert all(name in listed for name in DEFENCES)


@pytest.mark.parametrize(
    "text",
    [
        "jpeg(0)",
        "jpeg(quality=2.5)",
        "bitdepth(bits=0)",
        "median(4)",
        "randomresizepad(9, 8)",
        "totalvariation(weight=0)",
        "totalvariation(keep=0)",
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=text.partition("(")[0]):
        parse([text])


def test_a_defence_takes_raw_images() -> None:
    with pytest.raises(InputError, match="comes after normalize"):
        wrap(demo_model(), preprocess=(Normalize(0.5, 0.5), JPEG()))
    with pytest.raises(InputError, match="takes images"):
        wrap(nn.Linear(5, 3), preprocess=Median(), shape=(5,))
    with pytest.raises(InputError, match="one channel or three"):
        wrap(demo_model(), preprocess=JPEG(), shape=(4, 8, 8))
    with pytest.raises(InputError, match="larger than the images"):
        wrap(demo_model(), preprocess=Median(9), shape=(1, 8, 8))
