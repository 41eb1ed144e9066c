"""Real models and data of ../shared/cases."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from holdfast.targets import Target


def case(cases: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, cases / name / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mnist(cases: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = case(cases, "data_mnist").test()
    return x[:, None].astype(np.float32) / 255, y.astype(np.int64)


def cifar(cases: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = case(cases, "data_cifar10").load("first1000")
    return x.transpose(0, 3, 1, 2).astype(np.float32) / 255, y


def clean_percent(target: Target, x: np.ndarray, y: np.ndarray) -> float:
    target.bind(x.shape[1:])
    z = target.batcher.in_parts(target.scores, torch.from_numpy(x))
    return 100 * float((target.task.predict(z) == torch.from_numpy(y)).double().mean())
