"""Functions of numpy arrays: scores or labels, no gradients."""

from __future__ import annotations

import copy
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from holdfast.data.columns import CATEGORY, Column, frame, places
from holdfast.errors import InputError, first_line, listed, suggest
from holdfast.targets.adapter import Adapter, chosen, digest_of, tensor
from holdfast.targets.registry import Framework
from holdfast.targets.target import Access, refuse_texts
from holdfast.targets.trees import Trees

# how objectives of classifiers begin
CLASSIFIES = ("binary", "multi", "cross_entropy", "xentropy")
# whether a method of this name gives probabilities
_SAYS = {"predict_proba": True, "decision_function": False}


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a model was fitted on."""

    names: Sequence[str]
    # of those that hold categories: which, in the order of the numbers that they are to the model;
    # None: it takes them as they are
    categories: Mapping[str, Sequence[Any] | None] = field(default_factory=dict)
    spelled: Callable[[str], str] = str  # how the model writes the name of a column
    framed: bool = True  # it takes a DataFrame; else an array, of places of categories

    def order(self, columns: Sequence[Column]) -> list[int]:
        """Where a table has these columns.

        Raises:
            InputError: one is missing, or holds texts that the model does not know.
        """
        places = {self.spelled(column.name): place for place, column in enumerate(columns)}
        if missing := [name for name in self.names if name not in places]:
            raise InputError(
                f"the model was fitted on a column {missing[0]!r}, which is no feature of the data "
                f"(a column of labels is none); {suggest(missing[0], places)}"
            )
        for name in self.names:
            column, known = columns[places[name]], self.categories.get(name)
            if name not in self.categories and not self.framed:
                refuse_texts([column])
            odd = [value for value in column.values if known is not None and value not in known]
            if odd:
                raise InputError(
                    f"column {column.name} holds {odd[0]!r}, a category that the model was not "
                    f"fitted on; it knows {listed(known or (), 10)}. Leave such rows out, or "
                    "fit it on rows that hold it."
                )
        return [places[name] for name in self.names]

    def unnamed(self, x: np.ndarray) -> Any:
        """Rows x [n, columns] of these columns, of numbers alone.

        Raises:
            InputError: the model takes categories by their names.
        """
        if self.framed and self.categories:
            raise InputError(
                f"the model takes categories (column {next(iter(self.categories))}), and the data "
                "are arrays of numbers; give a table with names: a DataFrame, CSV or Parquet."
            )
        return table(x, self.names) if self.framed else x

    def rows(self, x: np.ndarray, columns: Sequence[Column]) -> Any:
        """Rows x [n, columns] of a table with these columns, in their order, as the model takes
        them."""
        columns = list(columns)
        for i, (name, column) in enumerate(zip(self.names, columns, strict=True)):
            known = self.categories.get(name)
            if known is not None:
                x[:, i] = places(column, x[:, i], known)
                columns[i] = Column(column.name, CATEGORY, tuple(known))
            elif name in self.categories:
                x[:, i] = np.rint(x[:, i])
        return frame(x, columns) if self.framed else x


def named(names: Sequence[str]) -> Sequence[str] | None:
    """The names of columns; None where they only count them, as libraries do without names."""
    counted = [(f"Column_{i}", f"f{i}", str(i)) for i in range(len(names))]
    return None if all(map(tuple.__contains__, counted, names)) else names


class ArrayModel(Adapter):
    """A function from a numpy array [n, *shape] to scores [n, k], or to labels [n]."""

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        *,
        gives: str | None = None,
        classes: int | None = None,
        shape: tuple[int, ...] | None = None,
        output: str | int | None = None,
        digest: bytes | None = None,
        class_labels: tuple[Any, ...] | None = None,
        numbers: str | None = None,
        columns: Columns | None = None,
        trees: Callable[[], Trees] | None = None,
        network: Callable[[], Callable[[Tensor], Tensor]] | None = None,
        trainable: Any = None,
    ) -> None:
        if gives not in (None, "scores", "labels"):
            raise InputError(f"gives is {gives!r}; a function of arrays gives scores or labels.")
        self.function, self.shape, self.classes, self.output = function, shape, classes, output
        self.probabilities = _SAYS.get(getattr(function, "__name__", ""))
        self.access = Access[(gives or "scores").upper()]
        self.class_labels, self.numbers = class_labels, numbers
        self._digest, self.columns, self._trees = digest, columns, trees
        self._network, self.trainable = network, trainable
        # of rows of a table: where they hold the model's own columns, and all that they hold
        self._order: list[int] | None = None
        self._table: tuple[Column, ...] | None = None
        self.libraries = _libraries(getattr(function, "__self__", None))

    def infer(self, x: Tensor) -> Tensor:
        given = x.numpy().copy()
        rows = self.rows(given)
        try:
            z = self.function(rows)
        except Exception as error:
            if (seen := self._unseen(error)) is not None:
                raise InputError(
                    f"{seen}, a category that the model was not fitted on ({first_line(error)}); "
                    "leave such rows out, or fit it on rows that hold it."
                ) from error
            raise
        self.rewrites |= not np.array_equal(given, x.numpy(), equal_nan=True)
        return tensor(chosen(z, self.output))

    def of_table(self, columns: Sequence[Column]) -> ArrayModel:
        """The same model of rows of a table. Those of its own columns are picked by name, whatever
        their order and what else there is.

        Raises:
            InputError: a column that it was fitted with is missing or holds unknown texts, or it
                was fitted without names and there are texts.
        """
        if self.columns is None:
            refuse_texts(columns)
            return self
        own = copy.copy(self)
        own._order, own._table = self.columns.order(columns), tuple(columns)
        own.shape = (len(columns),)
        return own

    def rows(self, x: np.ndarray) -> Any:
        """Rows x [n, *shape] as the model takes them: a DataFrame, if it was fitted with names."""
        if self.columns is None:
            return x
        if self._table is None or self._order is None:
            return self.columns.unnamed(x)
        return self.columns.rows(x[:, self._order], [self._table[place] for place in self._order])

    def _unseen(self, error: Exception) -> str | None:
        """Which text of a column an error of the model calls an unknown category."""
        said = str(error)
        if "unknown categor" not in said.lower():
            return None
        pairs = ((c.name, value) for c in self._table or () for value in c.values)
        named = ((name, value) for name, value in pairs if repr(value) in said)
        return next((f"column {name} holds {value!r}" for name, value in named), None)

    def network(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        if self._network is None:
            return super().network(example)
        found, order = self._network(), self._order
        return found if order is None else lambda x: found(x[:, order])

    def trees(self) -> Trees:
        if self._trees is None:
            return super().trees()
        found = self._trees()
        if self._order is not None:
            return replace(found, feature=np.asarray(self._order)[found.feature])
        return found

    def digest(self) -> bytes:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return self._digest or digest_of((), name)


def table(x: np.ndarray, columns: Sequence[str] | None) -> Any:
    """Rows as the estimator saw them when it was fitted: a DataFrame where columns had names."""
    if columns is None or x.shape[1:] != (len(columns),):
        return x
    try:
        import pandas as pd
    except ImportError:
        return x
    return pd.DataFrame(x, columns=list(columns), copy=False)


def _libraries(model: Any) -> tuple[str, ...]:
    """The modules at the top of the types of an estimator and of its parts, where it says them."""
    items = [model]
    if hasattr(model, "get_params"):
        items += model.get_params(deep=True).values()
    kinds = [kind.__module__.partition(".")[0] for item in items for kind in type(item).__mro__]
    own = dict.fromkeys(kinds)
    return tuple(name for name in own if name not in ("builtins", "numpy", "torch"))


def of_booster(
    library: str,
    ask: Callable[[np.ndarray], Any],
    features: int,
    content: bytes,
    objective: str,
    classifies: bool,
    labels: Sequence[Any] = (),
    columns: Columns | None = None,
    trees: Callable[[], Trees] | None = None,
) -> ArrayModel:
    """Boosted trees that give logits of the classes `labels`, or, of a regression, numbers."""
    digest, names = hashlib.sha256(content).digest(), own_labels(labels)
    shape = (features,)
    model = ArrayModel(
        ask, shape=shape, digest=digest, class_labels=names, columns=columns, trees=trees
    )
    model.probabilities, model.libraries = False, (library,)
    if not classifies:
        model.numbers = (
            f"the model's objective is {objective}, which gives numbers and no class: for a "
            'regression say --task "regression(tolerance=0.1)", for several labels at once --task '
            "multilabel (in Python: task=...)."
        )
    return model


def own_labels(labels: Sequence[Any]) -> tuple[Any, ...] | None:
    """What a model calls its classes; None where that is 0..k-1."""
    counts = list(labels) == list(range(len(labels)))
    odd = any(isinstance(label, (bool, str)) for label in labels)
    return None if counts and not odd else tuple(labels)


def is_booster_of(library: str) -> Callable[[Any], bool]:
    """Whether a model is a `Booster` of this library."""
    return lambda model: (
        type(model).__name__ == "Booster" and type(model).__module__.partition(".")[0] == library
    )


def library(name: str, what: str) -> Any:
    """The library that made a booster. None of ours needs it, so no extra brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"{what} needs {name}, which is not installed: pip install {name}."
        ) from None


FRAMEWORK = Framework("numpy", adapt=ArrayModel)
