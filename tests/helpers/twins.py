"""One small network, the demo's, in every framework with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.targets.demo import demo_model


def weights() -> list[np.ndarray]:
    """Two convolutions and two dense layers as channels-last frameworks hold them: HWIO and [in,
    out]."""
    state = [w.detach().numpy() for w in demo_model().parameters()]
    first, b1, second, b2, wide, b3, last, b4 = state
    wide = wide.reshape(-1, 32, 4, 4).transpose(0, 2, 3, 1).reshape(len(wide), -1)
    return [
        first.transpose(2, 3, 1, 0),
        b1,
        second.transpose(2, 3, 1, 0),
        b2,
        wide.T,
        b3,
        last.T,
        b4,
    ]


def keras_model(*, softmax: bool = False) -> Any:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax" if softmax else None),
        ]
    )
    model.set_weights(weights())
    return model


def tensorflow_function() -> Any:
    import tensorflow as tf

    w = [tf.constant(v) for v in weights()]

    def scores(x: Any) -> Any:
        h = tf.nn.relu(tf.nn.conv2d(x, w[0], 1, "SAME") + w[1])
        h = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(h, w[2], 1, "SAME") + w[3]), 2, 2, "VALID")
        h = tf.nn.relu(tf.reshape(h, [-1, 512]) @ w[4] + w[5])
        return h @ w[6] + w[7]

    return scores


def jax_function() -> Any:
    import jax
    import jax.numpy as jnp

    w = weights()

    def conv(x: Any, k: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def scores(x: Any) -> Any:
        x = jnp.transpose(x, (0, 2, 3, 1))
        h = jax.nn.relu(conv(x, w[0]) + w[1])
        h = jax.nn.relu(conv(h, w[2]) + w[3])
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        h = jax.nn.relu(h.reshape(len(h), -1) @ w[4] + w[5])
        return h @ w[6] + w[7]

    return scores


def onnx_file(
    folder: Path, *, rows: int | str = "rows", last: str = "Gemm", sized: bool = False
) -> Path:
    """Sized: it asks the images for their number, and reshapes to that."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = ["w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4"]
    state = [w.detach().numpy() for w in demo_model().parameters()]
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h1"], **same),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Conv", ["h2", "w2", "b2"], ["h3"], **same),
        helper.make_node("Relu", ["h3"], ["h4"]),
        helper.make_node("MaxPool", ["h4"], ["h5"], kernel_shape=[2, 2], strides=[2, 2]),
        *(_sized(helper) if sized else [helper.make_node("Flatten", ["h5"], ["h6"])]),
        helper.make_node("Gemm", ["h6", "w3", "b3"], ["h7"], transB=1),
        helper.make_node("Relu", ["h7"], ["h8"]),
        helper.make_node("Gemm", ["h8", "w4", "b4"], ["z" if last == "Gemm" else "h9"], transB=1),
    ]
    nodes += [] if last == "Gemm" else [helper.make_node(last, ["h9"], ["z"])]
    graph = helper.make_graph(
        nodes,
        "demo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 1, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [rows, 10])],
        [numpy_helper.from_array(w, name) for w, name in zip(state, names, strict=True)]
        + [numpy_helper.from_array(np.array(n), name) for n, name in ((0, "first"), (-1, "rest"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / f"demo-{rows}-{last}-{sized}.onnx"
    onnx.save(model, path)
    return path


def _sized(helper: Any) -> list[Any]:
    """What torch writes down of `h.view(h.size(0), -1)`."""
    return [
        helper.make_node("Shape", ["h5"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"], axis=0),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["ns"]),
        helper.make_node("Unsqueeze", ["rest", "axes"], ["others"]),
        helper.make_node("Concat", ["ns", "others"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["h5", "sizes"], ["h6"]),
    ]


def torch_exported(folder: Path) -> Path:
    path = folder / "demo.pt2"
    rows = {0: torch.export.Dim("rows")}
    torch.export.save(
        torch.export.export(demo_model(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(rows,)), path
    )
    return path
