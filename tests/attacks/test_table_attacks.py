"""Attacks on the rows of a table: what they find is legal, and their repair leads far."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tables import Scaled, schema_of, table_case
from scipy.optimize import minimize
from sklearn.ensemble import RandomForestClassifier

import holdfast
from holdfast.evaluation.protocols import asked
from holdfast.targets import Access
from holdfast.threats.table.features import Feature
from holdfast.threats.table.projection import project
from holdfast.threats.table.schema import Schema
from holdfast.threats.threat import Threat

ROWS = np.random.default_rng(0).random((100, 4)).astype(np.float32)
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 1).astype(int)


@pytest.mark.parametrize(
    ("access", "names"),
    [(Access.GRADIENTS, ["CAPGD", "Genetic"]), (Access.SCORES, ["Genetic"])],
)
def test_standard_takes_the_attacks_of_tables_by_access(access: Access, names: list[str]) -> None:
    threat = replace(Threat.l2(0.5), schema=small())
    trials = asked("standard", threat, access).trials
    assert [type(trial.attack).__name__ for trial in trials] == names
    assert asked("standard", Threat.l2(0.5), access) != asked("standard", threat, access)
    blind = asked("standard", threat, Access.LABELS)  # decisions alone: the usual searches
    assert blind == asked("standard", Threat.l2(0.5), Access.LABELS)


def test_trees_are_searched_by_their_leaves_first(tmp_path: Path) -> None:
    """Of all protocols for tables, in linf; and a run of them is verified."""
    schema = Schema.infer(ROWS)
    target = holdfast.wrap(RandomForestClassifier(5, random_state=0).fit(ROWS, LABELS))
    threats = {norm: Threat.parse(f"{norm}(0.2)") for norm in ("linf", "l2")}
    for norm, threat in threats.items():
        run = holdfast.evaluate(
            target, (ROWS[:20], LABELS[:20]), replace(threat, schema=schema),
            protocol="quick", out=tmp_path / norm,
        )  # fmt: skip
        names = [trial.spec.partition("(")[0] for trial in run.manifest.trials]
        assert names == ["treeexact", "genetic"][norm == "l2" :]
        assert holdfast.verify(run, target, (ROWS[:20], LABELS[:20])) == []
    known = asked("quick", threats["linf"], Access.SCORES)
    assert known == asked("quick", threats["linf"], Access.SCORES, trees=True)  # without a schema


def small() -> Schema:
    scales = {"a": 1, "b": 2, "c": 1, "d": 5}
    features = [Feature(name, bounds=(0, 10), scale=s) for name, s in scales.items()]
    return Schema(features, relations={"order": "a <= b", "total": "a + b == c + d"})


def test_projection_is_the_nearest_point_within_linear_relations() -> None:
    schema = small()
    unit = schema.unit[:, None]
    start = torch.tensor([[1.0, 4, 2, 3], [2, 3, 4, 1]], dtype=torch.float64).T / unit
    point = start + torch.tensor([[3.0, -1, 0.5, 0.2], [0.1, -2, 1, 0]], dtype=torch.float64).T
    low, high = torch.zeros_like(start), 10 / unit + torch.zeros_like(start)
    found = project(schema.mender.linear, start, point, low, high)
    order, total = (np.array(w) * schema.unit.numpy() for w in ((-1, 1, 0, 0), (1, 1, -1, -1)))
    rules = [
        {"type": "ineq", "fun": lambda u: u @ order},
        {"type": "eq", "fun": lambda u: u @ total},
    ]
    for i in range(2):
        box = list(zip(low[:, i].tolist(), high[:, i].tolist(), strict=True))
        at = point[:, i].numpy()
        exact = minimize(_far, start[:, i].numpy(), at, bounds=box, constraints=rules).x
        np.testing.assert_allclose(found[:, i].numpy(), exact, atol=1e-4)
        one = project(schema.mender.linear, *(part[:, [i]] for part in (start, point, low, high)))
        assert torch.equal(one[:, 0], found[:, i])


def _far(u: np.ndarray, at: np.ndarray) -> float:
    return ((u - at) ** 2).sum()


@pytest.mark.cases
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the case's loader leaves a file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "eps", "attack", "least"),
    [
        ("lcld", 0.2, "capgd(steps=10)", 0.85),
        ("url", 0.5, "capgd(steps=5)", 0.8),
        ("botnet", 0.5, "capgd(steps=6)", 0.5),
    ],
)
def test_a_few_rows_of_the_cases_fall_to_legal_rows(
    name: str, eps: float, attack: str, least: float
) -> None:
    case, schema = table_case(name), schema_of(name)
    x, y = case.data()
    model = Scaled(case.net(), case, name, 0.25 if name == "lcld" else 0.5).eval()
    target = holdfast.wrap(model, bounds=(float(x.min()) - 1, float(x.max()) + 1))
    found = target.labels(torch.tensor(x).float()).numpy()
    rows = np.flatnonzero((found == 1) & (y == 1))[:24]
    threat = replace(Threat.l2(eps), schema=schema)
    result = holdfast.attack(target, x[rows].astype(np.float32), y[rows], threat, attack)
    assert result.success.mean() >= least
    assert (case.violations(result.x_adv[result.success].astype(np.float64)) == 0).all()
    size = np.linalg.norm(case.scale(result.x_adv) - case.scale(x[rows]), axis=1)
    assert (size[result.success] <= eps * (1 + 1e-5)).all()
