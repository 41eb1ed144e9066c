"""holdfast audit MODEL DATA --plan FILE: all that a plan names, and one report.

A step of the plan is a command with its options, read by the command line's own rules; it is
checked by the command itself before any step is done, and leaves its evidence as that command does.
"""

from __future__ import annotations

import functools
import inspect
import io
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from holdfast.cli import audit, certify, evaluate, options, texts, writing
from holdfast.cli.command import MISTAKES, Action, ending
from holdfast.cli.workers import whole
from holdfast.errors import InputError, SpecError, suggest
from holdfast.runs import audit_plan as recorded
from holdfast.runs import journal, store
from holdfast.runs.audit_plan import AuditPlan, Step
from holdfast.urls import named

ALL = "all"
COMMANDS: dict[str, Action] = {
    "evaluate": evaluate.evaluate,
    "certify": certify.certify,
    **audit.COMMANDS,
}
OF_TRAINING = "data", "membership"  # which read the rows that a model was trained on
# options that the whole audit has, or that make no sense in a part of one
WHOLE = {"out", "resume", "json", "shard", "strict", "export", "vnnlib"}
# those of MODEL, which is one for all steps
MODEL = {
    parameter.name
    for parameter in inspect.signature(options.open_target).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("batch_size", "device")
}
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
# what the command line raises at options that it cannot read, whichever library reads them
MISREAD: Any = typer.BadParameter.__bases__[0]


class Group(TyperGroup):
    """`audit MODEL DATA --plan FILE` is `audit all MODEL DATA --plan FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        by_plan = any(arg.partition("=")[0] == "--plan" for arg in args)
        return super().parse_args(ctx, [ALL, *args] if by_plan and args[0] != ALL else args)


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


def write_plan(
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
) -> int:
    """Write a plan to start from, for audit MODEL DATA --plan FILE: it says what each step asks,
    and suits demo and digits."""
    if texts.exists(file):
        raise InputError(f"{file} exists; choose another name.")
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
    text = _text(file)
    common = {**how, **rows, "seed": seed}
    asked = [_read(file, *step, model, data, common) for step in _steps(file, text)]
    for step in asked:
        _check(file, step)
    folder = options.folder_of(model, "audit", **where)
    audit = _planned(model, data, how, rows, asked, text)
    with writing.resumable(folder) as here:
        begun = _begun(here, audit, resume=where["resume"])
        with _part_of_another():
            for number, step in enumerate(asked, 1):
                typer.echo(f"{number} of {len(asked)}: {shlex.join(step.words[1:])}", err=True)
                begun = _with_step(here, begun, step)
        return _conclude(here)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"--plan {file} is not there; holdfast audit plan {file} writes one to start from."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"--plan {file} cannot be read as text: {error}.") from None


def _steps(file: Path, text: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
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
def _parser(command: str) -> Any:
    """What reads the options of a command, and runs it."""
    alone = typer.Typer(add_completion=False)
    alone.command()(whole(command, COMMANDS[command]))
    return typer.main.get_command(alone)


def _read(
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
    parser = _parser(command)
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
        if key not in known:
            raise SpecError(f"{said} has the option {key[:40]!r}; {suggest(key, known)}")
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


@contextmanager
def _checking() -> Iterator[None]:
    """Within, a command ends where its work would begin."""
    journal.checking = True
    try:
        with suppress(journal.Accepted):
            yield
    finally:
        journal.checking = False


@contextmanager
def _part_of_another() -> Iterator[None]:
    """Within, a command that is interrupted does not say how to go on."""
    writing.within = True
    try:
        yield
    finally:
        writing.within = False


def _check(file: Path, step: Asked) -> None:
    """Raises SpecError: its command refuses it, before it does anything."""
    context = _parser(step.command).make_context(step.command, list(step.arguments))
    for option in ("workers", "ray", "gpus_per_worker"):
        if option in context.params:
            context.params[option] = None
    with _checking():
        refused = _refused(context)
        if refused:
            raise SpecError(f"--plan {file}: step {step.name}: {refused}")


def _refused(context: Any) -> str:
    """Run a command; why it is refused, or nothing."""
    try:
        with context, redirect_stdout(io.StringIO()):
            context.command.invoke(context)
    except KeyboardInterrupt:
        raise
    except MISTAKES as error:
        return ending(error)[1].removeprefix("error: ")
    return ""


def _planned(
    model: str,
    data: str,
    how: dict[str, Any],
    rows: dict[str, Any],
    asked: list[Asked],
    text: str,
) -> AuditPlan:
    """What audit.json says before anything is done."""
    from holdfast.data.files import printable
    from holdfast.evaluation.facts import Names, provenance_of
    from holdfast.evaluation.prepare import open_for, with_columns
    from holdfast.targets.target import copied

    source = options.open_source(data, **rows)
    target = copied(options.open_target(model, source, **how))
    source = open_for(target, source)
    target = with_columns(target, source)
    target.bind(source.shape)
    steps = [
        Step.model_validate(
            {
                "name": step.name,
                "command": step.command,
                "line": printable(shlex.join(step.words)),
                "gates": step.given.get("gate") or [],
                "data": [
                    options.open_source(of, split, **_reading(step, rows)).fingerprint()
                    for of, split in _read_by(step)
                ],
            }
        )
        for step in asked
    ]
    return AuditPlan(
        model=printable(model),
        fingerprint=target.fingerprint(),
        data=printable(data),
        plan=text,
        steps=steps,
        provenance=provenance_of(target, Names(command=writing.command_line())),
    )


def _read_by(step: Asked) -> list[tuple[str, str]]:
    """The data that a step reads, and the split of each where no option says it."""
    if step.command == "membership":
        return [(step.given["members"], "train"), (step.given["non_members"], "test")]
    return [(step.given["data"], {"data": "train"}.get(step.command, "test"))]


def _reading(step: Asked, rows: Mapping[str, Any]) -> dict[str, Any]:
    """How a step reads its data."""
    own = ("split", "label", "classes", "resize", "crop")
    return {**rows, **{name: step.given[name] for name in own}}


def _begun(here: Path, audit: AuditPlan, *, resume: bool) -> AuditPlan:
    """The audit with what is done of it already.

    Raises:
        InputError: the folder holds something else, or what was asked for otherwise.
    """
    if not recorded.is_here(here):
        journal.refuse_taken(here)
        recorded.write(here, audit)
        return audit
    if not resume:
        raise InputError(
            f"{here} holds an audit; go on with it by --resume, or choose another --out."
        )
    earlier = recorded.read(here)
    was, now = (
        {step.name: step for step in one.steps if (here / step.name).exists()}
        for one in (earlier, audit)
    )
    said = [
        {"the model": one.fingerprint}
        | {f"the step {name}": step.line for name, step in steps.items()}
        | {f"the data of {name}": " ".join(step.data) for name, step in steps.items()}
        for one, steps in ((earlier, was), (audit, now))
    ]
    journal.refuse_changes(here, *said)
    kept = [
        step.model_copy(update={"run": was[step.name].run}) if step.name in was else step
        for step in audit.steps
    ]
    begun = audit.model_copy(update={"steps": kept, "provenance": earlier.provenance})
    recorded.write(here, begun)
    return begun


def _with_step(here: Path, audit: AuditPlan, asked: Asked) -> AuditPlan:
    """The audit once a step is done, or refused; one that is done is not done again."""
    at = next(i for i, step in enumerate(audit.steps) if step.name == asked.name)
    step, folder = audit.steps[at], here / asked.name
    refused = "" if _finished(folder, step) else _done(folder, asked)
    found = {"run": recorded.checksum(here, step), "refused": refused or None}
    steps = [*audit.steps]
    steps[at] = step.model_copy(update=found)
    changed = audit.model_copy(update={"steps": steps})
    recorded.write(here, changed)
    if refused:
        typer.echo(f"not done: {refused}", err=True)
    return changed


def _finished(folder: Path, step: Step) -> bool:
    """Whether nothing of a step is left to do. An audit writes run.json last."""
    if not (folder / "run.json").is_file():
        return False
    return step.command in recorded.AUDITS or not journal.Journal(folder).begun


def _done(folder: Path, asked: Asked) -> str:
    """Do a step; why it was refused, or nothing."""
    more = ["--out", str(folder)]
    if asked.command in recorded.AUDITS:
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left of it
    else:
        more.append("--resume")
    context = _parser(asked.command).make_context(asked.command, [*asked.arguments, *more])
    typed, sys.argv = sys.argv, [*asked.words, *more]  # which the step's run.json says
    try:
        return _refused(context)
    finally:
        sys.argv = typed


def _conclude(here: Path) -> int:
    """Write the report, show what it says, and find the exit code."""
    from holdfast.reporting import audit_plan as reporting

    page = reporting.write(here)
    found = reporting.found(here)
    writing.show(reporting.summary(found))
    typer.echo(f"report: {named(page)}", err=True)
    code = writing.code_of(found.outcomes)
    if any(writing.contradicted(manifest) for manifest in found.runs):
        code = 3
    if refused := [step.name for step in found.audit.steps if step.refused]:
        typer.echo(
            f"not done: {', '.join(refused)}. Mend the plan or what it names, and give the same "
            f"command with --out {named(here)} --resume.",
            err=True,
        )
        code = 2
    return code
