"""holdfast verify, compare, merge and report: what is done with finished runs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import HoldfastError, InputError, listed
from holdfast.urls import named, place

if TYPE_CHECKING:
    from holdfast.runs.manifest import Manifest

SLOWER = 10  # times as long as the run's may a proof take that is made again


def verify(
    run: options.Folder,
    model: options.ModelOrNone = None,
    data: options.DataOrNone = None,
    *,
    how: options.ModelOptions,
    rows: options.DataOptions,
    perceptual: options.Perceptual = None,
    groups: options.Groups = None,
    full: Annotated[
        bool, typer.Option("--full", help="Prove every certified row again, not a sample.")
    ] = False,
) -> int:
    """Judge the stored examples again with the model itself, compute every figure anew, and compare
    the report. What no option says of model and data is as the run says it. Of an audit every
    figure is computed from its evidence, without MODEL and DATA too."""
    from holdfast.runs import audit_plan
    from holdfast.runs.audits import read
    from holdfast.runs.remote import fetched
    from holdfast.runs.store import is_audit, open_manifest

    folder = fetched(run)
    if audit_plan.is_here(folder):
        return _verify_steps(folder, run, model, data, how, rows, perceptual, groups, full=full)
    if is_audit(folder):
        wrong = _verify_audit(folder, model, data, how, rows)
        code = _say(run, wrong, "every figure follows from its evidence.")
        if not wrong:
            typer.echo(_asked_again(read(folder).audit, model))
        return code
    if model is None or data is None:
        open_manifest(folder)  # where there is no run at all, that is what to say
        raise InputError(f"{run} is a run; to verify it takes the MODEL and the DATA, too.")
    wrong = _verify_run(folder, run, model, data, how, rows, perceptual, groups, full=full)
    manifest = open_manifest(folder)[0]
    code = _say(run, wrong, _confirmed(manifest))
    for note in () if wrong else getattr(wrong, "notes", ()):
        typer.echo(note)
    return 3 if writing.contradicted(manifest) else code


def _confirmed(manifest: Manifest) -> str:
    from holdfast.reporting.words import percent

    robust = manifest.metrics.robust_accuracy
    return (
        f"robust accuracy {percent(robust.value)} on {robust.n:,} inputs; "
        f"{manifest.metrics.counts['broken']:,} stored examples were checked again on the model."
    )


def _verify_run(
    folder: Path,
    run: Any,
    model: str,
    data: str,
    how: dict[str, Any],
    rows: dict[str, Any],
    perceptual: str | None,
    groups: Path | None,
    *,
    full: bool,
) -> list[str]:
    """What does not hold in a run."""
    from holdfast.certification import Ladder
    from holdfast.data import suiting
    from holdfast.evaluation.verify import verify as check
    from holdfast.reporting import html
    from holdfast.runs.store import open_manifest, read_limits
    from holdfast.targets.preprocess import given_again
    from holdfast.tasks import runs_code

    (manifest, _), limits = open_manifest(folder), read_limits(folder)
    if manifest.model.box and not limits.keys() >= {"low", "high"}:
        raise InputError(
            f"{run} says that each feature has bounds of its own, but limits.safetensors has none."
        )
    said = manifest.model
    default = (limits["low"], limits["high"]) if said.box else said.bounds
    box = options.box_of(how["bounds"], how["limits"], default, how["schema"])
    rows = suiting(data, manifest.data.loading) | _given(rows)
    source = options.open_source(data, manifest.data.split, box, **rows)
    how = {**how, "preprocess": given_again(said.preprocess, how["preprocess"] or ())}
    if how["task"] is None and runs_code(said.task):
        raise InputError(
            f"the boxes of {run} were read by a function of one's own, as {said.task} says; give "
            "it with --task, for nothing in a folder may say what code is run."
        )
    as_then = {"layout": said.layout, "output": said.output, "task": said.task}
    as_then |= {"attacked": said.attacked, "eot": said.draws, "threshold": said.threshold}
    target = options.open_target(model, source, box, **as_then | _given(how))
    limit = getattr(manifest.certification, "seconds_per_row", None)
    wrong = check(
        folder,
        target,
        source,
        perceptual=perceptual,
        groups=groups and texts.lines_of(groups, "--groups"),
        certifier=Ladder(SLOWER * limit if limit else math.inf),
        full=full,
    )
    if how["probabilities"] not in (None, said.probabilities):
        gave = "probabilities" if said.probabilities else "logits"
        wrong.append(f"model: the run took it to give {gave}, which is not what an option says.")
    try:
        wrong += html.differs(folder)
    except InputError as error:
        wrong.append(f"report.html: {error}")
    schema = texts.schema_of(how["schema"])
    if schema is not None and schema.text() != manifest.threat.table:
        wrong.append(f"threat: the run was measured under another schema than {how['schema']}.")
    return wrong


def _refute(run: Any, wrong: list[str]) -> None:
    """Say what does not hold."""
    from holdfast.reporting.words import printable

    for sentence in wrong:
        typer.echo(printable(sentence))
    typer.echo(
        f"{run} is not confirmed: {len(wrong)} contradiction{'s' if len(wrong) > 1 else ''}.",
        err=True,
    )


def _say(run: Any, wrong: list[str], said: str) -> int:
    """Say whether it is confirmed, and what is; the exit code."""
    if wrong:
        _refute(run, wrong)
        return 1
    typer.echo(f"{run} is confirmed: {said}")
    return 0


def _verify_audit(
    folder: Path,
    model: str | None,
    data: str | None,
    how: dict[str, Any],
    rows: dict[str, Any],
) -> list[str]:
    """What does not hold in an audit."""
    from holdfast.audit.verify import verify as check
    from holdfast.reporting import audited

    if (model is None) != (data is None):
        raise InputError("to try an audit again takes both the MODEL and the DATA.")
    target = source = None
    if model is not None and data is not None:
        source = options.open_source(data, **rows)
        target = options.open_target(model, source, **how)
    wrong = check(folder, target, source)
    try:
        wrong += audited.differs(folder)
    except InputError as error:
        wrong.append(f"report.html: {error}")
    return wrong


def _verify_steps(
    folder: Path,
    run: Any,
    model: str | None,
    data: str | None,
    how: dict[str, Any],
    rows: dict[str, Any],
    perceptual: str | None,
    groups: Path | None,
    *,
    full: bool,
) -> int:
    """Verify an audit by a plan: each of its steps, and that they are those of its report."""
    from holdfast.cli.audit_steps import opened
    from holdfast.reporting import audit_plan as reporting
    from holdfast.runs import audit_plan
    from holdfast.runs.audits import read
    from holdfast.runs.store import open_manifest

    contradicted = False
    audit, whole = audit_plan.opened(folder)
    runs = [step for step in audit.done if step.command not in audit_plan.AUDITS]
    if runs and (model is None or data is None):
        raise InputError(
            f"{run} holds {runs[0].name}, a run; to verify it takes the MODEL and the DATA, too."
        )
    wrong: list[str] = []
    if not whole:
        wrong.append(f"{audit_plan.FILE}: it was changed after the audit (its digest differs).")
    for step in audit.done:
        own = folder / step.name
        found = list[str]()
        if audit_plan.checksum(folder, step) != step.run:
            found.append("run.json: it is not the one that the audit wrote.")
        try:
            if step in runs:
                asked = open_manifest(own)[0]
                found += audit_plan.unlike(audit, step, asked.model.fingerprint)
                contradicted |= writing.contradicted(asked)
                network = perceptual if asked.perceptual else None
                own_groups = groups if asked.data.groups else None
                assert model is not None
                assert data is not None
                found += _verify_run(
                    own, own, model, data, how, rows, network, own_groups, full=full
                )
            else:
                again = step.command == "backdoor"
                both = (model, data) if again else (None, None)
                found += audit_plan.unlike(audit, step, read(own).model.fingerprint)
                found += _verify_audit(own, *both, how, rows)
        except HoldfastError as error:
            found.append(str(error))
        wrong += [f"{step.name}: {said}" for said in found]
    asked_of = any(step in runs or step.command == "backdoor" for step in audit.done)
    if model is not None and data is not None and not asked_of:  # else the steps say it
        target = opened(model, options.open_source(data, **rows), how)
        if target.fingerprint() != audit.fingerprint:
            wrong.append("model: this is not the model that was audited (its fingerprint differs).")
    try:
        wrong += reporting.differs(folder)
    except InputError as error:
        wrong.append(f"report.html: {error}")
    code = _say(run, wrong, f"the steps {', '.join(step.name for step in audit.done)}.")
    return 3 if contradicted else code


def _asked_again(audit: str, model: str | None) -> str:
    """What verify asked the model of an audit, and what it did not."""
    if model is not None:
        return "The model answers its triggers as it says; the search was not repeated."
    how = "only the same audit again could show it"
    if audit == "backdoor":
        how = "give MODEL and DATA, and its triggers are tried again"
    return f"The model was not asked whether the evidence is what it answers: {how}."


def _given(said: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in said.items() if value is not None}


def compare(
    runs: Annotated[
        list[Any],
        typer.Argument(
            help="Run folders, or their URLs; each is compared with the first.",
            metavar="RUN",
            parser=place,
        ),
    ],
    page: Annotated[
        Path | None,
        typer.Option(help="Write the comparison of two runs there, too, as .html.", metavar="FILE"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the comparisons as JSON, one a line.")
    ] = False,
) -> int:
    """Compare runs of the same data and threat, paired by sample: intervals, McNemar's test,
    classes."""
    if len(runs) < 2:
        raise InputError(f"one run was given, {runs[0]}; a comparison takes two or more.")
    if page is not None and (len(runs) > 2 or page.suffix != ".html" or page.exists()):
        raise InputError(f"--page {page} takes two runs, and a name of a new .html file.")
    from holdfast.reporting import paired
    from holdfast.runs.compare import compare as pair
    from holdfast.runs.compare import spread
    from holdfast.runs.remote import fetched

    code = 0
    folders = [fetched(run) for run in runs]
    for found in [pair(folders[0], other) for other in folders[1:]]:
        if found.contradictions:
            rows, code = listed(found.contradictions, 5), 3
            said = f"contradiction: rows {rows} are proved in one of {' and '.join(found.runs)}"
            typer.echo(f"{said}, and broken in the other.", err=True)
        if json:
            typer.echo(found.model_dump_json())
        else:
            writing.show(paired.summary(found))
        if page is not None:
            typer.echo(f"page: {paired.write(page, found)}", err=True)
    if (found := spread(folders)) is not None:
        typer.echo(found.model_dump_json() if json else paired.seeds(found))
    return code


def merge(
    runs: Annotated[
        list[Any],
        typer.Argument(
            help="Run folders of disjoint rows, or the one folder of all shards; or their URLs.",
            metavar="RUN",
            parser=place,
        ),
    ],
    out: Annotated[
        Any,
        typer.Option(
            help="The folder of the merged run, or its URL; default, of shards: merged, within "
            "theirs.",
            metavar="FOLDER",
            parser=place,
        ),
    ] = None,
) -> int:
    """Join runs made with --shard i/n, or with --samples start:stop, into the run that one process
    would have written."""
    from holdfast.evaluation.merge import merge as join
    from holdfast.evaluation.shards import is_store
    from holdfast.reporting import html, terminal
    from holdfast.runs.remote import fetched, mirrored
    from holdfast.runs.store import untrusted

    folders = [fetched(run) for run in runs]
    if out is None:
        if len(runs) > 1 or not is_store(folders[0]):
            raise InputError("--out is not given: name the folder of the merged run.")
        out = f"{runs[0]}/merged"
    with mirrored(out) as whole:
        fresh = not whole.exists()
        try:
            with untrusted(whole):
                merged = join(folders, whole).manifest
                writing.show(terminal.summary(merged))
                typer.echo(f"report: {named(html.write(whole))}", err=True)
        except HoldfastError:
            if fresh:  # so that nothing is in the way of the next try
                shutil.rmtree(whole, ignore_errors=True)
            raise
    return 3 if writing.contradicted(merged) else 0


def report(
    run: Annotated[
        Any,
        typer.Argument(
            help="The folder of a run, a hardening or an audit, or its URL.",
            metavar="RUN",
            parser=place,
        ),
    ],
    junit: Annotated[
        Path | None,
        typer.Option(help="JUnit XML: gates, findings and verdict as tests.", metavar="FILE"),
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option(help="SARIF 2.1.0 for code scanning.", metavar="FILE")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A summary in Markdown; - for stdout.", metavar="FILE")
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(help="A model card in Markdown; - for stdout.", metavar="FILE")
    ] = None,
    gate: options.Gate = None,
) -> int:
    """Write report.html from the stored evidence, show the summary, and write other forms that are
    asked for."""
    from holdfast.runs.remote import mirrored

    with mirrored(run) as folder:
        return _report(folder, gate, junit=junit, sarif=sarif, markdown=markdown, card=model_card)


def _report(run: Path, gate: list[str] | None, **forms: Path | None) -> int:
    from holdfast.reporting import audit_plan as of_steps
    from holdfast.reporting import audited, html, pages, paired, terminal
    from holdfast.reporting import junit as tests
    from holdfast.reporting import markdown as md
    from holdfast.reporting import sarif as scan
    from holdfast.runs import audit_plan, audits, gates
    from holdfast.runs.compare import compare as pair
    from holdfast.runs.store import is_audit, read_manifest, untrusted, write_bytes

    if audit_plan.is_here(run):
        if gate or any(forms.values()):
            raise InputError(
                f"{run} is an audit by a plan; give one of its steps for gates and other forms of "
                "the report."
            )
        writing.show(of_steps.summary(of_steps.found(run)))
        typer.echo(f"report: {named(of_steps.write(run))}", err=True)
        return 0
    if is_audit(run):
        if gate or any(forms.values()):
            raise InputError(f"{run} is an audit, which has no gates and no other forms yet.")
        writing.show(audited.summary(audits.read(run)))
        typer.echo(f"report: {named(audited.write(run))}", err=True)
        return 0
    if pages.is_hardening(run):
        if gate or any(forms.values()):
            raise InputError(
                f"{run} is a hardening, whose two runs are {run / 'before'} and {run / 'after'}; "
                "give one of them for gates and other forms of the report."
            )
        page = pages.write_hardening(run)
        writing.show(paired.summary(pair(run / "before", run / "after")))
        typer.echo(f"report: {named(page)}", err=True)
        return 0
    conditions = [gates.parse(text) for text in gate or ()]
    manifest = read_manifest(run)
    judged = gates.judge(conditions, manifest)
    makers = {
        "junit": lambda: tests.junit(manifest, judged),
        "sarif": lambda: scan.sarif(manifest, judged),
        "markdown": lambda: md.summary(manifest, judged).encode(),
        "card": lambda: md.card(manifest).encode(),
    }
    with untrusted(run):
        made = [(path, makers[form]()) for form, path in forms.items() if path is not None]
        streamed = [content.decode() for path, content in made if path == Path("-")]
        if streamed:
            typer.echo("\n".join(streamed), nl=False)
        else:
            writing.show(terminal.summary(manifest))
    typer.echo(f"report: {named(html.write(run))}", err=True)
    for path, content in made:
        if path != Path("-"):
            write_bytes(path, content)
            typer.echo(f"wrote {path}", err=True)
    return writing.code_of(judged)
