"""Write the files that follow from the code: the attacks, their stub and the schema of run.json.
`make docs` runs this."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from holdfast import spec
from holdfast.attacks import (
    CATALOGUE,
    Attack,
    AttackResult,
    AutoAttack,
    Outcome,
    SearchResult,
    Trial,
    perturb,
    run,
)
from holdfast.cli import listing
from holdfast.evaluation.protocols import (
    BLACK_BOX,
    OF_TASK,
    PROTOCOLS,
    SMALLEST,
    STEPPED,
    TABLES,
    TREES,
)
from holdfast.runs.manifest import Manifest
from holdfast.targets.target import Access

DOCS = Path(__file__).parent
# When to use which attack, the most important first.
USES = {
    "pgd": "you want the classic, to compare with a paper or to teach",
    "fgsm": "you want one quick step: a first look, never evidence",
    "apgd": "you want one strong gradient attack, and no step size to choose",
    "square": "the model gives scores but no gradients, or its gradients are suspect",
    "acg": "many short restarts are to find what APGD leaves",
    "relay": "gradients are masked in part: random search and ascent take turns",
    "dula": "inputs or units are rounded, thresholded or binarised (Linf)",
    "bim": "a paper's figure is BIM's: PGD without a random start",
    "fab": "you reproduce AutoAttack, or want small changes in Linf, L2 or L1",
    "cw": "a paper's figure is Carlini and Wagner's; slow",
    "fmn": "you want the smallest change in any norm, fast",
    "ddn": "you want the smallest change in L2, fast",
    "deepfool": "you want a quick estimate of the distance to the boundary",
    "superdeepfool": "the same in L2, closer to the truth",
    "brendelbethge": "gradients are masked in L2: it follows the boundary from outside",
    "pdpgd": "you want the smallest change in L1",
    "alma": "you want small changes in L1 or L2 and have a thousand steps",
    "ead": "a paper's figure is EAD's, in L1",
    "sigmazero": "few features may change, by any amount (L0)",
    "vfga": "the same, greedily: fewer passes",
    "jsma": "a paper's figure is JSMA's, in L0",
    "slide": "you train or attack in L1 and want a simple step",
    "capgd": "inputs are rows of a table with a schema, and the model gives gradients",
    "genetic": "the same where it gives scores, or gradients leave rows: slower, and finds more",
    "treeexact": "the model is a forest or boosted trees, in Linf: the nearest example there is",
    "hopskipjump": "the model gives labels alone",
    "rays": "the model gives labels alone, in Linf: the check that no bending of scores misleads",
    "cgba": "the model gives labels alone, in L2",
    "surfree": "the same with very few queries",
    "geoda": "the same where the boundary is nearly flat",
    "signopt": "the same with many queries",
    "boundary": "a paper's baseline is the boundary attack",
    "signhunter": "the model gives scores, in Linf, and queries are few",
    "bandits": "you compare query counts with a paper's",
    "nes": "you compare query counts with a paper's",
    "spsa": "scores are noisy, or a paper's figure is SPSA's",
    "simba": "you compare query counts in L2 with a paper's",
    "zoo": "a paper's baseline is ZOO; very many queries",
    "sparsers": "few features may change, and the model gives scores",
    "onepixel": "a paper's figure is the one-pixel attack's",
    "patchrs": "the threat is a patch",
    "mifgsm": "examples made on one model are to fool another",
    "nifgsm": "the same, looking ahead",
    "difgsm": "the same, more strongly",
    "tifgsm": "the same, against models that were trained adversarially",
    "sifgsm": "the same, by copies of other brightness",
    "vmifgsm": "the same, by gradients that vary less",
    "admix": "the same, by mixing in other images",
    "sia": "the same, by changing blocks: strong, many passes",
    "bsr": "the same, by moving and turning blocks: strong, many passes",
    "sweep": "you want a baseline that asks for no direction at all",
}


def schema() -> str:
    return json.dumps(Manifest.model_json_schema(mode="serialization"), indent=1) + "\n"


def attacks() -> str:
    """When to use which attack, and one section an attack: what it is, and its options with their
    defaults and limits."""
    order = [name for name in USES if name in CATALOGUE]
    order += [name for name in CATALOGUE if name not in USES]
    kinds = {name: type(CATALOGUE[name]()) for name in order}
    chosen = "\n".join(
        f"| [`{name}`](#{kind.__name__.lower()}) | {kind.needs.name.lower()} "
        f"| {', '.join(sorted(kind.norms))} | {USES.get(name, '')} |"
        for name, kind in kinds.items()
    )
    parts = [
        "# Attacks and protocols\n\nThis page is made from the code by `make docs`. The most "
        "important attacks come first. You seldom need to choose: a [protocol](choose-protocol.md) "
        "does.\n\nAny attack takes `restarts=N` and `targets=N` (the N best other classes, one "
        "after the other), where it has noise and a goal: `pgd(steps=100, restarts=5)`. In a list "
        "of several, `max_margin=0.3` leaves rows whose lowest margin so far is above that share "
        'of the clean one, and `unless="bab"` rows that an earlier trial of that attack has '
        "searched.\n\n"
        f"| attack | needs | norms | use it when |\n|---|---|---|---|\n{chosen}\n"
    ]
    for kind in dict.fromkeys(kinds.values()):
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
        norms = ", ".join(sorted(kind.norms)) + "; l0 also by pixels" * kind.groups
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
        if name in STEPPED:
            listed = "; ".join(f"`{t}`" for t in STEPPED[name])
            parts.append(
                "Of a torch model whose scores are flat next to its inputs, because of thresholds, "
                f"signs or rounding, in linf, by gradients straight through them: {listed}.\n"
            )
        for access, others in BLACK_BOX.items():
            rows = "\n".join(
                f"- {norm}: {'; '.join(f'`{t}`' for t in t_)}"
                for norm, t_ in others.get(name, {}).items()
            )
            if rows:
                parts.append(f"Where the target gives {access.name.lower()} alone:\n\n{rows}\n")
        for access, others in TABLES.items():
            rows = "\n".join(
                f"- {norm}: {'; '.join(f'`{t}`' for t in t_)}"
                for norm, t_ in others.get(name, {}).items()
            )
            if rows:
                parts.append(
                    f"Of the rows of a table, where the target gives {access.name.lower()}:\n\n"
                    f"{rows}\n"
                )
        if name in TABLES[Access.SCORES]:
            parts.append(
                "Of the rows of a table, where the target is a forest or boosted trees, in linf: "
                f"`{TREES}` before these.\n"
            )
        for task, others in OF_TASK.items():
            if listed := "; ".join(f"`{t}`" for t in others.get(name, ())):
                parts.append(
                    f"Of a {task}, where the target gives gradients, in linf and l2: {listed}.\n"
                )
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


STUB = """\
# Made by docs/generate.py: the names that holdfast.attacks finds in its files.
from collections.abc import Callable

{imports}

CATALOGUE: dict[str, Callable[..., Attack]]

def parse(text: str) -> Attack: ...
def parse_trial(text: str) -> Trial: ...
{named}"""


def stub() -> str:
    """What editors and type checkers read of `holdfast.attacks`."""
    own = (Attack, AttackResult, AutoAttack, Outcome, SearchResult, Trial, perturb, run)
    classes = [maker for maker in CATALOGUE.values() if isinstance(maker, type)]
    imports = sorted(
        f"from {item.__module__} import {item.__name__} as {item.__name__}"
        for item in (*own, *classes)
    )
    named = [
        _named(name.upper(), maker)
        for name, maker in CATALOGUE.items()
        if not isinstance(maker, type)
    ]
    return STUB.format(imports="\n".join(imports), named="\n".join(named))


def _named(name: str, maker: Any) -> str:
    """A class with options set, as a function of its options."""
    lines, free = list[str](), True
    for option in inspect.signature(maker).parameters.values():
        if free and option.kind is option.KEYWORD_ONLY:
            lines.append("*")
            free = False
        default = repr(option.default).replace("'", '"')
        lines.append(f"{option.name}: {option.annotation} = {default}")
    inner = "".join(f"    {line},\n" for line in lines)
    return f'def {name}(\n{inner}) -> {maker.func.__name__}:\n    """{maker.__doc__}"""\n'


PAGES = {
    "schema/run.schema.json": schema,
    "attacks.md": attacks,
    "../src/holdfast/cli/attacks.txt": listing.attacks,
    "../src/holdfast/attacks/__init__.pyi": stub,
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
