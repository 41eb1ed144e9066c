"""holdfast view: runs as pages in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.errors import InputError


def view(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or one run.", metavar="FOLDER")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine; 0: a free one.", metavar="PORT")
    ] = 0,
    originals: Annotated[
        str | None,
        typer.Option(
            "--data", help="The data that were measured: shows originals.", metavar="DATA"
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write the pages there, as files, and end.", metavar="DIR"),
    ] = None,
) -> int:
    """Show runs in a browser: list, pages of runs, samples one by one. It serves this machine
    alone, until Ctrl-C."""
    import secrets

    from holdfast.view.index import Index
    from holdfast.view.originals import Originals
    from holdfast.view.site import Site

    site = Site(Index(runs), originals=Originals(originals) if originals else None)
    if bundle is not None:
        from holdfast.view.bundle import write

        pages = write(site, bundle)
        typer.echo(f"{pages:,} pages: {bundle / 'index.html'}")
        return 0
    try:
        from holdfast.view import server
    except ModuleNotFoundError as error:
        raise InputError(
            f"holdfast view needs {error.name}, which is not installed: pip install "
            "'holdfast[view]'."
        ) from error
    held, token = server.bound(port), secrets.token_urlsafe(24)
    typer.echo(f"http://{server.HOST}:{held.getsockname()[1]}/?token={token}")
    typer.echo("Open this link in a browser on this machine; Ctrl-C ends.", err=True)
    server.serve(site, held, token)
    return 0
