"""Rows are independent: company, order and poison in one row change nothing in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from helpers.catalogue import every, fields_of, losses_of, short
from helpers.models import EPS, SHAPE, Then, bent, draw, pick, rows, run, same, threat, wrap
from torch import Tensor

from holdfast.attacks import Attack, Outcome, SearchResult, parse
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Targeted

N = 20


def test_the_backwards_of_a_row_are_its_own() -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    whole = run(parse("pgd(steps=10)"), target, x, y, threat("linf"))
    for i in range(N):
        at = torch.tensor([i])
        same(
            run(parse("pgd(steps=10)"), target, x[at], y[at], threat("linf"), ids=at),
            pick(whole, at),
        )


def attack_rows(
    attack: Attack,
    target: TorchTarget,
    norm: str,
    x: Tensor,
    y: Tensor,
    at: Tensor,
    **options: object,
) -> SearchResult:
    """The attack on rows `at` alone, each with its own eps and identity."""
    eps = EPS[norm] * (0.5 + torch.arange(len(x), dtype=torch.float64) / len(x))
    return run(
        attack, target, x[at], y[at], threat(norm, eps[at]), ids=1000 + 3 * at, seed=5, **options
    )  # pyright: ignore[reportArgumentType]


def join(parts: list[SearchResult]) -> SearchResult:
    return SearchResult(
        **{
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in dataclasses.fields(SearchResult)
        }
    )


@every(0)
@pytest.mark.parametrize(
    "options", [{}, {"stop": False, "restart": 1}, {"budget": 6, "rank": 2}], ids=str
)
def test_whole_is_permuted_is_split(name: str, norm: str, options: dict[str, object]) -> None:
    target = wrap(bent(), batch_size=7)
    x, y = rows(target, N, edge=True, wrong=True)
    attack = short(name)
    whole = attack_rows(attack, target, norm, x, y, torch.arange(N), **options)
    assert len(whole.outcome.unique()) > 1, "a test on rows that all end alike shows little"
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    permuted = [
        attack_rows(attack, target, norm, x, y, part, **options) for part in order.split(13)
    ]
    same(join(permuted), pick(whole, order))


@every(1)
def test_every_loss_keeps_rows_apart(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    for fields in losses_of(name):
        whole = attack_rows(short(name, **fields), target, norm, x, y, torch.arange(N))
        alone = attack_rows(short(name, **fields), target, norm, x, y, torch.tensor([3]))
        same(alone, pick(whole, torch.tensor([3])))


def nan_scores(x: Tensor, z: Tensor) -> Tensor:
    """NaN wherever the last pixel is that of a poisoned row."""
    return torch.where(sick(x)[:, None], torch.nan, z)


def nan_when_changed(x: Tensor, z: Tensor) -> Tensor:
    """NaN for a poisoned row once its pixels leave the grid of 1/4."""
    shifted = (x * 4 % 1 != 0).flatten(1).any(1)
    return torch.where((sick(x) & shifted)[:, None], torch.nan, z)


def infinite_gradient(x: Tensor, z: Tensor) -> Tensor:
    """Finite scores whose gradient is infinite in a poisoned row: a root at 0."""
    none = x.flatten(1)[:, -1] - x.flatten(1)[:, -1].detach()
    return z + (none + (~sick(x)).to(x)).sqrt()[:, None] * torch.arange(z.shape[1]).to(z)


def sick(x: Tensor) -> Tensor:
    return x.flatten(1)[:, -1] > 3


@every(2)
@pytest.mark.parametrize("poison", [nan_scores, nan_when_changed, infinite_gradient])
def test_a_poisoned_row_fails_alone(
    name: str, norm: str, poison: Callable[[Tensor, Tensor], Tensor]
) -> None:
    target = wrap(Then(bent(), poison), bounds=(-0.1, 4.1))  # no edge on the grid
    mask = torch.arange(16).reshape(SHAPE) < 15  # the sign of illness stays
    x = (draw(64, *SHAPE) * 4).round() / 4
    x[:, 0, -1, -1] = 0.5
    y = target.labels(x)
    ill = x.clone()
    ill[4, 0, -1, -1] = 4
    healthy = run(short(name), target, x, y, threat(norm, mask=mask))
    poisoned = run(short(name), target, ill, y, threat(norm, mask=mask))
    others = torch.arange(64) != 4
    same(poisoned, healthy, others)
    if poison is infinite_gradient and "loss" not in fields_of(name):
        return  # asks for no gradient
    assert poisoned.outcome[4] == Outcome.FAILED
    assert poisoned.size[4].isinf()
    assert bool(poisoned.best[4].isfinite().all())


@every(3)
def test_no_rows_are_no_trouble(name: str, norm: str) -> None:
    target = wrap(bent())
    ledger = run(
        short(name), target, draw(0, *SHAPE), torch.zeros(0, dtype=torch.int64), threat(norm)
    )
    assert len(ledger.outcome) == 0


@every(4)
def test_targets_a_row_stay_with_their_rows(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    aims = (y + 1 + torch.arange(N) % 4) % 5
    whole = run(short(name), target, x, y, threat(norm, goal=Targeted(aims)))
    at = torch.tensor([9, 2])
    part = run(short(name), target, x[at], y[at], threat(norm, goal=Targeted(aims[at])), ids=at)
    same(part, pick(whole, at))
