"""CatBoost: live models, and their `.cbm` and `.json` files, which hold numbers and no code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.targets.adapter import reading
from holdfast.targets.frameworks.arrays import ArrayModel, library, of_booster
from holdfast.targets.registry import Framework

_BEGINS = re.compile(rb'CBM1|\s*\{\s*"(ctr_data|features_info|model_info|oblivious_trees)"')


def matches(model: Any) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    return ("catboost", "CatBoost") in kinds


def adapt(model: Any, **_: Any) -> ArrayModel:
    """A fitted model: its margins before the sigmoid or softmax, which are logits; of a regression
    its numbers, and of several labels at once a logit for each.

    Raises:
        InputError: it is not fitted, or takes other inputs than numbers.
    """
    kind = type(model).__name__
    if not model.is_fitted() or not model.tree_count_:
        raise InputError(f"the {kind} has no trees; fit it first.")
    columns = [*model.get_cat_feature_indices(), *model.get_text_feature_indices()]
    columns += model.get_embedding_feature_indices()
    if columns:
        raise InputError(
            f"the {kind} takes categories, texts or embeddings (column {columns[0]}); only numbers "
            "can change by a little, so only models of numbers are supported."
        )
    options = json.loads(model.get_metadata().get("params") or "{}")
    objective = options.get("loss_function", {}).get("type", "not known")
    labels = np.asarray(model.classes_).tolist()
    classifies = bool(labels) and objective not in ("MultiLogloss", "MultiCrossEntropy")

    def ask(x: np.ndarray) -> np.ndarray:
        return model.predict(x.reshape(len(x), -1), prediction_type="RawFormulaVal")

    features = len(model.feature_names_)
    return of_booster(
        "catboost",
        ask,
        features,
        _content(model),
        objective,
        classifies,
        labels if classifies else (),
    )


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
    also=("sklearn",),
)
