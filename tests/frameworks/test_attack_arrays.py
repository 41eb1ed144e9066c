"""holdfast.attack gives back arrays of the framework that came in, from models of that framework
and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import twins

import holdfast
from holdfast.data.arrays import like

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


def linear() -> torch.nn.Module:
    """Answers with the largest of the first three features."""
    layer = torch.nn.Linear(4, 3, bias=False)
    layer.weight.data = torch.eye(3, 4)
    return layer


def test_arrays_of_every_framework_give_the_same_result() -> None:
    """Must show: arrays in, arrays of the same framework out, each the same bits."""
    tf, jnp = pytest.importorskip("tensorflow"), pytest.importorskip("jax.numpy")
    x = np.random.default_rng(1).random((12, 4), dtype=np.float32)
    y = x[:, :3].argmax(1)
    first = holdfast.attack(linear(), x, y, "linf(0.1)", "pgd(steps=5)", seed=2)
    assert 0 < first.success.sum() < len(x)
    for kind in (torch.from_numpy, tf.constant, jnp.asarray):
        given = kind(x)
        made = holdfast.attack(linear(), given, kind(y), "linf(0.1)", "pgd(steps=5)", seed=2)
        for name in ("x_adv", "success", "size", "before", "after", "queries", "forwards"):
            found = getattr(made, name)
            assert type(found) is type(given), name
            assert np.array_equal(np.asarray(found), getattr(first, name), equal_nan=True), name


def test_the_same_rows_in_every_form_give_the_same_run(tmp_path: Path) -> None:
    """Must show: arrays, Dataset, DataLoader, tf.data and a file."""
    tf = pytest.importorskip("tensorflow")
    x = np.random.default_rng(1).random((12, 4), dtype=np.float32)
    y = x[:, :3].argmax(1)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    rows = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(rows, batch_size=5)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    forms = ((x, y), rows, loader, batches, tmp_path / "rows.npz")
    runs = [
        holdfast.evaluate(linear(), data, "linf(0.1)", attacks=["pgd(steps=5)"]) for data in forms
    ]
    for run in runs[1:]:
        assert run.samples.equals(runs[0].samples)
        assert run.manifest.data.fingerprint == runs[0].manifest.data.fingerprint
        assert run.metrics == runs[0].metrics


def test_tensors_of_a_class_of_their_own_and_several_inputs_come_back_as_tensors() -> None:
    class Image(torch.Tensor):
        """As torchvision's are."""

    x, y = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    odd = x.as_subclass(Image)
    Image.__module__ = "torchvision.tv_tensors"
    one = holdfast.attack(torch.nn.Linear(3, 2), odd, y, "linf(0.1)", "fgsm")
    assert isinstance(one.x_adv, torch.Tensor)
    assert isinstance(like(np.zeros(2), (x, x)), torch.Tensor)  # inputs of several
