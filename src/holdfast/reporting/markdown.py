"""A run as Markdown: the summary of a build, and a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from holdfast.intervals import Interval
from holdfast.reporting import audit, words
from holdfast.runs.gates import Outcome
from holdfast.runs.manifest import ClassMetrics, GroupMetrics, Manifest, ModelInfo


def summary(manifest: Manifest, gates: Sequence[Outcome] = ()) -> str:
    """The headline, the verdict, the figures, the gates, the findings and what was not tested."""
    parts = [
        f"## Robustness of {_text(manifest.model.spec)} under {_code(words.asked(manifest))}",
        *_result(manifest),
    ]
    if gates:
        rows = [
            ["held" if g.held else "**not held**", _code(g.gate.text), _text(g.sentence)]
            for g in gates
        ]
        parts += ["### Gates", _table(["", "gate", "seen"], rows)]
    parts += [*_evidence(manifest), *_limits(manifest)]
    return "\n\n".join(parts) + "\n"


def card(manifest: Manifest) -> str:
    """A model card (Mitchell et al. 2019, arXiv:1810.03993) of what this run knows; what it cannot
    know is left open.

    The head is the `model-index` that model hubs read.
    """
    m, data = manifest.metrics, manifest.data
    figures = [
        ("accuracy", "Clean accuracy", m.clean_accuracy),
        ("robust_accuracy", "Robust accuracy", m.robust_accuracy),
    ]
    if m.certified_accuracy is not None:
        figures.append(("certified_accuracy", "Certified accuracy", m.certified_accuracy))
    if m.corruptions is not None:
        figures.append(
            ("corruption_accuracy", "Mean accuracy under corruptions", m.corruptions.mean_accuracy)
        )
    kind = "image" if words.is_image(manifest.model.shape, manifest.model.layout) else "tabular"
    task = "classification" if m.errors is None else "regression"
    result = {
        "task": {"type": f"{kind}-{task}"},
        "dataset": {"name": data.spec, "type": data.spec, "split": data.split},
        "metrics": [
            {"type": kind, "name": name, "value": share.value} for kind, name, share in figures
        ],
    }
    index = [{"name": manifest.model.spec, "results": [result]}]
    classes: list[str] = []
    if m.per_class:  # a regression has none
        classes = ["## By class", _parts("class", m.per_class)]
    groups: list[str] = []
    if m.per_group:
        groups = ["## By group", _parts("group", m.per_group)]
    parts = [
        f"---\nmodel-index: {json.dumps(index, ensure_ascii=True)}\n---",
        f"# Model card: {_text(manifest.model.spec)}",
        "## Model details",
        _details(manifest.model),
        "## Intended use",
        "_To be filled in by the owner: intended use, users, uses out of scope._",
        "## Evaluation data",
        f"Data {_text(data.spec)}, split {_text(data.split)}, {m.clean_accuracy.n:,} of "
        f"{data.total:,} rows; SHA-256 {_code(data.fingerprint)}.",
        "## Training data",
        "_To be filled in by the owner; nothing in this run tells._",
        "## Robustness",
        *_result(manifest),
        "### Threat model",
        _text(
            f"{audit.knowledge(manifest)} The adversary may {words.capability(manifest)}. "
            f"{words.goal(manifest)}"
        ),
        *_evidence(manifest),
        *classes,
        *groups,
        *_limits(manifest),
        "## Reproduce",
        _block(manifest.provenance.command),
    ]
    return "\n\n".join(parts) + "\n"


def _details(model: ModelInfo) -> str:
    rows = [
        ["Model", ", ".join(_code(part) for part in (model.spec, model.arch) if part)],
        [
            "Inputs",
            f"{' × '.join(map(str, model.shape))} ({_text(model.layout)}), in "
            f"{_text(list(model.bounds))}",
        ],
        [words.outputs(model).capitalize(), str(model.classes)],
        ["Preprocessing", ", ".join(map(_code, model.preprocess)) or "none declared"],
        ["SHA-256", _code(model.fingerprint)],
    ]
    return _table(["", ""], rows)


def _parts(kind: str, parts: Sequence[ClassMetrics] | Sequence[GroupMetrics]) -> str:
    return _table(
        [kind, "inputs", "clean accuracy", "robust accuracy"],
        [
            [
                _text(p.name),
                f"{p.robust_accuracy.n:,}",
                _share(p.clean_accuracy),
                _share(p.robust_accuracy),
            ]
            for p in parts
        ],
    )


def _result(manifest: Manifest) -> list[str]:
    m = manifest.metrics
    figures = (
        ("clean accuracy", m.clean_accuracy),
        ("robust accuracy", m.robust_accuracy),
        ("certified accuracy", m.certified_accuracy),
        ("attack success rate", m.attack_success_rate),
        ("mean accuracy under corruptions", m.corruptions and m.corruptions.mean_accuracy),
    )
    rows = [
        [name, words.percent(share.value), words.span(share), f"{share.n:,}"]
        for name, share in figures
        if share is not None
    ]
    rows += [
        [
            f"{_text(name)}, clean and under attack",
            f"{words.number(of.clean)}, {words.number(of.attacked)}",
            "" if of.interval is None else words.span(of.interval),
            "" if of.interval is None else f"{of.interval.n:,}",
        ]
        for name, of in m.of_task.items()
    ]
    return [
        _text(
            " ".join(
                [words.headline(manifest), *words.notes(manifest), words.worst_group(manifest)]
            ).strip()
        ),
        f"**Verdict: {manifest.verdict.status}.** {words.VERDICTS[manifest.verdict.status]}",
        _table(["figure", "value", "95 % interval", "of"], rows),
    ]


def _evidence(manifest: Manifest) -> list[str]:
    findings = [[f.severity, _code(f.check), _text(f.text)] for f in manifest.verdict.findings]
    trials = [
        [_code(t.spec), words.eps(t.eps), f"{t.attacked:,}", f"{t.broken:,}"]
        for t in manifest.trials
    ]
    return [
        "### Findings",
        _table(["severity", "check", "what was seen"], findings) if findings else "None.",
        "### Attacks",
        _table(["trial", "eps", "attacked", "broken"], trials),
    ]


def _limits(manifest: Manifest) -> list[str]:
    return ["### Not tested", _table(["topic", "what was not tested"], audit.untested(manifest))]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(interval: Interval) -> str:
    if interval.value is None:
        return words.NONE
    return f"{words.percent(interval.value)} ({words.span(interval)})"


# Text from outside: names of classes, groups and files, findings, and whatever run.json says in the
# place of them.
_MARKS = re.compile(r"[\\`*_{}\[\]#~$!@|]|:(?=/)|(?<=www)\.", re.IGNORECASE)
_ENTITIES = {"|": "&#124;", "@": "@&#8203;"}  # no backslash keeps an address from becoming a link


def _text(text: object) -> str:
    """Text that no Markdown reader takes for markup, HTML, a link or the end of a cell."""
    text = words.printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(_escaped, text)


def _escaped(mark: re.Match[str]) -> str:
    return _ENTITIES.get(mark[0], f"\\{mark[0]}")


def _code(text: str) -> str:
    """Text as code; as plain text where a sign in it would end the code or the cell."""
    text = words.printable(text)
    if not text.strip() or set(text) & set("`|\\"):
        return _text(text)
    return f"`{text}`"


def _block(text: str) -> str:
    """A command as a block of code, whose fence is longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}sh\n{words.printable(text)}\n{fence}"
