"""The estimate before a run counts every pass that the run then takes; no clock is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.attacks import parse_trial
from holdfast.data import from_arrays
from holdfast.diagnostics import checks
from holdfast.evaluation import protocols
from holdfast.evaluation.estimate import Forecast

FACTOR = 2.0


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 3)).eval()


def ratio(threat: str, **how: Any) -> tuple[float, list[Forecast]]:
    """Passes said over passes taken, of 24 rows that the model is right on."""
    net, said = model(), list[Forecast]()
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = net(x).argmax(1)
    run = holdfast.evaluate(
        net, from_arrays(x.numpy(), y.numpy()), threat, on_estimate=said.append, **how
    )
    paid = run.manifest.costs
    taken = paid.forwards + paid.backwards + paid.judge_forwards + paid.corruption_forwards
    if len(said) > 1:
        probe = run.manifest.probe_costs
        taken -= probe.forwards + probe.backwards
    return said[-1].passes * said[-1].rows / taken, said


CHEAP: dict[str, tuple[str, dict[str, Any]]] = {
    "a curve": (
        "linf(0.002)",
        {"attacks": ["pgd(steps=20)", "apgd(steps=30)"], "epsilons": [0.001, 0.004, 0.006]},
    ),
    "corruptions": ("linf(0.02)", {"attacks": ["pgd(steps=3)"], "corruptions": True}),
    "a search for the smallest, with a curve": (
        "linf(0.02)",
        {"attacks": ["fmn(steps=30)"], "epsilons": [0.01, 0.1]},
    ),
    "long legs of a search": (
        "linf(0.02)",
        {"attacks": ["pgd(steps=2)", "relay(steps=300, leg=100)"]},
    ),
    "searches that begin anew": (
        "l2(0.05)",
        {"attacks": ["pgd(steps=2)", "brendelbethge(steps=60, walks=4)"]},
    ),
    "the judge alone, almost": ("linf(0.02)", {"attacks": ["fgsm"]}),
}


@pytest.mark.parametrize("case", CHEAP)
def test_every_pass_is_counted(case: str) -> None:
    """Line 33: further eps of a curve, corruptions, the judge, and steps that cost more than the
    first ones do."""
    threat, how = CHEAP[case]
    found, _ = ratio(threat, **how)
    assert 1 / FACTOR < found < FACTOR


@pytest.mark.slow
def test_decision_attacks_are_counted() -> None:
    """Line 33: each step of a decision attack costs more than the one before."""
    found, _ = ratio("l2(0.02)", attacks=["pgd(steps=2)", "cgba(steps=40)"], epsilons=[0.01, 0.04])
    assert 1 / FACTOR < found < FACTOR


@pytest.mark.slow
@pytest.mark.parametrize("threat", ["linf(0.02)", "linf(0.1)", "l2(0.1)"])
@pytest.mark.parametrize("curve", [(), (0.01, 0.2)])
def test_the_probe_is_counted(threat: str, curve: tuple[float, ...]) -> None:
    """Line 33: of few rows the probe is a large part of the cost of the standard protocol."""
    found, said = ratio(threat, epsilons=curve or None)
    assert len(said) == 1
    assert 1 / FACTOR < found < FACTOR


def test_added_trials_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 33: where the probe adds trials, the estimate is given anew with them."""
    trials = (parse_trial("pgd(steps=5)"),)
    more = [parse_trial("pgd(steps=40, restarts=3)")]
    monkeypatch.setattr(
        protocols, "protocol", lambda *_, **__: protocols.Protocol("custom", 1, trials)
    )
    monkeypatch.setattr(checks, "follow", lambda *_: more)
    found, (first, second) = ratio("linf(0.02)")
    assert (first.added, second.added) == (0, 1)
    assert second.passes > 4 * first.passes
    assert 1 / FACTOR < found < FACTOR


def test_costs_that_bend() -> None:
    """Line 33: of costs 10 + 3 t and 10 + t^1.5 after 2, 4 and 8 steps, those of 100 steps are
    known."""
    from holdfast.evaluation.estimate import _extrapolated

    assert _extrapolated([16, 22, 34], [2, 4, 8], 100) == pytest.approx(310)
    assert _extrapolated([10 + t**1.5 for t in (2, 4, 8)], [2, 4, 8], 100) == pytest.approx(1010)
    assert _extrapolated([7.0], [3], 3) == 7
