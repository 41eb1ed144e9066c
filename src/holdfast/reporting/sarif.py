"""A run as SARIF 2.1.0, which code scanning shows: its findings, and the gates that did not
hold."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from holdfast.reporting import words
from holdfast.runs.gates import Outcome
from holdfast.runs.manifest import Manifest

LEVELS = {"red": "error", "amber": "warning", "info": "note"}
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"


def sarif(manifest: Manifest, gates: Sequence[Outcome] = ()) -> bytes:
    """UTF-8 JSON. Every result points at the model, by the path or name that was given for it."""
    found = [
        (words.printable(f.check), LEVELS[f.severity], f.text) for f in manifest.verdict.findings
    ]
    found += [
        ("gate", "error", f"The gate {g.gate.text} does not hold: {g.sentence}.")
        for g in gates
        if not g.held
    ]
    rules = sorted({rule for rule, _, _ in found})
    finished = manifest.provenance.created.replace("+00:00", "Z")
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "Holdfast",
                "version": manifest.provenance.versions.get("holdfast", "0"),
                "rules": [
                    {"id": rule, "shortDescription": {"text": rule.replace("_", " ")}}
                    for rule in rules
                ],
            }
        },
        "invocations": [
            {
                "executionSuccessful": True,
                "commandLine": words.printable(manifest.provenance.command),
                "endTimeUtc": words.printable(finished),
            }
        ],
        "results": [
            {
                "ruleId": rule,
                "ruleIndex": rules.index(rule),
                "level": level,
                "message": {"text": _text(text)},
                "locations": [
                    {"physicalLocation": {"artifactLocation": {"uri": _uri(manifest.model.spec)}}}
                ],
            }
            for rule, level, text in found
        ],
        "properties": {
            "verdict": manifest.verdict.status,
            "threat": manifest.asked,
            "cleanAccuracy": manifest.metrics.clean_accuracy.value,
            "robustAccuracy": manifest.metrics.robust_accuracy.value,
            "modelSha256": manifest.model.fingerprint,
            "dataSha256": manifest.data.fingerprint,
        },
    }
    return (
        json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1).encode()
        + b"\n"
    )


def _text(text: str) -> str:
    """A message in which nothing is a link: there square brackets make one (section 3.11.6)."""
    return re.sub(r"([\\\[\]])", r"\\\1", words.printable(text))


def _uri(spec: str) -> str:
    """The file that a model's text names, as a relative reference."""
    path, colon, name = spec.rpartition(":")
    if not (colon and name.isidentifier()):
        path = spec
    return quote(path, safe="/")
