"""Keras models, hardened from file to file, and read again by plain TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import twins
from helpers.commands import holdfast as command
from helpers.commands import names, refused

from holdfast.data import open_data
from holdfast.runs.compare import compare
from holdfast.runs.run import Run

# imported by the tests that need them: each worker would pay for it here
for package in ("tensorflow", "keras"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

LINF = ("--bounds", "0,255", "--threat", "linf(25)")
ROWS = 40  # measured, before and after


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(split: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values from 0 to 255, channels last."""
    x, y = open_data("digits", split=split).rows(0, rows)
    return np.rint(x * 255).astype(np.uint8).transpose(0, 2, 3, 1), y


def fragile(last: str = "softmax") -> Any:
    """The demo's network with all that training could get wrong: scaling, batch norm, dropout, a
    softmax."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.05, seed=1),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation=last),
        ]
    )
    trained = twins.weights()
    for place, layer in enumerate(
        part for part in model.layers if isinstance(part, (layers.Conv2D, layers.Dense))
    ):
        layer.set_weights(trained[2 * place : 2 * place + 2])
    return model


ORDINARY = """
import json, sys
import keras
import numpy as np

held = np.load("test.npz")
x, y = held["x"][: int(sys.argv[2])].astype("float32"), held["y"][: int(sys.argv[2])]
model = keras.models.load_model(sys.argv[1])
p = model.predict(x, verbose=0)
norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
print(json.dumps({
    "backend": keras.config.backend(),
    "right": int((p.argmax(1) == y).sum()),
    "sums": [float(p.sum(1).min()), float(p.sum(1).max())],
    "last": model.layers[-1].activation.__name__,
    "moving": float(abs(norm.moving_mean.numpy()).max()),
    "holdfast": any(name.startswith("holdfast") for name in sys.modules),
}))
"""


def plainly(file: str) -> dict[str, Any]:
    """What TensorFlow alone makes of a file."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "KERAS_BACKEND")
    }
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY, file, str(ROWS)],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_file_goes_in_and_a_hardened_file_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends agree to 1e-5 on the scores of what is saved, or the command refuses."""
    from holdfast.training import keras as own

    monkeypatch.setattr(own, "APART", 1e-5)
    fragile().save("net.keras")
    for name, split, rows in (("train", "train", 600), ("test", "test", 100)):
        x, y = digits(split, rows)
        np.savez(f"{name}.npz", x=x, y=y)
    before = Path("net.keras").read_bytes()
    recipe = 'fast(epochs=4, batch_size=32, rate=0.05, judge="pgd(steps=3)")'
    asked = (
        "--test",
        "test.npz",
        *LINF,
        "--recipe",
        recipe,
        "--protocol",
        "quick",
        "--test-samples",
        ROWS,
    )
    done = command("harden", "net.keras", "train.npz", *asked, "--out", "hard")
    assert done.exit_code == 0, done.output
    files = {
        "model.keras",
        "log.csv",
        "before",
        "after",
        "comparison.json",
        "harden.json",
        "report.html",
    }
    assert set(os.listdir("hard")) == files
    assert Path("net.keras").read_bytes() == before
    names(done.stderr, "model: hard/model.keras")
    found = compare("hard/before", "hard/after")
    assert (found.figures[1].second.value or 0) > (found.figures[1].first.value or 0) + 0.1

    messages = plainly("hard/model.keras")
    assert messages["backend"] == "tensorflow"
    assert not messages["holdfast"]
    assert messages["last"] == "softmax"
    assert messages["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert messages["moving"] > 1e-3  # the statistics moved, and came back
    assert messages["right"] / ROWS == Run("hard/after").clean_accuracy.value

    again = command(
        "harden", "net.keras", "train.npz", *asked, "--out", "hard", "--resume", "--json"
    )
    assert (again.exit_code, json.loads(again.stdout)) == (0, json.loads(found.model_dump_json()))
    names(refused("harden", "net.keras", "train.npz", *asked, "--out", "hard"), "--resume")


REBUILT = """
import keras, numpy as np, torch
from test_harden_keras import digits, fragile
from holdfast.data import from_arrays
from holdfast.hardening import recipes
from holdfast.training.keras import Rebuilt, _put
from holdfast.training.loop import Training
from holdfast.targets import wrap
from holdfast.threats.threat import Threat

assert keras.config.backend() == "torch"
x, y = digits("train", 128)
rows = torch.from_numpy(x.astype("float32"))
for objective in ("pgd(steps=1, step_size=1.0)", "trades(steps=1)", "mart(steps=1)"):
    model = fragile()
    target = wrap(model, bounds=(0, 255))
    target.bind((8, 8, 1))
    bare = target.model.model
    net = Rebuilt(bare, flat=False)
    assert {n for n, _ in net.named_parameters()} == {f"trained.{i}" for i in range(10)}
    assert torch.equal(net.eval()(rows), bare(rows, training=False))
    first = [w.detach().clone() for w in net.parameters()]

    how = f'epochs=1, batch_size=64, ema=0, judge="", objective="{objective}"'
    recipe = recipes.parse(f"fast({how})")
    part = from_arrays(x, y, scale=False)
    training = Training(target, part, part, Threat.linf(25), recipe, *recipes.parts(recipe))
    net.load_state_dict(training.fit(net).best_average())
    assert all(not torch.equal(a, b) for a, b in zip(first, net.parameters()))
    _put(net, bare)
    assert torch.allclose(net.eval()(rows), model(rows, training=False), atol=1e-6)

    # One forward in train mode moves the statistics and the random state as Keras moves them.
    net.train()(rows), model(rows, training=True)
    for mine, theirs in zip(net.buffers(), model.non_trainable_variables):
        assert torch.allclose(mine.double(), theirs.value.double(), rtol=1e-5), theirs.path
print("all of it")
"""


@pytest.mark.slow
def test_on_torch_it_is_the_same_network_and_every_objective_trains_it() -> None:
    env = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", REBUILT], capture_output=True, text=True, check=False, env=env
    )
    assert done.stdout.endswith("all of it\n"), done.stderr


def none() -> Any:
    import keras

    return keras.Sequential(
        [keras.layers.Input((8, 8, 1)), keras.layers.AveragePooling2D(2), keras.layers.Flatten()]
    )


def two() -> Any:
    import keras

    return keras.Sequential(
        [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )


def broken() -> Any:
    model = fragile()
    model.layers[-1].bias.assign(np.full(10, np.nan, np.float32))
    return model


def explosive() -> Any:
    """Its scores are finite, and the loss of them is not."""
    model = two()
    model.layers[-1].bias.assign(np.array([3e38, -3e38], np.float32))
    return model


MODELS = {"none": none, "two": two, "broken": broken, "fragile": fragile, "explosive": explosive}


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("none", (), ("no parameters",)),
        ("two", (), ("2 classes",)),
        ("broken", (), ("not finite",)),
        ("fragile", ("--recipe", "fast(batch_size=1)"), ("batch norm", "batch_size")),
        ("fragile", ("--threat", "linf(300)"), ("eps 300", "whole box")),
        ("fragile", ("--threat", "linf(0.1, target=3)"), ("untargeted",)),
        ("few", (), ("class 9 has 3 rows", "at least 10")),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(
    model: str, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    MODELS.get(model, fragile)().save("net.keras")
    x, y = digits("train", 300)
    keep = (
        np.arange(300)
        if model != "few"
        else np.concatenate([np.flatnonzero(y != 9), np.flatnonzero(y == 9)[:3]])
    )
    np.savez("train.npz", x=x[keep], y=y[keep])
    np.savez("test.npz", x=x[:50], y=y[:50])
    asked = (
        "harden",
        "net.keras",
        "train.npz",
        "--test",
        "test.npz",
        *LINF,
        *options,
        "--out",
        "hard",
    )
    names(refused(*asked), *words)
    assert not Path("hard").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_at_the_first_step_leaves_no_model() -> None:
    explosive().save("net.keras")
    x, y = digits("train", 300)
    np.savez("train.npz", x=x[y < 2], y=y[y < 2])
    text = refused(
        "harden",
        "net.keras",
        "train.npz",
        *LINF,
        "--recipe",
        "fast(held=0.2)",
        "--protocol",
        "quick",
        "--out",
        "hard",
    )
    names(text, "the loss is", "at the first step")
    assert set(os.listdir("hard")) == {"before", "harden.json"}


def stored(model: Any, file: str) -> None:
    model.save(file)
    for name, rows in (("train", 300), ("test", ROWS)):
        x, y = digits(name, rows)
        np.savez(f"{name}.npz", x=x, y=y)


BRIEF = (
    "--recipe",
    'fast(epochs=2, batch_size=32, judge="pgd(steps=2)")',
    "--protocol",
    "quick",
    "--test-samples",
    20,
)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "backend"), [("net.h5", "tensorflow"), ("net.keras", "jax")])
def test_a_legacy_file_and_another_backend_go_in(file: str, backend: str) -> None:
    if backend == "jax":
        pytest.importorskip("jax")
    stored(fragile(), file)
    asked = ("harden", file, "train.npz", "--test", "test.npz", *LINF, *BRIEF, "--out", "hard")
    env = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "from holdfast.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, asked)],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert plainly("hard/model.keras")["last"] == "softmax"


@pytest.mark.slow
def test_plain_training_takes_a_keras_file() -> None:
    stored(fragile(), "net.keras")
    names(refused("train", "net.keras", "train.npz", "--out", "weights.safetensors"), ".keras")
    done = command(
        "train",
        "net.keras",
        "train.npz",
        "--bounds",
        "0,255",
        "--epochs",
        2,
        "--out",
        "new/trained.keras",
    )
    assert done.exit_code == 0, done.output
    messages = plainly("new/trained.keras")
    assert messages["moving"] > 1e-3
    assert messages["right"] > ROWS / 2


LAYER = """
import keras
import tensorflow as tf

@keras.saving.register_keras_serializable()
class Native(keras.layers.Layer):
    def call(self, x): return tf.nn.relu(x)

@keras.saving.register_keras_serializable()
class Portable(keras.layers.Layer):
    def call(self, x): return keras.ops.relu(x)

def made(kind):
    layers = keras.layers
    return keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(16), kind(),
                            layers.Dense(10)])

def native(): return made(Native)
def portable(): return made(Portable)
"""


@pytest.mark.slow
def test_layers_of_ones_own_come_along_or_are_refused() -> None:
    Path("layers.py").write_text(LAYER)
    stored(fragile(), "net.keras")
    asked = ("train.npz", "--test", "test.npz", *LINF, *BRIEF)
    done = command("harden", "layers.py:portable", *asked, "--out", "hard")
    assert done.exit_code == 0, done.output
    assert Path("hard/model.keras").exists()
    text = refused("harden", "layers.py:native", *asked, "--out", "other")
    names(text, "Keras's torch backend")
    assert not Path("other/model.keras").exists()


@pytest.mark.slow
def test_unequal_classes_are_weighed_in_keras_too() -> None:
    """Line 4: a Keras model is hardened with the same class weights, and keeps its small class."""
    import keras

    draw = np.random.default_rng(0)
    for name, n in (("train", 800), ("test", 200)):
        y = (np.arange(n) % 12 == 0).astype(int)
        x = np.where(y[:, None] == 1, 0.6, 0.45) + draw.normal(scale=0.12, size=(n, 8))
        np.savez(f"{name}.npz", x=np.clip(x, 0, 1).astype(np.float32), y=y)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras.Sequential(
        [layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(2)]
    ).save("net.keras")
    brief = ("--recipe", 'standard(epochs=6, judge="pgd(steps=3)")', "--protocol", "quick")
    line = (
        "harden",
        "net.keras",
        "train.npz",
        "--test",
        "test.npz",
        "--threat",
        "linf(0.04)",
        *brief,
    )
    done = command(*line, "--out", "hard", "--min-recall", 0.4)
    assert done.exit_code == 0, done.output
    names(done.stderr, "Class weights: balanced")
    assert min(c.recall.clean or 0 for c in Run("hard/after").metrics.per_class) > 0.5
