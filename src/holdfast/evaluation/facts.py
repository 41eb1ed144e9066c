"""What is asked of what: the facts of a run that hold before any attack."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from holdfast import spec, version
from holdfast.data.source import Source
from holdfast.evaluation.chunk import SearchSettings
from holdfast.evaluation.prepare import Prepared
from holdfast.runs.journal import VERSION
from holdfast.runs.manifest import (
    ColumnInfo,
    DataInfo,
    Facts,
    ModelInfo,
    ProtocolInfo,
    Provenance,
    ThreatInfo,
)
from holdfast.targets.target import Target
from holdfast.targets.wrappers import innermost
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class Names:
    """What the manifest calls things."""

    model: str = ""  # default: the type of the model
    arch: str | None = None
    split: str = "test"
    command: str = "holdfast.evaluate(...)"


def facts_of(ready: Prepared, settings: SearchSettings, names: Names) -> Facts:
    """The facts of an evaluation of prepared rows, before anything is measured."""
    target, source, protocol = ready.target, ready.source, ready.protocol
    spatial, inner = ready.threat.spatial, innermost(target)
    called = inner.name or type(getattr(inner, "model", inner)).__name__
    return Facts(
        model=ModelInfo(
            spec=names.model or called,
            arch=names.arch,
            fingerprint=target.fingerprint(),
            transformation=None if spatial is None else spatial.transform.text,
            **target.describe(),  # pyright: ignore[reportArgumentType]
        ),
        data=DataInfo(
            spec=source.name,
            split=names.split,
            fingerprint=source.fingerprint(),
            total=len(source),
            parts=[ready.rows],
            class_names=list(source.class_names or ()) or None,
            objects=list(source.objects or ()) or None,
            loading=dict(source.loading),
            groups=None if ready.groups is None else fingerprint(ready.groups),
            columns=columns_of(source),
        ),
        threat=threat_info(ready.threat, settings),
        protocol=ProtocolInfo(
            name=protocol.name,
            version=protocol.version,
            trials=[t.write(whole=True) for t in protocol.trials],
        ),
        perceptual=getattr(settings.perceptual, "fingerprint", None),
        until=None if ready.until is None else ready.until.info(ready.rows),
        seed=settings.seed,
        max_queries=settings.budget,
        settings=settings_of(target),
        provenance=provenance_of(target, names),
        initial_findings=ready.noted,
    )


def settings_of(target: Target) -> dict[str, Any]:
    """In what a model was asked: what may change the last digits of its answers."""
    batcher = target.batcher
    return {
        "batch_size": batcher.size,
        "device": str(batcher.device),
        "precision": str(batcher.dtype),
    }


def provenance_of(target: Target, names: Names) -> Provenance:
    """By what command, when, with which versions and where something is measured."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return Provenance(
        command=names.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "holdfast": version.VERSION,
            **libraries,
            **target.identity.versions,
        },
        hardware=_hardware(target.batcher.device),
    )


def _certification(facts: Facts) -> dict[str, str]:
    asked = facts.certification
    return {} if asked is None else {"certification": asked.model_dump_json()}


def _rows_asked(facts: Facts) -> list[tuple[int, int]]:
    """The rows that were asked for; a run with `until` may measure fewer."""
    return facts.data.parts if facts.until is None else [facts.until.rows]


def _until(facts: Facts) -> dict[str, str]:
    asked = facts.until
    if asked is None:
        return {}
    return {"until": " and ".join(asked.gates) or f"a width of {asked.width:g}"}


def columns_of(source: Source) -> list[ColumnInfo]:
    """What run.json says of the columns of a table."""
    return [
        ColumnInfo(name=column.name, dtype=column.dtype, values=list(column.values))
        for column in source.columns or ()
    ]


def fingerprint(groups: np.ndarray) -> str:
    """Of the names of all rows' groups [n]."""
    return hashlib.sha256("\n".join(groups).encode()).hexdigest()


def threat_info(threat: Threat, settings: SearchSettings) -> ThreatInfo:
    """What run.json says of a threat."""
    info = ThreatInfo(
        text=repr(threat),
        norm=threat.norm.name,
        eps=float(threat.eps),
        grid=threat.grid or None,
        group=threat.norm.group or None,
        table=None if threat.schema is None else threat.schema.text(),
        measured=[(eps, settings.limit(eps)) for eps in settings.measured],
        apart=list(settings.apart),
    )
    goal = getattr(threat.goal, "t", None)
    if isinstance(goal, int):
        return info.model_copy(update={"target": goal})
    if isinstance(goal, torch.Tensor):
        goal = hashlib.sha256(goal.cpu().numpy().tobytes()).hexdigest()
    return info.model_copy(update={"targets": goal})


def _sample(facts: Facts) -> dict[str, str]:
    """Which rows were drawn at random, where some were; older runs say nothing of it."""
    asked = facts.data.loading.get("random")
    return {} if asked is None else {"rows at random": asked}


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads != 1)}"


def limits_of(target: Target, threat: Threat) -> dict[str, np.ndarray]:
    """What of a threat and of the bounds is said for each feature."""
    sides = dict(zip(("low", "high"), target.bounds.each or (), strict=False))
    return {name: part.numpy() for name, part in (sides | threat.limits).items()}


def question(facts: Facts) -> dict[str, str]:
    """What must be equal for a run to be gone on with, and (but for the rows) for shards to be one
    run."""
    protocol = facts.protocol
    sizes = [*(eps for eps, _ in facts.threat.measured), *facts.threat.apart]
    return {
        VERSION: str(facts.schema_version),
        "eps": ", ".join(map(spec.number, sizes)),
        "threat": facts.threat.text,
        "movement": facts.model.transformation or "none",
        "targets": (facts.threat.targets or "none")[:16],
        "model": facts.model.fingerprint[:16],
        **_sample(facts),
        "data": facts.data.fingerprint[:16],
        "groups": (facts.data.groups or "none")[:16],
        "protocol": f"{protocol.name} version {protocol.version}: {'; '.join(protocol.trials)}",
        "seed": str(facts.seed),
        "query budget": str(facts.max_queries),
        "version": facts.provenance.versions["holdfast"],
        **_certification(facts),
        **_until(facts),
        "corruptions": "none" if facts.corruptions is None else facts.corruptions.model_dump_json(),
        "perceptual network": (facts.perceptual or "none")[:16],
        "rows": ", ".join(f"{a}:{b}" for a, b in _rows_asked(facts)),
    }
