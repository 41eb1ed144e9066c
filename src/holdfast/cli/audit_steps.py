"""The steps of an audit by a plan: checked, done where they are not, and concluded."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import typer

from holdfast.cli import options, writing
from holdfast.cli.audit_plan import Asked, parser_of
from holdfast.cli.command import MISTAKES, ending
from holdfast.data import Source
from holdfast.data.files import printable
from holdfast.errors import InputError, SpecError
from holdfast.evaluation.facts import Names, provenance_of
from holdfast.evaluation.prepare import open_for, with_columns
from holdfast.reporting import audit_plan as reporting
from holdfast.runs import audit_plan as recorded
from holdfast.runs import journal
from holdfast.runs.audit_plan import AuditPlan, Step
from holdfast.targets.target import Target, copied
from holdfast.urls import named

# options of a step that may be others when it is gone on with
HOW = {"--max-seconds", "--workers", "--ray", "--gpus-per-worker", "--batch-size", "--device"}


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


def check(file: Path, step: Asked) -> None:
    """Raises SpecError: its command refuses it, before it does anything."""
    context = parser_of(step.command).make_context(step.command, list(step.arguments))
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


def opened(model: str, source: Source, how: dict[str, Any]) -> Target:
    """The model of an audit."""
    target = copied(options.open_target(model, source, **how))
    source = open_for(target, source)
    target = with_columns(target, source)
    target.bind(source.shape)
    return target


def planned(
    model: str,
    data: str,
    how: dict[str, Any],
    rows: dict[str, Any],
    asked: list[Asked],
    text: str,
) -> AuditPlan:
    """What audit.json says before anything is done."""
    target = opened(model, options.open_source(data, **rows), how)
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


def taken_up(here: Path, audit: AuditPlan, *, resume: bool) -> AuditPlan:
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
        {"model": one.fingerprint}
        | {f"step {name}": _question(step) for name, step in steps.items()}
        | {f"data of {name}": " ".join(step.data) for name, step in steps.items()}
        for one, steps in ((earlier, was), (audit, now))
    ]
    journal.refuse_changes(here, *said)
    for step in was.values():
        if step.run is not None and recorded.checksum(here, step) not in (None, step.run):
            raise InputError(
                f"{here / step.name / 'run.json'} is not the one that the audit wrote; put it "
                f"back, or remove {here / step.name} to do that step again."
            )
    kept = [_kept(here, step, was.get(step.name)) for step in audit.steps]
    begun = audit.model_copy(update={"steps": kept, "provenance": earlier.provenance})
    recorded.write(here, begun)
    return begun


def _kept(here: Path, step: Step, was: Step | None) -> Step:
    """A step with what is done of it; one that is finished was done by its earlier command."""
    if was is None:
        return step
    found = {"run": was.run}
    if was.run is not None and _finished(here / step.name, was):
        found["line"] = was.line
    return step.model_copy(update=found)


def _question(step: Step) -> str:
    """What a step asks, however long it may take and whoever computes it."""
    words = shlex.split(step.line)
    return shlex.join(word for word in words if word.partition("=")[0] not in HOW)


def do(here: Path, audit: AuditPlan, asked: list[Asked]) -> None:
    """Do every step that is not done."""
    with _part_of_another():
        for number, step in enumerate(asked, 1):
            typer.echo(f"{number} of {len(asked)}: {shlex.join(step.words[1:])}", err=True)
            audit = _with_step(here, audit, step)


def _with_step(here: Path, audit: AuditPlan, asked: Asked) -> AuditPlan:
    """The audit once a step is done, or refused; one that is done is not done again."""
    at = next(i for i, step in enumerate(audit.steps) if step.name == asked.name)
    step, folder = audit.steps[at], here / asked.name
    refused = ""
    if not _finished(folder, step):
        recorded.write(here, _changed(audit, at, {"run": None}))  # a kill may leave another one
        refused = _done(folder, asked)
    found = {"run": recorded.checksum(here, step), "refused": refused or None}
    changed = _changed(audit, at, found)
    recorded.write(here, changed)
    if refused:
        typer.echo(f"not done: {refused}", err=True)
    return changed


def _changed(audit: AuditPlan, at: int, found: dict[str, str | None]) -> AuditPlan:
    steps = [*audit.steps]
    steps[at] = steps[at].model_copy(update=found)
    return audit.model_copy(update={"steps": steps})


def _finished(folder: Path, step: Step) -> bool:
    """Whether nothing of a step is left to do. An audit writes run.json last."""
    if not (folder / "run.json").is_file():
        return False
    if folder.with_name(f"{folder.name}.shards").exists():  # of workers whose time ran out
        return False
    return step.command in recorded.AUDITS or not journal.Journal(folder).begun


def _done(folder: Path, asked: Asked) -> str:
    """Do a step; why it was refused, or nothing."""
    more = ["--out", str(folder)]
    if asked.command not in recorded.AUDITS or asked.given.get("references"):
        more.append("--resume")
    else:  # nothing in it serves: what a kill left goes
        shutil.rmtree(folder, ignore_errors=True)
    context = parser_of(asked.command).make_context(asked.command, [*asked.arguments, *more])
    typed, sys.argv = sys.argv, [*asked.words, *map(named, more)]  # which the step's run.json says
    try:
        return _refused(context)
    finally:
        sys.argv = typed


def conclude(here: Path) -> int:
    """Write the report, show what it says, and find the exit code."""
    page = reporting.write(here)
    found = reporting.found(here)
    writing.show(reporting.summary(found))
    typer.echo(f"report: {named(page)}", err=True)
    code = writing.code_of(found.outcomes)
    if any(writing.contradicted(manifest) for manifest in found.runs):
        code = 3
    unfinished = [step.name for step in found.audit.done if not _finished(here / step.name, step)]
    if unfinished:
        typer.echo(
            f"time ran out in {', '.join(unfinished)}; go on with the same command and --out "
            f"{named(here)} --resume.",
            err=True,
        )
    if refused := [step.name for step in found.audit.steps if step.refused]:
        typer.echo(
            f"not done: {', '.join(refused)}. Mend the plan or what it names, and give the same "
            f"command with --out {named(here)} --resume.",
            err=True,
        )
        code = 2
    return code
