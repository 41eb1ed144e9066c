"""A GAN of the user's own networks, of torch and of Keras: trained, sampled and hardened with, by
one command each."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import holdfast, names, refused
from helpers.models import close

import holdfast as package
from holdfast.generation import load

# Generators and discriminators whose shape, range and inputs fit 4x4 images in their several ways.
TORCH = """
import torch
from torch import nn


def build_generator():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2),
                         nn.Linear(16, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))


def build_discriminator():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3),
                         nn.Linear(16, 1))


def flat_generator():
    return nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16), nn.Sigmoid())


def flat_discriminator():
    return nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), nn.Sigmoid())


class Conditional(nn.Module):
    def __init__(self, size, out, last):
        super().__init__()
        self.first, self.own = nn.Linear(size, 16), nn.Embedding(2, 16)
        self.second, self.last = nn.Linear(16, out), last

    def forward(self, x, y):
        return self.last(self.second(nn.functional.leaky_relu(self.first(x) + self.own(y))))


def conditional_generator():
    return Conditional(6, 16, nn.Tanh())


def conditional_discriminator():
    return Conditional(16, 1, nn.Identity())


def endless():
    return nn.Sequential(nn.Linear(6, 16), nn.Unflatten(1, (1, 4, 4)))


def large():
    return nn.Sequential(nn.Linear(6, 25), nn.Tanh(), nn.Unflatten(1, (1, 5, 5)))


def two_numbers():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def another_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 1))


def text():
    return "a generator"
"""

KERAS = """
import keras
from keras import layers


def build_generator():
    return keras.Sequential([
        layers.Input((8,)), layers.Dense(2 * 2 * 8), layers.BatchNormalization(),
        layers.LeakyReLU(0.2),
        layers.Reshape((2, 2, 8)),
        layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="tanh"),
    ])


def build_discriminator():
    return keras.Sequential([
        layers.Input((4, 4, 1)), layers.Conv2D(8, 3, strides=2, padding="same"),
        layers.LeakyReLU(0.2),
        layers.Dropout(0.3), layers.Flatten(), layers.Dense(1, activation="sigmoid"),
    ])


def too_large():
    return keras.Sequential([layers.Input((5, 5, 1)), layers.Flatten(), layers.Dense(1)])
"""

FEW = "steps=60, rounds=2, glance=40, judged=100, batch_size=32"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the networks, and bright and dark images of 4x4 pixels."""
    monkeypatch.chdir(tmp_path)
    Path("gan.py").write_text(TORCH)
    Path("keras_gan.py").write_text(KERAS)
    rng = np.random.default_rng(0)
    for name, shape in (("data", (1, 4, 4)), ("nhwc", (4, 4, 1))):
        y = np.arange(300) % 2
        x = (
            rng.normal(0.25 + 0.5 * y.reshape(-1, 1, 1, 1), 0.1, (300, *shape))
            .clip(0, 1)
            .astype(np.float32)
        )
        np.savez(f"{name}.npz", x=x, y=y)
    return tmp_path


def train(generator: str, discriminator: str, *options: object) -> tuple[object, ...]:
    nets = ("--generator", f"gan.py:{generator}", "--discriminator", f"gan.py:{discriminator}")
    return (
        "generate",
        "train",
        "data.npz",
        *nets,
        "--model",
        f"own({FEW}, rate=2e-3)",
        "--out",
        "gan",
        *options,
    )


@pytest.mark.parametrize(
    "kind", ["build", pytest.param("flat", marks=pytest.mark.slow), "conditional"]
)
def test_two_networks_are_trained_and_sampled(kind: str) -> None:
    """Tutorials: torch modules of any of these forms; a sample is of its class, and within the
    bounds."""
    done = holdfast(*train(f"{kind}_generator", f"{kind}_discriminator"))
    assert done.exit_code == 0, done.output
    assert ("knows no classes" in done.stdout) == (kind != "conditional")
    done = holdfast("generate", "sample", "gan", "--per-class", 20, "--out", "made.npz")
    assert done.exit_code == 0, done.output
    with np.load("made.npz") as archive:
        made = dict(archive)
    assert made["x"].shape == (40, 1, 4, 4)
    assert made["x"].min() >= 0
    assert made["x"].max() <= 1
    dark, bright = (made["x"][made["y"] == c].mean() for c in (0, 1))
    assert bright > dark  # so few steps teach little
    generator = load("gan")
    y, ids, order = torch.tensor([0, 1, 1, 0, 1]), torch.arange(5), torch.tensor([3, 1, 4])
    found = generator.draw(y, ids)
    # each row from its class and id alone
    close(generator.draw(y[order], ids[order]), found[order], atol=1e-5)
    if generator.reader is not None:
        assert torch.equal(generator.reader(found).argmax(1), y)


@pytest.mark.parametrize(
    ("generator", "discriminator", "words"),
    [
        ("endless", "build_discriminator", ("the generator gives values from", "tanh", "sigmoid")),
        (
            "large",
            "build_discriminator",
            ("the generator gives rows of shape (1, 5, 5)", "(1, 4, 4)"),
        ),
        ("build_generator", "two_numbers", ("the discriminator gives (2,)", "expected one number")),
        ("build_generator", "another_size", ("the discriminator", "(1, 4, 4)")),
        (
            "build_generator",
            "conditional_discriminator",
            ("the class as a second input", "give both or none"),
        ),
        (
            "text",
            "build_discriminator",
            ("gives a str as generator", "a Keras model or a torch module"),
        ),
        ("missing", "build_discriminator", ("no callable 'missing'",)),
    ],
)
def test_networks_that_do_not_fit_are_one_sentence(
    generator: str, discriminator: str, words: tuple[str, ...]
) -> None:
    """Tutorials: each mismatch is named, and nothing is left that blocks the next try."""
    names(refused(*train(generator, discriminator)), *words)
    assert not Path("gan").exists()


def test_one_network_alone_or_with_another_model_is_refused() -> None:
    """Tutorials: the two options go together, and with their own kind of model."""
    both = (
        "--generator",
        "gan.py:build_generator",
        "--discriminator",
        "gan.py:build_discriminator",
        "--out",
        "gan",
    )
    names(
        refused("generate", "train", "data.npz", *both[:2], *both[4:]),
        "needs both networks",
        "--discriminator",
    )
    names(
        refused("generate", "train", "data.npz", *both, "--model", "diffusion"),
        "own(...)",
        "diffusion",
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["build", "flat", "conditional"])
def test_samples_teach_a_classifier_the_classes(kind: str) -> None:
    """Tutorials: of a few more steps, a classifier trained on samples alone is right on real
    rows."""
    more = f"own({FEW.replace('steps=60', 'steps=1500')}, rate=2e-3)"
    assert (
        holdfast(*train(f"{kind}_generator", f"{kind}_discriminator", "--model", more)).exit_code
        == 0
    )
    assert json.loads(Path("gan/quality.json").read_bytes())["trained"] > 0.95


@pytest.mark.slow
def test_a_keras_gan_is_trained_and_hardened_with(here: Path) -> None:
    """Tutorials: Sequential generator and discriminator, LeakyReLU, tanh output, inputs of (4, 4,
    1)."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed: pip install 'holdfast[frameworks]'")
    nets = ("--generator", "keras_gan.py:build_generator")
    nets += ("--discriminator", "keras_gan.py:build_discriminator")
    done = alone(
        "generate", "train", "nhwc.npz", *nets, "--model", f"own({FEW}, rate=2e-3)", "--out", "gan"
    )
    assert done.returncode == 0, done.stderr
    done = alone("generate", "sample", "gan", "--per-class", "50", "--out", "made.npz")
    assert done.returncode == 0, done.stderr
    with np.load("made.npz") as archive:
        made = dict(archive)
    assert made["x"].shape == (100, 4, 4, 1)
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    options = "--threat linf(0.1) --epochs 2 --out hard --synthetic made.npz --layout nhwc".split()
    done = alone("harden", "net.py:build", "nhwc.npz", *options)
    assert done.returncode in (0, 1), done.stderr
    assert Path("hard/harden.json").exists()
    wrong = [*nets[:3], "keras_gan.py:too_large"]
    done = alone("generate", "train", "nhwc.npz", *wrong, "--out", "other")
    assert done.returncode == 2
    assert (
        "the discriminator takes rows of shape (5, 5, 1), but the generator gives (4, 4, 1)"
        in done.stderr
    )


def alone(*args: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, where Keras is not yet imported."""
    env = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    env["PYTHONPATH"] = str(Path(package.__file__).parents[1])
    code = "from holdfast.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, env=env
    )
