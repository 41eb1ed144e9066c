"""The command line in the test's own process, and what a test says of what it gave back."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli.main import app
from holdfast.runs import store
from holdfast.runs.manifest import Metrics
from holdfast.runs.run import Run


def holdfast(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def refused(*args: object) -> str:
    """The sentence that the command line refuses a mistake with."""
    done = holdfast(*args)
    text = "\n".join(
        line
        for line in done.stderr.strip().splitlines()
        if line and not line.startswith(("estimate: ", "checking the plan: "))
    )
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    assert text.endswith((".", "?", ")"))
    assert "Traceback" not in text
    return text


def names(text: str, *words: str) -> None:
    for word in words:
        assert word in text


def same_run(folder: Path | str, other: Path | str) -> None:
    """Two folders hold the same evidence and figures."""
    assert store.checksums(Path(folder)) == store.checksums(Path(other))
    assert Run(folder).samples.equals(Run(other).samples)
    assert Run(folder).metrics == Run(other).metrics


def assert_same_figures(a: Metrics, b: Metrics) -> None:
    """To the bit, but for calibration: it averages scores, which some machines' kernels round by
    the batch."""
    assert a.model_copy(update={"calibration": b.calibration}) == b
    assert a.calibration is not None
    assert b.calibration is not None
    ours, theirs = a.calibration.model_dump(), b.calibration.model_dump()
    assert all(ours[name] == pytest.approx(theirs[name], abs=1e-6) for name in ("ece", "aurc"))
