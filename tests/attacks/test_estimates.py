"""NES, SPSA and Bandits: their estimates in exact arithmetic, and the optimum of linear models."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.exact import best_margin
from helpers.models import EPS, SHAPE, Bent, close, linear, rows, threat, wrap
from torch import Tensor

from holdfast.attacks import parse, run
from holdfast.attacks.problem import Problem
from holdfast.attacks.score.bandits import Bandits
from holdfast.attacks.score.nes import NES
from holdfast.attacks.score.spsa import SPSA
from holdfast.errors import SpecError
from holdfast.rng import Keys


def problem(norm: str, n: int = 3, shape: tuple[int, ...] = SHAPE, **options: object) -> Problem:
    """Two classes: the margin is linear, with slope w1 - w0."""
    model = linear(2, features=math.prod(shape))
    target = wrap(model, shape, bounds=(-20, 20), **options)
    x, y = rows(target, n)
    p = Problem(target, x, y * 0, threat(norm, EPS[norm]), Keys.of(3, torch.arange(n)))
    p.slope = (model.w.detach()[1] - model.w.detach()[0]).view(shape)  # pyright: ignore[reportAttributeAccessIssue]
    return p


# In L2 a guess grows long where the clean margin is small, and turns slowly from then on.
@pytest.mark.parametrize(
    ("spec", "norm", "share"),
    [
        ("nes(steps=60, samples=20)", "linf", 0.93),
        ("nes(steps=60, samples=20)", "l2", 0.93),
        ("spsa(steps=60, samples=20)", "linf", 0.93),
        ("spsa(steps=60, samples=20)", "l2", 0.93),
        ("bandits(steps=150)", "linf", 0.93),
        ("bandits(steps=300)", "l2", 0.55),
    ],
)
def test_a_linear_model_falls_nearly_as_far_as_it_can(spec: str, norm: str, share: float) -> None:
    model = linear(2)
    target = wrap(model, bounds=(-1, 2))  # far enough
    x, y = rows(target, 15)
    eps = EPS[norm]
    ledger = run(parse(spec), target, x, y, threat(norm, eps), stop=False)
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    columns = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    least = [best_margin(norm, w, b, row, label, eps, -1, 2) for row, label in columns]
    clean = target.task.margin(target.scores(x), y)
    fall = (clean - ledger.margin) / (clean - torch.tensor(least, dtype=x.dtype))
    assert bool(((fall >= share) & (fall <= 1 + 1e-6)).all())


def test_nes_moves_by_the_sum_of_slopes_times_directions() -> None:
    p, attack = problem("linf"), NES(samples=6, step_size=0.3)
    d = 0.5 * p.eps * p.noise("at").signs(SHAPE, p.x.dtype)
    p.t = 1
    u = p.noise("around").normal((3, *SHAPE), p.x.dtype)
    g = sum(
        2 * 0.001 * 40 * (u[:, j] * p.slope).sum((1, 2, 3)).view(-1, 1, 1, 1) * u[:, j]
        for j in range(3)
    )  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(g, Tensor)
    close(attack.step(p, d, 0), p.project(d + 0.3 * p.eps * g.sign()), atol=1e-12)


def test_spsas_first_step_is_the_rate_in_every_feature_and_the_second_is_adams() -> None:
    p, attack = problem("linf"), SPSA(samples=4, rate=0.0002)
    s, seen = attack.start(p), []
    for t in range(2):
        p.t = t + 1
        v = p.noise("around").signs((2, *SHAPE), p.x.dtype)
        pull = [(v[:, j] * p.slope).sum((1, 2, 3)).view(-1, 1, 1, 1) * v[:, j] for j in range(2)]  # pyright: ignore[reportAttributeAccessIssue]
        seen.append(pull[0] + pull[1])
        after = attack.step(p, s, t)
        if t == 0:
            close((after.d - s.d).abs(), torch.full_like(s.d, 0.0002 * 40), rtol=1e-6)
        s = after
    mean = (0.09 * seen[0] + 0.1 * seen[1]) / (1 - 0.9**2)
    root = ((0.000999 * seen[0].square() + 0.001 * seen[1].square()) / (1 - 0.999**2)).sqrt()
    close(s.d, (0.008 * seen[0].sign() + 0.008 * mean / root), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("norm", "rate", "explore", "reach"), [("linf", 100, 1, 0.1), ("l2", 0.1, 0.01, 0.01)]
)
def test_bandits_first_guess_is_the_authors(
    norm: str, rate: float, explore: float, reach: float
) -> None:
    """From no guess both queries lie on one line: u / |u| times the reach."""
    p, attack = problem(norm), Bandits(step_size=0.5)
    p.t = 1
    s = attack.step(p, attack.start(p), 0)
    u = explore / 4 * p.noise("vary").normal(SHAPE, p.x.dtype)
    unit = p.value(torch.zeros_like(p.x), "margin").abs()
    along = 2 * reach * 40 * (u * p.slope).sum((1, 2, 3)) / u.flatten(1).norm(dim=1)  # pyright: ignore[reportAttributeAccessIssue]
    close(s.unit, unit)
    close(s.prior, rate * (along / unit / (reach * explore)).view(-1, 1, 1, 1) * u, rtol=1e-6)
    close(s.d, p.project(0.5 * p.eps * p.steepest(s.prior)))


def test_the_grid_is_spread_in_tiles_in_either_layout() -> None:
    for layout, shape in (("nchw", (2, 4, 6)), ("nhwc", (4, 6, 2))):
        target = wrap(Bent(3, 48, 5, 0, torch.float64), shape, layout=layout)
        x, y = rows(target, 2)
        p = Problem(target, x, y, threat("linf"), Keys.of(0, torch.arange(2)))
        attack = Bandits(grid=2)
        assert attack.start(p).prior.shape == (2, 2, 2, 2)
        v = torch.arange(16, dtype=torch.float64).view(2, 2, 2, 2)
        image = attack.spread(p, v) if layout == "nchw" else attack.spread(p, v).movedim(-1, 1)
        assert torch.equal(image, v.repeat_interleave(2, 2).repeat_interleave(3, 3))


@pytest.mark.parametrize(
    "spec",
    ["nes(samples=5)", "nes(sigma=0)", "spsa(samples=0)", "spsa(delta=-1)", "bandits(grid=0)"],
)
def test_values_that_mean_nothing_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match=" has "):
        parse(spec)
