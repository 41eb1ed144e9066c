"""LightGBM: live `Booster`s and its text files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import InputError, listed
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
from holdfast.targets.registry import Framework
from holdfast.targets.trees import Nodes, Trees, at_most, below, read

_ZERO = np.float32(1e-35)  # as far from 0 as this, all inputs are taken for 0


def from_booster(model: Any) -> ArrayModel:
    text = model.model_to_string(num_iteration=-1)
    name = "objective="
    found = (line.removeprefix(name) for line in text.splitlines() if line.startswith(name))
    objective = next(found, "none")
    classifies = objective.startswith(CLASSIFIES)

    def ask(x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(x.reshape(len(x), -1), raw_score=classifies))

    return of_booster(
        "lightgbm",
        ask,
        int(model.num_feature()),
        text.encode(),
        objective,
        classifies,
        columns=_columns(model),
        trees=lambda: _trees(model, ask),
    )


def _columns(model: Any) -> Columns | None:
    """The columns of a booster that was trained with names, in which it writes _ for a blank.

    Raises:
        InputError: which of them its lists of categories belong to cannot be told.
    """
    names = named(model.feature_name())
    if names is None:
        return None
    kinds = model.dump_model(num_iteration=1)["feature_infos"]
    coded = [name for name in names if kinds.get(name, {}).get("values")]
    known = model.pandas_categorical or []
    if len(known) > len(coded):  # no tree can ask about a column of one category
        known = [values for values in known if len(values) > 1]
    if known and len(known) != len(coded):
        raise InputError(
            f"the LightGBM model has {len(known)} lists of categories for the {len(coded)} columns "
            f"of categories that its trees can ask about ({listed(coded, 5)}); train it on these "
            "alone."
        )
    categories = dict(zip(coded, known, strict=True)) if known else {}
    return Columns(names, categories, lambda name: name.replace(" ", "_"), framed=False)


def _trees(model: Any, ask: Callable[[np.ndarray], np.ndarray]) -> Trees:
    """The trees that the booster predicts with.

    Raises:
        InputError: it has splits by category, or takes zeros for missing values.
    """
    whole = model.dump_model()
    k, trees = whole["num_tree_per_iteration"], []
    for i, tree in enumerate(whole["tree_info"]):
        nodes, rows = [tree["tree_structure"]], []
        for node in nodes:  # grows as it is walked
            if "leaf_value" in node:
                rows.append((-1, 0.0, 0, 0, node["leaf_value"]))
                continue
            if node["decision_type"] != "<=" or node["missing_type"] == "Zero":
                raise InputError(
                    "the LightGBM model has splits by category, or takes zeros for missing values, "
                    "which is not supported."
                )
            rows.append((node["split_feature"], node["threshold"], len(nodes), len(nodes) + 1, 0))
            nodes += [node["left_child"], node["right_child"]]
        feature, limit, left, right, leaf = map(np.array, zip(*rows, strict=True))
        value = np.zeros((len(rows), k))
        value[:, i % k] = leaf
        trees.append(Nodes(feature, at_most(_around_zero(limit)), left, right, value))
    return read(trees, ask, int(model.num_feature()), "the LightGBM model")


def _around_zero(limit: np.ndarray) -> np.ndarray:
    """Limits among the inputs that LightGBM takes for 0, at the end of these that they mean."""
    end = np.where(limit < 0, below(-_ZERO), _ZERO)
    return np.where(abs(limit) <= _ZERO, end, limit)


def holds_booster(head: bytes) -> bool:
    """Whether a file begins as LightGBM's text does."""
    return head.startswith((b"tree\n", b"tree\r\n"))


def load(path: Path) -> ArrayModel:
    """The booster of a text file.

    Raises:
        InputError: damaged.
    """
    content = path.read_bytes()
    with reading(path, "model of LightGBM"):
        lightgbm = library("lightgbm", f"{path}")
        if b"end of trees" not in content:
            raise ValueError("its trees do not end")
        return from_booster(lightgbm.Booster(model_str=content.decode()))


FRAMEWORK = Framework(
    "lightgbm",
    is_booster_of("lightgbm"),
    lambda model, **_: from_booster(model),
    recognises=lambda _, head: holds_booster(head),
    load=lambda path, **_: load(path),
    native=".txt",
    also=("sklearn",),
)
