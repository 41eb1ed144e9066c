"""What the outputs of a model mean: one file a kind, and the texts that name them."""

from __future__ import annotations

from collections.abc import Callable

from holdfast import spec
from holdfast.tasks.detection import Detection
from holdfast.tasks.form import Form, side_by_side
from holdfast.tasks.multilabel import MultiLabel
from holdfast.tasks.regression import Regression
from holdfast.tasks.segmentation import Segmentation
from holdfast.tasks.task import Classes, TaskWithTruth, odds, silent

TASKS: dict[str, Callable[..., TaskWithTruth]] = {
    "detection": Detection,
    "multilabel": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
}


def parse(text: str | None) -> TaskWithTruth | None:
    """The task that `multilabel`, `regression(tolerance=0.1)` or `detection()` names; None for
    `classes`, and where none is said.

    Raises:
        SpecError: there is no head of this name, or an option is wrong.
    """
    if text is None or text.strip() == "classes":
        return None
    return spec.build(text, TASKS, "task")


def runs_code(text: str) -> bool:
    """Whether a task names a function of the user's own, which is run to find out what is right."""
    return ":" in str(spec.call(text, "task")[2].get("head", ""))


__all__ = [
    "TASKS", "Classes", "Detection", "Form", "MultiLabel", "Regression", "Segmentation",
    "TaskWithTruth", "odds", "parse", "runs_code", "side_by_side", "silent",
]  # fmt: skip
