"""The journal: what resume reads after a kill -9.

A folder of records, each written whole, synced and never changed: `question.json` says what was
asked, then one record for every piece of finished work. A record says its own name and the question
that it answers, and carries a digest of itself. An unfinished piece leaves no record, and is done
again; so is one whose record does not fit.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.runs.remote import mirrored
from holdfast.runs.store import NOTES, read_json, read_record, write_bytes, write_record

Record = tuple[dict[str, np.ndarray], dict[str, str]]  # tensors and texts

VERSION = "schema version"  # its key in a question; older runs have none


class Journal:
    """The records of one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "journal"
        self.question = ""  # digest of what was asked

    @property
    def begun(self) -> bool:
        """Whether there is a journal to go on with."""
        return (self.folder / "question.json").exists()

    @property
    def holds(self) -> bool:
        """Whether there is a record of finished work."""
        return any(self.folder.glob("*.safetensors"))

    def open(self, question: Mapping[str, str], *, resume: bool) -> None:
        """Begin a journal, or go on with one that asks the same question.

        Raises:
            InputError: the folder holds a run already (without `resume`), or one that asks
                something else.
        """
        note = "journal/question.json"
        begin(self.folder.parent, note, question, "an unfinished run", resume=resume)
        # as it was asked at first: an earlier version of a protocol with the same trials fits
        said = json.dumps(read_json(self.folder.parent / note))
        self.question = hashlib.sha256(said.encode()).hexdigest()

    def find(self, name: str) -> Record | None:
        """The record of this name; None where there is none that fits."""
        try:
            return self.read(name)
        except InputError:
            return None

    def read(self, name: str) -> Record:
        """The record of this name.

        Raises:
            InputError: there is none, or it is damaged, another one, or of another question.
        """
        path = self._path(name)
        tensors, said = read_record(path)
        if (said.get("record"), said.get("question")) != (name, self.question):
            raise InputError(f"{path} is a record of other work, or of another run.")
        return tensors, said

    def write(
        self, name: str, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str] | None = None
    ) -> None:
        write_record(
            self._path(name), tensors, {**(texts or {}), "record": name, "question": self.question}
        )

    def damaged(self) -> list[str]:
        """Names of files that are no records, or damaged."""
        readers = dict.fromkeys(sorted(self.folder.glob("*.safetensors")), read_record)
        names = []
        for path, read in (readers | {self.folder / "question.json": read_json}).items():
            try:
                read(path)
            except InputError:
                names.append(path.name)
        return names

    def close(self) -> None:
        """Delete the records: the run is finished and stored."""
        # first: without it no journal has begun
        (self.folder / "question.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def refuse_taken(folder: Path) -> None:
    """Refuse a folder for a new run that holds anything but a journal that never began.

    Raises:
        InputError: says what it holds.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; choose another --out.")
    if folder.exists() and any(path.name != "journal" for path in folder.iterdir()):
        what = "a finished run" if (folder / "run.json").exists() else "other files"
        raise InputError(f"{folder} holds {what}; choose another --out.")


def begin(folder: Path, note: str, asked: Mapping[str, Any], what: str, *, resume: bool) -> None:
    """Begin the folder of `what`, or go on with one that was asked for the same; `note` is the file
    in it that says so.

    Raises:
        InputError: it is no folder, holds something else, or was asked for otherwise.
    """
    said = folder / note
    if not said.exists():
        refuse_taken(folder)
        write_bytes(said, json.dumps(dict(asked), indent=1).encode())
    elif not resume:
        raise InputError(
            f"{folder} holds {what}; go on with it by --resume, or choose another --out."
        )
    else:
        refuse_changes(folder, read_json(said), asked)


@contextmanager
def left_as_found(folder: Path, *, resumable: bool = True) -> Iterator[None]:
    """Where what is done inside fails before a first finished piece of work, the folder is left as
    it was found.

    So a command that is refused leaves nothing that the right one with the same --out would meet.

    Args:
        folder: what the work is stored in; it may not exist yet.
        resumable: finished pieces serve a later try, and stay; else all that was made goes.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = set(folder.rglob("*"))
    try:
        yield
    except BaseException as error:
        if resumable and not isinstance(error, Exception):
            raise  # an interrupt: what is finished serves a later try
        new = set(folder.rglob("*")) - before
        files = {path for path in new if not path.is_dir()}
        if not resumable or all(path.name in NOTES or path.suffix == ".part" for path in files):
            for path in files:
                path.unlink(missing_ok=True)
            for path in sorted(new - files, reverse=True) + made:
                with suppress(OSError):
                    path.rmdir()
        raise


class Accepted(Exception):
    """What was asked is refused by nothing that is known before the work begins."""


checking = False  # whether work ends there


@contextmanager
def run_folder(out: Path | str | None) -> Iterator[Path]:
    """The folder `out`, or a copy of it where it is a URL, `left_as_found`; None: a new temporary
    one, which goes with an error.

    Raises:
        Accepted: the work is only checked, and here it would begin.
    """
    if checking:
        raise Accepted
    if out is not None:
        with mirrored(out) as folder, left_as_found(folder):
            yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="holdfast-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


_HEAD = re.compile(r"^(?!custom )(\S+) version \d+(?=:)")  # before the trials of a protocol


def as_asked(said: object) -> object:
    """What was asked, without a protocol's version: a new one may have the same trials here."""
    return _HEAD.sub(r"\1", said) if isinstance(said, str) else said


def protocols_apart(was: object, now: object) -> tuple[str, str] | None:
    """What two runs asked, as `name version n` without the trials; None where these are equal, or
    no protocols."""
    one, other = (_HEAD.match(str(said)) for said in (was, now))
    return (one[0], other[0]) if one and other and one[0] != other[0] else None


def two_versions(apart: tuple[str, str] | None) -> bool:
    """Whether protocols that are apart have one name."""
    return apart is not None and apart[0].split()[0] == apart[1].split()[0]


def refuse_changes(folder: Path, was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with a run that was made from something else.

    Raises:
        InputError: it is of another schema version; or names the first difference.
    """
    version = was.get(VERSION, "1")
    if VERSION in now and version != now[VERSION]:
        raise InputError(
            f"cannot resume {folder}: it has schema version {version}, and this Holdfast goes on "
            f"with version {now[VERSION]} alone. Finish it with the Holdfast that began it, or "
            "choose another --out."
        )
    for key in [*was, *(k for k in now if k not in was)]:
        if as_asked(was.get(key)) != as_asked(now.get(key)):
            apart = protocols_apart(was.get(key), now.get(key))
            begun, today = apart or (was.get(key), now.get(key))
            if two_versions(apart):
                raise InputError(
                    f"cannot resume {folder}: it was begun with {begun}, and this Holdfast has "
                    f"{today}, whose attacks differ. Finish it with the Holdfast that began it, "
                    "or choose another --out."
                )
            raise InputError(
                f"cannot resume {folder}: it was made with {key} {begun} and this command "
                f"says {today}. Use the same {key}, or choose another --out."
            )
