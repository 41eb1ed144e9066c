"""Adapter laws: same weights, same scores, same pullback, whatever the model is like."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import bent, close, draw, threat
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from holdfast import wrap
from holdfast.attacks import parse, run
from holdfast.errors import InputError
from holdfast.targets import Target, TorchTarget
from holdfast.targets.preprocess import Normalize, Resize

SHAPE = (3, 8, 8)


class Viewing(nn.Module):
    """Calls `view` on a convolution's output, which no channels-last tensor allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 3, padding=1))
        self.head = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x).relu()
        return self.head(z.view(len(z), -1))


def convolutional(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 8, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def dense(seed: int = 0, k: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Tanh(), nn.Linear(10, k)).eval()


def viewing(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Viewing().eval()


def ordinary(
    model: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores and pullback by autograd alone."""
    leaf = x.clone().requires_grad_()
    z = model(leaf)
    return z.detach(), torch.autograd.grad(z, leaf, cotangent)[0]


def agree(
    target: TorchTarget, model: Callable[[Tensor], Tensor], x: Tensor, *, atol: float = 1e-5
) -> None:
    k = target.task.k if target.shape else 5
    cotangent = (draw(len(x), k, seed=9) - 0.5).to(target.batcher.dtype)
    z, g = ordinary(model, x, cotangent)
    found, pullback = target.linearize(x)
    close(found, z, rtol=1e-5, atol=atol)
    close(target.scores(x), z, rtol=1e-5, atol=atol)
    close(pullback(cotangent), g, rtol=1e-4, atol=atol)
    close(pullback(cotangent), g, rtol=1e-4, atol=atol)  # a pullback may be asked again
    assert torch.equal(target.labels(x), z.argmax(1))
    assert not found.requires_grad


@pytest.mark.parametrize("make", [convolutional, dense, viewing])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(n=st.integers(1, 9), seed=st.integers(0, 50))
def test_scores_and_pullback_are_the_models(
    make: Any, dtype: torch.dtype, n: int, seed: int
) -> None:
    model = make(seed).to(dtype)
    target = wrap(model, shape=SHAPE)
    assert target.batcher.dtype == dtype
    agree(
        target,
        model,
        draw(n, *SHAPE, seed=seed, dtype=dtype),
        atol=1e-5 if dtype == torch.float32 else 1e-12,
    )


def test_convolutions_run_channels_last_and_views_do_not() -> None:
    assert wrap(convolutional(), shape=SHAPE).channels_last
    assert not wrap(viewing(), shape=SHAPE).channels_last
    assert not wrap(convolutional().double(), shape=SHAPE).channels_last
    assert not wrap(dense(), shape=SHAPE).channels_last


def test_layout_leaves_the_callers_model_alone() -> None:
    model = convolutional()
    wrap(model, shape=SHAPE)
    assert model[0].weight.is_contiguous()


STEPS: list[tuple[Any, ...]] = [
    (Normalize(0.3, 0.2),),
    (Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),),
    (Resize(8, 8), Normalize(0.5, (1, 2, 3))),
]


@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("make", [convolutional, dense])
def test_preprocessing_inside_is_preprocessing_outside(make: Any, steps: tuple[Any, ...]) -> None:
    model = make()
    shape = (3, 6, 5) if isinstance(steps[0], Resize) else SHAPE

    def outside(x: Tensor) -> Tensor:
        for step in steps:
            if isinstance(step, Resize):
                x = torch.nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True)
            else:
                mean, std = (
                    torch.tensor(v).float().reshape(-1, 1, 1) for v in (step.mean, step.std)
                )
                x = (x - mean) / std
        return model(x)

    agree(wrap(model, shape=shape, preprocess=steps), outside, draw(4, *shape, dtype=torch.float32))


def test_nhwc_inputs_reach_an_nchw_model() -> None:
    model = convolutional()
    x = draw(4, 8, 8, 3, dtype=torch.float32)
    target = wrap(model, shape=(8, 8, 3), layout="nhwc", preprocess=Normalize((0.1, 0.2, 0.3), 0.5))
    agree(
        target,
        lambda r: model((r.movedim(-1, 1) - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / 0.5),
        x,
    )


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("probabilities", [True, False])
def test_one_logit_is_its_two_logit_twin(flat: bool, probabilities: bool) -> None:
    body = dense(k=1)

    def one(x: Tensor) -> Tensor:
        z = body(x).sigmoid() if probabilities else body(x)
        return z[:, 0] if flat else z

    def two(x: Tensor) -> Tensor:
        z = body(x)
        return torch.cat([torch.zeros_like(z), z], 1)

    target = wrap(one, shape=SHAPE, probabilities=probabilities)
    x = draw(20, *SHAPE, dtype=torch.float32)
    assert target.task.k == 2
    agree(target, two, x)
    twin = wrap(two, shape=SHAPE)
    ledgers = [
        run(parse("pgd(steps=5)"), t, x, twin.labels(x), threat("linf")) for t in (target, twin)
    ]
    assert torch.equal(ledgers[0].broken, ledgers[1].broken)


def test_probabilities_become_their_logarithms() -> None:
    """Of a softmax that cannot be seen; before one that can, the logits are read."""
    model = dense()
    x = draw(6, *SHAPE, dtype=torch.float32)

    def unseen(x: Tensor) -> Tensor:
        p = model(x).softmax(1)
        return torch.stack([p, p]).mean(0)

    agree(wrap(unseen, shape=SHAPE, probabilities=True), lambda x: model(x).log_softmax(1), x)
    agree(wrap(nn.Sequential(copy.deepcopy(model), nn.Softmax(1)), shape=SHAPE), model, x)


def test_a_probability_of_zero_is_finite() -> None:
    target = wrap(
        lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1), shape=(3,), probabilities=True
    )
    z, pullback = target.linearize(torch.rand(2, 3))
    assert bool(z.isfinite().all())
    assert bool(pullback(torch.ones(2, 2)).isfinite().all())


def test_a_model_that_ignores_its_input_gives_zero_gradients() -> None:
    target = wrap(lambda x: torch.ones(len(x), 3), shape=(4,))
    assert torch.equal(target.linearize(torch.rand(2, 4))[1](torch.ones(2, 3)), torch.zeros(2, 4))


class Small(nn.Module):
    """Has memory for three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.sizes = bent(), []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.inner(x)


def _of_all(target: Target, x: Tensor) -> Tensor:
    return target.batcher.in_parts(target.scores, x)


def test_out_of_memory_halves_the_micro_batch_and_goes_on() -> None:
    small, large = wrap(Small(), shape=(1, 4, 4)), wrap(bent(), shape=(1, 4, 4))
    x = draw(21, 1, 4, 4)
    assert torch.equal(_of_all(small, x), _of_all(large, x))
    assert small.batcher.size <= 3
    y = large.labels(x)
    small.batcher.size = 256
    found, usual = (run(parse("pgd(steps=6)"), t, x, y, threat("linf")) for t in (small, large))
    assert small.batcher.size <= 3
    for name in ("size", "best", "forwards", "queries", "margin", "outcome"):
        np.testing.assert_array_equal(
            getattr(found, name).numpy(), getattr(usual, name).numpy(), err_msg=name
        )


def test_a_row_that_never_fits_and_other_errors_are_said() -> None:
    def never(x: Tensor) -> Tensor:
        if float(x.max()) > 0.9:
            raise torch.OutOfMemoryError("out of memory")
        return x

    with pytest.raises(InputError, match="does not fit into memory"):
        _of_all(wrap(never, shape=(4,)), torch.ones(5, 4))

    def broken(x: Tensor) -> Tensor:
        if float(x.max()) > 0.9:
            raise RuntimeError("shapes cannot be multiplied")
        return x

    with pytest.raises(InputError, match="raised RuntimeError: shapes cannot be multiplied"):
        _of_all(wrap(broken, shape=(4,)), torch.ones(5, 4))
