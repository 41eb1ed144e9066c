"""Hardening and training on classes of unequal size: the small class is not given up, and what is
lost is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import from_arrays
from holdfast.hardening import objectives
from holdfast.hardening.certified import Bounding
from holdfast.reporting import paired
from holdfast.training.balance import Balance, divide_fairly
from holdfast.training.objective import Net
from holdfast.training.train import train


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, 92:8, whose means lie 0.15 apart in each of 8 features, in noise of 0.12."""
    draw = np.random.default_rng(seed)
    y = (draw.random(n) < 0.08).astype(int)
    x = np.where(y[:, None] == 1, 0.6, 0.45) + draw.normal(scale=0.12, size=(n, 8))
    return np.clip(x, 0, 1).astype(np.float32), y


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train(holdfast.wrap(fresh()), from_arrays(*rows(1000, 0)), epochs=8, rate=0.02)  # pyright: ignore


def hardened(net: nn.Module, **how: Any) -> Any:
    how = {
        "recipe": "standard(epochs=4)",
        "protocol": "quick",
        "test": rows(300, 1),
        "test_samples": 300,
    } | how
    return holdfast.harden(net, rows(1000, 0), "linf(0.06)", **how)


def recalls(run: holdfast.Run) -> list[float]:
    return [c.recall.clean or 0.0 for c in run.metrics.per_class]


def shown(comparison: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(paired.summary(comparison))
    return text.getvalue()


def test_the_small_class_is_not_given_up(trained: nn.Module) -> None:
    """Line 4: hardening 92:8 data keeps both classes, and says that it weighs them."""
    made = hardened(trained)
    assert min(recalls(made.after)) > 0.6
    assert made.after.verdict.status != "unreliable"
    least = min(c.robust_accuracy.value or 0 for c in made.after.metrics.per_class)
    assert least > 0.2
    assert "Class weights: balanced" in made.log[0].note
    assert "Class weights" not in made.log[1].note
    assert made.log[0].recall > 0
    assert made.comparison.knows_nothing == ""
    assert made.comparison.class_mean.clean[1] == pytest.approx(np.mean(recalls(made.after)))


def test_a_constant_answer_is_no_success(trained: nn.Module, tmp_path: Path) -> None:
    """Line 4: where training still ends in the majority class, the comparison says what was lost
    and claims no gain."""
    with torch.no_grad():
        constant = nn.Linear(8, 2)
        constant.weight.zero_()
        constant.bias.copy_(torch.tensor([1.0, 0.0]))
    for name, net in (("before", trained), ("after", constant)):
        holdfast.evaluate(
            net, rows(300, 1), "linf(0.06)", attacks=["pgd(steps=5)"], out=tmp_path / name
        )
    found = holdfast.runs.compare.compare(tmp_path / "before", tmp_path / "after")
    assert found.figures[1].change > 0.1  # which would be called a success
    said = shown(found)
    assert "more than chance" not in said
    assert "knows nothing" in said
    assert "answers class 0 to every input" in said
    assert "Lost: clean recall of class 1" in said
    page = paired.write(tmp_path / "page.html", found).read_text()
    assert "knows nothing" in page
    assert "Lost: clean recall of class 1" in page
    back = holdfast.runs.compare.compare(tmp_path / "after", tmp_path / "before")
    assert "Lost: robust recall of class 0" in shown(back)


def test_the_floor_of_recall(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 4: --min-recall is --min-clean for every class."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_unequal_classes import fresh\n"
    )
    for name, n, seed in (("train", 400, 0), ("test", 200, 1)):
        x, y = rows(n, seed)
        np.savez(f"{name}.npz", x=x, y=y)
    line = [
        "harden",
        "net.py:fresh",
        "train.npz",
        "--test",
        "test.npz",
        "--threat",
        "linf(0.06)",
        "--protocol",
        "quick",
    ]
    line += [
        "--recipe",
        "fast(epochs=1, judge='')",
        "--class-weights",
        "none",
        "--min-recall",
        "0.3",
        "--out",
        "hard",
    ]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 1, done.output
    assert "clean recall of class 1 is 0, below the floor of 0.3" in done.output
    line = ["train", "net.py:fresh", "train.npz", "--epochs", "1"]
    assert (
        "Class weights: balanced"
        in CliRunner().invoke(app, [*line, "--out", "a.safetensors"]).output
    )
    wrong = CliRunner().invoke(app, [*line, "--out", "b.safetensors", "--class-weights", "equal"])
    assert (wrong.exit_code, "class_weights" in wrong.output) == (2, True)


def test_plain_training_weighs_classes(trained: nn.Module) -> None:
    """Line 4: `train` balances too; without weights the same training answers the majority
    alone."""
    x, y = map(torch.from_numpy, rows(300, 1))
    ordinary = train(
        holdfast.wrap(fresh()), from_arrays(*rows(1000, 0)), epochs=2, class_weights="none"
    )  # pyright: ignore
    with torch.no_grad():
        for net, least in ((trained, 0.7), (ordinary, 0.0)):
            right = net(x).argmax(1) == y
            assert (
                float(torch.stack([right[y == c].double().mean() for c in (0, 1)]).min()) >= least
            )
    assert float((ordinary(x).argmax(1) == 1).double().mean()) < 0.01


@pytest.mark.parametrize(
    "name",  # of those that bound, see tests/laws/test_certified_objectives.py
    [n for n in objectives.OBJECTIVES if not isinstance(objectives.parse(n), Bounding)],
)
def test_every_objective_gives_a_loss_for_each_row(name: str) -> None:
    """Line 4: class weights are applied in one place, so each objective says the loss of each row
    and takes no mean."""
    w = torch.randn(4, 3, dtype=torch.float64)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    objective, net = objectives.parse(name), Net(lambda x: x @ w, lambda x: -x @ w)
    losses, _ = objective.loss(net, x, x + 0.1, y)
    assert losses.shape == (6,)
    for i in range(6):  # a row's loss depends on the row alone
        alone, _ = objective.loss(net, x[i : i + 1], x[i : i + 1] + 0.1, y[i : i + 1])
        assert float(alone) == pytest.approx(float(losses[i]))


def test_weights_and_divisions() -> None:
    """Line 4: balanced weights give each class the same share of the loss, and rows held out hold
    every class."""
    assert Balance((90, 10)).weights == pytest.approx((100 / 180, 100 / 20))
    assert Balance((50, 40)).weights == Balance((90, 10), "none").weights == ()
    assert Balance((50, 40), "balanced").weights == pytest.approx((0.9, 1.125))
    y = (np.arange(400) >= 392).astype(int)
    for seed in range(5):
        rest, held = divide_fairly(
            from_arrays(np.zeros((400, 2), np.float32), y), 0.1, 1000, seed, "held-out"
        )
        assert np.bincount(held.rows(0, len(held))[1]).tolist() == [39, 1]
        assert len(rest) == 360
