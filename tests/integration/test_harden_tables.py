"""Hardening of models of a table: through its schema, and at the threshold at which it decides."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import holdfast as command
from helpers.commands import names, refused
from torch import nn

import holdfast as hf
from holdfast.attacks.attack import perturb, point
from holdfast.attacks.gradient.pgd import PGD
from holdfast.attacks.problem import Problem
from holdfast.errors import InputError, SpecError
from holdfast.hardening import objectives
from holdfast.rng import Keys
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Threat
from holdfast.training.balance import Balance
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.prepare import at_threshold
from holdfast.training.train import train

SCHEMA = """
[features]
open = { type = "integer", bounds = [0, 20], scale = 20 }
all = { type = "integer", bounds = [1, 40], scale = 40 }
share = { bounds = [0, 1] }
income = { bounds = [0, 100] }
grade = { type = "integer", mutability = "fixed", bounds = [0, 6], scale = 6 }

[relations]
accounts = "open <= all"

[derived]
share = "open / all"
"""
T = 0.25
TABLE = hf.Schema.parse(SCHEMA)
THREAT = Threat.l2(0.06, schema=TABLE)
NET = """
from test_harden_tables import net as make
"""


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Loans, a fifth of them of class 1: those of a somewhat lower income, which tells them best,
    and mostly of a high grade, which nobody can change."""
    draw = np.random.default_rng(seed)
    y = (draw.random(n) < 0.2).astype(int)
    total = draw.integers(1, 41, n)
    opened = np.minimum(draw.integers(0, 21, n), total)
    income = np.where(y, 44, 50) + draw.normal(scale=2, size=n)
    grade = np.where(y, 4, 2) + draw.integers(-2, 3, n)
    return np.stack([opened, total, opened / total, income, grade], 1).astype(np.float32), y


class Scaled(nn.Module):
    """A network on columns of its own scale, in which the income is large."""

    top: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
        self.register_buffer("top", torch.tensor([20.0, 40.0, 1.0, 10.0, 6.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x / self.top - 1)


@functools.cache
def net() -> nn.Module:
    """Trained without an adversary."""
    torch.manual_seed(0)
    made, (x, y) = Scaled(), map(torch.from_numpy, rows(400, 0))
    adam = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(made(x), y).backward()
        adam.step()
    return made.eval()


def wrapped(threshold: float | None = None) -> Any:
    return hf.wrap(net(), bounds=(0, 100), shape=(5,), threshold=threshold)


def inner() -> InnerAttack:
    target = wrapped()
    return InnerAttack(target, target, THREAT, 0)


@pytest.mark.slow
def test_hardening_follows_the_schema_and_the_threshold(tmp_path: Path) -> None:
    made = hf.harden(
        hf.wrap(net(), threshold=T), rows(400, 0), THREAT, test=rows(50, 1), out=tmp_path / "h",
        recipe="fast(epochs=6, batch_size=128, rate=0.3, judge='pgd(steps=3)')", protocol="quick",
    )  # fmt: skip
    assert made.after.robust_accuracy > made.before.robust_accuracy + 0.05
    assert made.after.manifest.model.threshold == made.before.manifest.model.threshold == T
    binary = made.after.metrics.binary
    assert binary is not None
    assert (binary.auroc.clean or 0) > 0.8
    assert "as the threshold says" in made.log[0].note
    assert "balanced" not in made.log[0].note
    assert f"{math.log(T / (1 - T)):.6g}" in (tmp_path / "h" / "harden.json").read_text()


def test_the_command_takes_a_schema_and_a_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("train.npz", x=rows(100, 0)[0], y=rows(100, 0)[1])
    np.savez("test.npz", x=rows(20, 1)[0], y=rows(20, 1)[1])
    Path("net.py").write_text(NET)
    Path("schema.toml").write_text(SCHEMA)
    asked = ("net.py:make", "train.npz", "--schema", "schema.toml", "--threshold", "0.25")
    how = ("--test", "test.npz", "--threat", "l2(0.06)", "--protocol", "quick", "--out", "hard")
    done = command("harden", *asked, *how, "--recipe", "fast(epochs=1, judge='pgd(steps=1)')")
    assert done.exit_code == 0, done.output
    for name in ("before", "after"):
        manifest = hf.Run(Path("hard") / name).manifest
        assert manifest.model.threshold == T
        assert manifest.threat.table
    done = command("train", *asked, "--epochs", "1", "--out", "w.safetensors")
    assert done.exit_code == 0, done.output
    text = refused("harden", *asked, *how[:-1], "other", "--objective", "noise(sigma=1)")
    names(text, "noise(sigma=1)", "schema", "pgd")


# ---------------------------------------------------------------------- the inner attack


def test_the_inner_attack_ends_at_legal_rows_and_finds_what_full_repair_finds() -> None:
    """Repairing what each step asks about would find no more, for several times the price."""
    target, (x, y) = wrapped(), map(torch.from_numpy, rows(200, 1))
    attack, left = PGD(steps=10, step_size=0.25, loss="ce"), {}
    for drafts in (True, False):
        p = Problem(target, x, y, THREAT, Keys.of(0, torch.arange(len(x))), drafts=drafts)
        d = attack.start(p)
        for t in range(attack.steps):
            d = attack.step(p, d, t)
        found = THREAT.apply(x, p.points(p.project(point(d))))
        assert bool(TABLE.legal(found, x).all())
        left[drafts] = int((target.labels(found) == y).sum())
    assert left[True] <= left[False] + 2
    found = perturb(attack, target, x, y, THREAT)
    assert bool(TABLE.legal(found, x).all())
    size = THREAT.norm.size(THREAT.origin(found) - THREAT.origin(x))
    assert float(size.max()) <= 0.06 * (1 + 1e-5)
    assert float(size.mean()) > 0.03


def test_a_draft_follows_the_formulas_within_eps() -> None:
    x = torch.from_numpy(rows(50, 2)[0])
    there = THREAT.origin(x) + 0.04
    found = THREAT.apply(x, THREAT.drafted(x, there, torch.full((50,), 0.05)))
    assert torch.allclose(found[:, 2], found[:, 0] / found[:, 1], atol=1e-6)
    size = THREAT.norm.size(THREAT.origin(found) - THREAT.origin(x))
    assert float(size.median()) < 0.051
    assert bool((found[:, 0] != found[:, 0].round()).any())


@pytest.mark.parametrize(
    "objective", ["fgsm", "nfgsm", "free", "trades", "mart", "eat(also='linf(0.1)')"]
)
def test_objectives_train_at_legal_rows(objective: str) -> None:
    x, y = map(torch.from_numpy, rows(40, 3))
    own, search = objectives.parse(objective), inner()
    with torch.no_grad():
        found = own.points(search, x, y)
    if not objective.startswith("nfgsm"):  # whose noise reaches beyond eps
        assert bool(TABLE.legal(found, x).all())
    assert bool((found != x).any())
    assert torch.equal(found[:, 4], x[:, 4])
    again = search.ascend(x, found, torch.ones_like(x), 0.5)
    assert bool(TABLE.legal(again, x).all())


@pytest.mark.parametrize(
    "how",
    [
        {"objective": "smoothadv"},
        {"recipe": "standard(regularize='cure')"},
        {"objective": "msd(also='l2(1)')"},
    ],
)
def test_what_knows_no_schema_is_refused(how: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="knows no schema"):
        hf.harden(net(), rows(200, 0), THREAT, test=rows(20, 1), out=tmp_path / "h", **how)  # pyright: ignore
    assert not (tmp_path / "h").exists()


def test_rows_to_train_on_that_a_schema_does_not_fit_are_refused(tmp_path: Path) -> None:
    x, y = rows(200, 0)
    x[7, 4] = 2.5
    with pytest.raises(InputError, match=r"row 7 .* has 2\.5 in the column grade"):
        hf.harden(net(), (x, y), THREAT, test=rows(20, 1), out=tmp_path / "h")


# ---------------------------------------------------------------------- the threshold


def test_the_loss_at_a_threshold_is_least_at_the_probabilities_of_the_data() -> None:
    odds, p = math.log(T / (1 - T)), 0.37
    weights = Balance((800, 200), "auto", odds).weights
    assert weights[1] / weights[0] == pytest.approx((1 - T) / T)
    assert 0.8 * weights[0] + 0.2 * weights[1] == pytest.approx(1)
    z = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    loss = weights[1] * p * nn.functional.softplus(odds - z)
    loss += weights[0] * (1 - p) * nn.functional.softplus(z - odds)
    assert float(z[loss.argmin()].sigmoid()) == pytest.approx(p, abs=1e-3)
    assert Balance((800, 200)).weights == (0.625, 2.5)  # without one, as before
    both = Balance((800, 200), "balanced", odds).weights
    assert both[1] / both[0] == pytest.approx(4 * (1 - T) / T)


def test_a_target_in_training_decides_as_the_threshold_does() -> None:
    x = torch.from_numpy(rows(50, 1)[0])
    target, given = wrapped(), wrapped(T)
    assert isinstance(target, TorchTarget)
    own = at_threshold(target, given.odds)
    assert torch.equal(own.scores(x), given.scores(x))
    live = own.live(net())
    assert torch.equal(live.labels(x), given.labels(x))
    assert torch.equal(live.outputs(x).detach(), given.scores(x))
    assert target.head.odds == 0


def test_plain_training_at_a_threshold_finds_more_of_class_1() -> None:
    x, y = rows(400, 0)
    x[:, 3] = 50  # what tells them best is not there
    found = {}
    for t in (0.5, 0.1):
        trained = train(wrapped(t), (x, y), epochs=3, class_weights="none")
        chance = trained(torch.from_numpy(x)).softmax(1)[:, 1]
        found[t] = (chance >= t).numpy()[y == 1].mean()
    assert found[0.1] > found[0.5] + 0.1
