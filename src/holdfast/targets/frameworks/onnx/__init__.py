"""ONNX graphs: files, and live models of onnx and onnxruntime."""

from __future__ import annotations

from typing import Any

from holdfast.targets.adapter import Adapter
from holdfast.targets.registry import Framework


def _matches(model: Any) -> bool:
    kind = type(model)
    return kind.__name__ in _KINDS and kind.__module__.startswith("onnx")


def _adapt(model: Any, *, output: str | int | None = None, **_: Any) -> Adapter:
    from holdfast.targets.frameworks.onnx.model import OnnxModel

    return OnnxModel(model, output=output)


_KINDS = ("ModelProto", "InferenceSession")
FRAMEWORK = Framework("onnx", _matches, _adapt, suffixes=(".onnx",), load=_adapt)
