"""Bugs that were found in other tools, one test each: they must not exist here.

The tests are named after the bug; some of the laws say the same more generally.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.attacks import Attack, parse, run
from holdfast.attacks.problem import Problem
from holdfast.evaluate.protocols import PROTOCOLS, Trial, protocol
from holdfast.norms import NORMS, wide
from holdfast.targets import Access
from holdfast.threat import Targeted, Threat
from laws.exact import best_margin
from laws.world import Then, bent, close, linear, rows, same, threat, wrap


def short(name: str, norm: str, *, most: int = 12) -> list[Trial]:
    """A protocol with fewer steps and restarts: what is tested is that it works, and how it scales."""
    trials = protocol(name, norm).trials
    cut = [replace(t, attack=replace(t.attack, steps=min(t.attack.steps, most)), restarts=1) for t in trials]
    return list(dict.fromkeys(cut))


def robust(model: nn.Module, x: Tensor, y: Tensor, attacks: list[Trial], norm: str = "linf") -> list[str]:
    run_ = holdfast.evaluate(wrap(model, tuple(x.shape[1:])), (x.numpy(), y.numpy()), threat(norm), attacks=attacks)
    return run_.samples.column("status").to_pylist()


def fitting(trials: list[Trial], k: int) -> list[Trial]:
    return [replace(t, targets=min(t.targets, k - 1)) for t in trials]


def test_bug_3_a_nan_row_is_not_class_zero() -> None:
    """argmax of a NaN row is 0: two tools report the share of class 0 as robust accuracy."""
    net = Then(bent(dtype=torch.float32), lambda _, z: z[:, [1, 0, 2, 3, 4]])
    grid = 255 / 256  # exact in float32
    model = Then(net, lambda x, z: torch.where((x * 256 % 1 != 0).flatten(1).any(1)[:, None], torch.nan, z))
    x = (rows(wrap(net), 30)[0] * 256 * grid).round() / 256
    y = wrap(net).labels(x)
    assert bool((y == 0).any())
    result = holdfast.evaluate(wrap(model), (x.numpy(), y.numpy()), "linf(0.0001)", attacks=["pgd(steps=3)"])
    assert set(result.samples.column("status").to_pylist()) == {"failed"}
    assert result.verdict.status == "unreliable"


@pytest.mark.parametrize("norm", NORMS.values(), ids=repr)
def test_bug_5_a_tiny_gradient_gives_a_whole_step(norm: holdfast.norms.Norm) -> None:
    """A floor on the squared norm makes the step 0.14 at 1e-7 and 0.0014 at 1e-9."""
    g = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for scale in (1e-7, 1e-9, 1e-20, 1e-38):
        close(norm.size(norm.steepest(g * scale)), torch.ones(5), rtol=1e-5)
    assert bool((norm.steepest(g * 0) == 0).all())


@pytest.mark.parametrize("scale", [1e-3, 300.0])
@pytest.mark.parametrize("name", [name for name in PROTOCOLS if "autoattack" not in name])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bug_6_the_scale_of_the_logits_changes_nothing(name: str, norm: str, scale: float) -> None:
    """Cross-entropy attacks report 0.96, 0.87 and 0.99 robust for logits times 1, 30 and 300."""
    net = bent(dtype=torch.float32)
    x, y = rows(wrap(net), 60)
    hot = Then(net, lambda _, z: z * scale)
    attacks = fitting(short(name, norm), 5)
    plain, scaled = robust(net, x, y, attacks, norm), robust(hot, x, y, attacks, norm)
    assert {"broken", "robust"} <= set(plain)
    assert sum(a != b for a, b in zip(plain, scaled, strict=True)) <= 1


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "mifpe"])
def test_bug_7_prediction_and_label_are_not_swapped_in_the_loss(loss: str) -> None:
    """APGD that ascends the wrong loss: on a linear model it must end in the best corner."""
    model = linear(2)
    target = wrap(model, bounds=(-9, 10))
    x, y = rows(target, 20)
    ledger = run(parse(f"apgd(steps=20, loss={loss!r})"), target, x, y, threat("linf"), stop=False)
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    points = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    best = [best_margin("linf", w, b, row, label, 0.08, -9, 10) for row, label in points]
    close(ledger.margin, torch.tensor(best, dtype=torch.float64), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Idle(Attack):
    """Returns what it was given."""

    needs = Access.LABELS
    steps: int = 1

    def start(self, p: Problem) -> Tensor:
        return torch.zeros_like(p.x)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        p.adversarial(s)
        return s


def test_bug_8_an_original_is_no_success_of_a_targeted_attack() -> None:
    """A success test that ignores the goal counts the untouched inputs."""
    target = wrap(bent(dtype=torch.float32))
    x, y = rows(target, 20)
    goal = (y + 1) % 5
    assert not bool(run(Idle(), target, x, y, threat("linf", goal=Targeted(goal))).broken.any())
    result = holdfast.evaluate(target, (x.numpy(), y.numpy()), "linf(0.08, target=2)", attacks=[Idle()])
    assert "broken" not in result.samples.column("status").to_pylist()


def test_bug_12_a_neighbours_gradient_does_not_decide_a_rows_step() -> None:
    """A comparison with the maximum of the batch gave the second row no step at all."""
    g = torch.tensor([[[[1.0, -5.0, 2.0]]], [[[0.1, 0.2, -0.3]]]])
    eps, lo, hi = wide(torch.ones(2), g), torch.full_like(g, -9), torch.full_like(g, 9)
    for norm in (NORMS["l1"], NORMS["l2"], NORMS["linf"]):
        both = norm.stride(g, 0.5, eps, lo, hi)
        alone = norm.stride(g[1:], 0.5, eps[1:], lo[1:], hi[1:])
        assert torch.equal(both[1:], alone)
        assert float(norm.size(alone)) == pytest.approx(0.5)


def test_bug_13_a_legal_point_is_not_moved_by_its_projection() -> None:
    """A clamp on the perturbation instead of the ratio took (.3, .4) to (1, 1) for a radius of 5."""
    d, far = torch.tensor([[0.3, 0.4]]), torch.full((1, 2), 9.0)
    for norm in NORMS.values():
        assert torch.equal(norm.project(d, torch.tensor([[5.0]]), -far, far), d)


@pytest.mark.parametrize("spec", ["apgd(steps=15)", "square(steps=40)", "pgd(steps=10)"])
def test_bug_15_one_batch_of_16_is_two_of_8(spec: str) -> None:
    """One generator for a batch, and one square for all of its rows, gave 8 and 10 of 16 other points."""
    target = wrap(bent())
    x, y = rows(target, 16)
    whole = run(parse(spec), target, x, y, threat("linf"))
    for at in (torch.arange(8), torch.arange(8, 16), torch.tensor([13, 2, 7])):
        part = run(parse(spec), target, x[at], y[at], threat("linf"), ids=at)
        same(part, type(whole)(**{name: column[at] for name, column in whole.columns().items()}))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 1000])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_bug_17_autoattack_works_with_any_number_of_classes(k: int, norm: str) -> None:
    """Nine targets and ratios of three or four logits end in an IndexError for few classes."""
    net = bent(k, dtype=torch.float32)
    target = wrap(net)
    x, y = rows(target, 12)
    trials = fitting(short("autoattack", norm, most=4), max(k, 2))
    units = [unit for trial in protocol("autoattack", norm).trials for unit in trial.units(target.task.k)]
    aims = {rank for _, rank in units}
    most = {"linf": 9, "l2": 9, "l1": 9}[norm]
    assert max(aims) == min(most, max(k, 2) - 1)
    status = robust(net, x, y, trials, norm)
    assert set(status) <= {"broken", "robust"}
    assert "broken" in status


def test_bug_18_l1_steps_reach_what_l1_allows() -> None:
    """The wrong dual, or scaling in place of projection, reaches 54 % of the fall of the margin."""
    model = linear(2)
    for box in ((0, 1), (-20, 20)):
        target = wrap(model, bounds=box)
        x, y = rows(target, 20, edge=True)
        w, b = model.w.detach().numpy(), model.b.detach().numpy()
        clean = target.task.margin(target.scores(x), y)
        points = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
        best = np.array([best_margin("l1", w, b, row, label, 0.7, *box) for row, label in points])
        for spec in ("pgd(steps=100)", "apgd(steps=100)"):
            ledger = run(parse(spec), target, x, y, threat("l1"), stop=False)
            assert float(((clean - ledger.margin) / (clean - torch.from_numpy(best))).min()) >= 0.99


def test_bug_19_normalised_data_are_refused() -> None:
    """Clipped to [0, 1], data of mean 0 gave perturbations of 1.357 and 1.953 at eps 0.1, and no error."""
    target = wrap(bent(dtype=torch.float32))
    x, y = rows(target, 20)
    with pytest.raises(holdfast.InputError, match=r"normalised"):
        holdfast.evaluate(target, ((x * 4 - 2).numpy(), y.numpy()), "linf(0.1)", attacks=["pgd(steps=1)"])


def test_bug_20_a_model_in_train_mode_is_measured_in_eval_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)
    )
    x = torch.rand(40, 1, 4, 4)
    net(x)
    y = net.eval()(x).argmax(1)
    calm = run(parse("pgd(steps=5)"), wrap(net), x, y, Threat.linf(0.08))
    live = run(parse("pgd(steps=5)"), wrap(net.train()), x, y, Threat.linf(0.08))
    same(calm, live)
    assert all(module.training for module in net.modules())
