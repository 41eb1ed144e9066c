"""Boxes and masks: rows are independent, whatever the batch; budgets are hard; and the network
stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.catalogue import every, short
from helpers.models import EPS, POOLS, draw, pick, pool, run, same, threat
from torch import Tensor, nn

import holdfast
from holdfast.attacks import SearchResult
from holdfast.targets import Target
from holdfast.targets.batch import Batch
from holdfast.targets.truth import WithTruth
from holdfast.tasks import Detection, Segmentation, TaskWithTruth

N, SIDE, CELL = 8, 8, 4
AT = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]])


class Cells(nn.Module):
    """A box around each cell, whose score is its brightness; twice as steep above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.steep = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        bright = x.unflatten(3, (2, CELL)).unflatten(2, (2, CELL)).mean((1, 3, 5)).flatten(1)
        score = bright + (self.steep - 1) * (bright - 0.5).relu()
        return {"place": AT.to(x).expand(len(x), 4, 4), "score": score[:, :, None]}


class Pixels(nn.Module):
    """Three classes of brightness; logits of two pixels each."""

    def __init__(self) -> None:
        super().__init__()
        self.steep = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        bright = x.unflatten(3, (SIDE // 2, 2)).mean((1, 4))
        return torch.stack([0.45 - bright, 0 * bright, self.steep * (bright - 0.55)], 1)


def boxes(x: Tensor) -> Tensor:
    bright = Cells()(x)["score"].detach()
    label = torch.where(bright > 0.5, 0.0, -1.0)
    label[:, 0] = 0
    return torch.cat([label, AT.to(x).expand(len(x), 4, 4)], 2)


def read(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return outputs["place"], outputs["score"]


def classes(x: Tensor) -> Tensor:
    return Pixels()(x).argmax(1).repeat_interleave(2, 2)


TASKS: dict[str, tuple[TaskWithTruth, type[nn.Module], Callable[[Tensor], Tensor]]] = {
    "detection": (Detection(head=read, lose="all"), Cells, boxes),
    "segmentation": (Segmentation(accuracy=0.8), Pixels, classes),
}


def asked(task: str) -> tuple[WithTruth, Batch, nn.Module]:
    """A model, the rows that it is asked about, and the network."""
    rule, kind, truths = TASKS[task]
    net = kind()
    inner: Target = holdfast.wrap(net, task=rule, shape=(1, SIDE, SIDE), batch_size=4)
    inner.batcher.dtype = torch.float64
    target = WithTruth(inner)
    POOLS[target] = pool(inner)[0], torch.zeros(30, dtype=torch.int64)
    cell = 0.25 + 0.5 * draw(N, 1, 2, 2)
    x = cell.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    return target, target.with_truths(x + 0.02 * draw(*x.shape, seed=1), truths(x)), net


@every(0)
def test_rows_of_masks_are_independent_and_budgets_hard(name: str, norm: str) -> None:
    independent("segmentation", name, norm)


@pytest.mark.parametrize("name", ["acg", "apgd", "relay", "square"])
def test_rows_of_boxes_are_independent_and_budgets_hard(name: str) -> None:
    independent("detection", name, "linf")


@pytest.mark.slow
@every(0)
def test_so_they_are_under_every_attack(name: str, norm: str) -> None:
    independent("detection", name, norm)


def independent(task: str, name: str, norm: str) -> None:
    """Hold that some rows alone, in another order and batch, are what they are among all."""
    attack, right, ids = short(name, 3), torch.zeros(N, dtype=torch.int64), 100 + torch.arange(N)
    if attack.mixes:
        pytest.skip("it mixes in images of other classes, and all rows are of the class 'right'")
    target, rows, net = asked(task)
    budget = torch.tensor([3, 9]).repeat(N // 2)
    before = {n: p.clone() for n, p in net.state_dict().items()}

    def found(at: Tensor, size: int) -> SearchResult:
        target.batcher.size = size
        limits = threat(norm, EPS[norm])
        return run(attack, target, rows[at], right[at], limits, ids=ids[at], budget=budget[at])

    whole = found(torch.arange(N), 4)
    assert bool((whole.forwards <= budget).all())
    for at, size in ((torch.tensor([4, 2, 7, 1, 5]), 16), (torch.tensor([6]), 1)):
        same(found(at, size), pick(whole, at))
    for n, p in net.state_dict().items():
        assert torch.equal(p, before[n])
        assert p.grad is None
