"""Models of numpy arrays: estimators, tree dumps, and any callable. Scores or labels, no gradients."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from holdfast.errors import InputError
from holdfast.targets.foreign import Foreign, chosen, digest_of, need, tensor, versions_of
from holdfast.targets.target import Access


class ArrayModel(Foreign):
    """A function from a numpy array [n, *shape] to scores [n, k], or to labels [n]."""

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        *,
        gives: str = "scores",
        classes: int | None = None,
        shape: Sequence[int] | None = None,
        layout: str = "nchw",
        output: str | int | None = None,
        digest: bytes | None = None,
    ) -> None:
        if gives not in ("scores", "labels"):
            raise InputError(f"gives is {gives!r}; a function of arrays gives scores or labels.")
        self.function, self.classes, self.layout, self.output = function, classes, layout, output
        self.access = Access.SCORES if gives == "scores" else Access.LABELS
        self.shape = None if shape is None else tuple(shape)
        self._digest = digest

    def infer(self, x: Tensor) -> Tensor:
        given = x.numpy().copy()
        z = self.function(given)
        self.rewrites |= not np.array_equal(given, x.numpy(), equal_nan=True)
        return tensor(chosen(z, self.output))

    @property
    def versions(self) -> dict[str, str]:
        return versions_of(*_libraries(getattr(self.function, "__self__", None)))

    def digest(self) -> bytes:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return self._digest or digest_of((), name)


def _libraries(model: Any) -> list[str]:
    """The modules at the top of the types of an estimator and of its parts, where it says them."""
    parts: dict[str, Any] = model.get_params(deep=True) if hasattr(model, "get_params") else {}
    items = [model, *parts.values()]
    kinds = [kind.__module__.partition(".")[0] for item in items for kind in type(item).__mro__]
    return [name for name in dict.fromkeys(kinds) if name not in ("builtins", "numpy", "torch")]


def from_estimator(model: Any) -> ArrayModel:
    """A fitted classifier of scikit-learn's kind: its probabilities, else its decision function, else its labels."""
    try:
        digest = hashlib.sha256(pickle.dumps(model)).digest()
    except Exception:  # noqa: BLE001  # a user's class that does not pickle
        digest = digest_of((), repr(model))
    classes = np.asarray(getattr(model, "classes_", np.arange(2)))
    features = getattr(model, "n_features_in_", None)
    shape = None if features is None else (int(features),)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise InputError(
            f"the classes of {type(model).__name__} are {classes[:5].tolist()}, but labels count from 0: fit it on "
            f"class numbers."
        )
    for name in ("predict_proba", "decision_function"):
        if hasattr(model, name):
            return ArrayModel(getattr(model, name), classes=len(classes), shape=shape, digest=digest)
    return ArrayModel(model.predict, gives="labels", classes=len(classes), shape=shape, digest=digest)


def from_skops(path: Path, *, trust: bool = False) -> ArrayModel:
    """A fitted estimator of a `.skops` file, which cannot run code unless it is trusted.

    Raises:
        InputError: damaged, or it holds types that skops does not know as safe.
    """
    io = need("skops.io", "sklearn", f"{path}")
    try:
        odd = io.get_untrusted_types(file=path)
        if odd and not trust:
            raise InputError(
                f"{path} holds types that may run code ({', '.join(odd[:3])}), so it was not opened; give --trust if "
                f"you trust its maker."
            )
        return from_estimator(io.load(path, trusted=odd))
    except InputError:
        raise
    except Exception as error:  # zip, json and whatever the estimator raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{path} cannot be opened as a skops file: {first}.") from error


def from_trees(path: Path) -> ArrayModel:
    """An XGBoost JSON dump: a list of trees, the sum of whose leaves is one logit (class 1 when positive).

    Raises:
        InputError: it is no such list.
    """
    content = path.read_bytes()
    try:
        trees = [_flat(root) for root in json.loads(content)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no XGBoost dump (a JSON list of trees with split, split_condition, yes, no, children, leaf)."
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

    return ArrayModel(score, digest=hashlib.sha256(content).digest())


def _flat(root: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """The nodes of a tree as columns: feature (-1 at a leaf), limit, the next node below it and not, value."""
    nodes, places = [root], {root["nodeid"]: 0}
    for node in nodes:  # grows as it is walked
        for child in node.get("children", ()):
            places[child["nodeid"]] = len(nodes)
            nodes.append(child)
    inner = ["leaf" not in node for node in nodes]
    pairs = list(zip(nodes, inner, strict=True))
    return (
        np.array([int(str(n["split"]).lstrip("f")) if i else -1 for n, i in pairs]),
        np.array([n["split_condition"] if i else 0.0 for n, i in pairs], dtype=np.float32),
        np.array([places[n["yes"]] if i else 0 for n, i in pairs]),
        np.array([places[n["no"]] if i else 0 for n, i in pairs]),
        np.array([0.0 if i else n["leaf"] for n, i in pairs]),
    )
