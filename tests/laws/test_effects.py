"""Attacks and the judge leave no trace: model, buffers, flags, random states and inputs are as
before."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.catalogue import every, short
from helpers.models import SHAPE, bent, draw, perturb, rows, run, same, threat, wrap
from torch import Tensor, nn

import holdfast
from holdfast.attacks import parse
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.evaluation import judge
from holdfast.evaluation.verify import verify
from holdfast.norms import NORMS
from holdfast.targets.demo import demo_model
from holdfast.targets.target import sealed


class Fussy(nn.Module):
    """A model with all that could be disturbed: parameters, statistics, dropout, mixed flags, its
    own noise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = bent(5, dtype=torch.float32)
        self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5)
        self.train()
        self.drop.eval()
        self.body.first.w.requires_grad_(False)
        self.body.second.w.grad = torch.ones_like(self.body.second.w)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.drop(self.norm(x)))


class Noisy(Fussy):
    """Draws from every generator there is."""

    def forward(self, x: Tensor) -> Tensor:
        shake = float(torch.rand(())) + random.random() + float(np.random.rand())  # noqa: NPY002
        return super().forward(x) + 1e-3 * shake


class Faulty(Fussy):
    """Raises once its inputs have moved."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(((x * 4 % 1 != 0) | (x == 0) | (x == 1)).any()):
            raise ZeroDivisionError("in mid-attack")
        return super().forward(x)


def picture(model: nn.Module, *tensors: Tensor) -> list[Any]:
    """All of the state that must not change."""
    state: list[Any] = [
        random.getstate(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    ]
    state += [
        (name, value.tolist(), value.requires_grad) for name, value in model.named_parameters()
    ]
    state += [
        (name, None if p.grad is None else p.grad.tolist()) for name, p in model.named_parameters()
    ]
    state += [(name, value.tolist()) for name, value in model.named_buffers()]
    state += [
        (name, module.training, len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    return [
        *state,
        *(t.tolist() for t in tensors),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    ]


def world(model: nn.Module) -> tuple[Tensor, Tensor]:
    # a grid without the edges of the box
    x = (draw(6, *SHAPE, dtype=torch.float32) * 4).round().clamp(1, 3) / 4
    with sealed(0):
        y = wrap(model).labels(x)
    assert len(y.unique()) > 1
    return x, y


@every(0)
def test_a_run_leaves_no_trace(name: str, norm: str) -> None:
    model = Fussy()
    x, y = world(model)
    ids, budget = torch.arange(6), torch.full((6,), 9)
    eps = torch.full((6,), 0.1)
    before = picture(model, x, y, ids, budget, eps)
    run(short(name, 4), wrap(model), x, y, threat(norm, eps), ids=ids, budget=budget)
    perturb(short(name, 4), wrap(model), x, y, threat(norm, eps))
    short(name, 4)(wrap(model), x, y, threat(norm, eps))
    judge.rule(wrap(model), x)
    assert picture(model, x, y, ids, budget, eps) == before


@every(1)
def test_nor_does_one_that_breaks_off(name: str, norm: str) -> None:
    model = Faulty()
    x, y = world(model)
    target = wrap(model)
    before = picture(model, x, y)
    eps = max(0.1, NORMS[norm].grain)  # a tenth of a feature would move none
    with pytest.raises(InputError, match="raised ZeroDivisionError"):
        run(short(name, 4), target, x, y, threat(norm, eps))
    with contextlib.suppress(InputError):  # a single step from x never asks about a moved point
        perturb(short(name, 4), target, x, y, threat(norm, eps))
    assert picture(model, x, y) == before


@every(2)
def test_a_randomised_model_draws_from_the_runs_own_seed(name: str, norm: str) -> None:
    model = Noisy()
    x, y = world(model)
    target = wrap(model)
    before = picture(model, x, y)
    first = run(short(name, 4), target, x, y, threat(norm, 0.1), seed=4)
    random.seed(8)
    torch.rand(3)
    again = run(short(name, 4), target, x, y, threat(norm, 0.1), seed=4)
    same(first, again)
    random.setstate(before[0])
    torch.set_rng_state(torch.tensor(before[1], dtype=torch.uint8))
    assert picture(model, x, y) == before


@pytest.mark.parametrize("search", [run, perturb, judge.rule])
def test_a_randomised_model_without_a_shape_leaves_the_callers_draws_alone(
    search: Callable[..., Any],
) -> None:
    from holdfast.targets import TorchTarget

    model = Noisy()
    x, y = world(model)
    before = picture(model, x, y)
    target = TorchTarget(model)
    if search is judge.rule:
        target.bind(SHAPE)
    else:
        search(parse("pgd(steps=2)"), target, x, y, threat("linf"))
    assert picture(model, x, y) == before


@every(3)
def test_works_in_every_gradient_mode(name: str, norm: str) -> None:
    model = bent()
    x, y = rows(wrap(model), 12)
    usual = run(short(name, 4), wrap(model), x, y, threat(norm))
    after = perturb(short(name, 4), wrap(model), x, y, threat(norm))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            target = wrap(model)
            inside, theirs = x.clone(), y.clone()
            found = run(short(name, 4), target, inside, theirs, threat(norm))
            trained = perturb(short(name, 4), target, inside, theirs, threat(norm))
        same(found, usual)
        assert torch.equal(trained, after)


def test_train_mode_and_eval_mode_give_one_ledger() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 12),
        nn.Dropout(0.5),
        nn.ReLU(),
        nn.Linear(12, 3),
    )
    x = draw(16, *SHAPE, dtype=torch.float32)
    model(x)  # statistics
    y = model.eval()(x).argmax(1)
    calm = run(parse("pgd(steps=5)"), wrap(model.eval()), x, y, threat("linf"))
    live = run(parse("pgd(steps=5)"), wrap(model.train()), x, y, threat("linf"))
    same(live, calm)
    assert all(module.training for module in model.modules())


def test_a_target_handed_in_stays_as_it_is() -> None:
    """What an evaluation learns of it (shape, probabilities, a pool of images) stays with a
    copy."""
    x, y = open_data("digits").rows(0, 24)
    model = nn.Sequential(demo_model(), nn.Softmax(1))
    target = holdfast.wrap(model.forward, framework="torch")
    before = dict(vars(target))
    run = holdfast.evaluate(target, (x, y), "linf(0.1)", attacks=["admix(steps=2)"])
    assert run.manifest.model.probabilities
    holdfast.attack(target, x, y, "linf(0.1)", "admix(steps=2)")
    assert verify(run.folder, target, (x, y)) == []
    assert holdfast.wrap(target, task="multilabel").head.truth_task is not None
    assert vars(target) == before
    assert target.shape is None


def test_a_library_call_sets_nothing_of_the_process() -> None:
    code = "import os; before = dict(os.environ); import holdfast, holdfast.evaluation.evaluate; "
    code += "assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], check=True)
