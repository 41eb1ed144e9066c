"""Boosted trees of XGBoost and LightGBM as their own libraries hold them: live `Booster`s and model
files."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.targets.frameworks.arrays import ArrayModel

# how objectives of classifiers begin
_CLASSIFIES = ("binary", "multi", "cross_entropy", "xentropy")


def is_booster(model: Any) -> bool:
    return type(model).__name__ == "Booster" and type(model).__module__.partition(".")[0] in (
        "xgboost",
        "lightgbm",
    )


def from_booster(model: Any) -> ArrayModel:
    """A trained `Booster`: its margins before the sigmoid or softmax, which are logits; of a
    regression its numbers.

    Every tree is asked, or those up to the best iteration where the booster itself stops there.
    """
    return (
        _from_xgboost(model)
        if type(model).__module__.startswith("xgboost")
        else _from_lightgbm(model)
    )


def _from_xgboost(model: Any) -> ArrayModel:
    xgboost = _library("xgboost", "an XGBoost model")
    objective = json.loads(model.save_config())["learner"]["objective"]["name"]
    classifies = objective.startswith(_CLASSIFIES)

    def ask(x: np.ndarray) -> np.ndarray:
        rows = xgboost.DMatrix(x.reshape(len(x), -1))
        return model.predict(rows, output_margin=classifies, validate_features=False)

    return _model(
        ask, int(model.num_features()), bytes(model.save_raw("ubj")), objective, classifies
    )


def _from_lightgbm(model: Any) -> ArrayModel:
    text = model.model_to_string(num_iteration=-1)
    found = [
        line.removeprefix("objective=")
        for line in text.splitlines()
        if line.startswith("objective=")
    ]
    objective = found[0] if found else "none"
    classifies = objective.startswith(_CLASSIFIES)

    def ask(x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(x.reshape(len(x), -1), raw_score=classifies))

    return _model(ask, int(model.num_feature()), text.encode(), objective, classifies)


def _model(ask: Any, features: int, content: bytes, objective: str, classifies: bool) -> ArrayModel:
    said = (
        f"the Booster's objective is {objective}, which predicts numbers and no classes: for a "
        "regression say --task "
        f'"regression(tolerance=0.1)" (in Python: task=...).'
    )
    digest = hashlib.sha256(content).digest()
    return ArrayModel(ask, shape=(features,), digest=digest, numbers=None if classifies else said)


def _library(name: str, what: str) -> Any:
    """The library that made a booster. None of ours needs it, so no extra brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"{what} needs {name}, which is not installed: pip install {name}."
        ) from None


def holds_lightgbm(head: bytes) -> bool:
    """Whether a file begins as LightGBM's text does."""
    return head.startswith((b"tree\n", b"tree\r\n"))


def holds_xgboost(head: bytes) -> bool:
    """Whether a file begins as XGBoost's models do: an object of JSON or UBJSON that holds the
    learner."""
    return head.lstrip().startswith(b"{") and b"learner" in head


def load(path: Path) -> ArrayModel:
    """The booster of an XGBoost `.json` or `.ubj` file, or of LightGBM's text.

    Raises:
        InputError: damaged, or another kind of file.
    """
    content = path.read_bytes()
    try:
        if holds_lightgbm(content[:64]):
            lightgbm = _library("lightgbm", f"{path}")
            if b"end of trees" not in content:
                raise ValueError("its trees do not end")
            return from_booster(lightgbm.Booster(model_str=content.decode()))
        if not holds_xgboost(content[:64]):
            raise ValueError("it does not begin as such a file does")
        # UBJSON; XGBoost crashes on half a file
        if content[:2] == b"{L" and b"version" not in content[-64:]:
            raise ValueError("it is truncated")
        model = _library("xgboost", f"{path}").Booster()
        model.load_model(bytearray(content))
        return from_booster(model)
    except InputError:
        raise
    except Exception as error:  # the libraries' own, and of text that is none
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{path} is no model of XGBoost or LightGBM, or damaged: {first}."
        ) from error
