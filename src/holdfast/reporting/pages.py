"""The page of a run, of an audit, or of a hardening and its two runs."""

from __future__ import annotations

import csv
import os
import webbrowser
from pathlib import Path

from holdfast.arguments import checked
from holdfast.errors import InputError
from holdfast.reporting import audit_plan as of_steps
from holdfast.reporting import audited, html, paired
from holdfast.runs import audit_plan
from holdfast.runs.compare import compare
from holdfast.runs.run import Run, folder_of
from holdfast.runs.store import is_audit


@checked
def report(run: Run | os.PathLike[str] | str, *, open: bool = False) -> Path:
    """The page of a run, an audit or a hardening, report.html in its folder, written where it is
    not there yet.

    The folder of a run that was made without `out` goes with the `Run`, and the page with it.

    Args:
        run: the run, what `holdfast.harden` returns, or the folder of either.
        open: show it in the web browser.

    Raises:
        InputError: the folder holds no finished run or hardening, or a file of it is damaged.
    """
    folder = folder_of(run)
    path = folder / "report.html"
    if not path.exists():
        if audit_plan.is_here(folder):
            of_steps.write(folder)
        elif is_audit(folder):
            audited.write(folder)
        else:
            (write_hardening if is_hardening(folder) else html.write)(folder)
    if open:
        webbrowser.open(path.resolve().as_uri())
    return path


def is_hardening(folder: Path) -> bool:
    """Whether it is the folder that a hardening leaves."""
    return (folder / "harden.json").exists()


def write_hardening(folder: Path) -> Path:
    """Write the page of a hardening, with before and after side by side, and those of the two runs,
    to which it links.

    Raises:
        InputError: the hardening is unfinished, or a file of it is damaged.
    """
    found = compare(folder / "before", folder / "after")
    for run in ("before", "after"):
        html.write(folder / run)
    try:
        with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
            epochs = [(float(row["clean"]), float(row["robust"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read {folder / 'log.csv'}: {error}.") from error
    return paired.write(folder / "report.html", found, epochs)
