"""What is wrong with a schema, or with rows under one: a sentence on the command line."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import holdfast, names, refused
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import holdfast as hf
from holdfast.errors import HoldfastError, SpecError

SCHEMA = """
[features]
open = { type = "integer", bounds = [0, 9] }
all = { type = "integer", bounds = [0, 20] }
share = { bounds = [0, 1] }
home_own = { type = "binary" }
home_rent = { type = "binary" }
home_other = { type = "binary" }
city = { type = "category", values = ["Bern", "Chur"] }

[groups]
home = ["home_*"]

[relations]
accounts = "open <= all"

[derived]
share = "open / all"
"""
NUMBERS = ["open", "all", "share", "home_own", "home_rent", "home_other"]


def table() -> pd.DataFrame:
    """Forty legal rows."""
    rng = np.random.default_rng(0)
    opened = rng.integers(1, 9, 40)
    total = opened + rng.integers(0, 10, 40)
    home = np.eye(3, dtype=int)[rng.integers(0, 3, 40)]
    columns = [opened, total, opened / total, *home.T]
    return pd.DataFrame(dict(zip(NUMBERS, columns, strict=True))).assign(
        city=rng.choice(["Bern", "Chur"], 40)
    )


@pytest.fixture(scope="module")
def model() -> object:
    whole = table()
    parts = [("n", "passthrough", NUMBERS), ("c", OneHotEncoder(), ["city"])]
    label = np.where(whole.share > 0.6, "bad", "good")
    return make_pipeline(ColumnTransformer(parts), LogisticRegression()).fit(whole, label)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: object) -> pd.DataFrame:
    """A folder with the model and its schema; and the table."""
    monkeypatch.chdir(tmp_path)
    joblib.dump(model, "model.joblib")
    Path("schema.toml").write_text(SCHEMA)
    whole = table()
    return whole.assign(label=np.where(whole.share > 0.6, "bad", "good"))


def said(rows: pd.DataFrame, schema: str = "schema.toml") -> str:
    rows.to_csv("rows.csv", index=False)
    asked = ("model.joblib", "rows.csv", "--trust", "--schema", schema, "--threat", "linf(0.1)")
    return refused("evaluate", *asked, "--attack", "genetic(steps=1)", "--out", "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((SCHEMA, "[groups]\n"), ("names no column",)),
        (("[0, 9]", "[9, 0]"), ("open", "[9, 0]", "low is above the high")),
        (("[0, 9]", "[0.2, 0.8]"), ("open", "integer", "no whole number", "[0.2, 0.8]")),
        (("open <= all", "open > all"), ("no row", "accounts", "open > all")),
        (("open <= all", "exec(open) <= all"), ("accounts", "'exec'", "unknown function")),
        (("open <= all", "all + " * 3000 + "0 >= open"), ("accounts", "too many operations")),
        (('"open / all"', '"open / all"\nopen = "share * all"'), ("open, share", "circle")),
        (('"open / all"', '"share + 1"'), ("derived features share", "circle")),
        (("all = {", "total = {"), ("'all'", "no column")),
        (('"Chur"]', '"Genf"]'), ("city", "Bern, Chur", "Bern, Genf")),
    ],
)
def test_what_is_wrong_with_a_schema(
    here: pd.DataFrame, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    assert change[0] in SCHEMA
    Path("schema.toml").write_text(SCHEMA.replace(*change))
    names(said(here), *words)


def test_a_schema_that_is_no_file(here: pd.DataFrame) -> None:
    names(said(here, "other.toml"), "no schema other.toml", "check its path")
    names(said(here, "."), "is a folder")


def test_what_is_wrong_with_rows(here: pd.DataFrame) -> None:
    opened = here.open.astype(float)
    opened[3] += 0.5
    names(said(here.assign(open=opened)), "row 3", "open", "integer", "whole number")
    one = here.home_own.where(here.index != 5, 1 - here.home_own)
    names(said(here.assign(home_own=one)), "row 5", "group home", "one 1")
    Path("schema.toml").write_text(SCHEMA.replace('"Chur"]', '"Chur", "Rom"]'))
    town = here.city.where(here.index != 7, "Rom")
    names(said(here.assign(city=town)), "column city", "'Rom'", "not fitted on")


def test_a_draft_of_a_table_with_texts_fits_it(here: pd.DataFrame) -> None:
    here.to_csv("rows.csv", index=False)
    assert holdfast("schema", "infer", "rows.csv", "--out", "draft.toml").exit_code == 0
    draft, rows = hf.Schema.load("draft.toml"), here.drop(columns="label")
    assert draft.text() == hf.Schema.infer(rows).text()
    assert draft.features[6].values == ("Bern", "Chur")
    assert list(draft.groups) == ["home"]
    assert not draft.violations(rows, rows).any()
    towns = rows.assign(city=pd.Categorical(rows.city, categories=["Chur", "Bern"]))
    assert hf.Schema.infer(towns).features[6].values == ("Chur", "Bern")


def test_rows_of_any_kind_are_held_against_a_schema() -> None:
    schema, rows = hf.Schema.parse(SCHEMA), table()
    numbers = rows.assign(city=(rows.city == "Chur").astype(int)).to_numpy(float)
    numbers[0, 0] = 30
    rows.loc[0, "open"] = 30
    found = schema.violations(torch.tensor(numbers))
    assert float(found[0, 0]) > 0
    assert torch.equal(schema.violations(numbers), found)
    assert torch.equal(schema.violations(rows.iloc[:, ::-1]), found)
    assert schema.legal(rows, rows).tolist() == [False] + 39 * [True]
    wrong = [
        (rows.drop(columns="all"), "lack the column all"),
        (rows.assign(city="Rom"), "column city has 'Rom', which is none of its values"),
        (numbers[:, :3], r"names 7 columns, but the rows have the shape \(40, 3\)"),
        (numbers[0], r"shape \(7,\)"),
    ]
    for bad, words in wrong:
        with pytest.raises(HoldfastError, match=words):
            schema.violations(bad)
    with pytest.raises(SpecError, match="expected numbers"):
        schema.violations([["a"] * 7])
