"""audit.json: what an audit by a plan is to do, and what has come of it.

Each step is a command of its own, and leaves its evidence in a folder within that of the audit.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from holdfast.errors import InputError
from holdfast.runs import store
from holdfast.runs.manifest import Provenance, Record

FILE = "audit.json"
AUDITS = ("backdoor", "data", "membership", "extraction")

Command = Literal["evaluate", "certify", "backdoor", "data", "membership", "extraction"]


class Step(Record):
    name: str  # of its folder: the command's, and from the second one on a number
    command: Command
    line: str  # the command as it is typed to do this step alone, but for --out
    gates: list[str]  # conditions that it is to hold
    data: list[str]  # SHA-256 of what it reads
    run: str | None = None  # SHA-256 of its run.json; null: it is not done
    refused: str | None = None  # why it could not be done, in a sentence


class AuditPlan(Record):
    schema_version: Literal[1] = 1
    model: str  # as it was typed
    fingerprint: str  # SHA-256 of it
    data: str  # as it was typed
    plan: str  # the text of the plan
    steps: list[Step]
    provenance: Provenance
    digest: str | None = None  # SHA-256 of audit.json with zeros in this place

    @property
    def done(self) -> list[Step]:
        return [step for step in self.steps if step.run is not None]


def is_here(folder: Path) -> bool:
    """Whether it is the folder of an audit by a plan."""
    return (folder / FILE).is_file()


def read(folder: Path) -> AuditPlan:
    """audit.json.

    Raises:
        InputError: there is none, or it was changed.
    """
    audit, whole = opened(folder)
    if not whole:
        raise InputError(
            f"{folder / FILE} was changed after the audit (its digest differs); see holdfast "
            "verify."
        )
    return audit


def opened(folder: Path) -> tuple[AuditPlan, bool]:
    """audit.json, and whether it is what the audit wrote.

    Raises:
        InputError: there is none that can be read.
    """
    path = folder / FILE
    content = store.read_bytes(path)
    try:
        audit = AuditPlan.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise InputError(f"{path} is not a valid {FILE}: at {place}: {first['msg']}.") from None
    for step in audit.steps:
        if not re.fullmatch(rf"{step.command}(-[1-9][0-9]*)?", step.name):
            raise InputError(
                f"{path} names the step {step.name[:40]!r}, which is no folder of {step.command}."
            )
    return audit, store.digest_holds(content) is True


def write(folder: Path, audit: AuditPlan) -> None:
    """Write audit.json."""
    whole = audit.model_copy(update={"digest": store.NO_DIGEST})
    store.write_bytes(folder / FILE, store.with_digest(whole.model_dump_json(indent=1).encode()))


def unlike(audit: AuditPlan, step: Step, fingerprint: str) -> Iterator[str]:
    """What audit.json says of a step otherwise than the step does, whose model has this
    fingerprint."""
    words = shlex.split(step.line)
    # a model that takes inputs of any size may differ with what they are resized to
    sized = any(word.startswith(("--resize=", "--crop=")) for word in words)
    if fingerprint != audit.fingerprint and not sized:
        yield "its model is not that of the audit (its fingerprint differs)."
    if step.gates != [word.removeprefix("--gate=") for word in words if word[:7] == "--gate="]:
        yield f"{FILE} says other gates than its command."


def checksum(folder: Path, step: Step) -> str | None:
    """SHA-256 of the run.json of a step; None where there is none."""
    path = folder / step.name / "run.json"
    return store.checksum(path) if path.is_file() else None
