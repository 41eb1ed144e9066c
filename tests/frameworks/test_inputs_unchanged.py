"""No call changes an object that the caller handed in: modes, flags, weights, statistics,
arrays."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import twins
from torch import Tensor, nn

import holdfast
from holdfast.targets import Access, wrap
from holdfast.targets.demo import demo_model

X = np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32)
Y = np.arange(6) % 10
State = Callable[[], Any]


def torch_module() -> tuple[Any, State]:
    model = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm2d(1), *demo_model())
    model.train()
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    model[-1].weight.grad = torch.ones_like(model[-1].weight)
    model.register_forward_hook(lambda *_: None)

    def state() -> Any:
        values = [v.tolist() for v in model.state_dict().values()]
        flags = [
            (p.requires_grad, None if p.grad is None else p.grad.sum().item(), p.device)
            for p in model.parameters()
        ]
        modes = [(m.training, len(m._forward_hooks), len(m._buffers)) for m in model.modules()]
        return values, flags, modes

    return model, state


def keras_model() -> tuple[Any, State]:
    pytest.importorskip("keras")
    model = twins.keras_model()
    model.layers[0].trainable = False
    model.compile(optimizer="sgd", loss="mse")

    def state() -> Any:
        layers = [(layer.name, layer.trainable) for layer in model.layers]
        return [w.tolist() for w in model.get_weights()], layers, model.compiled, model.to_json()

    return model, state


def sklearn_estimator() -> tuple[Any, State]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500).fit(X.reshape(6, -1), Y)
    return model, lambda: pickle.dumps(model)


def catboost_classifier() -> tuple[Any, State]:
    catboost = pytest.importorskip("catboost")
    model = catboost.CatBoostClassifier(iterations=2, depth=2, verbose=0, allow_writing_files=False)
    model.fit(X.reshape(6, -1), Y)
    return model, lambda: (model.get_params(), model.get_leaf_values().tolist())


def numpy_function() -> tuple[Any, State]:
    weights = np.random.default_rng(1).random((64, 10)).astype(np.float32)
    return lambda x: np.asarray(x).reshape(len(x), -1) @ weights, weights.tolist


def jax_function() -> tuple[Any, State]:
    pytest.importorskip("jax")
    return twins.jax_function(), lambda: None


def onnx_model() -> tuple[Any, State]:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(twins.onnx_file(Path()))
    return model, model.SerializeToString


@pytest.mark.parametrize(
    "make",
    [torch_module, keras_model, sklearn_estimator, catboost_classifier, numpy_function,
     jax_function, onnx_model],
)  # fmt: skip
def test_a_model_is_as_it_was(
    make: Callable[[], tuple[Any, State]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, state = make()
    flat = make in (sklearn_estimator, catboost_classifier)
    x, y = X.reshape(6, -1).copy() if flat else X.copy(), Y.copy()
    before, given = state(), (x.copy(), y.copy())
    holdfast.evaluate(model, (x, y), "linf(0.1)", attacks=["square(steps=3)"], out="run")
    target = wrap(model, batch_size=3)
    target.bind(x.shape[1:])
    if target.access == Access.GRADIENTS:
        holdfast.attack(model, x, y, "linf(0.1)", "pgd(steps=2)")
    assert state() == before
    assert np.array_equal(x, given[0])
    assert np.array_equal(y, given[1])


def test_a_target_that_is_wrapped_again_stays_as_it_is() -> None:
    def halves(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] / 2

    target = wrap(halves, shape=(4,))
    before = (target.head.truth_task, target.head.probabilities, target.head.said)
    other = wrap(target, task="regression(tolerance=0.1)", probabilities=target.head.probabilities)
    assert other is not target
    assert other.head.truth_task is not None
    assert (target.head.truth_task, target.head.probabilities, target.head.said) == before
    assert wrap(target) is target
