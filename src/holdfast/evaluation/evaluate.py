"""Evaluate: how robust is the model? One call from target and data to a run folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast.arguments import checked
from holdfast.attacks.attack import Attack
from holdfast.attacks.trial import Trial
from holdfast.corruptions import measure
from holdfast.decisions import UNASKED
from holdfast.diagnostics import checks
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import certificates, probing, votes
from holdfast.evaluation.build_manifest import add, build_manifest, collect, collect_corruptions
from holdfast.evaluation.certificates import Certifier, Prover
from holdfast.evaluation.chunk import (
    STATUSES,
    OnProgress,
    Progress,
    SearchSettings,
    judge_chunk,
    search,
)
from holdfast.evaluation.estimate import Forecast, forecast
from holdfast.evaluation.facts import Names, facts_of, limits_of, question, threat_info
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.evaluation.prepare import Prepared, check_threat, check_trials, prepare, sizes_of
from holdfast.evaluation.relations import search_without, searched_again
from holdfast.evaluation.truths import masks
from holdfast.evaluation.until import parse as read_until
from holdfast.evaluation.until import stop
from holdfast.memory import give_back_freed
from holdfast.runs import store
from holdfast.runs.journal import Journal, refuse_changes, run_folder
from holdfast.runs.manifest import Costs, Facts, Finding
from holdfast.runs.run import Run
from holdfast.targets import wrap
from holdfast.targets.batch import read
from holdfast.targets.smoothed import Smoothed
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class Evaluation:
    """An evaluation under way: what is asked, and where the answers are kept."""

    ready: Prepared
    settings: SearchSettings
    facts: Facts
    folder: Path
    journal: Journal
    resume: bool
    on_progress: OnProgress | None
    on_estimate: Callable[[Forecast], None] | None
    prover: Prover | None = None

    @property
    def corrupted(self) -> bool:
        return self.facts.corruptions is not None

    @property
    def attacks(self) -> float:
        """The share of the progress that is theirs, or that of votes; the rest is that of
        proofs."""
        if self.prover is None or isinstance(self.ready.target, Smoothed):
            return 1.0
        return 0.5 if self.settings.trials else 0.0


@checked
def evaluate(
    model: Any, data: Any, threat: Threat | str, *, protocol: str = "standard",
    attacks: Sequence[str | Attack | Trial] = (), samples: int | tuple[int, int] | None = None,
    epsilons: Sequence[float] | None = None, seed: int = 0, max_queries: int | None = None,
    max_seconds: float | None = None, out: Path | str | None = None, resume: bool = False,
    on_progress: OnProgress | None = None, on_estimate: Callable[[Forecast], None] | None = None,
    corruptions: bool = False, baseline: Path | str | None = None,
    certifier: Certifier | None = None, groups: Sequence[Any] | np.ndarray | None = None,
    perceptual: str | torch.nn.Module | None = None, names: Names | None = None,
    until: float | str | Sequence[str] | None = None,
) -> Run:  # fmt: skip
    """Measure robust accuracy, and leave the evidence in a folder.

    Args:
        model: what `holdfast.wrap` takes; inputs outside [0, 1] need it wrapped with its bounds.
        data: what `holdfast.data.as_source` takes: (x [n, *shape], y [n]) with x in raw units
            within the model's bounds, a Dataset, a table, a text as on the command line, ... Of a
            multi-label or regression model y is [n, k].
        threat: what the adversary may do; one eps for all rows. Text may also name a movement of
            images, `rotation(30, 3)` (degrees, pixels), `flow(1.5)` (pixels) or `patch(5)` (side in
            pixels): it is then linf on the movement's parameters, see `holdfast.threats.spatial`.
        protocol: `quick`, `standard`, `thorough`, `autoattack`, or `none`: nothing is attacked.
        attacks: the user's own list in its place, as specs or objects.
        samples: the first so many rows, or a (start, stop) range of them; None: all.
        epsilons: further eps to run at: a curve; of boxes and masks each a run in `out`/curve.
        seed: of all noise; a row's noise depends on it and on the row's id alone.
        max_queries: the most forwards that a row may cost.
        max_seconds: start nothing new after this time, and a trial that would last beyond it on
            fewer rows; those never attacked are `skipped`.
        out: the folder, or its URL, such as `s3://bucket/run`, of which the returned object is a
            copy; None: a temporary one, gone with the returned object.
        resume: go on with an unfinished run in `out`, also with one that `max_seconds` cut short.
        on_progress: called with the `Progress`, often.
        on_estimate: called with the `Forecast` of what it costs, before it starts or grows.
        corruptions: also ask for the common corruptions of images (arXiv:1903.12261).
        baseline: whose errors the mCE divides by: `alexnet`, or the folder of a run on these data.
        certifier: proves rows that no attack broke, such as `holdfast.certification.Ladder()`.
        groups: a text or whole number for each row of the data, whose accuracies are told apart.
        perceptual: the network of the column `lpips`: see `evaluation.perceptual`.
        names: what the manifest calls things.
        until: take the rows in random order, by the seed, and stop as soon as the interval of the
            robust accuracy is at most so wide (0.05), or a gate on it is decided
            ("robust_accuracy.low>=0.45"; or all of a list). Every share has then the interval of
            `intervals.anytime_interval`; run.json says after how many rows it stopped.

    Raises:
        InputError: the data or the model breaks the input contract, or `out` holds something else.
        SpecError: the protocol, an attack or the threat cannot be understood.
        AccessError: an attack needs more than the target gives.
    """
    deadline = time.monotonic() + (math.inf if max_seconds is None else max_seconds)
    rule = None if until is None else read_until(until)
    if rule is not None and corruptions:
        raise InputError(
            "until stops by the interval of the robust accuracy, which says nothing of "
            "corruptions; measure these by a run of their own."
        )
    ready = prepare(wrap(model), data, threat, protocol, list(attacks), samples, groups, rule, seed)
    settings = settings_of(ready, sizes_of(epsilons), seed, max_queries, deadline, perceptual)
    with run_folder(out) as folder:
        check_trials(ready, max_queries)
        facts = facts_of(ready, settings, names or Names())
        job = Evaluation(
            ready, settings, facts, folder, Journal(folder), resume, on_progress, on_estimate
        )
        if corruptions:
            job = _with_corruptions(job, baseline)
        job = _with_prover(job, certifier)
        if _opened(job):
            _run(job, None if out is None else folder)
        return Run(folder, temporary=out is None)


def settings_of(
    ready: Prepared,
    curve: Sequence[float],
    seed: int,
    budget: int | None,
    deadline: float,
    perceptual: str | torch.nn.Module | None,
) -> SearchSettings:
    """What is run on every chunk."""
    target, threat = ready.target, ready.threat
    if isinstance(threat.eps, torch.Tensor):
        raise SpecError("evaluate takes one eps for all rows; use holdfast.attack for one a row.")
    check_threat(ready, curve)
    sizes, apart = list(dict.fromkeys(map(float, (threat.eps, *curve)))), list[float]()
    if target.task.enough:  # what goes furthest at one eps says little of another
        sizes, apart = sizes[:1], sizes[1:]
    return SearchSettings(
        target,
        threat,
        ready.protocol.trials,
        measured=sizes,
        apart=apart,
        gradient_sources=ready.gradient_sources,
        seed=seed,
        budget=budget,
        deadline=deadline,
        perceptual=None if perceptual is None else PerceptualDistance(perceptual, target),
        steady=ready.steady,
        smallest=ready.protocol.name == "custom" or not threat.bounded,
        relations=searched_again(ready.protocol, threat, budget),
        packed=target.batcher.device.type == "cuda",  # which waits for each step of a small network
    )


def _run(job: Evaluation, kept: Path | None) -> None:
    """Probe, and answer what is asked of each chunk; then write the files of the run."""
    runs = 1 + len(job.settings.apart)
    with _kept(kept):
        job = _probed(job)
        own = replace(job, on_progress=_part(job.on_progress, 0, runs))
        for chunk in own.ready.chunks:
            _vote(own, chunk)
            _search(own, chunk)
            _corrupt(own, chunk)
            if _enough(own, chunk):
                job, own = _stopped(job, chunk), _stopped(own, chunk)
                break
        _certify(own)
        whole = [
            _run_apart(replace(job, on_progress=_part(job.on_progress, number, runs)), eps)
            for number, eps in enumerate(job.settings.apart, 1)
        ]
    if _write(job) and all(whole):
        job.journal.close()  # else time ran out, and --resume goes on


def _enough(job: Evaluation, chunk: tuple[int, int]) -> bool:
    """Whether the run stops at the end of a chunk: found out once, then read from the journal, for
    proofs may break rows later."""
    rule, ready, journal = job.ready.until, job.ready, job.journal
    if rule is None:
        return False
    if (known := journal.find("stopped")) is not None:
        return int(known[0]["row"]) == chunk[1]
    done = [part for part in ready.chunks if part <= chunk]
    records = [journal.read(f"{start:09d}-done")[0] for start, _ in done]
    status, finished = (
        np.concatenate([r[name] for r in records]) for name in ("status", "finished")
    )
    ends = [chunk[1] - ready.rows[0]]
    if stop(rule, np.array(STATUSES)[status], finished, ends) is None:
        return False
    journal.write("stopped", {"row": np.array(chunk[1])})
    return True


def _stopped(job: Evaluation, chunk: tuple[int, int]) -> Evaluation:
    """The evaluation of the rows up to the end of a chunk alone."""
    rows, facts = (job.ready.rows[0], chunk[1]), job.facts
    assert facts.until is not None
    changed = {
        "data": facts.data.model_copy(update={"parts": [rows]}),
        "until": facts.until.model_copy(update={"stopped": rows[1] - rows[0]}),
    }
    ready = replace(job.ready, rows=rows)
    return replace(job, ready=ready, facts=facts.model_copy(update=changed))


def _part(on_progress: OnProgress | None, number: int, of: int) -> OnProgress | None:
    """Says of the progress of one of several runs what it is of all."""
    if on_progress is None or of == 1:
        return on_progress
    return lambda at: on_progress(at._replace(share=(number + at.share) / of))


def _run_apart(job: Evaluation, eps: float) -> bool:
    """What is asked of each chunk at another eps, as a run of its own within the folder; whether
    everything was run."""
    threat, folder = job.ready.threat.at(eps), store.at_eps(job.folder, eps)
    settings = replace(job.settings, threat=threat, measured=[eps], apart=())
    own = {
        "threat": threat_info(threat, settings),
        "corruptions": None,
        "certification": None,
        "probe_costs": Costs(),
    }
    ready, facts = replace(job.ready, threat=threat), job.facts.model_copy(update=own)
    at = replace(
        job, ready=ready, settings=settings, facts=facts, folder=folder, journal=Journal(folder)
    )
    if not _opened(at):
        return True
    for chunk in ready.chunks:
        _search(at, chunk)
    if whole := _write(at):
        at.journal.close()
    return whole


def _with_corruptions(job: Evaluation, baseline: Path | str | None) -> Evaluation:
    target, source = job.ready.target, job.ready.source
    info = measure.info(target, source.shape, baseline, job.facts.data.fingerprint)
    return replace(job, facts=job.facts.model_copy(update={"corruptions": info}))


def _with_prover(job: Evaluation, certifier: Certifier | None) -> Evaluation:
    if certifier is None:
        return job
    ready = job.ready
    prover = certificates.opened(certifier, ready.target, ready.threat, ready.noted)
    facts = job.facts.model_copy(update={"certification": prover.info})
    return replace(job, prover=prover, facts=facts)


@contextmanager
def _kept(out: Path | None) -> Iterator[None]:
    """Within, an error says that what was measured before it is kept, where anything was."""
    try:
        yield
    except InputError as error:
        if out is None or not Journal(out).holds:
            raise
        raise InputError(
            f"{error} What was measured until then is kept in {out}: the same command with this "
            f"--out goes on with --resume (in Python: out=..., resume=True)."
        ) from error


def _opened(job: Evaluation) -> bool:
    """Open the journal; False where the run that is gone on with was finished."""
    give_back_freed()  # which a training in the same process does not
    asked, folder = question(job.facts), job.folder
    if job.resume and (folder / "run.json").exists() and not job.journal.begun:
        refuse_changes(folder, question(store.read_manifest(folder)), asked)
        return False
    job.journal.open(asked, resume=job.resume)
    # of a run that time cut short, and that now goes on
    for outdated in ("run.json", "report.html"):
        (folder / outdated).unlink(missing_ok=True)
    return True


def _probed(job: Evaluation) -> Evaluation:
    """The evaluation with what the probe finds, and with the trials that answer it."""
    settings, name = job.settings, job.ready.protocol.name
    due = checks.probed(name, settings.budget, settings.target, settings.threat)
    _estimate(job, probed=due)
    found, costs = list[Finding](), Costs()
    if due:
        found, costs = _findings(job)
    added = checks.follow(found, name, settings.threat, settings.gradient_sources)
    noted = [*job.facts.initial_findings, *checks.answered(found, added)]
    if not settings.threat.bounded:
        noted.append(checks.NO_EPS)
    costs = add(costs, settings.gradient_sources.costs)
    facts = job.facts.model_copy(update={"initial_findings": noted, "probe_costs": costs})
    job = replace(job, facts=facts, settings=replace(settings, trials=[*settings.trials, *added]))
    if added:
        _estimate(job, added=len(added))
    return job


def _findings(job: Evaluation) -> tuple[list[Finding], Costs]:
    """What the probe finds, and what it costs: asked once, then read from the journal."""
    if job.journal.find("probe") is None:
        ids, said = probing.once(lambda: _answers(job))
        job.journal.write("probe", {"ids": ids}, said)
    _, said = job.journal.read("probe")
    found = [Finding(**f) for f in json.loads(said["findings"])]
    return found, Costs.model_validate_json(said["costs"])


def _answers(job: Evaluation) -> tuple[np.ndarray, dict[str, str]]:
    """The rows that are probed, and the findings and costs as texts."""
    settings, ready = job.settings, job.ready
    answers = probing.probe(
        settings.target,
        ready.source,
        settings.threat,
        settings.trials[0],
        settings.gradient_sources,
        settings.seed,
    )
    found = [f.model_dump(mode="json") for f in checks.findings_of(answers)]
    said = {"findings": json.dumps(found), "costs": answers.costs.model_dump_json()}
    return answers.ids, said


def _estimate(job: Evaluation, *, probed: bool = False, added: int = 0) -> None:
    """Say what is still to be spent, unless the run was begun before."""
    if job.on_estimate is None or job.resume:
        return
    start, stop = job.ready.rows
    cost = Forecast(stop - start, 0.0, 0.0)
    if job.settings.trials:
        cost = forecast(
            job.settings,
            job.ready.source,
            job.ready.rows,
            probed=probed,
            corruptions=job.corrupted,
            added=added,
        )
        cost = cost.times(1 + len(job.settings.apart))
    if isinstance(job.ready.target, Smoothed):
        cost = votes.forecast(job.ready.target, job.ready.source, job.ready.rows)
    elif job.prover is not None:
        left = max(job.settings.deadline - time.monotonic() - cost.seconds, 0.0)
        cost = replace(cost, proofs=min(left, certificates.most(job.prover, cost.rows)))
    if job.settings.trials or job.prover is not None:
        job.on_estimate(cost)


def _vote(job: Evaluation, chunk: tuple[int, int]) -> None:
    """Count the votes of a smoothed model on the rows of a chunk, unless that is done."""
    if not isinstance(job.ready.target, Smoothed):
        return
    (start, stop), (first, last) = chunk, job.ready.rows

    def on_share(share: float) -> None:
        done = start - first + share * (stop - start)
        if job.on_progress is not None:
            what = f"counting votes: {done:,.0f} of {last - first:,} rows"
            job.on_progress(
                Progress(done / (last - first), what, last - first - round(done), "left")
            )

    votes.count(job.ready.target, job.journal, chunk, job.ready.source, on_share)


def _search(job: Evaluation, chunk: tuple[int, int], *, again: bool = False) -> None:
    """Attack the rows of a chunk and judge what is found, unless it is done.

    Args:
        again: judge it anew, for its proofs met wrong inputs.
    """
    (start, stop), name = chunk, f"{chunk[0]:09d}"
    shard = job.folder / "adversarial" / f"{name}.safetensors"
    done = None if again else job.journal.find(f"{name}-done")
    if done is not None and (done[1]["missed"], done[1]["examples"]) == (
        "[]",
        store.checksum(shard),
    ):
        return
    settings, (first, last) = job.settings, job.ready.rows

    def on_step(share: float, trial: str, live: int) -> None:
        done = start - first + share * (stop - start)
        if job.on_progress is not None:
            job.on_progress(Progress(job.attacks * done / (last - first), trial, live))

    batch, y = read(job.ready.source, start, stop)
    settings = replace(settings, on_step=on_step)
    state = search(
        settings,
        job.journal,
        name,
        batch.to(batch.x.device, settings.target.batcher.dtype),
        torch.from_numpy(y.astype(np.int64)),
        torch.arange(start, stop),
    )
    further = {}
    if settings.relations:
        further = search_without(settings, job.journal, name, state)
    columns, examples, judged = judge_chunk(settings, state)
    if len(examples["id"]):
        store.write_tensors(shard, examples)
    else:
        shard.unlink(missing_ok=True)
    costs = [
        (*key, attacked, broken, paid.model_dump())
        for key, (attacked, broken, paid) in state.costs.items()
    ]
    said = {
        "costs": json.dumps(costs),
        "judged": str(judged),
        "missed": json.dumps(sorted(state.missed)),
        "examples": store.checksum(shard),
    }
    job.journal.write(f"{name}-done", columns | further, said)


def _certify(job: Evaluation) -> None:
    """Prove what can be proved of all rows, where that is asked for and not done."""
    if job.prover is None:
        return

    def on_step(method: str, done: int, total: int) -> None:
        if job.on_progress is not None:
            before = job.attacks
            share = before + (1 - before) * done / max(total, 1)
            what = f"proving with {method}: {done:,} of {total:,} rows"
            job.on_progress(Progress(share, what, total - done, "left"))

    ready = job.ready
    on_wrong = partial(_search, job, again=True)
    certificates.certify(
        job.prover, job.journal, ready.chunks, ready.source, job.settings, on_wrong, on_step
    )


def _corrupt(job: Evaluation, chunk: tuple[int, int]) -> None:
    """Ask for the decisions on corrupted rows of a chunk, where that is asked for and not done."""
    if not job.corrupted:
        return
    (start, stop), name, settings = chunk, f"{chunk[0]:09d}-corrupted", job.settings
    known = job.journal.find(name)
    if known is None or any(UNASKED in column for column in known[0].values()):
        x, ids = torch.from_numpy(job.ready.source.rows(start, stop)[0]), torch.arange(start, stop)
        found = measure.answers(settings.target, x, ids, settings.seed, deadline=settings.deadline)
        job.journal.write(name, found | {"id": ids.numpy()})


def _write(job: Evaluation) -> bool:
    """Make the files of the run from its journal; whether everything was run."""
    ready, folder = job.ready, job.folder
    table, trials, facts, whole = collect(job.settings, job.journal, ready.chunks, job.facts)
    if ready.groups is not None:
        table = table.append_column("group", pa.array(ready.groups[slice(*ready.rows)]))
    store.write_samples(folder, table)
    if job.corrupted:
        answers = collect_corruptions(job.journal, ready.chunks)
        store.write_corruptions(folder, answers)
        whole = whole and not any(UNASKED in column.to_numpy() for column in answers.columns[1:])
    pictured = masks(ready.target, ready.source)
    store.write_gallery(folder, table, ready.source, rows=bool(facts.data.columns), masks=pictured)
    store.write_limits(folder, limits_of(ready.target, ready.threat))
    store.write_manifest(folder, build_manifest(folder, facts, table, trials))
    return whole
