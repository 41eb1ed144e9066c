"""holdfast merge: shards of one evaluation become one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import options


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of disjoint rows.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="The folder of the merged run.")],
) -> int:
    """Join runs made with --samples start:stop into the run that one process would have written."""
    from holdfast.evaluate.merge import merge as join
    from holdfast.report import html

    options.show(join(runs, out))
    typer.echo(f"report: {html.write(out)}", err=True)
    return 0
