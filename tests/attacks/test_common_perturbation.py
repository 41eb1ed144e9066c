"""One answer for all inputs: the universal perturbation and the patch."""

from __future__ import annotations

import pytest
import torch
from helpers.models import draw, linear, wrap
from torch import Tensor

import holdfast
from holdfast.attacks.shared.common_perturbation import InputSet
from holdfast.attacks.universal.patch import Placement, fooled, patch
from holdfast.attacks.universal.universal import universal
from holdfast.data import open_data
from holdfast.errors import SpecError
from holdfast.rng import Keys
from holdfast.targets import Target
from holdfast.targets.demo import demo_model
from holdfast.threats.threat import Targeted, Threat


def digits() -> tuple[Target, Tensor, Tensor]:
    x = torch.from_numpy(open_data("digits").rows(0, 300)[0])
    return holdfast.wrap(demo_model()), x[:150], x[150:]


def test_of_a_linear_model_the_best_is_found() -> None:
    """All rows pull towards one corner of the ball: that of the difference of two weights."""
    model = linear(2)
    target, x = wrap(model), 0.3 + 0.4 * draw(40, 1, 4, 4)
    goal = 1 - int(target.labels(x).mode().values)
    made = universal(target, x, x, Threat.linf(0.1, goal=Targeted(goal)), steps=30, step_size=0.2)
    w = (model.w[goal] - model.w[1 - goal]).detach()
    assert torch.equal(made.d.flatten(), 0.1 * w.sign())
    of = target.labels(x) != goal
    assert torch.equal(made.held_out, (target.labels(x + made.d) == goal)[of])
    assert bool(made.held_out.any())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.5), ("l1", 6.0)])
def test_it_stays_in_the_ball_and_beats_noise(norm: str, eps: float) -> None:
    target, x, held_out = digits()
    threat = getattr(Threat, norm)(eps)
    made = universal(target, x, held_out, threat, steps=40)
    assert float(threat.norm.size(made.d[None])) <= eps * (1 + 1e-6)
    inputs = InputSet(target, held_out, threat)
    noise = eps * threat.norm.extreme(Keys.of(0, torch.arange(5)), x[:5])
    chance = [float(inputs.fooled((held_out + d).clamp(0, 1)).double().mean()) for d in noise]
    assert made.rate > 2 * max(chance)
    assert made.rate == pytest.approx(
        float(inputs.fooled((held_out + made.d).clamp(0, 1)).double().mean())
    )


def test_seeds_decide() -> None:
    target, x, held_out = digits()
    first, again, other = (
        universal(target, x, held_out, Threat.l2(1.0), steps=5, seed=s).d for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    small, twin, third = (
        patch(target, x, held_out, steps=3, rows=8, step_size=0.1, seed=s).pixels for s in (1, 1, 2)
    )
    assert torch.equal(small, twin)
    assert not torch.equal(small, third)


def test_a_patch_covers_its_share_and_no_more() -> None:
    image, placement = draw(50, 3, 20, 30), Placement(share=0.1, degrees=45, least=0.5)
    keys = Keys.of(0, torch.arange(50))
    pasted = placement.paste(torch.full((3, 8, 8), 2.0, dtype=image.dtype), image, keys)
    covered = (pasted > 1.5).all(1)
    assert torch.equal(torch.where(covered[:, None], image, pasted), image)
    count = covered.flatten(1).sum(1)
    assert int(count.max()) <= 60
    assert 15 <= int(count.min()) < 30
    rows, columns = covered.any(2), covered.any(1)
    assert bool(rows[:, :2].any())  # it comes near both edges, and lies in many places
    assert bool(rows[:, -2:].any())
    assert len({tuple(r) for r in rows.tolist()}) > 20
    assert int(columns.sum(1).max()) <= 8 * 1.5  # in one piece


def test_a_patch_beats_random_ones() -> None:
    target, x, held_out = digits()
    placement = Placement(share=0.2)
    made = patch(target, x, held_out, placement=placement, steps=40)
    assert float(made.pixels.min()) >= 0
    assert float(made.pixels.max()) <= 1
    inputs = InputSet(target, held_out, Threat.linf(1.0))
    chance = [
        float(
            fooled(inputs, draw(1, 4, 4, seed=s, dtype=x.dtype).round(), placement).double().mean()
        )
        for s in range(5)
    ]
    assert made.rate > 1.3 * max(chance)
    assert torch.equal(made.held_out, fooled(inputs, made.pixels, placement))


def test_an_unbounded_threat_is_refused() -> None:
    target, x, held_out = digits()
    with pytest.raises(SpecError, match="finite eps"):
        universal(target, x, held_out, Threat.l2(torch.inf))
    with pytest.raises(SpecError, match="steps is 0"):
        patch(target, x, held_out, steps=0)
    with pytest.raises(SpecError, match="placement"):
        Placement(share=1.5)
