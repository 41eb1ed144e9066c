"""What several commands write: folders, the terminal, a bar of progress."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.texts import exists
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.evaluation.chunk import Progress
    from holdfast.runs.manifest import Manifest


def check_new(out: Path, suffix: str, what: str) -> None:
    """Refuse an `--out` that is there already, or of another kind."""
    if exists(out):
        raise InputError(f"{out} exists; choose another --out.")
    if out.suffix != suffix:
        raise InputError(f"--out is {out}; {what}.")


def fresh_folder(model: str, what: str) -> Path:
    """A folder under runs/ that does not exist yet, named for what it will hold."""
    stem = Path(model.rpartition(":")[0] or model).stem
    base = Path("runs") / re.sub(r"[^\w.-]", "-", f"{stem}-{what}").strip("-")
    at, number = base, 2
    while at.exists():
        at, number = base.with_name(f"{base.name}-{number}"), number + 1
    return at


def show(manifest: Manifest) -> None:
    """The summary of a run, on stdout."""
    from rich.console import Console

    from holdfast.report.terminal import summary

    Console().print(summary(manifest))


def command_line() -> str:
    """What was typed."""
    from holdfast.data.files import printable

    return printable(shlex.join(["holdfast", *sys.argv[1:]]))


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr: share done, survivors of the present chunk, the trial at work, time spent
    and left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(24),
        TaskProgressColumn(show_speed=True),
        TextColumn("{task.fields[live]} standing"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, live="-")
        yield lambda p: bar.update(task, completed=p.share, description=p.trial, live=f"{p.live:,}")
