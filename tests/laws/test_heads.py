"""Multi-label and regression heads: the optimum of linear models, by other means, and every attack
as it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.exact import distance, farthest
from helpers.models import SHAPE, Linear, Narrow, close, draw, same, threat, wrap
from torch import Tensor

import holdfast
from holdfast.attacks import SearchResult, parse, run
from holdfast.errors import InputError
from holdfast.targets.batch import Batch
from holdfast.targets.target import Access
from holdfast.targets.truth import WithTruth
from holdfast.targets.wrappers import ExpectationOverTransformation

N, K, TOLERANCE = 20, 3, 1.0
TASKS = ("multilabel", f"regression({TOLERANCE})")
tasks = pytest.mark.parametrize("task", TASKS)


def world(task: str) -> tuple[Linear, WithTruth, Tensor, Tensor]:
    """A linear model of k outputs, inputs of which some pixels stand at 0 or 1, and truths that it
    has right."""
    w = draw(K, 16, seed=3) * 2 - 1
    model = Linear(w, -w.sum(1) / 2)
    x = (draw(N, *SHAPE, seed=4) * 1.4 - 0.2).clamp(0, 1)
    z = model(x).detach()
    truth = (
        (z > 0).double()
        if task == "multilabel"
        else z + 0.9 * TOLERANCE * (draw(N, K, seed=5) * 2 - 1)
    )
    return model, WithTruth(wrap(model, task=task)), x, truth


def directions(
    task: str, model: Linear, x: np.ndarray, truth: np.ndarray
) -> list[tuple[np.ndarray, float]]:
    """Each way to be wrong about a row as (c, gap): wrong past <c, d> = gap > 0."""
    w, z = model.w.detach().numpy(), model.w.detach().numpy() @ x + model.b.detach().numpy()
    if task == "multilabel":
        return [(-w[j] * (2 * truth[j] - 1), abs(z[j])) for j in range(K)]
    return [(s * w[j], TOLERANCE - s * (z[j] - truth[j])) for j in range(K) for s in (1, -1)]


def behind(x: Tensor, truth: Tensor) -> Batch:
    return Batch(x, {"truth": truth})


def search(
    spec: str, target: WithTruth, x: Tensor, truth: Tensor, norm: str, eps: float, **options: Any
) -> SearchResult:
    right = torch.zeros(N, dtype=torch.int64)
    return run(parse(spec), target, behind(x, truth), right, threat(norm, eps), **options)


@tasks
@pytest.mark.parametrize(
    ("spec", "norm", "slack"),
    [
        ("fmn(steps=100)", "linf", 1.01),
        ("fmn(steps=100)", "l1", 1.01),
        ("fmn(steps=100)", "l2", 1.01),
        ("fab(steps=30)", "l2", 1.05),
        ("deepfool", "linf", 1.05),
    ],
)
def test_the_smallest_is_found(task: str, spec: str, norm: str, slack: float) -> None:
    """Aimed at each way to be wrong in turn, since they follow the best wrong class, not the
    nearest; never below it."""
    model, target, x, truth = world(task)
    sizes = [
        search(spec, target, x, truth, norm, math.inf, rank=r).size for r in range(1, target.task.k)
    ]
    for i, found in enumerate(torch.stack(sizes).amin(0).tolist()):
        row = x[i].flatten().numpy()
        best = min(
            distance(norm, c, gap, -row, 1 - row)
            for c, gap in directions(task, model, row, truth[i].numpy())
        )
        assert best * (1 - 1e-9) <= found <= best * slack + 1e-4


@tasks
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.25), ("l1", 0.6)])
def test_a_ball_is_searched_to_the_optimum(task: str, norm: str, eps: float) -> None:
    """The margin is the least signed score, or what is left of the tolerance."""
    model, target, x, truth = world(task)
    spec = "apgd(steps=60, loss='margin')"
    ranks = range(1, target.task.k)
    aims = [
        search(spec, target, x, truth, norm, eps, rank=rank, stop=False).margin for rank in ranks
    ]
    found = torch.stack(aims).amin(0)
    for i in range(N):
        row = x[i].flatten().numpy()
        all_ = directions(task, model, row, truth[i].numpy())
        best = min(gap - c @ farthest(norm, c, eps, -row, 1 - row) for c, gap in all_)
        clean = min(gap for _, gap in all_)
        assert best - 1e-9 <= float(found[i]) <= best + 0.01 * (clean - best) + 1e-9
    assert 0 < int((found < 0).sum()) < N


@tasks
def test_margins_and_decisions_are_those_of_the_definition(task: str) -> None:
    model, target, x, truth = world(task)
    truth[::4, 1] = 1 - truth[::4, 1]
    z = model(x).detach()
    signed = z * (2 * truth - 1) if task == "multilabel" else TOLERANCE - (z - truth).abs()
    rows = behind(x, truth)
    right = torch.zeros(N, dtype=torch.int64)
    close(target.task.margin(target.scores(rows), right), signed.amin(1))
    assert torch.equal(target.labels(rows) == 0, (signed > 0).all(1))
    assert 0 < int((target.labels(rows) == 0).sum()) < N
    close(target.rule.outputs(target.scores(rows), truth), z, atol=1e-12)


@tasks
def test_a_model_with_truth_is_attacked_as_it_is(task: str) -> None:
    """Given [n, k] truths, `run` does as it does on rows with the truth in front."""
    _, target, x, truth = world(task)
    ordinary = run(parse("pgd(steps=5)"), target.inner, x, truth, threat("linf"))
    posed = search("pgd(steps=5)", target, x, truth, "linf", 0.08)
    assert ordinary.best.shape == x.shape
    assert torch.equal(ordinary.best, posed.best)
    same(ordinary, posed, but=("best",))


@tasks
@pytest.mark.parametrize("spec", ["apgd(steps=8)", "signhunter(steps=20)", "rays(steps=20)"])
def test_one_poisoned_truth_harms_no_other_row(task: str, spec: str) -> None:
    _, target, x, truth = world(task)
    usual = search(spec, target, x, truth, "linf", 0.08)
    bad = truth.clone()
    bad[3] = torch.nan
    there = torch.arange(N) != 3
    ledger = search(spec, target, x, bad, "linf", 0.08)
    for name in ("size", "queries", "outcome", "margin"):
        assert torch.equal(getattr(ledger, name)[there], getattr(usual, name)[there])


def test_labels_alone_and_pooled_answers_are_refused() -> None:
    _, target, *_ = world("multilabel")
    narrow = Narrow(target.inner, Access.LABELS)
    narrow.head = target.inner.head
    with pytest.raises(InputError, match="labels alone, but multilabel needs"):
        WithTruth(narrow)
    with pytest.raises(InputError, match="several draws"):
        WithTruth(ExpectationOverTransformation(target.inner, 4))


def test_truths_of_one_number_need_no_axis() -> None:
    """A regression of one output takes y [n] as it takes [n, 1]."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))
    target = holdfast.wrap(net, task="regression(tolerance=1.0)")
    x, y = torch.rand(5, 4), torch.rand(5)
    flat, column = (
        run(parse("pgd(steps=3)"), target, x, truth, holdfast.Threat.linf(0.1))
        for truth in (y, y[:, None])
    )
    assert torch.equal(flat.best, column.best)
    assert torch.equal(flat.margin, column.margin)
