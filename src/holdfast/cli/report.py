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
        Path | None, typer.Option(help="JUnit XML: gates, findings and verdict as tests.")
    ] = None,
    sarif: Annotated[Path | None, typer.Option(help="SARIF 2.1.0 for code scanning.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A summary in Markdown; - for stdout.")
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(help="A model card in Markdown; - for stdout.")
    ] = None,
    gate: Annotated[list[str], typer.Option("--gate", help=options.GATE)] = [],  # noqa: B006
) -> int:
    """Write report.html from the stored evidence, show the summary, and write other forms that are
    asked for."""
    from holdfast.report import html
    from holdfast.report import junit as tests
    from holdfast.report import markdown as pages
    from holdfast.report import sarif as scan
    from holdfast.runs import gates
    from holdfast.runs.store import read_manifest, untrusted, write_bytes

    wanted = [gates.parse(text) for text in gate]
    manifest = read_manifest(run)
    judged = gates.judge(wanted, manifest)
    forms = (
        (junit, lambda: tests.junit(manifest, judged)),
        (sarif, lambda: scan.sarif(manifest, judged)),
        (markdown, lambda: pages.summary(manifest, judged).encode()),
        (model_card, lambda: pages.card(manifest).encode()),
    )
    with untrusted(run):
        made = [(path, form()) for path, form in forms if path is not None]
        streamed = [content.decode() for path, content in made if path == Path("-")]
        if streamed:
            typer.echo("\n".join(streamed), nl=False)
        else:
            writing.show(manifest)
    typer.echo(f"report: {html.write(run)}", err=True)
    for path, content in made:
        if path != Path("-"):
            write_bytes(path, content)
            typer.echo(f"wrote {path}", err=True)
    for outcome in judged:
        if not outcome.held:
            typer.echo(f"gate not held: {outcome.sentence}.", err=True)
    return int(not all(outcome.held for outcome in judged))
