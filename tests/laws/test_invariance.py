"""A shift of the logits, a positive scale and a renaming of the classes change no outcome and no
size."""

from __future__ import annotations

import numpy as np
import torch
from helpers.catalogue import OF_TWO, brief, every, losses_of
from helpers.models import (
    EPS,
    POOLS,
    SHAPE,
    Forms,
    Then,
    bent,
    draw,
    linear,
    pool,
    rows,
    run,
    run_forms,
    threat,
    wrap,
)
from torch import Tensor

from holdfast.attacks import Attack, SearchResult
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Targeted

N = 30


def alike(a: SearchResult, b: SearchResult) -> None:
    """Same outcomes and sizes."""
    assert torch.equal(a.outcome, b.outcome)
    assert torch.equal(a.forwards, b.forwards)
    np.testing.assert_allclose(a.size.numpy(), b.size.numpy(), rtol=1e-6)


def ordinary_rows(
    target: TorchTarget, *, edge: bool = False, wrong: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows in form 0 of a model `Forms`, and its own decisions on them; `wrong`: but for every
    fourth."""
    x, _ = rows(target, N, edge=edge)
    x.flatten(1)[:, -1] = 0
    y = target.labels(x)
    if wrong:
        y[::4] = (y[::4] + 1) % target.task.k
    return x, y


def attacks_of(name: str, steps: int = 6) -> list[Attack]:
    return [brief(name, steps, **fields) for fields in losses_of(name)]


@every(0)
def test_shift_and_scale(name: str, norm: str) -> None:
    target = wrap(Forms(bent(), lambda z: z + 100, lambda z: z * 1e-3, lambda z: z * 300))
    x, y = ordinary_rows(target, edge=True)
    for attack in attacks_of(name):
        # The gradient of cross-entropy turns with the scale where there are more than two classes,
        # and so the point.
        count = 2 if getattr(attack, "loss", "") == "ce" else 4
        for options in ({}, {"rank": 2}):
            first, *others = run_forms(attack, target, x, y, norm, count=count, **options)
            assert 0 < int(first.broken.sum()) < N
            for other in others:
                alike(other, first)


@every(1)
def test_scale_with_two_classes_for_every_loss(name: str, norm: str) -> None:
    target = wrap(Forms(bent(2), lambda z: z * 1e-3, lambda z: z * 300))
    x, y = ordinary_rows(target)
    for attack in attacks_of(name):
        first, *others = run_forms(attack, target, x, y, norm, count=3)
        for other in others:
            alike(other, first)


@every(2)
def test_names_of_classes(name: str, norm: str) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])  # the new model's class i is the old one's order[i]
    back = order.argsort()
    target = wrap(Forms(bent(), lambda z: z[:, order]))
    x, y = ordinary_rows(target, wrong=True)
    aims = (y + 2) % 5
    aimed = {"eps": 2 * EPS[norm], "goal": Targeted(torch.cat([aims, back[aims]]))}
    for attack in attacks_of(name):
        # takes images of other classes from the pool, whose classes have one name in a run
        if attack.mixes:
            names_change_no_mixture(attack, norm, order)
            continue
        for options in ({}, {"rank": 1}):
            alike(*run_forms(attack, target, x, [y, back[y]], norm, count=2, **options))
        alike(*run_forms(attack, target, x, [y, back[y]], norm, count=2, **aimed))


def names_change_no_mixture(attack: Attack, norm: str, order: Tensor) -> None:
    model, back = bent(), order.argsort()
    ordinary, renamed = wrap(model), wrap(Then(model, lambda _, z: z[:, order]))
    images, classes = pool(ordinary)
    POOLS[renamed] = images, back[classes]
    x, y = rows(ordinary, N, wrong=True)
    for options in ({}, {"rank": 1}):
        first = run(attack, ordinary, x, y, threat(norm), **options)
        alike(run(attack, renamed, x, back[y], threat(norm), **options), first)
    aims = (y + 2) % 5
    first = run(attack, ordinary, x, y, threat(norm, 2 * EPS[norm], goal=Targeted(aims)))
    alike(
        run(attack, renamed, x, back[y], threat(norm, 2 * EPS[norm], goal=Targeted(back[aims]))),
        first,
    )


@every(3)
def test_all_logits_negative(name: str, norm: str) -> None:
    target = wrap(Forms(linear(3), lambda z: z - 100))
    x, y = ordinary_rows(target)
    for attack in attacks_of(name):
        alike(*run_forms(attack, target, x, y, norm, count=2))


@every(4)
def test_saturated_scores_still_fall_in_float32(name: str, norm: str) -> None:
    """At 1000 times the scale a float32 softmax is exactly 1; every loss must see through it."""
    dtype = torch.float32
    target = wrap(Forms(bent(2, dtype=dtype), lambda z: z * 1000))
    x = draw(N, *SHAPE, dtype=dtype)
    x.flatten(1)[:, -1] = 0
    y: Tensor = target.labels(x)
    for attack in attacks_of(name, OF_TWO.get(name, 6)):
        cool, burnt = run_forms(attack, target, x, y, norm, count=2)
        assert abs(int(cool.broken.sum()) - int(burnt.broken.sum())) <= 1
        assert int(burnt.broken.sum()) > 0
