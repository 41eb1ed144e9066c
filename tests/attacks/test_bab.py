"""BaB on networks that bounds can follow: at the optimum where the network is linear, nothing that
is proved is broken, each row is searched by itself; and it is refused or idle elsewhere."""

from __future__ import annotations

import pytest
import torch
from helpers.models import EPS, linear, rows, run, threat, wrap
from torch import Tensor, nn

import holdfast
from holdfast.attacks import PGD, BaB
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
    model, eps = linear(3), 4 * EPS["linf"]
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
        broken = margin < 0  # others are proved, and not searched
        assert bool(broken.any())
        assert torch.equal(found.broken, broken)
        assert torch.allclose(found.margin[broken], margin.to(found.margin)[broken], atol=1e-5)


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


def test_where_no_relu_changes_its_sign_it_is_exact() -> None:
    first, last, x = nn.Linear(16, 3), nn.Linear(3, 2), torch.rand(8, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    with torch.no_grad():
        first.bias.fill_(20)
        last.bias -= net(x).mean(0)
    target = wrap(net.eval(), bounds=(0, 1))
    y, eps = target.labels(x), 0.05
    found, pgd = (
        run(one, target, x, y, threat("linf", eps), stop=False) for one in (BaB(), PGD(steps=20))
    )
    assert bool(pgd.broken.any())
    assert bool((found.margin <= pgd.margin + 1e-4)[pgd.broken].all())


def test_a_class_that_is_proved_leaves_the_others_to_be_tried() -> None:
    first, last = nn.Linear(16, 1), nn.Linear(1, 3)
    with torch.no_grad():
        first.weight.copy_(torch.eye(16)[:1])
        first.bias.fill_(-0.5)
        last.weight.copy_(torch.tensor([[0.0], [0.0], [4.0]]))
        last.bias.copy_(torch.tensor([0, -0.1, -0.2]))
    target = wrap(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval(), bounds=(0, 1))
    x = torch.full((2, 1, 4, 4), 0.5)
    found = run(SHORT, target, x, torch.zeros(2, dtype=torch.int64), threat("linf", 0.1))
    assert bool(found.broken.all())


@pytest.mark.parametrize("why", ["rotation(30, 1)", "several values"])
def test_what_it_cannot_search_is_refused_by_name(why: str) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sort(1).values[:, :3]

    model = Sorted() if why == "several values" else nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    asked = "linf(0.1)" if why == "several values" else why
    target, x = wrap(model, bounds=(0, 1)), torch.rand(3, 1, 4, 4)
    y = target.labels(x)
    with pytest.raises(SpecError, match=r"bab.*more than one value|bab.*does not only add"):
        holdfast.attack(target, x, y, asked, "bab")
    if why == "several values":
        assert not bool(run(SHORT, target, x, y, threat("linf", 0.1)).broken.any())


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


def test_rows_far_from_being_broken_are_left_after_six_descents(
    jagged: tuple[TorchTarget, Tensor, Tensor],
) -> None:
    target, x, y = jagged
    limit, clean = threat("linf", 0.1), target.scores(x)
    usual = run(BaB(steps=90, parts=12), target, x, y, limit, clean=clean, stop=False)
    searched = usual.backwards == 90
    share = usual.margin / target.task.margin(clean, y)
    close = float(share[searched].max()) / 2
    assert 0 < close < 1
    found = run(BaB(steps=90, parts=12, close=close), target, x, y, limit, clean=clean, stop=False)
    left = searched & (found.backwards < 90)
    assert torch.equal(left, searched & (share > close))
    assert set(found.backwards[left].tolist()) == {6 * 3}  # 36 units of 3 steps
    assert torch.allclose(found.margin[~left], usual.margin[~left])
