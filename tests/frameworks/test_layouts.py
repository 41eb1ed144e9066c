"""Images in any order of their axes, for a model of any framework: the same scores as in the order
that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import holdfast
from holdfast.evaluation.prepare import open_for
from holdfast.targets import Target, load, wrap

RNG = np.random.default_rng(0)
X = RNG.random((12, 3, 5, 6), np.float32)
W = RNG.standard_normal((3, 5, 6, 2)).astype(np.float32)
Z = np.einsum("nchw,chwk->nk", X, W)
Y = Z.argmax(1)
LAST = W.transpose(1, 2, 0, 3)  # as a model of images whose channels stand last has it
LINF = "linf(0.05)"


class Net(torch.nn.Module):
    """A convolution as wide as the image: it takes no other order of the axes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Conv2d(3, 2, (5, 6), bias=False)
        self.wide.weight.data = torch.from_numpy(W.transpose(3, 0, 1, 2).copy())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(x).flatten(1)


def keras_net(**given: Any) -> Any:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    first = [keras.layers.Input((None, None, 3) if given.get("free") else (5, 6, 3))]
    model = keras.Sequential(
        [*first, keras.layers.Conv2D(2, (5, 6), use_bias=False), keras.layers.GlobalMaxPooling2D()]
    )
    model.set_weights([LAST])
    return model


def tf_function() -> Any:
    tf = pytest.importorskip("tensorflow")
    return lambda x: tf.einsum("nhwc,hwck->nk", x, LAST)


def saved(folder: Path) -> Target:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.ask = tf.function(
        tf_function(), input_signature=[tf.TensorSpec([None, 5, 6, 3], tf.float32)]
    )
    tf.saved_model.save(module, str(folder / "saved"), signatures={"serving_default": module.ask})
    return load(str(folder / "saved"))


def tflite(folder: Path) -> Target:
    tf = pytest.importorskip("tensorflow")
    made = tf.lite.TFLiteConverter.from_keras_model(keras_net()).convert()
    (folder / "net.tflite").write_bytes(made)
    return load(str(folder / "net.tflite"))


def jax_function(first: bool) -> Any:
    jnp = pytest.importorskip("jax.numpy")
    return lambda x: jnp.einsum(
        "nchw,chwk->nk" if first else "nhwc,hwck->nk", x, W if first else LAST
    )


def onnx_net(
    folder: Path, shape: tuple[Any, ...], weights: np.ndarray, layout: str | None = None
) -> Target:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    nodes = [
        helper.make_node(
            "Transpose", ["x"], ["t"], perm=[0, 1, 2, 3] if shape[0] == 3 else [0, 3, 1, 2]
        ),
        helper.make_node("Conv", ["t", "w"], ["c"], kernel_shape=[5, 6]),
        helper.make_node("Flatten", ["c"], ["z"]),
    ]
    kinds = [
        helper.make_tensor_value_info("x", 1, ["n", *shape]),
        helper.make_tensor_value_info("z", 1, ["n", 2]),
    ]
    weight = onnx.numpy_helper.from_array(np.ascontiguousarray(W.transpose(3, 0, 1, 2)), "w")
    graph = helper.make_graph(nodes, "net", [kinds[0]], [kinds[1]], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        folder / "net.onnx",
    )
    return load(str(folder / "net.onnx"), layout=layout)


def by_name(name: str, folder: Path, layout: str | None) -> Target:
    given = {} if layout is None else {"layout": layout}
    makers = {
        "torch": lambda: wrap(Net(), **given),
        "torch function": lambda: wrap(
            lambda x: torch.einsum("nchw,chwk->nk", x, torch.from_numpy(W)), **given
        ),
        "keras": lambda: wrap(keras_net(), **given),
        "keras of any size": lambda: wrap(keras_net(free=True), **given),
        "tensorflow": lambda: wrap(tf_function(), framework="tensorflow", **given),
        "jax, channels first": lambda: wrap(jax_function(True), framework="jax", **given),
        "jax, channels last": lambda: wrap(jax_function(False), framework="jax", **given),
        "numpy": lambda: wrap(
            lambda x: np.einsum("nhwc,hwck->nk", x, LAST), framework="numpy", **given
        ),
        "undeclared": lambda: wrap(jax_function(False), **given),
        "onnx": lambda: onnx_net(folder, (3, 5, 6), W, layout),
        "onnx, channels last": lambda: onnx_net(folder, (5, 6, 3), LAST, layout),
    }
    return makers[name]()


NAMES = [
    "torch",
    "torch function",
    "keras",
    "keras of any size",
    "tensorflow",
    "jax, channels first",
    "jax, channels last",
    "numpy",
    "undeclared",
    "onnx",
    "onnx, channels last",
]


FUNCTIONS = NAMES[1:2] + NAMES[4:9]


SAID = [("keras", "nhwc"), ("jax, channels last", "nhwc"), ("torch", "nhwc"), ("onnx", "nchw")]
ALL = [(name, layout) for name in NAMES for layout in (None, "nchw", "nhwc")]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(*row, marks=() if row[1] is None or row in SAID else pytest.mark.slow)
        for row in ALL
    ],
)
def test_any_order_of_the_axes(name: str, layout: str | None, tmp_path: Path) -> None:
    """Line 13: images in either order, said rightly, wrongly or not at all, give the scores of the
    order it takes."""
    for x in (X, X.transpose(0, 2, 3, 1)):
        target = by_name(name, tmp_path, layout)
        source = open_for(target, (x, Y))
        target.bind(source.shape)
        shown = torch.from_numpy(source.rows(0, 12)[0])
        np.testing.assert_allclose(
            target.batcher.in_parts(target.scores, shown).numpy(), Z, rtol=1e-4, atol=1e-4
        )
        known = name not in FUNCTIONS  # a function takes what it is given, as the user said
        if known or layout is None:
            assert target.inputs.layout == ("nchw" if x is X else "nhwc")
        again = by_name(name, tmp_path, target.inputs.layout)  # as verify opens it
        again.bind(source.shape)
        assert again.describe() == target.describe()
        np.testing.assert_allclose(
            again.batcher.in_parts(again.scores, shown).numpy(), Z, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("make", [saved, tflite])
def test_files_of_tensorflow_take_either_order(make: Any, tmp_path: Path) -> None:
    """Line 13: a SavedModel and a TFLite file are given images in either order."""
    for x in (X, X.transpose(0, 2, 3, 1)):
        run = holdfast.evaluate(make(tmp_path), (x, Y), LINF, attacks=["square(steps=2)"])
        assert run.clean_accuracy.value == 1
