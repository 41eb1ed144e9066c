"""Figures in MLflow and Weights & Biases: substitutes that keep what they are given, and the real
ones where they are installed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast
from holdfast.errors import InputError
from holdfast.runs.gates import KNOWN
from holdfast.runs.run import Run
from holdfast.tracking import figures, log_to_mlflow, log_to_wandb
from holdfast.training.state import Epoch


@pytest.fixture(scope="module")
def run() -> Run:
    return holdfast.evaluate(
        holdfast.load("demo"), "digits", "linf(0.1)", protocol="quick", samples=20
    )


EPOCH = Epoch(3, "madry()", 0.1, 0.2, 1.5, 0.5, 0.9, 0.6, 0.55, math.nan, 4000, "a note")
NUMBERS = {"rate": 0.1, "eps": 0.2, "loss": 1.5, "trained": 0.5, "clean": 0.9}
NUMBERS |= {"inner": 0.6, "robust": 0.55, "passes": 4000}


def test_the_figures_have_the_names_of_gates(run: Run) -> None:
    found = figures(run)
    assert found.keys() <= set(KNOWN)
    assert found["robust_accuracy"] == run.robust_accuracy.value
    assert found["robust_accuracy.low"] == run.robust_accuracy.low
    assert found["f1.attacked"] == run.f1.attacked
    assert all(math.isfinite(value) for value in found.values())


def test_mlflow_takes_runs_and_epochs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    substitute = SimpleNamespace(
        log_metrics=lambda values, step=None: logged.append((values, step)), set_tags=logged.append
    )
    monkeypatch.setitem(sys.modules, "mlflow", substitute)
    log_to_mlflow(EPOCH)
    log_to_mlflow(run, prefix="after.")
    said = {"threat": "linf(0.1)", "verdict": run.verdict.status}
    said["protocol"] = f"quick version {run.manifest.protocol.version}"
    metrics, tags = ({f"after.{n}": v for n, v in part.items()} for part in (figures(run), said))
    assert logged == [(NUMBERS, 3), (metrics, None), tags]


def test_wandb_takes_runs_and_epochs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    substitute = SimpleNamespace(log=lambda values, step: logged.append((values, step)), run=None)
    monkeypatch.setitem(sys.modules, "wandb", substitute)
    with pytest.raises(InputError, match=r"call wandb\.init\(\) first\.$"):
        log_to_wandb(EPOCH)
    substitute.run = SimpleNamespace(summary={})
    log_to_wandb(EPOCH, prefix="train/")
    log_to_wandb(run)
    assert logged == [({f"train/{name}": value for name, value in NUMBERS.items()}, 3)]
    assert substitute.run.summary["threat"] == "linf(0.1)"
    assert figures(run).items() <= substitute.run.summary.items()


@pytest.mark.parametrize("log", [log_to_mlflow, log_to_wandb])
def test_what_is_not_installed_is_named(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = log.__name__.removeprefix("log_to_")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"needs {name}, .* pip install 'holdfast\[{name}\]'\.$"):
        log(EPOCH)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
def test_the_real_mlflow(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # needs no server and no database
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as begun:
        log_to_mlflow(EPOCH)
        log_to_mlflow(run)
    kept = mlflow.get_run(begun.info.run_id).data
    assert kept.metrics == {**NUMBERS, **figures(run)}
    assert kept.tags["threat"] == "linf(0.1)"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
def test_the_real_wandb(run: Run, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    with wandb.init(mode="offline", dir=tmp_path) as begun:
        log_to_wandb(EPOCH)
        log_to_wandb(run)
        assert begun.summary["robust_accuracy"] == run.robust_accuracy.value
