"""Labels as people bring them: names, -1 and 1, 1 to k, one-hot rows. Each means what the model
means by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

import holdfast
from holdfast.data.arrays import Arrays
from holdfast.errors import InputError
from holdfast.evaluation.attack import craft
from holdfast.evaluation.verify import verify
from holdfast.targets import wrap
from holdfast.targets.frameworks.arrays import ArrayModel

DRAW = np.random.default_rng(0)
X = DRAW.random((48, 4)).astype(np.float32)
Y = (X[:, 0] > 0.4).astype(int) + (X[:, 0] > 0.7)  # of three classes
ATTACK = ("square(steps=2)",)
THREAT = "linf(0.05)"


def measured(model: Any, y: np.ndarray, **options: Any) -> Any:
    return holdfast.evaluate(model, (X, y), THREAT, attacks=ATTACK, **options)


def said(run: Any) -> list[str]:
    return [f.text for f in run.manifest.verdict.findings if f.check == "labels"]


def classes_of(labels: np.ndarray, count: int = 3) -> np.ndarray:
    """Y, or whether it is above 0, in these words."""
    return labels[np.minimum(Y, count - 1)]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-1, 1]),
        np.array([5, 6]),
        np.array([False, True]),
        np.array([-1.0, 1.0]),
        np.array([10, 2, 30]),
    ],
    ids=["signs", "numbers", "booleans", "floats", "unordered"],
)
def test_an_estimators_classes_are_those_of_the_data(labels: np.ndarray) -> None:
    """Line 15: data with an estimator's own labels are measured, whichever they are; figures are
    its own score."""
    y = classes_of(labels, len(labels))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    run = measured(model, y)
    assert run.manifest.metrics.clean_accuracy.value == pytest.approx(model.score(X, y))
    names = [str(c) for c in model.classes_.tolist()]
    assert run.manifest.data.class_names == names
    assert [c.name for c in run.manifest.metrics.per_class] == names
    assert f"{names[0]} is 0, {names[1]} is 1" in said(run)[0]
    few = slice(0, 9)
    kept = np.flatnonzero(y == y[0])[few]  # of one class alone: still that class
    part = holdfast.evaluate(model, (X[kept], y[kept]), THREAT, attacks=ATTACK)
    assert set(part.samples["label"].to_pylist()) == {list(model.classes_).index(y[0])}


def test_names_are_matched_by_name_and_not_by_order() -> None:
    """Line 15: data that name their classes (dog, cat) meet a model that names them in another
    order."""
    texts = np.array(["cat", "ant", "dog"])
    y = classes_of(texts)
    model = GridSearchCV(LinearSVC(), {"C": [1, 10]}, cv=2).fit(X, y)
    source = Arrays(X, Y, "set", scale=False, class_names=("cat", "ant", "dog"))
    run = holdfast.evaluate(model, source, THREAT, attacks=ATTACK)
    assert run.manifest.metrics.clean_accuracy.value == model.score(X, y)
    assert run.manifest.data.class_names == ["ant", "cat", "dog"]
    assert verify(run.folder, wrap(model), source) == []
    found = craft(wrap(model), source, THREAT, ATTACK[0])
    assert found.y.tolist() == [["ant", "cat", "dog"].index(t) for t in y]
    raw = holdfast.evaluate(model, (X, y), THREAT, attacks=ATTACK)  # the texts themselves
    assert raw.manifest.data.fingerprint == run.manifest.data.fingerprint
    strange = Arrays(X, Y, "set", scale=False, class_names=("cat", "ant", "eel"))
    with pytest.raises(InputError, match=r"'eel'.*ant, cat, dog"):
        holdfast.evaluate(model, strange, THREAT, attacks=ATTACK)


def test_positions_are_taken_only_where_nothing_contradicts() -> None:
    """Line 15: 0..k-1 for a model whose classes are texts are positions, and that is said; 1..k
    cannot be both."""
    model = RandomForestClassifier(3, random_state=0).fit(X, classes_of(np.array(["a", "b", "c"])))
    run = measured(model, Y)
    assert "taken for positions" in " ".join(said(run))
    assert run.manifest.metrics.clean_accuracy.value == model.score(
        X, classes_of(np.array(["a", "b", "c"]))
    )
    counted = RandomForestClassifier(3, random_state=0).fit(X, Y + 1)
    with pytest.raises(InputError, match=r"label 0.*1, 2, 3"):
        measured(counted, Y)


@pytest.mark.parametrize("labels", [[-1, 1], [1, 2, 3], [2, 4], [5, 6, 7]], ids=str)
def test_networks_take_k_values_in_their_order(labels: list[int], tmp_path: Path) -> None:
    """Line 15: a network with k outputs names no class: k evenly spaced labels are taken in order,
    and that is said."""
    net = nn.Linear(4, len(labels))
    y = classes_of(np.array(labels), len(labels))
    ordinary = measured(net, np.minimum(Y, len(labels) - 1))
    run = measured(net, y, out=tmp_path / "run")
    assert run.manifest.metrics.clean_accuracy == ordinary.manifest.metrics.clean_accuracy
    assert run.manifest.data.class_names == [str(v) for v in labels]
    assert f"{labels[0]} is 0" in said(run)[0]
    assert verify(tmp_path / "run", wrap(net), Arrays(X, y, "arrays", scale=False)) == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 9], "label 9.*3 classes"),
        ([1, 3, 3], "count from 1"),
        ([-1, 0, 0], "label -1.*count from 0"),
    ],
    ids=str,
)
def test_other_values_are_refused(labels: list[int], words: str) -> None:
    """Line 15: what could be a slip (a gap, a class left out) is refused in a sentence that names
    the row."""
    with pytest.raises(InputError, match=f"row .*{words}"):
        measured(nn.Linear(4, 3), classes_of(np.array(labels)))


@settings(max_examples=12)
@given(
    st.permutations(["ant", "bee", "cat", "dog"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
)
def test_a_model_that_predicts_its_own_names_is_right(names: list[str], rows: list[int]) -> None:
    """Line 15: whatever the order and whichever classes are there, a model that answers the row's
    name is right."""
    x = np.eye(4, dtype=np.float32)[rows]
    model = ArrayModel(lambda u: u @ np.eye(4, dtype=np.float32), class_labels=tuple(names))
    target = wrap(model)
    data = (x, np.array([names[i] for i in rows]))
    found = craft(target, holdfast.data.as_source(data), THREAT, "square(steps=1)")
    assert not found.wrong.any()


@pytest.mark.parametrize("kind", [np.float32, np.int64, bool])
def test_one_hot_labels(kind: type) -> None:
    """Line 16: one-hot rows of k classes are class numbers for a model of k outputs, and the report
    says so."""
    net = nn.Linear(4, 3)
    run, ordinary = measured(net, np.eye(3)[Y].astype(kind)), measured(net, Y)
    assert run.samples.drop(["seconds"] if "seconds" in run.samples.column_names else []).equals(
        ordinary.samples
    )
    assert "one-hot" in said(run)[0]
    assert run.manifest.data.fingerprint == ordinary.manifest.data.fingerprint
    column = measured(net, Y[:, None].astype(np.float32))  # as Keras has them
    assert column.manifest.data.fingerprint == ordinary.manifest.data.fingerprint


def test_one_hot_labels_train_too() -> None:
    """Line 16: harden takes one-hot labels as evaluate does, for training and test rows alike."""
    torch.manual_seed(0)
    many, y = np.tile(X, (2, 1)), np.eye(2)[np.tile(np.minimum(Y, 1), 2)]
    options: dict[str, Any] = {"epochs": 1, "protocol": "quick", "test_samples": 4}
    hard = holdfast.harden(nn.Linear(4, 2), (many, y), THREAT, test=(X, y[:48]), **options)
    assert hard.after.samples["label"].to_pylist() == np.minimum(Y, 1)[:4].tolist()
    assert "one-hot" in said(hard.after)[0]


def test_rows_to_test_on_mean_what_the_training_rows_mean() -> None:
    """Line 15: a test set that lacks a class, or orders its folders otherwise, is read as the
    training set is."""
    from holdfast.evaluation.labels import numbered

    target = wrap(nn.Linear(4, 2), shape=(4,))
    train, test = ((X, classes_of(np.array([-1, 1]), 2)), (X[:5], np.ones(5, int)))
    (_, few), _ = numbered(target, *map(holdfast.data.as_source, (train, test)))
    assert few.rows(0, 5)[1].tolist() == [1] * 5
    folders = [
        Arrays(X, np.minimum(Y, 1), n[0], scale=False, class_names=n)
        for n in (("a", "b"), ("b", "a"))
    ]
    (first, second), _ = numbered(target, *folders)
    assert (first.rows(0, 48)[1] == 1 - second.rows(0, 48)[1]).all()
    with pytest.raises(InputError, match=r"'c'.*a, b"):
        numbered(
            target,
            folders[0],
            Arrays(X, np.minimum(Y, 1), "s", scale=False, class_names=("b", "c")),
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: np.ones((48, 3)), ("48 x 3", "row 0", "--task multilabel")),
        (lambda y: np.eye(5)[y], ("48 x 5", "5 classes", "3 classes")),
        (lambda y: np.full((48, 3), 1 / 3), ("row 0", "not one-hot")),
    ],
    ids=["several", "another-width", "soft"],
)
def test_rows_that_are_not_one_hot(change: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    """Line 16: several ones in a row keep the advice of --task multilabel; other widths are
    named."""
    np.savez(tmp_path / "set.npz", x=X, y=change(Y))
    (tmp_path / "net.py").write_text("from torch import nn\ndef net(): return nn.Linear(4, 3)\n")
    for command in ("evaluate", "attack"):
        options = ("--threat", THREAT, "--attack", ATTACK[0])
        text = refused(command, str(tmp_path / "net.py:net"), str(tmp_path / "set.npz"), *options)
        assert all(word in text for word in words)
