"""CatBoost: live models and files decide as the library does, and what is none is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import holdfast as command
from helpers.commands import refused

import holdfast
from holdfast.errors import InputError
from holdfast.targets import Access, load, wrap

catboost = pytest.importorskip("catboost")
X = np.random.default_rng(0).random((60, 4)).astype(np.float32)
Y = (X[:, 0] > 0.4).astype(int) + (X[:, 0] > 0.7)
LABELS = {
    "two": np.minimum(Y, 1),
    "three": Y,
    "texts": np.array(["low", "high"])[np.minimum(Y, 1)],
    "signs": np.where(Y > 0, 1, -1),
    "truths": Y > 0,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fitted(kind: str, x: Any, y: Any, **options: Any) -> Any:
    quiet = {"verbose": 0, "allow_writing_files": False, "thread_count": 1}
    return getattr(catboost, kind)(iterations=8, depth=2, **quiet, **options).fit(x, y)


def saved(model: Any, name: str) -> str:
    model.save_model(name, format=name.rpartition(".")[2])
    return name


@pytest.mark.parametrize("name", [None, "model.cbm", "model.json", "of_another_name"])
@pytest.mark.parametrize("labels", LABELS)
def test_a_classifier_decides_as_catboost_does(labels: str, name: str | None) -> None:
    model = fitted("CatBoostClassifier", X, LABELS[labels])
    if name == "of_another_name":
        Path(saved(model, "model.cbm")).rename(name)
    elif name is not None:
        saved(model, name)
    target = wrap(model) if name is None else load(name)
    target.bind((4,))
    x = torch.from_numpy(np.random.default_rng(1).random((200, 4)).astype(np.float32))
    said = target.labels(x).numpy()
    own = target.identity.class_labels or (0, 1, 2)
    # CatBoost gives booleans as texts
    expected = [str(label) for label in model.predict(x.numpy()).ravel()]
    assert [str(own[i]) for i in said] == expected
    shown, p = target.scores(x).softmax(1).numpy(), model.predict_proba(x.numpy())
    assert np.allclose(shown, p, atol=1e-6)
    assert target.access == Access.SCORES


def test_a_fingerprint_tells_models_apart() -> None:
    model = fitted("CatBoostClassifier", X, Y)
    other = fitted("CatBoostClassifier", X, Y, random_seed=7, learning_rate=0.3)
    prints = []
    again = fitted("CatBoostClassifier", X, Y)
    for made in (model, again, saved(model, "a.cbm"), other):
        target = wrap(made)
        target.bind((4,))
        prints.append(target.fingerprint())
    assert prints[0] == prints[1] == prints[2] != prints[3]


def test_a_run_in_python_and_on_the_command_line_is_the_same_and_verified() -> None:
    model = fitted("CatBoostClassifier", X, Y)
    np.savez("set.npz", x=X, y=Y)
    attack = "square(steps=30)"
    run = holdfast.evaluate(model, (X, Y), "linf(0.1)", attacks=[attack], out="python")
    for folder, name in (("line", "model.cbm"), ("json", "model.json")):
        asked = ("set.npz", "--threat", "linf(0.1)", "--attack", attack, "--out", folder)
        assert command("evaluate", saved(model, name), *asked).exit_code == 0
        checked = command("verify", folder, name, "set.npz")
        assert checked.exit_code == 0, checked.output
    metrics = json.loads(Path("line/run.json").read_text())["metrics"]
    robust = run.manifest.metrics.robust_accuracy.value
    assert metrics["robust_accuracy"]["value"] == robust < metrics["clean_accuracy"]["value"]
    assert run.manifest.provenance.versions["catboost"] == catboost.__version__


def test_numbers_and_several_labels_want_their_task() -> None:
    y = X[:, 0] * 2
    model = fitted("CatBoostRegressor", X, y)
    with pytest.raises(InputError, match=r"objective is RMSE.*--task \"regression"):
        wrap(model)
    run = holdfast.evaluate(
        wrap(saved(model, "model.json"), task="regression(tolerance=0.5)"),
        (X[:20], y[:20]),
        "linf(0.05)",
        attacks=["square(steps=2)"],
    )
    assert run.manifest.metrics.clean_accuracy.value > 0.5
    both = np.stack([X[:, 0] > 0.5, X[:, 1] > 0.5], 1).astype(int)
    model = fitted("CatBoostClassifier", X, both, loss_function="MultiLogloss")
    with pytest.raises(InputError, match=r"objective is MultiLogloss.*--task multilabel"):
        wrap(model)
    target = wrap(model, task="multilabel", shape=(4,))
    assert ((target.scores(torch.from_numpy(X)) > 0).numpy() == model.predict(X)).all()


def test_what_is_no_model_of_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="has no trees; fit it first"):
        wrap(catboost.CatBoostClassifier())
    table = pd.DataFrame({"a": X[:, 0], "b": ["u", "v"] * 30})
    model = fitted("CatBoostClassifier", table, Y, cat_features=["b"])
    with pytest.raises(InputError, match=r"takes categories \(column b\).*give a table with names"):
        holdfast.attack(model, X[:, :2], Y, "linf(0.1)")
    table["words"] = ["a word", "two words"] * 30
    with pytest.raises(InputError, match="whole texts or embeddings"):
        wrap(fitted("CatBoostClassifier", table[["a", "words"]], Y, text_features=["words"]))


@pytest.mark.parametrize("name", ["model.cbm", "model.json"])
def test_a_damaged_file_is_one_sentence(name: str) -> None:
    content = Path(saved(fitted("CatBoostClassifier", X, Y), name)).read_bytes()
    np.savez("set.npz", x=X, y=Y)
    for part in (content[: len(content) // 2], content[:70], b"nothing"):
        Path(name).write_bytes(part)
        assert name in refused("evaluate", name, "set.npz", "--threat", "linf(0.1)")
    assert "--arch" in refused(
        "evaluate", saved(fitted("CatBoostClassifier", X, Y), name), "set.npz",
        "--threat", "linf(0.1)", "--arch", "nets.py:net",
    )  # fmt: skip
