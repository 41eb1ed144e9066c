"""holdfast report: write the page of a run again, from its folder alone."""

from __future__ import annotations

import typer

from holdfast.cli import options


def report(run: options.Folder) -> int:
    """Write report.html from the stored evidence, and show the summary."""
    from holdfast.report import html
    from holdfast.runs.store import read_manifest

    options.show(read_manifest(run))
    typer.echo(f"report: {html.write(run)}", err=True)
    return 0
