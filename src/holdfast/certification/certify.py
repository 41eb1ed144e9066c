"""Certify: on which inputs is it proved that no legal change fools the model?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.arguments import checked
from holdfast.certification.ladder import Ladder
from holdfast.evaluation.chunk import Progress
from holdfast.evaluation.estimate import Forecast
from holdfast.evaluation.evaluate import evaluate
from holdfast.evaluation.facts import Names
from holdfast.evaluation.protocols import NONE
from holdfast.runs.run import Run
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
        resume: go on with an unfinished run in `out`.
        seed: of the run; nothing is drawn.
        groups: a text or whole number for each row of the data, whose accuracies are told apart.
        on_progress: called with the `Progress`, often.
        on_estimate: called with the `Forecast`: at most how long the proofs take.
        names: what the manifest calls things.

    Returns a run whose `metrics.certified_accuracy` is a lower bound of the robust accuracy.

    Raises:
        InputError: as `evaluate`; or there are no proofs of such a model, or under such a threat.
        SpecError: the threat cannot be understood.
    """
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
