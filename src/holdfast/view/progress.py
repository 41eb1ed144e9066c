"""How far an unfinished run is, by what its journal holds."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import InputError
from holdfast.runs.store import read_json

# the first row of a chunk, and what was done with it; an attack has a number
_RECORD = re.compile(r"(\d{9})-(clean|done|certified|corrupted|(\d{4})(?:-\d+)?)\.safetensors")
_HEADER = 1 << 20  # bytes: the most that is read of a record to learn of how many rows it is
_MOST = 0.95  # of a chunk that is not done


@dataclass(frozen=True)
class Progress:
    """What the journal says of a run."""

    threat: str
    protocol: str  # its name
    rows: int
    done: int  # rows that every attack has been run on
    share: float  # of all the work, about: 0 to 1
    stage: str  # what is at work
    written: float  # the last record, in seconds of the clock


def progress_of(folder: Path) -> Progress:
    """The progress of a run that has a journal and no run.json.

    Raises:
        InputError: the journal does not say what was asked.
    """
    journal = folder / "journal"
    question = read_json(journal / "question.json")
    rows = _rows(question, journal)
    protocol, _, trials = str(question.get("protocol", "")).partition(": ")
    records = {path: _RECORD.fullmatch(path.name) for path in journal.glob("*.safetensors")}
    found = {path: record for path, record in records.items() if record is not None}
    newest = max(found, key=_written, default=None)
    kinds = Counter(record[2] for record in found.values() if record[3] is None)
    size = {record[1]: _length(p) for p, record in found.items() if record[2] == "clean"}
    done = sum(size.get(record[1], 0) for record in found.values() if record[2] == "done")
    attacks = Counter(record[1] for record in found.values() if record[3] is not None)
    whole = max(attacks.values(), default=0)  # attacks on a chunk that is done, or as many at least
    if not kinds["done"]:
        whole = max(whole + 1, _attacks(trials, str(question.get("eps", ""))))
    begun = sum(
        size[start] * min(attacks[start] / max(whole, 1), _MOST)
        for start in size
        if not (journal / f"{start}-done.safetensors").exists()
    )
    share = min((done + begun) / max(rows, 1), 1.0)
    if "certification" in question:
        share = 0.5 * (share + kinds["certified"] / max(len(size), 1) * done / max(rows, 1))
    return Progress(
        threat=_asked(question),
        protocol=protocol.partition(" version ")[0],
        rows=rows,
        done=done,
        share=share,
        stage=_stage(found.get(newest)) if newest else "before the first rows",
        written=_written(newest or journal / "question.json"),
    )


def _asked(question: dict[str, object]) -> str:
    movement = question.get("movement", "none")
    return str(question.get("threat", "") if movement == "none" else movement)


def _rows(question: dict[str, object], journal: Path) -> int:
    parts = re.findall(r"(\d{1,15}):(\d{1,15})", str(question.get("rows", "")))
    if not parts:
        raise InputError(
            f"{journal / 'question.json'} names no rows. The file is damaged or not part of a run."
        )
    return sum(max(int(stop) - int(start), 0) for start, stop in parts)


def _attacks(trials: str, sizes: str) -> int:
    """About how many runs of attacks a chunk takes: restarts of trials at each eps."""
    each = re.findall(r"restarts=(\d{1,4})", trials)
    once = len(trials.split("; ")) - len(each)
    return (once + sum(map(int, each))) * len(sizes.split(", "))


def _stage(record: re.Match[str] | None) -> str:
    if record is None:
        return ""
    if record[3] is not None:
        return f"attack {int(record[3]) + 1} done on the rows from {int(record[1]):,}"
    said = {
        "clean": "clean answers known of the rows from",
        "done": "done with the rows from",
        "certified": "proofs tried on the rows from",
        "corrupted": "corruptions asked of the rows from",
    }
    return f"{said[record[2]]} {int(record[1]):,}"


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it went meanwhile
        return 0.0


def _length(path: Path) -> int:
    """Of how many rows a record is, as the first lines of its file say; 0: it says nothing."""
    if path.is_symlink() or not path.is_file():  # to open a pipe would wait for ever
        return 0
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < _HEADER else {}
        return int(header["label"]["shape"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return 0
