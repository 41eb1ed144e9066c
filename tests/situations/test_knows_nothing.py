"""Models that know nothing are not trusted, and honest ones that look like it are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.data import from_arrays
from holdfast.evaluation.verify import verify

DRAW = np.random.default_rng(0)


class Recited(nn.Module):
    """Gives row i the output that a table has for it; the row's number is in its only pixel."""

    def __init__(self, outputs: np.ndarray) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(np.array(outputs, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[(x.flatten(1)[:, 0].clamp(0, 0.99999) * len(self.table)).long()]


def measured(outputs: np.ndarray, y: np.ndarray, task: str | None = None) -> holdfast.Run:
    x = ((np.arange(len(y)) + 0.5) / len(y)).astype(np.float32).reshape(-1, 1, 1, 1)
    target = holdfast.wrap(Recited(outputs), probabilities=False, task=task)
    return holdfast.evaluate(target, (x, y), "linf(1e-6)", attacks=["fgsm"])


def answering(predicted: Any, y: Any, k: int) -> holdfast.Run:
    return measured(4 * np.eye(k)[np.asarray(predicted)], np.asarray(y))


def checks(run: holdfast.Run, severity: str = "red") -> set[str]:
    blind = {"zero_gradients"}  # the table has no gradient, which is not the matter here
    return {f.check for f in run.verdict.findings if f.severity == severity} - blind


def uneven(n: int, minority: float) -> np.ndarray:
    return (np.arange(n) >= round(n * (1 - minority))).astype(int)


def flipped(y: np.ndarray, share: float, k: int) -> np.ndarray:
    """Answers that are wrong on about this share of the rows of each class."""
    wrong = np.random.default_rng(1).random(len(y)) < share
    return np.where(wrong, (y + 1) % k, y)


NOTHING = {
    "0 of 1,000 right, 1,000 classes": lambda: (
        (np.arange(1000) + 7) % 1000,
        np.arange(1000),
        1000,
    ),
    "2 of 100 right, 100 classes": lambda: (
        np.r_[0, 1, (np.arange(98) + 9) % 100],
        np.arange(100),
        100,
    ),
    "random answers of 10": lambda: (DRAW.integers(10, size=200), DRAW.integers(10, size=200), 10),
    "12 % of 10 classes, many rows": lambda: (
        flipped(np.arange(9000) % 10, 0.88, 10),
        np.arange(9000) % 10,
        10,
    ),
    "the majority class alone, 93:7": lambda: (np.zeros(400, int), uneven(400, 0.07), 2),
    "the majority class alone, few rows": lambda: (np.zeros(60, int), uneven(60, 0.07), 2),
    "a coin on 93:7": lambda: ((DRAW.random(400) < 0.07).astype(int), uneven(400, 0.07), 2),
    "the two classes exchanged": lambda: (
        1 - flipped(uneven(100, 0.5), 0.1, 2),
        uneven(100, 0.5),
        2,
    ),
    "one class of three never answered": lambda: (np.arange(90) % 3 % 2, np.arange(90) % 3, 3),
    "rows of one class, never answered": lambda: (np.zeros(12, int), np.ones(12, int), 2),
    "0 of 10 right": lambda: ((np.arange(10) + 1) % 100, np.arange(10), 100),
}
HONEST = {
    "93 % of ten classes": lambda: (
        flipped(np.arange(200) % 10, 0.07, 10), np.arange(200) % 10, 10
    ),
    "90 % on 90:10, both classes well": lambda: (
        flipped(uneven(300, 0.1), 0.1, 2), uneven(300, 0.1), 2
    ),
    "85 % on 90:10, below the majority share": lambda: (
        flipped(uneven(400, 0.1), 0.15, 2), uneven(400, 0.1), 2
    ),
    "half of a rare class found": lambda: (
        np.r_[np.zeros(204, int), np.ones(6, int)], uneven(210, 12 / 210), 2
    ),
    "60 % of two classes": lambda: (flipped(uneven(400, 0.5), 0.4, 2), uneven(400, 0.5), 2),
    "rows of one class, recall 0.4": lambda: (
        (np.arange(100) < 40).astype(int), np.ones(100, int), 2
    ),
    "5 rows, 4 right": lambda: ([0, 1, 0, 1, 1], [0, 1, 0, 1, 0], 2),
    "2 classes of 100 there": lambda: (np.arange(60) % 2 * 50, np.arange(60) % 2 * 50, 100),
    "a rare class of 3 rows never answered": lambda: (
        np.arange(63) % 2, np.r_[np.arange(60) % 2, 2, 2, 2], 3
    ),
}  # fmt: skip


MANY = "0 of 1,000 right, 1,000 classes"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == MANY else ()) for case in NOTHING]
)
def test_a_model_that_knows_nothing_is_unreliable(case: str) -> None:
    """Line 3: answers no better than chance or the majority, or without a class that is there, are
    a red finding."""
    run = answering(*NOTHING[case]())
    assert run.verdict.status == "unreliable"
    assert checks(run) & {"near_chance", "never_predicted"}


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_model_is_left_in_peace(case: str) -> None:
    """Line 3: what knows something raises no red finding, however its classes are shared out."""
    assert checks(answering(*HONEST[case]())) == set()


def test_accuracy_that_the_majority_alone_would_have_is_said() -> None:
    """Line 3: an honest model on 90:10 data is told the share of the majority, and its mean
    recall."""
    run = answering(*HONEST["90 % on 90:10, both classes well"]())
    (found,) = [f for f in run.verdict.findings if f.check == "majority"]
    assert found.severity == "info"
    assert found.threshold == 0.9
    assert "one_class" in checks(answering(*HONEST["rows of one class, recall 0.4"]()), "info")


def test_verify_finds_the_same() -> None:
    """Line 3: the finding is a function of the table, so verify confirms it."""
    y = uneven(60, 0.07)
    x = ((np.arange(60) + 0.5) / 60).astype(np.float32).reshape(-1, 1, 1, 1)
    target = holdfast.wrap(Recited(np.tile([4.0, 0.0], (60, 1))))
    run = holdfast.evaluate(target, (x, y), "linf(1e-6)", attacks=["fgsm"])
    assert "near_chance" in checks(run)
    assert verify(run.folder, target, from_arrays(x, y)) == []


def test_constant_answers_of_other_heads_are_unreliable() -> None:
    """Line 3: a multi-label net that never says 1, and a regressor that answers the mean, know
    nothing either."""
    draw = np.random.default_rng(0)
    truth = (draw.random((60, 3)) < 0.2).astype(np.float32)
    values = draw.normal(size=(60, 2)).astype(np.float32)
    mean = np.broadcast_to(values.mean(0), values.shape)
    for outputs, y, task in (
        (truth * 0 - 1, truth, "multilabel"),
        (mean, values, "regression(0.5)"),
    ):
        assert checks(measured(outputs, y, task)) == {"near_chance"}
    nearby = values + draw.normal(scale=0.3, size=values.shape)
    for outputs, y, task in (
        (2 * truth - 1, truth, "multilabel"),
        (nearby, values, "regression(0.5)"),
    ):
        assert checks(measured(outputs, y, task)) == set()
