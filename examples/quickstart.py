"""Measure a model from Python, and look at what broke."""

from __future__ import annotations

from own_model import data, model

import holdfast

target = holdfast.wrap(model(), bounds=(0, 1))
run = holdfast.evaluate(
    target, data(), holdfast.Threat.linf(0.1), protocol="quick", out="runs/quickstart"
)

print(run)
for finding in run.verdict.findings:
    print(f"{finding.severity}: {finding.text}")
broken = run.samples.filter(run.samples["broken_by"].is_valid())
print(f"{broken.num_rows} rows broken; the smallest needed {min(broken['size'].to_pylist()):.3f}")
