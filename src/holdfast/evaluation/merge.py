"""Merge: shards of one evaluation become the run that one process would have written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from holdfast.arguments import checked
from holdfast.errors import InputError
from holdfast.evaluation.build_manifest import add_trials, build_manifest
from holdfast.evaluation.chunk import chunk_of
from holdfast.evaluation.facts import question
from holdfast.evaluation.shards import is_store, shards_of
from holdfast.runs import store
from holdfast.runs.journal import (
    as_asked,
    left_as_found,
    protocols_apart,
    refuse_taken,
    two_versions,
)
from holdfast.runs.manifest import SCHEMA_VERSION, Facts, Manifest
from holdfast.runs.metrics import narrow
from holdfast.runs.remote import mirrored
from holdfast.runs.run import Run, folder_of


@checked
def merge(shards: Path | str | Sequence[Run | Path | str], out: Path | str | None = None) -> Run:
    """Join finished runs of disjoint rows of the same data under the same question.

    Args:
        shards: the runs, or their folders, in any order; or the one folder that holds all shards of
            a run, each named as `shard-0-of-4`.
        out: a new folder; None: `merged`, in the folder of all shards. Each of these may be a URL,
            such as `s3://bucket/run`.

    Raises:
        InputError: a shard asks something else (named), rows overlap, or `out` holds something
            already; a shard of a folder of all is missing or not finished.
    """
    given = [shards] if isinstance(shards, (str, Path)) else list(shards)
    folders = [folder_of(shard) for shard in given]
    together = len(given) == 1 and is_store(folders[0])
    if together:
        home = folders[0] if isinstance(given[0], Run) else given[0]
        out, folders = out or f"{home}/merged", shards_of(folders[0])
    if out is None:
        raise InputError("the folder of the merged run is not named; give out.")
    with mirrored(out) as whole, left_as_found(whole, resumable=False):
        refuse_taken(whole)
        manifests = _alike(folders)
        if together:
            _adjoin(manifests)
        with store.untrusted(Path(", ".join(map(str, folders)))):
            _merged(manifests, whole)
        return Run(whole)


def _adjoin(manifests: Sequence[tuple[Manifest, Path]]) -> None:
    """Refuse shards of one folder between which rows are missing."""
    for (before, one), (after, other) in pairwise(manifests):
        stop, start = before.data.parts[-1][1], after.data.parts[0][0]
        if stop < start:
            raise InputError(
                f"{one} ends before row {stop} and {other} begins at row {start}: they were run "
                "with different --samples."
            )


def _alike(shards: Sequence[Path]) -> list[tuple[Manifest, Path]]:
    """The runs in the order of their rows, all of one question."""
    manifests = sorted(
        ((store.read_manifest(s), s) for s in shards), key=lambda pair: pair[0].data.parts
    )
    if not manifests:
        raise InputError("no run was given to merge.")
    for manifest, shard in manifests:
        if manifest.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"cannot merge {shard}: it has schema version {manifest.schema_version}, and this "
                f"Holdfast merges runs of version {SCHEMA_VERSION} alone. Merge it with the "
                "Holdfast that made it, or run it again."
            )
        if manifest.until is not None:
            raise InputError(
                f"cannot merge {shard}: it may have stopped early, by the interval of its own "
                "rows; run each part without --until."
            )
        if store.checksums(shard) != manifest.files:
            raise InputError(
                f"{shard} was changed after its run (checksums differ); see holdfast verify."
            )
    first = manifests[0][0]
    asked = question(first) | {"rows": ""}
    for manifest, shard in manifests[1:]:
        for key, value in (question(manifest) | {"rows": ""}).items():
            if as_asked(value) != as_asked(asked[key]):
                apart = protocols_apart(value, asked[key])
                said, other = apart or (value, asked[key])
                again = ""
                if two_versions(apart):
                    again = (
                        " The attacks of the two versions differ: run one of them again, in a new "
                        "folder, with the Holdfast that made the other."
                    )
                raise InputError(
                    f"cannot merge {shard}: its {key} is {said}, and {manifests[0][1]} has "
                    f"{other}.{again}"
                )
    return manifests


def _merged(manifests: Sequence[tuple[Manifest, Path]], out: Path) -> Manifest:
    first = manifests[0][0]
    tables = [narrow(store.read_samples(shard)) for _, shard in manifests]
    finished = [
        bool(table.column("finished").to_numpy(zero_copy_only=False).all()) for table in tables
    ]
    shards = zip(manifests, finished, strict=True)
    parts = _join(
        [(*part, whole) for (manifest, _), whole in shards for part in manifest.data.parts]
    )
    for (manifest, shard), table in zip(manifests, tables, strict=True):
        store.ids_of(shard, manifest, table)
    table = pa.concat_tables(tables, promote_options="permissive").sort_by("id")
    trials = [
        reduce(add_trials, same) for same in zip(*(m.trials for m, _ in manifests), strict=True)
    ]
    originals = _Originals([shard for _, shard in manifests])
    _examples([shard for _, shard in manifests], out, first.model.shape, parts)
    store.write_samples(out, table)
    for eps in first.threat.apart:
        folders = [store.at_eps(shard, eps) for _, shard in manifests]
        if all((at / "run.json").exists() for at in folders):
            _merged(_alike(folders), store.at_eps(out, eps))
    if first.corruptions is not None:
        answers = pa.concat_tables([store.read_corruptions(shard) for _, shard in manifests])
        store.write_corruptions(out, answers.sort_by("id"))
    store.write_gallery(out, table, originals, rows=bool(first.data.columns), masks=originals.masks)
    store.write_limits(out, store.read_limits(manifests[0][1]))
    facts = Facts(**{name: getattr(first, name) for name in Facts.model_fields})
    measured = [
        pair
        for pair in first.threat.measured
        if all(pair in m.threat.measured for m, _ in manifests)
    ]
    facts = facts.model_copy(
        update={
            "data": facts.data.model_copy(update={"parts": parts}),
            "threat": facts.threat.model_copy(update={"measured": measured}),
            "judge_forwards": sum(m.judge_forwards for m, _ in manifests),
        }
    )
    merged = build_manifest(out, facts, table, trials)
    store.write_manifest(out, merged)
    return merged


class _Originals:
    """The originals that the shards' galleries hold; they include all that the merged gallery
    shows."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.known: dict[int, np.ndarray] = {}
        self.answers: dict[str, dict[int, np.ndarray]] = {}
        for shard in shards:
            if held := store.read_gallery(shard):
                self.known |= dict(zip(held["id"].tolist(), held["x"], strict=True))
                for name in held.keys() & {*store.MASKS}:
                    own = zip(held["id"].tolist(), held[name], strict=True)
                    self.answers.setdefault(name, {}).update(own)

    def masks(self, ids: Sequence[int], x_adv: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.stack([of[i] for i in ids]) for name, of in self.answers.items()}

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([self.known[i] for i in range(start, stop)]), np.zeros(stop - start)


def _join(parts: Sequence[tuple[int, int, bool]]) -> list[tuple[int, int]]:
    """Neighbouring parts (start, stop, finished) as one, but for those that time cut short: their
    chunks stay apart."""
    joined: list[tuple[int, int]] = []
    open_ = False  # whether the last one was cut short
    for start, stop, finished in sorted(parts):
        if joined and start < joined[-1][1]:
            raise InputError(
                f"rows {start} to {min(stop, joined[-1][1])} are in two of the runs; shards must "
                "not overlap."
            )
        if joined and start == joined[-1][1] and finished and not open_:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
        open_ = not finished
    return joined


def _examples(
    shards: Sequence[Path], out: Path, shape: Sequence[int], parts: Sequence[tuple[int, int]]
) -> None:
    """Store the examples again, in the pieces that one process would have cut; no more of them are
    in memory than a few such pieces."""
    counts, kinds = Counter[int](), set[frozenset[str]]()
    for chunk, tensors in _cut(shards, shape, parts):
        counts[chunk] += len(tensors["id"])
        kinds.add(frozenset(tensors))
        x = tensors["x"]
        if list(x.shape[1:]) != list(shape) or not np.isfinite(x).all() or len(kinds) > 1:
            raise InputError(
                "a shard holds examples that are not finite, or of another shape; see holdfast "
                "verify."
            )
    found: dict[int, list[dict[str, np.ndarray]]] = {}
    for chunk, tensors in _cut(shards, shape, parts):
        own = found.setdefault(chunk, [])
        own.append(tensors)
        if sum(len(piece["id"]) for piece in own) == counts[chunk]:
            columns = {name: np.concatenate([piece[name] for piece in own]) for name in tensors}
            order = np.argsort(columns["id"])
            store.write_tensors(
                out / "adversarial" / f"{chunk:09d}.safetensors",
                {name: column[order] for name, column in columns.items()},
            )
            del found[chunk]


def _cut(
    shards: Sequence[Path], shape: Sequence[int], parts: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The examples of each shard piece by piece, and the first row of the chunk that each is of."""
    for shard in shards:
        for tensors in store.evidence(shard):
            chunks = np.array([chunk_of(int(i), parts, shape) for i in tensors["id"]])
            for chunk in np.unique(chunks).tolist():
                yield chunk, {name: column[chunks == chunk] for name, column in tensors.items()}
