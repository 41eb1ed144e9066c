"""Penalties and perturbed weights: values and gradients by hand, and what attacks achieve after
training with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.linear_training import F64, GIVEN, NEARBY, ONE, W, X, Y, crafting, softmax
from helpers.training import robust, training
from torch import Tensor, nn

from holdfast.errors import SpecError
from holdfast.hardening import recipes, regularizers
from holdfast.hardening.regularizers import _Bent
from holdfast.tasks import Classes
from holdfast.training import loop
from holdfast.training.loop import Training
from holdfast.training.objective import Net
from holdfast.training.sharpness import MOVES, perturbed_weights
from holdfast.training.state import State

CRAFT = crafting()


def g(w: Tensor, x: Tensor) -> Tensor:
    """The gradient of each row's cross-entropy on its input, for the scores w x."""
    return (softmax(x @ w.T) - ONE) @ w


def loss(w: Tensor, x: Tensor) -> Tensor:
    return -softmax(x @ w.T)[torch.arange(2), Y].log()


def gradalign(w: Tensor) -> Tensor:
    here, there = g(w, X).detach(), g(w, CRAFT.around(X, "gradalign"))
    return 3 * (1 - (here * there).sum(1) / here.norm(dim=1) / there.norm(dim=1)).mean()


def elle(w: Tensor) -> Tensor:
    u, v, a = (
        CRAFT.around(X, "first"),
        CRAFT.around(X, "second"),
        CRAFT.keys(X, "between").uniform((), F64),
    )
    middle = (1 - a)[:, None] * u + a[:, None] * v
    return 3 * (loss(w, middle) - (1 - a) * loss(w, u) - a * loss(w, v)).square().mean()


def jacobian(w: Tensor) -> Tensor:
    # [2, n, k]
    v = torch.stack([CRAFT.keys(X, f"projection {i}").normal((3,), F64) for i in range(2)])
    v = v / v.norm(dim=2, keepdim=True)
    return 3 / 2 * 3 * (v @ w).square().sum(2).mean()


def cure(w: Tensor) -> Tensor:
    far = X + 2 * 0.05 * g(w, X).sign().detach()
    return 3 * (g(w, far) - g(w, X)).square().sum(1).mean()


def llr(w: Tensor) -> Tensor:
    d = (CRAFT(_Bent(4, 0.5), X, Y) - X).detach()
    line = (d * g(w, X)).sum(1)
    return (3 * (loss(w, X + d) - loss(w, X) - line).abs() + 2 * line.abs()).mean()


def spectral(w: Tensor) -> Tensor:
    """Of a matrix with two columns: the root of the characteristic polynomial of w^T w."""
    m = w.T @ w
    half = (m[0, 0] + m[1, 1]) / 2
    return 3 / 2 * (half + (half**2 - m[0, 0] * m[1, 1] + m[0, 1] ** 2).sqrt())


BY_HAND: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("gradalign(weight=3)", gradalign),
    ("elle(weight=3)", elle),
    ("gradient(weight=3)", lambda w: 3 * g(w, X).square().sum(1).mean()),
    ("jacobian(weight=3, projections=2)", jacobian),
    ("cure(weight=3, h=2)", cure),
    ("llr(weight=3, slope=2, steps=4)", llr),
    ("squeeze(weight=3)", lambda w: 3 * (NEARBY @ w.T).square().mean()),
    ("spectral(weight=3)", spectral),
]


@pytest.mark.parametrize(("text", "expected"), BY_HAND)
def test_a_penalty_and_its_gradient_are_those_by_hand(
    text: str, expected: Callable[[Tensor], Tensor]
) -> None:
    (part,) = regularizers.parse(text)
    assert regularizers.parse(repr(part)) == [part]
    w, v = (W.clone().requires_grad_() for _ in range(2))
    craft = CRAFT
    if text.startswith("spectral"):  # it asks the weights themselves
        craft = crafting()
        w = next(craft.live.model.parameters()).requires_grad_()  # pyright: ignore[reportAttributeAccessIssue]
    found, hand = (
        part.penalty(Net(lambda x: x @ w.T, lambda x: x @ GIVEN.T), craft, X, Y, NEARBY @ w.T),
        expected(v),
    )
    assert float(found.detach()) == pytest.approx(float(hand.detach()), rel=1e-9)
    assert float(hand.detach()) > 1e-8
    found.backward()
    hand.backward()
    assert w.grad is not None
    assert v.grad is not None
    assert torch.allclose(w.grad, v.grad, atol=1e-10)


def test_projections_measure_the_whole_jacobian() -> None:
    (part,) = regularizers.parse("jacobian(weight=2, projections=3000)")
    found = part.penalty(Net(lambda x: x @ W.T, lambda x: x), CRAFT, X, Y, X @ W.T)
    assert float(found.detach()) == pytest.approx(float(W.square().sum()), rel=0.03)


def test_the_search_of_llr_finds_where_the_loss_bends() -> None:
    def bend(d: Tensor) -> Tensor:
        return (loss(W, X + d) - loss(W, X) - (d * g(W, X)).sum(1)).abs()

    found = bend(CRAFT(_Bent(10, 0.5), X, Y) - X)
    for i in range(20):
        assert bool((found >= bend(CRAFT.around(X, str(i)) - X)).all())


def test_gradients_of_a_linear_model_of_two_classes_are_aligned() -> None:
    live = CRAFT.live.live(nn.Linear(2, 2).double())
    live.task = Classes(2)
    two = replace(CRAFT, live=live)
    assert torch.allclose(two.aligned(X, torch.tensor([0, 1])), torch.ones(2, dtype=F64))
    assert bool((CRAFT.aligned(X, Y) < 1).all())


def test_weights_move_as_by_hand() -> None:
    weights = [torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])]
    slopes = [torch.tensor([[0.0, 2.0]]), torch.tensor([1.0])]
    moves = {
        kind: [m.flatten().tolist() for m in MOVES[kind](weights, slopes, 0.1)] for kind in MOVES
    }
    assert moves["awp"] == [pytest.approx([0, 0.5]), [0.0]]
    assert moves["sam"] == [pytest.approx([0, 0.2 / 5**0.5]), pytest.approx([0.1 / 5**0.5])]
    scaled = (8**2 + 2**2) ** 0.5  # |w| |g|: (0, 8) and 2
    assert moves["asam"] == [
        pytest.approx([0, 0.1 * 16 * 2 / scaled]),
        pytest.approx([0.1 * 4 / scaled]),
    ]


@pytest.mark.parametrize("kind", ["sam", "asam"])
def test_a_flat_step_takes_the_gradient_where_the_loss_is_worse(kind: str) -> None:
    net = nn.Linear(2, 3, bias=False).double()
    before = net.weight.detach().clone()

    def now() -> Tensor:
        return F.cross_entropy(net(X), Y)

    ordinary_loss = float(now().detach())
    with perturbed_weights(net, now, kind, 0.05):
        assert float(now().detach()) > ordinary_loss
        worse = torch.autograd.grad(now(), net.weight)[0]
    assert torch.equal(net.weight, before)
    here = torch.autograd.grad(now(), net.weight)[0]
    scale = before.abs() if kind == "asam" else torch.ones_like(before)
    move = 0.05 * scale.square() * here / (scale * here).norm()
    at = before + move
    assert torch.allclose(worse, (softmax(X @ at.T) - ONE).T @ X / 2, atol=1e-9)


def test_penalties_and_perturbed_weights_are_counted() -> None:
    how = 'epochs=1, batch_size=64, ramp=0, sam=0.01, regularize="gradalign, spectral"'
    done, net = training(f"standard({how}, objective='pgd(steps=2)')")
    assert done.fit(net).progress.passes == 320 * (4 + 2 + 6 + 2)


@pytest.mark.parametrize(
    "text",
    [
        'regularize="gradaling"',
        'regularize="cure("',
        "regularize=3",
        "awp=0.1, sam=0.1",
        "patience=-1",
        "swa=1.5",
    ],
)
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises(SpecError):
        recipes.parse(f"standard({text})")


# -------------------------------------------------------- the averaged weights, and when to stop


def test_the_last_steps_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """SWA: the average is the mean of the weights after each of the last steps."""
    done, net = training(
        'standard(epochs=2, batch_size=64, objective="standard", swa=0.7, judge="pgd(steps=2)")'
    )
    seen, blend = [], loop.blend

    def watched(average: nn.Module, now: nn.Module, share: float) -> None:
        blend(average, now, share)
        seen.append(next(now.parameters()).detach().clone())

    monkeypatch.setattr(loop, "blend", watched)
    s = done.fit(net)
    assert len(seen) == 10
    assert torch.allclose(next(s.average.parameters()), torch.stack(seen[3:]).mean(0), atol=1e-6)


def test_a_training_without_gain_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    done, net = training('standard(epochs=9, patience=2, ramp=0, objective="standard")', rows=128)
    answers = iter([(0.9, 0.3, 0.3), (0.9, 0.5, 0.5), (0.9, 0.4, 0.4), (0.9, 0.4, 0.45)])
    monkeypatch.setattr(Training, "_judge", lambda *_: (*next(answers), 1.0, 1.0))
    place = done.fit(net).progress
    assert (place.epoch, place.best_epoch) == (4, 2)


# ---------------------------------------------------------------------- on digits

GAINS = [
    ("gradient(weight=0.3)", "standard"),
    ("jacobian(weight=0.1)", "standard"),
    ("cure(weight=0.3)", "standard"),
    ("llr", "standard"),
    ("elle(weight=100)", "fgsm"),
    ("gradalign(weight=0.2)", "fgsm"),
    ("squeeze(weight=0.5)", "standard"),
    ("spectral(weight=0.05)", "standard"),
]


@pytest.fixture(scope="module")
def ordinary() -> float:
    """The share of test digits that plain training leaves standing."""
    return robust("standard")


@pytest.mark.slow
@pytest.mark.parametrize(("text", "objective"), GAINS)
def test_every_regularizer_makes_attacks_fail(text: str, objective: str, ordinary: float) -> None:
    assert robust(objective, f', regularize="{text}"') > ordinary + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("text", ["awp=0.005", "sam=0.05", "asam=0.5"])
def test_perturbed_weights_train_too(text: str, ordinary: float) -> None:
    assert robust("pgd(steps=4)", f", {text}") > ordinary + 0.1


def test_penalties_learn_nothing_from_noise() -> None:
    """Batch norms see the batch once, whatever a penalty asks about."""

    def make() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))

    done, net = training(
        'standard(epochs=1, batch_size=320, ramp=0, regularize="elle, cure, llr")', make=make
    )
    s = State(net, done.recipe)
    done.fit(net)
    assert int(net[1].num_batches_tracked) == 1  # pyright: ignore
    assert s.progress.step == 0
