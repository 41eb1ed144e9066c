"""One meaning of layout: the same images, whatever the order of their axes, in every command and on
both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.data import as_source
from holdfast.data.laid import arranged, laid_as
from holdfast.errors import InputError
from holdfast.evaluation.attack import craft
from holdfast.evaluation.prepare import open_for
from holdfast.evaluation.verify import verify
from holdfast.generation import generate
from holdfast.hardening.harden import harden
from holdfast.targets import wrap
from holdfast.training.train import train

RNG = np.random.default_rng(0)
X = RNG.random((60, 1, 6, 6), np.float32)
Y = (X.mean((1, 2, 3)) > 0.5).astype(np.int64)
ORDERS = {"first": X, "last": X.transpose(0, 2, 3, 1), "none": X[:, 0]}
LINF = "linf(0.02)"


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 2, 6), nn.Flatten())
    made[0].weight.data = torch.stack([-torch.ones(1, 6, 6), torch.ones(1, 6, 6)]) / 6
    made[0].bias.data = torch.tensor([3.0, -3.0])
    return made


def ordinary() -> nn.Module:
    """Takes [n, h, w] alone."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Linear(36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.ndim == 3
            return self.deep(x.flatten(1))

    return Flat()


@pytest.mark.parametrize("make", [net, ordinary])
def test_an_axis_of_one_channel_comes_and_goes(make: object) -> None:
    """Line 13: (n, 6, 6), (n, 1, 6, 6) and (n, 6, 6, 1) for a model of any of them: the same
    statuses."""
    model = make()  # pyright: ignore[reportCallIssue]
    runs = {
        name: holdfast.evaluate(model, (x, Y), LINF, attacks=["pgd(steps=2)"])
        for name, x in ORDERS.items()
    }
    for name, run in runs.items():
        assert (
            run.samples.column("status").to_pylist()
            == runs["first"].samples.column("status").to_pylist()
        )
        assert run.manifest.model.shape == list(ORDERS[name].shape[1:])  # the data's own


@pytest.mark.parametrize("order", ORDERS)
def test_verify_and_attack_keep_the_datas_own_order(order: str, tmp_path: Path) -> None:
    """Line 13: stored examples lie as the data do, and verify holds with data in its own order and
    in another."""
    x = ORDERS[order]
    run = holdfast.evaluate(net(), (x, Y), LINF, attacks=["pgd(steps=2)"], out=tmp_path / "run")
    layout = run.manifest.model.layout
    for other in ORDERS.values():
        assert verify(tmp_path / "run", wrap(net(), layout=layout), (other, Y)) == []
    assert craft(wrap(net()), (x, Y), LINF, "fgsm").x_adv.shape == x.shape


def test_a_bound_target_takes_data_in_another_order() -> None:
    """Line 13: a model wrapped with its shape, and data whose axes lie otherwise."""
    target = wrap(net(), shape=(1, 6, 6))
    for x in ORDERS.values():
        assert open_for(target, (x, Y)).fingerprint() == as_source((X, Y)).fingerprint()
    with pytest.raises(
        InputError, match=r"inputs of arrays are \(1, 5, 6\), but the model takes \(1, 6, 6\)"
    ):
        open_for(target, (X[:, :, :5], Y))


def test_training_and_test_rows_may_lie_otherwise() -> None:
    """Line 13: train on (6, 6, 1), measure on (1, 6, 6), and generated rows (6, 6); the runs keep
    the test's order."""
    made = harden(
        net(),
        (ORDERS["last"][:50], Y[:50]),
        LINF,
        recipe="fast(epochs=1, batch_size=16)",
        test=(X[50:], Y[50:]),
        synthetic=(ORDERS["none"][:20], Y[:20]),
        protocol="quick",
    )
    assert made.before.manifest.model.shape == [1, 6, 6]
    assert made.before.clean_accuracy.value == 1
    trained = train(wrap(net()), (ORDERS["none"], Y), epochs=1)
    assert isinstance(trained, nn.Module)


def test_generate_takes_any_form_and_order(tmp_path: Path) -> None:
    """Line 13: rows to measure on may lie otherwise than those to learn from; what does not fit is
    one sentence."""
    with pytest.raises(InputError, match=r"are \(5, 5\), but those of arrays are \(6, 6, 1\)"):
        generate((ORDERS["last"], Y), out=tmp_path / "g", test=(X[:, 0, :5, :5], Y))


def test_arrangements_turn_back() -> None:
    """Line 13: moved to another order and back, rows are what they were; what is no arrangement is
    refused."""
    wide = RNG.random((3, 3, 4, 5))
    last = arranged(wide, (4, 5, 3))
    assert np.array_equal(last, wide.transpose(0, 2, 3, 1))
    assert np.array_equal(arranged(last, (3, 4, 5)), wide)
    for shape in ((6, 6), (6, 6, 1), (1, 6, 6)):
        assert np.array_equal(arranged(arranged(X, shape), (1, 6, 6)), X)
    for shape in ((5, 4, 3), (60,), (4, 5)):
        with pytest.raises(InputError, match="but the model takes"):
            laid_as(as_source((wide, [0, 1, 2])), shape)


def test_what_fits_in_no_order_is_the_models_own_error() -> None:
    """Line 13: the first reading's error is shown, in one sentence."""
    with pytest.raises(InputError, match=r"fails on inputs of shape \(2, 6, 6\)"):
        holdfast.evaluate(net(), (np.concatenate([X, X], 1), Y), LINF, attacks=["fgsm"])
