"""Run folders with made-up figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from holdfast.intervals import interval
from holdfast.runs import store
from holdfast.runs.manifest import (
    Confusion,
    Costs,
    CurvePoint,
    DataInfo,
    Finding,
    Manifest,
    Metrics,
    ModelInfo,
    Pair,
    ProtocolInfo,
    Provenance,
    Sizes,
    ThreatInfo,
    TrialInfo,
    Verdict,
)
from holdfast.runs.metrics import SAMPLES, measure

HOSTILE = "<script>alert('x')</script>\"&$\\frac\x1b[31m漢"


def samples(n: int, classes: int, eps: float) -> pa.Table:
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, n)
    fate = rng.choice(
        ["wrong", "broken", "robust", "failed", "skipped"], n, p=[0.1, 0.5, 0.3, 0.05, 0.05]
    )
    other = (label + 1) % classes
    broken = fate == "broken"
    columns = {
        "id": np.arange(n),
        "label": label,
        "clean_prediction": np.where(fate == "wrong", other, label),
        "attacked_prediction": np.where((fate == "wrong") | broken, other, label),
        "clean_confidence": rng.random(n),
        "attacked_confidence": rng.random(n),
        "status": fate.tolist(),
        "broken_by": [0 if b else None for b in broken],
        "size": [eps * rng.random() if b else None for b in broken],
    }
    filler = {"certified_radius": None, "finished": True}
    blank = {name: [filler.get(name, 0)] * n for name in SAMPLES.names if name not in columns}
    return pa.table(
        {f.name: pa.array((columns | blank)[f.name], f.type) for f in SAMPLES}, schema=SAMPLES
    )


def nothing(classes: int, eps: float) -> Metrics:
    """The metrics of a run whose every row was skipped."""
    none, pair = interval(0, 0), Pair(clean=None, attacked=None)
    counts = [[0] * classes] * classes
    return Metrics(
        clean_accuracy=none,
        robust_accuracy=none,
        attack_success_rate=none,
        precision=pair,
        recall=pair,
        f1=pair,
        counts={"skipped": 5},
        per_class=[],
        confusion=Confusion(clean=counts, attacked=counts),
        sizes=Sizes(n=0, minimum=None, median=None, mean=None, maximum=None),
        curve=[CurvePoint(eps=eps, robust_accuracy=none, measured=True)],
    )


def make(
    folder: Path,
    n: int = 200,
    classes: int = 4,
    shape: tuple[int, ...] = (1, 6, 6),
    shown: int = 3,
    **more,
) -> Manifest:
    """A run folder with made-up figures; `more` goes to the facts."""
    eps, layout, names = 0.25, more.get("layout", "nchw"), more.get("names")
    table = samples(n, classes, eps)
    store.write_samples(folder, table)
    broken = np.flatnonzero(np.array(table.column("status").to_pylist()) == "broken")[:shown]
    if shown:
        x = np.random.default_rng(1).random((len(broken), *shape), dtype=np.float32)
        store.write_tensors(
            folder / "gallery.safetensors", {"id": broken, "x": x, "x_adv": np.clip(x + eps, 0, 1)}
        )
    spec = more.get("spec", "apgd(steps=100, rho=0.75, loss='dlr')")
    manifest = Manifest(
        model=ModelInfo(
            spec=spec,
            fingerprint="9f" * 32,
            bounds=(0, 1),
            shape=list(shape),
            classes=classes,
            layout=layout,
            transformation=more.get("movement"),
            access=more.get("access", "gradients"),
        ),
        data=DataInfo(
            spec="mnist:d",
            split=spec,
            fingerprint="a1" * 32,
            total=10_000,
            parts=[(0, n)],
            class_names=names,
        ),
        threat=ThreatInfo(
            text=more.get("threat", "linf(0.25)"),
            norm="linf",
            eps=eps,
            measured=[(eps, eps)],
            target=more.get("target"),
        ),
        protocol=ProtocolInfo(name=spec, version=1, trials=[spec]),
        seed=4711,
        settings={"batch_size": spec},
        provenance=Provenance(
            command=spec, created="2025-11-21T02:10:00Z", versions={"torch": spec}, hardware=spec
        ),
        initial_findings=[],
        verdict=Verdict(
            status=more.get("status", "upper-bound"),
            findings=[
                Finding(check="budget", severity="amber", text=spec, value=0.0375, threshold=0.01)
            ],
        ),
        metrics=measure(table, classes, [(eps, eps)], names) if n else nothing(classes, eps),
        costs=Costs(
            forwards=123456, backwards=98765, queries=123457, judge_forwards=1357, seconds=2468.5
        ),
        trials=[
            TrialInfo(
                spec=spec,
                eps=eps,
                attacked=170,
                broken=91,
                costs=Costs(forwards=65432, backwards=43210, seconds=9.5),
            )
        ],
        files=store.checksums(folder),
    )
    store.write_manifest(folder, manifest)
    return manifest
