"""A threshold: class 1 is decided for at another probability than a half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.svm import LinearSVC
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast.bounds.tree_models import trees_of
from holdfast.cli.main import app
from holdfast.errors import InputError
from holdfast.runs.run import Run
from holdfast.targets import wrap

RNG = np.random.default_rng(0)
X = RNG.random((200, 4)).astype(np.float32)
Y = (X[:, 0] + 0.3 * RNG.normal(size=200) > 0.7).astype(int)
T = 0.25
FOREST = RandomForestClassifier(20, max_depth=3, random_state=0)  # of votes: ties at 0.25
MODELS = {
    "forest": FOREST.fit(X, Y),
    "pure": RandomForestClassifier(20, random_state=0).fit(X, Y),
    "linear": LogisticRegression().fit(X, Y),
    "boosted": GradientBoostingClassifier(n_estimators=5).fit(X, Y),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("t", [0.05, 0.25, 0.9])
def test_class_1_wins_exactly_from_the_threshold_on(name: str, t: float) -> None:
    model = MODELS[name]
    target = wrap(model, threshold=t)
    x = torch.from_numpy(X)
    chance = model.predict_proba(X)
    expected = chance[:, 1] >= t
    assert (target.labels(x).numpy() == expected).all()
    z = target.scores(x)
    shown = target.confidence(z).numpy()
    assert np.allclose(shown, np.where(expected, chance[:, 1], chance[:, 0]), atol=1e-5)
    assert name != "pure" or t != T or (chance[:, 1] == t).any()


@pytest.mark.parametrize("ending", ["logits", "logit", "sigmoid", "softmax"])
def test_networks_decide_and_are_differentiated_at_the_threshold(ending: str) -> None:
    torch.manual_seed(0)
    one = ending in ("logit", "sigmoid")
    last = {"sigmoid": [nn.Sigmoid()], "softmax": [nn.Softmax(1)]}.get(ending, [])
    net = nn.Sequential(nn.Linear(4, 1 if one else 2), *last)
    half, x = wrap(net, shape=(4,)), torch.from_numpy(X)
    chance = half.scores(x).softmax(1)[:, 1]
    t = float(chance.median()) + 1e-4
    target = wrap(net, shape=(4,), threshold=t)
    assert torch.equal(target.labels(x) == 1, chance >= t)
    assert (target.labels(x) != half.labels(x)).any()
    cotangent = torch.randn(len(x), 2)
    assert torch.equal(target.linearize(x)[1](cotangent), half.linearize(x)[1](cotangent))
    z, g = target.pull(x, lambda z: torch.ones_like(z) * z)
    assert torch.equal(z, target.scores(x))
    assert torch.equal(g, half.linearize(x)[1](z))
    found = target.network()(x[:1])[0]
    assert torch.allclose(found[1] - found[0], z[0, 1] - z[0, 0], atol=1e-5)


def test_a_run_is_measured_kept_and_verified_at_the_threshold(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.py").write_text(
        "from tests.situations.test_threshold import MODELS\n\n\ndef make():\n"
        "    return MODELS['linear']\n"
    )
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    asked = [f"{tmp_path / 'm.py'}:make", f"{tmp_path / 'd.npz'}"]
    out = tmp_path / "run"
    line = ["--threat", "linf(0.05)", "--protocol", "quick", "--samples", "60", "--out", f"{out}"]

    def code(*given: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, given)
        return done.exit_code, f"{done.output} {done.exception}"

    assert code("evaluate", *asked, *line, "--threshold", "0.25")[0] == 0
    run = Run(out)
    assert run.manifest.model.threshold == T
    right = (MODELS["linear"].predict_proba(X[:60])[:, 1] >= T) == Y[:60]
    assert float(run.clean_accuracy) == right.mean()
    ids, found = next(run.examples())
    decided = MODELS["linear"].predict_proba(found)[:, 1] >= T
    assert (decided != Y[ids]).all()
    binary, attacked = run.manifest.metrics.binary, X[:60].copy()
    attacked[ids] = found
    assert binary is not None
    for kind, x in (("clean", X[:60]), ("attacked", attacked)):
        chance, rare = MODELS["linear"].predict_proba(x)[:, 1], Y[:60] == binary.label
        assert getattr(binary.auroc, kind) == pytest.approx(roc_auc_score(Y[:60], chance), abs=0.01)
        f1 = f1_score(rare, (chance >= T) == binary.label)
        assert getattr(binary.f1, kind) == pytest.approx(f1)
    assert "from a probability of 0.25 on" in (out / "report.html").read_text()
    assert code("verify", f"{out}", *asked)[0] == 0
    assert code("verify", f"{out}", *asked, "--threshold", "0.5")[0] == 1
    said = code("evaluate", *asked, *line[:-1], f"{out}2", "--threshold", "1.5")[1]
    assert "the threshold is 1.5, but it is a probability" in said


@pytest.mark.parametrize("name", ["forest", "pure", "boosted"])
def test_proofs_of_trees_know_the_threshold(name: str) -> None:
    target = wrap(MODELS[name], threshold=T)
    target.bind((4,))
    trees = trees_of(target)
    z = trees.scores(X)
    decided = target.labels(torch.from_numpy(X)).numpy()
    clear = np.abs(z[:, 1] - z[:, 0]) > trees.rounding
    assert (z.argmax(1) == decided)[clear].all()
    assert clear.mean() > 0.9
    run = holdfast.certify(target, (X[:20], Y[:20]), "linf(0.02)")
    assert run.manifest.metrics.counts["certified"] > 0
    assert (
        holdfast.verify(run, target, (X[:20], Y[:20]), certifier=holdfast.certification.Ladder())
        == []
    )


def test_what_has_no_threshold_says_so() -> None:
    ten = nn.Linear(4, 10)
    target = wrap(ten, threshold=T)
    with pytest.raises(InputError, match="between two classes, but the model has 10"):
        target.bind((4,))
    with pytest.raises(InputError, match="not their log odds"):
        wrap(LinearSVC().fit(X, Y), threshold=T).bind((4,))
    with pytest.raises(InputError, match="labels alone"):
        wrap(MODELS["linear"], gives="labels", threshold=T).bind((4,))
    with pytest.raises(InputError, match="not of regression"):
        wrap(ten, task="regression(tolerance=0.1)", threshold=T)
    with pytest.raises(InputError, match=r"has the threshold 0\.25 already"):
        wrap(wrap(ten, threshold=T), threshold=0.5)
    with pytest.raises(InputError, match="between two classes, but the model has 10"):
        holdfast.train(wrap(ten, threshold=T), (X, Y))
