"""Files of a run folder: written whole or not at all, read without running anything."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from holdfast.errors import InputError, first_line
from holdfast.runs.manifest import SCHEMA_VERSION, Manifest, Status
from holdfast.runs.metrics import column_of, schema_of
from holdfast.runs.migration import migrate, migrate_samples

NOTES = ("question.json", "harden.json", "generate.json")  # what was asked: no finished work
GROUP = 1 << 16  # rows of a table that are written at once
NO_DIGEST = "0" * 64  # written in the place of the digest while the digest is computed
_DIGEST = re.compile(rb'"digest": ?"([0-9a-f]{64})"')
_DAMAGED = "The file is damaged or not part of a run."
_MAY_BE_NULL = set(
    "broken_by size margin certified_radius psnr ssim lpips robust_by_refusal clean_confidence "
    "attacked_confidence broken_8bit certified_by not_certified".split()
)
# Errors that computing with such values can raise.
_ODD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class Rows(Protocol):
    """What gives back an original by its row."""

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]: ...


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a crash leaves the old one, the new one or none; synced to the disk."""
    with _writing(path) as file:
        file.write(content)


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, as `write_bytes` does, piece by piece.

    Raises:
        InputError: it cannot be written.
    """
    if not path.name:
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
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
            f"cannot write {path}: {error.strerror or error}. Once the cause is mended, give the "
            "same command again; one that takes --resume goes on with it."
        ) from error


@contextmanager
def untrusted(folder: Path) -> Iterator[None]:
    """Compute with what a folder holds: files made by someone else may hold anything.

    Raises:
        InputError: instead of any error that values lead to which no run has.
    """
    try:
        yield
    except (*_ODD, pa.ArrowException) as error:
        seen = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(
            f"{folder} holds values that no run of Holdfast has ({seen}). Its files are damaged or "
            f"were made by something else."
        ) from error


def with_digest(content: bytes) -> bytes:
    """The text of a file that says `"digest": NO_DIGEST`, with its SHA-256 in that place."""
    found = _digest_in(content)
    assert found is not None
    start, stop = found.span(1)
    return content[:start] + hashlib.sha256(content).hexdigest().encode() + content[stop:]


def digest_holds(content: bytes) -> bool | None:
    """Whether a file is still what `with_digest` made; None: it says no digest."""
    found = _digest_in(content)
    if found is None:
        return None
    start, stop = found.span(1)
    blank = content[:start] + NO_DIGEST.encode() + content[stop:]
    return hashlib.sha256(blank).hexdigest().encode() == found[1]


def _digest_in(content: bytes) -> re.Match[bytes] | None:
    """The last one: no quoted text holds such a key, since JSON writes its quotation marks with a
    backslash."""
    return _DIGEST.match(content, max(content.rfind(b'"digest":'), 0))


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        InputError: there is none, or it is a folder, a pipe or unreadable.
    """
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """A file to read from, as `read_bytes` does."""
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for ever
            raise OSError("it is no file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}. {_DAMAGED}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: it is missing, damaged or no object.
    """
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}. {_DAMAGED}") from error
    if not isinstance(found, dict):
        raise InputError(
            f"cannot read {path}: it holds a {type(found).__name__}, no object. {_DAMAGED}"
        )
    return found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    write_bytes(path, _packed(tensors, {}))


def _packed(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    return save(contiguous, metadata=dict(metadata))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _unpacked(path, read_bytes(path))[0]


def _unpacked(path: Path, content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        length = int.from_bytes(content[:8], "little")
        # refuses a header of more than 100 MB
        return load(content), json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, *_ODD) as error:
        raise InputError(f"cannot read {path}: {error}. {_DAMAGED}") from error


def write_record(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """As `write_tensors`, with a digest of all of the file in its metadata."""
    write_bytes(path, with_digest(_packed(tensors, {**metadata, "digest": NO_DIGEST})))


def read_record(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata that `write_record` wrote.

    Raises:
        InputError: the file is missing, or not what was written.
    """
    content = read_bytes(path)
    if not digest_holds(content):
        raise InputError(f"cannot read {path}: its content does not fit its digest. {_DAMAGED}")
    return _unpacked(path, content)


def write_samples(folder: Path, table: pa.Table) -> None:
    """Write the table of samples; its columns may be `narrow`."""
    _write_table(folder / "samples.parquet", table, schema_of(table.column_names))


def read_samples(folder: Path) -> pa.Table:
    """The table of samples; `runs.samples` reads columns and rows of it.

    Raises:
        InputError: the file is missing, damaged, or holds other columns or values than a run's.
    """
    path, parts = folder / "samples.parquet", list[pa.Table]()
    for piece in _read_pieces(path):
        with readable(path):
            parts.append(_checked(migrate_samples(piece)))
    return pa.concat_tables(parts)


def _checked(table: pa.Table) -> pa.Table:
    """A table of samples with the types that they have.

    Raises:
        ValueError: it holds what none has.
    """
    table = table.cast(schema_of(table.column_names))
    for name in table.column_names:
        check_values(name, table.column(name))
    return table


def check_values(name: str, column: pa.ChunkedArray) -> None:
    """Refuse values that no column of this name in a table of samples has.

    Raises:
        ValueError: some are empty, or name no status.
    """
    if column.null_count and name not in _MAY_BE_NULL:
        raise ValueError(f"its column {name} has empty values")
    others = set(column.unique().to_pylist() if name == "status" else ()) - set(get_args(Status))
    if others:
        raise ValueError(f"it names a status {min(others)!r}")


def write_corruptions(folder: Path, table: pa.Table) -> None:
    _write_table(folder / "corruptions.parquet", table, table.schema)


def _write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    with _writing(path) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, max(table.num_rows, 1), GROUP):
            writer.write_table(table.slice(start, GROUP).cast(schema))
    pa.default_memory_pool().release_unused()  # which Arrow would keep


def read_corruptions(folder: Path) -> pa.Table:
    """The model's decisions on corrupted inputs: `id`, and a column for each kind and severity
    ("fog 3").

    Raises:
        InputError: the file is missing or damaged, or holds other columns.
    """
    path = folder / "corruptions.parquet"
    table = pa.concat_tables(_read_pieces(path))
    with readable(path):
        fields = [("id", pa.int64()), *((name, pa.int32()) for name in table.column_names[1:])]
        table = table.cast(pa.schema(fields))
        odd = [
            f"a column {n!r}" for n in table.column_names[1:] if not re.fullmatch(r"\w+ [1-9]", n)
        ]
        odd += ["empty values" for column in table.columns if column.null_count]
        if odd:
            raise ValueError(f"it has {odd[0]}")
    return table


def _read_pieces(path: Path) -> Iterator[pa.Table]:
    """A table in a Parquet file, first none of its rows and then one group of them after another.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _opened(path) as source, readable(path):
        file = pq.ParquetFile(source)
        yield file.schema_arrow.empty_table()
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, *_ODD) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}. {_DAMAGED}") from error


def ids_of(folder: Path, manifest: Manifest, table: pa.Table) -> np.ndarray:
    """The ids [n] of a table of samples or of corruptions.

    Raises:
        InputError: they are not the rows that run.json names.
    """
    parts, ids = manifest.data.parts, table.column("id").to_numpy()
    named = sum(stop - start for start, stop in parts)  # before anything so long is made
    if named != len(ids) or not np.array_equal(
        ids, np.concatenate([np.arange(a, b) for a, b in parts])
    ):
        raise InputError(
            f"samples: the {len(ids):,} rows of {folder} are not the {named:,} that run.json names."
        )
    return ids


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = manifest.model_copy(update={"digest": NO_DIGEST}).model_dump_json(indent=1)
    # whole numbers on one line: the matrices of a thousand classes take 4 MB, not 16 (in a text a
    # line break is written otherwise)
    text = re.sub(r"\[\n[\s\d,]+\]", lambda numbers: "".join(numbers[0].split()), text)
    write_bytes(folder / "run.json", with_digest(text.encode()))


def read_manifest(folder: Path) -> Manifest:
    """run.json of a run.

    Raises:
        InputError: the folder holds no finished run, one of another schema, or one that was
            changed.
    """
    manifest, holds = open_manifest(folder)
    if not holds:
        raise InputError(
            f"{folder / 'run.json'} was changed after the run (its digest differs); see holdfast "
            "verify."
        )
    return manifest


def open_manifest(folder: Path) -> tuple[Manifest, bool]:
    """run.json of a run, of schema version 1 too, and whether it is what the run wrote. Runs of
    before there was a digest count as that.

    Raises:
        InputError: the folder holds no finished run, or one of another schema.
    """
    path = folder / "run.json"
    if not path.exists():
        what = "no run (run.json is missing)"
        if (folder / "journal").is_dir():
            what = "an unfinished run; finish it with --resume"
        raise InputError(f"{folder} holds {what}.")
    content = read_bytes(path)
    if of_audit(content):
        raise InputError(
            f"{folder} holds an audit, which report, verify and view read; a run of evaluate or "
            "certify was expected."
        )
    found = re.finditer(rb'"schema_version":\s*(-?\d{1,9})', content)
    version = next((int(match[1]) for match in found), SCHEMA_VERSION)
    if version not in (1, SCHEMA_VERSION):
        raise InputError(
            f"{path} has schema version {version}, but this Holdfast reads versions 1 and "
            f"{SCHEMA_VERSION}; use the version of Holdfast that made the run."
        )
    try:
        manifest = Manifest.model_validate_json(migrate(content) if version == 1 else content)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path} is not a valid run.json: at {'.'.join(map(str, first['loc'])) or 'the text'}: "
            f"{first['msg']}."
        ) from None
    return manifest, digest_holds(content) is not False


def is_audit(folder: Path) -> bool:
    """Whether it is the folder that an audit leaves: see `runs.audits`."""
    path = folder / "run.json"
    return path.is_file() and of_audit(read_bytes(path))


def of_audit(content: bytes) -> bool:
    """Whether a run.json is that of an audit, by its first key."""
    return re.match(rb'\s*\{\s*"audit":', content) is not None


def examples(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The stored examples, shard by shard: ids [m], inputs [m, *shape].

    Raises:
        InputError: a shard is damaged, or holds something else.
    """
    for tensors in evidence(folder):
        yield tensors["id"], tensors["x"]


def evidence(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """The shards of stored examples: id [m], x [m, *shape], and under a threat with parameters of
    its own point [m, *form].

    Raises:
        InputError: a shard is damaged, or holds something else.
    """
    for path in sorted((folder / "adversarial").glob("*.safetensors")):
        tensors = read_tensors(path)
        if set(tensors) - {"point"} != {"id", "x"}:
            raise InputError(
                f"{path} holds {sorted(tensors)}, but a shard of examples holds id and x."
            )
        for name in tensors.keys() - {"id"}:
            _check_rows(path, tensors, name)
        yield tensors


def example(folder: Path, sample: int) -> np.ndarray | None:
    """The stored example [*shape] of one row, the only one that is read; None: there is none.

    Raises:
        InputError: a shard is damaged, or the example holds what is not finite.
    """
    for path in sorted((folder / "adversarial").glob("*.safetensors")):
        if not path.is_file():  # to open a pipe would wait for ever
            raise InputError(f"cannot read {path}: it is no file. {_DAMAGED}")
        try:
            with safe_open(path, "numpy") as shard:
                at = np.flatnonzero(shard.get_tensor("id") == sample)
                found = [np.asarray(shard.get_slice("x")[int(place)]) for place in at[:1]]
        except (OSError, SafetensorError, *_ODD) as error:
            raise InputError(f"cannot read {path}: {first_line(error)}. {_DAMAGED}") from error
        for x in found:
            if x.dtype.kind not in "fui" or not (np.abs(x.astype(np.float64)) < 1e30).all():
                raise InputError(f"{path} holds values that are not finite. {_DAMAGED}")
            return x
    return None


def _check_rows(path: Path, tensors: Mapping[str, np.ndarray], *inputs: str) -> None:
    """Refuse what is not ids [m], each once, and inputs [m, *shape] of one shape and of numbers.

    Raises:
        InputError: says what the file holds.
    """
    ids, arrays = tensors["id"], [tensors[name] for name in inputs]
    fit = all(a.ndim > 1 and a.shape == arrays[0].shape and a.dtype.kind in "fui" for a in arrays)
    once = ids.dtype == np.int64 and len(set(ids.reshape(-1).tolist())) == ids.size
    if not (fit and once and ids.shape == arrays[0].shape[:1]):
        said = ", ".join(
            f"{n} {tensors[n].dtype} {list(tensors[n].shape)}" for n in ("id", *inputs)
        )
        raise InputError(
            f"{path} holds {said}; expected ids, each once, and as many inputs. {_DAMAGED}"
        )


def write_limits(folder: Path, limits: Mapping[str, np.ndarray]) -> None:
    """What is said for each feature: low and high of the bounds, scale of eps, mask; no file where
    nothing is."""
    if limits:
        write_tensors(folder / "limits.safetensors", limits)


def read_limits(folder: Path) -> dict[str, np.ndarray]:
    """What `write_limits` wrote.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    path = folder / "limits.safetensors"
    if not path.exists():
        return {}
    limits = read_tensors(path)
    alike = len({(a.shape, a.dtype.kind in "fb") for a in limits.values()}) == 1
    finite = all(np.isfinite(a).all() for a in limits.values() if a.dtype.kind == "f")
    if not set(limits) <= {"low", "high", "scale", "mask"} or not alike or not finite:
        raise InputError(
            f"{path} holds {sorted(limits)}; expected finite low, high, scale or mask, of one "
            "shape."
        )
    return limits


def at_eps(folder: Path, eps: float) -> Path:
    """The folder of the run at a further eps, in that of a run whose curve is of several."""
    return folder / "curve" / repr(float(eps))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of evidence: samples, decisions on corrupted inputs, examples, gallery
    and limits, and those of the runs at further eps.

    Raises:
        InputError: one of them is no file.
    """
    names = ("samples.parquet", "corruptions.parquet", "gallery.safetensors", "limits.safetensors")
    paths = [folder / name for name in names]
    paths += sorted((folder / "adversarial").glob("*.safetensors"))
    for run in sorted((folder / "curve").glob("*/run.json")):
        paths += [run.parent / name for name in checksums(run.parent)]
    return {str(p.relative_to(folder)): checksum(p) for p in paths if p.exists()}


def checksum(path: Path) -> str:
    """The SHA-256 of a file; empty where there is none."""
    if not path.exists():
        return ""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# of a segmenter: the classes of the pixels, int16 [m, h, w] each, by the truth and by the answers
MASKS = ("truth", "clean", "attacked")
# these of the rows of some ids and of their examples [m, *shape]
Masks = Callable[[Sequence[int], np.ndarray], dict[str, np.ndarray]]


def write_gallery(
    folder: Path, table: pa.Table, source: Rows, *, rows: bool = False, masks: Masks | None = None
) -> None:
    """A few examples with their originals, so that the report needs no data: one a class
    first."""
    made = gallery(folder, table, source, rows=rows, masks=masks)
    if made:
        write_tensors(folder / "gallery.safetensors", made)


def read_gallery(folder: Path) -> dict[str, np.ndarray]:
    """id [m], x and x_adv [m, *shape], all finite, and of a segmenter its `MASKS`; nothing where
    there is no gallery.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    path = folder / "gallery.safetensors"
    if not path.exists():
        return {}
    tensors = read_tensors(path)
    if set(tensors) - {*MASKS} != {"id", "x", "x_adv"} or len(tensors) not in (3, 6):
        raise InputError(
            f"{path} holds {sorted(tensors)}, but a gallery holds id, x and x_adv, of one length."
        )
    _check_rows(path, tensors, "x", "x_adv")
    if masks := [tensors[name] for name in MASKS if name in tensors]:
        _check_rows(path, tensors, *MASKS)
        if any(mask.dtype.kind != "i" or mask.ndim != 3 for mask in masks):
            raise InputError(f"{path} holds masks that are no classes [m, h, w]. {_DAMAGED}")
    if not all((np.abs(tensors[n].astype(np.float64)) < 1e30).all() for n in ("x", "x_adv")):
        raise InputError(f"{path} holds values that are not finite. {_DAMAGED}")
    return tensors


def gallery(
    folder: Path, table: pa.Table, source: Rows, *, rows: bool = False, masks: Masks | None = None
) -> dict[str, np.ndarray]:
    """What `write_gallery` stores of this table and these examples: some that are broken, of each
    class in turn; more of `rows` of a table, which are small and of which the report makes a
    summary."""
    size = table.column("size").to_numpy(zero_copy_only=False).astype(float)
    broken = np.flatnonzero((column_of(table, "status") == "broken") & np.isfinite(size))
    labels = table.column("label").to_numpy()[broken]
    turn = np.zeros(len(broken), dtype=int)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    picked = table.column("id").to_numpy()[
        broken[np.lexsort((labels, turn))[: 1000 if rows else 12]]
    ]
    ids_shown, found = set(picked.tolist()), {}
    for ids, x in examples(folder):
        found |= {int(i): row for i, row in zip(ids, x, strict=True) if int(i) in ids_shown}
    shown = [int(i) for i in picked if int(i) in found]
    if not shown:
        return {}
    # in the order of the rows, as files are read
    held = {i: source.rows(i, i + 1)[0] for i in sorted(shown)}
    originals = np.concatenate([held[i] for i in shown])
    x_adv = np.stack([found[i] for i in shown])
    more = {} if masks is None else masks(shown, x_adv)
    return {"id": np.array(shown), "x": originals, "x_adv": x_adv, **more}
