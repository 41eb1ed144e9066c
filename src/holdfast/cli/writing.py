"""What several commands write: folders, the terminal, a bar of progress."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli.texts import exists
from holdfast.errors import InputError
from holdfast.runs.manifest import CONTRADICTION

if TYPE_CHECKING:
    from holdfast.evaluation.chunk import Progress
    from holdfast.evaluation.estimate import Forecast
    from holdfast.runs.gates import Outcome
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


def write_npz(out: Path, **columns: Any) -> None:
    """Save arrays in one file."""
    import numpy as np

    from holdfast.runs.store import write_bytes

    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    write_bytes(out, buffer.getvalue())


def show(summary: Any) -> None:
    """A summary that rich draws, on stdout."""
    from rich.console import Console

    Console().print(summary)


def code_of(outcomes: Sequence[Outcome]) -> int:
    """The exit code: 1, with a sentence for each on stderr, where a gate does not hold."""
    missed = [outcome for outcome in outcomes if not outcome.held]
    for outcome in missed:
        typer.echo(f"gate not held: {outcome.sentence}.", err=True)
    return int(bool(missed))


def contradicted(manifest: Manifest) -> bool:
    """Whether a row was proved and broken; it is named on stderr."""
    found = [f.text for f in manifest.verdict.findings if f.check == CONTRADICTION]
    for text in found:
        typer.echo(f"contradiction: {text}", err=True)
    return bool(found)


def echo_line(said: str, note: str) -> None:
    """One line of a training on stderr, and what is to be noted of it."""
    typer.echo(said, err=True)
    if note:
        typer.echo(f"  {note}", err=True)


def command_line() -> str:
    """What was typed."""
    from holdfast.data.files import printable

    return printable(shlex.join(["holdfast", *sys.argv[1:]]))


within = False  # whether the work is a part of another one, which says how to go on


@contextmanager
def resumable(folder: Path | str, *, kept: bool = True) -> Iterator[Path]:
    """Work on a run folder, or on a copy of one at a URL, which goes on where it was interrupted;
    where nothing is kept, it begins anew."""
    from holdfast.runs.remote import mirrored

    try:
        with mirrored(folder) as here:
            yield here
    except KeyboardInterrupt:
        if within:
            raise
        how = f"go on with the same command and --out {folder} --resume."
        typer.echo(f"interrupted; {how if kept else 'nothing was kept.'}", err=True)
        raise typer.Exit(130) from None


# of a worker: who started it draws the bar, and says the estimate if it asks for one
listener: Callable[[Progress], None] | None = None
estimated: Callable[[Forecast], None] | None = None


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr: share done, survivors of the present chunk, the trial at work, time spent
    and left."""
    if listener is not None:
        yield listener
        return
    from rich import progress as parts
    from rich.console import Console

    columns = (
        parts.BarColumn(24),
        parts.TaskProgressColumn(show_speed=True),
        parts.TextColumn("{task.fields[live]}"),
        parts.TimeElapsedColumn(),
        parts.TextColumn("left"),
        parts.TimeRemainingColumn(),
        parts.TextColumn("{task.description}", markup=False),
    )
    with parts.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, live="-")
        yield lambda p: bar.update(
            task, completed=p.share, description=p.trial, live=f"{p.live:,} {p.state}"
        )
