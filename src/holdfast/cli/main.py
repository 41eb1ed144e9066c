"""holdfast: the commands, and what every one of them does with a mistake.

Exit codes: 0 done and gates held; 1 a gate or a verification did not hold; 2 bad input (one
sentence on stderr); 3 verdict `unreliable` under --strict; 130 interrupted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from holdfast import memory, quiet, usercode
from holdfast.cli import (
    attack,
    compare,
    demo,
    evaluate,
    generate,
    harden,
    listing,
    merge,
    report,
    train,
    verify,
)
from holdfast.errors import HoldfastError

COMMANDS: dict[str, Callable[..., Any]] = {
    "evaluate": evaluate.evaluate,
    "attack": attack.attack,
    "harden": harden.harden,
    "train": train.train,
    "verify": verify.verify,
    "compare": compare.compare,
    "merge": merge.merge,
    "report": report.report,
    "list": listing.listing,
    "demo": demo.demo,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "generate": (
        "Generative models, as data for hardening.",
        {"train": generate.train, "sample": generate.sample},
    ),
}

app = typer.Typer(
    help=(
        "How robust is a trained model against adversarial examples? Measured, with proof on disk."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            code = command(*args, **options)
        except HoldfastError as error:
            said = "".join(
                c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
                for c in str(error)
            )
            typer.echo(f"error: {said}", err=True)  # a name from a file must not steer the terminal
            raise typer.Exit(2) from None
        except (
            SystemExit,
            GeneratorExit,
        ) as error:  # a command raises neither: code of the user's did
            typer.echo(
                f"error: {usercode.raised('code of the model or of the data', error)}", err=True
            )
            raise typer.Exit(2) from None
        except OSError as error:  # a name too long, a folder that nobody may write to, a full disk
            what = f"{str(error.filename)[:80]}: " if error.filename else ""
            typer.echo(f"error: {what}{error.strerror or error}.", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; give the same command again.", err=True)
            raise typer.Exit(130) from None
        raise typer.Exit(code or 0)

    return run


for _name, _command in COMMANDS.items():
    app.command(_name)(_guarded(_command))
for _name, (_help, _commands) in GROUPS.items():
    _group = typer.Typer(help=_help, no_args_is_help=True, pretty_exceptions_enable=False)
    app.add_typer(_group, name=_name)
    for _part, _command in _commands.items():
        _group.command(_part)(_guarded(_command))


def main() -> None:
    """The entry point."""
    quiet.silence_frameworks()
    memory.manage()
    app(prog_name="holdfast")


if __name__ == "__main__":
    sys.exit(main())
