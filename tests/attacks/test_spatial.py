"""Movements of images: where pixels come from, what an attack may touch, and the evidence that is
left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import bent, close, draw, rows, wrap
from torch.nn.functional import grid_sample

import holdfast
from holdfast.attacks import parse, run
from holdfast.attacks.problem import Problem
from holdfast.data import from_arrays, open_data
from holdfast.errors import HoldfastError
from holdfast.evaluation import judge
from holdfast.evaluation.prepare import threat_of_movement
from holdfast.evaluation.protocols import protocol
from holdfast.evaluation.verify import verify
from holdfast.reporting import words
from holdfast.rng import Keys
from holdfast.targets.demo import demo_model
from holdfast.threats.flow import Flow
from holdfast.threats.images import sample
from holdfast.threats.rotation import Rotation
from holdfast.threats.spatial import Spatial
from holdfast.threats.transform import Transform

LINF = (
    "pgd(steps=5)",
    "apgd(steps=5)",
    "fab(steps=5)",
    "square(steps=20)",
    "hopskipjump(steps=2)",
    "rays(steps=30)",
)


def digits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = open_data("digits").rows(0, n)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("movement", [Rotation(40, 1.5), Flow(1.5)], ids=["rotation", "flow"])
@pytest.mark.parametrize(
    ("layout", "shape"), [("nchw", (2, 4, 5)), ("nhwc", (4, 5, 2)), ("nchw", (4, 5))]
)
def test_the_middle_is_no_movement(
    movement: Transform, layout: str, shape: tuple[int, ...]
) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(shape)), 3))
    target = wrap(model, shape, layout=layout, bounds=(-1.2, 1.5))
    x = draw(6, *shape, dtype=torch.float32) * 2 - 1
    threat = threat_of_movement(movement, target, shape)
    assert torch.equal(threat.apply(x, threat.origin(x)), x)


def test_points_are_read_as_torch_reads_them() -> None:
    image, at = draw(3, 2, 5, 7), draw(3, 2, 4, 6, seed=1) * 9 - 2
    y, x = at.unbind(1)
    grid = torch.stack([x / 6, y / 4], -1) * 2 - 1
    close(sample(image, at, outside=0), grid_sample(image, grid, align_corners=True), atol=1e-12)
    beyond = grid_sample(image, grid, padding_mode="border", align_corners=True)
    close(sample(image, at), beyond, atol=1e-12)


def test_a_quarter_turn_and_a_whole_step() -> None:
    image, low = draw(1, 1, 6, 6), 0.25
    one = torch.ones(1, 1, dtype=image.dtype)
    close(Rotation(90).move(image, one, low, 1), image.rot90(-1, (2, 3)), atol=1e-9)
    shifted = Rotation(0, 2).move(image, torch.tensor([[0.5, -1]], dtype=image.dtype), low, 1)
    assert torch.equal(shifted[:, :, 1:, :4], image[:, :, :5, 2:])
    assert bool((shifted[:, :, 0] == low).all())
    assert bool((shifted[..., 4:] == low).all())


@pytest.mark.parametrize("movement", [Rotation(40, 1.5), Flow(1.5)], ids=["rotation", "flow"])
def test_gradients_are_those_of_the_parameters(movement: Transform) -> None:
    target, x = wrap(bent()), draw(4, 1, 4, 4)
    threat = threat_of_movement(movement, target, (1, 4, 4))
    y, keys = torch.zeros(4, dtype=torch.int64), Keys.of(0, torch.arange(4))
    p = Problem(target, x, y, threat, keys)
    d = draw(4, *threat.form((1, 4, 4)), seed=3) - 0.5
    step = torch.zeros_like(d)
    step.flatten(1)[:, 1] = 1e-6

    def total(z: torch.Tensor, *_: object) -> torch.Tensor:
        return z.sum(1)

    g = p.gradient(d, total)[1].flatten(1)
    up, down = (p.value(d + side * step, total) for side in (1, -1))
    close(g[:, 1], (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("movement", [Rotation(40, 1), Flow(0.7)], ids=["rotation", "flow"])
@pytest.mark.parametrize("attack", LINF)
def test_an_attack_moves_and_does_nothing_else(attack: str, movement: Transform) -> None:
    target = wrap(bent())
    x, y = rows(target, 12)
    threat = threat_of_movement(movement, target, (1, 4, 4)).at(0.4)
    ledger = run(parse(attack), target, x, y, threat)
    assert bool(ledger.broken.any())
    broken = ledger.broken
    found = ledger.best[broken]
    legal, size = judge.within(target, threat, x[broken], found)
    assert bool(legal.all())
    close(size, ledger.size[broken], atol=1e-12)
    assert bool((target.labels(threat.apply(x[broken], found)) != y[broken]).all())


def test_other_rows_do_not_matter() -> None:
    target = wrap(bent())
    x, y = rows(target, 12)
    threat, ids = threat_of_movement(Rotation(40, 1), target, (1, 4, 4)), torch.arange(12)
    whole = run(parse("apgd(steps=8)"), target, x, y, threat)
    part = run(parse("apgd(steps=8)"), target, x[4:9], y[4:9], threat, ids=ids[4:9])
    for name, column in part.columns().items():
        assert torch.equal(column, whole.columns()[name][4:9]), name


def test_the_judge_refuses_all_else() -> None:
    target, x = wrap(bent()), draw(1, 1, 4, 4)
    threat = threat_of_movement(Rotation(40, 1), target, (1, 4, 4))
    for place, by, legal in (
        (0, 0.5, True),
        (0, 0.5001, False),
        (2, -0.5, True),
    ):
        found = threat.origin(x)
        found[0, place] += by
        assert bool(judge.within(target, threat, x, found)[0]) is legal


def test_a_grid_finds_what_chance_does() -> None:
    """At least what the worst of as many random movements finds on the mean."""
    x, y = digits(40)
    target = holdfast.wrap(demo_model())
    threat = threat_of_movement(Rotation(25, 0.4), target, (1, 8, 8))

    def broken(attack: str, seed: int = 0) -> int:
        return int(run(parse(attack), target, x, y, threat, seed=seed).broken.sum())

    grid = broken("sweep(steps=64, order='grid')")
    chance = [broken("sweep(steps=64)", seed) for seed in range(2)]
    assert 10 < grid < 38
    assert grid >= sum(chance) / len(chance)


def test_a_grid_is_whole_and_asks_no_point_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    usual = Spatial.apply

    def apply(self: Spatial, x: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
        seen.append(point.clone())
        return usual(self, x, point)

    monkeypatch.setattr(Spatial, "apply", apply)
    target = wrap(bent())
    x, y = rows(target, 1)
    threat = threat_of_movement(Rotation(1e-3, 1e-3), target, (1, 4, 4)).at(0.4)
    run(parse("sweep(steps=30, order='grid')"), target, x, y, threat)
    points = {tuple(p.flatten().tolist()) for p in seen}
    levels = {round(v, 9) for p in points for v in p}
    assert levels == {0.1, 0.5, 0.9}  # 27 of the 30 steps; the middle is the clean input too
    assert len(points) == 27


@pytest.mark.parametrize(
    ("threat", "said"), [("rotation(20, 0.5)", "20 degrees"), ("flow(0.2)", "up to 0.2 pixels")]
)
def test_evidence_is_left_and_holds(threat: str, said: str) -> None:
    x, y = (part.numpy() for part in digits(30))
    target = holdfast.wrap(demo_model())
    done = holdfast.evaluate(target, (x, y), threat, attacks=["pgd(steps=10)"])
    assert 0 < done.metrics.counts["broken"] < 30
    assert done.metrics.clean_accuracy.value == pytest.approx(
        float((target.labels(torch.from_numpy(x)).numpy() == y).mean())
    )
    assert said in words.headline(done.manifest)
    assert verify(done.folder, target, from_arrays(x, y)) == []


def test_a_grid_goes_before_the_protocol() -> None:
    x, y = (part.numpy() for part in digits(8))
    target = holdfast.wrap(demo_model())
    done = holdfast.evaluate(target, (x, y), "rotation(180, 4)", protocol="quick")
    first, *others = done.manifest.protocol.trials
    assert "order='grid'" in first
    assert others == [trial.write(whole=True) for trial in protocol("quick", "linf").trials]
    assert verify(done.folder, target, from_arrays(x, y)) == []


@pytest.mark.parametrize(
    "threat", ["rotation(0)", "rotation(30, -1)", "flow(0)", "flow(inf)", "rotation(30, target=1)"]
)
def test_what_moves_nothing_is_refused(threat: str) -> None:
    x, y = digits(4)
    with pytest.raises(HoldfastError, match=r"rotation|flow"):
        holdfast.evaluate(holdfast.wrap(demo_model()), (x.numpy(), y.numpy()), threat)


def test_only_images_move() -> None:
    with pytest.raises(HoldfastError, match="no images"):
        threat_of_movement(Flow(1), wrap(bent(), (16,)), (16,))


@pytest.mark.parametrize("threat", ["rotation(20, 1)", "flow(1)", "patch(3)"])
def test_a_run_that_breaks_nothing_ends(threat: str, tmp_path: Path) -> None:
    """A constant model is never broken: there are no images to show."""
    x, y = digits(6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    torch.nn.init.zeros_(model[1].weight)
    torch.nn.init.constant_(model[1].bias, 0)
    made = holdfast.evaluate(
        model, (x, torch.zeros_like(y)), threat, attacks=["pgd(steps=2)"], out=tmp_path / "run"
    )
    assert made.robust_accuracy.value == 1
    assert verify(tmp_path / "run", holdfast.wrap(model), (x, torch.zeros_like(y))) == []


@pytest.mark.parametrize("threat", ["rotation(20, 1)", "patch(3)"])
def test_attacks_that_mix_in_other_images_search_the_parameters(threat: str) -> None:
    done = holdfast.evaluate(
        demo_model(), digits(16), threat, attacks=["admix(steps=2)"], samples=8
    )
    assert done.manifest.trials[0].restarts[0].attacked
