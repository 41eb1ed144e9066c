"""holdfast audit: what else than evasion may be wrong with a model?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options, texts, writing
from holdfast.cli.command import Action
from holdfast.errors import InputError
from holdfast.urls import named

if TYPE_CHECKING:
    from holdfast.runs.audits import AnyAudit


MOST_QUERIES = 10**9


def backdoor(
    model: options.Model,
    data: options.Data,
    *,
    suspect: Annotated[
        int | None,
        typer.Option(
            min=0, help="A class that is searched in full whatever its index.", metavar="CLASS"
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option(help="Whether triggers that turn the rows of one class alone are searched."),
    ] = True,
    samples: Annotated[
        int,
        typer.Option(
            min=10, max=10**6, help="The most rows that are used, drawn at random.", metavar="N"
        ),
    ] = 2000,
    how: options.ModelOptions,
    rows: options.DataOptions,
    where: options.AuditOptions,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> int:
    """Search a small trigger that turns clean rows to one class, and flag one that is far smaller
    than the others. Needs no training data."""
    from holdfast.audit.backdoor import audit_backdoor

    asked = {"suspect": suspect, "pairs": pairs, "rows": samples, "seed": seed}
    return _run("backdoor", audit_backdoor, model, data, "test", how, rows, where, asked, json)


def membership(
    model: options.Model,
    *,
    members: Annotated[
        str,
        typer.Option(help="DATA that the model was trained on, or a part of it.", metavar="DATA"),
    ],
    non_members: Annotated[
        str, typer.Option(help="Other DATA of the same kind, never trained on.", metavar="DATA")
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A MODEL of the same kind to compare with, read as MODEL is; repeatable.",
            metavar="MODEL",
        ),
    ] = None,
    references: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1000,
            help="Train so many models to compare with, each on a random half of the rows; an even "
            "number, 4 or more.",
            metavar="N",
        ),
    ] = None,
    saw: Annotated[
        list[str] | None,
        typer.Option(
            help="Of each --reference, in their order: a file with the places of the members that "
            "it was trained on, one a line, or none.",
            metavar="FILE",
        ),
    ] = None,
    fpr: Annotated[
        list[float] | None,
        typer.Option(
            help="A false positive rate to measure at; default 0.01 and 0.001, where there are "
            "non-members enough; repeatable.",
            metavar="RATE",
        ),
    ] = None,
    how: options.ModelOptions,
    rows: options.DataOptions,
    epochs: Annotated[
        int,
        options.about_training(
            min=1, max=100_000, help="Passes of each of --references over its rows.", metavar="N"
        ),
    ] = 30,
    devices: options.Devices = 1,
    where: options.RunOptions,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> int:
    """Try to know the rows that a model was trained on by its answers: by the loss, and with
    reference models by RMIA and LiRA."""
    _check_references(references, reference, saw, where["resume"])
    folder = options.folder_of(model, "membership", **where)
    from holdfast.audit.membership import audit_membership
    from holdfast.audit.references import ToTrain

    inside = options.open_source(members, "train", **rows)
    outside = options.open_source(non_members, "test", **rows)
    compared: Any = [options.open_target(one, inside, **how) for one in reference or ()]
    if references is not None:
        compared = ToTrain(references, epochs, how["batch_size"] or 64, devices)
    with writing.resumable(folder, kept=references is not None) as here:
        audit, _ = audit_membership(
            options.open_target(model, inside, **how),
            inside,
            outside,
            references=compared,
            seen=None if saw is None else [_places(text) for text in saw],
            fprs=fpr or None,
            seed=seed,
            out=here,
            resume=where["resume"],
            names=_names(model, how, rows, "train"),
            on_progress=lambda what: typer.echo(what, err=True),
        )
        return _conclude(audit, here, json=json)


def _check_references(
    count: int | None, given: list[str] | None, saw: list[str] | None, resume: bool
) -> None:
    """Refuse options that do not go together."""
    if count is None and resume:
        raise InputError("--resume goes on with the training of --references; give that too.")
    if count is not None and (given or saw):
        raise InputError(
            "--references trains models to compare with, and --reference and --saw name those that "
            "are trained already; give one of both."
        )


def extraction(
    model: options.Model,
    data: options.Data,
    *,
    threat: options.ThreatText,
    queries: Annotated[
        str,
        typer.Option(help="Budgets, each for a copy of its own: 1000,10000.", metavar="N,..."),
    ] = "1000,10000",
    answers: Annotated[
        list[str] | None,
        typer.Option(
            help='What the adversary sees: scores, labels, or "rounded(2)", to two decimals; '
            "default what the model gives; repeatable.",
            metavar="KIND",
        ),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(help="What makes the adversarial examples on a copy.", metavar="ATTACK"),
    ] = "fgsm",
    samples: Annotated[
        int,
        typer.Option(
            min=20, max=10**6, help="The most rows that copies are measured on.", metavar="N"
        ),
    ] = 1000,
    how: options.ModelOptions,
    rows: options.DataOptions,
    where: options.AuditOptions,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> int:
    """Copy a model by its answers, within a budget, and measure how far the copy agrees and how far
    adversarial examples made on it transfer. Files and endpoints alike."""
    from holdfast.audit.extraction import audit_extraction

    budgets = texts.numbers(queries, "--queries")
    if odd := [n for n in budgets if not (0 < n <= MOST_QUERIES and n == int(n))]:
        raise InputError(
            f"--queries holds {odd[0]:g}, but a budget is a whole number of queries, "
            f"at most {MOST_QUERIES:,}."
        )
    asked = {
        "threat": threat,
        "queries": [int(number) for number in budgets],
        "answers": answers or (),
        "attack": attack,
        "rows": samples,
        "seed": seed,
    }
    return _run(
        "extraction", audit_extraction, model, data, "test", how, rows, where, asked, json=json
    )


def training_data(
    model: options.Model,
    data: options.Data,
    *,
    poison: Annotated[
        str | None,
        typer.Option(
            help="Poison that `train --poison` planted with this seed, to see what is found of it.",
            metavar="POISON",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=10, max=10**7, help="The most rows that are used, drawn at random.", metavar="N"
        ),
    ] = 100_000,
    how: options.ModelOptions,
    rows: options.DataOptions,
    where: options.AuditOptions,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> int:
    """Look in the rows that a model was trained on for planted ones, wrong labels and rows that
    occur twice."""
    from holdfast.audit.training_data import audit_data

    asked = {"poison": poison, "rows": samples, "seed": seed}
    return _run("data", audit_data, model, data, "train", how, rows, where, asked, json)


def _places(text: str) -> list[int]:
    """The numbers in a file, one a line; of `none` none."""
    if text == "none":
        return []
    lines = texts.lines_of(Path(text), "--saw")
    if odd := [line for line in lines if not line.strip().isdecimal()]:
        raise InputError(
            f"--saw {text} holds the line {odd[0]!r:.40}; expected the place of a member, such as "
            "17."
        )
    return [int(line) for line in lines]


def _run(
    kind: str,
    audit: Callable[..., tuple[AnyAudit, Path]],
    model: str,
    data: str,
    split: str,
    how: dict[str, Any],
    rows: dict[str, Any],
    where: dict[str, Any],
    asked: dict[str, Any],
    json: bool,
) -> int:
    """An audit of a model and data, and what it found.

    Args:
        split: of the data, where no option says it.
        asked: what the audit takes besides.
    """
    folder = options.audit_folder_of(model, kind, **where)
    source = options.open_source(data, split, **rows)
    with writing.resumable(folder, kept=False) as here:
        found, _ = audit(
            options.open_target(model, source, **how),
            source,
            out=here,
            names=_names(model, how, rows, split),
            on_progress=lambda what: typer.echo(what, err=True),
            **asked,
        )
        return _conclude(found, here, json=json)


def _names(model: str, how: dict[str, Any], rows: dict[str, Any], split: str) -> Any:
    from holdfast.evaluation.facts import Names

    return Names(model, how["arch"], rows["split"] or split, writing.command_line())


def _conclude(audit: AnyAudit, folder: Path, *, json: bool) -> int:
    """Say what an audit found, and write its page."""
    from holdfast.reporting import audited

    page = audited.write(folder)
    if json:
        typer.echo((folder / "run.json").read_text(encoding="utf-8"))
    else:
        writing.show(audited.summary(audit))
    typer.echo(f"report: {named(page)}", err=True)
    return 0


COMMANDS: dict[str, Action] = {
    "backdoor": backdoor,
    "data": training_data,
    "membership": membership,
    "extraction": extraction,
}
