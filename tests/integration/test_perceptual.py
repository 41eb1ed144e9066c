"""Perceptual distances: what a network of the user's says of the stored examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.commands import holdfast, names, refused

import holdfast as hf
from holdfast.data import open_data
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.runs import store
from holdfast.runs.metrics import schema_of
from holdfast.targets import TorchTarget

ROWS = 12
NETWORKS = """
import torch

class Near(torch.nn.Module):
    def __init__(self, unit=1.0):
        super().__init__()
        self.register_buffer("weight", unit * torch.tensor([1.0, 2.0, 4.0])[:, None, None])
        self.drop = torch.nn.Dropout()

    def forward(self, a, b):
        assert a.shape[1:] == b.shape[1:] == (3, 8, 8) and a.min() >= -1 and a.max() <= 1
        return (self.drop(self.weight) * (a - b).abs()).sum(1).mean((1, 2)).reshape(-1, 1, 1, 1)

class Whole(Near):
    def forward(self, a, b):
        return super().forward(a, b).mean()

class Late(Near):
    def forward(self, a, b):
        return (super().forward(a, b) - 2).log()

class Never(Near):
    def forward(self, a, b):
        return super().forward(a, b) / 0

class Fails(Near):
    def forward(self, a, b):
        raise ValueError("too small")

def other():
    return Near(2.0)

def none():
    return "alex"
"""
ASKED = ("evaluate", "demo", "digits", "--threat", "linf(0.1)", "--attack", "fgsm()")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.py").write_text(NETWORKS)
    return tmp_path


def run(out: str, *more: str) -> None:
    done = holdfast(*ASKED, "--out", out, *more)
    assert done.exit_code == 0, done.output


def test_the_distance_is_that_of_the_network_and_verified(at: Path) -> None:
    run("r", "--samples", str(ROWS), "--perceptual", "near.py:Near")
    table, metrics = store.read_samples(Path("r")), store.read_manifest(Path("r")).metrics
    stored = dict(
        zip(table.column("id").to_pylist(), table.column("lpips").to_pylist(), strict=True)
    )
    source, found = open_data("digits"), {}
    for ids, x in store.examples(Path("r")):
        for i, row in zip(ids.tolist(), x, strict=True):
            found[i] = (
                7
                * 2
                * float(
                    np.abs(row.astype(float) - source.rows(i, i + 1)[0][0].astype(float)).mean()
                )
            )
    assert 0 < len(found) < ROWS
    assert {i: d for i, d in stored.items() if d is not None} == pytest.approx(found, rel=1e-9)
    assert metrics.perceptual is not None
    assert metrics.perceptual.lpips == pytest.approx(np.median(list(found.values())))
    names(Path("r/report.html").read_text(encoding="utf-8"), "median perceptual distance (LPIPS)")

    assert holdfast("verify", "r", "demo", "digits", "--perceptual", "near.py:Near").exit_code == 0
    done = holdfast("verify", "r", "demo", "digits")
    assert done.exit_code == 1
    names(done.stdout, "without it (--perceptual) they cannot be checked")
    done = holdfast("verify", "r", "demo", "digits", "--perceptual", "near.py:other")
    assert done.exit_code == 1
    names(done.stdout, "not the network that was asked", "have another perceptual distance")
    changed = pa.array([None if d is None else 1.5 * d for d in stored.values()])
    place = table.schema.get_field_index("lpips")
    store.write_samples(Path("r"), table.set_column(place, "lpips", changed))
    done = holdfast("verify", "r", "demo", "digits", "--perceptual", "near.py:Near")
    names(done.stdout, "have another perceptual distance", "metrics.perceptual.lpips")


def test_without_a_network_nothing_is_added(at: Path) -> None:
    run("r", "--samples", str(ROWS))
    assert store.read_samples(Path("r")).schema == schema_of(["broken_8bit"])
    perceptual = store.read_manifest(Path("r")).metrics.perceptual
    assert perceptual is not None
    assert perceptual.lpips is None
    assert "LPIPS" not in Path("r/report.html").read_text(encoding="utf-8")
    messages = refused("verify", "r", "demo", "digits", "--perceptual", "near.py:Near")
    names(messages, "was measured without --perceptual")


def test_shards_of_one_network_merge(at: Path) -> None:
    nearby = ("--perceptual", "near.py:Near")
    run("a", "--samples", "0:6", *nearby)
    run("b", "--samples", "6:12", *nearby)
    run("whole", "--samples", "0:12", *nearby)
    assert holdfast("merge", "a", "b", "--out", "both").exit_code == 0
    both, whole = (
        store.read_samples(Path(name)).column("lpips").to_numpy() for name in ("both", "whole")
    )
    np.testing.assert_allclose(both, whole, rtol=1e-6)
    manifest = store.read_manifest(Path("b"))
    store.write_manifest(
        Path("b"), manifest.model_copy(update={"perceptual": "of another network"})
    )
    names(refused("merge", "a", "b", "--out", "x"), "perceptual network")
    names(
        refused(*ASKED, "--samples", "0:6", "--out", "a", "--resume"), "perceptual network", "none"
    )


def test_what_is_no_such_network_is_refused(at: Path) -> None:
    asked = (*ASKED, "--samples", str(ROWS), "--out", "x", "--perceptual")
    names(refused(*asked, "near.py:Whole"), "gives () for 2 pairs", "one distance a pair")
    names(refused(*asked, "near.py:Never"), "gives inf for a pair", "finite")
    names(refused(*asked, "near.py:Fails"), "Fails raised ValueError: too small")
    names(refused(*asked, "near.py:none"), "torch module", "str")
    names(refused(*asked, "near.py:nothing"), "no callable 'nothing'")
    assert not Path("x").exists()
    names(refused(*asked, "near.py:Late"), "gives nan for a pair")


def test_colours_keep_their_order_and_other_inputs_are_refused() -> None:
    class Red(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b)[:, 0].flatten(1).sum(1)

    module = Red()
    target = TorchTarget(
        torch.nn.Flatten(), shape=(2, 2, 3), layout="nhwc", bounds=(0, 255), batch_size=2
    )
    x = torch.zeros(5, 2, 2, 3)
    found = x.clone()
    found[..., 0] = torch.arange(5.0)[:, None, None] * 51
    assert PerceptualDistance(module, target)(x, found).tolist() == pytest.approx(
        [-1.6 * i for i in range(5)]
    )
    assert module.training  # the caller's own is not touched
    flat = TorchTarget(torch.nn.Flatten(), shape=(12,))
    with pytest.raises(
        hf.InputError, match=r"images of one or three channels, not of inputs \(12,\)"
    ):
        PerceptualDistance(module, flat)
