"""One network in every framework: the same bounds of its margins, and no proof of another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import twins
from helpers.bounds import exact_bounds
from helpers.cases import case, mnist
from torch import Tensor, nn

from holdfast.bounds import margins, trace
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.targets import Target, load, wrap
from holdfast.targets.demo import demo_model
from holdfast.targets.preprocess import Normalize
from holdfast.targets.target import Inputs

ROWS = 2
SLOW = pytest.mark.slow


def lower(target: Target, x: Tensor, y: Tensor, eps: float = 0.02) -> Tensor:
    """Bounds of margins by CROWN in real arithmetic, the true class left out."""
    target.bind(tuple(x.shape[1:]))
    found = margins(target.network(), x, y, f"linf({eps})", target.bounds)
    assert not found.reason
    return exact_bounds(target.network(), x, y, f"linf({eps})", target.bounds)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Some digits, their classes, and the bounds of the torch model."""
    x, y = (torch.as_tensor(part) for part in open_data("digits").rows(0, ROWS))
    return x, y, lower(wrap(demo_model()), x, y)


def onnx(folder: Path) -> Target:
    pytest.importorskip("onnxruntime")
    return load(str(twins.onnx_file(folder)))


def onnx_of_one_row(folder: Path) -> Target:
    pytest.importorskip("onnxruntime")
    return load(str(twins.onnx_file(folder, rows=1)))


def onnx_that_asks_for_sizes(folder: Path) -> Target:
    pytest.importorskip("onnxruntime")
    return load(str(twins.onnx_file(folder, rows=1, sized=True)))


def jax(folder: Path) -> Target:
    pytest.importorskip("jax")
    return wrap(twins.jax_function(), framework="jax")


def keras(folder: Path) -> Target:
    pytest.importorskip("tensorflow")
    return wrap(twins.keras_model())


def keras_softmax(folder: Path) -> Target:
    pytest.importorskip("tensorflow")
    return wrap(twins.keras_model(softmax=True))


def tensorflow(folder: Path) -> Target:
    pytest.importorskip("tensorflow")
    return wrap(twins.tensorflow_function())


FORMS = [
    onnx,
    onnx_of_one_row,
    onnx_that_asks_for_sizes,
    jax,
    keras,
    keras_softmax,
    tensorflow,
]


@pytest.mark.parametrize("make", FORMS)
def test_one_network_has_the_same_bounds_in_each_framework(
    make: Callable[[Path], Target], digits: Any, tmp_path: Path
) -> None:
    x, y, known = digits
    assert torch.allclose(lower(make(tmp_path), x, y), known, rtol=0, atol=1e-5)


def test_a_graph_that_answers_otherwise_proves_nothing(digits: Any, tmp_path: Path) -> None:
    target: Any = onnx(tmp_path)
    target.bind(tuple(digits[0].shape[1:]))
    bias = target.model.single.weights["b4"]
    bias[0] += 1e-3 * float(target.scores(digits[0]).abs().max())
    with pytest.raises(InputError, match="answers otherwise than the model does: margins differ"):
        target.network()


def test_an_onnx_graph_of_images_of_any_size_has_a_gradient(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["z"]),
    ]
    kind, weight = TensorProto.FLOAT, np.random.default_rng(0).normal(size=(2, 1, 3, 3))
    graph = helper.make_graph(
        nodes,
        "any size",
        [helper.make_tensor_value_info("x", kind, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("z", kind, ["n", 2])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "any.onnx")
    target, x = load(str(tmp_path / "any.onnx")), torch.rand(2, 1, 8, 8)
    target.bind((1, 8, 8))
    z, pullback = target.linearize(x)
    assert torch.allclose(z, target.scores(x), atol=1e-5)
    assert pullback(torch.ones_like(z)).shape == x.shape
    target.network()


def random(*shape: int) -> np.ndarray:
    draws = np.random.default_rng(sum(shape))
    return (draws.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def jax_images(x: Any) -> Any:
    """Convolutions and pools of all kinds, channels last."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    order = ("NHWC", "HWIO", "NHWC")
    how = {"padding": [(1, 0), (2, 1)], "rhs_dilation": (1, 2), "feature_group_count": 2}
    pool = {"window_dimensions": (1, 3, 2, 1), "window_strides": (1, 2, 2, 1), "padding": "SAME"}
    h = (x - 0.5) / 0.25
    h = lax.conv_general_dilated(h, random(3, 3, 2, 8), (2, 1), "SAME", dimension_numbers=order)
    h = jax.nn.leaky_relu(h, 0.2)
    h = lax.conv_general_dilated(h, random(3, 2, 4, 8), (1, 1), dimension_numbers=order, **how)
    h = jax.nn.relu6(h * 3)
    most = lax.reduce_window(h, -jnp.inf, lax.max, **pool)
    mean = lax.reduce_window(h, 0.0, lax.add, **pool)
    mean /= lax.reduce_window(jnp.ones_like(h), 0.0, lax.add, **pool)
    h = jnp.concatenate([most.max((1, 2)), mean.mean((1, 2))], 1)[:, ::2]
    return jnp.maximum(jnp.einsum("bi,ij->bj", h, random(8, 5)), random(5)) @ random(5, 3)


def jax_sequence(x: Any) -> Any:
    """Products over other axes than the last, padding, other activations."""
    import jax
    from jax import numpy as jnp

    h = jnp.einsum("bci,ij->bcj", x.reshape(len(x), 2, -1), random(42, 6))
    h = jnp.where(h > 0, h, 0.3 * h)
    h = jnp.pad(h, ((0, 0), (0, 1), (1, 2)), constant_values=0.5)
    h = jax.nn.sigmoid(h) + jnp.tanh(h) - jnp.minimum(h, 0.1)
    return (h.swapaxes(1, 2) @ random(3, 4)).sum(1)[:, ::-1]


def hold(target: Target, shape: tuple[int, ...]) -> None:
    """Bounds of what a network gives that is no twin of torch's stay below every margin seen."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    target.bind(shape)
    y = target.labels(x)
    bounds = lower(target, x, y)
    for i in range(20):
        d = torch.rand(x.shape, generator=torch.Generator().manual_seed(i)) - 0.5
        z = target.scores((x + 0.02 * d.sign()).clamp(0, 1))
        assert (z.gather(1, y[:, None]) - z >= bounds - 1e-5).all()


@pytest.mark.parametrize("function", [jax_images, jax_sequence])
def test_functions_of_jax(function: Any) -> None:
    pytest.importorskip("jax")
    hold(wrap(function, framework="jax", layout="nhwc"), (7, 6, 2))


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("operator abs of JAX", abs),
        ("operator convert_element_type of JAX to bfloat16", lambda x: x.astype("bfloat16") * 2),
        ("operator convert_element_type of JAX to int32", lambda x: x.astype(int) + x),
        ("a comparison of JAX", lambda x: x * (x > 0.5)),
        ("operator div of values that all depend", lambda x: x / x.sum(1, keepdims=True)),
    ],
)
def test_what_a_function_of_jax_cannot_be_is_said(said: str, change: Any) -> None:
    pytest.importorskip("jax")
    w = random(8, 3)
    target = wrap(lambda x: change(x).astype("float32") @ w, framework="jax")
    target.bind((8,))
    with pytest.raises(InputError, match=f"not supported: {said}"):
        trace(target.network(), torch.zeros(1, 8))


@pytest.mark.cases
def test_a_function_of_jax_that_others_trained(cases: Path) -> None:
    """The same weights as a module of torch."""
    jnp = pytest.importorskip("jax.numpy")
    module = case(cases, "npz_rsl18a_mnist")
    w1, b1, w2, b2 = (torch.tensor(part, dtype=torch.float32) for part in module.params())
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))
    with torch.no_grad():
        for mine, known in zip(net.parameters(), (w1.T, b1, w2.T, b2), strict=True):
            mine.copy_(known)
    weights = [jnp.asarray(part) for part in module.params()]
    target = wrap(lambda x: module.logits(x, jnp, weights), framework="jax", layout="nchw")
    x, y = mnist(cases)
    x, y = torch.as_tensor(x[:ROWS]), torch.as_tensor(y[:ROWS])
    found = [lower(one, x, y, 0.1) for one in (target, wrap(net))]
    assert torch.allclose(*found, rtol=0, atol=1e-5)


@pytest.mark.cases
@pytest.mark.parametrize(("rows", "proved"), [(3, 3), pytest.param(100, 94, marks=SLOW)])
def test_an_onnx_file_that_others_proved(cases: Path, rows: int, proved: int) -> None:
    """All 100 by others' mixed integer programs, 94 by CROWN."""
    pytest.importorskip("onnxruntime")
    normalize = Normalize((0.1307,), (0.3081,))
    target = load(f"{cases}/onnx_colt_mnist/mnist_0.1.onnx", preprocess=normalize)
    x, y = (torch.as_tensor(part[:rows]) for part in mnist(cases))
    target.bind(tuple(x.shape[1:]))
    found = margins(target.network(), x, y, "linf(0.1)", target.bounds)
    assert int(found.certified.sum()) >= proved


def keras_layers() -> Any:
    """The layers that convolutional networks are made of, with weights and statistics at random."""
    import keras

    layers, x = keras.layers, keras.Input((9, 8, 3))
    h = layers.Rescaling(2.0, -1.0)(x)
    h = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(h)
    h = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(h)
    h = layers.LeakyReLU(negative_slope=0.2)(layers.BatchNormalization()(h))
    h = layers.ZeroPadding2D(((1, 0), (0, 2)))(h)
    a = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(h))
    h = layers.Add()([a, layers.SeparableConv2D(12, 3, padding="same")(h)])
    h = layers.Conv2D(8, (1, 3), activation="tanh")(h)
    pools = layers.MaxPooling2D(3, 2, padding="same"), layers.AveragePooling2D(3, 2, padding="same")
    h = layers.Dropout(0.5)(layers.Concatenate()([pool(h) for pool in pools]))
    ends = layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D(), layers.Flatten()
    h = layers.Dense(8, activation="sigmoid")(layers.Concatenate()([end(h) for end in ends]))
    h = layers.BatchNormalization()(h)
    model = keras.Model(x, layers.Dense(3, activation="softmax")(h))
    made = [random(*w.shape) if w.ndim > 1 else abs(random(*w.shape)) for w in model.get_weights()]
    model.set_weights(made)
    return model


def test_layers_of_keras() -> None:
    pytest.importorskip("tensorflow")
    hold(wrap(keras_layers()), (9, 8, 3))


@pytest.mark.parametrize("kind", ["elu", "gelu", "lstm", "two inputs"])
def test_what_a_keras_model_cannot_be_is_said(kind: str) -> None:
    pytest.importorskip("tensorflow")
    import keras

    layers, x = keras.layers, keras.Input((6, 2))
    if kind == "lstm":
        h = layers.LSTM(3)(x)
    else:
        h = layers.Dense(3, kind if kind != "two inputs" else "relu")(layers.Flatten()(x))
    target = wrap(keras.Model(x, layers.Dense(2)(h)))
    target.bind((6, 2))
    if kind == "two inputs":
        target.inputs = Inputs(context={"other": (1,)})
    with pytest.raises(InputError, match=r"not supported: .*\.$") as error:
        target.network()
    assert "\n" not in str(error.value)
