"""Runs that stop early: in random order, at an interval that is valid at the stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import holdfast, names, refused, same_run
from helpers.model_files import MEANS
from helpers.small_runs import interrupted, refigured, seal

import holdfast as hf
from holdfast import usercode
from holdfast.errors import InputError
from holdfast.intervals import anytime_interval
from holdfast.runs.run import Run

ASKED = ("models.py:means", "digits", "--threat", "linf(0.1)", "--attack", "pgd(steps=3)")
GATE = ("--gate", "robust_accuracy.low>=0.95", "--until", "gate")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "models.py").write_text(MEANS)
    monkeypatch.chdir(tmp_path)


def test_a_run_stops_once_its_gate_is_decided_and_is_verified() -> None:
    done = holdfast("evaluate", *ASKED, *GATE, "--out", "one")
    assert done.exit_code == 1, done.output
    names(done.stderr, "gate not held", "estimate: at most about", "for 360 samples")
    run = Run("one")
    until, share = run.manifest.until, run.robust_accuracy
    assert until is not None
    assert until.rows == (0, 360)
    assert until.stopped == run.samples.num_rows < 360
    assert (share.high or 1) < 0.95
    assert share == anytime_interval(round(float(share) * share.n), share.n)
    names(" ".join(done.stdout.split()), f"stopped after {until.stopped} of 360")
    names(
        Path("one/report.html").read_text().replace("\xa0", " "),
        f"stopped after {until.stopped} of 360",
    )
    assert holdfast("verify", "one", "models.py:means", "digits").exit_code == 0
    assert hf.verify("one", usercode.find("models.py:means")(), "digits") == []


def test_the_rows_are_those_that_a_sample_at_random_has() -> None:
    model = usercode.find("models.py:means")()
    run = hf.evaluate(model, "digits", "linf(0.1)", attacks=["fgsm"], until=0.3, seed=3)
    stopped = run.samples.num_rows
    share = run.robust_accuracy
    assert (share.high or 1) - (share.low or 0) <= 0.3
    drawn = hf.as_source("digits", random=(stopped, 3))
    labels = sorted(drawn.labels(0, stopped).tolist())
    assert sorted(run.samples["label"].to_pylist()) == labels
    assert run.samples["label"].to_pylist() != labels


def test_each_row_keeps_its_class_to_reach_and_its_group() -> None:
    x, y = hf.as_source("digits").rows(0, 400)
    goals, model = (y + 1) % 10, usercode.find("models.py:means")()
    threat = hf.Threat.linf(0.1, target=goals)
    run = hf.evaluate(model, (x, y), threat, attacks=["fgsm"], until=0.2, groups=y % 2)
    label = run.samples["label"].to_numpy()
    assert np.array_equal(run.samples["target_class"].to_numpy(), (label + 1) % 10)
    assert run.samples["group"].to_pylist() == (label % 2).astype(str).tolist()
    assert hf.verify(run, model, (x, y), groups=y % 2) == []


def test_going_on_stops_where_the_whole_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = usercode.find("models.py:means")()

    def measure(until: float = 0.2, **more: Any) -> Run:
        return hf.evaluate(model, "digits", "linf(0.1)", attacks=["fgsm"], until=until, **more)

    whole = measure(out="whole")
    for records in (3, 5, 9):
        with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, records):
            measure(out=f"cut{records}")
        measure(out=f"cut{records}", resume=True)
        same_run("whole", f"cut{records}")
    again = measure(out="whole", resume=True)
    assert again.manifest == whole.manifest
    with pytest.raises(InputError, match=r"until a width of 0\.2"):
        measure(out="whole", until=0.3, resume=True)


def test_time_that_runs_out_is_no_reason_to_stop() -> None:
    asked = (*ASKED, "--until", "0.2", "--out", "one")
    assert holdfast("evaluate", *asked, "--max-seconds", 0).exit_code == 0
    names(Path("one/report.html").read_text().replace("\xa0", " "), "took all 360, for at no point")
    cut = Run("one").manifest
    assert cut.until is not None
    assert cut.until.stopped is None
    assert cut.metrics.counts["skipped"] > 0
    assert holdfast("verify", "one", "models.py:means", "digits").exit_code == 0
    assert holdfast("evaluate", *asked, "--resume").exit_code == 0
    assert holdfast("evaluate", *ASKED, "--until", "0.2", "--out", "whole").exit_code == 0
    same_run("one", "whole")


@pytest.mark.slow
def test_rows_that_were_proved_are_those_up_to_the_stop() -> None:
    whole = (*ASKED, "--until", "0.2", "--certify", "--seconds-per-row", "0.01", "--out", "one")
    assert holdfast("evaluate", *whole).exit_code == 0
    run = Run("one")
    proved, until = run.certified_accuracy, run.manifest.until
    assert proved is not None
    assert until is not None
    assert proved.n == until.stopped
    assert proved == anytime_interval(round(float(proved) * proved.n), proved.n)
    assert holdfast("verify", "one", "models.py:means", "digits").exit_code == 0


def test_a_run_that_is_never_narrow_enough_measures_all_rows() -> None:
    model = usercode.find("models.py:means")()
    x, y = hf.as_source("digits").rows(0, 300)
    run = hf.evaluate(model, (x, y), "linf(0.1)", attacks=["fgsm"], until=0.07, out="all")
    until = run.manifest.until
    assert until is not None
    assert until.stopped is None
    assert run.samples.num_rows == 300
    assert hf.verify(run, model, (x, y)) == []
    forged = run.manifest.model_copy(update={"until": until.model_copy(update={"width": 0.9})})
    seal(run.folder, refigured(run.folder, forged))
    assert any("first met after 128" in said for said in hf.verify(run.folder, model, (x, y)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--until", "gate"], ["--until gate", "--gate"]),
        (["--until", "narrow"], ["'narrow'", "0.05"]),
        (["--until", "1.5"], ["1.5", "between 0 and 1"]),
        (["--until", "nan"], ["nan", "between 0 and 1"]),
        (["--until", "0.01", "--samples", "200"], ["0.01", "200 rows", "0.025"]),
        (["--until", "gate", "--gate", "verdict==trusted"], ["says nothing", "verdict==trusted"]),
        (["--until", "gate", "--gate", "robust_accuracy==0.5"], ["no interval decides"]),
        (["--until", "0.1", "--shard", "0/2", "--out", "parts"], ["--shard 0/2"]),
        (["--until", "0.1", "--workers", "2"], ["--until", "one process"]),
        (["--until", "0.1", "--corruptions"], ["corruptions"]),
        (["--until", "0.1", "--threat", "l2(inf)"], ["no eps"]),
    ],
)
def test_what_cannot_stop_early_is_refused(more: list[str], words: list[str]) -> None:
    names(refused("evaluate", *ASKED, *more), *words)
    assert not list(Path().glob("parts*"))


def test_runs_that_may_have_stopped_early_are_not_merged() -> None:
    until = ("--until", "0.3", "--attack", "fgsm")
    assert holdfast("evaluate", *ASKED[:4], *until, "--out", "one").exit_code == 0
    names(refused("merge", "one", "one", "--out", "both"), "cannot merge one", "--until")
