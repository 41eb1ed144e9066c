"""Fitted estimators of scikit-learn's kind, live and in `.skops` files: scores or labels, no
gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.errors import InputError, first_line
from holdfast.targets.adapter import digest_of, need
from holdfast.targets.frameworks.arrays import ArrayModel, Columns, named, own_labels, table
from holdfast.targets.registry import Framework, of_model
from holdfast.targets.trees import NO_TREES, Nodes, Trees, at_most, read

# Types of scikit-learn's own that skops asks about: what its fitted estimators are made of. Each is
# a class that holds numbers and runs no code of the file's; anything else needs the user's word.
_KERNELS = (
    "CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern Product RBF "
    "RationalQuadratic"
)
_OWN_TYPES = frozenset(
    """
    sklearn._loss.loss.HalfTweedieLossIdentity
    sklearn.calibration._CalibratedClassifier
    sklearn.calibration._SigmoidCalibration
    sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor
    sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace
    sklearn.metrics._dist_metrics.EuclideanDistance64
    sklearn.metrics._dist_metrics.ManhattanDistance64
    sklearn.metrics._dist_metrics.MinkowskiDistance64
    sklearn.neighbors._ball_tree.BallTree
    sklearn.neighbors._kd_tree.KDTree
    sklearn.neural_network._stochastic_optimizers.AdamOptimizer
    sklearn.neural_network._stochastic_optimizers.SGDOptimizer
    sklearn.tree._tree.Tree
    sklearn.utils._bunch.Bunch
    """.split()
) | {f"sklearn.gaussian_process.kernels.{name}" for name in f"{_KERNELS} Sum WhiteKernel".split()}

_TRIED = 64  # random rows
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
# those whose decision function is their columns times weights, plus one number a class
_LINEAR = set(
    "LogisticRegression LogisticRegressionCV LinearSVC SGDClassifier RidgeClassifier Perceptron "
    "RidgeClassifierCV PassiveAggressiveClassifier LinearDiscriminantAnalysis".split()
)


def _hash(model: Any) -> str:
    """A SHA-256 of an estimator's values: the same for one that was fitted here and one that was
    read from a file."""
    from joblib.hashing import NumpyHasher  # of no use to models of other kinds

    class Hasher(NumpyHasher):
        def save(self, obj: Any) -> None:
            # between its fields lies whatever memory held before
            if isinstance(obj, np.ndarray) and obj.dtype.names:
                obj = [np.ascontiguousarray(obj[name]) for name in obj.dtype.names]
            super().save(obj)

    return str(Hasher("sha256").hash(model))


def _table(model: Any) -> Columns | None:
    """The columns that an estimator was fitted with; None where it saw no names."""
    try:
        names = named([str(name) for name in model.feature_names_in_])
    except Exception:  # noqa: BLE001  # not there, or a property that fails
        return None
    booster = _booster(model)
    known = None if booster is None else _adapted(booster).columns
    if names is None or known is None:
        return None if names is None else Columns(names)
    return replace(known, names=names, framed=True)


def from_estimator(
    model: Any, *, gives: str | None = None, classes: int | None = None, **_: Any
) -> ArrayModel:
    """A fitted estimator of scikit-learn's kind: its probabilities, else its decision function,
    else its predictions.

    Predictions are labels where the estimator names its classes (`classes_`), or `classes` says how
    many there are; else they are numbers, as a regression has them.

    Raises:
        InputError: it predicts several labels at once, in a form of scikit-learn's own.
    """
    try:
        digest = _hash(model).encode()
    except Exception:  # noqa: BLE001  # a user's class that does not pickle
        digest = digest_of((), repr(model))
    kind, known = type(model).__name__, _classes(model)
    features = getattr(model, "n_features_in_", None)
    own: dict[str, Any] = {
        "digest": digest,
        "shape": None if features is None else (int(features),),
        "class_labels": own_labels(known or ()),
        "trainable": model,
    }
    table = own["columns"] = _table(model)
    columns = None if table is None else table.names
    own["trees"] = lambda: _trees(model, columns)
    if known is not None:
        classes = len(known)
    names = ["predict_proba", "decision_function"]
    if _decides_alike(model, features, columns, classes or 2):
        names.reverse()
    for name in names:
        if hasattr(model, name) and gives != "labels":
            network = partial(_network, model, name)
            scores = ArrayModel(getattr(model, name), classes=classes, network=network, **own)
            scores.gives_logits = name == "predict_proba"
            scores.log_odds = name == "predict_proba" or _gives_odds(model, features, columns)
            return scores
    if known is not None:
        places = {label: i for i, label in enumerate(known)}

        def labels(x: np.ndarray) -> np.ndarray:
            return np.array(
                [places[label] for label in np.asarray(model.predict(x)).tolist()], np.int64
            )

        return ArrayModel(labels, gives="labels", classes=classes, **own)
    if classes is not None or gives == "labels":
        return ArrayModel(model.predict, gives="labels", classes=classes, **own)
    said = (
        f"a {kind} names no classes (classes_), so its predictions are taken for numbers: for a "
        'regression say --task "regression(tolerance=0.1)" (in Python: task=...), and a classifier '
        "has to be fitted first."
    )
    return ArrayModel(model.predict, numbers=said, **own)


def unfitted(model: Any) -> Any:
    """A new estimator with the settings of a fitted one, its `random_state` too.

    Raises:
        InputError: it does not say them.
    """
    from sklearn.base import clone

    kind = type(model).__name__
    try:
        try:
            return clone(model)
        except RuntimeError:  # as CatBoost's, which copies its lists
            return type(model)(**model.get_params())
    except Exception as error:  # a user's class may raise anything
        raise InputError(
            f"the {kind} cannot be made anew with its settings ({first_line(error)}); an estimator "
            "says them by get_params, as those of scikit-learn do."
        ) from error


def to_skops(model: Any) -> bytes:
    """A `.skops` file of an estimator.

    Raises:
        InputError: it cannot be stored so.
    """
    io = need("skops.io", "sklearn", "a file of an estimator")
    try:
        return io.dumps(model)
    except Exception as error:
        raise InputError(
            f"the {type(model).__name__} cannot be stored as a skops file: {first_line(error)}."
        ) from error


def own_skops(path: Path) -> Any:
    """The estimator of a file that `to_skops` made here: it is trusted."""
    io = need("skops.io", "sklearn", f"{path}")
    return io.load(path, trusted=io.get_untrusted_types(file=path))


def native_file(model: Any, folder: Path) -> None:
    """Leave the booster of another library, where an estimator is one, as that library's own
    file `model` in a folder."""
    booster = _booster(model)
    if booster is None:
        booster = model
    framework = of_model(booster)
    if framework is not None and framework.native:
        booster.save_model(str(folder / f"model{framework.native}"))


def _classes(model: Any) -> list[Any] | None:
    """What an estimator calls its classes, as plain values in its own order; None where it does not
    say."""
    try:
        found = model.classes_
    except Exception:  # noqa: BLE001  # not fitted, or a property that fails
        # Detectors of outliers predict -1 for them and 1 for the rest, and have no `classes_`.
        return (
            [-1, 1]
            if hasattr(model, "fit_predict") and hasattr(model, "decision_function")
            else None
        )
    if isinstance(found, list) and found and isinstance(found[0], np.ndarray):
        raise InputError(
            f"the {type(model).__name__} predicts {len(found)} labels at once, each with classes "
            "of its own; wrap a "
            f"function that returns one array of probabilities [n, labels], with task='multilabel'."
        )
    return np.asarray(found).tolist()


def _network(model: Any, name: str) -> Callable[[Tensor], Tensor]:
    """What an estimator computes, before the last activation of its probabilities: a network or a
    linear model, alone or behind scalers.

    Raises:
        InputError: it is another one.
    """
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    last, kind = steps[-1], type(steps[-1]).__name__
    parts = [part for step in steps[:-1] for part in _scaled(step)]
    if kind == "MLPClassifier" and last.out_activation_ in ("softmax", "logistic"):
        layers = [_affine(w.T, b) for w, b in zip(last.coefs_, last.intercepts_, strict=True)]
        for layer in layers[:-1]:
            parts += [layer, _ACTIVATIONS[last.activation]]
        parts.append(layers[-1])
        if last.n_outputs_ == 1:  # whose probabilities are of two classes
            parts.append(lambda z: F.pad(z, (1, 0)))
    elif kind in _LINEAR and name == "decision_function":
        parts.append(_affine(last.coef_, last.intercept_))
    else:
        raise InputError(
            f"not supported: proofs of a {kind}; expected trees alone, or an MLPClassifier or a "
            "linear model, alone or behind scalers."
        )
    return lambda x: reduce(lambda x, part: part(x), parts, x.double())


def _scaled(step: Any) -> list[Callable[[Tensor], Tensor]]:
    """What a step before the last one of a pipeline does.

    Raises:
        InputError: it is no scaler that moves each column by itself.
    """
    kind = type(step).__name__
    if step is None or step == "passthrough":
        return []
    if kind in ("StandardScaler", "RobustScaler", "MaxAbsScaler"):
        shift = getattr(step, "mean_", getattr(step, "center_", None))
        shift, scale = (
            torch.tensor(neutral if part is None else part)
            for neutral, part in ((0.0, shift), (1.0, step.scale_))
        )
        return [lambda x: (x - shift) / scale]
    if kind == "MinMaxScaler":
        scale, shift = torch.tensor(step.scale_), torch.tensor(step.min_)
        limits = [lambda x: x.clamp(*step.feature_range)] if step.clip else []
        return [lambda x: x * scale + shift, *limits]
    raise InputError(
        f"not supported: proofs of a pipeline with a {kind}; expected scalers alone before its "
        "last step."
    )


def _affine(w: Any, b: Any) -> Callable[[Tensor], Tensor]:
    weight, bias = (torch.tensor(np.asarray(part, np.float64)) for part in (np.atleast_2d(w), b))
    return lambda x: F.linear(x, weight, bias.expand(len(weight)))


def _trees(model: Any, columns: Sequence[str] | None) -> Trees:
    """The trees of a tree, of a forest, or of boosted trees, another library's among them.

    Raises:
        InputError: the estimator is of another kind, or has splits by category.
    """
    kind = type(model).__name__
    booster = _booster(model)
    if booster is not None:
        return _adapted(booster).trees()
    if kind in ("DecisionTreeClassifier", "ExtraTreeClassifier"):
        name, scale, grown = "predict_proba", 1.0, [(model, slice(None))]
    elif kind in ("RandomForestClassifier", "ExtraTreesClassifier"):
        grown = [(one, slice(None)) for one in model.estimators_]
        name, scale = "predict_proba", float(len(grown))  # votes: ties stay exact
    elif kind == "GradientBoostingClassifier":
        if model.init not in (None, "zero"):
            raise InputError(f"the {kind} starts from another estimator: not supported.")
        name, scale = "decision_function", 1.0
        grown = [(one, i) for forest in model.estimators_ for i, one in enumerate(forest)]
    elif kind == "HistGradientBoostingClassifier":
        name, scale = "decision_function", 1.0
        grown = [(one, i) for forest in model._predictors for i, one in enumerate(forest)]
    else:
        raise InputError(NO_TREES)
    k = 1 + max([place for _, place in grown if isinstance(place, int)], default=0)
    trees = []
    for one, place in grown:
        feature, limit, left, right, value = _nodes(one)
        if kind == "GradientBoostingClassifier":
            value = value * model.learning_rate
        if isinstance(place, int):
            value = value * (np.arange(k) == place)
        else:
            value = value / value.sum(1, keepdims=True)
        trees.append(Nodes(feature, limit, left, right, value))

    def ask(x: np.ndarray) -> np.ndarray:
        return scale * np.asarray(getattr(model, name)(table(x, columns)))

    return read(trees, ask, int(model.n_features_in_), f"the {kind}")


def _booster(model: Any) -> Any:
    """The booster of another library that an estimator predicts with, or None."""
    if hasattr(model, "get_booster"):
        booster = model.get_booster()
        best = getattr(model, "best_iteration", None)  # it stopped early, and predicts with these
        return booster if best is None else booster[: best + 1]
    return getattr(model, "booster_", None)


def _adapted(booster: Any) -> ArrayModel:
    framework = of_model(booster)
    if framework is None:
        raise InputError(f"the trees of a {type(booster).__name__} cannot be read.")
    return framework.adapt(booster)


def _nodes(tree: Any) -> tuple[np.ndarray, ...]:
    """Feature, limit, left, right and value of a fitted tree's nodes, as `Nodes` has them."""
    if hasattr(tree, "tree_"):
        own = tree.tree_
        feature, limit, value = own.feature, own.threshold, own.value[:, 0]
        return feature, at_most(limit), own.children_left, own.children_right, value
    own = tree.nodes
    if own["is_categorical"].any():
        raise InputError("the estimator has splits by category, which are not supported.")
    feature = np.where(own["is_leaf"], -1, own["feature_idx"])
    return feature, at_most(own["num_threshold"]), own["left"], own["right"], own["value"][:, None]


def _decides_alike(model: Any, features: int | None, columns: Sequence[str] | None, k: int) -> bool:
    """Whether an estimator's decision function, which does not round to 0 and 1, decides as its
    probabilities do."""
    both = _both(model, features, columns)
    if both is None:
        return False
    z, p = both
    if k == 2:
        z = np.stack([np.zeros_like(z), z], -1)
    return z.shape == (_TRIED, k) and np.array_equal(z.argmax(1), p.argmax(1))


def _gives_odds(model: Any, features: int | None, columns: Sequence[str] | None) -> bool:
    """Whether an estimator's decision function gives the log odds of its probability of class 1."""
    z, p = _both(model, features, columns) or (np.zeros(0), np.zeros((1, 2)))
    shapes = z.shape, p.shape
    return shapes == ((_TRIED,), (_TRIED, 2)) and np.allclose(1 / (1 + np.exp(-z)), p[:, 1])


def _both(
    model: Any, features: int | None, columns: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Decision function and probabilities of random rows, where an estimator gives both."""
    if features is None or not (
        hasattr(model, "decision_function") and hasattr(model, "predict_proba")
    ):
        return None
    x = table(np.random.default_rng(0).normal(size=(_TRIED, int(features))), columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows that are not its own
            z, p = (np.asarray(ask(x)) for ask in (model.decision_function, model.predict_proba))
    except Exception:  # noqa: BLE001  # whatever an estimator makes of rows that are not its own
        return None
    return z, p


def from_skops(path: Path, *, trust: bool = False) -> ArrayModel:
    """A fitted estimator of a `.skops` file, which cannot run code unless it is trusted.

    Raises:
        InputError: damaged, or it holds types that neither skops nor this list knows as safe.
    """
    io = need("skops.io", "sklearn", f"{path}")
    try:
        asked = io.get_untrusted_types(file=path)
        odd = [name for name in asked if name not in _OWN_TYPES]
        if odd and not trust:
            raise InputError(
                f"{path} holds types that may run code ({', '.join(odd[:3])}), so it was not "
                f"opened; give --trust if you trust its maker."
            )
        model = io.load(path, trusted=asked)
        _check_trees(model, path)
        return from_estimator(model)
    except InputError:
        raise
    except Exception as error:  # zip, json and whatever the estimator raises
        raise InputError(
            f"{path} cannot be opened as a skops file: {first_line(error)}."
        ) from error


def _check_trees(model: Any, path: Path) -> None:
    """Raises InputError: a tree leads out of its own nodes or features, where compiled code would
    read other memory."""
    parts, seen = [model], set[int]()
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (list, tuple)):
            parts += part
        elif isinstance(part, np.ndarray) and part.dtype == object:
            parts += part.ravel().tolist()
        elif isinstance(part, dict):
            parts += part.values()
        elif type(part).__module__.startswith("sklearn."):
            parts += getattr(part, "__dict__", {}).values()
            if type(part).__name__ == "Tree" and not _sound(part):
                raise InputError(
                    f"{path} is damaged: a tree of it leads to a node or a feature that is not "
                    "there."
                )


def _sound(tree: Any) -> bool:
    """Whether each inner node of a tree leads to later nodes, and asks for a feature that there
    is."""
    inner = tree.children_left != -1
    sides = np.stack([tree.children_left, tree.children_right])[:, inner]
    feature, at = tree.feature[inner], np.flatnonzero(inner)
    return bool(
        (sides > at).all()
        and (sides < tree.node_count).all()
        and ((feature >= 0) & (feature < tree.n_features)).all()
    )


def _matches(model: Any) -> bool:
    return hasattr(model, "predict") and not callable(model)


FRAMEWORK = Framework(
    "sklearn",
    _matches,
    from_estimator,
    suffixes=(".skops",),
    load=lambda path, *, trust, **_: from_skops(path, trust=trust),
    general=True,  # models of other libraries predict, too
)
