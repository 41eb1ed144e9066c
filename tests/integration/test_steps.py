"""Models of steps: thresholds, signs and rounding, whose gradient is none or misleads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.data import from_arrays
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.targets.frameworks.pytorch.bpda import with_bpda
from holdfast.targets.target import Target
from holdfast.threats.threat import Threat

EPS = 0.3


class Thresholded(nn.Module):
    """Two classes, linear in inputs [n, 20] that are seen as 0 or 1."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(20, 2, generator=draw), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x >= 0.5).to(x.dtype) @ self.w


class Signs(nn.Module):
    """A network of sign units."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(20, 16), nn.Linear(16, 3)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sign(self.first(x)))


class Detached(nn.Module):
    """A smooth network that hides its gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(20, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.tanh().detach())


class OwnReLU(Detached):
    """A network whose thresholds leave it its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * (x > 0.2))


def rows(n: int) -> Tensor:
    return torch.rand(n, 20, generator=torch.Generator().manual_seed(1))


def sources(model: nn.Module, n: int = 16) -> GradientSources:
    x = rows(n)
    target: Target = holdfast.wrap(model)
    target.bind((20,))
    data = from_arrays(x.numpy(), model(x).argmax(1).numpy())
    return GradientSources(target, Threat.linf(0.1), data)


@pytest.mark.parametrize(
    ("model", "steps"),
    [(Thresholded, "flat"), (Signs, "flat"), (Detached, "hidden"), (OwnReLU, "")],
)
def test_what_steps_do_is_seen(model: type[nn.Module], steps: str) -> None:
    found = sources(model())
    assert found.steps == steps
    assert found.costs.forwards in (16, 24)


def test_behind_a_threshold_exactly_the_rows_break_that_can() -> None:
    model, x = Thresholded(), rows(60)
    y = model(x).argmax(1)
    low, high = (x - EPS).clamp(0, 1) >= 0.5, (x + EPS).clamp(0, 1) >= 0.5
    gain = (model.w[:, 1] - model.w[:, 0]) * (1 - 2 * y[:, None])  # of a pixel for the other class
    seen = torch.where(low == high, low, gain > 0)
    broken = (seen * gain).sum(1) > 0
    run = holdfast.evaluate(model, (x, y.numpy()), Threat.linf(EPS), protocol="quick")
    assert 0 < int(broken.sum()) < len(x)
    status = np.array(run.samples.column("status").to_pylist())
    assert ((status == "broken") == broken.numpy()).all()
    assert [trial.spec[:4] for trial in run.manifest.trials] == ["dula"]
    assert run.manifest.costs.backwards > 0


def test_few_rows_of_steps_take_few_passes_and_hold(tmp_path: object) -> None:
    model, x = Signs(), rows(4)
    y = model(x).argmax(1).numpy()
    run = holdfast.evaluate(model, (x, y), "linf(0.02)")
    assert {trial.spec[:4] for trial in run.manifest.trials} == {"dula"}
    assert "stepped" in [f.check for f in run.verdict.findings]
    assert run.verdict.status == "upper-bound"
    assert holdfast.verify(run.folder, model, (x, y)) == []


def test_a_gradient_through_steps_is_that_of_the_row_alone() -> None:
    target = holdfast.wrap(Signs())
    target.bind((20,))
    bpda, x, cotangent = with_bpda(target), rows(6), torch.ones(6, 3) * torch.arange(3)
    assert bpda is not None
    together = bpda.linearize(x)[1](cotangent)
    alone = [bpda.linearize(x[i : i + 1])[1](cotangent[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))
    # and no scale of the inputs makes it vanish
    assert (together.abs().amax(1) > 0).all()


def test_a_surrogate_for_few_rows_asks_few_questions() -> None:
    class Counting(Signs):
        asked = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.asked += len(x)
            return super().forward(x)

    found = sources(Counting(), 4)
    Counting.asked = 0
    found("surrogate")
    assert Counting.asked <= 4 * 32 + 8
