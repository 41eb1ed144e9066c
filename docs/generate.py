"""Write the pages that follow from the code: the attacks and the schema of run.json. `make docs`
runs this."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path

from holdfast import spec
from holdfast.attacks import CATALOGUE
from holdfast.cli import listing
from holdfast.evaluation.protocols import BLACK_BOX, PROTOCOLS, SMALLEST
from holdfast.runs.manifest import Manifest

DOCS = Path(__file__).parent


def schema() -> str:
    return json.dumps(Manifest.model_json_schema(mode="serialization"), indent=1) + "\n"


def attacks() -> str:
    """One section an attack: what it is, and its options with their defaults and limits."""
    parts = ["# Attacks and protocols\n\nThis page is made from the code by `make docs`.\n"]
    seen: set[type] = set()
    for maker in CATALOGUE.values():
        kind = type(maker())
        if kind in seen:
            continue
        seen.add(kind)
        also = "".join(
            f"\n\nAlso `{name}`: `{spec.write(kind(**fields))}`."
            for name, fields in kind.also.items()
        )
        doc = (
            (inspect.getdoc(inspect.getmodule(kind)) or "") + "\n\n" + (inspect.getdoc(kind) or "")
        )
        rules = dict.fromkeys(inspect.getdoc(type(rule)) for rule in kind.variants.values())
        if len(rules) > 1:
            doc = "\n\n".join([doc, *filter(None, rules)])
        norms = ", ".join(sorted(kind.norms))
        table = "\n".join(
            f"| `{name}` | `{default!r}` | {takes} | {text} |"
            for name, default, takes, text in fields_of(kind)
        )
        parts.append(
            f"## {kind.__name__.lower()}\n\n{doc}{also}\n\nNeeds {kind.needs.name.lower()}. Norms: "
            f"{norms}.\n\n| option | default | takes | meaning |\n|---|---|---|---|\n{table}\n"
        )
    parts.append("## Protocols\n")
    for name, (version, text, lists) in PROTOCOLS.items():
        rows = "\n".join(
            f"- {norm}: {'; '.join(f'`{t}`' for t in trials)}" for norm, trials in lists.items()
        )
        parts.append(f"**{name}**, version {version}: {text}.\n\n{rows}\n")
        for access, others in BLACK_BOX.items():
            rows = "\n".join(
                f"- {norm}: {'; '.join(f'`{t}`' for t in t_)}"
                for norm, t_ in others.get(name, {}).items()
            )
            if rows:
                parts.append(f"Where the target gives {access.name.lower()} alone:\n\n{rows}\n")
        for access, others in SMALLEST.items():
            rows = "\n".join(
                f"- {norm}: {'; '.join(f'`{t}`' for t in t_)}"
                for norm, t_ in others.get(name, {}).items()
            )
            if rows:
                parts.append(
                    f"Where eps is inf, of a target that gives {access.name.lower()}:\n\n{rows}\n"
                )
    return "\n".join(parts)


def fields_of(kind: type) -> list[tuple[str, object, str, str]]:
    """(name, default, limits, help) of each option."""
    return [
        (f.name, f.default, spec.limits(f), f.metadata.get("help", ""))
        for f in dataclasses.fields(kind)
    ]


PAGES = {
    "schema/run.schema.json": schema,
    "attacks.md": attacks,
    "../src/holdfast/cli/attacks.txt": listing.attacks,
}

if __name__ == "__main__":
    stale = [
        name
        for name, make in PAGES.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text() != make()
    ]
    if "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(stale)}; run make docs" if stale else 0)
    for name in stale:
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(PAGES[name]())
