"""PGD on models of Keras and JAX next to the loop that their users compile themselves.

The loop by hand knows the model, the loss and the threat, and is compiled: whole by `tf.function`
(with XLA it is no faster here), or step by step by `jax.jit` (whole, in a `fori_loop`, it takes
twice the time on a CPU). Each framework runs in a process of its own, on one core; what compiling
costs is left out, for everyone.

    python benchmarks/compiled.py [--images 200] [--steps 40] [--repeats 5]
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import CASES, cifar10, interleaved, loader, mnist, need, options, save, table

FRAMEWORKS = ("tensorflow", "jax")
EPS = {"keras_aa_mnist": 0.3, "keras_resnet8_cifar": 2 / 255}
SHARE = 0.1  # of eps, a step


def model_of(name: str) -> Any:
    """A shared model in Keras, that gives logits."""
    keras: Any = importlib.import_module("keras")
    if name == "keras_resnet8_cifar":
        model = keras.models.load_model(need(CASES / name) / "pretrainedResnet.h5", compile=False)
        model.layers[-1].activation = keras.activations.linear
        return keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(255), model])
    return loader(name).load()


def by_tensorflow(model: Any, x: Any, y: Any, eps: float, steps: int) -> Callable[[], Any]:
    tf: Any = importlib.import_module("tensorflow")
    x, y = tf.constant(x), tf.constant(y)

    def loop(x: Any, y: Any) -> Any:
        adv = x
        for _ in tf.range(steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(adv)
                z = model(adv, training=False)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
            after = adv + SHARE * eps * tf.sign(tape.gradient(loss, adv))
            adv = tf.clip_by_value(tf.clip_by_value(after, x - eps, x + eps), 0.0, 1.0)
        return adv

    compiled = tf.function(loop)
    return lambda: compiled(x, y).numpy()


def by_jax(model: Any, x: Any, y: Any, eps: float, steps: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    trained = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    def loss(adv: Any, y: Any) -> Any:
        z = model.stateless_call(trained, fixed, adv, training=False)[0]
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1).sum()

    def step(adv: Any, x: Any, y: Any) -> Any:
        after = adv + SHARE * eps * jnp.sign(jax.grad(loss)(adv, y))
        return jnp.clip(jnp.clip(after, x - eps, x + eps), 0, 1)

    compiled = jax.jit(step)

    def loop() -> Any:
        adv = x
        for _ in range(steps):
            adv = compiled(adv, x, y)
        return adv.block_until_ready()

    return loop


def child(framework: str, name: str, images: int, steps: int, repeats: int) -> None:
    """Time one framework on one model, and print the row as JSON."""
    import torch

    import holdfast
    from holdfast.attacks import CATALOGUE
    from holdfast.attacks.attack import run

    torch.set_num_threads(1)
    model, eps = model_of(name), EPS[name]
    x, y = (cifar10 if "cifar" in name else mnist)(images)
    last = x.permute(0, 2, 3, 1).contiguous()
    by_hand = by_tensorflow if framework == "tensorflow" else by_jax
    target = holdfast.wrap(model)
    attack = CATALOGUE["pgd"](steps=steps, step_size=SHARE, start_at="zero")
    threat = holdfast.Threat.parse(f"linf({eps})")
    tasks = {
        "ours": lambda: run(attack, target, last, y, threat, stop=False),
        "by hand": by_hand(model, last.numpy(), y.numpy(), eps, steps),
    }
    result = tasks["ours"]()
    passes = float((result.forwards + result.backwards).float().mean())
    tasks["by hand"]()  # compiled from here on
    spent = interleaved(tasks, repeats, of=min)
    ours = 1e6 * spent["ours"].cpu / passes / images
    hand = 1e6 * spent["by hand"].cpu / (2 * steps) / images
    print(json.dumps([name, framework, passes, ours, hand, f"{ours / hand:.2f}"]))


def main() -> None:
    chosen = options(__doc__, repeats=5, images=200, steps=40)
    rows = []
    for name in EPS:
        for framework in FRAMEWORKS:
            asked = (framework, name, chosen.images, chosen.steps, chosen.repeats)
            code = f"import compiled; compiled.child{asked}"
            done = subprocess.run(
                ["taskset", "-c", "0", sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"KERAS_BACKEND": framework, "TF_CPP_MIN_LOG_LEVEL": "3"},
                cwd=Path(__file__).parent,
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(*rows[-1], flush=True)
    head = "model, framework, passes, us a pass, us a pass by hand, ratio"
    parts = [
        f"PGD of {chosen.steps} steps on {chosen.images} images in Linf, no row let go before the "
        f"end; CPU time a pass and image, the least of {chosen.repeats} interleaved rounds, one "
        "core.",
        table(head.split(", "), rows),
    ]
    save(
        chosen.save,
        "Models of Keras and JAX next to compiled loops",
        parts,
        also=("tensorflow-cpu", "jax", "keras"),
    )


if __name__ == "__main__":
    main()
