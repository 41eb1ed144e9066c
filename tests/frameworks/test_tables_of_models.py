"""A table as people have it, to models of every library: the figure is that of the model's own
answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

import holdfast
from holdfast.data import Source, as_source, open_data
from holdfast.errors import InputError
from holdfast.evaluation.prepare import with_columns
from holdfast.targets import load, wrap

RNG = np.random.default_rng(0)
N = 400
TEXTS = {"housing": ["own", "rent", "free"], "purpose": ["car", "tv", "repairs", "other"]}
NUMBERS = ["years old", "income", "rooms"]
FRAME: Any = pd.DataFrame(
    {
        "years old": RNG.integers(18, 80, N),
        "housing": RNG.choice(TEXTS["housing"], N),
        "income": RNG.lognormal(8, 0.5, N).round(2),
        "purpose": RNG.choice(TEXTS["purpose"], N),
        "rooms": RNG.choice([1, 2, 5], N),
    }
)
RISK = 2000 / FRAME.income - FRAME["years old"] / 50 + (FRAME.housing == "rent")
BAD = (RISK + RNG.normal(0, 0.2, N) > np.quantile(RISK, 0.93)).to_numpy()  # 7 %
NAMES = np.where(BAD, "bad", "good")  # class 1 is good
TRAIN, TEST = slice(0, 250), slice(250, None)

Fitted = tuple[Any, Callable[[Any], np.ndarray]]  # a model, and its probability of good


def categories(frame: Any) -> Any:
    """Texts in another order than that of the alphabet; and a column of numbers."""
    kinds = {name: pd.CategoricalDtype(values) for name, values in TEXTS.items()}
    return frame.astype(kinds | {"rooms": pd.CategoricalDtype([1, 2, 5])})


def pipeline(unseen: str = "ignore") -> Fitted:
    texts = OneHotEncoder(handle_unknown=unseen)
    columns = make_column_transformer((StandardScaler(), NUMBERS), (texts, list(TEXTS)))
    model = make_pipeline(columns, LogisticRegression(max_iter=500))
    model.fit(FRAME[TRAIN], NAMES[TRAIN])
    return model, lambda frame: model.predict_proba(frame)[:, 1]


def xgboost() -> Fitted:
    library = pytest.importorskip("xgboost")
    model = library.XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1, enable_categorical=True)
    model.fit(categories(FRAME[TRAIN]), 1 - BAD[TRAIN])
    return model, lambda frame: model.predict_proba(categories(frame))[:, 1]


def lightgbm() -> Fitted:
    library = pytest.importorskip("lightgbm")
    model = library.LGBMClassifier(n_estimators=20, n_jobs=1, verbose=-1, min_child_samples=5)
    model.fit(categories(FRAME[TRAIN]), NAMES[TRAIN])
    return model, lambda frame: model.predict_proba(categories(frame))[:, 1]


def catboost() -> Fitted:
    library = pytest.importorskip("catboost")
    quiet = {"verbose": 0, "allow_writing_files": False, "thread_count": 1}
    model = library.CatBoostClassifier(iterations=20, cat_features=[*TEXTS, "rooms"], **quiet)
    model.fit(FRAME[TRAIN], NAMES[TRAIN])
    return model, lambda frame: model.predict_proba(frame)[:, 1]


KINDS = {"pipeline": pipeline, "xgboost": xgboost, "lightgbm": lightgbm, "catboost": catboost}


def saved(model: Any, kind: str, folder: Path) -> str:
    """The library's own file."""
    if kind == "pipeline":
        pytest.importorskip("skops.io").dump(model, folder / "model.skops")
        return str(folder / "model.skops")
    name = {"xgboost": "model.json", "lightgbm": "model.txt", "catboost": "model.cbm"}[kind]
    getattr(model, "booster_", model).save_model(str(folder / name))
    return str(folder / name)


def in_form(form: str, table: Any, folder: Path) -> Source:
    if form == "frame":
        return as_source(table, label="outcome")
    path = folder / f"rows.{form}"
    table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
    return open_data(path, label="outcome")


def decided(target: Any, source: Source) -> np.ndarray:
    x, _ = source.rows(0, len(source))
    return with_columns(target, source).labels(torch.from_numpy(x).float()).numpy()


@pytest.mark.parametrize("form", ["csv", "parquet", "frame"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_names_is_decided_as_the_model_itself_decides(
    kind: str, form: str, tmp_path: Path
) -> None:
    """Live and from its file, columns in another order and one more; and at a threshold."""
    model, chance = KINDS[kind]()
    own = chance(FRAME[TEST])
    table = FRAME[TEST].assign(outcome=NAMES[TEST], row=range(N - 250))[
        ["purpose", "row", "income", "outcome", "rooms", "housing", "years old"]
    ]
    source = in_form(form, table, tmp_path)
    for given in (wrap(model), load(saved(model, kind, tmp_path))):
        assert (decided(given, source) == (own > 0.5)).all()
    at = float(np.median(own)) + 1e-4
    assert (decided(wrap(model, threshold=at), source) == (own >= at)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_with_the_models_own_accuracy(kind: str, tmp_path: Path) -> None:
    model, chance = KINDS[kind]()
    table = FRAME[TEST].assign(outcome=NAMES[TEST])
    source = in_form("csv", table, tmp_path)
    threat = holdfast.Threat.linf(0.05, schema=holdfast.Schema.infer(FRAME))
    own = wrap(model, threshold=0.9)
    run = holdfast.evaluate(own, source, threat, attacks=["genetic(steps=1, population=4)"])
    right = (chance(FRAME[TEST]) >= 0.9) == ~BAD[TEST]
    assert float(run.clean_accuracy) == pytest.approx(right.mean())
    assert holdfast.verify(run, own, source) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_category_unseen_in_training(kind: str, tmp_path: Path) -> None:
    """It is refused by its name where the model has no number for it; else the model says what it
    makes of it."""
    model, chance = KINDS[kind]()
    table = FRAME[TEST].assign(outcome=NAMES[TEST])
    table.loc[260, "purpose"] = "boat"
    source = in_form("csv", table, tmp_path)
    if kind in ("pipeline", "catboost"):
        right = chance(table.drop(columns="outcome")) > 0.5
        assert (decided(wrap(model), source) == right).all()
        return
    words = r"column purpose holds 'boat', a category that the model was not fitted on; it"
    with pytest.raises(InputError, match=rf"{words} knows car, tv, repairs, other\."):
        decided(wrap(model), source)


def network(kind: str) -> Fitted:
    """Of the columns of numbers alone, and two classes of scores."""
    if kind == "torch":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(1))
        return net, lambda frame: net(torch.tensor(frame.to_numpy("float32"))).detach()[:, 1]
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")]
    model = keras.Sequential([keras.layers.Input((3,)), *layers])
    return model, lambda frame: np.asarray(model(frame.to_numpy("float32")))[:, 1]


@pytest.mark.parametrize(
    "kind", ["torch", pytest.param("keras", marks=pytest.mark.slow)]
)  # the import of Keras costs more
def test_networks_of_columns_of_numbers(kind: str, tmp_path: Path) -> None:
    net, chance = network(kind)
    numbers = FRAME[NUMBERS][TEST] / [80, 20_000, 5]
    own = np.asarray(chance(numbers))
    at = float(np.median(own)) + 1e-4
    source = in_form("csv", numbers.assign(outcome=NAMES[TEST]), tmp_path)
    for threshold in (0.5, at):
        run = holdfast.evaluate(
            wrap(net, threshold=threshold), source, "linf(0.01)", attacks=["pgd(steps=1)"]
        )
        right = (own >= threshold) == ~BAD[TEST]
        assert float(run.clean_accuracy) == pytest.approx(right.mean())
