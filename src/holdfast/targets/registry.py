"""Which adapter a live model needs. The only place that knows all frameworks, by the modules of
their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast import usercode
from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter
from holdfast.targets.frameworks import lightgbm, xgboost
from holdfast.targets.frameworks.onnx import model as onnx

FRAMEWORKS = ("torch", "keras", "tensorflow", "jax", "onnx", "numpy", "sklearn")


def adopt(
    model: Any, framework: str | None = None, **options: Any
) -> nn.Module | Callable[[Tensor], Any]:
    """The model as a function of torch tensors; what is one already, or cannot be told yet, as it
    is.

    Raises:
        InputError: unknown framework, or nothing that can be called or predicts.
    """
    framework = framework or _told_by_type(model)
    if framework is not None and framework not in FRAMEWORKS:
        raise InputError(f"framework is {framework!r}; it is one of {', '.join(FRAMEWORKS)}.")
    options = {name: value for name, value in options.items() if value is not None}
    output = {name: value for name, value in options.items() if name == "output"}
    if framework == "keras":
        from holdfast.targets.frameworks.keras import adapt

        return adapt(model, **output)
    if framework == "tensorflow":
        from holdfast.targets.frameworks.tensorflow import TensorFlowModel

        return TensorFlowModel(model, **output)
    if framework == "jax":
        from holdfast.targets.frameworks.jax import JaxModel

        return JaxModel(model, **output)
    if framework == "sklearn" and is_booster(model):
        library = type(model).__module__.partition(".")[0]
        return {"xgboost": xgboost, "lightgbm": lightgbm}[library].from_booster(model)
    if framework == "sklearn":
        from holdfast.targets.frameworks.sklearn import from_estimator

        wanted = {name: value for name, value in options.items() if name in ("gives", "classes")}
        return from_estimator(model, **wanted)
    if framework == "onnx":
        return onnx.OnnxModel(model, **output)
    if framework == "numpy":
        from holdfast.targets.frameworks.arrays import ArrayModel

        return ArrayModel(model, **options)
    if not callable(model):
        raise InputError(
            f"cannot wrap a {type(model).__name__}; give a torch module, a Keras model, an "
            f"estimator that predicts, or a callable of one array."
        )
    return model


def by_trial(
    model: Callable[..., Any], x: Tensor, **options: Any
) -> nn.Module | Callable[[Tensor], Any]:
    """A plain function whose arrays its type does not tell: tried on the rows x, of torch and then
    of numpy."""
    for ask in (x.clone().requires_grad_(), x.cpu().clone().numpy()):
        try:
            with torch.enable_grad():  # or a function of numpy arrays would take a tensor too
                answer = model(ask)
        except SystemExit as error:
            raise usercode.raised("the model", error) from error
        except Exception as error:  # noqa: BLE001  # a function of other arrays may raise anything
            # it is at home, and the layout is not
            if (framework := _framework_of(error)) == "tensorflow":
                return adopt(model, framework, **options)
            continue
        parts = list(answer.values()) if isinstance(answer, dict) else answer
        first = parts[0] if isinstance(parts, (list, tuple)) and parts else parts
        framework = _framework_of(first)
        if framework == "torch" or (framework is None and isinstance(ask, Tensor)):
            return model
        if framework is not None:
            return adopt(model, framework, **options)
        labels = np.asarray(first).ndim == 1 and np.asarray(first).dtype.kind in "iu"
        return adopt(model, "numpy", gives="labels" if labels else "scores", **options)
    return model  # the error of its first question says more


def _told_by_type(model: Any) -> str | None:
    if isinstance(model, (nn.Module, Adapter)):
        return "keras" if is_keras(model) else None
    if is_keras(model):
        return "keras"
    if onnx.is_onnx(model):
        return "onnx"
    if callable(model):
        found = _framework_of(model)
        return found if found in ("tensorflow", "jax") else None
    return "sklearn" if hasattr(model, "predict") else None


def is_keras(model: Any) -> bool:
    return any(
        kind.__module__.partition(".")[0] == "keras" and kind.__name__ == "Model"
        for kind in type(model).__mro__
    )


def is_booster(model: Any) -> bool:
    return type(model).__name__ == "Booster" and type(model).__module__.partition(".")[0] in (
        "xgboost",
        "lightgbm",
    )


def _framework_of(value: Any) -> str | None:
    root = type(value).__module__.partition(".")[0]
    return {"torch": "torch", "tensorflow": "tensorflow", "jax": "jax", "jaxlib": "jax"}.get(root)
