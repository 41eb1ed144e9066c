"""PyTorch: modules, functions of tensors, and files of weights or of whole modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from holdfast.targets.adapter import Adapter
from holdfast.targets.registry import Framework

WEIGHTS = (
    ".safetensors",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".joblib",
    ".ckpt",
    ".bin",
    ".model",
    ".net",
    "",  # people call files of weights as they like
)


def _matches(model: Any) -> bool:
    return isinstance(model, (nn.Module, Adapter))


def _load(path: Path, *, arch: str | None, trust: bool, **_: Any) -> Any:
    from holdfast.targets.frameworks.pytorch.files import load

    return load(path, arch, trust)


FRAMEWORK = Framework(
    "torch",
    _matches,
    suffixes=(".pt2", *WEIGHTS),
    weights=WEIGHTS,
    recognises=lambda path, _: (path / "config.json").is_file(),  # a folder of transformers
    load=_load,
    general=True,  # models of other frameworks that run on torch are modules, too
)
