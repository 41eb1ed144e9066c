"""Options of one kind mean the same in every command; the help that lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from helpers.commands import holdfast, names, refused

from holdfast.cli.main import COMMANDS, GENERATE, app
from holdfast.data import open_data
from holdfast.runs import store

NAMES = [*COMMANDS, *(f"generate {name}" for name in GENERATE)]
MODEL = "arch trust preprocess output task probabilities attacked eot batch_size device".split()
INPUTS = ["bounds", "limits", "layout"]
DATA = [*INPUTS, "split", "label", "classes", "resize", "crop"]
# of these, each command has its own: what it writes, what it attacks with, what it measures on
APART = {
    "out",
    "run",
    "epochs",
    "attack",
    "recipe",
    "protocol",
    "model",
    "test",
    "samples",
    "json",
    "runs",
}
# where a property of VNN-LIB may be in their place
NOT_REQUIRED = {(name, option) for name in ("attack", "certify") for option in ("data", "threat")}
NOT_REQUIRED |= {("verify", option) for option in ("model", "data")}  # of an audit
MODELS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        scores = self.inner(x)
        return {"half": scores[:, :5], "all": scores}

def two(): return Two()
def halved(x): return x * 0.5
"""
LINF = ("--threat", "linf(0.1)")
FGSM = ("--attack", "fgsm", "--samples", "20")


def parameters(name: str) -> dict[str, Any]:
    """The options and arguments of a command, by name."""
    command: Any = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]
    return {parameter.name: parameter for parameter in command.params}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize("name", ["evaluate", "attack", "harden", "train", "verify"])
def test_every_command_takes_the_same_of_model_and_data(name: str) -> None:
    assert parameters(name).keys() >= {"model", "data", *MODEL, *DATA}


def test_generating_takes_the_same_of_its_model_or_data() -> None:
    assert parameters("generate train").keys() >= {"data", *DATA}
    assert parameters("generate sample").keys() >= {*MODEL, *INPUTS}


def test_an_option_says_the_same_everywhere() -> None:
    known: dict[str, Any] = {}
    for name in NAMES:
        for option, parameter in parameters(name).items():
            required = parameter.required or (name, option) in NOT_REQUIRED
            said = (parameter.help, parameter.default, parameter.metavar, required)
            if option not in APART:
                assert known.setdefault(option, said) == said, f"{name}: {option}"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_is(name: str) -> None:
    for parameter in parameters(name).values():
        if not getattr(parameter, "hidden", False):
            assert parameter.help
            assert parameter.metavar or parameter.is_flag, parameter.name


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_the_help_fits(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut, what an option means has half of the width, and few options come first."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = holdfast(*name.split(), "--help").stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", "\n".join(lines)).split())
    for parameter in parameters(name).values():
        assert getattr(parameter, "hidden", False) or parameter.help.split()[-1] in text
    starts = {line.find(next(iter(line[26:].split()), "")) for line in lines if "│ --" in line}
    assert max(starts) <= 28
    first = next(i for i, line in enumerate(lines) if "─ Options" in line)
    last = next(i for i, line in enumerate(lines) if i > first and line.startswith("╰"))
    assert sum("│ --" in line for line in lines[first:last]) <= 7


def test_verify_takes_what_evaluate_took(here: Path) -> None:
    asked = ("--preprocess", "normalize(0.5, 0.5)", "--preprocess", "models.py:halved")
    asked += ("--output", "all", "--layout", "nchw", "--batch-size", "7", "--split", "test")
    done = holdfast("evaluate", "models.py:two", "digits", *LINF, *FGSM, *asked, "--out", "run")
    assert done.exit_code == 0, done.output
    for given in (asked, ("--preprocess", "models.py:halved")):
        done = holdfast("verify", "run", "models.py:two", "digits", *given)
        assert done.exit_code == 0, done.output
    for given, words in {
        ("--bounds", "0,2"): ("model", "bounds"),
        ("--output", "half"): ("5 classes",),
        ("--probabilities",): ("model", "logits"),
        ("--split", "train"): ("data", "fingerprint"),
    }.items():
        own = ("--preprocess", "models.py:halved", *given)
        done = holdfast("verify", "run", "models.py:two", "digits", *own)
        assert done.exit_code == 1, given
        names(done.stdout, *words)


@pytest.mark.parametrize("name", ["scale", "mask"])
def test_train_refuses_limits_of_a_threat(here: Path, name: str) -> None:
    np.savez(here / "limits.npz", **{name: np.ones((1, 8, 8), np.float32)})
    asked = ("train", "models.py:net", "digits", "--epochs", "1", "--limits", "limits.npz")
    names(refused(*asked), f"holds {name}", "train has none")
    assert not (here / "model.safetensors").exists()


def test_train_goes_on_from_weights_and_takes_one_of_several_outputs(here: Path) -> None:
    steps = ("--epochs", 2, "--rate", 0.01)
    assert holdfast("train", "models.py:two", "digits", *steps, "--output", "all").exit_code == 0
    arch = ("--arch", "models.py:two", "--output", "all")
    done = holdfast("train", "model.safetensors", "digits", *steps, *arch, "--out", "b.safetensors")
    assert done.exit_code == 0
    found = []
    for weights in ("model.safetensors", "b.safetensors"):
        done = holdfast("evaluate", weights, "digits", *arch, *LINF, *FGSM, "--out", weights[:1])
        found.append(store.read_manifest(Path(weights[:1])).metrics.clean_accuracy.value or 0)
    assert found[1] > found[0] > 0.1
    names(
        refused(
            "train", "models.py:net", "digits", "--task", "multilabel", "--out", "c.safetensors"
        ),
        "classifier of k classes",
        "the task multilabel",
    )


def test_harden_keeps_to_the_bounds_of_each_feature(here: Path) -> None:
    x, _ = open_data("digits").rows(0, 1)
    high = np.linspace(1, 1.2, 64, dtype=np.float32).reshape(x[0].shape)
    np.savez("limits.npz", low=np.zeros_like(high), high=high)
    np.savez("scale.npz", scale=np.ones_like(high))
    asked = ("harden", "models.py:net", "digits", *LINF, "--recipe", "fast(epochs=1)")
    asked += ("--protocol", "quick", "--test-samples", 20, "--batch-size", 50, "--eot", 1)
    done = holdfast(*asked, "--limits", "limits.npz", "--out", "hard")
    assert done.exit_code == 0, done.output
    for part in ("before", "after"):
        found = store.read_manifest(Path("hard") / part)
        assert found.model.bounds == pytest.approx((0, 1.2))
        assert found.model.box
        assert found.settings["batch_size"] == 50
    names(refused(*asked, "--limits", "scale.npz", "--out", "no"), "one eps for all")


def test_a_generator_has_one_range(here: Path) -> None:
    np.savez("limits.npz", low=np.zeros((1, 8, 8)), high=np.ones((1, 8, 8)))
    np.savez("scale.npz", scale=np.ones((1, 8, 8)))
    for file in ("limits.npz", "scale.npz"):
        names(refused("generate", "train", "digits", "--out", "g", "--limits", file), "--bounds")


def test_bounds_said_twice_are_refused(here: Path) -> None:
    np.savez("ranges.npz", low=np.zeros((1, 8, 8)), high=np.ones((1, 8, 8)))
    refused(
        "evaluate", "demo", "digits", "--threat", "linf(0.1)", "--bounds", "0,5",
        "--limits", "ranges.npz", "--out", "twice",
    )  # fmt: skip
    assert not Path("twice").exists()
