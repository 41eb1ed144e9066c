"""What outputs are, logits or probabilities: said by the model or the user, held against labels,
and never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.evaluation.contract import check_model
from holdfast.evaluation.verify import verify
from holdfast.targets import load, wrap
from holdfast.targets.target import Target
from holdfast.targets.wrappers import Ensemble, ExpectationOverTransformation

RNG = np.random.default_rng(0)
X = RNG.random((40, 2)).astype(np.float32)
Y = (X[:, 0] > 0.5).astype(np.int64)


def linear(w: tuple[float, float] = (1.0, 0.0), b: float = 0.0) -> nn.Module:
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([w]))
        net.bias.fill_(b)
    return net.eval()


def clean(model: Any, x: Any = X, y: Any = Y, **options: Any) -> float:
    run = measure(model, x, y, **options)
    return run.metrics.clean_accuracy.value


def measure(model: Any, x: Any = X, y: Any = Y, **options: Any) -> Any:
    return holdfast.evaluate(
        wrap(model, **options), (x, y), "linf(1e-6)", attacks=["signhunter(steps=2)"]
    )


def noted(run: Any) -> dict[str, Any]:
    return {finding.check: finding for finding in run.verdict.findings}


def test_a_score_within_0_and_1_is_no_probability() -> None:
    """Line 1: four right positives whose logits lie in (0, 0.5); one image; and the linear layer
    says what it is."""
    x = np.array([[0.1, 0], [0.2, 0], [0.3, 1], [0.4, 1]], np.float32)
    for n in (4, 1):
        run = measure(linear(), x[:n], np.ones(n, np.int64))
        assert run.metrics.clean_accuracy.value == 1
        assert "probabilities" not in noted(run)
    assert clean(linear(b=-0.5), X[Y == 1], Y[Y == 1]) == 1


def test_the_users_word_wins() -> None:
    """Line 1: whatever the outputs look like, and wherever it is said."""
    score = lambda x: x[:, 0]  # noqa: E731
    assert clean(score, probabilities=True) == 1
    assert clean(score, probabilities=False) == pytest.approx(Y.mean())
    assert clean(nn.Sequential(linear(), nn.Sigmoid()), y=Y * 0 + 1, probabilities=False) == 1
    softmax = lambda x: x.new_tensor([[0.2, 0.8]]).expand(len(x), 2) + 0 * x  # noqa: E731
    assert not wrap_and_check(softmax, probabilities=False).head.probabilities
    assert clean(wrap(wrap(score), probabilities=True)) == 1


def wrap_and_check(model: Any, **options: Any) -> Target:
    from holdfast.data import as_source

    target = wrap(model, **options)
    check_model(target, as_source((X, Y)))
    return target


@pytest.mark.parametrize("numpy", [True, False])
def test_where_nothing_says_labels_decide(numpy: bool) -> None:
    """Line 1: the same outputs with labels that fit 0.5, and with labels that fit 0; the report
    says which."""

    def model(x: Any) -> Any:
        return np.clip(x[:, 0], 0, 1) if numpy else x[:, 0].clamp(0, 1)

    run = measure(model)
    assert run.metrics.clean_accuracy.value == 1
    assert noted(run)["probabilities"].severity == "info"
    assert "taken for probabilities" in noted(run)["probabilities"].text
    assert run.manifest.model.probabilities
    zeros = X * (np.arange(40) % 2)[:, None]
    run = measure(model, zeros, (zeros[:, 0] > 0).astype(np.int64))
    assert run.metrics.clean_accuracy.value == 1
    assert "taken for logits" in noted(run)["probabilities"].text
    assert not run.manifest.model.probabilities
    assert measure(lambda x: 3 * model(x) - 1.5).metrics.clean_accuracy.value == 1


def test_labels_of_one_class_cannot_decide() -> None:
    """Line 1: then outputs are logits, and the report warns."""
    for label in (0, 1):
        x = X[:1] * 0 + 0.3
        run = measure(lambda x: np.clip(x[:, 0], 0, 1), x, np.array([label]))
        assert run.metrics.clean_accuracy.value == label
        assert noted(run)["probabilities"].severity == "amber"
        assert "--probabilities" in noted(run)["probabilities"].text


def test_two_columns_are_two_columns() -> None:
    """Line 1: [0, z] that a model of two classes gives is no single output."""
    pair = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        pair.weight.copy_(torch.tensor([[0.0, 0.0], [0.5, 0.0]]))
    for model in (pair, lambda x: np.stack([0 * x[:, 0], x[:, 0] / 2], 1)):
        assert clean(model, X, np.ones(40, np.int64)) == 1


def test_cosine_scores_are_scores() -> None:
    """Line 1: of several classes, each within [0, 1], which do not sum to 1."""
    anchors = torch.eye(2)
    model = lambda x: nn.functional.cosine_similarity(x[:, None], anchors, dim=2)  # noqa: E731
    assert clean(model, y=(X[:, 1] > X[:, 0]).astype(np.int64)) == 1
    assert not wrap_and_check(model).head.probabilities


@pytest.mark.parametrize("direction", ["estimator", "method"])
def test_estimators_say_what_they_give(direction: str) -> None:
    """Line 1: a decision function on positives alone, and predict_proba."""
    svm = pytest.importorskip("sklearn.svm")
    trees = pytest.importorskip("sklearn.ensemble")
    fitted = svm.LinearSVC().fit(X, Y)
    model = fitted if direction == "estimator" else fitted.decision_function
    nearby = X[Y == 1][fitted.decision_function(X[Y == 1]) < 0.9]
    nearby = nearby[fitted.decision_function(nearby) > 0]
    run = measure(model, nearby, np.ones(len(nearby), np.int64))
    assert run.metrics.clean_accuracy.value == 1
    assert "probabilities" not in noted(run)
    forest = trees.RandomForestClassifier(5, random_state=0).fit(X, Y)
    model = forest if direction == "estimator" else forest.predict_proba
    assert wrap_and_check(model).head.probabilities


@pytest.mark.parametrize(
    "around", [lambda t: Ensemble([t, wrap(score)]), lambda t: ExpectationOverTransformation(t, 2)]
)
def test_wrapped_models_are_asked_too(around: Callable[[Target], Target]) -> None:
    """Line 1: members of an ensemble, and the mean of draws."""
    assert clean(around(wrap(score))) == 1


def score(x: Tensor) -> Tensor:
    return x[:, 0].clamp(0, 1)


def test_labels_that_hold_together_are_held_against_the_truth() -> None:
    """Line 1: a multi-label head within [0, 1], of probabilities and of logits; regression is left
    alone."""
    model = lambda x: x.clamp(0, 1)  # noqa: E731
    truth = (X > 0.5).astype(np.float32)
    for x, y, reading in ((X, truth, True), (X * truth, (X * truth > 0).astype(np.float32), False)):
        run = measure(model, x, y, task="multilabel")
        assert run.metrics.clean_accuracy.value == 1
        assert run.manifest.model.probabilities == reading
    assert clean(model, X, X, task="regression(tolerance=0.1)") == 1


def test_saturated_probabilities_are_said() -> None:
    """Line 2: where logits cannot be read, the report says that the figure is an upper bound."""
    sharp = lambda x: 1 / (1 + np.exp(-500 * (x[:, 0].astype(np.float32) - 0.5)))  # noqa: E731
    with np.errstate(over="ignore"):
        run = measure(sharp)
    assert noted(run)["saturated_probabilities"].severity == "amber"
    assert "logit_scale" not in noted(run)
    assert "saturated_probabilities" not in noted(
        measure(nn.Sequential(linear((500, 0), -250), nn.Sigmoid()))
    )


def test_verify_reads_as_the_run_did(tmp_path: Path) -> None:
    """Line 1: the reading is part of the evidence, whatever was said or found."""
    for i, (model, said) in enumerate(
        [
            (score, None),
            (score, True),
            (score, False),
            (nn.Sequential(linear((500, 0), -250), nn.Sigmoid()), None),
        ]
    ):
        run = holdfast.evaluate(
            wrap(model, probabilities=said),
            (X, Y),
            "linf(0.01)",
            attacks=["fgsm"],
            out=tmp_path / str(i),
        )
        from holdfast.data import as_source

        assert verify(run.folder, wrap(model), as_source((X, Y))) == []
        again = holdfast.evaluate(
            wrap(model, probabilities=said), (X, Y), "linf(0.01)", attacks=["fgsm"]
        )
        assert again.manifest.model == run.manifest.model


def test_the_command_line_says_it_too(tmp_path: Path) -> None:
    """Line 1: --probabilities and --no-probabilities."""
    (tmp_path / "net.py").write_text("def make():\n    return lambda x: x[:, 0].clamp(0, 1)\n")
    np.savez(tmp_path / "set.npz", x=X, y=Y)
    for flag, expected in (("--probabilities", 1.0), ("--no-probabilities", float(Y.mean()))):
        line = [
            f"{tmp_path}/net.py:make",
            f"{tmp_path}/set.npz",
            "--threat",
            "linf(0.01)",
            "--attack",
            "fgsm",
            flag,
        ]
        done = CliRunner().invoke(app, ["evaluate", *line, "--json", "--out", str(tmp_path / flag)])
        assert json.loads(done.stdout)["metrics"]["clean_accuracy"]["value"] == pytest.approx(
            expected
        )


def test_a_file_of_an_endpoint_says_what_it_gives(tmp_path: Path) -> None:
    """Line 1: `gives: scores` is the user's word."""
    pytest.importorskip("httpx")
    text = "url: http://localhost:1/\nshape: [2]\nclasses: 2\ngives: scores\n"
    text += "request: {json: {x: $inputs}}\nresponse: y\n"
    (tmp_path / "x.endpoint.yaml").write_text(text)
    target = load(str(tmp_path / "x.endpoint.yaml"))
    assert target.head.said
    assert not target.head.probabilities


def given_as(kind: str) -> Target:
    """A model of two classes that nobody says anything of, and that gives probabilities or
    logits."""

    def ask(x: np.ndarray) -> np.ndarray:
        z = 6 * np.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)
        return np.exp(z) / np.exp(z).sum(1, keepdims=True) if kind == "probabilities" else z

    return wrap(ask, framework="numpy", shape=(2,))


@pytest.mark.parametrize("kinds", [("probabilities", "logits"), ("logits", "probabilities")])
def test_members_of_an_ensemble_may_give_one_probabilities_and_one_logits(
    kinds: tuple[str, str],
) -> None:
    def both() -> Target:
        return Ensemble([given_as(kind) for kind in kinds])

    run = holdfast.evaluate(both(), (X, Y), "linf(0.05)", attacks=["signhunter(steps=5)"])
    assert verify(run.folder, both(), (X, Y)) == []
