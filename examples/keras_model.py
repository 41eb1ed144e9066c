"""A Keras model, from training to the figure: the backend is whatever Keras runs on.

pip install 'holdfast[keras,tensorflow]'
python examples/keras_model.py
"""

from __future__ import annotations

import keras
import numpy as np

import holdfast
from holdfast.data import open_data

x, y = (np.asarray(part) for part in open_data("digits", split="train").rows(0, 1400))
x = np.moveaxis(x, 1, -1)  # Keras wants the channels last

model = keras.Sequential(
    [
        keras.layers.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x, y, epochs=5, verbose=0)

target = holdfast.wrap(model)
# [1, 8, 8] images: turned for the model, since its shape says how
test = open_data("digits", split="test")
run = holdfast.evaluate(target, test, "linf(0.1)", protocol="standard", samples=100)
print(run.robust_accuracy)
print(*(finding.text for finding in run.verdict.findings), sep="\n")
