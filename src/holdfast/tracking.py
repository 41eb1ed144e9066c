"""The figures of a run, or of each epoch of a training, in MLflow or Weights & Biases.

Example:
    >>> hard = holdfast.harden(model, data, "linf(0.1)", on_epoch=log_to_mlflow)
    >>> log_to_mlflow(hard.before, prefix="before.")
    >>> log_to_mlflow(hard.after, prefix="after.")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from holdfast.errors import InputError
from holdfast.intervals import Interval
from holdfast.runs.manifest import Pair
from holdfast.runs.run import Run
from holdfast.targets.adapter import need

if TYPE_CHECKING:
    from holdfast.training.state import Epoch


def log_to_mlflow(what: Run | Epoch, prefix: str = "") -> None:
    """Log figures to the active run of MLflow; where there is none, MLflow starts one.

    Args:
        what: a run, whose threat, protocol and verdict become tags; or an epoch, as `on_epoch` of
            `holdfast.harden` is given it, whose numbers are logged at its step.
        prefix: put before each name, to keep several runs apart.

    Raises:
        InputError: MLflow is not installed.
    """
    mlflow = need("mlflow", "mlflow", "log_to_mlflow")
    if isinstance(what, Run):
        mlflow.log_metrics(_named(figures(what), prefix))
        mlflow.set_tags(_named(settings(what), prefix))
    else:
        mlflow.log_metrics(_named(_numbers(what), prefix), step=what.epoch)


def log_to_wandb(what: Run | Epoch, prefix: str = "") -> None:
    """Log figures to the run of Weights & Biases that `wandb.init` began.

    Args:
        what: a run, whose figures, threat, protocol and verdict go into the summary; or an epoch,
            as `on_epoch` of `holdfast.harden` is given it, whose numbers are logged at its step.
        prefix: put before each name, to keep several runs apart.

    Raises:
        InputError: wandb is not installed, or no run of it has begun.
    """
    wandb = need("wandb", "wandb", "log_to_wandb")
    if wandb.run is None:
        raise InputError("log_to_wandb needs a run of Weights & Biases; call wandb.init() first.")
    if isinstance(what, Run):
        wandb.run.summary.update(_named({**figures(what), **settings(what)}, prefix))
    else:
        wandb.log(_named(_numbers(what), prefix), step=what.epoch)


def figures(run: Run) -> dict[str, float]:
    """The figures of a run by the names that gates use, such as `robust_accuracy.low`; those that
    are undefined are left out."""
    found: dict[str, float | None] = {}
    for name, value in run.metrics:
        if isinstance(value, Interval):
            found |= {name: value.value, f"{name}.low": value.low, f"{name}.high": value.high}
        elif isinstance(value, Pair):
            found |= {f"{name}.clean": value.clean, f"{name}.attacked": value.attacked}
    return {name: v for name, v in found.items() if v is not None and math.isfinite(v)}


def settings(run: Run) -> dict[str, str]:
    """What was asked, and whether the answer can be believed."""
    protocol = run.manifest.protocol
    return {
        "threat": run.manifest.asked,
        "protocol": f"{protocol.name} version {protocol.version}",
        "verdict": run.verdict.status,
    }


def _numbers(epoch: Epoch) -> dict[str, float]:
    """The numbers of an epoch that are defined, without its own."""
    return {
        name: value
        for name, value in vars(epoch).items()
        if name != "epoch" and isinstance(value, (int, float)) and math.isfinite(value)
    }


def _named(values: Mapping[str, float | str], prefix: str) -> dict[str, float | str]:
    return {prefix + name: value for name, value in values.items()}
