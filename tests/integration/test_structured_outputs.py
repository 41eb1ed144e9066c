"""A task whose outputs are several tensors, whose clean answers count, and which can be wrong in
part: what detection and segmentation are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.data import from_arrays
from holdfast.evaluation.verify import verify
from holdfast.tasks import TASKS, Form, TaskWithTruth, side_by_side

N, PLACES = 12, 6


@dataclass(frozen=True)
class AllAbove(TaskWithTruth):
    """Right while each of the outputs that are above 0 clean stays there."""

    structured: ClassVar[bool] = True
    relative: ClassVar[bool] = True
    enough: ClassVar[float] = 1.0

    def truths(self, y: np.ndarray, start: int, name: str) -> np.ndarray:
        return y.reshape(len(y), -1)

    def since(self, truth: Tensor, z: Tensor) -> Tensor:
        return truth * (self.flat(z) > 0)

    def flat(self, z: Tensor) -> Tensor:
        parts = self.form.split(z)
        return torch.cat([parts["map"].flatten(1), parts["row"]], 1)

    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        above = self.flat(z).clamp(-1, 1) * (truth > 0)
        wrong = ((above <= 0) & (truth > 0)).any(1)
        v = wrong.to(z) - above.clamp_min(0).sum(1) / (1 + PLACES)
        return torch.stack([torch.zeros_like(v), v], 1)

    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        return ["one fell"]


class Net(nn.Module):
    """Each output is one value of the input less a half."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        u = x.flatten(1) - 0.5
        return {"row": u[:, :2], "map": u[:, 2:].reshape(-1, 2, 2), "none": None}


def values() -> np.ndarray:
    x = 0.5 + 0.3 * np.random.default_rng(0).random((N, 1, 2, 3), np.float32)
    x[:, 0, 0, 0] = 0.1  # below from the start
    return x


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "allabove", AllAbove)


def test_the_form_takes_apart_what_lies_side_by_side() -> None:
    parts = {"a": torch.rand(3, 2, 4), "b": torch.rand(3), "c": torch.rand(3, 1)}
    z, form = side_by_side(parts)
    assert z.shape == (3, 10)
    assert form.one == (10,)
    assert form == Form((("a", (2, 4)), ("b", ()), ("c", (1,))))
    for name, part in form.split(z).items():
        torch.testing.assert_close(part, parts[name].reshape(part.shape))


@pytest.mark.parametrize("attack", ["apgd(steps=30)", "square(steps=400)"])
def test_a_search_goes_on_past_its_first_success(attack: str, tmp_path: Path) -> None:
    x, y = values(), np.ones((N, PLACES), np.float32)
    target = holdfast.wrap(Net(), task="allabove")
    run = holdfast.evaluate(target, (x, y), "linf(0.1)", attacks=[attack], out=tmp_path / "run")
    z = x.reshape(N, -1)
    z = np.concatenate([z[:, 2:], z[:, :2]], 1) - 0.5  # in the order of the answers
    wrong = ((z > 0) & (z < 0.1 - 1e-5)).any(1)
    status = np.array(run.samples.column("status").to_pylist())
    assert 0 < wrong.sum() < N
    np.testing.assert_array_equal(status == "broken", wrong)
    if attack.startswith("apgd"):
        after = np.stack(run.samples.column("attacked_output").to_pylist())
        after = np.concatenate([after[:, 2:], after[:, :2]], 1)
        np.testing.assert_array_equal((after <= 0)[wrong], (z < 0.1 - 1e-5)[wrong])
    assert verify(run.folder, target, from_arrays(x, y)) == []
    made = holdfast.attack(target, x, y, "linf(0.1)", attack)
    np.testing.assert_array_equal(made.success, wrong)
