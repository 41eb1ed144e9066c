"""SignHunter: its blocks, and the exact corner of a linear model in the paper's 2 n queries."""

from __future__ import annotations

import pytest
import torch
from helpers.exact import best_margin
from helpers.models import EPS, close, linear, rows, threat, wrap

from holdfast.attacks import run
from holdfast.attacks.score.signhunter import SignHunter
from holdfast.attacks.shared.sign_blocks import block


def test_blocks_are_halves_of_halves() -> None:
    assert [block(t, 4, again=True) for t in range(8)] == [
        (0, 4),
        (0, 2),
        (2, 4),
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (0, 4),
    ]
    # none is empty
    assert [block(t, 5, again=True) for t in range(7)] == [
        (0, 5),
        (0, 3),
        (3, 5),
        (0, 2),
        (2, 4),
        (4, 5),
        (0, 1),
    ]
    assert [block(t, 1, again=True) for t in range(2)] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("box", [(0, 1), (-20, 20)])
def test_a_linear_model_falls_in_twice_as_many_queries_as_it_has_features(
    box: tuple[float, float],
) -> None:
    model = linear(2)
    target = wrap(model, bounds=box)
    x, y = rows(target, 20, edge=True)
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    columns = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    eps = EPS["linf"]
    best = torch.tensor(
        [best_margin("linf", w, b, row, label, eps, *box) for row, label in columns],
        dtype=torch.float64,
    )
    ledger = run(SignHunter(steps=31), target, x, y, threat("linf", eps), stop=False)
    close(ledger.margin, best, rtol=0, atol=1e-9)
    # the clean point, and the last again where it was not the last
    assert int(ledger.forwards.max()) <= 2 * 16 + 2


def test_in_l2_all_features_move_alike() -> None:
    model = linear(2)
    target = wrap(model, bounds=(-20, 20))
    x, y = rows(target, 20)
    ledger = run(SignHunter(steps=31), target, x, y, threat("l2", 0.1), stop=False)
    d = (ledger.best - x)[~ledger.broken]  # the others hold the first point that broke them
    close(d.abs(), torch.full_like(d, 0.1 / 4), rtol=1e-9)
    uphill = (model.w.detach()[1] - model.w.detach()[0]).sign().view(1, *x.shape[1:])
    assert torch.equal(
        d.sign(), torch.where((y == 0).view(-1, 1, 1, 1), uphill, -uphill)[~ledger.broken]
    )
