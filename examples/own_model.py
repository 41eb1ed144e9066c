"""Your own model and data for the command line.

holdfast evaluate examples/own_model.py:model examples/own_model.py:data --threat "linf(0.1)"
--samples 100
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn, tensor


def data() -> tuple[np.ndarray, np.ndarray]:
    """(x [n, 64] in [0, 1], y [n]): the last 360 digits."""
    x, y = load_digits(return_X_y=True)
    return (x[-360:] / 16).astype(np.float32), y[-360:]


def model() -> nn.Module:
    """A torch module that gives logits; here a logistic regression, fitted in a second."""
    x, y = load_digits(return_X_y=True)
    fitted = LogisticRegression(max_iter=1000).fit(x[:-360] / 16, y[:-360])
    linear = nn.Linear(64, 10)
    linear.load_state_dict({"weight": tensor(fitted.coef_), "bias": tensor(fitted.intercept_)})
    return linear
