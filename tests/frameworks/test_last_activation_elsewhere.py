"""A softmax or a sigmoid at the end changes nothing in other frameworks either: the logits before
it are read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import holdfast
from holdfast.targets import load, wrap
from holdfast.targets.target import Target

RNG = np.random.default_rng(0)
W = [RNG.normal(size=(4, 8)).astype(np.float32), 300 * RNG.normal(size=(8, 3)).astype(np.float32)]
B = -W[0].sum(0) / 2
X = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
PLACES = ("softmax", "sigmoid")


def logits(k: int) -> Target:
    """The reference: the same network in torch, without an activation."""
    first, last, b = (torch.from_numpy(part) for part in (W[0], W[1][:, :k], B))
    return wrap(lambda x: (x @ first + b).relu() @ last, shape=(4,))


def same(target: Target, place: str) -> None:
    """Scores and gradients are the logits', which a saturated activation would hide."""
    target.bind((4,))
    known = logits(3 if place == "softmax" else 1)
    assert target.head.reads
    assert target.head.probabilities
    c = torch.randn(len(X), known.task.k, generator=torch.Generator().manual_seed(2))
    (z, back), (expected, pull) = target.linearize(X), known.linearize(X)
    for a, b in ((target.scores(X), known.scores(X)), (z, expected), (back(c), pull(c))):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-2)
    assert float(back(c).abs().max()) > 10


def keras_model(place: str, *, nested: bool = True) -> Any:
    import keras

    layers = keras.layers
    k = 3 if place == "softmax" else 1
    inner = keras.Sequential(
        [layers.Input((8,)), layers.Dense(k, use_bias=False, activation=place)]
    )
    rest = [inner] if nested else [layers.Dense(k, use_bias=False), layers.Activation(place)]
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8, activation="relu"), *rest])
    model.set_weights([W[0], B, W[1][:, :k]])
    return model


def tensorflow_function(place: str) -> Callable[[Any], Any]:
    import tensorflow as tf

    def scores(x: Any) -> Any:
        h = tf.nn.relu(x @ W[0] + B)
        return tf.nn.softmax(h @ W[1]) if place == "softmax" else tf.sigmoid(h @ W[1][:, :1])[:, 0]

    return scores


def jax_function(place: str) -> Callable[[Any], Any]:
    import jax

    def scores(x: Any) -> Any:
        h = jax.nn.relu(x @ W[0] + B)
        return (
            jax.nn.softmax(h @ W[1])
            if place == "softmax"
            else jax.nn.sigmoid(h @ W[1][:, :1])[:, 0]
        )

    return scores


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("compiled", [False, True])
def test_tensorflow_functions(place: str, compiled: bool) -> None:
    """Line 2: a function, and a tf.function, whose steps are in a graph of their own."""
    tf = pytest.importorskip("tensorflow")
    function = tensorflow_function(place)
    same(wrap(tf.function(function) if compiled else function, framework="tensorflow"), place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("compiled", [False, True])
def test_jax_functions(place: str, compiled: bool) -> None:
    """Line 2: a function, and a compiled one."""
    jax = pytest.importorskip("jax")
    function = jax_function(place)
    same(wrap(jax.jit(function) if compiled else function, framework="jax"), place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("nested", [False, True])
def test_keras_models(place: str, nested: bool) -> None:
    """Line 2: the last layer of a model within the model."""
    pytest.importorskip("keras")
    model = keras_model(place, nested=nested)
    target = wrap(model)
    same(target, place)
    assert "probabilities" in [check for check, _ in target.identity.remarks]
    assert model.count_params() == 4 * 8 + 8 + 8 * (3 if place == "softmax" else 1)


def test_a_keras_subclass_and_a_saved_model(tmp_path: Path) -> None:
    """Line 2: no graph of layers at all; and a SavedModel, whose function calls another one."""
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")

    class Net(keras.Model):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            super().__init__()
            self.net = keras_model("softmax")

        def call(self, x: Any) -> Any:
            return self.net(x)

        def get_config(self) -> dict[str, Any]:
            return {}

    net = Net()
    net(np.zeros((1, 4), np.float32))
    same(wrap(net), "softmax")
    keras_model("sigmoid").export(str(tmp_path / "saved"), verbose=False)
    same(load(str(tmp_path / "saved")), "sigmoid")


@pytest.mark.parametrize("place", PLACES)
def test_onnx_files(place: str, tmp_path: Path) -> None:
    """Line 2: the file's own scores, and those of its graph run in torch."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make = onnx.helper.make_node
    k = 3 if place == "softmax" else 1
    nodes = [
        make("Gemm", ["x", "w", "b"], ["h1"]),
        make("Relu", ["h1"], ["h2"]),
        make("MatMul", ["h2", "v"], ["h3"]),
        make(place.capitalize(), ["h3"], ["h4"]),
        make("Identity", ["h4"], ["z"]),
    ]
    value = onnx.helper.make_tensor_value_info
    weights = {"w": W[0], "b": B, "v": W[1][:, :k]}
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 4])],
        [value("z", onnx.TensorProto.FLOAT, ["rows", k])],
        [
            onnx.numpy_helper.from_array(np.ascontiguousarray(w), name)
            for name, w in weights.items()
        ],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "net.onnx"
    )
    same(load(str(tmp_path / "net.onnx")), place)
    whole = load(str(tmp_path / "net.onnx"), probabilities=False)
    whole.bind((4,))
    p = whole.scores(X)[:, 1]
    assert float(p.min()) >= 0
    assert float(p.max()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_keras_on_every_backend(backend: str) -> None:
    """Line 2: the backend is chosen when Keras is imported, so in a process of its own."""
    pytest.importorskip("keras")
    script = (
        "from test_last_activation_elsewhere import *\nfor p in PLACES: "
        "same(wrap(keras_model(p)), p)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_protocol_leaves_what_it_leaves_of_logits() -> None:
    """Line 2: the law, with Keras's sigmoid: at most one point."""
    pytest.importorskip("keras")
    y = logits(1).labels(X)
    runs = [
        holdfast.evaluate(wrap(keras_model(end)), (X, y), "linf(0.05)")
        for end in ("linear", "sigmoid")
    ]
    assert runs[0].samples.column("status").equals(runs[1].samples.column("status"))


def test_estimators_are_asked_for_what_does_not_round() -> None:
    """Line 2: a decision function where it decides as predict_proba does; else the
    probabilities."""
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    y = (X[:, 0] > 0.5).long().numpy()
    fitted = LogisticRegression(C=1e9).fit(X.numpy(), y)
    target = wrap(fitted)
    target.bind((4,))
    assert not target.head.probabilities
    np.testing.assert_allclose(
        target.scores(X)[:, 1].numpy(), fitted.decision_function(X.numpy()), rtol=1e-5
    )
    three = LogisticRegression().fit(X.numpy(), np.arange(20) % 3)
    many = wrap(three)
    many.bind((4,))
    np.testing.assert_allclose(
        many.scores(X).numpy(), three.decision_function(X.numpy()), rtol=1e-5
    )
    forest = wrap(RandomForestClassifier(3).fit(X.numpy(), y))
    forest.bind((4,))
    assert forest.head.probabilities


def test_a_softmax_over_groups_of_outputs_stays(tmp_path: Path) -> None:
    """Line 2: of ONNX files, whose outputs are then taken as they are."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("Reshape", ["x", "pairs"], ["z"]),
        make("Softmax", ["z"], ["p"], axis=-1),
        make("Reshape", ["p", "row"], ["y"]),
    ]
    shapes = {"pairs": np.array([-1, 2, 2]), "row": np.array([-1, 4])}
    graph = onnx.helper.make_graph(
        nodes, "net",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 4])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", 4])],
        [onnx.numpy_helper.from_array(shape, name) for name, shape in shapes.items()],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "net.onnx"
    )
    target = load(str(tmp_path / "net.onnx"))
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    target.bind((4,))
    assert not target.head.reads
    assert torch.allclose(target.scores(x), x.view(3, 2, 2).softmax(2).view(3, 4))


def test_a_softmax_over_groups_of_a_graphs_outputs_stays() -> None:
    """Line 2: of TensorFlow functions."""
    tf = pytest.importorskip("tensorflow")
    target = wrap(
        tf.function(lambda x: tf.reshape(tf.nn.softmax(tf.reshape(x, (-1, 2, 2))), (-1, 4))),
        framework="tensorflow", shape=(4,),
    )  # fmt: skip
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert not target.head.reads
    assert torch.allclose(target.scores(x), x.view(3, 2, 2).softmax(2).view(3, 4))
