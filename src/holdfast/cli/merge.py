"""holdfast merge: shards of one evaluation become one run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import writing
from holdfast.errors import HoldfastError


def merge(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders of disjoint rows.", metavar="RUN...")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the merged run.")],
) -> int:
    """Join runs made with --samples start:stop into the run that one process would have written."""
    from holdfast.evaluation.merge import merge as join
    from holdfast.report import html
    from holdfast.runs.store import untrusted

    fresh = not out.exists()
    try:
        with untrusted(out):
            writing.show(join(runs, out))
            typer.echo(f"report: {html.write(out)}", err=True)
    except HoldfastError:
        if fresh:
            shutil.rmtree(out, ignore_errors=True)  # so that nothing is in the way of the next try
        raise
    return 0
