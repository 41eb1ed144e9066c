"""The threat of a patch, and Sparse-RS for it, against the best patch of a linear model."""

from __future__ import annotations

import pytest
import torch
from helpers.models import Linear, close, draw, linear, rows, wrap
from torch import Tensor
from torch.nn.functional import unfold

import holdfast
from holdfast.attacks import parse, run
from holdfast.attacks.problem import Problem
from holdfast.attacks.sparse.patchrs import PatchRS
from holdfast.data import from_arrays, open_data
from holdfast.errors import HoldfastError, SpecError
from holdfast.evaluation.prepare import threat_of_movement
from holdfast.evaluation.protocols import protocol, suited
from holdfast.evaluation.verify import verify
from holdfast.reporting import words
from holdfast.rng import Keys
from holdfast.targets import Access, TorchTarget
from holdfast.targets.demo import demo_model
from holdfast.threats.patch import Patch
from holdfast.threats.threat import Threat

SHAPE, SIDE = (2, 5, 6), 2  # rows and columns differ, so that neither is taken for the other


def patched(model: Linear, side: int = SIDE) -> tuple[TorchTarget, Threat, Tensor, Tensor]:
    target = TorchTarget(model, shape=SHAPE)
    x, y = rows(target, 12, edge=True)
    return target, threat_of_movement(Patch(side), target, SHAPE), x, y


def test_the_share_is_the_papers() -> None:
    shares = [
        0.4 / PatchRS().share(t)
        for t in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999)
    ]
    assert shares == pytest.approx([1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512])
    assert PatchRS(schedule=100).share(3) == pytest.approx(0.4 / 8)  # as after 300 of 10,000


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_parameters_reach_every_square_and_nothing_else(layout: str) -> None:
    shape = SHAPE if layout == "nchw" else (5, 6, 2)
    inner = wrap(linear(2, features=60), shape, layout=layout, bounds=(-0.5, 1.5))
    x = draw(40, *shape)
    threat = threat_of_movement(Patch(SIDE), inner, shape)
    assert torch.equal(threat.apply(x, threat.origin(x)), x)
    at = draw(40, 10) * 2 - 0.5
    at[0], at[1] = -0.5, 1.5  # the first corner, all low; the last corner, all high
    seen = threat.apply(x, at)
    if layout == "nhwc":
        seen, x = seen.movedim(-1, 1), x.movedim(-1, 1)
    assert bool((seen[0, :, :2, :2] == -0.5).all())
    assert bool((seen[1, :, -2:, -2:] == 1.5).all())
    assert bool(((seen >= -0.5) & (seen <= 1.5)).all())
    corners = set()
    for changed in (seen != x).any(1):
        down, right = changed.nonzero().amin(0).tolist()
        assert int(changed.sum()) == SIDE**2
        assert bool(changed[down : down + SIDE, right : right + SIDE].all())
        corners.add((down, right))
    assert len(corners) > 12  # of 4 x 5


def test_gradients_rise_with_the_pixels() -> None:
    model = linear(2, features=60)
    target, threat, x, y = patched(model)
    p = Problem(target, x, y, threat, Keys.of(0, torch.arange(12)))
    at = threat.origin(x)
    at[:, :2], at[:, 2:] = 0, draw(12, 8)
    _, g = p.gradient(at - threat.origin(x), lambda z, *_: z[:, 0])
    assert bool((g[:, :2] == 0).all())
    # half the box over the reach
    close(g[:, 2:], model.w[0].view(SHAPE)[:, :2, :2].flatten().expand(12, -1).detach())


def best(model: Linear, x: Tensor, y: Tensor) -> Tensor:
    """The least margin of two classes that a square can leave: every place, each pixel at its
    better end."""
    w = model.w[y] - model.w[1 - y]
    clean = (w * x.flatten(1)).sum(1) + model.b[y] - model.b[1 - y]
    gain = (w * x.flatten(1) - w.clamp_max(0)).view_as(x).sum(1)
    return clean - unfold(gain[:, None], SIDE).sum(1).amax(1)


def test_the_best_patch_of_a_linear_model_is_found() -> None:
    """By one of two runs, where one content is best at every place; elsewhere a good content can
    hold a bad place."""
    model = linear(2, features=60)
    target, threat, x, y = patched(model)
    some = run(PatchRS(steps=60), target, x, y, threat, stop=False)
    assert bool((some.margin >= best(model, x, y).detach() - 1e-9).all())
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    alike = Linear(
        signs[:, None] * (draw(2, *SHAPE) * signs[:, None, None]).flatten(1), model.b.detach()
    )
    target, threat, x, y = patched(alike)
    attack = PatchRS(steps=400)
    found = [run(attack, target, x, y, threat, stop=False, restart=i).margin for i in range(2)]
    close(torch.stack(found).amin(0), best(alike, x, y).detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("goal", "every"), [(None, 4), (1, 10)])
def test_a_step_paints_one_square_or_moves(goal: int | None, every: int) -> None:
    target, threat, x, y = patched(linear(2, features=60), side=4)
    p = Problem(target, x, y, threat.towards(goal), Keys.of(3, torch.arange(len(x))))
    attack = PatchRS()
    s = attack.start(p)
    places = set()
    for t in range(120):
        p.t = t + 1
        after = attack.step(p, s._replace(value=torch.full_like(s.value, -torch.inf)), t)
        changed = after.d != s.d
        assert bool((after.d[:, 2:].abs() == 0.5).all())
        if (t + 1) % every:
            window = round(4 * attack.share(t) ** 0.5) or 1
            squares = changed[:, 2:].view(-1, 2, 4, 4).any(1)
            assert not bool(changed[:, :2].any())
            assert bool((squares.any(1).sum(1) <= window).all())
            assert bool((squares.any(2).sum(1) <= window).all())
            assert bool(squares.flatten(1).any(1).all())
        else:
            assert not bool(changed[:, 2:].any())
            places |= set(after.d[:, 0].tolist())
        s = after
    assert len(places) > 12


def test_rows_and_budgets_are_kept() -> None:
    target, threat, x, y = patched(linear(4, features=60))
    ids = torch.arange(12)
    whole = run(PatchRS(steps=60), target, x, y, threat, budget=41)
    part = run(PatchRS(steps=60), target, x[4:9], y[4:9], threat, ids=ids[4:9], budget=41)
    for name, column in part.columns().items():
        assert torch.equal(column, whole.columns()[name][4:9]), name
    assert int(whole.forwards.max()) == 41
    assert 0 < int(whole.broken.sum()) < 12


def test_evidence_is_left_and_holds() -> None:
    x, y = open_data("digits").rows(0, 24)
    target = holdfast.wrap(demo_model())
    done = holdfast.evaluate(
        target, (x, y), "patch(2)", attacks=["patchrs(steps=60, schedule=60)", "apgd(steps=5)"]
    )
    assert 0 < done.metrics.counts["broken"] < 24
    assert "one square of 2 x 2 pixels" in words.headline(done.manifest)
    assert verify(done.folder, target, from_arrays(x, y)) == []


@pytest.mark.parametrize("access", list(Access))
def test_a_search_goes_before_the_protocol(access: Access) -> None:
    usual = protocol("standard", "linf", access=access)
    first, *others = suited(usual, Patch(2)).trials
    if access >= Access.SCORES:
        assert isinstance(first.attack, PatchRS)
        assert others == list(usual.trials)
    else:
        assert (first, *others) == usual.trials


@pytest.mark.parametrize(
    "threat", ["patch(0)", "patch(2.5)", "patch(True)", "patch(9)", "patch(3, target=1)"]
)
def test_what_is_no_patch_is_refused(threat: str) -> None:
    x, y = open_data("digits").rows(0, 4)
    with pytest.raises(HoldfastError, match="patch"):
        holdfast.evaluate(holdfast.wrap(demo_model()), (x, y), threat)


def test_a_patch_has_no_curve() -> None:
    x, y = open_data("digits").rows(0, 4)
    with pytest.raises(SpecError, match="one size"):
        holdfast.evaluate(holdfast.wrap(demo_model()), (x, y), "patch(3)", epsilons=[0.2])


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"alpha": 1.5}, {"schedule": 0}])
def test_values_that_mean_nothing_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="patchrs has"):
        parse(f"patchrs({', '.join(f'{k}={v}' for k, v in fields.items())})")
