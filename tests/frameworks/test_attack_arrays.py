"""holdfast.attack gives back arrays of the framework that came in, from models of that framework
and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import twins

import holdfast

X = np.random.default_rng(0).random((12, 8, 8, 1), dtype=np.float32)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_fgsm_on_a_saved_keras_network_with_softmax(suffix: str, tmp_path: Path) -> None:
    """Must show: a Keras CNN with softmax, saved and loaded: FGSM at 0.3 from Python, with
    pictures."""
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    model = twins.keras_model(softmax=True)
    y = np.array(model(X)).argmax(1)
    model.save(tmp_path / f"net.{suffix}")
    loaded = keras.models.load_model(tmp_path / f"net.{suffix}")
    x = tf.constant(X)
    made = holdfast.attack(loaded, x, tf.constant(y), "linf(0.3)", "fgsm")
    assert tf.is_tensor(made.x_adv)
    assert made.x_adv.shape == x.shape
    found = np.array(made.x_adv)
    assert np.abs(found - X).max() <= 0.3 + 1e-6
    assert np.array_equal(np.array(made.success), np.array(model(found)).argmax(1) != y)
    from_file = holdfast.attack(
        holdfast.load(str(tmp_path / f"net.{suffix}")), X, y, "linf(0.3)", "fgsm"
    )
    assert np.array_equal(from_file.success, np.array(made.success))
    assert len(made.plot(n=2).axes) == 6


def test_jax_arrays_come_back() -> None:
    """Must show: the same of a JAX function."""
    jnp = pytest.importorskip("jax.numpy")
    weights = jnp.asarray(torch.eye(4)[:, :3].numpy())
    x = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (6, 4)), jnp.float32)
    made = holdfast.attack(
        holdfast.wrap(lambda v: v @ weights, framework="jax"),
        x,
        x[:, :3].argmax(1),
        "linf(0.3)",
        "fgsm",
    )
    assert type(made.x_adv) is type(x)
    assert bool(((made.x_adv @ weights).argmax(1) != x[:, :3].argmax(1))[made.success].all())
