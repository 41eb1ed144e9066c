"""One network in every framework: the same bounds of its margins, and no proof of another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import twins
from torch import Tensor

from holdfast.bounds import margins
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.targets import Target, load, wrap
from holdfast.targets.demo import demo_model

ROWS = 2


def lower(target: Target, x: Tensor, y: Tensor, eps: float = 0.02) -> Tensor:
    """Bounds of margins by CROWN, the true class left out."""
    target.bind(tuple(x.shape[1:]))
    found = margins(target.network(), x, y, f"linf({eps})", target.bounds)
    assert not found.reason
    assert (found.rounding > 0).all()
    return found.lower.scatter(1, y[:, None], 0)


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


FORMS = [onnx, onnx_of_one_row]


@pytest.mark.parametrize("make", FORMS)
def test_one_network_has_the_same_bounds_in_each_framework(
    make: Callable[[Path], Target], digits: Any, tmp_path: Path
) -> None:
    x, y, known = digits
    assert torch.allclose(lower(make(tmp_path), x, y), known, rtol=0, atol=1e-5)


def test_a_graph_that_answers_otherwise_proves_nothing(digits: Any, tmp_path: Path) -> None:
    target: Any = onnx(tmp_path)
    target.bind(tuple(digits[0].shape[1:]))
    bias = target.model.graph.weights["b4"]
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
