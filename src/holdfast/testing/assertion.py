"""An assertion that a model is robust, for a suite of tests."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import Any

from holdfast.errors import InputError
from holdfast.evaluation.evaluate import evaluate
from holdfast.runs.manifest import Manifest
from holdfast.runs.run import Run
from holdfast.threats import spatial
from holdfast.threats.threat import Threat, as_threat


def assert_robust(
    model: Any,
    data: Any,
    threat: Threat | str,
    *,
    at_least: float,
    protocol: str = "quick",
    samples: int | tuple[int, int] | None = None,
    seed: int = 0,
    out: Path | str | None = None,
) -> Run:
    """Hold when the robust accuracy of a model is at least so high, and give its run.

    What is compared is the **low end** of the 95 % interval: a test that passes has shown its
    figure, and is no matter of which rows were drawn. On 100 rows the low end lies about 0.1 below
    the figure, on 1000 about 0.03. A figure with the verdict `unreliable` never holds.

    Args:
        model: what `holdfast.evaluate` takes, its text or path included.
        data, threat, protocol, samples, seed: as in `holdfast.evaluate`. The threat needs an eps.
        at_least: the robust accuracy to show, above 0 and at most 1.
        out: an empty folder for the evidence, such as `tmp_path / "run"`; None: it goes with the
            run that is returned.

    Raises:
        AssertionError: it is not shown; a sentence with the figure, the attack that broke most, and
            the call that measures it again.
        InputError, SpecError, AccessError: as `holdfast.evaluate`.

    Example:
        >>> def test_the_model_withstands_noise():
        ...     assert_robust(load_model(), "test.npz", "linf(8/255)", at_least=0.4, samples=500)
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    a_number = isinstance(at_least, numbers.Real) and not isinstance(at_least, bool)
    if not a_number or not 0 < at_least <= 1:
        raise InputError(
            f"at_least is {at_least!r}; expected a share above 0 and at most 1, such as 0.6."
        )
    movement = isinstance(threat, str) and spatial.parse(threat) is not None
    if not movement and not as_threat(threat).bounded:
        raise InputError(
            f"{threat} has an eps of inf, where any model breaks; give the threat an eps."
        )
    asked = {"protocol": protocol, "samples": samples, "seed": seed}
    run = evaluate(model, data, threat, **asked, out=out)
    share, low = run.robust_accuracy, run.robust_accuracy.low or 0.0
    text, believed = run.manifest.asked, run.verdict.status != "unreliable"
    if low >= at_least and believed:
        return run
    why = f", below at_least={at_least:g}"
    if share.value is not None and share.value >= at_least:
        why = f", so that at_least={at_least:g} is not shown on so few rows"
    if not believed:
        why = f", which cannot be believed ({run.verdict.reason.rstrip('.')})"
    again = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    raise AssertionError(
        f"robust accuracy is {_decimal(share.value)} (95 % interval {_decimal(low)} to "
        f"{_decimal(share.high)}, {share.n:,} rows) under {text}{why}; {_strongest(run.manifest)}; "
        f"to see it again: holdfast.evaluate(model, data, {text!r}, {again})."
    )


def _strongest(manifest: Manifest) -> str:
    """The attack that broke most, in words."""
    most = max(manifest.trials, key=lambda trial: trial.broken, default=None)
    if most is None or most.broken == 0:
        return "no attack broke a row"
    return f"{most.spec} broke most, {most.broken:,} of {most.attacked:,} rows"


def _decimal(share: float | None) -> str:
    return "undefined" if share is None else f"{share:.3f}"
