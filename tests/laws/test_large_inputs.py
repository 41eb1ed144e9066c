"""Large inputs: how many are held and asked about at once follows from what they take, and what an
evaluation asks apart from its attacks is bounded. Neither changes a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast import memory
from holdfast.evaluation import judge
from holdfast.evaluation.chunk import chunks
from holdfast.runs.run import Run
from holdfast.targets.batch import Batch
from holdfast.targets.frameworks.pytorch import target as torch_target

FIXED = 80  # forwards that say what the model is, whatever the number of rows


class Counting(nn.Module):
    """A small network that counts the rows that it is asked about, through all its duplicates."""

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seen = [0]
        self.net = nn.Sequential(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(48, 5))
        self.net[2].weight.data *= 40

    def __deepcopy__(self, memo: object) -> Counting:
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] += len(x)
        return self.net(x)


def rows(net: nn.Module, n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and the network's own answers."""
    x = np.random.default_rng(0).random((n, 3, 4, 4), dtype=np.float32)
    x = x.repeat(side // 4, 2).repeat(side // 4, 3)
    with torch.no_grad():
        return x, net(torch.from_numpy(x)).argmax(1).numpy()


def test_rows_at_once_follow_from_their_size() -> None:
    assert memory.rows_at_once((1, 28, 28)) == 1024
    assert memory.rows_at_once((3, 224, 224)) == 111
    assert memory.rows_at_once((3, 1024, 1024)) == 5
    assert memory.rows_at_once((3, 1024, 1024), 2) == 2
    assert memory.rows_at_once((3, 8192, 8192)) == 1
    assert chunks((3, 12), (3, 1024, 1024)) == [(3, 5), (5, 10), (10, 12)]


def test_rows_of_a_pass_follow_from_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000), nn.Tanh(), nn.Linear(1000, 3))
    kept = 4 * 1000  # what tanh gave; the first layer keeps only the input, for its weights
    monkeypatch.setattr(torch_target, "PASS", 10 * kept + 1)
    assert holdfast.wrap(net, shape=(3, 2, 2)).batcher.size == 10
    assert holdfast.wrap(net, shape=(3, 2, 2), batch_size=4).batcher.size == 4
    monkeypatch.setattr(torch_target, "PASS", 1)
    assert holdfast.wrap(net, shape=(3, 2, 2)).batcher.size == 1


def test_rows_at_once_change_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = Counting()
    data = rows(net, 12, 16)

    def measured(name: str) -> Run:
        return holdfast.evaluate(net, data, "linf(0.1)", protocol="quick", out=tmp_path / name)

    whole = measured("whole")
    monkeypatch.setattr(memory, "VALUES", 5 * 3 * 16 * 16)
    pieces = measured("pieces")
    assert len(list((tmp_path / "pieces" / "adversarial").iterdir())) == 3
    for name in whole.samples.column_names:
        one, other = (run.samples.column(name).to_pandas() for run in (whole, pieces))
        if one.dtype.kind == "f":  # a product rounds with the number of its rows
            np.testing.assert_allclose(one, other, rtol=1e-5)
        else:
            assert one.equals(other)
    assert 0 < float(whole.robust_accuracy) < 1
    assert not holdfast.verify(pieces, net, data)


def test_an_evaluation_asks_little_apart_from_its_attacks(tmp_path: Path) -> None:
    """One forward a row, and two of a broken one: its check, and that of its file of 8 bits."""
    net = Counting(256)
    x, y = rows(net, 24, 256)
    net.seen[0] = 0
    run = holdfast.evaluate(net, (x, y), "linf(0.1)", attacks=["fgsm"], out=tmp_path / "run")
    costs, broken = run.manifest.costs, run.samples.column("status").to_pylist().count("broken")
    assert 0 < broken < 24
    assert costs.judge_forwards == 24 + 3 * broken
    assert net.seen[0] - costs.forwards - costs.judge_forwards <= FIXED


class OfTheBatch(Counting):
    """A network whose answer to a row depends on the other rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + x.mean())


class Drawing(Counting):
    """A network that draws noise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.01 * torch.randn_like(x))


@pytest.mark.parametrize("kind", [Counting, OfTheBatch, Drawing])
def test_only_a_steady_model_is_asked_once(kind: type[Counting]) -> None:
    target = holdfast.wrap(kind(), shape=(3, 16, 16))
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert judge.is_steady(target, Batch(x)) is (kind is Counting)


def test_a_row_between_two_classes_is_asked_twice() -> None:
    net = Counting()
    target = holdfast.wrap(net, shape=(3, 16, 16))
    clear, between = torch.rand(3, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    net.net[2].bias.data[:] = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    x = torch.cat([clear, between])
    ruling = judge.rule(target, x, steady=True)
    assert ruling.again.tolist() == [False, False, False, True]
    assert ruling.forwards == 5
    assert judge.rule(target, x).forwards == 8
