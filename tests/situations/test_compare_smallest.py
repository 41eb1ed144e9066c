"""Two runs without a limit on the size of a change: they are compared by the sizes, and nothing
speaks of a robust accuracy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_runs import command
from torch import nn

import holdfast
from holdfast.runs.compare import compare

ATTACKS = ("fmn(steps=20)",)


def linear(gain: float) -> nn.Module:
    """Right where the first feature is above 0.5. The second feature counts `gain`, with which the
    Linf distance of every row to the boundary shrinks."""
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, gain]]))
        net.bias.copy_(torch.tensor([0.5 + gain / 2, 0.0]))
    return net.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    x = np.stack([np.linspace(0.1, 0.9, 20), np.full(20, 0.5)], 1).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64)
    folder = tmp_path_factory.mktemp("runs")
    for name, gain in (("first", 1.0), ("second", 0.0)):
        data = (x, y)
        holdfast.evaluate(linear(gain), data, "linf(inf)", attacks=ATTACKS, out=folder / name)
    return folder / "first", folder / "second"


def test_the_sizes_are_compared_row_by_row(runs: tuple[Path, Path]) -> None:
    found = compare(*runs)
    assert [figure.name for figure in found.figures] == ["clean accuracy"]
    assert found.sizes is not None
    assert (found.sizes.n, found.sizes.larger, found.sizes.smaller) == (20, 20, 0)
    assert found.sizes.second == pytest.approx(2 * found.sizes.first, rel=0.05)
    assert found.sizes.p < 1e-5


def test_nothing_speaks_of_robust_accuracy(runs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "both.html"
    done = command("compare", *map(str, runs), "--page", str(page))
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "smallest change" in said
    shown = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    assert "smallest change" in shown
    for text in (said, shown):
        assert "obust" not in text


def test_with_a_limit_there_are_no_sizes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 2)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64)
    for name in ("a", "b"):
        holdfast.evaluate(linear(0.0), (x, y), "linf(0.1)", attacks=["fgsm"], out=tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.sizes is None
    assert len(found.figures) == 2
