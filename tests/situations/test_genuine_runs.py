"""Genuine runs of many kinds: `verify` confirms each of them, and a cut run says what it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_runs import ATTACKS, Bent, Softmax, rows, seal
from sklearn.linear_model import LogisticRegression

import holdfast
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.evaluation.verify import verify
from holdfast.runs import store
from holdfast.targets.wrappers import ExpectationOverTransformation, Surrogate
from holdfast.threats.threat import Threat

SEARCHES = ("fmn(steps=5)", "fab(steps=3)")


def confirmed(model: Any, data: Any, threat: Any, **options: Any) -> list[str]:
    """What verify says of a run made just now."""
    run = holdfast.evaluate(model, data, threat, **options)
    return verify(run.folder, holdfast.wrap(model), data)


def test_each_search_without_a_limit_takes_all_rows() -> None:
    """Line 9: at an eps of inf every trial attacks every row, and verify confirms a run of
    several."""
    assert confirmed(Bent(), rows(), "linf(inf)", attacks=SEARCHES) == []


def test_a_class_to_reach_may_be_a_rows_own() -> None:
    """Line 24: of one class a row, some are the row's own: such rows are left out, and verify
    confirms it."""
    x, y = rows()
    threat = Threat.linf(0.05, target=np.roll(y, 1))
    run = holdfast.evaluate(Bent(), (x, y), threat, attacks=ATTACKS)
    assert run.manifest.metrics.counts["skipped"] == int((np.roll(y, 1) == y).sum()) > 0
    assert verify(run.folder, holdfast.wrap(Bent()), (x, y)) == []


@pytest.mark.parametrize("given", ["positions", "one-hot"])
def test_several_remarks_on_labels(given: str) -> None:
    """Line 15: labels that are an estimator's positions, or one-hot, are remarked on twice; verify
    confirms it."""
    x = np.random.default_rng(0).random((30, 3)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int)
    model = LogisticRegression().fit(x, np.array(["no", "yes"])[y])
    labels = y if given == "positions" else np.eye(2)[y]
    assert confirmed(model, (x, labels), "linf(0.05)", attacks=("square(steps=2)",)) == []


def test_renumbered_labels_keep_how_the_data_were_read(tmp_path: Path) -> None:
    """Line 15: a table whose labels count from 1 still says from which column they came."""
    lines = [f"{v:.3f},{1 + (v > 0.5)},0" for v in np.linspace(0, 1, 20)]
    (tmp_path / "data.csv").write_text("\n".join(["a,kind,b", *lines]))
    source = open_data(str(tmp_path / "data.csv"), label="kind")
    run = holdfast.evaluate(torch.nn.Linear(2, 2), source, "linf(0.05)", attacks=("fgsm",))
    assert run.manifest.data.loading == {"label": "kind"}


class Noisy(Bent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.02 * torch.randn_like(x))


def test_a_randomised_model_answers_otherwise_in_another_batch() -> None:
    """Line 5: of a randomised model, verify holds neither one confidence nor one draw against the
    run."""
    target = ExpectationOverTransformation(holdfast.wrap(Noisy()), 5)
    run = holdfast.evaluate(target, rows(), "linf(0.05)", attacks=ATTACKS)
    ids, found = next(iter(run.examples()))
    store.write_tensors(
        run.folder / "adversarial" / "000000000.safetensors", {"id": ids[::-1], "x": found[::-1]}
    )
    seal(run.folder, run.manifest)
    again = ExpectationOverTransformation(holdfast.wrap(Noisy()), 5)
    assert verify(run.folder, again, rows()) == []


def test_a_run_with_a_surrogate_needs_none_to_be_verified() -> None:
    """Line 5: which further trials fit depends on the surrogate, without which a run is
    verified."""
    target = Surrogate(holdfast.wrap(Softmax()), holdfast.wrap(Bent()))
    run = holdfast.evaluate(target, rows(), "linf(0.05)", protocol="standard", samples=4)
    assert verify(run.folder, holdfast.wrap(Softmax()), rows()) == []


class Failing(Bent):
    """Raises from some question on."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self.left = questions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the device is gone")
        return super().forward(x)


@pytest.mark.parametrize("questions", [6, 14])
def test_what_is_said_to_be_kept_is_there(questions: int, tmp_path: Path) -> None:
    """Line 28: a model that raises later: the sentence speaks of kept work only where there is
    some."""
    out = tmp_path / "run"
    with pytest.raises(InputError) as error:
        holdfast.evaluate(Failing(questions), rows(), "linf(0.05)", attacks=ATTACKS, out=out)
    assert ("--resume" in str(error.value)) == out.exists() == (questions == 14)
