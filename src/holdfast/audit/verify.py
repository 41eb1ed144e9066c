"""Verify an audit: compute every figure anew from its evidence, and where a model is given try it
again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.audit import backdoor, extraction, membership, training_data
from holdfast.audit.prepare import opened
from holdfast.audit.triggers import Triggers
from holdfast.errors import HoldfastError, InputError
from holdfast.evaluation.recheck import read_rows
from holdfast.evaluation.verify import differences
from holdfast.runs import audits, store
from holdfast.runs.audits import AnyAudit
from holdfast.targets.target import Access, sealed

CLOSE = 1e-9  # what figures computed by another processor or library may differ by, relatively
ODD = 0.005  # the share of rows whose answers may differ between devices


def verify(folder: Path, model: Any = None, data: Any = None) -> list[str]:
    """What does not hold in the folder of an audit, one sentence each; empty where all of it does.

    Files are held against their checksums, and every figure and the verdict against the evidence.

    Args:
        model: the model that was audited: its fingerprint is compared, and of a backdoor the
            triggers are tried on it again.
        data: the rows that were audited, with the model.

    Raises:
        InputError: the folder holds no audit that can be read at all.
    """
    audit, whole = audits.opened(folder)
    if model is not None and audit.audit != "backdoor":
        raise InputError(
            f"an audit of {audit.audit} is verified by its evidence alone; leave out MODEL and "
            "DATA."
        )
    wrong: list[str] = []
    if not whole:
        wrong.append("run.json: it was changed after the audit (its digest differs).")
    try:
        with store.untrusted(folder):
            wrong += _files(folder, audit)
            wrong += _again(folder, audit)
            if model is not None:
                wrong += _tried_again(folder, audit, model, data)
    except HoldfastError as error:
        wrong.append(str(error))
    return wrong


def _files(folder: Path, audit: AnyAudit) -> Iterator[str]:
    now = audits.evidence(folder)
    for name in sorted({*now, *audit.files}):
        if name not in now:
            yield f"{name}: missing."
        elif name not in audit.files:
            yield f"{name}: not part of the audit."
        elif store.checksum(folder / name) != audit.files[name]:
            yield f"{name}: its content was changed after the audit (its checksum differs)."


def _again(folder: Path, audit: AnyAudit) -> Iterator[str]:
    kind: Any = KINDS[audit.audit]
    again = kind.judged(store.read_tensors(folder / kind.EVIDENCE))
    yield from differences(
        "result", audit.result.model_dump(), again.model_dump(), "the files of evidence", CLOSE
    )
    found, said = kind.verdict(again), audit.verdict
    yield from differences(
        "verdict", said.model_dump(), found.model_dump(), "the files of evidence"
    )


KINDS = {
    "backdoor": backdoor,
    "data": training_data,
    "membership": membership,
    "extraction": extraction,
}


def _tried_again(folder: Path, audit: AnyAudit, model: Any, data: Any) -> Iterator[str]:
    audited = opened(model, {"rows": data}, Access.GRADIENTS)
    target, source = audited.target, audited.sources["rows"]
    if target.fingerprint() != audit.model.fingerprint:
        yield "model: this is not the model that was audited (its fingerprint differs)."
    if source.fingerprint() != audit.data[0].fingerprint:
        yield "data: these are not the data that were audited (their fingerprint differs)."
        return
    evidence = store.read_tensors(folder / backdoor.EVIDENCE)
    held = [int(i) for i in evidence["held"]]
    mask, pattern = (torch.from_numpy(evidence[name]) for name in ("mask", "pattern"))
    n, shape = len(evidence["aims"]), target.shape
    if (
        not n
        or len(set(held)) < len(held)
        or evidence["turned"].shape != (n, len(held))
        or tuple(pattern.shape) != (n, *(shape or ()))
        or len(mask) != n
        or mask.ndim != pattern.ndim
        or any(a not in (1, b) for a, b in zip(mask.shape, pattern.shape, strict=True))
    ):
        yield "triggers: their evidence is not that of triggers tried on rows of this model."
        return
    if not 0 <= min(held) <= max(held) < len(source):
        yield f"data: they have {len(source)} rows, but the audit tried row {max(held)}."
        return
    x = target.batcher.place(read_rows(source, np.array(held))[0].x)
    found = Triggers(mask, pattern, mask.flatten(1).sum(1))
    with sealed(audit.seed):
        for i, (aim, said) in enumerate(zip(evidence["aims"], evidence["turned"], strict=True)):
            at = torch.from_numpy(said >= 0).nonzero()[:, 0].to(x.device)
            now = backdoor.success(target, found, i, x[at], int(aim[1])).cpu().numpy()
            if (now != (said[said >= 0] == 1)).mean() > ODD:
                yield f"triggers: number {i} turns other held rows than the evidence says."
