"""A shift of the logits, a positive scale and a renaming of the classes change no outcome and no size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks import Attack, Ledger, run
from holdfast.targets import TorchTarget
from holdfast.threat import Targeted
from laws.catalogue import every, losses_of, short
from laws.world import EPS, SHAPE, Then, bent, draw, linear, pool, rows, threat, wrap

N = 30


def alike(a: Ledger, b: Ledger) -> None:
    """Same outcomes and sizes."""
    assert torch.equal(a.outcome, b.outcome)
    assert torch.equal(a.forwards, b.forwards)
    np.testing.assert_allclose(a.size.numpy(), b.size.numpy(), rtol=1e-6)


def attacks_of(name: str) -> list[Attack]:
    return [short(name, **fields) for fields in losses_of(name)]


def scaled(model: nn.Module, scale: float, shift: float = 0) -> TorchTarget:
    return wrap(Then(model, lambda _, z: z * scale + shift))


@every
def test_shift_and_scale(name: str, norm: str) -> None:
    model = bent()
    plain = wrap(model)
    x, y = rows(plain, N, edge=True)
    for attack in attacks_of(name):
        # The gradient of cross-entropy turns with the scale where there are more than two classes, and so the point.
        scales = () if getattr(attack, "loss", "") == "ce" else (1e-3, 300)
        for options in ({}, {"rank": 2}):
            first = run(attack, plain, x, y, threat(norm), **options)
            assert 0 < int(first.broken.sum()) < N
            for changed in (scaled(model, 1, 100), *(scaled(model, scale) for scale in scales)):
                alike(run(attack, changed, x, y, threat(norm), **options), first)


@every
def test_scale_with_two_classes_for_every_loss(name: str, norm: str) -> None:
    model = bent(2)
    plain = wrap(model)
    x, y = rows(plain, N)
    for attack in attacks_of(name):
        first = run(attack, plain, x, y, threat(norm))
        for scale in (1e-3, 300):
            alike(run(attack, scaled(model, scale), x, y, threat(norm)), first)


@every
def test_names_of_classes(name: str, norm: str) -> None:
    model = bent()
    order = torch.tensor([3, 0, 4, 2, 1])  # the new model's class i is the old one's order[i]
    back = order.argsort()
    plain, renamed = wrap(model), wrap(Then(model, lambda _, z: z[:, order]))
    images, classes = pool(plain)
    renamed.pool = images, back[classes]
    x, y = rows(plain, N, wrong=True)
    for attack in attacks_of(name):
        for options in ({}, {"rank": 1}):
            first = run(attack, plain, x, y, threat(norm), **options)
            alike(run(attack, renamed, x, back[y], threat(norm), **options), first)
        aims = (y + 2) % 5
        first = run(attack, plain, x, y, threat(norm, 2 * EPS[norm], goal=Targeted(aims)))
        alike(run(attack, renamed, x, back[y], threat(norm, 2 * EPS[norm], goal=Targeted(back[aims]))), first)


@every
def test_all_logits_negative(name: str, norm: str) -> None:
    model = linear(3)
    low = Then(model, lambda _, z: z - 100)
    plain, lowered = wrap(model), wrap(low)
    x, y = rows(plain, N)
    for attack in attacks_of(name):
        alike(run(attack, lowered, x, y, threat(norm)), run(attack, plain, x, y, threat(norm)))


@every
def test_saturated_scores_still_fall_in_float32(name: str, norm: str) -> None:
    """At 1000 times the scale a float32 softmax is exactly 1; every loss must see through it."""
    dtype = torch.float32
    model = bent(2, dtype=dtype)
    plain, hot = wrap(model), wrap(Then(model, lambda _, z: z * 1000))
    x = draw(N, *SHAPE, dtype=dtype)
    y: Tensor = plain.labels(x)
    for attack in attacks_of(name):
        cool, burnt = run(attack, plain, x, y, threat(norm)), run(attack, hot, x, y, threat(norm))
        assert abs(int(cool.broken.sum()) - int(burnt.broken.sum())) <= 1
        assert int(burnt.broken.sum()) > 0
