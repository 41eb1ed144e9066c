"""holdfast evaluate: how robust is it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.evaluation.estimate import Forecast
    from holdfast.runs.gates import Gate
    from holdfast.runs.run import Run


def evaluate(
    model: options.Model,
    data: options.Data,
    threat: options.AnyThreat,
    protocol: Annotated[
        str, typer.Option(help="quick, standard, thorough, autoattack, ... (list protocols).")
    ] = "standard",
    attack: Annotated[
        list[str],
        typer.Option(
            "--attack", help='Your own list instead: "pgd(steps=100, restarts=5)"; repeatable.'
        ),
    ] = [],  # noqa: B006
    curve: Annotated[str | None, typer.Option(help="Further eps to run at: 0.1,0.2.")] = None,
    target: options.Goal = None,
    grid: options.Grid = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    bounds: options.BoundsText = None,
    limits: options.Limits = None,
    preprocess: options.Steps = [],  # noqa: B006
    layout: options.Layout = None,
    output: options.Output = None,
    task: options.Task = None,
    probabilities: options.Probabilities = None,
    attacked: options.Attacked = 0,
    eot: options.Eot = None,
    surrogate: options.Lender = None,
    split: options.Split = "test",
    label: options.Label = None,
    classes: options.Classes = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 256,
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions", help="Also under noise, blur, weather, compression: 95 passes a row."
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(help="Whose errors the mCE divides by: alexnet, or a run with --corruptions."),
    ] = None,
    groups: options.Groups = None,
    perceptual: options.Perceptual = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Start nothing new after this time.")
    ] = None,
    max_queries: Annotated[
        int | None, typer.Option(min=1, max=2**53, help="Most forward passes that a row may cost.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="The run folder; default: a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")
    ] = False,
    gate: Annotated[list[str], typer.Option("--gate", help=options.GATE)] = [],  # noqa: B006
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 if the verdict is unreliable.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print run.json alone on stdout.")] = False,
) -> int:
    """Attack a model, judge what is found, and leave the evidence in a folder."""
    given = dict(locals())
    from holdfast.runs import gates

    wanted = [gates.parse(text) for text in gate]
    if baseline is not None and not corruptions:
        raise InputError(f"--baseline {baseline} is for the mCE, which needs --corruptions.")
    if max_seconds is not None and not max_seconds >= 0:
        raise InputError(f"--max-seconds is {max_seconds}, but a time is a number of at least 0.")
    if resume and out is None:
        raise InputError("--resume needs the folder of the run to go on with: give --out.")
    from holdfast.evaluation.evaluate import evaluate as measure
    from holdfast.evaluation.facts import Names

    opened, source, asked = options.opened(given)
    folder = out or writing.fresh_folder(model, f"{threat}-{'custom' if attack else protocol}")
    try:
        with writing.progress_bar() as watch:
            run = measure(
                opened,
                source,
                asked,
                protocol=protocol,
                attacks=attack,
                samples=texts.rows_of(samples),
                curve=texts.numbers(curve, "--curve"),
                seed=seed,
                max_queries=max_queries,
                max_seconds=max_seconds,
                out=folder,
                resume=resume,
                watch=watch,
                announce=announce,
                corruptions=corruptions,
                baseline=baseline,
                groups=texts.lines_of(groups, "--groups"),
                perceptual=perceptual,
                names=Names(model, arch, split, writing.command_line()),
            )
        return conclude(run, wanted, strict=strict, json=json)
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; go on with the same command and --out {folder} --resume.", err=True
        )
        return 130


def conclude(run: Run, wanted: Sequence[Gate], *, strict: bool, json: bool) -> int:
    """Say what a finished run found, and whether it is good enough."""
    from holdfast.report import html
    from holdfast.runs import gates
    from holdfast.runs.store import untrusted

    page = html.write(run.folder)
    if json:
        typer.echo((run.folder / "run.json").read_text(encoding="utf-8"))
    else:
        with untrusted(run.folder):  # a finished run that is gone on with may be anyone's
            writing.show(run.manifest)
    typer.echo(f"report: {page}", err=True)
    if run.unfinished:
        typer.echo(
            "time ran out before all attacks had run; go on with the same command and --out "
            f"{run.folder} --resume, with any --max-seconds or none.",
            err=True,
        )
    fallen = [outcome for outcome in gates.judge(wanted, run.manifest) if not outcome.held]
    for outcome in fallen:
        typer.echo(f"gate not held: {outcome.sentence}.", err=True)
    if strict and run.verdict.status == "unreliable":
        typer.echo("the verdict is unreliable, and --strict was given.", err=True)
        return 3
    return int(bool(fallen))


def announce(cost: Forecast) -> None:
    """The estimate, on stderr."""
    from holdfast.report.words import duration

    more = f"the findings add {cost.added} trials; " if cost.added else ""
    typer.echo(
        (
            f"{more}estimate: about {duration(cost.seconds)} for {cost.rows:,} samples, "
            f"{cost.passes:,.0f} passes each"
        ),
        err=True,
    )
