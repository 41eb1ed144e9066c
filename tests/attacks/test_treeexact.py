"""The nearest example of ensembles of trees: against a mixed-integer program, and the laws that the
networks of tests/laws cannot show."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import case
from helpers.models import bent, pick, same, wrap
from helpers.tree_program import milp_distance
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

import holdfast
from holdfast.attacks import parse, run
from holdfast.bounds.trees import exact
from holdfast.certification import Ladder
from holdfast.errors import InputError
from holdfast.targets import Target, load
from holdfast.targets.trees import Nodes, read
from holdfast.threats.table.schema import Schema
from holdfast.threats.threat import Targeted, Threat

RNG = np.random.default_rng(0)
X = RNG.random((200, 4)).astype(np.float32)
Y = (X[:, 0] > 0.4).astype(int) + (X[:, 1] + 0.3 * X[:, 2] > 0.6)
ROWS, LABELS = torch.from_numpy(X[:30]), torch.from_numpy(Y[:30])
INF = float("inf")


def boosted(**options: Any) -> Target:
    return holdfast.wrap(
        GradientBoostingClassifier(n_estimators=8, random_state=0).fit(X, Y), **options
    )


def distances(target: Target, threat: Threat, **options: Any) -> np.ndarray:
    result = run(parse("treeexact"), target, ROWS, LABELS, threat, **options)
    return result.size.numpy()


def test_it_finds_what_any_other_attack_finds_and_nothing_nearer_is_missed() -> None:
    target = boosted()
    size = distances(target, Threat.linf(INF))
    other = run(parse("rays(steps=20)"), target, ROWS, LABELS, Threat.linf(INF)).size.numpy()
    assert (size <= other + 1e-7).all()
    for eps in (0.02, 0.05, 0.2):  # and a finite eps changes nothing but what counts
        inside = distances(target, Threat.linf(eps))
        assert ((inside < INF) == (size <= eps)).all()
        np.testing.assert_array_equal(inside[size <= eps], size[size <= eps])


def test_a_goal_is_reached_or_cannot_be() -> None:
    target = boosted()
    aims = (LABELS + 1) % 3
    size = distances(target, Threat.linf(INF, target=aims))
    other = run(
        parse("rays(steps=20)"), target, ROWS, LABELS, Threat.linf(INF, target=aims)
    ).size.numpy()
    assert (size <= other + 1e-7).all()
    untargeted = np.minimum(
        size, distances(target, Threat.linf(INF, goal=Targeted((LABELS + 2) % 3)))
    )
    np.testing.assert_array_equal(untargeted, distances(target, Threat.linf(INF)))


def test_rows_are_independent_and_pay_for_their_own_questions() -> None:
    target, threat = boosted(), Threat.linf(0.2)
    whole = run(parse("treeexact"), target, ROWS, LABELS, threat)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    same(run(parse("treeexact"), target, ROWS[order], LABELS[order], threat), pick(whole, order))
    for i in range(3):
        at = torch.tensor([i])
        same(run(parse("treeexact"), target, ROWS[at], LABELS[at], threat), pick(whole, at))
    poor = run(parse("treeexact"), target, ROWS, LABELS, threat, budget=1)
    assert bool((poor.forwards <= 1).all())


def test_a_search_that_is_cut_short_still_finds_an_example() -> None:
    x, y = RNG.random((300, 12)).astype(np.float32), RNG.integers(0, 3, 300)
    target = holdfast.wrap(RandomForestClassifier(12, max_depth=6, random_state=0).fit(x, y))
    few, all_ = (
        holdfast.attack(target, x[:8], y[:8], "linf(inf)", f"treeexact(steps={n})")
        for n in (1, 2000)
    )
    assert (few.success | few.wrong).all()
    few, all_ = (one.size[~few.wrong] for one in (few, all_))
    assert (few >= all_).all()
    assert (few > all_).any()


def test_a_model_without_trees_is_refused() -> None:
    with pytest.raises(InputError, match="no ensemble of trees"):
        holdfast.attack(wrap(bent()), torch.rand(2, 1, 4, 4), [0, 1], "linf(0.1)", "treeexact")


def nodes(tree: dict[str, Any], width: float, low: float) -> SimpleNamespace:
    """A tree of an XGBoost dump as scikit-learn has its own, the inputs as x * width + low."""
    flat, at = [tree], {tree["nodeid"]: 0}
    for node in flat:
        for child in node.get("children", ()):
            at[child["nodeid"]] = len(flat)
            flat.append(child)
    inner = [n for n in flat if "split" in n]
    n = len(flat)
    own = SimpleNamespace(
        node_count=n, feature=np.full(n, -2), threshold=np.full(n, -2.0),
        children_left=np.full(n, -1), children_right=np.full(n, -1), value=np.zeros((n, 1, 2)),
    )  # fmt: skip
    for node in inner:
        i = at[node["nodeid"]]
        limit = np.float32(node["split_condition"] * width + low)
        own.feature[i], own.threshold[i] = (
            int(node["split"][1:]),
            np.nextafter(limit, -np.float32(9)),
        )
        own.children_left[i], own.children_right[i] = at[node["yes"]], at[node["no"]]
    leaf = np.array([node.get("leaf", 0.0) for node in flat])
    own.value[:, 0] = np.stack([0.5 - leaf / 2, 0.5 + leaf / 2], 1)
    return SimpleNamespace(tree_=own)


@pytest.mark.cases
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the case's loader leaves a file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_masks_and_scales_against_a_mixed_integer_program(cases: Path) -> None:
    trees, x, y = case(cases, "trees_lt_attack").load("breast_cancer")
    target = load(str(cases / "trees_lt_attack" / "breast_cancer_rf.json"))
    known = json.loads((cases / "trees_lt_attack" / "exact_linf_breast_cancer.json").read_text())
    forest = [nodes(tree, 1.0, 0.0) for tree in trees]
    rng, found = np.random.default_rng(1), 0
    for row in [one[0] for one in known[:10]]:
        scale = rng.choice([0.0, 0.5, 1.0, 2.0], x.shape[1])
        one, label = torch.from_numpy(x[[row]]).float(), torch.tensor([int(y[row])])
        threat = Threat.linf(INF, scale=torch.from_numpy(scale))
        size = float(run(parse("treeexact"), target, one, label, threat).size[0])
        nearest = milp_distance(forest, one[0].numpy(), int(y[row]), scale, (0, 1))
        assert size == pytest.approx(nearest, abs=1e-6)
        found += size < INF
    assert found >= 5


@pytest.mark.cases
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the case's loader leaves a file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whole_numbers_against_a_mixed_integer_program(cases: Path) -> None:
    """The features as they were counted, 1 to 10, on a forest whose splits are moved likewise."""
    dump, x, _ = case(cases, "trees_lt_attack").load("breast_cancer")
    forest = [nodes(tree, 9.0, 1.0) for tree in dump]
    columns = [
        Nodes(t.feature, np.float32(t.threshold), t.children_left, t.children_right, t.value[:, 0])
        for t in (own.tree_ for own in forest)
    ]
    trees = read(columns, lambda at: _added(columns, at), x.shape[1], "it")
    rng, x = np.random.default_rng(2), (x * 9 + 1).round().astype(np.float32)
    for row in range(10):
        scale, whole = rng.choice([0.0, 1.0, 2.0], x.shape[1]), rng.random(x.shape[1]) < 0.6
        label = trees.scores(x[[row]]).argmax(1)
        limits = {"scale": scale, "whole": whole}
        labels = lambda at, rows: trees.scores(at).argmax(1)  # noqa: E731
        (found,) = exact(trees, x[[row]], label, labels, (1, 10), **limits)
        known = milp_distance(forest, x[row], int(label[0]), scale, (1, 10), whole)
        assert found.exact
        assert found.size == pytest.approx(known, abs=1e-5)
        if found.point is not None:
            assert (found.point == found.point.round())[whole].all()


def _added(trees: list[Nodes], x: np.ndarray) -> np.ndarray:
    """The sum of the leaves of inputs x [n, f]: [n, k]."""
    total = np.zeros((len(x), trees[0].value.shape[1]))
    for tree in trees:
        at = np.zeros(len(x), int)
        while (inner := tree.feature[at] >= 0).any():
            left = x[np.arange(len(x)), tree.feature[at]] <= tree.limit[at]
            at = np.where(inner, np.where(left, tree.left[at], tree.right[at]), at)
        total += tree.value[at]
    return total


# -- Tables


SCHEMA = Schema.parse("""
[features]
count = { type = "integer", bounds = [0, 20], mutability = "increase" }
income = { bounds = [0, 1000], change = [-300, 1000] }
age = { mutability = "fixed" }
owns = { type = "binary", scale = 3 }
debts = { type = "integer", bounds = [0, 9], mutability = "decrease", scale = 5 }
rate = { bounds = [-1, 1] }
""")


def loans(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    columns = [
        rng.integers(0, 21, n), rng.random(n) * 1000, rng.integers(18, 80, n),
        rng.integers(0, 2, n), rng.integers(0, 10, n), rng.uniform(-1, 1, n),
    ]  # fmt: skip
    x = np.stack(columns, 1).astype(np.float32)
    return x, (x / [20, 1000, 62, 2, 9, 2]).sum(1) + rng.normal(0, 0.1, n) > 2.5


def one_margin(model: GradientBoostingClassifier) -> list[SimpleNamespace]:
    """Trees of boosting as a forest of the same margins."""
    found = []
    for (grown,) in model.estimators_:
        leaf = model.learning_rate * grown.tree_.value[:, 0, 0]
        names = ("node_count", "feature", "threshold", "children_left", "children_right")
        own = SimpleNamespace(**{name: getattr(grown.tree_, name) for name in names})
        own.value = np.stack([0.5 - leaf / 2, 0.5 + leaf / 2], 1)[:, None]
        found.append(SimpleNamespace(tree_=own))
    return found


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_a_schema_against_a_mixed_integer_program(kind: str) -> None:
    """Scales, whole numbers, columns that are fixed or only grow, and limits of the row: attack,
    proof and program agree."""
    model: Any = RandomForestClassifier(6, max_depth=4, random_state=0)
    x, y = loans(300)
    if kind == "boosting":
        model = GradientBoostingClassifier(n_estimators=8, init="zero", random_state=0)
    model.fit(x, y)
    target, rows, right = holdfast.wrap(model), x[:10], model.predict(x[:10]).astype(int)
    forest: Any = one_margin(model) if kind == "boosting" else model.estimators_
    threat = Threat.linf(INF, schema=SCHEMA)
    sizes = holdfast.attack(target, rows, right, threat, "treeexact").size
    whole, scale = np.array([1, 0, 0, 1, 1, 0], bool), np.array([20, 1000, 0, 3, 5, 2.0])
    known = np.array([
        milp_distance(forest, row, int(label), scale, sides_of(row), whole)
        for row, label in zip(rows, right, strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(np.nan_to_num(sizes, nan=INF), known, atol=1e-6)
    assert np.isfinite(known).sum() >= 5
    eps = float(np.median(known)) * 1.001
    run = holdfast.evaluate(
        target, (rows, right), threat.at(eps), attacks=["treeexact"], certifier=Ladder()
    )
    assert (
        run.to_pandas()["status"].to_numpy() == np.where(known < eps, "broken", "certified")
    ).all()


def sides_of(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest row that the schema allows."""
    count, income, age, _, debts, _ = row.tolist()
    return (
        np.array([count, max(income - 300, 0), age, 0, 0, -1]),
        np.array([20, 1000, age, 1, debts, 1]),
    )


def test_values_against_every_row_that_there_is() -> None:
    """Ordinals and categories go from value to value, as the schema lists them."""
    schema = Schema.parse("""
    [features]
    grade = { type = "ordinal", values = [1, 2, 5, 20], scale = 4 }
    town = { type = "category", values = ["Bern", "Chur", "Genf"] }
    count = { type = "integer", bounds = [0, 4] }
    """)
    every = np.array(list(itertools.product((1, 2, 5, 20), range(3), range(5))), np.float32)
    y = RNG.integers(0, 2, len(every))
    model = RandomForestClassifier(5, random_state=0).fit(every, y)
    decided, unit = model.predict(every), np.array([4.0, 2, 4])
    threat = Threat.linf(INF, schema=schema)
    result = holdfast.attack(holdfast.wrap(model), every, decided, threat, "treeexact")
    sizes = abs(every[:, None] - every[None]) / unit
    sizes = np.where(decided[:, None] != decided[None], sizes.max(2), INF).min(1)
    np.testing.assert_allclose(result.size, sizes, atol=1e-6)


GROUPED = """
[features]
income = { bounds = [0, 100] }
loan = { bounds = [0, 100] }
rent = { type = "binary", scale = 10 }
owns = { type = "binary", scale = 10 }
other = { type = "binary", scale = 10 }
ratio = { bounds = [0, 100] }

[groups]
home = ["rent", "owns", "other"]

[relations]
most = "loan <= 2 * income"

[derived]
ratio = "loan / income"
"""


def test_groups_and_relations_are_searched_without_and_repaired() -> None:
    """Each example found is legal; none is found where it is proved that there is none."""
    rng = np.random.default_rng(3)
    income = rng.uniform(10, 100, 300)
    loan = rng.uniform(0, np.minimum(2 * income, 100))
    home = np.eye(3)[rng.integers(0, 3, 300)]
    x = np.column_stack([income, loan, home, loan / income]).astype(np.float32)
    y = x[:, 5] + x[:, 2] + rng.normal(0, 0.1, 300) > 1
    model = RandomForestClassifier(6, max_depth=4, random_state=0).fit(x, y)
    schema = Schema.parse(GROUPED)
    rows, right = x[:15], model.predict(x[:15]).astype(int)
    for eps, least in ((0.02, {"certified": 4}), (0.1, {"broken": 10})):
        run = holdfast.evaluate(
            holdfast.wrap(model), (rows, right), Threat.linf(eps, schema=schema),
            attacks=["treeexact(steps=100)", "genetic(steps=5)"], certifier=Ladder(),
        )  # fmt: skip
        assert run.verdict.status != "unreliable"
        counts: Any = run.manifest.metrics.counts
        assert all(counts[name] >= n for name, n in least.items())
    found = run.to_pandas()
    assert (found["broken_by"] == 0).sum() >= 10
    ids, changed = next(run.examples())
    assert not schema.violations(torch.as_tensor(changed), torch.from_numpy(rows[ids])).any()
