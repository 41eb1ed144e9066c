"""The tutorials that people follow, from end to end: each as they would type it, on digits in the
shape of MNIST."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import twins
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner, Result

import holdfast
from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.runs.run import Run

pytestmark = pytest.mark.slow
keras: Any = None
tf: Any = None
GAN = """
import keras
from keras import layers

def build_generator():
    return keras.Sequential([
        layers.Input((16,)), layers.Dense(7 * 7 * 8), layers.LeakyReLU(), layers.Reshape((7, 7, 8)),
        layers.Conv2DTranspose(8, 4, strides=2, padding="same"), layers.LeakyReLU(),
        layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="tanh"),
    ])

def build_discriminator():
    return keras.Sequential([
        layers.Input((28, 28, 1)), layers.Conv2D(8, 4, strides=2), layers.LeakyReLU(),
        layers.Flatten(), layers.Dense(1, activation="sigmoid"),
    ])
"""


def holdfast_(*args: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def command(*args: object) -> None:
    """The command in a process of its own: a GAN of Keras wants another backend than this process
    has."""
    env = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    line = [sys.executable, "-m", "holdfast", *map(str, args)]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits as bytes [n, 28, 28], each pixel three by three, with a black frame."""
    source = open_data("digits", split=split)
    x, y = source.rows(0, len(source))
    large = np.kron(np.rint(x[:, 0] * 255).astype(np.uint8), np.ones((1, 3, 3), np.uint8))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))), y.astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Imported where a test runs: each worker would pay for it here, also those that run none."""
    globals().update(keras=pytest.importorskip("keras"), tf=pytest.importorskip("tensorflow"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MNIST's four files, and with Keras's tutorial model trained on them, saved in
    both formats."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "mnist").mkdir()
    for split, stem in (("train", "train"), ("test", "t10k")):
        x, y = images(split)
        for name, array in (
            (f"{stem}-images-idx3-ubyte.gz", x),
            (f"{stem}-labels-idx1-ubyte.gz", y),
        ):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / "mnist" / name).write_bytes(gzip.compress(head + array.tobytes()))
    x, y = images("train")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.1),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "categorical_crossentropy")
    model.fit(x[..., None] / 255, keras.utils.to_categorical(y), epochs=8, batch_size=32, verbose=0)
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def test_keras_fgsm_from_python() -> None:
    x, y = images("test")
    x = x[:50, ..., None] / np.float32(255)
    kept = []
    for file in ("model.h5", "model.keras"):
        model = keras.models.load_model(file)
        result = holdfast.attack(model, x, keras.utils.to_categorical(y[:50]), "linf(0.3)", "fgsm")
        assert isinstance(result.x_adv, np.ndarray)
        assert result.x_adv.shape == x.shape
        fooled = model.predict(result.x_adv, verbose=0).argmax(1) != y[:50]
        assert (fooled == (result.success | result.wrong)).all()
        assert result.success.mean() > 0.5
        kept.append(result.success)
    assert (kept[0] == kept[1]).all()
    figure = result.plot(n=5)
    assert len(figure.axes) == 15
    figure.savefig("examples.png")
    assert Path("examples.png").stat().st_size > 1000


def test_keras_adversarial_training_in_one_command() -> None:
    done = holdfast_(
        "harden", "model.h5", "mnist:mnist", "--test", "mnist:mnist", "--threat", "linf(0.2)",
        "--test-samples", 60,
        "--recipe", "fast(epochs=12)", "--protocol", "quick", "--out", "hard",
    )  # fmt: skip
    for word in ("accuracy", "precision", "recall"):
        assert word in done.output.lower()
    before, after = Run("hard/before"), Run("hard/after")
    assert after.robust_accuracy.value > before.robust_accuracy.value + 0.1
    assert after.precision.attacked is not None
    assert after.recall.attacked > before.recall.attacked
    model, (x, y) = keras.models.load_model("hard/model.keras"), images("test")
    right = (model.predict(x[:60, ..., None] / 255, verbose=0).argmax(1) == y[:60]).mean()
    assert right == pytest.approx(after.clean_accuracy.value, abs=0.02)
    assert Path("hard/report.html").exists()


def test_one_line_gives_the_same_statuses_in_three_frameworks() -> None:
    x, y = open_data("digits", split="test").rows(0, 60)
    found = {}
    for name, model, own in (
        ("torch", twins.demo_model(), torch.from_numpy(x)),
        ("keras", twins.keras_model(softmax=True), np.moveaxis(x, 1, -1)),
        ("tensorflow", twins.tensorflow_function(), tf.constant(np.moveaxis(x, 1, -1))),
    ):
        for attack in ("fgsm", "pgd(steps=10)"):
            result = holdfast.attack(model, own, y, "linf(0.1)", attack)
            assert (
                type(result.x_adv) is type(own)
                or name == "tensorflow" == type(result.x_adv).__module__[:10]
            )
            found[name, attack] = np.asarray(result.success)
    for attack in ("fgsm", "pgd(steps=10)"):
        assert found["torch", attack].any()
        assert (found["torch", attack] == found["keras", attack]).all()
        assert (found["torch", attack] == found["tensorflow", attack]).all()


def residual() -> nn.Module:
    """A small residual network behind ImageNet's normalisation, as one from a model zoo."""

    class Block(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(a, b, 3, 2, 1), nn.Conv2d(b, b, 3, 1, 1)
            self.norm, self.skip = nn.BatchNorm2d(b), nn.Conv2d(a, b, 1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(self.two(torch.relu(self.one(x)))) + self.skip(x))

    torch.manual_seed(0)
    return nn.Sequential(
        Block(3, 8), Block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )


def test_torch_with_imagenet_s_normalisation_from_a_loader_and_a_folder(here: Path) -> None:
    from PIL import Image

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    net, rng = residual().eval(), np.random.default_rng(0)
    raw = rng.integers(0, 256, (24, 3, 40, 40), dtype=np.uint8)
    x = torch.from_numpy(raw) / 255
    shift, scale = (torch.tensor(v)[:, None, None] for v in (mean, std))
    y = net((x - shift) / scale).argmax(1)
    target = holdfast.wrap(net, preprocess=holdfast.Normalize(mean, std))
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    run = holdfast.evaluate(target, loader, "linf(1/255)", protocol="quick")
    assert run.clean_accuracy.value == 1
    for i, (row, label) in enumerate(zip(raw, y.tolist(), strict=True)):
        place = here / "photos" / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.moveaxis(row, 0, -1))
        (picture if i % 2 else picture.resize((60, 40))).save(place / f"{i:02d}.png")
    names = sorted(p.name for p in (here / "photos").iterdir())
    (here / "classes.txt").write_text("".join(f"{name} {name[5:]}\n" for name in names))
    torch.save(net.state_dict(), "net.pt")
    Path("net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n" + RESIDUAL
    )
    steps = [f"normalize({list(mean)}, {list(std)})"]
    holdfast_(
        "evaluate", "net.pt", here / "photos", "--arch", "net.py:build", "--preprocess", steps[0],
        "--resize", 40, "--crop", 40, "--classes", "classes.txt",
        "--threat", "linf(1/255)", "--protocol", "quick", "--out", "photos-run",
    )  # fmt: skip
    assert Run("photos-run").clean_accuracy.value >= 0.5  # half of the pictures are those of before
    holdfast_(
        "verify",
        "photos-run",
        "net.pt",
        here / "photos",
        "--arch",
        "net.py:build",
        "--classes",
        "classes.txt",
    )


RESIDUAL = "from test_tutorials import residual\n\n\ndef build():\n    return residual()\n"


def test_a_gan_of_one_s_own_feeds_hardening() -> None:
    Path("gan.py").write_text(GAN)
    command(
        "generate", "train", "mnist:mnist", "--generator", "gan.py:build_generator",
        "--discriminator", "gan.py:build_discriminator",
        "--model", "own(steps=800, rounds=2, rate=1e-3)",
        "--out", "gan",
    )  # fmt: skip
    command("generate", "sample", "gan", "--per-class", 20, "--out", "made.npz")
    with np.load("made.npz") as archive:
        made = dict(archive)
    assert made["x"].shape[0] == 200
    assert np.bincount(made["y"]).tolist() == [20] * 10
    holdfast_(
        "harden", "model.keras", "mnist:mnist", "--test", "mnist:mnist", "--threat", "linf(0.1)",
        "--synthetic", "made.npz", "--recipe", "fast(epochs=1)", "--test-samples", 20,
        "--protocol", "quick", "--out", "fed",
    )  # fmt: skip
    assert Path("fed/model.keras").exists()


@pytest.mark.parametrize("model", ["model.keras", "demo"])
def test_hardening_with_regularisation_and_augmentation(model: str) -> None:
    pytest.importorskip("kornia")
    data: Any = (
        ("mnist:mnist", "--test", "mnist:mnist")
        if model != "demo"
        else ("digits", "--test", "digits")
    )
    holdfast_(
        "harden", model, *data, "--threat", "linf(0.1)", "--test-samples", 20,
        "--protocol", "quick",
        "--out", f"augmented-{model}", "--recipe",
        (
            "fast(epochs=1, decay=0.001, augment='flip, rotate(degrees=10), crop(padding=1), "
            "noise(sigma=0.05)')"
        ),
    )  # fmt: skip
    assert Run(f"augmented-{model}/after").clean_accuracy.n == 20
