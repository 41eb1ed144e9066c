"""holdfast: the commands, and what every one of them does with a mistake.

Exit codes: 0 done and gates held; 1 a gate or a verification did not hold; 2 bad input (one
sentence on stderr); 3 verdict `unreliable` under --strict, or a row
both proved and broken; 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast import memory, quiet
from holdfast.cli import (
    attack,
    audit,
    certify,
    demo,
    evaluate,
    generate,
    harden,
    listing,
    runs,
    schema,
    train,
    view,
)
from holdfast.cli.command import Action, Command, guarded, with_shared_options
from holdfast.cli.workers import with_workers
from holdfast.version import VERSION

COMMANDS: dict[str, Action] = {
    "evaluate": evaluate.evaluate,
    "attack": attack.attack,
    "certify": certify.certify,
    "harden": harden.harden,
    "train": train.train,
    "verify": runs.verify,
    "compare": runs.compare,
    "merge": runs.merge,
    "report": runs.report,
    "view": view.view,
    "list": listing.listing,
    "demo": demo.demo,
}
SHARED = "evaluate", "certify"  # whose rows several processes may share
GENERATE: dict[str, Action] = {"train": generate.train, "sample": generate.sample}
AUDIT: dict[str, Action] = {
    "backdoor": audit.backdoor,
    "data": audit.training_data,
    "membership": audit.membership,
    "extraction": audit.extraction,
}
SCHEMA: dict[str, Action] = {"infer": schema.infer}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"holdfast {VERSION}")
        raise typer.Exit


@app.callback()
def _holdfast(
    asked: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """How robust is a trained model against adversarial examples? Measured, with proof on disk."""


def _add(group: typer.Typer, commands: dict[str, Action]) -> None:
    for name, command in commands.items():
        said = " ".join((command.__doc__ or "").split())
        whole = with_shared_options(command)
        if name in SHARED:
            whole = with_workers(name, whole)
        group.command(name, cls=Command, help=said)(guarded(whole))


_add(app, COMMANDS)
GROUPS = (
    ("generate", "Generative models, as data for hardening.", GENERATE),
    ("schema", "What the rows of a table may be.", SCHEMA),
    ("audit", "What else than evasion may be wrong with a model?", AUDIT),
)
for _name, _said, _commands in GROUPS:
    _group = typer.Typer(help=_said, no_args_is_help=True, pretty_exceptions_enable=False)
    _add(_group, _commands)
    app.add_typer(_group, name=_name)


def main() -> None:
    """The entry point."""
    quiet.silence_frameworks()
    memory.manage()
    app(prog_name="holdfast")
