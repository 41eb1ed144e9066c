"""holdfast audit MODEL DATA --plan FILE: all that a plan names, and one report.

Each step is checked by its own command before any is done, and leaves its evidence as that command
does.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from holdfast.cli import options, texts, writing
from holdfast.cli.audit_plan import read, steps_of, text_of
from holdfast.errors import InputError

ALL = "all"


class Group(TyperGroup):
    """`audit MODEL DATA --plan FILE` is `audit all MODEL DATA --plan FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        by_plan = any(arg.partition("=")[0] == "--plan" for arg in args)
        return super().parse_args(ctx, [ALL, *args] if by_plan and args[0] != ALL else args)


def write_plan(
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
) -> int:
    """Write a plan to start from, for audit MODEL DATA --plan FILE: it says what each step asks,
    and suits demo and digits."""
    if texts.exists(file):
        raise InputError(f"{file} exists; choose another name.")
    from holdfast.runs import store

    content = resources.files("holdfast.cli").joinpath("audit.yaml").read_bytes()
    store.write_bytes(file, content)
    typer.echo(f"wrote {file}; next: holdfast audit MODEL DATA --plan {file}", err=True)
    return 0


def audit_all(
    model: options.Model,
    data: options.Data,
    *,
    file: Annotated[
        Path,
        typer.Option(
            "--plan",
            help="YAML: which of evaluate, certify, backdoor, data, membership and extraction to "
            "do, each with its options (audit plan writes one).",
            metavar="FILE",
        ),
    ],
    how: options.ModelOptions,
    rows: options.DataOptions,
    where: options.RunOptions,
    seed: options.Seed = 0,
) -> int:
    """Do all that a plan names, and write one report of it: verdict, what was not tested, schemes,
    model card, sign-off."""
    from holdfast.cli.audit_steps import check, conclude, do, planned, taken_up

    text = text_of(file)
    common = {**how, **rows, "seed": seed}
    asked = [read(file, *step, model, data, common) for step in steps_of(file, text)]
    typer.echo(f"checking the plan: {len(asked)} step{'s' * (len(asked) != 1)}", err=True)
    for step in asked:
        check(file, step)
    folder = options.folder_of(model, "audit", **where)
    audit = planned(model, data, how, rows, asked, text)
    with writing.resumable(folder) as here:
        do(here, taken_up(here, audit, resume=where["resume"]), asked)
        return conclude(here)
