"""The plan of an audit: a YAML file whose steps are commands with their options, read by the
command line's own rules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from holdfast.cli import audit, certify, evaluate, options
from holdfast.cli.command import Action
from holdfast.cli.workers import whole
from holdfast.errors import InputError, SpecError, suggest

COMMANDS: dict[str, Action] = {
    "evaluate": evaluate.evaluate,
    "certify": certify.certify,
    **audit.COMMANDS,
}
OF_TRAINING = "data", "membership"  # which read the rows that a model was trained on
WHOLE = {"out", "resume"}  # options that the whole audit has
NEVER = {"json", "shard", "strict", "export", "vnnlib"}  # which make no sense in a part of one
# those of MODEL, which is one for all steps
MODEL = {
    parameter.name
    for parameter in inspect.signature(options.open_target).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("batch_size", "device")
}
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
# what the command line raises at options that it cannot read, whichever library reads them
MISREAD: Any = typer.BadParameter.__bases__[0]


@dataclass(frozen=True)
class Asked:
    """A step, as the command line of its command."""

    name: str
    command: str
    arguments: list[str]
    given: dict[str, Any] = field(default_factory=dict)  # its options as they were read

    @property
    def words(self) -> list[str]:
        """The command as it is typed."""
        group = () if self.command in ("evaluate", "certify") else ("audit",)
        return ["holdfast", *group, self.command, *self.arguments]


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"--plan {file} is not there; holdfast audit plan {file} writes one to start from."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"--plan {file} cannot be read as text: {error}.") from None


def steps_of(file: Path, text: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The name, the command and the options of each step of a plan."""
    from holdfast.data.files import read_yaml

    plan = read_yaml(text, file, texts=True)
    if not isinstance(plan, dict) or not plan:
        raise InputError(
            f"--plan {file} names no steps; expected {', '.join(COMMANDS)}, each with its options "
            "below it."
        )
    for command in plan:
        if command not in COMMANDS:
            raise InputError(
                f"--plan {file} names the step {str(command)[:40]!r}; "
                f"{suggest(str(command), COMMANDS)}"
            )
    for command, given in plan.items():
        if given == []:
            raise InputError(f"--plan {file}: step {command} is an empty list; give its options.")
        steps = given if isinstance(given, list) else [given or {}]
        for number, each in enumerate(steps, 1):
            name = command if number == 1 else f"{command}-{number}"
            if not isinstance(each, dict):
                raise InputError(
                    f"--plan {file}: step {name} is to hold options such as samples: 100, one a "
                    "line and indented, or a list of such."
                )
            yield name, command, each


@functools.cache
def parser_of(command: str) -> Any:
    """What reads the options of a command, and runs it."""
    alone = typer.Typer(add_completion=False)
    alone.command()(whole(command, COMMANDS[command]))
    return typer.main.get_command(alone)


def read(
    file: Path,
    name: str,
    command: str,
    given: Mapping[str, Any],
    model: str,
    data: str,
    common: Mapping[str, Any],
) -> Asked:
    """A step as its command line.

    Args:
        common: options of the whole audit, which each step has where it does not say them itself.

    Raises:
        SpecError: it has an option that its command has not, or lacks one that this needs.
    """
    said = f"--plan {file}: step {name}"
    own = {str(key).replace("_", "-"): value for key, value in given.items()}
    parser = parser_of(command)
    known = {p.opts[0].removeprefix("--"): p for p in parser.params if p.opts[0][:2] == "--"}
    if command == "data":
        data = _one(said, "data", own.pop("data", data))
    for key in own:
        where = key.replace("-", "_")
        if key == "data" or where in WHOLE | MODEL:
            raise SpecError(
                f"{said} has the option {key}, which is for the whole audit: leave it out, or give "
                "it on the command line."
            )
        if where in NEVER:
            raise SpecError(
                f"{said} has the option {key}, which a plan does not take: leave it out."
            )
        if key not in known:
            taken = [one for one in known if one.replace("-", "_") not in WHOLE | NEVER | MODEL]
            raise SpecError(f"{said} has the option {key[:40]!r}; {suggest(key, taken)}")
    written = [*_common(known, common, own, command)]
    for key, value in own.items():
        written += _written(f"{said}: {key}", known[key], value)
    places = [model] if command == "membership" else [model, data]
    try:
        read = parser.make_context(command, [*places, *written]).params
    except MISREAD as error:
        raise SpecError(f"{said}: {error.format_message().rstrip('.')}.") from None
    return Asked(name, command, [*places, *written], read)


def _common(
    known: Mapping[str, Any], common: Mapping[str, Any], own: Mapping[str, Any], command: str
) -> Iterator[str]:
    """The options of the whole audit that a step takes, as they are typed."""
    for name, value in common.items():
        key = name.replace("_", "-")
        if key in own or value in (None, known[key].default):
            continue
        if key == "split" and command in OF_TRAINING:
            continue
        yield from _written("", known[key], value)


def _written(said: str, option: Any, value: Any) -> list[str]:
    """An option as it is typed."""
    if option.is_flag:
        given = value if isinstance(value, bool) else _truth(said, value)
        return list((option.opts if given else option.secondary_opts)[:1])
    values = value if isinstance(value, list) else [value]
    every = [_one(said, "", one) for one in values]
    if not option.multiple:
        every = [",".join(every)]
    return [f"{option.opts[0]}={one}" for one in every]


def _one(said: str, name: str, value: Any) -> str:
    if isinstance(value, (dict, list)) or value == "":
        what = f"{said}{': ' * bool(name)}{name}"
        raise SpecError(f"{what} has no single value; expected text or a number.")
    return str(value)


def _truth(said: str, value: Any) -> bool:
    if str(value).lower() not in (*TRUE, *FALSE):
        raise SpecError(f"{said} is {str(value)[:40]!r}; it is true or false.")
    return str(value).lower() in TRUE
