"""Tables whose columns have names, types and texts, and models that take them so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from helpers.commands import holdfast as command
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import holdfast
from holdfast.bounds.tree_models import trees_of
from holdfast.data import as_source, open_data
from holdfast.data.columns import Column, frame
from holdfast.errors import InputError
from holdfast.reporting.tables import most_changed
from holdfast.runs.store import read_gallery
from holdfast.threats.table.features import Feature
from holdfast.threats.table.schema import Schema

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "age": RNG.integers(18, 80, 60),
        "income": RNG.normal(30.0, 10, 60).round(2),
        "city": RNG.choice(["Bern", "Chur", "Genf"], 60),
        "owns": RNG.random(60) < 0.5,
    }
)
LABEL = np.where(FRAME.income / 10 + FRAME.age / 30 + (FRAME.city == "Bern") > 5, "good", "bad")


@pytest.fixture(scope="module")
def pipeline() -> object:
    parts = [("n", StandardScaler(), ["age", "income", "owns"]), ("c", OneHotEncoder(), ["city"])]
    return make_pipeline(ColumnTransformer(parts), LogisticRegression()).fit(FRAME, LABEL)


def test_a_table_is_numbers_and_back(tmp_path: Path) -> None:
    """Names, types and texts come back from the numbers that an attack sees, whatever the file."""
    whole = FRAME.assign(label=LABEL)
    whole.to_csv(tmp_path / "t.csv", index=False)
    whole.to_parquet(tmp_path / "t.parquet", row_group_size=7)
    prints = set[str]()
    for data in (tmp_path / "t.csv", tmp_path / "t.parquet", whole, (FRAME, LABEL)):
        source = as_source(data) if not isinstance(data, Path) else open_data(data)
        assert source.columns is not None
        assert source.columns[2] == Column("city", "text", ("Bern", "Chur", "Genf"))
        x, _ = source.rows(0, len(source))
        back = frame(x, source.columns)
        pd.testing.assert_frame_equal(back, FRAME)
        prints.add(source.fingerprint())
    assert len(prints) == 1
    other = as_source((FRAME.assign(city=FRAME.city.replace("Genf", "Thun")), LABEL))
    assert other.fingerprint() not in prints  # the same numbers, of other texts


def test_categories_of_pandas_keep_their_order_and_whole_numbers_their_fractions() -> None:
    sizes = pd.Categorical(["S", "L"], categories=["S", "M", "L"])
    source = as_source((pd.DataFrame({"size": sizes, "n": [1, 2]}), [0, 1]))
    assert source.columns is not None
    assert source.rows(0, 2)[0].tolist() == [[0, 1], [2, 2]]
    back = frame(np.array([[1.4, 3], [9, 4]]), source.columns)
    assert back["size"].tolist() == ["M", "L"]
    assert back["size"].dtype == sizes.dtype
    assert back["n"].dtype == np.int64
    assert frame(np.array([[0, 1.5]]), source.columns)["n"].tolist() == [1.5]


def test_a_pipeline_of_named_columns_is_measured_and_verified(pipeline: object) -> None:
    """Columns in another order, one that the model does not know, texts as labels."""
    table = FRAME.assign(label=LABEL, row=range(60))[
        ["city", "row", "label", "owns", "income", "age"]
    ]
    target = holdfast.wrap(pipeline, bounds=(0, 100))
    run = holdfast.evaluate(target, table, "linf(5)", attacks=["square(steps=20)"])
    right = pipeline.predict(FRAME) == LABEL  # pyright: ignore[reportAttributeAccessIssue]
    assert float(run.clean_accuracy) == right.mean()
    assert [c.name for c in run.manifest.data.columns] == ["city", "row", "owns", "income", "age"]
    # the size of a step from one text to another is not known, so there is none
    assert any("column city stay as they are" in f.text for f in run.verdict.findings)
    ids, found = next(run.examples())
    assert np.array_equal(found[:, 0], as_source(table).rows(0, 60)[0][ids, 0])
    assert holdfast.verify(run, target, table) == []
    renamed = table.rename(columns={"row": "line"})
    assert any("their columns are not" in said for said in holdfast.verify(run, target, renamed))


def test_examples_come_back_as_the_table_that_went_in(pipeline: object) -> None:
    """In l0 a text may become any other of its column."""
    table = FRAME.set_axis(range(100, 160))
    mask = [False, False, True, False]
    threat = holdfast.Threat.l0(1, mask=mask)
    target = holdfast.wrap(pipeline, bounds=(0, 100))
    result = holdfast.attack(target, table, LABEL, threat, "sparsers(steps=20)")
    assert result.success.any()
    changed = result.x_adv.loc[result.success]
    assert (changed.dtypes == table.dtypes).all()
    assert set(changed.city) <= {"Bern", "Chur", "Genf"}
    assert (changed.city != table.city[result.success]).all()
    assert (pipeline.predict(changed) != LABEL[result.success]).all()  # pyright: ignore


def test_trees_are_read_by_the_names_of_their_columns() -> None:
    x = FRAME[["age", "income", "owns"]]
    forest = RandomForestClassifier(3, max_depth=3, random_state=0).fit(x, LABEL)
    target = holdfast.wrap(forest, bounds=(0, 100)).of_table(
        as_source((x[["owns", "age", "income"]], LABEL)).columns or ()
    )
    assert set(trees_of(target).feature.ravel()) <= {0, 1, 2}


def test_what_does_not_fit_is_one_sentence(pipeline: object) -> None:
    target = holdfast.wrap(pipeline, bounds=(0, 100))
    refused = [
        (FRAME.rename(columns={"city": "town"}), "was fitted on a column 'city'"),
        (FRAME.assign(city=["Rom", *FRAME.city[1:]]), "unknown categories"),
        (FRAME.assign(city=[None, *FRAME.city[1:]]), "row 0 of x of arrays has no value"),
        (FRAME.assign(day=pd.Timestamp("2026-01-01")), "expected numbers or texts"),
    ]
    for table, words in refused:
        with pytest.raises(InputError, match=words):
            holdfast.attack(target, table, LABEL, "linf(1)")
    net = nn.Linear(4, 2)
    with pytest.raises(InputError, match="column city holds texts, but the model takes numbers"):
        holdfast.attack(holdfast.wrap(net, bounds=(0, 100)), FRAME, LABEL, "linf(1)")
    texts = FRAME[["city"]]
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(texts, LABEL)
    with pytest.raises(InputError, match="lets nothing change: column city of arrays hold"):
        holdfast.attack(model, texts, LABEL, "linf(1)")


def test_one_eps_for_columns_of_very_different_ranges_is_found() -> None:
    """The narrow column moves by many times its range and the wide one by nothing: both are named,
    and the figure is what those changes do."""
    rng = np.random.default_rng(1)
    wide = rng.uniform(0, 4000, 80)
    table = pd.DataFrame({"area": wide, "smoothness": rng.uniform(0, 0.1, 80), "same": 1.0})
    label = (wide > 2000).astype(int)
    model = DecisionTreeClassifier(max_depth=1).fit(table, label)  # of the area
    target = holdfast.wrap(model, bounds=(0, 4000))
    run = holdfast.evaluate(target, (table, label), "linf(0.5)", attacks=["square(steps=20)"])
    (found,) = [f for f in run.verdict.findings if f.check == "one_size"]
    assert found.severity == "amber"
    said = r"it is 5(\.\d)? times the range of smoothness, and 0\.013 % of that of area\."
    assert re.search(said, found.text)
    assert run.verdict.status == "upper-bound"
    assert holdfast.verify(run, target, (table, label)) == []
    scaled = holdfast.Threat.linf(0.5, scale=table.std().to_numpy() + 1e-3)
    again = holdfast.evaluate(target, (table, label), scaled, attacks=["square(steps=20)"])
    assert "one_size" not in {f.check for f in again.verdict.findings}
    assert again.robust_accuracy < run.robust_accuracy


def test_the_report_shows_rows_before_and_after(pipeline: object, tmp_path: Path) -> None:
    """Only the columns that changed, in the table's own values; and which changed most."""
    mask = [False, True, True, False]
    target = holdfast.wrap(pipeline, bounds=(0, 100))
    threat = holdfast.Threat.l0(1, mask=mask)
    out = tmp_path / "run"
    run = holdfast.evaluate(target, (FRAME, LABEL), threat, attacks=["sparsers(steps=20)"], out=out)
    page = run.report().read_text()
    kept, columns = read_gallery(out), run.manifest.data.columns
    assert len(kept["id"]) == run.manifest.metrics.counts["broken"] > 12  # all of them
    found = {one.name: one for one in most_changed(columns, kept["x"], kept["x_adv"])}
    differs = kept["x"] != kept["x_adv"]
    assert found["income"].share == pytest.approx(differs[:, 1].mean())
    size = np.abs(kept["x"] - kept["x_adv"])[differs[:, 1], 1]
    assert float(found["income"].change) == pytest.approx(np.median(size), rel=1e-3)
    assert re.fullmatch(r"(Bern|Chur|Genf) → (Bern|Chur|Genf) \(\d+ times\)", found["city"].change)
    assert found["city"].change in page
    assert "age" not in found
    assert holdfast.verify(run, target, (FRAME, LABEL)) == []


def test_a_schema_has_the_columns_and_the_texts_of_the_table(pipeline: object) -> None:
    """In its order; then a text is a category that an attack may change."""
    towns = ("Bern", "Chur", "Genf")
    features = [
        Feature("age", mutability="fixed"),
        Feature("income", bounds=(0, 100)),
        Feature("city", type="category", values=towns, scale=1),
        Feature("owns", mutability="fixed"),
    ]
    target = holdfast.wrap(pipeline, bounds=(0, 100))

    def attacked(features: list[Feature]) -> holdfast.AttackResult:
        threat = holdfast.Threat.linf(1, schema=Schema(features))
        return holdfast.attack(target, FRAME, LABEL, threat, "square(steps=20)")

    result = attacked(features)
    assert result.success.any()
    assert (result.x_adv.city != FRAME.city).any()
    assert set(result.x_adv.city) <= set(towns)
    with pytest.raises(InputError, match="the schema has the column income where"):
        attacked([features[1], features[0], *features[2:]])
    features[2] = Feature("city", type="category", values=("Bern", "Chur"), scale=1)
    with pytest.raises(InputError, match="holds the texts Bern, Chur, Genf, and the schema has"):
        attacked(features)


@pytest.mark.parametrize("kind", ["forest", "network"])
def test_the_trap_of_columns_in_units_of_their_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line: one eps for all columns is found, by the names of these, and a schema
    that is inferred gives the figure that scaled rows have."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    x = pd.DataFrame({"area": rng.uniform(0, 4000, 200), "shape": rng.uniform(0, 0.1, 200)})
    y = (x.area / 4000 + x["shape"] / 0.1 > 1).astype(int)
    made = RandomForestClassifier(5, max_depth=6, random_state=0)
    if kind == "network":
        net = MLPClassifier((8,), max_iter=400, random_state=0, learning_rate_init=0.02)
        made = make_pipeline(MinMaxScaler(), net)
    skops.io.dump(made.fit(x, y), "model.skops")
    x, y = x[:40], y[:40]
    x.assign(label=y).to_csv("rows.csv", index=False)
    assert command("schema", "infer", "rows.csv").exit_code == 0
    asked = ("evaluate", "model.skops", "rows.csv", "--threat", "linf(0.1)")
    at_once = ("--bounds", "0,4000", "--attack", "square(steps=5)", "--out", "raw")
    scaled = ("--schema", "schema.toml", "--protocol", "quick", "--out", "own")
    assert command(*asked, *at_once).exit_code == command(*asked, *scaled).exit_code == 0
    raw, own = holdfast.Run("raw"), holdfast.Run("own")
    (found,) = [f for f in raw.verdict.findings if f.check == "one_size"]
    assert re.search(r"the range of shape, and 0\.002\d % of that of area\.", found.text)
    assert "one_size" not in {f.check for f in own.verdict.findings}
    # the worst corner of each row: both columns push its sum across 1
    push = 0.1 * (x.max() - x.min()).to_numpy() * np.where(y == 1, -1, 1)[:, None]
    corner = (x + push).clip(x.min(), x.max(), axis=1)
    right = ((made.predict(corner) == y) & (made.predict(x) == y)).mean()
    assert right - 0.1 <= float(own.robust_accuracy) <= right + 1e-9
    assert float(own.robust_accuracy) < float(own.clean_accuracy) - 0.1
