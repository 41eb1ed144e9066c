"""holdfast compare: two runs, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import writing
from holdfast.errors import InputError


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders; each is compared with the first.", metavar="RUN"),
    ],
    page: Annotated[
        Path | None,
        typer.Option(help="Write the comparison of two runs there, too, as .html.", metavar="FILE"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the comparisons as JSON, one a line.")
    ] = False,
) -> int:
    """Compare runs of the same data and threat, paired by sample: intervals, McNemar's test,
    classes."""
    if len(runs) < 2:
        raise InputError(f"one run was given, {runs[0]}; a comparison takes two or more.")
    if page is not None and (len(runs) > 2 or page.suffix != ".html" or page.exists()):
        raise InputError(f"--page {page} takes two runs, and a name of a new .html file.")
    from holdfast.report import paired
    from holdfast.runs.compare import compare as pair
    from holdfast.runs.compare import spread

    for found in [pair(runs[0], other) for other in runs[1:]]:
        if json:
            typer.echo(found.model_dump_json())
        else:
            writing.show(paired.summary(found))
        if page is not None:
            typer.echo(f"page: {paired.write(page, found)}", err=True)
    if (found := spread(runs)) is not None:
        typer.echo(found.model_dump_json() if json else paired.seeds(found))
    return 0
