"""Detectors: a refusal is no right answer and no success, and attacks come below the limits by
their gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import draw
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast.attacks import parse, parse_trial
from holdfast.attacks.attack import perturb, run
from holdfast.attacks.problem import meets_goal
from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.decisions import REFUSED
from holdfast.diagnostics import probe
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import judge, probing
from holdfast.spec import write
from holdfast.targets import wrap
from holdfast.targets.defences.detectors import (
    DETECTORS,
    Detector,
    Divergence,
    Reconstruction,
    Strip,
)
from holdfast.targets.defences.purify import Reform
from holdfast.targets.defences.transforms import BitDepth
from holdfast.targets.demo import demo_model
from holdfast.targets.preprocess import Normalize
from holdfast.targets.target import Cost
from holdfast.targets.wrappers import Ensemble
from holdfast.tasks import Classes
from holdfast.threats.threat import Targeted, Threat


class Fixed(nn.Module):
    """The second feature set to a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], torch.full_like(x[:, 1], 0.5)], 1)


class Sum(nn.Module):
    """Two classes: the second one where the features sum to more than 1.2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x.sum(1) - 1.2], 1)


class Main(nn.Module):
    """Digits on their 24 main directions."""

    def __init__(self) -> None:
        super().__init__()
        x = torch.from_numpy(open_data("digits", split="train").rows(0, 1200)[0]).flatten(1)
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("basis", torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:24])

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.mean) @ self.basis.T @ self.basis + self.mean).view_as(x)  # pyright: ignore


def magnet(rate: float = 0.02) -> list[object]:
    net, alone = Main(), wrap(demo_model())
    held = torch.from_numpy(open_data("digits", split="train").rows(1200, 1437)[0])
    detectors = [Reconstruction(net), Divergence(net, temperature=10)]
    return [*(one.fitted(alone, held, rate) for one in detectors), Reform(net)]  # pyright: ignore


def made(kind: type[Detector], net: Main, **options: Any) -> Detector:
    """A detector of digits."""
    if issubclass(kind, Strip):
        return kind("digits", count=3, **options)
    return kind(net, **options)  # pyright: ignore[reportCallIssue]


def test_a_refusal_is_no_answer_and_stands_with_the_right_class_against_an_adversary() -> None:
    task = Classes(3, refuses=True)
    z = torch.tensor([[2.0, 1, 0, 1.5], [2, 1, 0, 3], [1, 2, 0, 2.5], [1, 2, 0, -1]])
    y = torch.zeros(4).long()
    assert task.predict(z).tolist() == [0, REFUSED, REFUSED, 1]
    assert task.margin(z, y).tolist() == [1, 2, 0.5, -1]
    assert task.margin(task.against(z, y), y).tolist() == [1, 2, 0.5, -1]
    assert meets_goal(Threat.linf(1), task.predict(z), y).tolist() == [
        False,
        False,
        False,
        True,
    ]


def test_distances_are_those_of_their_definitions_and_limits_decide() -> None:
    x, net = torch.from_numpy(open_data("digits").rows(0, 40)[0]), Main()
    alone = wrap(demo_model(), shape=(1, 8, 8))
    seen = net(x)
    squares = Reconstruction(net, power=2).distance(x, alone.scores)
    assert torch.allclose(squares, (seen - x).square().flatten(1).mean(1))
    p, q = ((alone.scores(u) / 4).softmax(1).double().numpy() for u in (x, seen.clamp(0, 1)))
    apart = Divergence(net, temperature=4).distance(x, alone.scores)
    assert torch.allclose(
        apart.double(), torch.from_numpy(jensenshannon(p, q, axis=1) ** 2), atol=1e-6
    )
    limit = float(squares.median())
    target = wrap(demo_model(), preprocess=[Reconstruction(net, limit, power=2)], shape=(1, 8, 8))
    refused = target.labels(x) == REFUSED
    assert torch.equal(refused, squares > limit)
    assert torch.equal(target.labels(x)[~refused], alone.labels(x)[~refused])
    assert torch.equal(target.scores(x[7:8]).argmax(1), target.scores(x)[7:8].argmax(1))


def test_what_stays_sure_under_clean_images_is_far() -> None:
    """Of a model that sees one feature alone: the entropy by hand."""
    clean = torch.tensor([[0.5, 0.0], [0.0, 0.75]])
    x = torch.tensor([[0.25, 0.5], [0.75, 0.5]])

    def answer(u: Tensor) -> Tensor:
        return torch.stack([u[:, 0], torch.zeros(len(u))], 1)

    def entropy(score: float) -> float:
        p = 1 / (1 + math.exp(-score))
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    found = Strip(clean, count=2).distance(x, answer)
    means = [(entropy(0.75) + entropy(0.25)) / 2, (entropy(1.0) + entropy(0.75)) / 2]
    assert found.tolist() == pytest.approx([math.log1p(1 / mean) for mean in means])
    sure = Strip(clean, count=1).distance(x, lambda u: 1e4 * answer(u))
    assert sure.isfinite().all()


def test_clean_images_are_drawn_once_and_laid_as_the_inputs_are() -> None:
    source = open_data("digits", split="train")
    rows = torch.from_numpy(source.rows(0, len(source))[0])
    named, given = Strip("digits"), Strip(rows)
    assert torch.equal(named.images(rows), given.images(rows))
    assert len(named.images(rows)) == 20
    assert named.digest() == given.digest() != Strip(rows, count=19).digest()
    flat = Strip(rows[:, 0])
    assert torch.equal(flat.images(rows), given.images(rows))
    last = Strip(rows.movedim(1, -1))
    assert torch.equal(last.images(rows), given.images(rows))


def test_clean_images_that_do_not_serve_are_refused() -> None:
    x = draw(5, 1, 8, 8).float()
    with pytest.raises(InputError, match="takes 20 clean images, and there are 5"):
        Strip(x)
    with pytest.raises(InputError, match=r"have to lie in \[0, 1\]"):
        Strip(2 * x + 1, count=5)
    with pytest.raises(InputError, match="give images of the same kind"):
        Strip(x, count=5).images(draw(2, 3, 8, 8))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_fitted_limits_refuse_the_share_of_clean_rows_that_was_asked_for(rate: float) -> None:
    x = torch.from_numpy(open_data("digits").rows(0, 50)[0]) * 255
    before = {"bounds": (0, 255), "shape": (1, 8, 8)}
    for kind in DETECTORS.values():
        alone = wrap(demo_model(), preprocess=Normalize(0, 255), **before)
        one = made(kind, Main()).fitted(alone, x, rate)
        target = wrap(demo_model(), preprocess=[one, Normalize(0, 255)], **before)
        assert int((target.labels(x) == REFUSED).sum()) == int(50 * rate)


@pytest.mark.parametrize("kind", DETECTORS.values())
def test_the_gradient_of_a_refusal_is_that_of_the_distance(kind: type[Detector]) -> None:
    x, direction = (
        torch.from_numpy(open_data("digits").rows(0, 6)[0]).double() * 0.8 + 0.0937,
        draw(6, 1, 8, 8) - 0.5,
    )
    one = made(kind, Main().double(), limit=0.01)
    target = wrap(demo_model().double(), preprocess=one, shape=(1, 8, 8))
    z, pullback = target.linearize(x)
    top, best = z[:, :-1].max(1)
    c = torch.zeros_like(z).scatter(1, best[:, None], -1)
    c[:, -1] = 1
    up, down = (one.distance(x + h * direction, target.bare) / 0.01 for h in (1e-6, -1e-6))
    slope = 0.3 * (top - z[:, :-1].mean(1)) * (up - down) / 2e-6
    assert torch.allclose((pullback(c) * direction).flatten(1).sum(1), slope, rtol=1e-4, atol=1e-6)
    assert target.cost == Cost(1 + one.passes)


@pytest.mark.parametrize(("limit", "held"), [(0.035, True), (0.055, False)])
def test_an_adversary_has_to_come_below_the_limit_too(limit: float, held: bool) -> None:
    """From (0.5, 0.5) by 0.12: the sum passes 1.2 only where the second feature moves by 0.08, a
    distance of 0.04."""
    x, y = torch.full((5, 2), 0.5), torch.zeros(5).long()
    target = wrap(Sum(), preprocess=Reconstruction(Fixed(), limit), shape=(2,))
    for attack in (
        "pgd(steps=20)",
        "apgd(steps=20)",
        "fab(steps=20)",
        "square(steps=200)",
        "rays(steps=200)",
    ):
        result = run(parse(attack), target, x, y, Threat.linf(0.12))
        breaks = not held and "steps=20)" in attack  # the others move by all of eps, or not at all
        assert result.broken.tolist() == [breaks] * 5, attack
    seen = holdfast.evaluate(
        target, (x.numpy(), y.numpy()), "linf(0.12)", attacks=["pgd(steps=20)"]
    )
    assert seen.robust_accuracy.value == held
    assert seen.metrics.refusals is not None
    assert seen.metrics.refusals.attacked.value == held  # wrong, were it not refused
    assert seen.metrics.refusals.clean.value == 0


@pytest.mark.parametrize(
    "attack", ["deepfool", "fab(steps=10)", "apgd(steps=20)", "cw(steps=30)", "square(steps=80)"]
)
@pytest.mark.parametrize("goal", [None, 3])
def test_what_is_called_a_success_is_wrong_and_not_refused(attack: str, goal: int | None) -> None:
    data = open_data("digits").rows(0, 24)
    x, y = (torch.from_numpy(part) for part in data)
    target = wrap(demo_model(), preprocess=magnet(), shape=(1, 8, 8))
    threat = Threat.linf(0.3) if "linf" in parse(attack).norms else Threat.l2(2.5)
    threat = threat if goal is None else replace(threat, goal=Targeted(goal))
    result = run(parse(attack), target, x, y.long(), threat)
    label = target.labels(result.best)[result.broken]
    assert len(label) >= 1
    assert bool((label >= 0).all())
    assert bool((label != y[result.broken]).all() if goal is None else (label == goal).all())


def test_what_is_right_and_refused_did_not_stand_by_the_refusal() -> None:
    """All of 0.08 is refused above 0.035, but the sum stays below 1.2; each worst input is looked
    at twice."""
    x, y = np.full((5, 2), 0.5, np.float32), np.zeros(5, np.int64)
    target = wrap(Sum(), preprocess=Reconstruction(Fixed(), 0.035), shape=(2,))
    seen = holdfast.evaluate(target, (x, y), "linf(0.08)", attacks=["pgd(steps=20)"])
    assert seen.metrics.refusals is not None
    assert seen.metrics.refusals.attacked.value == 0
    assert seen.samples.column("robust_by_refusal").null_count == 0
    assert seen.manifest.costs.judge_forwards == judge.PASSES * (5 + 5)
    flat = wrap(
        lambda x: 0 * x + torch.tensor([1.0, 0]), preprocess=Reconstruction(Fixed(), 1), shape=(2,)
    )
    # nothing is worse than the clean
    still = holdfast.evaluate(flat, (x, y), "linf(0.08)", attacks=["pgd(steps=2)"])
    assert still.samples.column("robust_by_refusal").null_count == 5
    assert still.manifest.costs.judge_forwards == judge.PASSES * 5


def test_a_model_of_several_passes_is_not_taken_for_a_random_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = wrap(demo_model(), preprocess=Divergence(Main(), limit=0.1), shape=(1, 8, 8))
    source, threat = open_data("digits"), Threat.l1(1)
    monkeypatch.setattr(probe, "_attacks", lambda *_: None)
    found = probing.probe(
        target, source, threat, parse_trial("fgsm"), GradientSources(target, threat, source), 0
    )
    assert found.slope is not None
    assert found.passes["slope"] == 5 * target.cost.forwards * len(found.ids)


def test_magnet_refuses_a_blind_attack_and_falls_to_one_that_knows_of_it() -> None:
    data, threat = open_data("digits").rows(0, 40), Threat.linf(0.2)
    x, y = (torch.from_numpy(part) for part in data)
    target = wrap(demo_model(), preprocess=magnet(), shape=(1, 8, 8))
    blind = judge.rule(
        target, perturb(parse("apgd(steps=20)"), wrap(demo_model()), x, y.long(), threat)
    ).label
    assert float((blind == REFUSED).double().mean()) > 0.7
    seen = holdfast.evaluate(target, data, threat, attacks=["apgd(steps=40)"])
    assert seen.metrics.clean_accuracy.value >= 0.85
    assert seen.robust_accuracy.value < 0.35
    assert {f.check for f in seen.verdict.findings} >= {"defence"}


def test_from_the_command_line_to_the_verified_run(tmp_path: Path) -> None:
    x = torch.from_numpy(open_data("digits").rows(0, 12)[0])
    one = Reconstruction(f"{__file__}:Main").fitted(wrap(demo_model()), x, 0.2)
    asked = [
        "evaluate",
        "demo",
        "digits",
        "--threat",
        "linf(0.1)",
        "--attack",
        "pgd(steps=5)",
        "--samples",
        "12",
    ]
    cli = CliRunner()
    done = cli.invoke(app, [*asked, "--preprocess", write(one), "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert "refuses 16.7 %" in " ".join(done.output.split())
    again = ["verify", str(tmp_path / "a"), "demo", "digits"]
    assert cli.invoke(app, again).exit_code == 2  # a run folder says of no code that it be run
    assert cli.invoke(app, [*again, "--preprocess", write(one)]).exit_code == 0
    listed = cli.invoke(app, ["list", "defences"]).output
    assert all(name in listed for name in DETECTORS)


def test_what_makes_no_sense_is_refused() -> None:
    net = Main()
    for wrong in ({"limit": 0}, {"power": 3}):
        with pytest.raises(SpecError, match=next(iter(wrong))):
            Reconstruction(net, **wrong)
    with pytest.raises(SpecError, match="temperature"):
        Divergence(net, temperature=0)
    with pytest.raises(InputError, match="give its limit"):
        wrap(demo_model(), preprocess=Divergence(net))
    with pytest.raises(SpecError, match="share"):
        Divergence(net).fitted(wrap(demo_model()), draw(3, 1, 8, 8).float(), rate=1)
    with pytest.raises(InputError, match="scores of classes"):
        wrap(demo_model(), preprocess=Reconstruction(net, 1), task="multilabel")
    with pytest.raises(InputError, match="comes after bitdepth"):
        wrap(demo_model(), preprocess=[BitDepth(), Reconstruction(net, 1)])
    both = [wrap(demo_model()), wrap(demo_model(), preprocess=Reconstruction(net, 1))]
    with pytest.raises(InputError, match="10 classes and 10 classes or a refusal"):
        Ensemble(both).bind((1, 8, 8))
    with pytest.raises(InputError, match="training does not take into account"):
        holdfast.harden(
            wrap(demo_model(), preprocess=Reconstruction(net, 1)), open_data("digits"), "linf(0.1)"
        )
