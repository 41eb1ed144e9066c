"""Training for proofs from end to end: new weights, both ends before and after, and what is
refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.cases import case, mnist
from helpers.commands import holdfast as command
from helpers.commands import names, refused
from helpers.training import Normed, fresh
from torch import nn

import holdfast as hf
from holdfast.certification import certify
from holdfast.data import from_arrays
from holdfast.errors import InputError
from holdfast.intervals import Interval
from holdfast.targets.demo import demo_model
from holdfast.training.start import STARTS

QUICK = ("--protocol", "quick", "--test-samples", 12, "--train-samples", 200)
NETS = """
import torch
from torch import nn

def small(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

class Odd(nn.Module):
    def forward(self, x): return x.sin()

def odd(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Odd())
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)


def share(found: Interval | None) -> float:
    assert found is not None
    return float(found)


def certified(model: str, *more: object) -> tuple[object, ...]:
    recipe = ("--recipe", "certified(epochs=8, batch_size=32)")
    return ("harden", model, "digits", "--trust", *recipe, *QUICK, "--out", "hard", *more)


def test_both_ends_are_measured_before_and_after() -> None:
    said = command(*certified("nets.py:small", "--threat", "linf(0.02)"))
    assert said.exit_code == 0, said.output
    names(said.output, "certified", "robust", "clean")
    found = json.loads(Path("hard/comparison.json").read_text())
    figures = {one["name"]: one for one in found["figures"]}
    assert list(figures) == ["clean accuracy", "robust accuracy", "certified accuracy"]
    for run, end in (("before", "first"), ("after", "second")):
        metrics = json.loads(Path("hard", run, "run.json").read_text())["metrics"]
        proved, held = (metrics[f"{name}_accuracy"]["value"] for name in ("certified", "robust"))
        assert proved <= held
        assert figures["certified accuracy"][end]["value"] == proved
    assert figures["certified accuracy"]["second"]["value"] > 0.3
    assert "start='ibp'" in Path("hard/harden.json").read_text()
    lines = Path("hard/log.csv").read_text().splitlines()
    inner, robust = (lines[0].split(",").index(name) for name in ("inner", "robust"))
    names(lines[1], "new weights (ibp)")
    assert float(lines[-1].split(",")[inner]) == float(lines[-1].split(",")[robust]) > 0.3
    assert "certified" in Path("hard/report.html").read_text()


@pytest.mark.parametrize(
    ("model", "threat", "words"),
    [
        ("nets.py:odd", "linf(0.05)", ("operator sin", "2 (Odd)")),
        ("nets.py:small", "l2(0.5)", ("linf", "l2(0.5)")),
        ("nets.py:small", "linf(0)", ("eps is 0",)),
    ],
)
def test_what_cannot_be_bounded_is_refused(model: str, threat: str, words: tuple[str, ...]) -> None:
    names(refused(*certified(model, "--threat", threat)), *words)
    assert not Path("hard").exists()


def test_new_weights_follow_from_the_seed_alone() -> None:
    one, other, third = fresh(Normed), fresh(Normed), fresh(Normed)
    assert isinstance(one.body, nn.Sequential)
    kept = one.head.bias.clone()  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]
    one.body[1].running_mean += 3  # pyright: ignore[reportOperatorIssue,reportIndexIssue]
    for net, seed in ((one, 0), (other, 0), (third, 1)):
        STARTS["ibp"](net, seed)
    states = [net.state_dict() for net in (one, other, third)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    assert torch.equal(states[0]["head.bias"], kept)  # it is frozen
    assert not states[0]["body.1.running_mean"].any()
    assert not states[0]["body.0.bias"].any()
    deviation = float(states[0]["head.weight"].std())
    assert deviation == pytest.approx(math.sqrt(2 * math.pi) / 144, rel=0.1)


def test_intervals_grow_from_no_new_layer_to_the_next() -> None:
    layers = [nn.Linear(500, 500) for _ in range(6)]
    STARTS["ibp"](nn.Sequential(*layers), 0)
    centre, radius = torch.randn(64, 500), torch.full((64, 500), 0.01)
    with torch.no_grad():
        for layer in layers:
            centre, radius = layer(centre), radius @ layer.weight.abs().T
            low, high = (centre - radius).relu(), (centre + radius).relu()
            centre, radius = (low + high) / 2, (high - low) / 2
    # by torch's own weights they grow fivefold in each layer
    assert 0.005 < float(radius.mean()) < 0.02


def test_a_model_of_another_framework_is_refused() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = torch.rand(60, 4).numpy(), torch.arange(60).remainder(3).numpy()
    with pytest.raises((InputError, hf.HoldfastError)):
        hf.harden(LogisticRegression().fit(x, y), (x, y), "linf(0.1)", recipe="certified")


@pytest.mark.slow
def test_digits_are_proved_in_about_a_minute(tmp_path: Path) -> None:
    """Measured: clean 83 %, robust 68 %, certified 65 % of all 360."""
    hard = hf.harden(
        demo_model(), "digits", "linf(0.1)", recipe="certified", protocol="quick", out=tmp_path
    )
    assert share(hard.before.certified_accuracy) == 0
    assert share(hard.after.certified_accuracy) > 0.5
    assert share(hard.after.clean_accuracy) > 0.75
    assert share(hard.after.robust_accuracy) >= share(hard.after.certified_accuracy)


@pytest.mark.slow
@pytest.mark.cases
def test_a_small_network_of_mnist_is_proved(cases: Path, tmp_path: Path) -> None:
    """On a sixth of the rows, in two minutes of CPU; all of them: benchmarks/results."""
    x, y = case(cases, "data_mnist").train()
    train = from_arrays(x[:10_000, None].astype("float32") / 255, y[:10_000].astype("int64"))
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    recipe = "certified(objective='ibp', epochs=16, batch_size=128, rate=0.001)"
    test = mnist(cases)
    hard = hf.harden(
        net, train, "linf(0.1)", recipe=recipe, test=test, test_samples=50, protocol="quick",
        out=tmp_path,
    )  # fmt: skip
    found = certify(hard.model, test, "linf(0.1)", samples=500, seconds_per_row=0.1)
    assert share(found.clean_accuracy) > 0.94
    assert share(found.certified_accuracy) > 0.85
