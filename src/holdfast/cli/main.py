"""holdfast: the commands, and what every one of them does with a mistake.

Exit codes: 0 done and gates held; 1 a gate or a verification did not hold; 2 bad input (one
sentence on stderr); 3 verdict `unreliable` under --strict, or a row
both proved and broken; 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from holdfast import memory, quiet
from holdfast.cli import (
    attack,
    audit,
    audit_all,
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
from holdfast.cli.command import Action, Command, guarded
from holdfast.cli.workers import whole
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
GENERATE: dict[str, Action] = {"train": generate.train, "sample": generate.sample}
AUDIT: dict[str, Action] = {
    **audit.COMMANDS,
    audit_all.ALL: audit_all.audit_all,
    "plan": audit_all.write_plan,
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
        group.command(name, cls=Command, help=said)(guarded(whole(name, command)))


_add(app, COMMANDS)
GROUPS = (
    ("generate", "Generative models, as data for hardening.", GENERATE, TyperGroup),
    ("schema", "What the rows of a table may be.", SCHEMA, TyperGroup),
    (
        "audit",
        "What else than evasion may be wrong with a model? All at once: audit MODEL DATA --plan "
        "FILE.",
        AUDIT,
        audit_all.Group,
    ),
)
for _name, _said, _commands, _kind in GROUPS:
    _group = typer.Typer(
        help=_said, cls=_kind, no_args_is_help=True, pretty_exceptions_enable=False
    )
    _add(_group, _commands)
    app.add_typer(_group, name=_name)


def main() -> None:
    """The entry point."""
    quiet.silence_frameworks()
    memory.manage()
    app(prog_name="holdfast")
