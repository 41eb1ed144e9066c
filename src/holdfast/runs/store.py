"""Files of a run folder: written whole or not at all, read without running anything."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from holdfast.errors import InputError
from holdfast.runs.manifest import Manifest
from holdfast.runs.metrics import schema_of


class Rows(Protocol):
    """What gives back an original by its row."""

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]: ...


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one, the new one or none; synced to the disk."""
    if not path.name:
        raise InputError(f"{path} is a folder, and cannot be the name of a file to write.")
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. What was stored before is kept; an evaluation goes on "
            f"with --resume once there is room."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_bytes(path, save(contiguous, metadata=dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        return load(content), json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}. The file is damaged or not part of a run.") from error


def write_samples(folder: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(schema_of(table.column_names)), sink)
    write_bytes(folder / "samples.parquet", sink.getvalue().to_pybytes())


def read_samples(folder: Path) -> pa.Table:
    """The table of samples.

    Raises:
        InputError: the file is missing, damaged or holds other columns.
    """
    path = folder / "samples.parquet"
    try:
        table = pq.read_table(path)
        return table.cast(schema_of(table.column_names))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}. The file is damaged or not part of a run.") from error


def write_corruptions(folder: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(folder / "corruptions.parquet", sink.getvalue().to_pybytes())


def read_corruptions(folder: Path) -> pa.Table:
    """The model's decisions on corrupted inputs: `id`, and a column for each kind and severity ("fog 3").

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / "corruptions.parquet"
    try:
        table = pq.read_table(path)
        return table.cast(pa.schema([("id", pa.int64()), *((name, pa.int32()) for name in table.column_names[1:])]))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}. The file is damaged or not part of a run.") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_bytes(folder / "run.json", manifest.model_dump_json(indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """run.json of a run.

    Raises:
        InputError: the folder holds no finished run, or one of another schema.
    """
    path = folder / "run.json"
    if not path.is_file():
        unfinished = (folder / "journal").is_dir()
        what = "an unfinished run; finish it with --resume" if unfinished else "no run (run.json is missing)"
        raise InputError(f"{folder} holds {what}.")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the text"
        raise InputError(f"{path} is not a valid run.json: at {where}: {first['msg']}.") from None


def examples(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The stored examples, shard by shard: ids [m], inputs [m, *shape]."""
    for path in sorted((folder / "adversarial").glob("*.safetensors")):
        tensors, _ = read_tensors(path)
        if set(tensors) != {"id", "x"}:
            raise InputError(f"{path} holds {sorted(tensors)}, but a shard of examples holds id and x.")
        yield tensors["id"], tensors["x"]


def write_limits(folder: Path, limits: Mapping[str, np.ndarray]) -> None:
    """What is said for each feature: low and high of the bounds, scale of eps, mask; no file where nothing is."""
    if limits:
        write_tensors(folder / "limits.safetensors", limits)


def read_limits(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "limits.safetensors"
    return read_tensors(path)[0] if path.exists() else {}


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of evidence: samples, decisions on corrupted inputs, examples, gallery and limits."""
    names = ("samples.parquet", "corruptions.parquet", "gallery.safetensors", "limits.safetensors")
    paths = [folder / name for name in names]
    paths += sorted((folder / "adversarial").glob("*.safetensors"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.exists()}


def write_gallery(folder: Path, table: pa.Table, source: Rows, most: int = 12) -> None:
    """A few examples beside their originals, so that the report needs no data: one a class first."""
    size = table.column("size").to_numpy(zero_copy_only=False).astype(float)
    broken = np.flatnonzero((np.array(table.column("status").to_pylist()) == "broken") & np.isfinite(size))
    labels = table.column("label").to_numpy()[broken]
    turn = np.zeros(len(broken), dtype=int)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    picked = table.column("id").to_numpy()[broken[np.lexsort((labels, turn))[:most]]]
    wanted, found = set(picked.tolist()), {}
    for ids, x in examples(folder):
        found |= {int(i): row for i, row in zip(ids, x, strict=True) if int(i) in wanted}
    shown = [int(i) for i in picked if int(i) in found]
    if shown:
        originals = np.concatenate([source.rows(i, i + 1)[0] for i in shown])
        stored = np.stack([found[i] for i in shown])
        write_tensors(folder / "gallery.safetensors", {"id": np.array(shown), "x": originals, "x_adv": stored})
