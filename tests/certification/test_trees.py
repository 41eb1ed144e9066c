"""Ensembles of trees: read as their libraries decide, and bounded without a false proof."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import case
from helpers.tree_program import milp_distance
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier

import holdfast
from holdfast.bounds import trees as bounds
from holdfast.bounds.tree_models import trees_of
from holdfast.bounds.trees import Nearest, exact, lower, proved
from holdfast.errors import InputError
from holdfast.targets import Target, load, wrap
from holdfast.targets.trees import Nodes, Trees, at_most, below, read

RNG = np.random.default_rng(0)
X = RNG.random((150, 4)).astype(np.float32)
X[:, 3] = (4 * X[:, 3]).round() / 4  # few values, so that inputs lie on limits
X[RNG.random(X.shape) < 0.2] = 0
Y = (X[:, 0] > 0.4).astype(int) + (X[:, 1] > 0.6)
KINDS: dict[str, Callable[[], Any]] = {
    "tree": lambda: DecisionTreeClassifier(max_depth=4, random_state=0),
    "forest": lambda: RandomForestClassifier(8, random_state=0),
    "shallow forest": lambda: RandomForestClassifier(8, max_depth=3, random_state=0),
    "extra trees": lambda: ExtraTreesClassifier(6, random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=6, random_state=0),
    "hist boosting": lambda: HistGradientBoostingClassifier(max_iter=6, min_samples_leaf=5),
}


def model_of(kind: str, classes: int, **options: Any) -> Any:
    y = np.minimum(Y, classes - 1)
    if kind in KINDS:
        return KINDS[kind]().fit(X, y)
    if kind == "catboost":
        catboost = pytest.importorskip("catboost")
        quiet = {"verbose": 0, "allow_writing_files": False, "thread_count": 1}
        return catboost.CatBoostClassifier(iterations=8, depth=3, **quiet, **options).fit(X, y)
    library, _, rest = kind.partition(" ")
    module = pytest.importorskip(library)
    if rest == "estimator":
        name = {"xgboost": "XGBClassifier", "lightgbm": "LGBMClassifier"}[library]
        quiet = {"xgboost": {}, "lightgbm": {"verbose": -1, "min_child_samples": 5}}[library]
        return getattr(module, name)(n_estimators=6, n_jobs=1, **quiet).fit(X, y)
    if library == "xgboost":
        goal = {"objective": "binary:logistic"}
        if classes > 2:
            goal = {"objective": "multi:softprob", "num_class": classes}
        depth = {} if rest == "gblinear" else {"max_depth": 4}
        booster = {"booster": rest or "gbtree", "nthread": 1}
        return module.train({**goal, **booster, **depth, **options}, module.DMatrix(X, y), 6)
    goal = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": 3}
    bagging = {"bagging_fraction": 0.5, "bagging_freq": 1, "min_data_in_leaf": 5, "verbose": -1}
    return module.train(
        {**goal, **bagging, "boosting": rest or "gbdt", "num_threads": 1, **options},
        module.Dataset(X, y),
        6,
    )


ALL = [
    *KINDS, "catboost", "xgboost", "xgboost dart", "xgboost estimator",
    "lightgbm", "lightgbm dart", "lightgbm rf", "lightgbm estimator",
]  # fmt: skip


def decisions(target: Target) -> bounds.Labels:
    return lambda points, rows=None: target.labels(torch.from_numpy(points)).numpy()


def legal(found: Nearest, row: np.ndarray, scale: Any, box: Any, eps: float = math.inf) -> bool:
    """Whether a point is within its size, the box and the mask, by arithmetic of its own."""
    assert found.point is not None
    d = np.abs(found.point.astype(np.float64) - row.astype(np.float64))
    scale = np.broadcast_to(scale, row.shape)
    size = float((d[scale > 0] / scale[scale > 0]).max(initial=0))
    inside = ((box[0] <= found.point) & (found.point <= box[1])).all()
    return bool(inside and (d[scale == 0] == 0).all() and size == found.size <= eps)


# -- Reading the libraries' own models


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ALL)
def test_trees_decide_as_their_library_does(kind: str, classes: int) -> None:
    """On inputs that lie on limits, one float32 number off them, and anywhere."""
    target = wrap(model_of(kind, classes))
    trees = trees_of(target)
    ends = np.concatenate([trees.low, trees.high]).ravel()
    ends = ends[np.isfinite(ends)]
    drawn = np.random.default_rng(1).choice(ends, (400, 4)).astype(np.float32)
    for x in (drawn, np.nextafter(drawn, np.float32(np.inf)), -drawn, 1 - drawn):
        z = trees.scores(x)
        top = np.sort(z, 1)
        clear = top[:, -1] - top[:, -2] > trees.rounding
        assert clear.mean() > 0.9 or trees.rounding == 0
        clear |= trees.rounding == 0
        assert (decisions(target)(x) == z.argmax(1))[clear].all()


def test_a_model_that_stopped_early_is_read_as_it_predicts() -> None:
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=40, n_jobs=1, early_stopping_rounds=2)
    noise = np.random.default_rng(0).integers(0, 2, 150)
    model.fit(X[:100], noise[:100], eval_set=[(X[100:], noise[100:])], verbose=0)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    assert trees_of(wrap(model)).tree.max() == model.best_iteration


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def test_what_is_no_sum_of_boxes_is_refused() -> None:
    with pytest.raises(InputError, match="no ensemble of trees"):
        trees_of(wrap(lambda x: x, shape=(4,)))
    with pytest.raises(InputError, match="without preprocess"):
        trees_of(wrap(model_of("forest", 2), preprocess=halved, shape=(4,)))
    model = HistGradientBoostingClassifier(categorical_features=[3], max_iter=2)
    with pytest.raises(InputError, match="categor"):
        trees_of(wrap(model.fit(X, X[:, 3] == 0.25)))
    start = GradientBoostingClassifier(n_estimators=2, init=DecisionTreeClassifier(max_depth=2))
    with pytest.raises(InputError, match="starts from another estimator"):
        trees_of(wrap(start.fit(X, np.minimum(Y, 1))))


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("xgboost gblinear", {}, "linear"),
        ("lightgbm", {"linear_tree": True}, "do not add up"),
        ("lightgbm", {"zero_as_missing": True}, "zeros for missing"),
        ("catboost", {"grow_policy": "Lossguide"}, "not symmetric"),
    ],
)
def test_kinds_of_trees_that_are_not_supported(
    kind: str, options: dict[str, Any], text: str
) -> None:
    model = model_of(kind, 2, **options)
    with pytest.raises(InputError, match=text):
        trees_of(wrap(model))


def test_a_reading_that_disagrees_with_the_library_is_refused() -> None:
    stump = Nodes(
        *map(np.array, ([0, -1, -1], [0.5, 0, 0], [1, 0, 0], [2, 0, 0])), _column(0, 1, 2)
    )
    step = lambda x: np.where(x[:, 0] <= np.float32(0.5), 1.0, 2.0)  # noqa: E731
    assert read([stump], step, 1, "it").rounding == 0
    for wrong in (
        lambda x: np.where(x[:, 0] < np.float32(0.5), 1.0, 2.0),
        lambda x: step(x) + (x[:, 1] > np.float32(0.3)),  # of a feature that no tree asks about
        lambda x: x[:, 0] * np.nan,
    ):
        with pytest.raises(InputError, match="do not add up"):
            read([stump], wrong, 2, "it")


def _column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_limits_are_the_last_float32_number_on_the_left() -> None:
    third = np.float32(1 / 3)  # above 1/3
    assert at_most(1 / 3) == below(third) < np.float64(1 / 3) < third
    assert at_most(np.float64(third)) == third
    assert at_most(np.array([1e300, np.inf])).tolist() == [np.finfo(np.float32).max, np.inf]
    assert below(0.0) < 0 < -below(0.0)


# -- Small forests, against every cell of their input space


@st.composite
def forests(draw: st.DrawFn) -> tuple[Trees, np.ndarray, np.ndarray, tuple[float, float]]:
    """A forest, a row, the scale of its features, and a box; votes or numbers for values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features, k, votes = draw(st.integers(1, 3)), draw(st.integers(2, 3)), draw(st.booleans())
    trees = [_grown(rng, features, k, votes) for _ in range(draw(st.integers(1, 5)))]

    def ask(x: np.ndarray) -> np.ndarray:
        return np.array([sum(_leaf(tree, row) for tree in trees) for row in x])

    box = draw(st.sampled_from([(0.0, 1.0), (0.2, 0.7), (-1.0, 2.0)]))
    row = rng.choice(np.linspace(0.2, 0.7, 11), features).astype(np.float32)
    row = np.clip(row, *np.float32(box).tolist()).astype(np.float32)
    scale = rng.choice([0.0, 0.5, 1.0, 1.0, 2.0], features)
    found = read(trees, ask, features, "it")
    assert (found.rounding == 0) == votes
    return found, row, scale, (float(min(box[0], row.min())), float(max(box[1], row.max())))


def _grown(rng: np.random.Generator, features: int, k: int, votes: bool) -> Nodes:
    """A complete tree of depth 2 or 3 with limits on a grid of tenths."""
    inner = 2 ** rng.integers(2, 4) - 1
    n = 2 * inner + 1
    at = np.arange(n)
    feature = np.where(at < inner, rng.integers(0, features, n), -1)
    limit = (rng.integers(0, 11, n) / 10).astype(np.float32)
    value = rng.normal(size=(n, k))
    if votes:
        value = np.eye(k)[rng.integers(0, k, n)]
    return Nodes(feature, limit, 2 * at + 1, 2 * at + 2, value * (at >= inner)[:, None])


def _leaf(tree: Nodes, row: np.ndarray) -> np.ndarray:
    at = 0
    while tree.feature[at] >= 0:
        left = row[tree.feature[at]] <= tree.limit[at]
        at = int((tree.left if left else tree.right)[at])
    return tree.value[at]


def cells(
    trees: Trees, row: np.ndarray, scale: np.ndarray, box: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each cell within which no tree changes its leaf: its nearest legal point to a row, and how
    far that is. Along each feature it is the row's own number, or one at an end of a cell."""
    ends = np.concatenate([trees.low.ravel(), trees.high.ravel()])
    ends = np.unique(ends[(ends >= box[0]) & (ends <= box[1])])
    axes = [
        np.unique(np.append(ends, value)) if s > 0 else np.array([value])
        for value, s in zip(row, scale, strict=True)
    ]
    points = np.array(list(itertools.product(*axes)), np.float32)
    gap = np.abs(points.astype(np.float64) - row)
    return points, (gap / np.where(scale > 0, scale, 1)).max(1)


@given(forests(), st.sampled_from([0.0, 0.1, 0.15, 0.3, 1.0]))
def test_bounds_and_distances_against_every_cell(
    forest: tuple[Trees, np.ndarray, np.ndarray, tuple[float, float]], eps: float
) -> None:
    trees, row, scale, box = forest
    points, size = cells(trees, row, scale, box)
    z = trees.scores(points)
    for y in range(z.shape[1]):
        one, label = row[None], np.array([y])
        wrong = z.argmax(1) != y
        least = float(size[wrong].min(initial=math.inf))
        found = exact(
            trees, one, label, lambda x, rows: trees.scores(x).argmax(1), box, scale=scale
        )[0]
        assert found.exact
        assert found.safe == found.size == least
        assert found.point is None or legal(found, row, scale, box)

        found = exact(
            trees, one, label, lambda x, rows: trees.scores(x).argmax(1), box, scale=scale, eps=eps
        )[0]
        assert found.exact
        assert (found.safe > eps) == (least > eps)
        assert found.size == (least if least <= eps else math.inf)

        inside = z[size <= eps]
        true = (inside[:, [y]] - inside).min(0)
        ladder = [lower(trees, one, label, eps * scale, box, merged=m)[0] for m in (0, 8, 10**6)]
        others = np.arange(len(true)) != y
        for loose, tight in itertools.pairwise([*ladder, true]):
            assert (loose <= tight + 1e-9)[others].all()
        np.testing.assert_allclose(ladder[-1][others], true[others], atol=1e-9)  # all merged
        for margins in ladder[:2]:
            assert least > eps or not proved(trees, margins[None], label)[0]
        if not trees.rounding:
            assert proved(trees, ladder[-1][None], label)[0] == (least > eps)


def test_equal_votes_go_to_the_first_class() -> None:
    """A tie breaks class 1 and not class 0, exactly."""
    sides = [_stump(0, 0.5, (1, 0), (0, 1)), _stump(1, 0.5, (1, 0), (0, 1))]
    ask = lambda x: np.array([sum(_leaf(t, row) for t in sides) for row in x])  # noqa: E731
    trees = read(sides, ask, 2, "it")
    labels = lambda x, rows: trees.scores(x).argmax(1)  # noqa: E731
    one, two = np.float32([[0.4, 0.2]]), np.float32([[0.6, 0.8]])
    step = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert exact(trees, one, np.array([0]), labels, (0, 1))[0].size == step - np.float32(0.2)
    assert exact(trees, two, np.array([1]), labels, (0, 1))[0].size == np.float32(0.6) - 0.5
    for x, y, holds in ((one, 0, True), (two, 1, False)):
        margins = lower(trees, x, np.array([y]), 0.2, (0, 1))
        assert margins[0, 1 - y] == 0
        assert proved(trees, margins, np.array([y]))[0] == holds


def _stump(feature: int, limit: float, left: tuple[int, int], right: tuple[int, int]) -> Nodes:
    value = np.array([(0, 0), left, right], np.float64)
    columns = np.array([[feature, -1, -1], [1, 0, 0], [2, 0, 0]])
    return Nodes(columns[0], np.float32([limit, 0, 0]), columns[1], columns[2], value)


# -- Models of the libraries


@pytest.mark.parametrize("kind", ["forest", "boosting", "xgboost", "lightgbm", "catboost"])
@pytest.mark.parametrize("classes", [2, 3])
def test_nothing_certified_is_broken_and_every_point_breaks(kind: str, classes: int) -> None:
    """By 10,000 points of the ball, half of them on limits, and by attacks that ask for labels."""
    target, eps, rng = wrap(model_of(kind, classes)), 0.08, np.random.default_rng(2)
    trees = trees_of(target)
    x, y = X[:12], decisions(target)(X[:12])
    reach = eps * (1 + 1e-6) + target.bounds.ulp
    bound = proved(trees, lower(trees, x, y, reach, (0, 1), merged=64), y)
    found = exact(trees, x, y, decisions(target), (0, 1), eps=reach)
    certified = np.array([one.safe > reach for one in found])
    assert all(one.exact for one in found)
    assert (certified | ~bound).all()
    assert certified.any()
    ends = np.unique(np.concatenate([trees.low.ravel(), trees.high.ravel()]))
    points = []
    for row, label, one, safe in zip(x, y, found, certified, strict=True):
        if not safe:
            assert legal(one, row, 1.0, (0, 1), reach)
            assert decisions(target)(one.point[None])[0] != label
            continue
        spread = rng.uniform(np.maximum(row - eps, 0), np.minimum(row + eps, 1), (5000, 4))
        within = [ends[(abs(ends - v) <= eps) & (ends >= 0) & (ends <= 1)] for v in row]
        limits = [rng.choice(np.append(w, v), 5000) for w, v in zip(within, row, strict=True)]
        points += [spread, np.stack(limits, 1)]
    asked = decisions(target)(np.concatenate(points).astype(np.float32))
    assert (asked == np.repeat(y[certified], 10_000)).all()
    for attack in ("square(steps=40)", "rays(steps=40)"):
        result = holdfast.attack(target, x, y, f"linf({eps})", attack)
        assert not (np.asarray(result.success) & certified).any()


def test_a_row_out_of_time_says_what_was_proved_so_far() -> None:
    target = wrap(model_of("xgboost", 3))
    trees, y = trees_of(target), decisions(target)(X[:20])
    whole = exact(trees, X[:20], y, decisions(target), (0, 1))
    short = exact(trees, X[:20], y, decisions(target), (0, 1), seconds=-1.0)
    assert all(not one.exact and one.point is None for one in short)
    assert all(one.safe <= other.size for one, other in zip(short, whole, strict=True))


def test_rows_and_models_that_do_not_fit_are_never_certified() -> None:
    target = wrap(model_of("xgboost", 2))
    trees = trees_of(target)
    x = np.repeat(X[:1], 3, 0)
    x[0, 0], x[1, 1] = np.nan, 1.5
    y = decisions(target)(np.repeat(X[:1], 3, 0))
    assert [one.safe for one in exact(trees, x, y, decisions(target), (0, 1), eps=0.0)][:2] == [
        0,
        0,
    ]
    assert proved(trees, lower(trees, x, y, 1e-6, (0, 1)), y).tolist() == [False, False, True]
    assert not proved(trees, np.array([[np.nan, np.nan]]), y[:1])[0]
    stubborn = exact(trees, x[2:], y[2:], lambda p, rows: np.repeat(y[2:], len(p)), (0, 1))[0]
    assert stubborn == Nearest(0.0)


# -- A forest of others, with known answers


def test_masks_and_scales_against_a_mixed_integer_program() -> None:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.min(0)) / np.ptp(x, axis=0)).astype(np.float32)
    forest = RandomForestClassifier(10, max_depth=5, random_state=0).fit(x[:400], y[:400])
    target = wrap(forest)
    trees, rng = trees_of(target), np.random.default_rng(0)
    sizes = []
    for row in x[400:410]:
        scale = rng.choice([0.0, 0.5, 1.0, 2.0], x.shape[1])
        label = decisions(target)(row[None])
        found = exact(trees, row[None], label, decisions(target), (0, 1), scale=scale)[0]
        assert found.exact
        known = milp_distance(forest.estimators_, row, int(label[0]), scale, (0, 1))
        assert found.size == pytest.approx(known, abs=1e-6)
        assert found.point is None or legal(found, row, scale, (0, 1))
        sizes.append(found.size)
    assert np.isfinite(sizes).sum() >= 5


@pytest.mark.cases
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the case's loader leaves a file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_exact_distances_of_a_forest_of_others(cases: Path) -> None:
    folder = cases / "trees_lt_attack"
    _, x, y = case(cases, "trees_lt_attack").load("breast_cancer")
    known = json.loads((folder / "exact_linf_breast_cancer.json").read_text())
    rows, size = [one[0] for one in known], np.array([one[2] for one in known])
    target = load(str(folder / "breast_cancer_rf.json"))
    target.bind(x.shape[1:])
    start = time.process_time()
    x, y = x[rows].astype(np.float32), y[rows]
    found = exact(trees_of(target), x, y, decisions(target), (0, 1))
    assert time.process_time() - start < 10
    assert all(one.exact for one in found)
    np.testing.assert_allclose([one.size for one in found], size, atol=1e-6)
    for row, label, one in zip(x, y, found, strict=True):
        assert legal(one, row, 1.0, (0, 1))
        assert decisions(target)(one.point[None])[0] != label
