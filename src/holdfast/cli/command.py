"""What is done to every command: it takes the options of other functions, its mistakes become
sentences, and its help is set in two columns."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, get_args

import typer
from typer.core import TyperCommand

from holdfast import usercode
from holdfast.errors import HoldfastError
from holdfast.urls import named

Action = Callable[..., int]
MISTAKES = HoldfastError, SystemExit, GeneratorExit, OSError, KeyboardInterrupt
PANELS = "Arguments", "Options", "Threat", "Model", "Data", "Training", "Measurement", "Run"


def with_shared_options(command: Action) -> Action:
    """A command that takes, in the place of each `Annotated[dict, function]` among its parameters,
    the options that this function takes by keyword; the command is given them as that dict.

    Options that several functions take are one option, and handed to each. What typer shows and
    reads is a signature: this one is made of the command's and the functions'.
    """
    own = inspect.signature(command, eval_str=True).parameters
    shared: dict[str, list[str]] = {}
    shown: dict[str, inspect.Parameter] = {}
    for parameter in own.values():
        options, source = [parameter], get_args(parameter.annotation)[-1]
        if inspect.isfunction(source):
            every = inspect.signature(source).parameters.values()
            options = [option for option in every if option.kind is option.KEYWORD_ONLY]
            shared[parameter.name] = [option.name for option in options]
        # by keyword, so that one without a default may come after one that has some
        shown |= {o.name: o.replace(kind=o.KEYWORD_ONLY) for o in options}

    @functools.wraps(command)
    def run(**given: Any) -> int:
        kept = {name: value for name, value in given.items() if name in own}
        return command(**kept, **{name: {o: given[o] for o in shared[name]} for name in shared})

    run.__signature__ = inspect.Signature([*shown.values()])  # pyright: ignore
    return run


def guarded(command: Action) -> Callable[..., None]:
    """A command whose mistakes end in a sentence, and whose code is that of the process."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        said = ""
        try:
            code = command(**options)
        except MISTAKES as error:
            code, said = ending(error)
        if said:
            typer.echo(said, err=True)
        raise typer.Exit(code)

    return run


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code that one of `MISTAKES` ends a command with, and the sentence that says it."""
    code, said = 2, f"error: {named(error)}"
    if isinstance(error, (SystemExit, GeneratorExit)):  # a command raises neither: the user's did
        said = f"error: {usercode.raised('code of the model or of the data', error)}"
    elif isinstance(error, OSError):  # a name too long, a folder that nobody may write, a full disk
        what = f"{str(error.filename)[:80]}: " if error.filename else ""
        said = f"error: {what}{error.strerror or error}."
    elif isinstance(error, KeyboardInterrupt):
        code, said = 130, "interrupted; give the same command again."
    # a name from a file must not steer the terminal
    known = (c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in said)
    return code, "".join(known)


class Command(TyperCommand):
    """A command whose help has a panel for each kind of option, those that matter first."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments, without the braces that newer versions of typer set round them."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it, in two columns that fit 80 characters."""
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Column, Table

        tables = {
            name: Table.grid(Column(width=24, style="bold cyan"), Column(), padding=(0, 2, 0, 0))
            for name in PANELS
        }
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "rich_help_panel", None)
            if not getattr(parameter, "hidden", False):
                tables[panel or f"{parameter.param_type_name}s".title()].add_row(*_row(parameter))
        console = Console(highlight=False, markup=False)
        console.print(f"\n{self.get_usage(ctx)}\n\n{self.help}\n")
        for title, table in tables.items():
            if table.row_count:
                console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _row(parameter: Any) -> tuple[str, str]:
    """How an argument or option is written, and what it means."""
    if parameter.param_type_name == "argument":
        return parameter.metavar, parameter.help
    written, meaning = ", ".join([*parameter.opts, *parameter.secondary_opts]), parameter.help
    if parameter.is_flag:
        return written, meaning
    if parameter.required:
        meaning += " [required]"
    elif parameter.default is not None:
        meaning += f" [default: {parameter.default}]"
    return f"{written} {parameter.metavar}", meaning
