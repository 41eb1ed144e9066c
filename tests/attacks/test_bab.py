"""BaB on networks that bounds can follow: at the optimum where the network is linear, nothing that
is proved is broken, each row is searched by itself; and it is refused or idle elsewhere."""

from __future__ import annotations

import pytest
import torch
from helpers.models import EPS, linear, rows, run, threat, wrap
from torch import Tensor, nn

import holdfast
from holdfast.attacks import BaB
from holdfast.errors import SpecError
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Targeted, Threat

SHORT = BaB(steps=40, parts=6)


@pytest.fixture(scope="module")
def jagged() -> tuple[TorchTarget, Tensor, Tensor]:
    """A network of two hidden layers at random weights, whose gradient says little of what is
    further away; its own answers are the classes."""
    torch.manual_seed(0)
    first, second = nn.Linear(16, 40), nn.Linear(40, 40)
    with torch.no_grad():
        for part in (first, second):
            part.weight *= 3
    net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(40, 4))
    target = wrap(net.eval(), bounds=(0, 1))
    x = torch.rand(6, 1, 4, 4)
    return target, x, target.labels(x)


def test_where_the_network_is_linear_it_reaches_the_optimum_at_once() -> None:
    model, eps = linear(3), EPS["linf"]
    target = wrap(model, bounds=(0, 1))
    x, y = rows(target, 6, edge=True)
    for rank in (1, 2):
        found = run(BaB(steps=1), target, x, y, threat("linf", eps), rank=rank, stop=False)
        z = target.scores(x)
        others = z.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, rank - 1]
        w = model.w.detach()
        slope = (w[others] - w[y]).view_as(x)
        best = torch.where(slope > 0, (x + eps).clamp(max=1), (x - eps).clamp(min=0))
        margin = target.task.margin(target.scores(best), y)
        assert torch.allclose(found.margin, margin.to(found.margin), atol=1e-5)


def test_it_breaks_nothing_that_is_proved(
    jagged: tuple[TorchTarget, Tensor, Tensor],
) -> None:
    target, x, y = jagged
    lower = holdfast.certify(target, (x, y.numpy()), "linf(0.02)", seconds_per_row=5)
    assert set(lower.samples.column("status").to_pylist()) >= {"certified"}
    proved = torch.tensor([s == "certified" for s in lower.samples.column("status").to_pylist()])
    found = run(SHORT, target, x, y, threat("linf", 0.02))
    assert not bool((found.broken & proved).any())


def test_a_row_is_searched_alike_in_any_company(
    jagged: tuple[TorchTarget, Tensor, Tensor],
) -> None:
    target, x, y = jagged
    ids = torch.arange(len(x))
    whole = run(SHORT, target, x, y, threat("linf", 0.05), ids=ids, stop=False)
    assert len(set(whole.margin.tolist())) == len(x)
    for at in (slice(0, 2), slice(2, 6)):
        part = run(SHORT, target, x[at], y[at], threat("linf", 0.05), ids=ids[at], stop=False)
        assert torch.allclose(part.margin, whole.margin[at], rtol=1e-5, atol=1e-6)
        assert torch.equal(part.forwards, whole.forwards[at])


def test_a_step_costs_a_forward_and_a_backward(jagged: tuple[TorchTarget, Tensor, Tensor]) -> None:
    target, x, y = jagged
    found = run(SHORT, target, x, y, threat("linf", 0.001), clean=target.scores(x), stop=False)
    alive = found.forwards > 0
    assert bool(alive.any())
    assert set(found.forwards[alive].tolist()) <= {1, 1 + SHORT.steps, 2 + SHORT.steps}
    assert set(found.backwards[alive].tolist()) <= {0, SHORT.steps}


def test_a_restart_begins_on_further_parts(jagged: tuple[TorchTarget, Tensor, Tensor]) -> None:
    target, x, y = jagged
    first, second = (
        run(SHORT, target, x, y, threat("linf", 0.1), restart=r, stop=False) for r in (0, 1)
    )
    assert not torch.equal(first.margin, second.margin)


def test_a_goal_is_what_it_aims_at(jagged: tuple[TorchTarget, Tensor, Tensor]) -> None:
    target, x, y = jagged
    goal = (y + 1) % 4
    found = run(SHORT, target, x, y, Threat.linf(0.3, goal=Targeted(goal)))
    assert bool(found.broken.any())
    assert torch.equal(target.labels(found.best[found.broken]), goal[found.broken])


def test_a_model_that_it_cannot_follow_is_refused_by_name_and_left_out_of_a_protocol() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x.flatten(1)[:, :4].view(-1, 2, 2) + 3 * torch.eye(2))[:, 0]

    target, x = wrap(Odd(), bounds=(0, 1)), torch.rand(3, 1, 4, 4)
    y = target.labels(x)
    found = run(SHORT, target, x, y, threat("linf", 0.01), clean=target.scores(x))
    assert not bool(found.forwards.any())
    with pytest.raises(SpecError, match="bab"):
        holdfast.attack(target, x, y, "linf(0.01)", "bab")
