"""What is asked of what: the facts of a run that hold before any attack."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch

from holdfast import spec
from holdfast.data import Source
from holdfast.evaluation.chunk import Plan
from holdfast.evaluation.protocols import Protocol
from holdfast.runs.journal import VERSION
from holdfast.runs.manifest import (
    DataInfo,
    Facts,
    Finding,
    ModelInfo,
    ProtocolInfo,
    Provenance,
    ThreatInfo,
)
from holdfast.targets.target import Target
from holdfast.threats.threat import Targeted, Threat


@dataclass(frozen=True)
class Names:
    """What the manifest calls things."""

    model: str = ""  # default: the type of the model
    arch: str | None = None
    split: str = "test"
    command: str = "holdfast.evaluate(...)"


def facts_of(
    plan: Plan,
    source: Source,
    part: tuple[int, int],
    chosen: Protocol,
    noted: list[Finding],
    names: Names,
) -> Facts:
    target, threat = plan.target, plan.threat
    moved = threat.spatial
    model = getattr(target, "model", target)
    libraries = {name: importlib.metadata.version(name) for name in ("holdfast", "torch", "numpy")}
    libraries |= target.identity.versions
    goal = threat.goal.t if isinstance(threat.goal, Targeted) else None
    targets = (
        hashlib.sha256(goal.cpu().numpy().tobytes()).hexdigest()
        if isinstance(goal, torch.Tensor)
        else goal
    )
    return Facts(
        model=ModelInfo(
            spec=names.model or type(model).__name__,
            arch=names.arch,
            fingerprint=target.fingerprint(),
            transformation=None if moved is None else spec.write(moved.transform, whole=True),
            **target.describe(),  # pyright: ignore[reportArgumentType]
        ),
        data=DataInfo(
            spec=source.name,
            split=names.split,
            fingerprint=source.fingerprint(),
            total=len(source),
            parts=[part],
            class_names=None if source.class_names is None else list(source.class_names),
            loading=dict(source.loading),
        ),
        threat=ThreatInfo(
            text=repr(threat),
            norm=threat.norm.name,
            eps=float(threat.eps),
            target=goal if isinstance(goal, int) else None,
            targets=targets if isinstance(targets, str) else None,
            grid=threat.grid or None,
            measured=[(eps, plan.limit(eps)) for eps in plan.measured],
        ),
        protocol=ProtocolInfo(
            name=chosen.name,
            version=chosen.version,
            trials=[t.write(whole=True) for t in chosen.trials],
        ),
        seed=plan.seed,
        max_queries=plan.budget,
        settings={
            "batch_size": target.batcher.size,
            "device": str(target.device),
            "precision": str(target.dtype),
        },
        provenance=Provenance(
            command=names.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"python": platform.python_version(), **libraries},
            hardware=_hardware(target.device),
        ),
        initial_findings=noted,
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def limits_of(target: Target, threat: Threat) -> dict[str, np.ndarray]:
    """What of a threat and of the bounds is said for each feature."""
    sides = dict(zip(("low", "high"), target.bounds.each or (), strict=False))
    return {name: part.numpy() for name, part in (sides | threat.limits).items()}


def question(facts: Facts) -> dict[str, str]:
    """What must be equal for a run to be gone on with, and (but for the rows) for shards to be one
    run."""
    return {
        VERSION: str(facts.schema_version),
        "eps": ", ".join(spec.number(eps) for eps, _ in facts.threat.measured),
        "threat": facts.threat.text,
        "movement": facts.model.transformation or "none",
        "targets": "none" if facts.threat.targets is None else facts.threat.targets[:16],
        "model": facts.model.fingerprint[:16],
        "data": facts.data.fingerprint[:16],
        "groups": "none" if facts.data.groups is None else facts.data.groups[:16],
        "protocol": f"{facts.protocol.name} version {facts.protocol.version}: {'; '.join(facts.protocol.trials)}",
        "seed": str(facts.seed),
        "query budget": str(facts.max_queries),
        "version": facts.provenance.versions["holdfast"],
        "corruptions": "none" if facts.corruptions is None else facts.corruptions.model_dump_json(),
        "perceptual network": "none" if facts.perceptual is None else facts.perceptual[:16],
        "rows": ", ".join(f"{a}:{b}" for a, b in facts.data.parts),
    }
