"""Hardening of estimators: fitted again with changed rows, judged as networks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from helpers.commands import holdfast as command
from helpers.commands import names
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

import holdfast as hf
from holdfast.errors import HoldfastError
from holdfast.hardening import recipes
from holdfast.training.estimator import Refit, Refitting
from holdfast.training.state import Epoch

SCHEMA = """
[features]
sharp = { bounds = [0, 1] }
wide = { bounds = [0, 100] }
"""
THREAT = hf.Threat.linf(0.05, schema=hf.Schema.parse(SCHEMA))
FEW = "augment(rounds=2, random=2, attack='genetic(steps=2, population=4)')"


def table(n: int, seed: int) -> pd.DataFrame:
    """Rows of two classes: `sharp` tells them apart by a gap that an adversary can cross, `wide`
    mostly, by one that they cannot."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, n)
    sharp = 0.5 + np.where(y, 0.02, -0.02) + draw.uniform(-0.01, 0.01, n)
    wide = 50 + np.where(y, 20, -20) + draw.normal(scale=16, size=n)
    return pd.DataFrame(
        {"sharp": sharp, "wide": wide.clip(0, 100), "label": np.array(list("ab"))[y]}
    )


TRAIN, TEST = table(80, 0), table(24, 1)


def forest() -> Any:
    own = RandomForestClassifier(5, max_depth=3, max_features=None, random_state=0)
    return own.fit(TRAIN[["sharp", "wide"]], TRAIN["label"])


def tree() -> Any:
    own = DecisionTreeClassifier(max_depth=3, max_features=1, random_state=0)
    return own.fit(TRAIN[["sharp", "wide"]], TRAIN["label"])


def harden(model: Any, out: Path | None = None, **more: Any) -> Any:
    how = {"recipe": FEW, "protocol": "quick", "test": TEST}
    return hf.harden(model, TRAIN, THREAT, out=out, **how | more)


def test_a_forest_comes_out_that_withstands_more_and_the_given_one_is_as_it_was(
    tmp_path: Path,
) -> None:
    given, lines = forest(), list[Epoch]()
    before = given.predict_proba(TEST[["sharp", "wide"]])
    made = harden(given, tmp_path / "h", on_epoch=lines.append)
    assert made.after.robust_accuracy > made.before.robust_accuracy + 0.3
    assert made.after.clean_accuracy > 0.7
    assert np.array_equal(given.predict_proba(TEST[["sharp", "wide"]]), before)
    assert made.model.get_params() == given.get_params()
    assert made.file == tmp_path / "h" / "model.skops"
    again = skops.io.load(made.file, trusted=skops.io.get_untrusted_types(file=made.file))
    assert (
        again.predict(TEST[["sharp", "wide"]]) == made.model.predict(TEST[["sharp", "wide"]])
    ).all()
    assert [line.epoch for line in made.log] == [line.epoch for line in lines] == [0, 1, 2]
    assert max(made.log, key=lambda line: line.robust).robust > made.log[0].robust
    assert hf.verify(tmp_path / "h" / "after", again, TEST) == []
    assert "robust accuracy" in made.report().read_text().lower()
    texts = [found.text for found in made.before.manifest.verdict.findings]
    assert any("treeexact reads their leaves" in text for text in texts)


def test_one_that_was_stopped_goes_on_to_the_same_model_whatever_rows_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown, other = tree(), table(20, 2)
    whole = harden(grown, tmp_path / "whole", protocol="none", test=other)

    class Stopped(BaseException):
        pass

    def stops(self: Refitting, *_: Any) -> Any:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Refitting, "_attacked", stops)
        with pytest.raises(Stopped):
            harden(grown, tmp_path / "cut", protocol="none")
    assert not (tmp_path / "cut" / "model.skops").exists()
    again = harden(grown, tmp_path / "cut", protocol="none", resume=True)
    x = TEST[["sharp", "wide"]]
    assert np.array_equal(again.model.predict_proba(x), whole.model.predict_proba(x))


def test_the_command_takes_a_file_and_leaves_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    skops.io.dump(tree(), "tree.skops")
    TRAIN.to_csv("train.csv", index=False)
    Path("schema.toml").write_text(SCHEMA)
    asked = ("tree.skops", "train.csv", "--schema", "schema.toml", "--threat", "linf(0.05)")
    done = command("harden", *asked, "--protocol", "quick", "--epochs", "1", "--out", "hard")
    assert done.exit_code == 0, done.output
    assert "model: hard/model.skops" in done.output
    assert "loss" not in done.output
    assert Path("hard/report.html").exists()
    done = command(
        "evaluate", "hard/model.skops", *asked[1:], "--protocol", "quick", "--samples", 9
    )
    assert done.exit_code == 0, done.output


def test_a_pipeline_keeps_its_texts_its_columns_and_its_threshold(tmp_path: Path) -> None:
    """Its columns stand in another order than those of the data, which have one more."""

    def with_homes(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(home=np.where(np.arange(len(frame)) % 3, "own", "rent"), more=1.0)

    columns = make_column_transformer(
        (StandardScaler(), ["sharp", "wide"]), (OneHotEncoder(), ["home"])
    )
    frame, given = with_homes(TRAIN), make_pipeline(columns, LogisticRegression())
    given.fit(frame[["home", "sharp", "wide"]], frame["label"])
    more = 'home = { type = "category", mutability = "fixed", bounds = [0, 1], '
    more += 'values = ["own", "rent"] }\nmore = { mutability = "fixed", bounds = [0, 1] }\n'
    made = hf.harden(
        hf.wrap(given, threshold=0.4),
        frame,
        hf.Threat.l2(0.05, schema=hf.Schema.parse(SCHEMA + more)),
        recipe="augment(rounds=2, random=1, attack='genetic(steps=1, population=4)')",
        protocol="none",
        test=with_homes(TEST),
        out=tmp_path / "h",
    )
    assert list(made.model.feature_names_in_) == ["home", "sharp", "wide"]
    assert list(made.model.classes_) == ["a", "b"]
    assert made.after.manifest.model.threshold == 0.4
    assert made.after.clean_accuracy > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "kind", "options", "native"),
    [
        ("xgboost", "XGBClassifier", {}, "model.ubj"),
        ("lightgbm", "LGBMClassifier", {"min_child_samples": 5, "verbose": -1}, "model.txt"),
        ("catboost", "CatBoostClassifier", {"allow_writing_files": False}, "model.cbm"),
    ],
)
def test_boosters_leave_their_own_files_too(
    library: str, kind: str, options: dict[str, Any], native: str, tmp_path: Path
) -> None:
    given = getattr(pytest.importorskip(library), kind)(n_estimators=20, max_depth=3, **options)
    numbers = (TRAIN["label"] == "b").astype(int)
    given.fit(TRAIN[["sharp", "wide"]], numbers)
    data = (TRAIN.drop(columns="label"), numbers)
    test = (TEST.drop(columns="label"), (TEST["label"] == "b").astype(int))
    made = hf.harden(
        given, data, THREAT, recipe=FEW, protocol="quick", test=test, out=tmp_path / "h"
    )
    assert made.after.robust_accuracy > made.before.robust_accuracy + 0.2
    opened = hf.wrap(str(tmp_path / "h" / native), bounds=(0, 100))
    x = TEST[["sharp", "wide"]].to_numpy("float32").copy()
    own = np.ravel(made.model.predict(TEST[["sharp", "wide"]].astype("float32"))).astype(int)
    assert np.array_equal(opened.labels(torch.from_numpy(x)), own)


# ---------------------------------------------------------------------- refused


class Silent:
    """One that says no settings of its own."""

    def __init__(self) -> None:
        self.classes_ = np.array(["a", "b"])

    def predict_proba(self, x: Any) -> np.ndarray:
        return np.tile([0.6, 0.4], (len(x), 1))

    def predict(self, x: Any) -> np.ndarray:
        return np.array(["a"] * len(x))


class Weighed(BaseEstimator, Silent):
    """One that wants more than rows and classes."""

    def fit(self, x: Any, y: Any, sample_weight: Any) -> None:
        raise NotImplementedError


def one_class() -> pd.DataFrame:
    return TRAIN[TRAIN["label"] == "a"]


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        (Silent(), {}, ["Silent", "cannot be made anew", "get_params"]),
        (Weighed(), {}, ["Weighed", "cannot be fitted again", "sample_weight"]),
        (forest(), {"recipe": "fast"}, ["fast", "network", "augment"]),
        (forest(), {"recipe": "augment(random=-1)"}, ["random", "-1"]),
        (forest(), {"recipe": "augment(attack='pgd')"}, ["gives SCORES", "genetic"]),
        (forest(), {"objective": "trades"}, ["objective", "network"]),
        (forest(), {"devices": 2, "precision": "bfloat16"}, ["devices, precision", "network"]),
        (forest(), {"test": TRAIN}, ["both train", "and measure"]),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    model: Any, more: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(HoldfastError) as caught:
        harden(model, tmp_path / "h", **more)
    names(str(caught.value), *words)
    assert not (tmp_path / "h" / "model.skops").exists()


def test_rows_of_one_class_are_refused() -> None:
    with pytest.raises(HoldfastError, match="class 1 has 0 rows"):
        hf.harden(forest(), one_class(), THREAT, test=TEST, recipe=FEW)


def test_a_booster_does_not_say_how_it_was_trained(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    numbers = (TRAIN["label"] == "b").astype(int)
    given = xgboost.XGBClassifier(n_estimators=2).fit(TRAIN[["sharp", "wide"]], numbers)
    with pytest.raises(HoldfastError, match="XGBClassifier"):
        harden(given.get_booster(), tmp_path / "h")


def test_a_network_takes_no_recipe_of_estimators() -> None:
    with pytest.raises(HoldfastError, match="give standard"):
        recipes.parse("augment")
    with pytest.raises(HoldfastError, match="give augment"):
        recipes.parse("strong", Refit)


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestRegressor

    given = RandomForestRegressor(2).fit(TRAIN[["sharp", "wide"]], TRAIN["wide"])
    with pytest.raises(HoldfastError, match="regression"):
        harden(given, tmp_path / "h")
