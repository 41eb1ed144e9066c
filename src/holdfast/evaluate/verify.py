"""Verify: judge the stored evidence again, and compute every figure of a run anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast.attacks.problem import legal_size
from holdfast.data import Source
from holdfast.data.laid import laid_as
from holdfast.errors import HoldfastError, InputError
from holdfast.evaluate import corrupted, judge, moved, protocols, signs
from holdfast.evaluate.contract import check_model
from holdfast.evaluate.exam import examine
from holdfast.evaluate.finish import finish
from holdfast.evaluate.graded import graded, outputs
from holdfast.evaluate.looks import PerceptualDistance, looks
from holdfast.evaluate.prepare import open_for
from holdfast.evaluate.ways import Ways
from holdfast.norms import NORMS
from holdfast.runs import store
from holdfast.runs.manifest import Facts, Manifest
from holdfast.targets import spatial
from holdfast.targets.target import Access, Target
from holdfast.targets.truth import WithTruth
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.threat import Targeted, Threat, Untargeted

LISTED = 5
STRIDE = 1024


def verify(folder: Path, target: Target, data: Any, perceptual: str | torch.nn.Module | None = None) -> list[str]:
    """What does not hold in a run folder, one sentence each; empty where all of it does.

    Files are held against their checksums, model and data against their fingerprints, each label, prediction and
    stored example against the model itself, and each figure of run.json against the table of samples. Perceptual
    distances are held against the network where it is given. `data` is what `holdfast.data.as_source` takes.

    Raises:
        InputError: the folder holds no run that can be read at all, or none with distances of a network that is given.
    """
    manifest = store.read_manifest(folder)
    wrong = list(_files(folder, manifest))
    source = open_for(target, data)
    if len(manifest.model.shape) in (2, 3) and len(source.shape) in (2, 3):
        source = laid_as(source, tuple(manifest.model.shape), "the run measured")
    groups = source.groups
    movement = spatial.parse(manifest.model.moved)
    if movement is not None and target.free is None:
        target, source = moved.moved(target, source, movement)
    asked = _threat(folder, manifest)
    target, source = graded(target, source, asked)
    target.bind(source.shape)
    if manifest.model.draws > 1 and target.draws == 1:
        target = ExpectationOverTransformation(target, manifest.model.draws)
    target.probabilities = manifest.model.probabilities
    seen = None if perceptual is None else PerceptualDistance(perceptual, target)
    if seen is not None and manifest.perceptual is None:
        raise InputError(f"{folder} was measured without --perceptual, so it holds no distances of a network.")
    if seen is not None and seen.fingerprint != manifest.perceptual:
        wrong.append("perceptual: this is not the network that was asked (its fingerprint differs).")
    if target.fingerprint() != manifest.model.fingerprint:
        wrong.append("model: this is not the model that was measured (its fingerprint differs).")
    if source.fingerprint() != manifest.data.fingerprint:
        wrong.append("data: these are not the data that were measured (their fingerprint differs).")
    try:
        wrong += _facts(manifest, asked, target, source)
        table = store.read_samples(folder)
        wrong += _figures(folder, manifest, table)
        wrong += _groups(table, groups)
        wrong += _samples(folder, manifest, asked, table, target, source, seen)
        wrong += _corrupted(folder, manifest, target, source)
    except HoldfastError as error:
        wrong.append(str(error))
    return wrong


def _facts(manifest: Manifest, asked: Threat, target: Target, source: Source) -> Iterator[str]:
    """What run.json says was asked, held against itself and against the code."""
    said = manifest.threat
    measured = [(eps, float(legal_size(asked.norm, eps, target, 1))) for eps, _ in said.measured]
    if repr(asked) != said.text:
        yield f"threat: its text is {said.text}, but its parts make {asked}."
    if not said.measured or said.measured[0][0] != said.eps or not np.allclose(said.measured, measured, rtol=1e-12):
        yield f"threat: eps is {said.eps}, but run.json counts as measured {said.measured}."
    protocol = manifest.protocol
    if protocol.name != "custom":
        aimed, movement = said.target is not None, spatial.parse(manifest.model.moved)
        kinds = [(access, False) for access in Access] + [(Access.GRADIENTS, True)] * (target.draws > 1)
        known = [protocols.protocol(protocol.name, said.norm, aimed=aimed, access=a, drawn=d) for a, d in kinds]
        lists = [[t.write(whole=True) for t in moved.suited(one, movement).trials] for one in known]
        if protocol.version == known[0].version and protocol.trials not in lists:
            yield f"protocol: its trials are not those of {protocol.name} version {protocol.version}."
    run = [(trial.spec, trial.eps) for trial in manifest.trials]
    if run[: len(protocol.trials)] != [(text, said.eps) for text in protocol.trials]:
        yield "trials: they are not those of the protocol at the threat's eps."
    more = [text for text, eps in run[len(protocol.trials) :] if eps == said.eps]
    asked_for = [t.write(whole=True) for t in _followed(manifest, asked, target, source)]
    if more != asked_for:
        yield f"trials: the findings ask for {asked_for} after the protocol, but run.json has {more}."
    again = {finding.check for finding in check_model(target, source)} - {"train_mode", "probabilities"}
    again |= _signs(manifest, asked, target, source)
    left_out = again - {check for finding in manifest.noted for check in (finding.check, *finding.shows_as)}
    if left_out:
        yield f"noted: run.json leaves out what the model shows: {', '.join(sorted(left_out))}."


def _followed(manifest: Manifest, threat: Threat, target: Target, source: Source) -> list[protocols.Trial]:
    """What the findings ask for after the protocol."""
    protocol = protocols.Protocol(manifest.protocol.name, manifest.protocol.version, ())
    return signs.follow(manifest.noted, protocol, threat, Ways(target, threat, source))


def _signs(manifest: Manifest, threat: Threat, target: Target, source: Source) -> set[str]:
    """What the examination finds against the figure, asked anew."""
    if not manifest.examined.forwards:
        return set()
    first = protocols.parse_trial(manifest.protocol.trials[0])
    answers = examine(target, source, threat, first, Ways(target, threat, source), manifest.seed)
    return {finding.check for finding in signs.signs(answers) if finding.severity != "info"}


def _threat(folder: Path, manifest: Manifest) -> Threat:
    goal = manifest.threat.target
    if manifest.threat.norm not in NORMS:
        raise InputError(f"run.json names an unknown norm {manifest.threat.norm!r}.")
    aim = Untargeted() if goal is None else Targeted(goal)
    limits = {n: torch.from_numpy(a) for n, a in store.read_limits(folder).items() if n in ("scale", "mask")}
    return Threat(NORMS[manifest.threat.norm], manifest.threat.eps, aim).limited(**limits)


def _files(folder: Path, manifest: Manifest) -> Iterator[str]:
    now = store.checksums(folder)
    for name in sorted(manifest.files.keys() | now.keys()):
        if name not in now:
            yield f"{name}: missing."
        elif name not in manifest.files:
            yield f"{name}: not part of the run."
        elif now[name] != manifest.files[name]:
            yield f"{name}: its content was changed after the run (its checksum differs)."


def _figures(folder: Path, manifest: Manifest, table: pa.Table) -> Iterator[str]:
    facts = Facts(**{name: getattr(manifest, name) for name in Facts.model_fields})
    again = finish(folder, facts, table, manifest.trials)
    for part in ("metrics", "verdict", "costs"):
        said, found = getattr(manifest, part).model_dump(), getattr(again, part).model_dump()
        yield from _differences(part, said, found)
    for cost in ("forwards", "backwards", "queries"):
        spent = sum(getattr(trial.costs, cost) for trial in manifest.trials)
        booked = int(np.sum(table.column(cost).to_numpy()))
        if spent != booked:
            yield f"trials: their {cost} add up to {spent}, but the samples say {booked}."
    by = Counter(table.column("broken_by").to_pylist())
    for i, trial in enumerate(t for t in manifest.trials if t.eps == manifest.threat.eps):
        fell = sum(r.broken for r in trial.rounds)
        if trial.rounds and (fell != trial.broken or trial.rounds[0].attacked != trial.attacked):
            yield f"trials: the rounds of {trial.spec} do not add up to its rows attacked and broken."
        if by[i] > trial.broken:
            yield f"trials: {trial.spec} broke {trial.broken} rows, but the samples give it {by[i]}."


def _groups(table: pa.Table, groups: np.ndarray | None) -> Iterator[str]:
    """Against those of the data; where they were given beside it, the checksum of samples.parquet alone holds them."""
    if groups is None or "group" not in table.column_names:
        return
    ids = table.column("id").to_numpy()
    known = (ids >= 0) & (ids < len(groups))
    others = ids[known][table.column("group").to_numpy(zero_copy_only=False)[known] != groups[ids[known]]]
    if len(others):
        yield f"samples: the groups of rows {_some(others)} are not those of the data."


def _differences(name: str, said: Any, found: Any) -> Iterator[str]:
    if isinstance(said, dict) and isinstance(found, dict):
        for key in sorted(said.keys() | found.keys(), key=str):
            yield from _differences(f"{name}.{key}", said.get(key), found.get(key))
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for i, (a, b) in enumerate(zip(said, found, strict=True)):
            yield from _differences(f"{name}[{i}]", a, b)
    elif said != found:
        yield f"{name}: run.json says {said}, but the samples give {found}."


def _samples(
    folder: Path,
    manifest: Manifest,
    asked: Threat,
    table: pa.Table,
    target: Target,
    source: Source,
    seen: PerceptualDistance | None,
) -> Iterator[str]:
    ids = table.column("id").to_numpy()
    expected = np.concatenate([np.arange(a, b) for a, b in manifest.data.parts])
    if not np.array_equal(ids, expected):
        yield "samples: the rows are not those that run.json names."
        return
    if ids.max(initial=-1) >= len(source):
        yield f"data: they have {len(source)} rows, but the run measured row {ids.max()}."
        return
    place = {int(i): row for row, i in enumerate(ids)}
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    yield from _clean(manifest, columns, ids, target, source)
    evidence = np.zeros(len(ids), dtype=bool)
    for path_ids, stored in store.examples(folder):
        rows = np.array([place.get(int(i), -1) for i in path_ids])
        if (rows < 0).any() or stored.shape[1:] != tuple(source.shape):
            yield f"adversarial: examples of rows that the run does not have: {_some(path_ids[rows < 0])}."
            continue
        evidence[rows] = True
        yield from _examples(manifest, asked, columns, path_ids, rows, stored, target, source, seen)
    bare = (columns["status"] == "broken") & ~evidence
    if bare.any():
        yield f"adversarial: no stored example for broken rows {_some(ids[bare])}."


def _clean(
    manifest: Manifest, columns: dict[str, np.ndarray], ids: np.ndarray, target: Target, source: Source
) -> Iterator[str]:
    label, said, status = columns["label"], columns["clean_prediction"], columns["status"]
    relabelled, repredicted, retold = [], [], []
    for start in range(0, len(ids), STRIDE):
        part = slice(start, min(start + STRIDE, len(ids)))
        x, y = _rows(source, ids[part])
        ruling = judge.rule(target, torch.from_numpy(x).to(target.device, target.dtype), manifest.seed)
        relabelled += list(ids[part][label[part] != y])
        waver = (status[part] == "unstable") | ~ruling.stable.cpu().numpy()
        repredicted += list(ids[part][(ruling.label.cpu().numpy() != said[part]) & ~waver])
        retold += list(ids[part][_retold(columns, "clean_output", part, target, torch.from_numpy(x), ruling) & ~waver])
    if retold:
        yield f"samples: the truths or the model's outputs for rows {_some(retold)} are others."
    if relabelled:
        yield f"samples: the labels of rows {_some(relabelled)} are not those of the data."
    if repredicted:
        yield f"samples: the model's clean predictions for rows {_some(repredicted)} are others."
    claimed = np.isin(status, ["robust", "certified", "broken"]) & (said != label)
    if claimed.any():
        yield f"samples: rows {_some(ids[claimed])} are misclassified clean, yet called {status[claimed][0]}."
    denied = (status == "wrong") & (said == label)
    if denied.any():
        yield f"samples: rows {_some(ids[denied])} are called wrong, but the model has them right."
    idle = (status == "skipped") & (columns["queries"] > 0)
    if idle.any():
        yield f"samples: rows {_some(ids[idle])} are called skipped, but were attacked."
    proved = (status == "certified") & np.isnan(columns["certified_radius"].astype(float))
    if proved.any():
        yield f"samples: rows {_some(ids[proved])} are called certified without a radius."
    moved = (status != "broken") & (columns["attacked_prediction"] != said)
    if moved.any():
        yield f"samples: rows {_some(ids[moved])} have a prediction under attack, but are not called broken."


def _examples(
    manifest: Manifest,
    asked: Threat,
    columns: dict[str, np.ndarray],
    ids: np.ndarray,
    rows: np.ndarray,
    stored: np.ndarray,
    target: Target,
    source: Source,
    perceptual: PerceptualDistance | None,
) -> Iterator[str]:
    threat = asked.at(max(eps for eps, _ in manifest.threat.measured))
    x = torch.from_numpy(_rows(source, ids)[0]).to(target.dtype)
    x_adv, y = torch.from_numpy(stored).to(target.dtype), torch.from_numpy(columns["label"][rows])
    legal, size = judge.within(target, threat, x, x_adv)
    ruling = judge.rule(target, x_adv.to(target.device), manifest.seed)
    label, stable = ruling.label.cpu(), ruling.stable.cpu()
    meets = judge.meets_goal(threat, label, y) | ~stable
    own = manifest.threat.measured[0][1]
    broken = columns["status"][rows] == "broken"
    other_size = ~np.isclose(size.numpy(), columns["size"][rows], rtol=1e-9, atol=0)
    shown = zip(("psnr", "ssim"), looks(target, x, x_adv), strict=True)
    seen = [(columns[name][rows], value.numpy()) for name, value in shown]
    other_look = ~np.all([np.isclose(*pair, rtol=1e-6, atol=1e-9, equal_nan=True) for pair in seen], 0)
    other_distance = np.zeros(len(ids), dtype=bool)
    if perceptual is not None:
        said = columns.get("lpips", np.full(len(columns["id"]), np.nan))[rows]
        again = perceptual(x[legal], x_adv[legal]).numpy()  # others may hold NaN
        other_distance[legal.numpy()] = ~np.isclose(again, said[legal.numpy()], rtol=1e-6, atol=1e-9)
    other_label = broken & stable.numpy() & (label.numpy() != columns["attacked_prediction"][rows])
    retold = broken & stable.numpy() & _retold(columns, "attacked_output", rows, target, x_adv, ruling)
    hidden = ~broken & (size <= own).numpy() & legal.numpy() & meets.numpy()
    for bad, what in (
        (~legal.numpy(), "are outside the threat or the box, or not finite"),
        (~meets.numpy(), "do not fool the model"),
        (other_size, "have another size than samples.parquet says"),
        (other_look, "look otherwise (PSNR, SSIM) than samples.parquet says"),
        (other_distance, "have another perceptual distance than samples.parquet says"),
        (other_label, "are given another label by the model than samples.parquet says"),
        (retold, "are given other outputs by the model than samples.parquet says"),
        (broken & (size > own).numpy(), "are larger than eps"),
        (hidden, "break rows that are not called broken"),
    ):
        if bad.any():
            yield f"adversarial: the stored examples of rows {_some(ids[bad])} {what}."


def _corrupted(folder: Path, manifest: Manifest, target: Target, source: Source) -> Iterator[str]:
    """The model's decisions on corrupted inputs, asked for again."""
    asked = manifest.corruptions
    if asked is None:
        return
    again = corrupted.info(target, source.shape, None, manifest.data.fingerprint)
    if (again.version, again.table) != (asked.version, asked.table):
        yield f"corruptions: they were {asked.table}'s, version {asked.version}; here {again.table}'s, {again.version}."
        return
    answers = store.read_corruptions(folder)
    ids = answers.column("id").to_numpy().copy()
    expected = np.concatenate([np.arange(a, b) for a, b in manifest.data.parts])
    if not np.array_equal(ids, expected) or tuple(answers.column_names[1:]) != corrupted.COLUMNS:
        yield "corruptions: the rows or kinds of corruptions.parquet are not those of the run."
        return
    for name in corrupted.COLUMNS:
        said, others = answers.column(name).to_numpy(), []
        for start in range(0, len(ids), STRIDE):
            part = ids[start : start + STRIDE]
            x = corrupted.spoiled(
                target, torch.from_numpy(_rows(source, part)[0]), name, torch.from_numpy(part), manifest.seed
            )
            ruling = judge.rule(target, x, manifest.seed)
            told = said[start : start + STRIDE]
            differs = (ruling.label.cpu().numpy() != told) & ruling.stable.cpu().numpy() & (told != corrupted.UNASKED)
            others += list(part[differs])
        if others:
            yield f"corruptions: under {name} the model's decisions on rows {_some(others)} are others."


def _retold(
    columns: dict[str, np.ndarray], name: str, at: Any, target: Target, x: torch.Tensor, ruling: judge.Ruling
) -> np.ndarray:
    """Where a model whose task is not one of k classes has other truths or outputs than the samples say: [m] bool."""
    if not isinstance(target, WithTruth) or ruling.scores is None or not len(x):
        return np.zeros(len(x), dtype=bool)
    found = outputs(target, x, ruling.scores.cpu())
    alike = np.ones(len(x), dtype=bool)
    for column, value in zip(("truth", name), found, strict=True):
        said = np.stack(list(columns[column][at]))
        alike &= np.isclose(said, value, rtol=1e-4, atol=1e-5, equal_nan=True).all(1)
    return ~alike


def _rows(source: Source, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source's rows of these ids, in runs of neighbours."""
    cuts = np.flatnonzero(np.diff(ids) != 1) + 1
    parts = [source.rows(int(run[0]), int(run[-1]) + 1) for run in np.split(ids, cuts) if len(run)]
    if not parts:
        raise InputError("there are no rows to read.")
    return np.concatenate([x for x, _ in parts]), np.concatenate([np.asarray(y) for _, y in parts])


def _some(ids: Any) -> str:
    shown = ", ".join(str(int(i)) for i in list(ids)[:LISTED])
    return shown if len(ids) <= LISTED else f"{shown} and {len(ids) - LISTED} more"
