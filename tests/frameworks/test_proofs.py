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
from helpers.exact import best_margin
from torch import Tensor, nn

import holdfast
from holdfast.bounds import margins, trace
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.targets import Target, load, wrap
from holdfast.targets.demo import demo_model
from holdfast.targets.preprocess import Normalize
from holdfast.targets.target import Bounds, Inputs
from holdfast.threats.threat import Threat

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


def jnp_sin(x: Any) -> Any:
    from jax import numpy as jnp

    return jnp.sin(x)


# Activations of each framework, by name; None: torch.nn.functional has it under that name.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    **dict.fromkeys(("relu6", "elu", "selu", "celu", "softplus", "gelu", "silu", "mish")),
    **dict.fromkeys(("hardswish", "hardsigmoid", "leaky_relu")),
    "abs": torch.abs,
    "square": torch.square,
    "clip": lambda z: z.clamp(-0.3, 0.5),
    "maximum": lambda z: torch.maximum(z, -2 * z),
}


class Layers(nn.Module):
    """An activation between two layers, their weights at random."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = (nn.Parameter(torch.tensor(random(*s))) for s in ((6, 5), (5, 3)))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation((x - 0.375) @ self.first * 4) @ self.last


def in_jax(name: str) -> Target:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    own = {
        "abs": jnp.abs,
        "square": jnp.square,
        "clip": lambda z: jnp.clip(z, -0.3, 0.5),
        "maximum": lambda z: jnp.maximum(z, -2 * z),
        "gelu": lambda z: jax.nn.gelu(z, approximate=False),
        "hardswish": jax.nn.hard_swish,
        "hardsigmoid": jax.nn.hard_sigmoid,
    }
    act = own.get(name) or getattr(jax.nn, name)
    return wrap(lambda x: act((x - 0.375) @ random(6, 5) * 4) @ random(5, 3), framework="jax")


def in_tensorflow(name: str) -> Target:
    tf = pytest.importorskip("tensorflow")
    if name in ("celu", "mish", "hardswish", "hardsigmoid", "clip"):
        pytest.skip("TensorFlow has no operation of its own for it, or has limits in other order")

    def maximum(z: Any) -> Any:
        return tf.maximum(z, -2 * z)

    def leaky(z: Any) -> Any:
        return tf.nn.leaky_relu(z, 0.01)

    own = {"abs": tf.abs, "square": tf.square, "maximum": maximum}
    act = (own | {"leaky_relu": leaky}).get(name) or getattr(tf.nn, name)

    def scores(x: Any) -> Any:
        return act((x - 0.375) @ random(6, 5) * 4) @ random(5, 3)

    return wrap(scores, framework="tensorflow")


def in_keras(name: str) -> Target:
    pytest.importorskip("tensorflow")
    import keras

    named = {"hardswish": "hard_silu", "hardsigmoid": "hard_sigmoid"}.get(name, name)
    own = {"square": keras.ops.square, "abs": keras.ops.abs}
    act = own.get(name) or getattr(keras.activations, named, None)
    if act is None or name in ("celu", "mish", "hardswish", "leaky_relu"):
        pytest.skip("Keras has it as a formula, or with other numbers")
    x = keras.Input((6,))
    h = keras.layers.Dense(5, act)(keras.layers.Rescaling(1.0, -0.375)(x))
    model = keras.Model(x, keras.layers.Dense(3, use_bias=False)(h))
    model.set_weights([random(6, 5) * 4, np.zeros(5, np.float32), random(5, 3)])
    return wrap(model)


def in_onnx(name: str) -> Target:
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    kind, node = TensorProto.FLOAT, helper.make_node
    given = {
        "clip": [node("Clip", ["h", "low", "high"], ["a"])],
        "relu6": [node("Clip", ["h", "zero", "six"], ["a"])],
        "square": [node("Mul", ["h", "h"], ["a"])],
        "maximum": [node("Mul", ["h", "minus"], ["n"]), node("Max", ["h", "n"], ["a"])],
        "silu": [node("Sigmoid", ["h"], ["s"]), node("Mul", ["h", "s"], ["a"])],
        "gelu": [
            node("Div", ["h", "root"], ["t"]),
            node("Erf", ["t"], ["e"]),
            node("Add", ["e", "one"], ["o"]),
            node("Mul", ["h", "o"], ["m"]),
            node("Mul", ["m", "half"], ["a"]),
        ],
        "leaky_relu": [node("LeakyRelu", ["h"], ["a"], alpha=0.01)],
        "hardsigmoid": [node("HardSigmoid", ["h"], ["a"], alpha=1 / 6)],
    }
    simple = {"elu": "Elu", "selu": "Selu", "softplus": "Softplus", "abs": "Abs"}
    if name not in {*given, *simple}:
        pytest.skip("ONNX has no such operator")
    between = given.get(name) or [node(simple[name], ["h"], ["a"])]
    numbers = {"low": -0.3, "high": 0.5, "zero": 0, "six": 6, "minus": -2, "one": 1, "half": 0.5}
    numbers |= {"root": 2**0.5, "middle": 0.375, "four": 4}
    nodes = [node("Sub", ["x", "middle"], ["c"]), node("MatMul", ["c", "first"], ["f"])]
    nodes += [node("Mul", ["f", "four"], ["h"]), *between, node("MatMul", ["a", "last"], ["z"])]
    weights = [(random(6, 5), "first"), (random(5, 3), "last")]
    weights += [(np.array(number, np.float32), name) for name, number in numbers.items()]
    graph = helper.make_graph(
        nodes,
        "activation",
        [helper.make_tensor_value_info("x", kind, ["n", 6])],
        [helper.make_tensor_value_info("z", kind, ["n", 3])],
        [numpy_helper.from_array(w, name) for w, name in weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return wrap(made)


@pytest.mark.parametrize("make", [in_jax, in_tensorflow, in_keras, in_onnx])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_has_the_bounds_of_its_form_in_torch(
    name: str, make: Callable[[str], Target]
) -> None:
    target, x, y = make(name), torch.full((2, 6), 0.5), torch.tensor([0, 2])
    known = lower(wrap(Layers(ACTIVATIONS[name] or getattr(nn.functional, name))), x, y, 0.1)
    found = lower(target, x, y, 0.1)
    assert torch.allclose(found, known, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("operator sin of JAX", jnp_sin),
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


@pytest.mark.parametrize("kind", ["exponential", "softsign", "lstm", "two inputs"])
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


def table(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of six columns in [0, 1], and classes that they are told apart by."""
    draws = np.random.default_rng(classes)
    x = draws.random((90, 6)).astype(np.float32)
    return x, ((x - 0.5) @ draws.normal(size=(6, classes))).argmax(1)


CONVERGES = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


def estimators() -> dict[str, Any]:
    from sklearn import linear_model, neural_network, pipeline, preprocessing, svm

    wide = preprocessing.StandardScaler(), preprocessing.RobustScaler(with_centering=False)
    narrow = preprocessing.MinMaxScaler((-1, 2)), preprocessing.MaxAbsScaler()
    return {
        "logistic regression": linear_model.LogisticRegression(),
        "svm": svm.LinearSVC(),
        "sgd behind scalers": pipeline.make_pipeline(
            *wide, linear_model.SGDClassifier(random_state=0)
        ),
        "ridge": linear_model.RidgeClassifier(),
        **{
            f"mlp of {name}": pipeline.make_pipeline(
                *narrow,
                "passthrough",
                neural_network.MLPClassifier((5, 4), name, max_iter=20, random_state=0),
            )
            for name in ("relu", "tanh", "logistic", "identity")
        },
    }


def as_torch(model: Any, features: int) -> nn.Module:
    """The same network as layers of torch: scalers as the affine map that they are, read off two
    answers of theirs."""
    steps = [step for _, step in getattr(model, "steps", [("", model)])]
    layers: list[nn.Module] = []
    for step in steps[:-1]:
        if step != "passthrough":
            zero = step.transform(np.zeros((1, features)))[0]
            scale = step.transform(np.ones((1, features)))[0] - zero
            layers.append(linear(np.diag(scale), zero))
    last = steps[-1]
    if not hasattr(last, "coefs_"):
        return nn.Sequential(*layers, linear(np.atleast_2d(last.coef_), last.intercept_))
    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid, "identity": nn.Identity}
    for w, b in zip(last.coefs_, last.intercepts_, strict=True):
        layers += [linear(w.T, b), kinds[last.activation]()]
    return nn.Sequential(*layers[:-1])


def linear(w: np.ndarray, b: Any) -> nn.Module:
    layer = nn.Linear(w.shape[1], w.shape[0]).double()
    with torch.no_grad():
        layer.weight[:], layer.bias[:] = torch.tensor(w), torch.tensor(np.broadcast_to(b, len(w)))
    return layer


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", estimators())
@CONVERGES
def test_an_estimator_has_the_bounds_of_its_form_in_torch(name: str, classes: int) -> None:
    rows, labels = table(classes)
    model = estimators()[name].fit(rows, labels)
    x, y = torch.from_numpy(rows[:4]), torch.from_numpy(labels[:4])
    found = lower(wrap(as_torch(model, 6).float()), x, y, 0.05)
    assert torch.allclose(lower(wrap(model), x, y, 0.05), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["logistic regression", "svm", "sgd behind scalers"])
def test_the_bound_of_a_linear_model_is_its_exact_margin(name: str, norm: str) -> None:
    rows, labels = table(3)
    model, eps = estimators()[name].fit(rows, labels), {"linf": 0.1, "l2": 0.3, "l1": 0.5}[norm]
    last, target = getattr(model, "steps", [("", model)])[-1][1], wrap(model)
    target.bind((6,))
    w, b = last.coef_.astype(np.float64), last.intercept_.astype(np.float64)
    if last is not model:  # what it makes of the columns
        scaled = model[:-1].transform(np.stack([np.zeros(6), np.ones(6)]))
        w, b = w * (scaled[1] - scaled[0]), b + w @ scaled[0]
    x, y = torch.from_numpy(rows[:6]), torch.from_numpy(labels[:6])
    threat = f"{norm}({eps})"
    found = exact_bounds(target.network(), x, y, threat, Bounds())
    eps = float(Threat.parse(threat).legal_eps((6,), Bounds().ulp))  # as it is judged
    found[torch.arange(6), y] = torch.inf
    for row, label, margin in zip(rows[:6], labels[:6], found.amin(1).tolist(), strict=True):
        exact = best_margin(norm, w, b, row.astype(np.float64), label, eps)
        assert margin == pytest.approx(exact, rel=1e-9, abs=1e-9)
        assert margin <= exact + 1e-9


@CONVERGES
def test_a_pipeline_is_certified_and_what_is_no_network_is_refused() -> None:
    from sklearn import pipeline, preprocessing, svm

    x, y = table(2)
    model = estimators()["mlp of relu"].fit(x, y)
    run = holdfast.certify(model, (x, y), "linf(0.001)", samples=20)
    assert run.certified_accuracy is not None
    assert 0 < float(run.certified_accuracy) <= float(run.clean_accuracy)
    for model, said in (
        (svm.SVC(), "proofs of a SVC; expected trees alone, or an MLPClassifier or a linear"),
        (
            pipeline.make_pipeline(preprocessing.Normalizer(), svm.LinearSVC()),
            "proofs of a pipeline with a Normalizer; expected scalers alone",
        ),
    ):
        with pytest.raises(InputError, match=f"not supported: {said}"):
            holdfast.certify(model.fit(x, y), (x, y), "linf(0.001)")
