"""XGBoost: live `Booster`s, its model files, and dumps of its trees."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.targets.adapter import reading
from holdfast.targets.frameworks.arrays import (
    CLASSIFIES,
    ArrayModel,
    Columns,
    is_booster_of,
    library,
    named,
    of_booster,
)
from holdfast.targets.registry import HEAD, Framework
from holdfast.targets.trees import Nodes, Trees, below, read


def from_booster(model: Any) -> ArrayModel:
    xgboost = library("xgboost", "an XGBoost model")
    objective = json.loads(model.save_config())["learner"]["objective"]["name"]
    classifies = objective.startswith(CLASSIFIES)

    def ask(x: np.ndarray) -> np.ndarray:
        rows = xgboost.DMatrix(x.reshape(len(x), -1))
        return model.predict(rows, output_margin=classifies, validate_features=False)

    return of_booster(
        "xgboost",
        ask,
        int(model.num_features()),
        bytes(model.save_raw("ubj")),
        objective,
        classifies,
        columns=_columns(model),
        trees=lambda: _trees(model, ask),
    )


def _columns(model: Any) -> Columns | None:
    """The columns of a booster that was trained with names."""
    names = named(model.feature_names or [])
    if names is None:
        return None
    types = model.feature_types or [""] * len(names)
    learner = json.loads(bytes(model.save_raw("json")))["learner"]
    booster = learner["gradient_booster"]
    kept = booster.get("gbtree", booster).get("model", {}).get("cats", {}).get("enc", [])
    known = {
        name: _values(one)
        for name, kind, one in zip(names, types, kept or [{}] * len(names), strict=True)
        if kind == "c" and one.get("values")
    }
    return Columns(names, known, framed=False)


def _values(kept: dict[str, Any]) -> list[Any]:
    """Categories as the model's JSON has them: numbers, or the bytes of texts one after the
    other."""
    if "offsets" not in kept:
        return kept["values"]
    content = bytes(value % 256 for value in kept["values"])
    return [content[start:stop].decode() for start, stop in pairwise(kept["offsets"])]


def _trees(model: Any, ask: Callable[[np.ndarray], np.ndarray]) -> Trees:
    """The trees of a booster of trees.

    Raises:
        InputError: it is of another kind, or has splits by category.
    """
    learner = json.loads(bytes(model.save_raw("json")))["learner"]
    booster, k = learner["gradient_booster"], int(learner["learner_model_param"]["num_class"])
    weights = booster.get("weight_drop")  # of DART
    booster = booster.get("gbtree", booster).get("model", {})
    if "trees" not in booster:
        raise InputError("the XGBoost model is linear, and has no trees.")
    if any(any(tree["split_type"]) for tree in booster["trees"]):
        raise InputError("the XGBoost model has splits by category, which are not supported.")
    trees = []
    for i, tree in enumerate(booster["trees"]):
        left, limit = np.array(tree["left_children"]), np.float32(tree["split_conditions"])
        value = np.zeros((len(left), max(k, 1)))
        value[:, booster["tree_info"][i]] = limit * (1.0 if weights is None else weights[i])
        feature = np.where(left < 0, -1, tree["split_indices"])
        trees.append(Nodes(feature, below(limit), left, np.array(tree["right_children"]), value))
    return read(trees, ask, int(model.num_features()), "the XGBoost model")


def holds_booster(head: bytes) -> bool:
    """Whether a file begins as XGBoost's models do: an object of JSON or UBJSON that holds the
    learner."""
    begins = re.match(rb'\s*\{(\s*"|L)', head) is not None
    return begins and (b'"learner"' in head or b"\x07learner" in head)


def load(path: Path) -> ArrayModel:
    """The booster of a `.json` or `.ubj` file.

    Raises:
        InputError: damaged, or another kind of file.
    """
    content = path.read_bytes()
    with reading(path, "model of XGBoost"):
        if not holds_booster(content[:HEAD]):
            raise ValueError("it does not begin as such a file does")
        # UBJSON; XGBoost crashes on half a file
        if content[:2] == b"{L" and b"version" not in content[-64:]:
            raise ValueError("it is truncated")
        model = library("xgboost", f"{path}").Booster()
        model.load_model(bytearray(content))
        return from_booster(model)


def from_trees(path: Path) -> ArrayModel:
    """An XGBoost JSON dump: a list of trees, the sum of whose leaves is one logit (class 1 when
    positive).

    Raises:
        InputError: it is no such list.
    """
    content = path.read_bytes()
    try:
        trees = [_flat(root) for root in json.loads(content)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no XGBoost dump (a JSON list of trees with split, split_condition, yes, "
            "no, children, leaf)."
        ) from error

    def score(x: np.ndarray) -> np.ndarray:
        x, total = x.reshape(len(x), -1).astype(np.float32), np.zeros(len(x))
        for feature, limit, yes, no, leaf in trees:
            at = np.zeros(len(x), dtype=np.int64)
            while (inner := feature[at] >= 0).any():
                below = x[np.arange(len(x)), np.where(inner, feature[at], 0)] < limit[at]
                at = np.where(inner, np.where(below, yes[at], no[at]), at)
            total += leaf[at]
        return total

    def read_trees() -> Trees:
        columns = [Nodes(f, below(t), yes, no, leaf[:, None]) for f, t, yes, no, leaf in trees]
        return read(columns, score, 1 + max(int(tree[0].max()) for tree in trees), f"{path}")

    model = ArrayModel(score, digest=hashlib.sha256(content).digest(), trees=read_trees)
    model.probabilities = False
    return model


def _flat(root: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """The nodes of a tree as columns: feature (-1 at a leaf), limit, the next node below it and
    not, value."""
    nodes, places = [root], {root["nodeid"]: 0}
    for node in nodes:  # grows as it is walked
        for child in node.get("children", ()):
            places[child["nodeid"]] = len(nodes)
            nodes.append(child)

    def row(node: dict[str, Any]) -> tuple[Any, ...]:
        if "leaf" in node:
            return -1, np.float32(0), 0, 0, node["leaf"]
        feature, limit = int(str(node["split"]).lstrip("f")), np.float32(node["split_condition"])
        return feature, limit, places[node["yes"]], places[node["no"]], 0.0

    return tuple(map(np.array, zip(*map(row, nodes), strict=True)))


def _load(path: Path, **_: Any) -> ArrayModel:
    whole = path.suffix.lower() == ".ubj" or path.read_bytes()[:HEAD].lstrip().startswith(b"{")
    return load(path) if whole else from_trees(path)


FRAMEWORK = Framework(
    "xgboost",
    is_booster_of("xgboost"),
    lambda model, **_: from_booster(model),
    suffixes=(".json", ".ubj"),
    recognises=lambda _, head: holds_booster(head),
    load=_load,
    native=".ubj",
    also=("sklearn",),
)
