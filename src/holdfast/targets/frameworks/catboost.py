"""CatBoost: live models, and their `.cbm` and `.json` files, which hold numbers and no code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.targets.adapter import reading
from holdfast.targets.frameworks.arrays import ArrayModel, Columns, library, named, of_booster
from holdfast.targets.registry import Framework
from holdfast.targets.trees import Nodes, Trees, read

_BEGINS = re.compile(rb'CBM1|\s*\{\s*"(ctr_data|features_info|model_info|oblivious_trees)"')


def matches(model: Any) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    return ("catboost", "CatBoost") in kinds


def adapt(model: Any, **_: Any) -> ArrayModel:
    """A fitted model: its margins before the sigmoid or softmax, which are logits; of a regression
    its numbers, and of several labels at once a logit for each.

    Raises:
        InputError: it is not fitted, or takes texts or embeddings.
    """
    kind = type(model).__name__
    if not model.is_fitted() or not model.tree_count_:
        raise InputError(f"the {kind} has no trees; fit it first.")
    odd = [*model.get_text_feature_indices(), *model.get_embedding_feature_indices()]
    if odd:
        raise InputError(
            f"the {kind} takes whole texts or embeddings (column {odd[0]}); only numbers and "
            "categories are supported."
        )
    coded = dict.fromkeys(model.feature_names_[i] for i in model.get_cat_feature_indices())
    names = model.feature_names_ if coded else named(model.feature_names_)
    options = json.loads(model.get_metadata().get("params") or "{}")
    objective = options.get("loss_function", {}).get("type", "not known")
    labels = np.asarray(model.classes_).tolist()
    classifies = bool(labels) and objective not in ("MultiLogloss", "MultiCrossEntropy")

    def ask(x: np.ndarray) -> np.ndarray:
        if isinstance(x, np.ndarray):
            x = x.reshape(len(x), -1)
        return model.predict(x, prediction_type="RawFormulaVal")

    features = len(model.feature_names_)
    made = of_booster(
        "catboost",
        ask,
        features,
        _content(model),
        objective,
        classifies,
        labels if classifies else (),
        None if names is None else Columns(names, coded, framed=bool(coded)),
        lambda: _trees(_content(model), ask, features),
    )
    made.trainable = model
    return made


def _trees(content: bytes, ask: Callable[[np.ndarray], np.ndarray], features: int) -> Trees:
    """The trees of a model's file, each of which asks one question a level.

    Raises:
        InputError: they are of another kind.
    """
    whole, trees = json.loads(content), []
    if "oblivious_trees" not in whole:
        raise InputError("the CatBoost model has trees that are not symmetric: not supported.")
    splits = [split for tree in whole["oblivious_trees"] for split in tree["splits"] or []]
    if not all("float_feature_index" in split for split in splits):
        raise InputError("the CatBoost model has splits by category, which are not supported.")
    scale, bias = whole["scale_and_bias"]
    for tree in whole["oblivious_trees"]:
        splits = tree["splits"] or []
        inner = 2 ** len(splits) - 1
        # a node of level i stands behind those above it, by its answers so far; the answer at level
        # i is bit i of a leaf's place
        level = np.repeat(np.arange(len(splits)), 2 ** np.arange(len(splits)))
        answers = np.arange(inner) - (2**level - 1)
        left = 2 ** (level + 1) - 1 + answers
        ends = np.zeros(inner + 1, np.int64)
        feature = np.array([split["float_feature_index"] for split in splits], np.int64)[level]
        limit = np.array([split["border"] for split in splits], np.float32)[level]
        value = scale * np.reshape(tree["leaf_values"], (inner + 1, len(bias)))
        trees.append(
            Nodes(
                np.concatenate([feature, ends - 1]),
                np.concatenate([limit, ends]).astype(np.float32),
                np.concatenate([left, ends]),
                np.concatenate([left + 2**level, ends]),
                np.concatenate([np.zeros((inner, len(bias))), value]),
            )
        )
    return read(trees, ask, features, "the CatBoost model")


def _content(model: Any) -> bytes:
    """The trees and what their sums mean, without when and how they were trained."""
    with TemporaryDirectory(prefix="holdfast-") as folder:
        file = Path(folder) / "model.json"
        model.save_model(str(file), format="json")
        content = json.loads(file.read_bytes())
    content["model_info"] = np.asarray(model.classes_).tolist()
    return json.dumps(content, sort_keys=True).encode()


def load(path: Path, **_: Any) -> ArrayModel:
    """The model of a `.cbm` or `.json` file.

    CatBoost itself checks no more of a `.cbm` file than its length; of strangers, ask for `.json`.

    Raises:
        InputError: damaged, or another kind of file.
    """
    catboost = library("catboost", f"{path}")
    with reading(path, "model of CatBoost"):
        kind, content = "cbm", path.read_bytes()
        if not content.startswith(b"CBM1"):
            json.loads(content)  # CatBoost takes half a file for one without trees
            kind = "json"
        return adapt(catboost.CatBoost().load_model(str(path), format=kind))


FRAMEWORK = Framework(
    "catboost",
    matches,
    adapt,
    suffixes=(".cbm",),
    recognises=lambda _, head: _BEGINS.match(head) is not None,
    load=load,
    native=".cbm",
    also=("sklearn",),
)
