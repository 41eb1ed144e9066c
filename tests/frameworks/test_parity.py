"""One set of weights in every framework: the same scores, the same pullback, the same statuses."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import twins
from helpers.models import close

import holdfast
from holdfast.data import open_data
from holdfast.targets import Access, Target, load, wrap
from holdfast.targets.demo import demo_model

ROWS = 24
EPS = "linf(0.1)"


def need(*modules: str) -> None:
    for module in modules:
        pytest.importorskip(module)


def keras(folder: Path) -> Target:
    need("keras", "tensorflow")
    return wrap(twins.keras_model())


def keras_softmax(folder: Path) -> Target:
    need("keras", "tensorflow")
    return wrap(twins.keras_model(softmax=True))


def tensorflow(folder: Path) -> Target:
    need("tensorflow")
    return wrap(twins.tensorflow_function())


def saved_model(folder: Path) -> Target:
    need("tensorflow")
    import tensorflow as tf

    module, scores = tf.Module(), twins.tensorflow_function()
    module.ask = tf.function(scores, input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32)])
    tf.saved_model.save(module, str(folder / "saved"), signatures={"serving_default": module.ask})
    return load(str(folder / "saved"))


def jax(folder: Path) -> Target:
    need("jax")
    return wrap(twins.jax_function(), framework="jax")


def onnx(folder: Path) -> Target:
    need("onnx", "onnxruntime")
    return load(str(twins.onnx_file(folder)))


def onnx_of_one_row(folder: Path) -> Target:
    need("onnx", "onnxruntime")
    return load(str(twins.onnx_file(folder, rows=1)))


def exported(folder: Path) -> Target:
    return load(str(twins.torch_exported(folder)))


def scripted(folder: Path) -> Target:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.trace(demo_model(), torch.zeros(2, 1, 8, 8)), str(folder / "net.pt")
        )
    return load(str(folder / "net.pt"))


FORMS = [
    scripted,
    keras,
    keras_softmax,
    tensorflow,
    saved_model,
    jax,
    onnx,
    onnx_of_one_row,
    exported,
]


@pytest.fixture(scope="module")
def asked() -> tuple[Target, torch.Tensor, torch.Tensor, list[str]]:
    """The torch model, some digits, and what becomes of them."""
    reference = wrap(demo_model())
    x, y = (torch.as_tensor(part) for part in open_data("digits").rows(0, ROWS))
    return reference, x, y, statuses(reference, x, y)


def statuses(target: Target, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    run = holdfast.evaluate(target, (x, y), EPS, attacks=["apgd(steps=20)", "square(steps=40)"])
    return run.samples.column("status").to_pylist()


def agree(target: Target, reference: Target, x: torch.Tensor) -> None:
    """The same scores within 1e-5 and the same pullback within 1e-4 of the largest, by each way of
    asking."""
    target.bind(tuple(x.shape[1:]))
    reference.bind(tuple(x.shape[1:]))
    cotangent = torch.from_numpy(np.random.default_rng(0).standard_normal((len(x), 10), np.float32))
    z, pullback = reference.linearize(x)
    g = pullback(cotangent)
    seen, back = target.linearize(x)
    stepped, slope = target.pull(x, lambda _: cotangent)
    for found in (target.scores(x), seen, stepped):
        close(found, z, rtol=0, atol=1e-5 * float(z.abs().max()))
    for found in (back(cotangent), back(2 * cotangent) / 2, slope):
        close(found, g, rtol=0, atol=1e-4 * float(g.abs().max()))


@pytest.mark.parametrize("make", FORMS)
def test_same_weights_same_scores_same_pullback_same_statuses(
    make: Callable[[Path], Target], asked: Any, tmp_path: Path
) -> None:
    reference, x, y, known = asked
    target = make(tmp_path)
    assert target.access == Access.GRADIENTS
    agree(target, reference, x)
    agree(target, reference, x[:3])
    assert statuses(target, x, y) == known
    assert {"robust", "broken"} <= set(known)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_keras_on_other_backends(backend: str, asked: Any, tmp_path: Path) -> None:
    """The backend is chosen once a process, so each is tried in one of its own."""
    need("keras", backend)
    _, x, y, known = asked
    script = tmp_path / "ask.py"
    script.write_text(
        "import sys, torch\n"
        "sys.modules['tensorflow'] = None  # not needed here: Keras would import it to write a "
        "model down\n"
        "import test_parity as t\nfrom helpers import twins\n"
        "from holdfast.targets import wrap\n"
        "from holdfast.targets.demo import demo_model\n"
        "x, y = torch.load(sys.argv[1])\n"
        "target = wrap(twins.keras_model())\n"
        "t.agree(target, wrap(demo_model()), x)\n"
        "print(*t.statuses(target, x, y))\n"
    )
    torch.save((x, y), tmp_path / "asked.pt")
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    messages = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "asked.pt")],
        env=messages,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == known


@pytest.mark.parametrize("make", [keras, tensorflow, jax, onnx])
def test_layouts_are_turned(make: Callable[[Path], Target], asked: Any, tmp_path: Path) -> None:
    """The same images with the channels last, said where the model's own shape does not say it."""
    reference, x, _, _ = asked
    target = make(tmp_path)
    if make in (tensorflow, jax, onnx):
        target._asked = "nhwc"  # pyright: ignore[reportAttributeAccessIssue]
    target.bind((8, 8, 1))
    close(target.scores(x.movedim(1, -1)), reference.scores(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("make", [keras, jax, onnx])
def test_a_poisoned_row_leaves_its_neighbours_alone(
    make: Callable[[Path], Target], asked: Any, tmp_path: Path
) -> None:
    _, x, _, _ = asked
    target = make(tmp_path)
    target.bind((1, 8, 8))
    bad = x.clone()
    bad[3] = torch.nan
    others = [i for i in range(len(x)) if i != 3]
    clean, dirty = target.scores(x), target.scores(bad)
    assert torch.equal(clean[others], dirty[others])
    assert not torch.equal(clean[3], dirty[3])


def test_a_jax_function_is_compiled_for_few_numbers_of_rows() -> None:
    """And asked about at most an eighth more rows than there are."""
    need("jax")
    compiled: set[int] = set()

    def double(x: Any) -> Any:
        compiled.add(len(x))
        return x * 2

    target = wrap(double, framework="jax", shape=(3,))
    x = torch.rand(128, 3)
    for n in range(1, 129):
        before = set(compiled)
        assert torch.equal(target.scores(x[:n]), x[:n] * 2)
        assert all(n <= rows <= 9 / 8 * n for rows in compiled - before)
    assert len(compiled) == 16 + 3 * 8
