"""Certify: on which inputs is it proved that no legal change fools the model?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.arguments import checked
from holdfast.certification.ladder import Ladder
from holdfast.errors import InputError
from holdfast.evaluation.chunk import Progress
from holdfast.evaluation.estimate import Forecast
from holdfast.evaluation.evaluate import evaluate
from holdfast.evaluation.facts import Names
from holdfast.evaluation.protocols import NONE
from holdfast.runs.run import Run
from holdfast.targets import wrap
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.smoothing_noise import Smoothing, parse
from holdfast.threats.threat import Threat


@checked
def certify(
    model: Any,
    data: Any,
    threat: Threat | str,
    *,
    out: Path | str | None = None,
    samples: int | tuple[int, int] | None = None,
    seconds_per_row: float = Ladder.seconds_per_row,
    max_seconds: float | None = None,
    radius: bool = False,
    smooth: Smoothing | str | float | None = None,
    resume: bool = False,
    seed: int = 0,
    groups: Sequence[Any] | np.ndarray | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_estimate: Callable[[Forecast], None] | None = None,
    names: Names | None = None,
) -> Run:
    """Prove on which inputs a model stays right, and leave the evidence in a folder.

    No attack is run: rows that are right, not proved, and not found wrong by branch and bound have
    the status `robust`, which here says no more than that. `evaluate(..., certifier=Ladder())`
    attacks first, and gives both ends.

    Args:
        model: what `holdfast.wrap` takes, wrapped or not, whose graph torch can write down.
        data: as `evaluate`.
        threat: a norm and an eps, untargeted.
        out: the folder; None: a temporary one, gone with the returned object.
        samples: the first so many rows, or a (start, stop) range of them; None: all.
        seconds_per_row: as `Ladder`.
        max_seconds: of all rows; spread evenly over them.
        radius: as `Ladder`.
        smooth: certify the smoothed model in place of this one: `gaussian(0.25)` under l2,
            `uniform(0.25)` under l1, or the sigma alone; with the options `draws`, `first` and
            `alpha`. See `holdfast.targets.smoothing_noise`; any model will do.
        resume: go on with an unfinished run in `out`.
        seed: of the noise of a smoothed model; else nothing is drawn.
        groups: a text or whole number for each row of the data, whose accuracies are told apart.
        on_progress: called with the `Progress`, often.
        on_estimate: called with the `Forecast`: at most how long the proofs take.
        names: what the manifest calls things.

    Returns a run whose `metrics.certified_accuracy` is a lower bound of the robust accuracy.

    Raises:
        InputError: as `evaluate`; or there are no proofs of such a model, or under such a threat.
        SpecError: the threat cannot be understood.
    """
    if smooth is not None:
        model = smoothed(model, smooth, threat, seed, max_seconds)
    return evaluate(
        model,
        data,
        threat,
        protocol=NONE.name,
        certifier=Ladder(seconds_per_row, radius),
        out=out,
        samples=samples,
        max_seconds=max_seconds,
        resume=resume,
        seed=seed,
        groups=groups,
        on_progress=on_progress,
        on_estimate=on_estimate,
        names=names,
    )


def smoothed(
    model: Any,
    smooth: Smoothing | str | float,
    threat: Threat | str,
    seed: int,
    max_seconds: float | None = None,
) -> Smoothed:
    """The smoothed model of a model.

    Raises:
        InputError: a limit of time; or as `Smoothed`.
        SpecError: the smoothing or the threat cannot be understood.
    """
    if max_seconds is not None:
        raise InputError(
            f"max_seconds is {max_seconds:g}, but smoothing takes no limit of time: votes are all "
            "counted, or say nothing. Give fewer draws, or fewer rows (samples)."
        )
    return Smoothed(wrap(model), parse(smooth, threat), seed)
