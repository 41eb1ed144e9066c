"""Robust accuracy with and without the relations of a schema, and which of them hold most back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.commands import same_run
from torch import nn

import holdfast as hf
from holdfast.evaluation import evaluate as evaluation
from holdfast.evaluation.protocols import protocol
from holdfast.evaluation.relations import searched_again
from holdfast.runs import store

SCHEMA = """
[features]
low = { bounds = [0, 1] }
high = { bounds = [0, 1] }
gap = { bounds = [-1, 1], scale = 1 }

[relations]
order = "low <= high"

[derived]
gap = "high - low"
"""


class Net(nn.Module):
    """Class 1 where low is above high by 0.02, which no row of the schema is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x[:, 0] - x[:, 1] - 0.02
        return torch.stack([-z, z], 1)


def rows(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, n)
    high = low + rng.uniform(0.0, 0.4, n)
    x = np.stack([low, high, high - low], 1).astype(np.float32)
    return x, np.zeros(n, int)


LINKED = hf.Schema.parse(SCHEMA)
THREAT = hf.Threat.linf(0.1, schema=LINKED)


@pytest.fixture(autouse=True, scope="module")
def _searched() -> Iterator[None]:
    """Also under a list of attacks, of which short ones are enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "searched_again", lambda *_: True)
        yield


def measured(out: Path, **how: Any) -> hf.Run:
    attacks = ["capgd(steps=10)", "genetic(steps=2, population=8)"]
    return hf.evaluate(Net(), rows(), THREAT, attacks=attacks, out=out, **how)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hf.Run:
    return measured(tmp_path_factory.mktemp("r") / "run")


def test_what_relations_hold_back_is_exact_where_a_model_is_linear(run: hf.Run) -> None:
    x, _ = rows()
    reached = x[:, 1] - x[:, 0] + 0.02 < 0.2  # by both columns, each by eps
    found = run.metrics.relations
    assert found is not None
    assert float(run.robust_accuracy) == 1
    assert (found.searched, found.broken) == (40, reached.sum())
    assert float(found.robust_accuracy) == 1 - reached.mean()
    assert found.by_relation["order"] == reached.sum()
    assert found.by_relation["gap"] > 0
    assert found.passes == run.samples.column("relations_passes").to_numpy().sum() > 0
    assert hf.verify(run, Net(), rows()) == []


def test_the_report_has_both_figures_and_the_relations(run: hf.Run) -> None:
    page = " ".join(re.sub(r"<[^>]+>", " ", run.report().read_text()).split())
    found = run.metrics.relations
    assert found is not None
    assert f"Without its relations {100 * float(found.robust_accuracy):.1f} %" in page
    assert "order low &lt;= high 100 %" in page
    assert "gap == high - low" in page
    assert f"of the {found.searched} inputs that held" in page


def test_shards_merge_to_the_same_figures(run: hf.Run, tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, samples in zip(parts, ((0, 17), (17, 40)), strict=True):
        measured(part, samples=samples)
    merged = hf.merge(parts, tmp_path / "whole")
    same_run(merged.folder, run.folder)


def test_a_run_that_was_cut_short_goes_on_to_the_same_figures(
    run: hf.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "judge_chunk", killed)
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path / "run")
    assert any((tmp_path / "run" / "journal").glob("*-bare-0000.safetensors"))
    again = measured(tmp_path / "run", resume=True)
    same_run(again.folder, run.folder)


class Rippled(nn.Module):
    """Its gradient leads up from 0.44, 0.47 and 0.50, and down from 0.45."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = x[:, 0]
        z = low - 0.515 - 0.01 * torch.sin(2 * torch.pi * (low - 0.45) / 0.03)
        return torch.stack([-z, z], 1)


def test_what_is_found_without_relations_and_satisfies_them_breaks_a_row() -> None:
    """Steps of 0.03 cross a gap, but through the repair they turn back at its edge, 0.45."""
    x = np.stack([np.full(6, 0.44), np.linspace(0.5, 0.9, 6)], 1).astype(np.float32)
    schema = hf.Schema(LINKED.features[:2], relations={"gap": "low <= 0.45 or low >= 0.5"})
    threat, y = hf.Threat.linf(0.1, schema=schema), np.zeros(6, int)
    attack = 'pgd(steps=5, step_size=0.3, start_at="zero")'
    assert not hf.attack(Rippled(), x, y, threat, attack).success.any()
    run = hf.evaluate(Rippled(), (x, y), threat, attacks=[attack])
    assert float(run.robust_accuracy) == 0
    assert run.manifest.trials[0].broken == 6
    assert run.metrics.relations is not None
    assert run.metrics.relations.searched == 0
    assert hf.verify(run, Rippled(), (x, y)) == []


def test_standard_searches_again_where_a_schema_has_relations() -> None:
    standard, quick = (protocol(name, "linf") for name in ("standard", "quick"))
    assert searched_again(standard, THREAT, None)
    assert not searched_again(standard, THREAT, 50)  # passes are dear
    assert not searched_again(quick, THREAT, None)
    assert not searched_again(
        standard, hf.Threat.linf(0.1, schema=hf.Schema(LINKED.features)), None
    )
    assert not searched_again(standard, hf.Threat.linf(float("inf"), schema=LINKED), None)


def test_verify_refuses_what_no_search_gives(run: hf.Run, tmp_path: Path) -> None:
    folder = tmp_path / "forged"
    shutil.copytree(run.folder, folder)
    table = store.read_samples(folder)
    at = table.column_names.index("relations_broken")
    table = table.set_column(at, "relations_broken", pa.array([[0, 0]] * table.num_rows))
    store.write_samples(folder, table)
    assert any("metrics.relations" in said for said in hf.verify(folder, Net(), rows()))
    table = table.set_column(at, "relations_broken", pa.array([[0]] * table.num_rows))
    store.write_samples(folder, table)
    assert any("other relations than the 2" in said for said in hf.verify(folder, Net(), rows()))
