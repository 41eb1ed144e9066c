"""Any model as a target: `wrap` picks the adapter by the model's kind."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from holdfast.errors import InputError
from holdfast.spec import write
from holdfast.targets import loading, wrappers
from holdfast.targets.defences.detectors import Detector
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.frameworks.pytorch.target import TorchTarget
from holdfast.targets.own_preprocessing import Own
from holdfast.targets.preprocess import Normalize, Preprocess, Resize
from holdfast.targets.registry import adopt
from holdfast.targets.several_inputs import further, joined
from holdfast.targets.target import Bounds, Target
from holdfast.tasks import parse as parse_task


def load(spec: str, *, arch: str | None = None, trust: bool = False, **options: Any) -> Target:
    """The model that a command line names, behind the door: `loading.load`, then `wrap` with the
    options.

    `output` says which of several outputs are the scores.

    Raises:
        InputError: missing, damaged or dangerous file, wrong architecture, or weights that do not
            fit it.
    """
    return wrap(loading.load(spec, arch=arch, trust=trust, output=options.get("output")), **options)


def wrap(
    model: Any,
    *,
    bounds: Bounds | tuple[Any, Any] = (0.0, 1.0),
    preprocess: Callable[[Any], Any] | Sequence[Callable[[Any], Any]] = (),
    framework: str | None = None,
    gives: str | None = None,
    draws: int | None = None,
    inputs: Sequence[Sequence[int]] | None = None,
    attacked: int = 0,
    **options: Any,
) -> Target:
    """Put a model behind the door: picks the adapter by the model's kind.

    Args:
        model: a torch module, a Keras model on any backend, a fitted estimator of scikit-learn's
            kind, a `Booster` of XGBoost or LightGBM, an onnx ModelProto, an InferenceSession of
            onnxruntime, or a callable of one array [n, *shape] of torch, TensorFlow, JAX or numpy;
            a path or text that `load` takes; a Target is returned as it is, or, with a task or
            probabilities, as a copy that has them.
        bounds: the range of raw inputs, two numbers or two arrays [*shape]; eps is in the same
            units.
        preprocess: what happens to raw inputs before the model, one step or several in order:
            Normalize, Resize, a defence, or a function or module of your own that has a name (see
            `holdfast.targets.own_preprocessing.Own`).
        framework: torch, keras, tensorflow, jax, onnx, numpy or sklearn, where the type of the
            model does not tell. A callable is otherwise tried with the arrays of each.
        gives: what a callable of numpy arrays gives: `scores`, or `labels`, which also need
            `classes`.
        draws: of a randomised model, whose mean is then attacked and judged; default: 20 where a
            defence of `preprocess` is random, else 1.
        inputs: shapes of the inputs of a model that takes several, in their order. Data then are
            ((x, x2, ...), y): the attacked one, and the others in their order.
        attacked: the place of the one that may change.
        options: see `TorchTarget`.

    Raises:
        InputError: no adapter takes a model of this kind.
    """
    if isinstance(model, (str, os.PathLike)):
        model = loading.load(os.fspath(model), output=options.get("output"))
    if isinstance(model, Target):
        idle = {
            "preprocess": preprocess,
            "framework": framework,
            "gives": gives,
            "output": options.get("output"),
        }
        said = [name for name, value in idle.items() if value]
        if model.shape is not None and options.get("layout") not in (None, model.layout):
            said.append("layout")
        if model.said and options.get("probabilities") not in (None, model.probabilities):
            said.append("probabilities")
        if said:
            raise InputError(
                f"{' and '.join(said)} cannot be given for a {type(model).__name__}, which is "
                f"wrapped already; say it where the model is wrapped, or in the endpoint's config."
            )
        probabilities, task = options.get("probabilities"), options.get("task")
        if probabilities is None and task is None:
            return model
        model = model.copied()
        if probabilities is not None:
            model.probabilities, model.said = probabilities, True
        model.graded = parse_task(task) if isinstance(task, str) else task or model.graded
        return model
    given = (preprocess,) if isinstance(preprocess, Callable) else preprocess
    known = (Normalize, Resize, Defence, Own)
    steps: list[Preprocess] = [step if isinstance(step, known) else Own.of(step) for step in given]
    names = [step for step in steps if isinstance(step, (Defence, Normalize))]
    late = [b for a, b in pairwise(names) if isinstance(a, Normalize) and isinstance(b, Defence)]
    if late:
        raise InputError(
            f"{write(late[0])} stands behind normalize, but works on raw images; name it first."
        )
    behind = [
        (a, b)
        for a, b in pairwise(steps)
        if isinstance(b, Detector) and not isinstance(a, Detector)
    ]
    if behind:
        a, b = behind[0]
        raise InputError(
            f"{write(b)} stands behind {write(a)}, but its limit is of raw images; name it first."
        )
    idle = [step for step in steps if isinstance(step, Detector) and step.limit == math.inf]
    if idle:
        raise InputError(
            f"{write(idle[0])} refuses nothing; give its limit, or have it `fitted` to clean "
            "inputs."
        )
    if draws is None:
        draws = 20 if any(isinstance(step, Defence) and step.random for step in steps) else 1
    if inputs is not None:
        if steps:
            raise InputError(
                "a model of several inputs takes no preprocess, which would not know which; put it "
                "into the model."
            )
        shapes = [tuple(shape) for shape in inputs]
        model = joined(model, shapes, attacked)
        options |= {
            "further": further(shapes, attacked),
            "attacked": attacked,
            "shape": shapes[attacked],
        }
    own = {"output": options.get("output"), "gives": gives, "classes": options.get("classes")}
    target = TorchTarget(adopt(model, framework, **own), bounds=bounds, preprocess=steps, **options)
    return target if draws == 1 else wrappers.ExpectationOverTransformation(target, draws)
