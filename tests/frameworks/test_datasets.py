"""Datasets of TensorFlow, Keras and Hugging Face: the rows that arrays give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import holdfast
from holdfast.data import as_source
from holdfast.errors import InputError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (12, 6, 6, 3), np.uint8)
X = (BYTES / np.float32(255)).astype(np.float32)
Y = (X.mean((1, 2, 3)) > X.mean()).astype(np.int64)


def test_datasets_of_tensorflow_and_keras() -> None:
    """Line 12: tf.data, batched or not, of pairs or dicts, shuffled; what repeats for ever is
    refused; Keras's too."""
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    pairs = tf.data.Dataset.from_tensor_slices((X, Y))

    class Own(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Any:
            return X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]

    named = pairs.map(lambda x, y: {"image": x, "label": y})
    for data in (
        pairs,
        pairs.batch(5),
        named.batch(5),
        named,
        Own(),
        (tf.constant(X), tf.constant(Y)),
    ):
        assert as_source(data).fingerprint() == as_source((X, Y)).fingerprint()
    assert len(as_source(pairs.shuffle(12).batch(4))) == 12
    with pytest.raises(InputError, match=r"has no end; leave repeat\(\) out"):
        as_source(pairs.repeat())
    net = keras.Sequential(
        [keras.layers.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    runs = [
        holdfast.evaluate(net, data, "linf(0.05)", attacks=["fgsm"])
        for data in (pairs.batch(5), (X, Y))
    ]
    assert (
        runs[0].samples.column("status").to_pylist() == runs[1].samples.column("status").to_pylist()
    )


def test_arrays_of_jax() -> None:
    """Line 12: (x, y) of jax."""
    jnp = pytest.importorskip("jax.numpy")
    assert (
        as_source((jnp.asarray(X), jnp.asarray(Y))).fingerprint()
        == as_source((X, Y.astype(np.int32))).fingerprint()
    )


@pytest.mark.slow
def test_a_hugging_face_dataset() -> None:
    """Line 12: pictures and labels, their class names, a stream, and a dict of splits that must be
    chosen from."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
    )
    rows = {"image": [Image.fromarray(image) for image in BYTES], "label": Y.tolist()}
    data = datasets.Dataset.from_dict(rows, features=features)
    found = as_source(data)
    assert found.class_names == ("dark", "light")
    assert found.shape == (3, 6, 6)
    assert found.fingerprint() == as_source((X.transpose(0, 3, 1, 2), Y)).fingerprint()
    assert as_source(data.to_iterable_dataset()).fingerprint() == found.fingerprint()
    ready = datasets.Dataset.from_dict({"pixel_values": X, "labels": Y}).with_format("numpy")
    assert np.array_equal(as_source(ready).rows(0, 12)[1], Y)
    with pytest.raises(InputError, match="is a dict with test"):
        as_source(datasets.DatasetDict({"test": data}))
