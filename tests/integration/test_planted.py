"""Models with a planted failure: each raises its finding and no other; and the test that plants a
solution itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.planted import Planted
from torch import Tensor, nn
from torch.nn import functional as F

import holdfast
from holdfast.attacks import parse_trial
from holdfast.data import from_arrays, open_data
from holdfast.diagnostics.binarisation import Planted as PlantedHead
from holdfast.diagnostics.binarisation import missed
from holdfast.diagnostics.checks import findings_of
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.evaluation.contract import check_model, randomised
from holdfast.evaluation.probing import probe
from holdfast.runs.manifest import Finding
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.testing import BROKEN, SOUND, Defence
from holdfast.testing.sound import mlp, trained
from holdfast.threats.threat import Threat

X, Y = map(torch.from_numpy, open_data("digits").rows(0, 16))
FIRST = 'apgd(steps=10, loss="mifpe")'


class Cut(torch.autograd.Function):
    """Passes what it is given, and back what `change` makes of the gradient and of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.change(g[0], x), None


def cut(change: Callable[..., Tensor]) -> nn.Module:
    return Planted(lambda x: Cut.apply(x, change))


def scored(after: Callable[[Tensor], Tensor]) -> nn.Module:
    return Planted(lambda x: x, after)


def off(x: Tensor) -> tuple[Tensor, Tensor]:
    """How far inputs [n, 1, 8, 8] are from the nearest digit, and which that is: [n] each."""
    found = (x[:, None] - X.to(x)).abs().flatten(2).amax(2).min(1)
    return found.values, found.indices


def turned_away(g: Tensor, x: Tensor) -> Tensor:
    """The gradient, but its opposite a little off the digits."""
    return torch.where(off(x)[0].view(-1, 1, 1, 1) > 0.03, -g, g)


def falling_lead(z: Tensor) -> Tensor:
    """Scores whose best is nearest to the next where it was farthest off."""
    top = z.topk(2, 1)
    lead = top.values[:, :1] - top.values[:, 1:]
    return z.scatter_add(1, top.indices[:, :1], 1 / (1 + lead) - lead)


class Shell(Defence):
    """Far off the digits, past what the threat allows, every answer is right again."""

    def forward(self, x: Tensor) -> Tensor:
        far, nearest = off(x)
        z = self.inner(x)
        return torch.where((far > 0.33)[:, None], 5.0 * F.one_hot(Y[nearest], 10) + 0.01 * z, z)


class Stubborn(nn.Module):
    """Says 0 to everything, with a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        u = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([1 + u.exp(), 0.1 * u * torch.arange(9)], 1)


class OwnHeadOnly(nn.Module):
    """Features that pass back what its own last layer asks of them, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained(mlp)
        assert isinstance(self.net, nn.Sequential)
        self.body, self.head = self.net[:-1], self.net[-1]
        w = self.head.get_parameter("weight").detach()
        self.kept = torch.linalg.pinv(w) @ w

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Cut.apply(self.body(x), lambda g, _: g @ self.kept))


def seen(model: nn.Module, eps: float = 0.1, first: str = FIRST) -> list[Finding]:
    """The findings before the protocol."""
    source, threat, target = (
        from_arrays(X.numpy(), Y.numpy()),
        Threat.linf(eps),
        holdfast.wrap(model),
    )
    noted = check_model(target, source)
    if randomised(noted):
        target = ExpectationOverTransformation(target, 4)
    trial = parse_trial(first)
    return [
        *noted,
        *findings_of(
            probe(target, source, threat, trial, GradientSources(target, threat, source), 0)
        ),
    ]


TABLE: list[tuple[str, Callable[[], nn.Module], dict[str, Any]]] = [
    ("zero_gradient", lambda: cut(lambda g, _: 0 * g), {}),
    ("non_smooth", lambda: Planted(torch.round), {}),
    ("non_smooth", lambda: Planted(Tensor.detach), {}),
    ("non_smooth", lambda: Planted(lambda x: (x * 8).round() / 8), {}),
    ("non_smooth", lambda: Planted(lambda x: torch.where(x > 0.4, x, 0 * x).detach()), {}),
    ("non_smooth", BROKEN["stairs"], {}),
    ("non_finite_gradient", lambda: cut(lambda g, _: g / 0), {}),
    ("wrong_gradient", lambda: cut(lambda g, _: -g), {}),
    ("wrong_gradient", lambda: cut(lambda g, _: g.flip(-1)), {}),
    ("turning_gradient", BROKEN["shattered"], {}),
    ("one_hot", lambda: scored(lambda z: 1000 * z), {}),
    ("one_step", lambda: cut(turned_away), {}),
    (
        "more_steps",
        lambda: Planted(lambda x: x),
        {"first": 'pgd(steps=8, step_size=0.05, loss="margin")'},
    ),
    ("black_box", lambda: scored(falling_lead), {}),
    ("labels", lambda: Planted(lambda x: x + 0.05 * torch.sin(60 * x)), {}),
    ("unbounded", Stubborn, {}),
    ("larger_eps", lambda: Shell(trained(mlp)), {"eps": 0.3}),
    ("binarisation", OwnHeadOnly, {"eps": 0.02}),
    ("randomised", lambda: Planted(lambda x: x + 0.02 * torch.randn_like(x)), {}),
    ("logit_scale", lambda: scored(lambda z: z + 100), {}),
    ("probabilities", lambda: scored(lambda z: z.softmax(1)), {}),
    ("train_mode", lambda: Planted(lambda x: x).train(), {}),
]


@pytest.mark.parametrize(("check", "model", "options"), TABLE, ids=[row[0] for row in TABLE])
def test_a_planted_failure_raises_exactly_its_finding(
    check: str, model: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    found = seen(model(), **options)
    grave = [f.check for f in found if f.severity != "info"]
    assert (grave or [f.check for f in found]) == [check]


def test_the_table_plants_all_that_the_probe_looks_for() -> None:
    assert len({row[0] for row in TABLE}) >= 15


@pytest.mark.parametrize("name", ["mlp", "linear", "tanh"])
def test_a_sound_model_raises_nothing(name: str) -> None:
    assert [f.check for f in seen(SOUND[name]())] == []


def asked(model: nn.Module, threat: str = "linf(0.1)") -> tuple[int, int, int, int] | None:
    """Of the binarisation test: rows with a solution, those that were missed, forwards,
    backwards."""
    target = holdfast.wrap(model)
    target.bind((1, 8, 8))
    found = missed(target, X[:6], Threat.parse(threat), parse_trial(FIRST), torch.arange(6), 0)
    return None if found is None else (int(found[0].sum()), int(found[1].sum()), *found[2:])


class Twice(Defence):
    """The mean of two looks."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) + self.inner(x.flip(-1))) / 2


class Counted(nn.Module):
    """Counts the rows that are put to a network which ends in a convolution as wide as its
    input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ELU(), nn.Conv2d(4, 10, 6), nn.Flatten())
        self.rows = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.rows[0] += len(x)
        return self.net(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        return self  # so that the count is that of every copy


def test_what_is_planted_is_found_at_the_cost_that_is_said() -> None:
    model = Counted().eval().requires_grad_(False)
    target = holdfast.wrap(model)
    target.bind((1, 8, 8))
    before, weight = model.rows[0], model.net[2].weight.clone()
    found = missed(target, X[:6], Threat.linf(0.1), parse_trial(FIRST), torch.arange(6), 0)
    assert found is not None
    assert (int(found[0].sum()), int(found[1].sum())) == (6, 0)
    assert model.rows[0] - before == found[2]
    assert not torch.equal(weight, model.net[2].weight)  # there is but one copy of this one


@pytest.mark.parametrize("name", ["mlp", "cnn", "hardened-mlp"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    target = holdfast.wrap(SOUND[name]())
    target.bind((1, 8, 8))
    before = target.fingerprint()
    found = missed(target, X[:6], Threat.l2(0.5), parse_trial(FIRST), torch.arange(6), 0)
    assert found is not None
    assert int(found[1].sum()) == 0
    assert target.fingerprint() == before


def test_features_are_kept_only_while_they_are_asked_for() -> None:
    target = holdfast.wrap(mlp())
    target.bind((1, 8, 8))
    planted = PlantedHead(target, X[:4])
    assert len(planted.lead) == 4
    planted.target.batcher.in_parts(planted.target.scores, X[:4])
    assert not planted.seen


def test_where_nothing_can_be_planted_nothing_is() -> None:
    assert asked(nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())) is None
    assert asked(Twice(trained(mlp))) is None
    assert asked(trained(mlp), "l1(1)") is None
    target = holdfast.wrap(lambda x: x.flatten(1)[:, :10])
    target.bind((1, 8, 8))
    attack = parse_trial(FIRST)
    assert missed(target, X[:6], Threat.linf(0.1), attack, torch.arange(6), 0) is None
    torch.manual_seed(0)
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))
    found = asked(single)
    assert found is not None
    assert found[:2] == (6, 0)
    quantised = asked(BROKEN["quantised"]())
    assert quantised is not None
    assert quantised[0] == quantised[1] > 3
