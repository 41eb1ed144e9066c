"""The assertion for a pytest suite: when it holds, and the sentence where it does not."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import holdfast
from holdfast.errors import InputError, SpecError
from holdfast.intervals import Interval
from holdfast.testing import assert_robust, assertion

DATA = ("digits", "linf(0.1)")


def test_it_gives_the_run_where_it_holds() -> None:
    run = assert_robust("demo", *DATA, at_least=0.2, samples=60)
    assert run.robust_accuracy.low is not None
    assert run.robust_accuracy.low >= 0.2
    assert run.manifest.protocol.name == "quick"


def test_the_low_end_must_hold_and_not_the_figure_alone() -> None:
    run = holdfast.evaluate(holdfast.load("demo"), *DATA, protocol="quick", samples=60)
    at = run.robust_accuracy
    assert at.value is not None
    assert_robust("demo", *DATA, at_least=at.low, samples=60)  # pyright: ignore[reportArgumentType]
    with pytest.raises(AssertionError) as raised:
        assert_robust("demo", *DATA, at_least=at.value, samples=60)
    text = str(raised.value)
    assert text == (
        f"robust accuracy is {at.value:.3f} (95 % interval {at.low:.3f} to {at.high:.3f}, "
        f"60 rows) under linf(0.1), so that at_least={at.value:g} is not shown on so few rows; "
        f"{text.partition('; ')[2].partition('; ')[0]}; to see it again: holdfast.evaluate(model, "
        "data, 'linf(0.1)', protocol='quick', samples=60, seed=0)."
    )
    most = max(run.manifest.trials, key=lambda trial: trial.broken)
    assert f"; {most.spec} broke most, {most.broken:,} of {most.attacked:,} rows; " in text


def test_a_model_that_is_not_robust_enough() -> None:
    with pytest.raises(AssertionError, match=r"under linf\(0.2\), below at_least=0.9; .* broke "):
        assert_robust("demo", "digits", "linf(0.2)", at_least=0.9, samples=20)


def test_a_figure_that_cannot_be_believed_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = SimpleNamespace(status="unreliable", reason="The gradients are hidden.")
    share = Interval(value=0.9, low=0.85, high=0.95, n=100)
    run = SimpleNamespace(
        robust_accuracy=share,
        verdict=verdict,
        manifest=SimpleNamespace(trials=[], asked="linf(1)", threat=SimpleNamespace(eps=1.0)),
    )
    monkeypatch.setattr(assertion, "evaluate", lambda *_, **__: run)
    with pytest.raises(
        AssertionError, match=r"cannot be believed \(The gradients are hidden\); no attack broke a"
    ):
        assert_robust(None, None, "linf(1)", at_least=0.5)


@pytest.mark.parametrize("at_least", [60, -0.1, 0, float("nan"), "0.6", True, None])
def test_a_share_is_expected(at_least: Any) -> None:
    with pytest.raises(InputError, match=r"at_least is .*; expected a share .* such as 0.6\."):
        assert_robust("demo", *DATA, at_least=at_least)


def test_numbers_of_numpy_are_shares_too() -> None:
    with pytest.raises(AssertionError, match="robust accuracy is"):
        assert_robust("demo", *DATA, at_least=np.float32(1), samples=2)  # pyright: ignore


def test_mistakes_are_no_failed_assertions() -> None:
    with pytest.raises(SpecError):
        assert_robust("demo", "digits", "linf(0.1", at_least=0.5)
    with pytest.raises(InputError, match=r"an eps of inf, .* give the threat an eps"):
        assert_robust("demo", "digits", "l2(inf)", at_least=0.5)
    with pytest.raises(InputError):
        assert_robust(torch.nn.Linear(3, 2), "digits", "linf(0.1)", at_least=0.5)


def test_the_import_is_cheap() -> None:
    code = "import holdfast.testing, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"
