"""Objectives: their gradients and their points by hand, and what attacks achieve after training
with them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.linear_training import F64, GIVEN, NEARBY, ONE, W, X, Y, crafting, softmax
from helpers.training import robust, training
from torch import Tensor, nn

from holdfast.attacks.attack import _noise_of
from holdfast.attacks.universal.advgan import advgan
from holdfast.data import open_data
from holdfast.errors import SpecError
from holdfast.hardening import objectives
from holdfast.hardening.noise import _Smooth
from holdfast.rng import Keys
from holdfast.targets import wrap
from holdfast.threats.threat import Threat
from holdfast.training.objective import Net
from holdfast.training.state import State


def bent(p: Tensor, v: Tensor) -> Tensor:
    """The Jacobian of the softmax, times v."""
    return p * (v - (p * v).sum(1, keepdim=True))


def slopes(text: str) -> Tensor:
    """The gradient on the weights of the linear model, derived by hand: sum over rows of (dL/dz)^T
    x."""
    p, q = softmax(X @ W.T), softmax(NEARBY @ W.T)  # p at x, q at x'
    ratio = (p / q).log()
    kl = (p * ratio).sum(1, keepdim=True)
    dkl_z, dkl_there = p * (ratio - kl), q - p  # of KL(p, q), on the scores at x and at x'
    if text == "standard":
        return (q - ONE).T @ NEARBY / 2  # what it is given as x' is x
    if text == "pgd(smoothing=0.3)":
        return (q - (0.7 * ONE + 0.1)).T @ NEARBY / 2
    if text in (
        "fgsm",
        "fast",
        "nfgsm",
        "free",
        "pgd",
        "avg",
        "max",
        "eat",
        "msd",
        "noise",
        "smoothadv",
    ):
        return (q - ONE).T @ NEARBY / 2
    if text in ("ensemble", "advgan"):
        return ((q - ONE).T @ NEARBY + (p - ONE).T @ X) / 4
    if text == "alp(weight=2)":
        apart = 2 * 2 * (NEARBY - X) @ W.T / 6
        return ((q - ONE) / 4 + apart).T @ NEARBY + ((p - ONE) / 4 - apart).T @ X
    if text == "trades(beta=3)":
        return ((p - ONE) + 3 * dkl_z).T @ X / 2 + 3 * dkl_there.T @ NEARBY / 2
    if text == "hat(beta=3, gamma=2, reach=4)":
        beyond = X + 4 * (NEARBY - X)
        label = torch.eye(3, dtype=F64)[(NEARBY @ GIVEN.T).argmax(1)]
        return slopes("trades(beta=3)") + 2 * (softmax(beyond @ W.T) - label).T @ beyond / 2
    if text == "lse(beta=3, smoothing=0.3)":
        at_x = 2 * bent(p, p - (0.7 * ONE + 0.1)) + 6 * bent(p, p - q)
        return at_x.T @ X / 2 + 6 * bent(q, q - p).T @ NEARBY / 2
    assert text == "mart(beta=3)"
    other = (q * (1 - ONE)).argmax(1)
    r = torch.eye(3, dtype=F64)[other]
    q_r, p_y = (q * r).sum(1, keepdim=True), (p * ONE).sum(1, keepdim=True)
    boosted = q_r / (1 - q_r) * (r - q)
    at_nearby = (q - ONE) + boosted + 3 * (1 - p_y) * dkl_there
    at_x = 3 * (1 - p_y) * dkl_z - 3 * kl * p_y * (ONE - p)
    return at_nearby.T @ NEARBY / 2 + at_x.T @ X / 2


SPECS = [
    *"standard fgsm fast nfgsm free pgd avg max eat msd ensemble advgan noise smoothadv".split(),
    "pgd(smoothing=0.3)",
    *(
        "alp(weight=2)",
        "trades(beta=3)",
        "mart(beta=3)",
        "hat(beta=3, gamma=2, reach=4)",
        "lse(beta=3, smoothing=0.3)",
    ),
]


@pytest.mark.parametrize("text", SPECS)
def test_the_gradient_of_an_objective_is_the_one_derived_by_hand(text: str) -> None:
    w = W.clone().requires_grad_()
    loss, z = objectives.parse(text).loss(
        Net(lambda x: x @ w.T, lambda x: x @ GIVEN.T), X, NEARBY, Y
    )
    loss.mean().backward()
    assert w.grad is not None
    assert torch.allclose(w.grad, slopes(text), atol=1e-12)
    assert torch.equal(z, NEARBY @ w.T)


def test_several_points_a_row_weigh_alike() -> None:
    w = W.clone().requires_grad_()
    loss, z = objectives.parse("avg").loss(
        Net(lambda x: x @ w.T, lambda x: x), X, torch.cat([X, NEARBY]), Y
    )
    loss.mean().backward()
    assert w.grad is not None
    assert torch.allclose(w.grad, slopes("ensemble"), atol=1e-12)
    assert len(z) == 4


def ce(x: Tensor, y: Tensor = Y) -> Tensor:
    return nn.functional.cross_entropy(x @ W.T, y, reduction="none")


def corner(w: Tensor = W) -> Tensor:
    return 0.05 * ((softmax(X @ w.T) - ONE) @ w).sign()


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        *((name, 1) for name in "fgsm fast pgd trades mart alp lse hat avg max eat msd".split()),
        ("nfgsm", 3),
    ],
)
def test_objectives_train_within_their_reach(text: str, reach: int) -> None:
    nearby = objectives.parse(text).points(crafting(), X, Y)
    size = float((nearby - X).abs().max())
    assert 0.05 * max(0.5, 1.01 if reach > 1 else 0) < size <= reach * 0.05 + 1e-12
    assert float(ce(nearby).sum()) > float(ce(X).sum()) or text in ("trades", "hat", "lse")


def test_the_points_of_one_step_are_those_by_hand() -> None:
    assert torch.allclose(objectives.parse("fgsm").points(crafting(), X, Y), X + corner())
    both = objectives.parse("ensemble").points(crafting(), X, Y)
    assert torch.allclose(both, torch.stack([(X + corner(GIVEN))[0], (X + corner())[1]]))


def test_distances_grow_where_an_objective_pays_for_them() -> None:
    def apart(text: str, measure: str) -> Tensor:
        nearby = objectives.parse(text).points(crafting(), X, Y)
        p, q = softmax(X @ W.T), softmax(nearby @ W.T)
        return (p * (p / q).log()).sum(1) if measure == "kl" else (p - q).square().sum(1)

    start = 1e-5
    assert bool((apart("lse", "square") > start).all())
    assert bool(
        (apart("lse(steps=30)", "square") >= apart("trades(steps=30)", "square") - 1e-9).all()
    )
    assert bool((apart("trades(steps=30)", "kl") >= apart("lse(steps=30)", "kl") - 1e-9).all())


def test_several_threats() -> None:
    """Ends under each threat are legal there; max takes the worse one, eat one of them, msd does as
    well as each."""
    text = 'also="l2(0.06), l1(0.09)", steps=30'
    threats = [Threat.linf(0.05), Threat.l2(0.06), Threat.l1(0.09)]

    def legal(d: Tensor) -> Tensor:
        return torch.stack([t.norm.size(d) <= float(t.eps) * (1 + 1e-9) for t in threats])

    ends = objectives.parse(f"avg({text})").points(crafting(), X, Y)
    assert bool(legal(ends - X.repeat(3, 1)).view(3, 3, 2).diagonal().all())
    losses = torch.stack([ce(part) for part in ends.split(2)])
    assert torch.allclose(
        ce(objectives.parse(f"max({text})").points(crafting(), X, Y)), losses.amax(0)
    )
    drawn = ce(objectives.parse(f"eat({text})").points(crafting(), X, Y))
    assert bool(((drawn - losses).abs() < 1e-3).any(0).all())
    steepest = objectives.parse(f"msd({text})").points(crafting(), X, Y)
    assert bool(legal(steepest - X).any(0).all())
    assert bool((ce(steepest) >= losses.amax(0) - 1e-3).all())
    # in the ramp
    half = objectives.parse(f"avg({text})").points(crafting(threats[0].at(0.025), share=0.5), X, Y)
    assert bool(legal(2 * (half - X.repeat(3, 1))).view(3, 3, 2).diagonal().all())


def test_noise_is_gaussian_and_leaves_the_box() -> None:
    x = torch.full((500, 2), 0.9, dtype=F64)
    noise = objectives.parse("noise(sigma=0.5)").points(crafting(), x, torch.zeros(500).long()) - x
    assert abs(float(noise.mean())) < 0.06
    assert float(noise.std()) == pytest.approx(0.5, rel=0.08)
    assert float((x + noise).max()) > 1.2
    again = (
        objectives.parse("noise(sigma=0.5)").points(
            replace(crafting(), seed=2), x, torch.zeros(500).long()
        )
        - x
    )
    assert abs(float((noise * again).mean())) < 0.05


def test_smoothadv_ascends_the_loss_of_the_mean_under_noise() -> None:
    """Its first step, against autograd through the mean softmax at the same draws; and the noise
    around its points."""
    sigma = 0.8
    attack = _Smooth(1, 1.0, sigma, 3, 0.0, 1.0)
    keys = Keys.of(1, torch.arange(2)).fold(_noise_of(attack))
    d = torch.zeros_like(X).requires_grad_()
    shown = [X + d + sigma * keys.fold("noise", i).normal((2,), F64) for i in range(3)]
    mean = torch.stack([softmax(x @ W.T) for x in shown]).mean(0)
    (-mean[torch.arange(2), Y].log().sum()).backward()
    assert d.grad is not None
    expected = (X + 0.05 * d.grad / d.grad.norm(dim=1, keepdim=True)).clamp(0, 1)
    craft = crafting(Threat.l2(0.05))
    text = f"smoothadv(sigma={sigma}, draws=3, steps=1, step_size=1)"
    nearby = objectives.parse(text).points(craft, X, Y)
    noise = [sigma * craft.keys(X, f"noise {i}").normal((2,), F64) for i in range(3)]
    assert torch.allclose(nearby - torch.cat(noise), expected.repeat(3, 1), atol=1e-9)


def test_the_attacker_of_advgan_takes_a_step_up_the_margin_by_hand() -> None:
    """A linear margin's gradient is the difference of two rows of weights; Adam's first step, its
    sign."""
    objective = objectives.parse("advgan(width=2, rate=0.01)")
    craft = crafting()
    torch.manual_seed(0)
    network = objective.attack_network(craft.live)
    assert network is not None
    craft, net = replace(craft, attack_network=network), copy.deepcopy(network.net)
    nearby = objective.points(craft, X, Y)
    assert not torch.equal(nearby, X)
    wrong = (nearby @ W.T).masked_fill(ONE.bool(), -torch.inf).argmax(1)
    (-(net(2 * X - 1) * (W[wrong] - W[Y])).sum() / len(X)).backward()
    objective.teach(craft, X, Y)
    for new, old in zip(network.net.parameters(), net.parameters(), strict=True):
        assert old.grad is not None
        assert torch.allclose(new, old - 0.01 * old.grad.sign(), atol=1e-6)


@pytest.mark.slow
def test_training_against_advgan_makes_it_fail() -> None:
    """The attack learns anew against the network that was trained, on rows of its own."""
    x = torch.from_numpy(open_data("digits").rows(0, 360)[0])
    how = 'epochs=30, batch_size=32, optimiser="adam", rate=0.002, ema=0.9, judge="pgd(steps=2)"'
    rates = []
    for text in ("standard", "advgan(width=8, rate=0.003)"):
        done, net = training(f"fast({how}, objective='{text}')", eps=0.2)
        net.load_state_dict(done.fit(net).best_average())
        options = {"steps": 300, "rows": 32, "width": 8, "rate": 3e-3}
        rates.append(advgan(wrap(net), x[:200], x[200:], Threat.linf(0.2), **options).rate)
    assert rates[1] < rates[0] - 0.2


def test_free_takes_two_steps_by_hand() -> None:
    """One backward at x' gives the step of the weights and the next x'."""
    recipe = 'standard(epochs=1, batch_size=64, objective="free(batch_replays=2, step_size=0.5)", '
    recipe += 'warmup=0, ramp=0, schedule="flat", momentum=0, decay=0, clip=0, rate=0.5)'
    done, net = training(
        recipe, make=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), eps=0.15
    )
    x, y = (torch.from_numpy(part).float() for part in done.data.rows(0, 64))
    y, w, s = y.long(), next(net.parameters()), State(net, done.recipe)
    craft = done._inner_attack(done.target.live(net), 0.15, 0)
    nearby = craft.around(x, "start")
    weights = [v.detach().clone() for v in net.parameters()]

    def step(nearby: Tensor) -> Tensor:
        w, b = (v.clone().requires_grad_() for v in weights)
        nearby = nearby.clone().requires_grad_()
        nn.functional.cross_entropy(nearby.flatten(1) @ w.T + b, y).backward()
        weights[:] = [v.detach() - 0.5 * v.grad for v in (w, b)]  # pyright: ignore[reportOptionalOperand]
        assert nearby.grad is not None
        return nearby.grad

    g = step(nearby)
    nearby = (nearby + 0.5 * 0.15 * g.sign()).clamp(x - 0.15, x + 0.15).clamp(0, 1)
    step(nearby)
    done._step(s, x, y, total=5)
    assert torch.allclose(w, weights[0], atol=1e-6)
    assert s.progress.passes == 4 * 64


def test_objectives_are_calls() -> None:
    for text in [*SPECS, "ibp(reach=1.5)", "crown_ibp", "mtl_ibp(alpha=0.5, steps=2)"]:
        assert repr(objectives.parse(repr(objectives.parse(text)))) == repr(objectives.parse(text))
    bad = "trade trades(gamma=1) pgd(steps=0) pgd(steps=2.5) mart(beta=-1) max(also=3)".split()
    for text in (
        *bad,
        "free(batch_replays=True)",
        'fast(step_size="1")',
        'max(also="l0(3)")',
        'avg(also="l2(1, target=2)")',
        'msd(also="l2(")',
    ):
        with pytest.raises(SpecError):
            objectives.parse(text)
    assert (
        repr(objectives.parse('max("l2(1)", steps=2)').stronger()) == "max(also='l2(1)', steps=4)"
    )
    assert objectives.parse('max(also="l2(2), l1(10)")').passes == 3 * 21 + 2


# ---------------------------------------------------------------------- on digits


@pytest.fixture(scope="module")
def ordinary() -> float:
    """The share of test digits that plain training leaves standing."""
    return robust("standard")


QUICK = ["fast", "nfgsm", "pgd(steps=4)", "trades(steps=4)", "free(batch_replays=4)"]
LONG = [
    *"fgsm mart(steps=4) alp(steps=4) lse(steps=4) hat(steps=4) ensemble noise(sigma=0.3)".split(),
    *(f'{name}(also="l2(0.5)", steps=4)' for name in ("avg", "max", "msd", "eat")),
    "smoothadv(sigma=0.1, steps=2)",
]


@pytest.mark.parametrize(
    "text", [*QUICK, *(pytest.param(text, marks=pytest.mark.slow) for text in LONG)]
)
def test_every_objective_makes_attacks_fail(text: str, ordinary: float) -> None:
    # Noise and a single step from x are weak, as measured: 5 and 10 points on these 100 rows.
    gain = {"noise(sigma=0.3)": 0.03, "fgsm": 0.08}.get(text, 0.1)
    assert robust(text, given=text.startswith(("hat", "ensemble"))) > ordinary + gain
