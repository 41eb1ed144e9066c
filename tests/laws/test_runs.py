"""More never hurts a whole run, under a protocol and its judge: per row, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import CONVEX, bent, rows, threat, wrap

import holdfast

N = 40


def sizes(
    attacks: list[str], norm: str, *, share: float = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows a run breaks, and the size of what it found."""
    target = wrap(bent(dtype=torch.float32))
    x, y = rows(target, N, wrong=True)
    t = threat(norm)
    run = holdfast.evaluate(
        target, (x.numpy(), y.numpy()), t.at(float(t.eps) * share), attacks=attacks, seed=seed
    )
    status = run.samples.column("status").to_numpy(zero_copy_only=False)
    assert set(status) <= {"wrong", "broken", "robust"}
    size = run.samples.column("size").to_numpy(zero_copy_only=False)
    return status == "broken", np.nan_to_num(size, nan=np.inf)


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize(
    "more",
    [
        ["pgd(steps=3, restarts=3)"],
        ["pgd(steps=3)", "sweep(steps=9)"],
        ["pgd(steps=3)", "pgd(steps=3, targets=4)"],
    ],
    ids=["restarts", "another attack", "aims"],
)
def test_one_more_trial_never_hurts(norm: str, more: list[str]) -> None:
    broken, size = sizes(["pgd(steps=3)"], norm)
    again, smaller = sizes(more, norm)
    assert bool((again >= broken).all())
    assert bool((smaller[broken] <= size[broken]).all())
    assert int(again.sum()) > int(broken.sum())


@pytest.mark.parametrize("norm", CONVEX)
def test_a_survivor_of_a_larger_eps_survives_a_smaller(norm: str) -> None:
    """Tried apart: attacks strong enough for this small net agree with monotony."""
    before = np.zeros(N, dtype=bool)
    for share in (0.5, 1, 2):
        broken, _ = sizes(
            ["pgd(steps=30, restarts=2)", "pgd(steps=30, targets=4)"], norm, share=share
        )
        assert bool((broken >= before).all())
        before = broken
