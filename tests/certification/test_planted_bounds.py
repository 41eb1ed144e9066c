"""Mistakes that certifiers make, planted: each makes a test of bounds fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.bounds import check_linear, check_positive, check_sound
from torch import Tensor

from holdfast.bounds import Margins, Region, propagate
from holdfast.bounds.affine import Elementwise
from holdfast.bounds.relaxations import Bent, Lines

Patch = Callable[[Any, str, Any], None]


def sound(kind: str) -> Callable[[], None]:
    def check() -> None:
        for seed in range(2):
            check_sound(kind, "linf", seed, samples=200, steps=20)

    return check


def tight() -> None:
    check_linear("linf")


def not_a_number() -> None:
    check_positive(float("nan"))


def sign_at_a_fork(patch: Patch) -> None:
    pull = Elementwise.pull

    def wrong(self: Elementwise, *given: Any) -> Any:
        return pull(Elementwise(tuple(map(abs, self.scales))), *given)

    patch(Elementwise, "pull", wrong)


def one_branch_of_a_fork(patch: Patch) -> None:
    patch(propagate, "_add", lambda held, nodes, parts: held.update(zip(nodes, parts, strict=True)))


def polarity_of_nan(patch: Patch) -> None:
    patch(Margins, "proved", property(lambda self: ~(self.lower <= 0).any(1)))


def slope(patch: Patch) -> None:
    lines = Bent.lines

    def wrong(self: Bent, *given: Tensor) -> Lines:
        made = lines(self, *given)
        return replace(made, up_at_0=made.up_at_0 / 2)

    patch(Bent, "lines", wrong)


def no_box(patch: Patch) -> None:
    least = Region.least

    def wrong(self: Region, *given: Any) -> Tensor:
        wide = torch.full_like(self.lo, torch.inf)
        return least(replace(self, lo=-wide, hi=wide), *given)

    patch(Region, "least", wrong)


def wrong_half(patch: Patch) -> None:
    within = Region.within
    patch(Region, "within", lambda self, slope, at_0: within(self, -slope, -at_0))


def float32_at_the_end(patch: Patch) -> None:
    backward = propagate.Rows.backward
    patch(propagate.Rows, "backward", lambda *a, **b: backward(*a, **b).float().double())


PLANTED = [
    (sign_at_a_fork, sound("residual")),
    (one_branch_of_a_fork, sound("residual")),
    (polarity_of_nan, not_a_number),
    (slope, sound("dense")),
    (no_box, tight),
    (wrong_half, sound("dense")),
    (float32_at_the_end, tight),
]


@pytest.mark.parametrize(("mistake", "check"), PLANTED, ids=[m.__name__ for m, _ in PLANTED])
def test_a_planted_mistake_is_caught(
    mistake: Callable[[Patch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    mistake(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        check()
