"""The same model, built or read again, has the same fingerprint."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.targets import wrap


def built(activation: str = "relu") -> Any:
    import keras

    layers = keras.layers
    x = layers.Input((3,))
    h = layers.Dense(4, kernel_initializer="ones")(x)
    h = layers.Dense(4, kernel_initializer="ones")(h) + h
    inner = keras.Sequential(
        [layers.Input((4,)), layers.Dense(2, activation, kernel_initializer="ones")]
    )
    return keras.Model(x, inner(h))


def fingerprint(model: Any) -> str:
    target = wrap(model)
    target.bind((3,))
    return target.fingerprint()


def test_the_names_that_keras_counts_are_no_part_of_a_model() -> None:
    """Line 5: a model built a second time in one process (dense_2, add_1) is confirmed."""
    pytest.importorskip("keras")
    first, second = built(), built()
    assert first.to_json() != second.to_json()
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(built("tanh")) != fingerprint(first)
