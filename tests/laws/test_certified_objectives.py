"""Objectives that pay for bounds: the bounds are those of `holdfast.bounds`, they hold, and their
gradients are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.bounds import rows_of
from helpers.linear_training import F64, W, X, Y, crafting, linear
from helpers.networks import CLASSES, KINDS, SHAPE, Residual, network
from torch import Tensor, nn

from holdfast.bounds import Rows, margins, region, trace
from holdfast.bounds.differentiable import statistics
from holdfast.errors import InputError, SpecError
from holdfast.hardening import objectives
from holdfast.hardening.certified import Bounding
from holdfast.targets import TorchTarget, wrap
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.objective import Net

THREAT = Threat.linf(0.05)
NAMES = ("ibp", "crown_ibp", "mtl_ibp(alpha=0.5, steps=1)")


def asked(net: nn.Module, text: str = "ibp", share: float = 1.0) -> tuple[Bounding, InnerAttack]:
    target = wrap(net)
    target.bind(SHAPE)
    assert isinstance(target, TorchTarget)
    objective = objectives.parse(text)
    assert isinstance(objective, Bounding)
    program = objective.program(target, THREAT)
    live = target.live(net)
    return objective, InnerAttack(live, target, THREAT, 1, share, program=program)


def loss_of(objective: Bounding, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
    net = Net(inner.live.outputs, inner.given.scores, inner)
    return objective.loss(net, x, x, y)[0].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_are_those_of_proofs_but_for_rounding(kind: str) -> None:
    net, (x, y) = network(kind, 3), rows_of(3, n=4)
    objective, inner = asked(net)
    found = objective.lower(objective.rows(inner, x, y, {}, 1.0), 1.0)
    rows = Rows(trace(net, x[:1]), region(x, THREAT, Bounds()), y)
    expected = rows.climb("ibp")
    other = expected.isfinite()
    assert int(other.sum()) == 4 * (CLASSES - 1)
    assert torch.allclose(found.double()[other], expected[other], rtol=1e-3, atol=1e-3)
    assert bool((found[~other] == 0).all())


def after_a_step(net: nn.Module) -> nn.Module:
    """The network after a step that its graph, written down before it, did not see."""
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.1).add_(0.01)
    return net


@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize("kind", ["residual", "pooled"])
def test_no_point_of_the_ball_lies_below_the_bounds_of_a_network_that_trains(
    kind: str, text: str
) -> None:
    """In training mode, by the statistics of the batch, and after a step."""
    net, (x, y) = network(kind, 5), rows_of(5, n=6)
    objective, inner = asked(net, text, share=0.5)
    after_a_step(net).train()
    with statistics(net) as others:
        net(x)
    lower = objective.lower(objective.rows(inner, x, y, others, 1.0), 0.5)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):  # by which every point is normalised alike
            part.momentum = 1.0
    net(x)
    for name, part in net.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var = others[f"{name}.running_var"].detach()  # which torch corrects by n
    net.eval()
    draws = torch.Generator().manual_seed(0)
    for i in range(200):
        d = torch.rand(x.shape, generator=draws) * 2 - 1
        z = net((x + 0.05 * (d.sign() if i % 2 else d)).clamp(0, 1))
        assert bool((z.gather(1, y[:, None]) - z >= lower - 1e-4).all())


@pytest.mark.parametrize("text", NAMES)
def test_gradients_are_those_of_finite_differences(text: str) -> None:
    """In float64, in training mode: through the statistics of a batch norm, a fork, and lines."""
    torch.manual_seed(2)
    net = Residual(nn.ReLU()).double().train()
    x, y = rows_of(2, n=5)
    x = x.double()
    objective, inner = asked(net, text, share=0.4)
    net.train()
    weights = [net.first.weight, net.second.weight, net.norm.weight, net.last.weight]
    grads = torch.autograd.grad(loss_of(objective, inner, x, y), weights)
    draws = torch.Generator().manual_seed(0)
    for weight, grad in zip(weights, grads, strict=True):
        step = torch.randn(weight.shape, generator=draws, dtype=torch.float64) * 1e-6
        with torch.no_grad():
            values = []
            for side in (1, -2):
                weight.add_(side * step)
                values.append(float(loss_of(objective, inner, x, y)))
            weight.add_(step)
        assert (values[0] - values[1]) / 2 == pytest.approx(float((grad * step).sum()), rel=1e-4)


@pytest.mark.parametrize("text", NAMES)
def test_the_loss_of_a_row_is_that_of_the_row_alone(text: str) -> None:
    net, (x, y) = network("residual", 3), rows_of(3, n=4)
    objective, inner = asked(net, text, share=0.4)
    net.eval()  # in training a batch norm mixes the rows
    losses = loss_of(objective, inner, x, y)
    alone = [loss_of(objective, inner, x[i : i + 1], y[i : i + 1]).detach() for i in range(4)]
    assert float(losses.detach()) == pytest.approx(float(sum(alone)) / 4, rel=1e-4)


def test_the_loss_of_a_linear_model_is_the_one_by_hand() -> None:
    """Its margins' bounds are exact: margin - eps |w_y - w_j|_1, within the box."""
    target = linear(W)
    objective = objectives.parse("ibp(reach=2)")
    program = objective.program(target, Threat.linf(0.05))
    inner = replace(crafting(), program=program)
    lower = torch.stack(
        [
            torch.stack([(W[y] - W[j]) @ x - 0.1 * (W[y] - W[j]).abs().sum() for j in range(3)])
            for x, y in zip(X, Y, strict=True)
        ]
    )
    # the second row's features stand 0.1 from the sides of the box, and no closer
    loss, z = objective.loss(Net(inner.live.outputs, inner.given.scores, inner), X, X, Y)
    expected = nn.functional.cross_entropy(-lower, Y, reduction="none")
    assert torch.allclose(loss, expected, atol=1e-5)
    assert torch.equal(z, X @ W.T)
    assert loss.dtype == F64


def test_what_is_proved_of_held_rows_is_proved_by_proofs_too() -> None:
    net, (x, _) = network("residual", 8), rows_of(8, n=200)
    y = net(x).argmax(1)
    objective, inner = asked(net)
    inner = replace(inner, threat=Threat.linf(0.01))
    found = objective.proved(inner, x, y)
    assert 10 < int(found.sum()) < 190
    assert bool((margins(net, x, y, inner.threat).proved | ~found).all())
    assert not objective.proved(inner, x, (y + 1) % CLASSES).any()


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


@pytest.mark.parametrize(
    ("make", "threat", "words"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 4), Odd()), "linf(0.1)", "sin, in 2 (O"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 4)), "l2(0.1)", "linf, and not l2(0.1)"),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()),
            "linf(0.1)",
            "statistics of the batch",
        ),
    ],
)
def test_what_has_no_bounds_is_refused_in_a_sentence(
    make: Callable[[], nn.Module], threat: str, words: str
) -> None:
    target = wrap(make())
    target.bind(SHAPE)
    for name in NAMES:
        with pytest.raises((InputError, SpecError)) as raised:
            objectives.parse(name).program(target, Threat.parse(threat))  # pyright: ignore
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
