"""Restarts and aims side by side find what they find one after the other, in fewer steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models import bent, rows, wrap

import holdfast
from holdfast.evaluation import evaluate as evaluation
from holdfast.evaluation.chunk import COUNTS
from holdfast.runs.journal import Journal
from holdfast.runs.run import Run

TRIALS = {
    "apgd(steps=5, restarts=3)": "linf(0.05)",
    'apgd(steps=4, loss="margin", targets=2, restarts=2)': "linf(0.05)",
    "acg(steps=8, restarts=4)": "l2(0.2)",
    "fab(steps=6, restarts=2)": "l2(0.2)",
    "fab(steps=6, targets=2)": "l1(0.5)",
    "mifgsm(steps=4, restarts=3)": "linf(0.05)",
    "square(steps=20, restarts=3)": "linf(0.04)",
    "brendelbethge(steps=12, restarts=2)": "l2(0.2)",
    "apgd(steps=2) acg(steps=8, restarts=3, max_margin=0.9) fgsm": "linf(0.05)",
}


def measured(
    trial: str,
    threat: str,
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    *,
    packed: bool,
    resume: bool = False,
) -> tuple[Run, int]:
    usual = evaluation.settings_of
    with monkeypatch.context() as patched:
        patched.setattr(
            evaluation,
            "settings_of",
            lambda *given: replace(usual(*given), packed=packed),
        )
        net = bent()
        calls = []
        net.register_forward_hook(lambda *_: calls.append(1))
        target = wrap(net)
        x, y = rows(target, 40)
        run = holdfast.evaluate(
            target,
            (x, y),
            threat,
            attacks=trial.replace(") ", ")|").split("|"),
            out=out,
            resume=resume,
        )
    return run, len(calls)


@pytest.mark.parametrize("trial", TRIALS)
def test_side_by_side_finds_what_one_after_the_other_does(
    trial: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [
        measured(trial, TRIALS[trial], monkeypatch, tmp_path / str(packed), packed=packed)
        for packed in (False, True)
    ]
    (alone, steps), (together, fewer) = found
    tables = [run.samples.to_pydict() for run in (alone, together)]
    for name in tables[0]:
        if name not in COUNTS:
            assert str(tables[0][name]) == str(tables[1][name]), name
    for name in ("queries", "forwards"):
        spent = [np.array(table[name]) for table in tables]
        assert (spent[1] >= spent[0]).all(), name
    trials = [[t.model_dump() for t in run.manifest.trials] for run in (alone, together)]
    assert [t["broken"] for t in trials[0]] == [t["broken"] for t in trials[1]]
    assert fewer < steps
    statuses = set(tables[0]["status"])
    assert {"broken", "robust"} <= statuses
    assert holdfast.verify(together.folder, wrap(bent()), rows(wrap(bent()), 40)) == []


def test_a_run_that_was_killed_between_two_records_goes_on_with_the_same_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trial = "acg(steps=8, restarts=4)"
    whole, _ = measured(trial, "l2(0.2)", monkeypatch, tmp_path / "whole", packed=True)
    write = Journal.write

    def killed(self: Journal, name: str, *given: Any) -> None:
        if name.endswith("-0002"):
            raise KeyboardInterrupt
        write(self, name, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            measured(trial, "l2(0.2)", monkeypatch, tmp_path / "cut", packed=True)
    cut, _ = measured(trial, "l2(0.2)", monkeypatch, tmp_path / "cut", packed=True, resume=True)
    assert cut.samples.equals(whole.samples)
