"""The nearest example of ensembles of trees: against a mixed-integer program, and the laws that the
networks of tests/laws cannot show."""

from __future__ import annotations

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
from holdfast.errors import InputError
from holdfast.targets import Target, load
from holdfast.targets.trees import Nodes, read
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
        labels = lambda at: trees.scores(at).argmax(1)  # noqa: E731
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
