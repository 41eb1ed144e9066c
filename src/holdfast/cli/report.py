"""holdfast report: what is read of a run, written from its folder alone: the page, and what build
servers take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import options, writing


def report(
    run: options.Folder,
    junit: Annotated[
        Path | None,
        typer.Option(help="JUnit XML: gates, findings and verdict as tests.", metavar="FILE"),
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option(help="SARIF 2.1.0 for code scanning.", metavar="FILE")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A summary in Markdown; - for stdout.", metavar="FILE")
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(help="A model card in Markdown; - for stdout.", metavar="FILE")
    ] = None,
    gate: options.Gate = None,
) -> int:
    """Write report.html from the stored evidence, show the summary, and write other forms that are
    asked for."""
    from holdfast.report import html, terminal
    from holdfast.report import junit as tests
    from holdfast.report import markdown as pages
    from holdfast.report import sarif as scan
    from holdfast.runs import gates
    from holdfast.runs.store import read_manifest, untrusted, write_bytes

    wanted = [gates.parse(text) for text in gate or ()]
    manifest = read_manifest(run)
    judged = gates.judge(wanted, manifest)
    makers = (
        (junit, lambda: tests.junit(manifest, judged)),
        (sarif, lambda: scan.sarif(manifest, judged)),
        (markdown, lambda: pages.summary(manifest, judged).encode()),
        (model_card, lambda: pages.card(manifest).encode()),
    )
    with untrusted(run):
        made = [(path, make()) for path, make in makers if path is not None]
        streamed = [content.decode() for path, content in made if path == Path("-")]
        if streamed:
            typer.echo("\n".join(streamed), nl=False)
        else:
            writing.show(terminal.summary(manifest))
    typer.echo(f"report: {html.write(run)}", err=True)
    for path, content in made:
        if path != Path("-"):
            write_bytes(path, content)
            typer.echo(f"wrote {path}", err=True)
    return writing.code_of(judged)
