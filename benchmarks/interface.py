"""What the model interface costs: a gradient step through a target against the framework's own
compiled one, in one run.

A step is scores, cross-entropy and its gradient on the input. `native` knows the loss and is
compiled as a whole by the framework; `target` is what a `Problem` asks, with the loss in torch. PGD
steps of ART and Foolbox on the same TensorFlow model are measured where these are installed (early
exit plays no part: eps is 0 there and here).

    python benchmarks/interface.py [--batch 128] [--steps 20] [--repeats 7] [--threads 1]
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from common import interleaved, options, save, table
from torch import Tensor

from holdfast.attacks import PGD, run
from holdfast.targets import Target, wrap
from holdfast.threats.threat import Threat

SHAPES = ((28, 28, 1), (32, 32, 3))


def keras_model(shape: tuple[int, ...]) -> Any:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input(shape),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )


def jax_model(shape: tuple[int, ...]) -> Callable[[Any], Any]:
    w = [jnp.asarray(v) for v in keras_model(shape).get_weights()]

    def conv(x: Any, k: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def scores(x: Any) -> Any:
        h = pool(jax.nn.relu(conv(jax.nn.relu(conv(x, w[0]) + w[1]), w[2]) + w[3]))
        h = pool(jax.nn.relu(conv(h, w[4]) + w[5])).reshape(len(x), -1)
        return jax.nn.relu(h @ w[6] + w[7]) @ w[8] + w[9]

    return scores


def native_tensorflow(model: Any, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = model(x, training=False)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))
        return z, tape.gradient(loss, x)

    at, of = tf.constant(x), tf.constant(y)
    return lambda: step(at, of)[1].numpy()  # noqa: PLW0108  # the gradient must be there when it returns


def native_jax(model: Callable[[Any], Any], x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    def loss(x: Any) -> Any:
        z = model(x)
        return -jax.nn.log_softmax(z)[jnp.arange(len(x)), y].sum(), z

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda: np.asarray(step(x)[1])


def ours(target: Target, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    target.bind(x.shape[1:])
    at, of = torch.from_numpy(x), torch.from_numpy(y)

    def slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            return torch.autograd.grad(
                torch.nn.functional.cross_entropy(leaf, of, reduction="sum"), leaf
            )[0]

    return lambda: target.pull(at, slope)[1]


def pgd_steps(
    model: Any, x: np.ndarray, y: np.ndarray, steps: int
) -> dict[str, Callable[[], object]]:
    """PGD with nothing to gain, so that no one stops early."""
    target, threat = wrap(model), Threat.linf(1e-6)
    target.bind(x.shape[1:])
    at, of = torch.from_numpy(x), torch.from_numpy(y)
    clean = target.scores(at)
    of = clean.argmax(1)
    tasks: dict[str, Callable[[], object]] = {
        "holdfast": lambda: run(PGD(steps=steps), target, at, of, threat, clean=clean)
    }
    if importlib.util.find_spec("foolbox"):
        import foolbox

        theirs = foolbox.TensorFlowModel(model, bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=1e-7)
        tasks["Foolbox"] = lambda: attack(
            theirs, tf.constant(x), tf.constant(of.numpy()), epsilons=1e-6
        )
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import TensorFlowV2Classifier

        classifier = TensorFlowV2Classifier(
            model,
            10,
            x.shape[1:],
            loss_object=tf.keras.losses.SparseCategoricalCrossentropy(True),
            clip_values=(0, 1),
        )
        pgd = ProjectedGradientDescent(
            classifier, eps=1e-6, eps_step=1e-7, max_iter=steps, batch_size=len(x), verbose=False
        )
        tasks["ART"] = lambda: pgd.generate(x, of.numpy())
    return tasks


def main() -> None:
    chosen = options(__doc__, repeats=7, batch=128, steps=20)
    rows: list[list[object]] = []
    attacks: list[list[object]] = []
    for shape in SHAPES:
        draw = np.random.default_rng(0)
        x = draw.random((chosen.batch, *shape), np.float32)
        y = draw.integers(0, 10, chosen.batch)
        net, function = keras_model(shape), jax_model(shape)
        size = "x".join(map(str, shape))
        for name, native, wrapped in (
            ("TensorFlow", native_tensorflow(net, x, y), ours(wrap(net), x, y)),
            (
                "JAX",
                native_jax(function, x, y),
                ours(wrap(function, framework="jax", layout="nchw"), x, y),
            ),
        ):
            tasks = {"native": native, "wrapped": wrapped}
            for task in tasks.values():
                task()
            spent = interleaved(
                {k: lambda f=f: [f() for _ in range(5)] for k, f in tasks.items()}, chosen.repeats
            )
            base, wrapped_ = spent["native"].cpu, spent["wrapped"].cpu
            rows.append([name, size, 1000 * base / 5, 1000 * wrapped_ / 5, wrapped_ / base])
        tasks = pgd_steps(net, x, y, chosen.steps)
        for task in tasks.values():
            task()
        spent = interleaved(tasks, chosen.repeats)
        for name, took in spent.items():
            attacks.append(
                [name, size, 1000 * took.cpu / chosen.steps, took.cpu / spent["holdfast"].cpu]
            )
    save(
        "wrapped",
        "What the model interface costs",
        [
            (
                f"A gradient step on {chosen.batch} images, CPU time, medians of {chosen.repeats} "
                "interleaved rounds."
            ),
            table(["framework", "images", "native, ms", "through a target, ms", "ratio"], rows),
            f"PGD, {chosen.steps} steps, on the same Keras model on TensorFlow: CPU time of a step "
            "with all that a tool does around it.",
            table(["tool", "images", "ms a step", "against holdfast"], attacks),
        ],
        also=("tensorflow-cpu", "jax", "keras"),
    )


if __name__ == "__main__":
    main()
