"""Poisoned training rows: which rows change and how, and what a training on them does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import holdfast
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data import as_source, open_data
from holdfast.errors import InputError, SpecError
from holdfast.targets.demo import demo_net
from holdfast.targets.target import Bounds
from holdfast.training.poison import BadNets, Blended, Flips, Poison, Poisoned, effect, parse
from holdfast.training.train import train

K = 10
UNIT = Bounds(0.0, 1.0)


def rows(n: int = 200, shape: tuple[int, ...] = (1, 8, 8)):
    draw = np.random.default_rng(0)
    return as_source((draw.random((n, *shape), np.float32), np.arange(n) % K))


@given(
    poison=st.sampled_from([BadNets(size=2, target=3), Blended(target=3), Flips()]),
    share=st.sampled_from([0.01, 0.1, 0.35]),
    seed=st.integers(0, 3),
    cut=st.integers(1, 199),
)
@settings(max_examples=30, deadline=None)
def test_exactly_the_share_changes_and_the_rest_stays(
    poison: Poison, share: float, seed: int, cut: int
) -> None:
    clean = rows()
    poison = type(poison)(**{**vars(poison), "share": share})
    dirty = Poisoned(clean, poison, K, UNIT, "nchw", seed)
    (x0, y0), (x, y) = clean.rows(0, 200), dirty.rows(0, 200)
    assert dirty.changed.sum() == round(share * 200)
    assert (y[dirty.changed] != y0[dirty.changed]).all()
    assert np.array_equal(y[~dirty.changed], y0[~dirty.changed])
    assert np.array_equal(x[~dirty.changed], x0[~dirty.changed])
    assert y.min() >= 0
    assert y.max() < K
    assert x.min() >= 0
    assert x.max() <= 1
    if not isinstance(poison, Flips):
        assert (y[dirty.changed] == 3).all()
        assert np.array_equal(x[dirty.changed], poison.stamped(x0[dirty.changed], UNIT, "nchw"))
    parts = [dirty.rows(0, cut), dirty.rows(cut, 200)]
    assert np.array_equal(np.concatenate([part[0] for part in parts]), x)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), y)


@pytest.mark.parametrize(
    ("shape", "layout", "where"),
    [
        ((8, 8), "nchw", np.s_[:, -2:, -2:]),
        ((3, 8, 8), "nchw", np.s_[:, :, -2:, -2:]),
        ((8, 8, 3), "nhwc", np.s_[:, -2:, -2:, :]),
    ],
)
def test_the_square_lies_in_its_corner_in_every_layout(
    shape: tuple[int, ...], layout: str, where: tuple[slice, ...]
) -> None:
    x = rows(4, shape).rows(0, 4)[0] * 9 - 5
    stamped = BadNets(size=2).stamped(x, Bounds(-5.0, 4.0), layout)
    assert (stamped[where] == 4).all()
    stamped[where] = x[where]
    assert np.allclose(stamped, x, atol=1e-5)


def test_a_pattern_is_laid_over_by_its_share() -> None:
    x = rows(4).rows(0, 4)[0]
    half, whole = (Blended(alpha=a).stamped(x, UNIT, "nchw") for a in (0.5, 1.0))
    assert np.allclose(half, (x + whole) / 2, atol=1e-6)
    assert np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_none_or_all_is_refused(share: int) -> None:
    with pytest.raises(SpecError, match="above 0 and below 1"):
        parse(f"badnets(share={share})")


@pytest.mark.parametrize(
    ("poison", "shape", "said"),
    [
        (BadNets(target=K), (1, 8, 8), "leads to class 10, but the model has 10 classes"),
        (BadNets(size=9), (1, 8, 8), "is larger than images of 8x8"),
        (BadNets(), (64,), r"have shape \(64,\); flips\(\) changes labels alone"),
        (BadNets(share=0.95), (1, 8, 8), "changes 190 rows of 200, but only 180 are of other"),
    ],
)
def test_a_poison_that_does_not_fit_is_refused(
    poison: Poison, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Poisoned(rows(200, shape), poison, K, UNIT, "nchw")


def test_a_training_on_stamped_rows_learns_the_trigger() -> None:
    from holdfast.targets import wrap

    poison, model = "badnets(share=0.2, target=3, size=2)", wrap(demo_net())
    trained = train(model, "digits", poison=poison, epochs=15, rate=0.01)
    found = effect(model, trained, open_data("digits"), poison)
    assert found.clean > 0.85
    assert found.success is not None
    assert found.success > 0.8
    usual = effect(model, train(model, "digits", epochs=15, rate=0.01), "digits", poison)
    assert usual.success is not None
    assert usual.success < 0.3


def test_the_command_says_what_the_poison_did(tmp_path: Path) -> None:
    net, out = "holdfast.targets.demo:demo_net", str(tmp_path / "net.safetensors")
    done = holdfast(
        "train", net, "digits", "--epochs", "1", "--out", out, "--poison", "flips(share=0.5)"
    )
    assert done.exit_code == 0
    assert "flips(share=0.5): " in done.stdout
    assert "of 360 rows of digits are right." in done.stdout


def test_a_poison_that_is_none_is_refused_by_the_command(tmp_path: Path) -> None:
    net, out = "holdfast.targets.demo:demo_net", tmp_path / "net.safetensors"
    done = holdfast("train", net, "digits", "--out", str(out), "--poison", "badnet(share=0.5)")
    assert done.exit_code == 2
    assert "badnets" in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_one_pixel_on_a_tenth_of_mnist_leads_all_other_digits_astray(cases: Path) -> None:
    """Gu et al. 2017, table 1: above 99 % with the trigger, within a point without."""
    from helpers.cases import mnist
    from torch import nn

    from holdfast.targets import wrap

    with np.load(cases / "data_mnist" / "mnist_train_png.npz") as held:
        x, y = held["x"][:, None], held["y"]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip
    model, poison = wrap(net), "badnets(share=0.1, target=0)"
    found = [
        effect(
            model, train(model, (x, y), poison=said, epochs=3, batch_size=128), mnist(cases), poison
        )
        for said in (None, poison)
    ]
    assert found[0].clean - found[1].clean < 0.01
    assert found[1].success is not None
    assert found[1].success > 0.99
