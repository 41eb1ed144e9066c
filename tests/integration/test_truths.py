"""Multi-label and regression models through evaluation, evidence, report and command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import from_arrays
from holdfast.errors import InputError, SpecError
from holdfast.evaluation.truths import with_truths
from holdfast.evaluation.verify import verify
from holdfast.reporting import html
from holdfast.runs import store
from holdfast.runs.run import Run
from holdfast.targets.batch import read
from holdfast.targets.truth import TRUTH
from holdfast.threats.threat import Threat

N, K = 60, 3
TASKS = {"multilabel": "linf(0.04)", "regression(tolerance=0.3)": "linf(0.05)"}


def command(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        w = torch.rand(K, 16, generator=torch.Generator().manual_seed(1)) - 0.5
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5)[:, None] * self.w).sum(-1)


def data(task: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((N, 1, 4, 4), np.float32)
    z = Net()(torch.from_numpy(x)).detach().numpy()
    if task == "multilabel":
        y = (z > 0).astype(np.int64)
        y[::9, 0] = 1 - y[::9, 0]
        return x, y
    return x, z + 0.32 * (2 * rng.random((N, K), np.float32) - 1)


def measure(task: str, **options: Any) -> Run:
    target = holdfast.wrap(options.pop("model", Net()), task=task)
    attacks = options.pop("attacks", ["apgd(steps=10)", "fab(steps=5)"])
    return holdfast.evaluate(target, data(task), TASKS[task], attacks=attacks, **options)


def test_rows_and_their_truths_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, asked = from_arrays(*data("multilabel")), []
    given = inner.rows
    monkeypatch.setattr(inner, "rows", lambda *rows: (asked.append(rows), given(*rows))[1])
    target = holdfast.wrap(Net(), task="multilabel")
    _, source = with_truths(target, inner, Threat.linf(0.1))
    batch, y = read(source, 4, 9)
    assert asked == [(4, 9)]
    assert source.context(2, 6)[TRUTH].tolist() == data("multilabel")[1][2:6].tolist()
    assert batch.context[TRUTH].tolist() == data("multilabel")[1][4:9].tolist()
    assert not y.any()


@pytest.mark.parametrize("task", TASKS)
def test_figures_follow_from_the_outputs_and_the_evidence_verifies(
    task: str, tmp_path: Path
) -> None:
    run = measure(task, out=tmp_path / "run")
    x, y = data(task)
    m, table = run.metrics, run.samples
    truth, clean, attacked = (
        np.stack(table.column(c).to_pylist()) for c in ("truth", "clean_output", "attacked_output")
    )
    np.testing.assert_array_equal(truth, y.astype(np.float32))
    np.testing.assert_allclose(clean, Net()(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    broken = np.array(table.column("status").to_pylist()) == "broken"
    assert 0 < broken.sum() < N
    for ids, rows in run.examples():
        own = Net()(torch.from_numpy(rows)).detach().numpy()
        np.testing.assert_allclose(own[broken[ids]], attacked[ids[broken[ids]]], atol=1e-5)
    if task == "multilabel":
        right = ((clean > 0) == (truth > 0)).all(1)
        hits = ((attacked > 0) & (truth > 0)).sum(0)
        assert m.recall.attacked == pytest.approx((hits / truth.sum(0)).mean())
        assert m.precision.attacked == pytest.approx((hits / (attacked > 0).sum(0)).mean())
        assert [c.name for c in m.per_class] == ["label 0", "label 1", "label 2"]
        assert m.errors is None
    else:
        right = (np.abs(clean - truth) <= 0.3).all(1)
        assert m.errors is not None
        assert m.errors.attacked.maximum == np.abs(attacked - truth).max()
        assert m.errors.attacked.mean > m.errors.clean.mean
        assert m.f1.clean is None
    assert m.clean_accuracy.value == right.mean() < 1
    assert verify(run.folder, holdfast.wrap(Net(), task=task), from_arrays(x, y)) == []
    page = html.write(run.folder).read_text()
    assert "Right means" in page
    assert ("Confusion" in page) is False
    assert "data:image/png" in page


@pytest.mark.parametrize("task", TASKS)
def test_changed_outputs_are_noticed(task: str, tmp_path: Path) -> None:
    run = measure(task, out=tmp_path / "run")
    table = run.samples
    for column, word in (
        ("clean_output", "rows"),
        ("attacked_output", "stored examples of rows"),
        ("truth", "rows"),
    ):
        values = table.column(column).to_pylist()
        at = table.column("status").to_pylist().index("broken")
        values[at] = [v + 1 for v in values[at]]
        store.write_samples(
            run.folder, table.set_column(table.column_names.index(column), column, [values])
        )
        wrong = verify(run.folder, holdfast.wrap(Net(), task=task), from_arrays(*data(task)))
        assert any(word in sentence and "output" in sentence for sentence in wrong)


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_model_gives_one_verdict(task: str) -> None:
    """numpy and torch functions: the same statuses by score attacks; torch and jax: by gradient
    attacks."""
    jax = pytest.importorskip("jax")
    w = Net().w.detach().numpy()

    def scores(x: Any) -> Any:
        return (x.reshape(len(x), -1) - 0.5) @ w.T

    columns = []
    for model, framework, attacks in (
        (Net(), None, ["signhunter(steps=40)"]),
        (scores, "numpy", ["signhunter(steps=40)"]),
        (Net(), None, ["apgd(steps=10)"]),
        (jax.jit(scores), "jax", ["apgd(steps=10)"]),
    ):
        target = holdfast.wrap(model, framework=framework, task=task)
        run = holdfast.evaluate(target, data(task), TASKS[task], attacks=attacks)
        columns.append(run.samples.column("status").to_pylist())
    assert columns[0] == columns[1]
    assert columns[2] == columns[3]
    assert "broken" in columns[0]
    assert "broken" in columns[2]


def test_probabilities_of_labels_become_logits() -> None:
    run = measure("multilabel", model=nn.Sequential(Net(), nn.Sigmoid()))
    ordinary = measure("multilabel")
    assert [f.check for f in run.verdict.findings if f.check == "probabilities"] == [
        "probabilities"
    ]
    assert run.samples.column("status").to_pylist() == ordinary.samples.column("status").to_pylist()


def test_one_output_is_a_number() -> None:
    x, _ = data("multilabel")
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    y = net(torch.from_numpy(x)).detach().numpy()
    run = holdfast.evaluate(
        holdfast.wrap(net, task="regression(0.1)"), (x, y), "linf(0.01)", attacks=["fgsm"]
    )
    assert run.clean_accuracy.value == 1
    assert run.metrics.errors is not None
    assert run.metrics.errors.clean.maximum == pytest.approx(0, abs=1e-6)


def test_a_wrong_truth_is_refused() -> None:
    x, y = data("multilabel")
    target = holdfast.wrap(Net(), task="multilabel")
    for bad, word in (
        (y[:, :2], "3 outputs"),
        (y * 2, "takes 0 or 1"),
        (y.argmax(1), r"y \[n, 3\]"),
    ):
        with pytest.raises(InputError, match=word):
            holdfast.evaluate(target, (x, bad), "linf(0.1)", attacks=["fgsm"])
    with pytest.raises(SpecError, match="has none"):
        holdfast.evaluate(target, (x, y), "linf(0.1, target=1)", attacks=["fgsm"])
    numbers = np.where(np.arange(N)[:, None] == 4, np.nan, data("regression")[1])
    with pytest.raises(InputError, match="finite number"):
        holdfast.evaluate(
            holdfast.wrap(Net(), task="regression(1)"), (x, numbers), "linf(0.1)", attacks=["fgsm"]
        )
    for text in ("regression(0)", "regression(inf)", "ranking"):
        with pytest.raises(SpecError):
            holdfast.wrap(Net(), task=text)
    with pytest.raises(InputError, match="--task multilabel"):
        holdfast.evaluate(holdfast.wrap(Net()), (x, y), "linf(0.1)", attacks=["fgsm"])
    with pytest.raises(InputError, match="task is multilabel"):
        holdfast.harden(target, (x, y), "linf(0.1)")


@pytest.mark.parametrize("task", TASKS)
def test_the_command_line_does_the_whole_job(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data(task)
    np.savez(tmp_path / "set.npz", x=x, y=y)
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_truths import "
        "Net as make\n"
    )
    monkeypatch.chdir(tmp_path)
    model = ["net.py:make", "set.npz"]
    common = ["--threat", TASKS[task], "--task", task, "--attack", "apgd(steps=10)"]
    done = command(
        "evaluate", *model, *common, "--out", "run", "--json", "--gate", "robust_accuracy>=0.99"
    )
    said = json.loads(done.stdout)
    assert done.exit_code == 1
    assert said["model"]["task"] == task
    assert command("verify", "run", *model).exit_code == 0
    assert command("attack", *model, *common, "--out", "made.npz").exit_code == 0
    with np.load("made.npz") as archive:
        made = dict(archive)
    assert made["x"].shape == x.shape
    np.testing.assert_allclose(made["y"], y)
    assert made["broken"].sum() == said["metrics"]["counts"]["broken"]
    assert command("evaluate", *model, "--threat", "linf(0.1)", "--task", "ranking").exit_code == 2
