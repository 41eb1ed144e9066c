"""Any model as a target: `wrap` picks the adapter by the model's kind."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from holdfast.arguments import checked
from holdfast.errors import InputError, first_line
from holdfast.spec import write
from holdfast.targets import loading, wrappers
from holdfast.targets.defences.detectors import Detector
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.frameworks.pytorch.target import TorchTarget
from holdfast.targets.further_inputs import further, joined
from holdfast.targets.own_preprocessing import Own
from holdfast.targets.preprocess import BGR, Normalize, Preprocess, Resize
from holdfast.targets.registry import adapted
from holdfast.targets.target import Bounds, Target, copied
from holdfast.targets.threshold import Threshold
from holdfast.tasks import TaskWithTruth
from holdfast.tasks import parse as parse_task


@checked
def load(spec: str, *, arch: str | None = None, trust: bool = False, **options: Any) -> Target:
    """The model that a command line names, wrapped: `loading.load`, then `wrap` with the
    options.

    `output` says which of several outputs are the scores.

    Raises:
        InputError: missing, damaged or dangerous file, wrong architecture, or weights that do not
            fit it.
    """
    return wrap(loading.load(spec, arch=arch, trust=trust, output=options.get("output")), **options)


@checked
def wrap(
    model: Any,
    *,
    bounds: Bounds | tuple[Any, Any] = (0.0, 1.0),
    preprocess: Callable[[Any], Any] | Sequence[Any] = (),  # `Own.of` judges each
    framework: str | None = None,
    gives: str | None = None,
    draws: int | None = None,
    inputs: Sequence[Sequence[int]] | None = None,
    attacked: int = 0,
    shape: Sequence[int] | None = None,
    probabilities: bool | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    layout: str | None = None,
    output: str | int | None = None,
    classes: int | None = None,
    task: str | TaskWithTruth | None = None,
    precision: str = "float32",
    compile: bool = False,
    threshold: float | None = None,
) -> Target:
    """Any model as a target. The model itself is never changed.

    Args:
        model: a torch module, a Keras model on any backend, a fitted estimator of scikit-learn's
            kind or of CatBoost, a `Booster` of XGBoost or LightGBM, an onnx ModelProto, an
            InferenceSession of onnxruntime, or a callable of one array [n, *shape] of torch,
            TensorFlow, JAX or numpy; a path or text that `load` takes; a Target, which is returned
            as it is, or as a copy with the `probabilities`, `task` and `threshold` that are given.
        bounds: the range of raw inputs, two numbers or two arrays [*shape]; eps is in the same
            units.
        preprocess: what happens to raw inputs before the model, one step or several in order:
            Normalize, Resize, BGR, a defence, or a function or module of your own with a name (see
            `holdfast.targets.own_preprocessing.Own`).
        framework: the name of one of `holdfast.targets.registry.frameworks()`, where the type of
            the model does not tell. A callable is otherwise tried with the arrays of each.
        gives: what a callable of numpy arrays gives: `scores`, or `labels`, which also need
            `classes`.
        draws: of a randomised model, whose mean is then attacked and judged; default: 20 where a
            defence of `preprocess` is random, else 1.
        inputs: shapes of the inputs of a model that takes several, in their order. Data then are
            ((x, x2, ...), y): the attacked one, and the others in their order.
        attacked: the place of the one that may change.
        shape: of one raw input, without the batch axis; default: learnt from the first inputs.
        probabilities: whether the model gives probabilities; default: what the model itself says.
        batch_size: rows of one pass; on a CPU fewer, where they would keep more than 1 GiB for
            their gradients.
        device: where to run; default: where the parameters are.
        layout: of raw images, `nchw` or `nhwc`.
        output: which of several outputs are the scores, by name or place.
        classes: how many there are, for a model that gives labels.
        task: `classes`, `multilabel` or `regression(tolerance=0.1)`.
        precision: of gradients: `float32` or `bfloat16`.
        compile: compile what gradients are taken of.
        threshold: of a model of two classes, the probability of class 1 from which on it decides
            for class 1; default: a half.

    `TorchTarget` says more of the options from `shape` on.

    Raises:
        InputError: no adapter takes a model of this kind.
    """
    if isinstance(model, (str, os.PathLike)):
        model = loading.load(os.fspath(model), output=output)
    if isinstance(model, Target):
        given = {
            "preprocess": preprocess,
            "framework": framework,
            "gives": gives,
            "output": output,
        }
        refused = [name for name, value in given.items() if value]
        return with_threshold(
            _wrapped_again(model, refused, layout, probabilities, task), threshold
        )
    steps, device, name = _steps(preprocess), device_of(device), type(model).__name__
    if draws is None and any(isinstance(step, Defence) and step.random for step in steps):
        draws = 20
    others = None
    if inputs is not None:
        if steps:
            raise InputError(
                "a model of several inputs takes no preprocess, which would not know which; put it "
                "into the model."
            )
        shapes = [tuple(side) for side in inputs]
        model = joined(model, shapes, attacked)
        others, shape = further(shapes, attacked), shapes[attacked]
    target = TorchTarget(
        adapted(model, framework, output=output, gives=gives, classes=classes),
        shape=shape,
        bounds=bounds,
        preprocess=steps,
        probabilities=probabilities,
        batch_size=batch_size,
        device=device,
        layout=layout,
        output=output,
        classes=classes,
        task=task,
        further=others,
        attacked=attacked,
        precision=precision,
        compile=compile,
    )
    target.name = name
    if draws not in (None, 1):
        target = wrappers.ExpectationOverTransformation(target, draws)
    return with_threshold(target, threshold)


def with_threshold(target: Target, threshold: float | None) -> Target:
    """The target, which decides for class 1 from this probability on.

    Raises:
        InputError: it has another threshold, or cannot have one; see `Threshold`.
    """
    if threshold is None or getattr(target, "threshold", None) == threshold:
        return target
    if isinstance(target, Threshold):
        raise InputError(
            f"the model has the threshold {target.threshold:g} already; say another where it is "
            "wrapped."
        )
    return Threshold(target, threshold)


def _wrapped_again(
    target: Target,
    refused: list[str],
    layout: str | None,
    probabilities: bool | None,
    task: str | TaskWithTruth | None,
) -> Target:
    """A target, or a copy of it with what else is said; the one that was handed in stays as it
    is."""
    if target.shape is not None and layout not in (None, target.inputs.layout):
        refused.append("layout")
    if target.head.said and probabilities not in (None, target.head.probabilities):
        refused.append("probabilities")
    if refused:
        raise InputError(
            f"{' and '.join(refused)} cannot be given for a {type(target).__name__}, which is "
            f"wrapped already; say it where the model is wrapped, or in the endpoint's config."
        )
    if probabilities is None and task is None:
        return target
    own = copied(target)
    if probabilities is not None:
        own.head = replace(own.head, probabilities=probabilities, said=True)
    truth_task = parse_task(task) if isinstance(task, str) else task or target.head.truth_task
    own.head = replace(own.head, truth_task=truth_task)
    return own


def device_of(device: str | torch.device | None) -> torch.device | None:
    """The device of that name.

    Raises:
        InputError: there is none.
    """
    if device is None:
        return None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # one of an accelerator that is not there
        raise InputError(
            f"device is {str(device)!r}, which torch does not take: {first_line(error)}."
        ) from None
    return torch.device(device)


def _steps(preprocess: Callable[[Any], Any] | Sequence[Callable[[Any], Any]]) -> list[Preprocess]:
    """Preprocessing as steps, in their order.

    Raises:
        InputError: an order in which a defence would not see raw images, or a detector without a
            limit.
    """
    if isinstance(preprocess, Callable):
        preprocess = (preprocess,)
    known = (BGR, Normalize, Resize, Defence, Own)
    steps: list[Preprocess] = [
        step if isinstance(step, known) else Own.of(step) for step in preprocess
    ]
    named = [step for step in steps if isinstance(step, (Defence, Normalize))]
    for first, then in pairwise(named):
        if isinstance(first, Normalize) and isinstance(then, Defence):
            raise InputError(
                f"{write(then)} comes after normalize, but works on raw images; name it first."
            )
    for first, then in pairwise(steps):
        if isinstance(then, Detector) and not isinstance(first, Detector):
            raise InputError(
                f"{write(then)} comes after {write(first)}, but its limit is of raw images; name "
                "it first."
            )
    for step in steps:
        if isinstance(step, Detector) and step.limit == math.inf:
            raise InputError(
                f"{write(step)} refuses nothing; give its limit, or have it `fitted` to clean "
                "inputs."
            )
    return steps
