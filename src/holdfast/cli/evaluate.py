"""holdfast evaluate: how robust is it?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError
from holdfast.urls import named

if TYPE_CHECKING:
    from holdfast.evaluation.estimate import Forecast
    from holdfast.runs.gates import Gate
    from holdfast.runs.run import Run


def evaluate(
    model: options.Model,
    data: options.Data,
    *,
    adversary: options.ThreatOptions,
    access: options.AccessOptions,
    how: options.ModelOptions,
    rows: options.DataOptions,
    protocol: Annotated[
        str,
        typer.Option(
            help="quick, standard, thorough, autoattack, ... (list protocols).", metavar="NAME"
        ),
    ] = "standard",
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help='Your own list instead: "pgd(steps=100, restarts=5)"; repeatable.',
            metavar="ATTACK",
        ),
    ] = None,
    part: options.PartOptions,
    curve: Annotated[
        str | None,
        options.about_threat(help="Further eps to run at: 0.1,0.2.", metavar="EPS,..."),
    ] = None,
    corruptions: Annotated[
        bool,
        options.about_measuring(
            "--corruptions", help="Also under noise, blur, weather, compression: 95 passes a row."
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        options.about_measuring(
            help="Whose errors the mCE divides by: alexnet, or a run with --corruptions.",
            metavar="RUN",
        ),
    ] = None,
    certify: Annotated[
        bool,
        options.about_measuring(
            "--certify", help="Then prove what can be proved of the rows that were not broken."
        ),
    ] = False,
    proofs: options.ProofOptions,
    groups: options.Groups = None,
    perceptual: options.Perceptual = None,
    until: Annotated[
        str | None,
        options.about_measuring(
            help="Take the rows in random order and stop early: 0.05, the width of the interval of "
            "robust accuracy; or gate, once each --gate is decided.",
            metavar="WIDTH",
        ),
    ] = None,
    max_seconds: options.MaxSeconds = None,
    max_queries: Annotated[
        int | None,
        options.about_measuring(
            min=1, max=2**53, help="Most forward passes that a row may cost.", metavar="N"
        ),
    ] = None,
    where: options.RunOptions,
    seed: options.Seed = 0,
    gate: options.Gate = None,
    strict: Annotated[
        bool, options.about_run("--strict", help="Exit 3 if the verdict is unreliable.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Attack a model, judge what is found, and leave the evidence in a folder."""
    from holdfast.runs import gates

    conditions = [gates.parse(text) for text in gate or ()]
    if baseline is not None and not corruptions:
        raise InputError(f"--baseline {baseline} is for the mCE, which needs --corruptions.")
    if any(proofs.values()) and not certify:
        raise InputError("--seconds-per-row and --radius are for proofs, which need --certify.")
    check_seconds(max_seconds)
    rule = _until(until, gate, part["shard"])
    what = f"{adversary['threat']}-{'custom' if attack else protocol}"
    folder = options.folder_of(model, what, part["shard"], **where)
    from holdfast.evaluation.evaluate import evaluate as measure
    from holdfast.evaluation.facts import Names

    on_estimate = partial(echo_estimate, all_rows=rule is None)
    rows |= options.drawn(part, seed)
    target, source = options.open_attacked(model, data, how, rows, **access)
    with writing.resumable(folder) as here:
        with writing.progress_bar() as on_progress:
            run = measure(
                target,
                source,
                options.open_threat(**adversary),
                protocol=protocol,
                attacks=attack or (),
                samples=options.rows_to_measure(source, **part),
                epsilons=texts.numbers(curve, "--curve") or None,
                seed=seed,
                max_queries=max_queries,
                max_seconds=max_seconds,
                out=here,
                resume=where["resume"],
                on_progress=on_progress,
                on_estimate=writing.estimated if writing.listener else on_estimate,
                corruptions=corruptions,
                baseline=baseline,
                certifier=options.ladder_of(**proofs) if certify else None,
                groups=groups and texts.lines_of(groups, "--groups"),
                perceptual=perceptual,
                names=Names(model, how["arch"], rows["split"] or "test", writing.command_line()),
                until=rule,
            )
        return conclude(run, conditions, strict=strict, json=json)


def _until(
    until: str | None, gate: Sequence[str] | None, shard: str | None
) -> float | list[str] | None:
    """When the run stops before its last row: a width or gates, as `evaluate` takes them."""
    if until is None:
        return None
    if shard is not None:
        raise InputError(
            f"--until {until} stops by all rows so far, and --shard {shard} has a part of them "
            "alone; leave out one of the two."
        )
    if until != "gate":
        try:
            return float(until)
        except ValueError:
            raise InputError(
                f"--until is {until!r}; expected the width of an interval, such as 0.05, or gate."
            ) from None
    if not gate:
        raise InputError(
            "--until gate stops once a gate is decided; give one, such as --gate "
            '"robust_accuracy.low>=0.45".'
        )
    return list(gate)


def check_seconds(max_seconds: float | None) -> None:
    if max_seconds is not None and not max_seconds >= 0:
        raise InputError(f"--max-seconds is {max_seconds}, but a time is a number of at least 0.")


def conclude(
    run: Run, conditions: Sequence[Gate], *, strict: bool, json: bool, unfinished: bool = False
) -> int:
    """Say what a run found, and whether it is good enough.

    Args:
        unfinished: a shard of it is.
    """
    if writing.listener is not None:
        return 0  # of a shard, which is concluded with all others
    from holdfast.reporting import html, terminal
    from holdfast.runs import gates
    from holdfast.runs.store import untrusted

    page = html.write(run.folder)
    if json:
        typer.echo((run.folder / "run.json").read_text(encoding="utf-8"))
    else:
        with untrusted(run.folder):  # a finished run that is gone on with may be anyone's
            writing.show(terminal.summary(run.manifest))
    typer.echo(f"report: {named(page)}", err=True)
    if (unfinished or run.unfinished) and not writing.within:
        typer.echo(
            "time ran out before all attacks had run; go on with the same command and --out "
            f"{named(run.folder)} --resume, with any --max-seconds or none.",
            err=True,
        )
    code = writing.code_of(gates.judge(conditions, run.manifest))
    if writing.contradicted(run.manifest):
        return 3
    if strict and run.verdict.status == "unreliable":
        typer.echo("the verdict is unreliable, and --strict was given.", err=True)
        return 3
    return code


def echo_estimate(cost: Forecast, *, all_rows: bool = True) -> None:
    """The estimate, on stderr; of a run that may stop before it has taken all rows, what it takes
    at most."""
    from holdfast.reporting.words import duration

    more = f"because of the findings, {cost.added} trials are added; " if cost.added else ""
    most, parts = "" if all_rows else "at most ", []
    if cost.passes or not cost.proofs:
        parts.append(
            f"{most}about {duration(cost.seconds)} for {cost.rows:,} samples, {cost.passes:,.0f} "
            "passes each"
        )
    if cost.proofs:
        rows = "" if parts else f" of {cost.rows:,} samples"
        parts.append(f"at most {duration(cost.proofs)} for the proofs{rows}")
    typer.echo(f"{more}estimate: {'; '.join(parts)}", err=True)
