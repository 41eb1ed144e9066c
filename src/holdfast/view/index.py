"""The runs under a folder: found by a search of its own, and known by the names that it gives them.

A name that comes from a browser is looked up among these, and never becomes part of a path.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from holdfast.errors import InputError, first_line
from holdfast.intervals import Interval, Real
from holdfast.runs.manifest import Eps, Facts, VerdictStatus
from holdfast.runs.migration import migrate
from holdfast.runs.store import of_audit, read_bytes
from holdfast.view.progress import Progress, progress_of


class _Part(BaseModel):
    """A part of run.json, of which most is left unread."""

    model_config = ConfigDict(extra="ignore")


class _Model(_Part):
    spec: str
    bounds: tuple[float, float]
    transformation: str | None = None


class _Spec(_Part):
    spec: str


class _Threat(_Part):
    text: str
    eps: Eps


class _Protocol(_Part):
    name: str


class _Sizes(_Part):
    median: Real


class _Metrics(_Part):
    clean_accuracy: Interval
    robust_accuracy: Interval
    certified_accuracy: Interval | None = None
    sizes: _Sizes


class _Status(_Part):
    status: VerdictStatus


class _Costs(_Part):
    forwards: int
    backwards: int
    seconds: FiniteFloat


class _Provenance(_Part):
    created: str


class Summary(_Part):
    """What the list of runs shows of a finished one."""

    model: _Model
    data: _Spec
    threat: _Threat
    protocol: _Protocol
    metrics: _Metrics
    verdict: _Status
    costs: _Costs
    provenance: _Provenance

    asked = Facts.asked


class _Answer(_Part):
    found: bool | None
    reason: str


class AuditSummary(_Part):
    """What the list of runs shows of an audit."""

    audit: str
    model: _Spec
    verdict: _Answer
    provenance: _Provenance


@dataclass(frozen=True)
class Entry:
    """A run folder as it was when it was last looked at."""

    name: str  # its path from the folder that is shown, with / between the parts
    folder: Path
    state: Literal["finished", "unfinished", "damaged", "audit"]
    changed: float  # when its state was last written, in seconds of the clock
    summary: Summary | None = None  # of a finished run
    progress: Progress | None = None  # of an unfinished one
    audit: AuditSummary | None = None  # of an audit
    fault: str = ""  # of a damaged one: a sentence

    @property
    def tags(self) -> list[str]:
        """The folders that it lies in."""
        return self.name.split("/")[:-1]


class Index:
    """All runs under `root`, read again where their files have changed.

    Args:
        fresh: seconds in which the folder is not searched again.

    Raises:
        InputError: it is no folder, or holds no run.
    """

    def __init__(self, root: Path, fresh: float = 0.5) -> None:
        if not root.is_dir():
            raise InputError(f"{root} is no folder; give one that holds runs.")
        self.root, self.fresh = root.resolve(), fresh
        self._entries: dict[str, Entry] = {}
        self._known: dict[Path, tuple[object, Entry]] = {}  # by folder: what was seen, and made of
        self._looked = -math.inf
        self._lock = threading.Lock()
        if not self.entries():
            raise InputError(
                f"{root} holds no run: there is no run.json and no journal in it or in its "
                "folders. Runs are what evaluate, certify, harden and audit write to --out."
            )

    def entries(self) -> dict[str, Entry]:
        """The runs by their names, in the order of these."""
        with self._lock:
            if time.monotonic() - self._looked >= self.fresh:
                found = [self._entry(folder) for folder in _run_folders(self.root)]
                self._entries = {entry.name: entry for entry in sorted(found, key=_by_name)}
                self._known = {e.folder: self._known[e.folder] for e in found}
                self._looked = time.monotonic()
            return self._entries

    def state(self) -> object:
        """What differs once a run has come, gone or gone on."""
        return [(entry.name, entry.changed) for entry in self.entries().values()]

    def find(self, name: str) -> Entry | None:
        """The run of this name, whose files may be read; None: there is no such run.

        A link in the folder of a run that leads out of `root` makes it a damaged one.
        """
        entry = self.entries().get(name)
        if entry is None or entry.state == "damaged":
            return entry
        fault = next(_leading_out(entry.folder, self.root), "")
        if fault:
            return Entry(entry.name, entry.folder, "damaged", entry.changed, fault=fault)
        return entry

    def _entry(self, folder: Path) -> Entry:
        seen = _signature(folder)
        known = self._known.get(folder)
        if known is None or known[0] != seen:
            known = self._known[folder] = (seen, _read(folder, self._name(folder), self.root))
        return known[1]

    def _name(self, folder: Path) -> str:
        path = folder.relative_to(self.root).as_posix() if folder != self.root else folder.name
        text = os.fsencode(path).decode("utf-8", "replace")
        return re.sub(r"[\x00-\x1f\x7f]", "\ufffd", text)  # what no address can hold


def _by_name(entry: Entry) -> str:
    return entry.name


def _run_folders(root: Path) -> list[Path]:
    """The folders of runs: those that hold a run.json or a journal. Links are not followed, and
    nothing is sought within a run."""
    found, left = [], [root]
    while left:
        folder = left.pop()
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError:  # it went meanwhile, or may not be read
            continue
        names = {entry.name for entry in inside}
        if "run.json" in names or ("journal" in names and _begun(folder / "journal")):
            found.append(folder)
        else:
            left += [Path(e.path) for e in inside if e.is_dir(follow_symlinks=False)]
    return found


def _begun(journal: Path) -> bool:
    """Whether it is the journal of a run, and not another folder of this name. One that is a link
    is not looked into: its run is shown as damaged."""
    return journal.is_symlink() or os.path.lexists(journal / "question.json")


def _signature(folder: Path) -> object:
    """What changes with what the list shows of a run."""
    return tuple(_stat(folder / name) for name in ("run.json", "journal"))


def _stat(path: Path) -> object:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(folder: Path, name: str, root: Path) -> Entry:
    path = folder / "run.json"
    try:
        for part in (path, folder / "journal", folder / "journal" / "question.json"):
            if part.is_symlink() and not _within(part, root):
                raise InputError(_leads_out(part, root))
        if not path.exists():
            progress = progress_of(folder)
            return Entry(name, folder, "unfinished", progress.written, progress=progress)
        summary, changed = _summary(path), path.stat().st_mtime
        if isinstance(summary, AuditSummary):
            return Entry(name, folder, "audit", changed, audit=summary)
        return Entry(name, folder, "finished", changed, summary=summary)
    except (InputError, OSError) as error:
        return Entry(name, folder, "damaged", 0.0, fault=str(error))


def _summary(path: Path) -> Summary | AuditSummary:
    content = read_bytes(path)
    kind = AuditSummary if of_audit(content) else Summary
    if b'"schema_version":1' in content[:200].replace(b" ", b""):
        content = migrate(content)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise InputError(
            f"{path} is not a valid run.json: at {place}: {first_line(ValueError(first['msg']))}."
        ) from None


def _within(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _leads_out(path: Path, root: Path) -> str:
    return f"{path.relative_to(root)} is a link that leads out of the folder, and is not read."


def _leading_out(folder: Path, root: Path) -> Iterator[str]:
    """A sentence for each link under a folder that leads out of `root`."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not _within(path, root):
                yield _leads_out(path, root)
