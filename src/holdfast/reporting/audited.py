"""report.html of an audit, and what the terminal shows of it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from holdfast.reporting import html, words
from holdfast.reporting.terminal import columns
from holdfast.runs import audits, store
from holdfast.runs.audits import (
    AnyAudit,
    BackdoorAudit,
    DataAudit,
    ExtractionAudit,
    MembershipAudit,
)

TITLES = {
    "backdoor": "Backdoor",
    "data": "Training data",
    "membership": "Membership",
    "extraction": "Extraction",
}
# of each audit its question, and the answers where something was found and where nothing was
QUESTIONS = {
    "backdoor": ("Is there a backdoor?", "flagged", "none found"),
    "data": ("Are rows planted?", "flagged", "none found"),
    "membership": ("Do answers give away training rows?", "they do", "not seen"),
    "extraction": ("Does a copy help attacks?", "it does", "not seen"),
}
ATTACKS = {
    "loss": "the loss alone (Yeom et al. 2018)",
    "rmia": "RMIA (Zarifzadeh et al. 2024)",
    "lira": "offline LiRA (Carlini et al. 2022)",
}
UNKNOWN = "not known"  # the answer where nothing follows


def write(folder: Path) -> Path:
    """Write report.html into the folder of an audit.

    Raises:
        InputError: the folder holds no audit, or a file of it is damaged.
    """
    path = folder / "report.html"
    store.write_bytes(path, _page(folder, audits.read(folder)).encode())
    return path


def differs(folder: Path) -> Iterator[str]:
    """What report.html says otherwise than the folder does."""
    path = folder / "report.html"
    if path.exists() and store.read_bytes(path).decode("utf-8", "replace") != _page(
        folder, audits.opened(folder)[0]
    ):
        yield (
            "report.html: it does not say what this Holdfast writes of the audit; write it again "
            "with holdfast report."
        )


def _page(folder: Path, audit: AnyAudit) -> str:
    with store.untrusted(folder):
        return html.rendered("audited.html.j2", **shown(folder, audit))


def shown(folder: Path, audit: AnyAudit) -> dict[str, Any]:
    """What the sections of an audit's page show, by the names that their template has for it.

    Raises:
        InputError: a file of the folder is damaged.
    """
    question = QUESTIONS[audit.audit][0]
    return {
        "a": audit,
        "r": audit.result,
        "title": TITLES[audit.audit],
        "question": question,
        "answer": _answer(audit),
        "name": _naming(audit),
        "pictures": _pictures(folder, audit),
        "attacks": ATTACKS,
    }


def _naming(audit: AnyAudit) -> Callable[[int], str]:
    names = audit.data[0].class_names or []
    return lambda c: names[c] if 0 <= c < len(names) else str(c)


def _answer(audit: AnyAudit) -> str:
    _, found, not_found = QUESTIONS[audit.audit]
    answers: dict[bool | None, str] = {True: found, False: not_found, None: UNKNOWN}
    return answers[audit.verdict.found]


def _pictures(folder: Path, audit: AnyAudit) -> list[str]:
    """One of each trigger, or of each label whose rows were parted."""
    if isinstance(audit, BackdoorAudit):
        return [_picture(folder / trigger.picture) for trigger in audit.result.triggers]
    if isinstance(audit, DataAudit):
        return [_picture(folder / label.picture) for label in audit.result.labels]
    return []


def _picture(path: Path) -> str:
    """A PNG as a data URI; empty where there is none."""
    if not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(store.read_bytes(path)).decode()}"


def summary(audit: AnyAudit) -> RenderableType:
    """What the terminal shows."""
    said = Text(f"{QUESTIONS[audit.audit][0]} {_answer(audit)}. ", "bold")
    said.append(words.printable(audit.verdict.reason), "not bold")
    return Group(said, TABLES[audit.audit](audit))


def _triggers(audit: BackdoorAudit) -> RenderableType:
    table = columns("trigger", "index", "size", "expected", "held rows turned")
    name = _naming(audit)
    for t in audit.result.triggers:
        source = "all" if t.source is None else name(t.source)
        turned = f"{words.percent(t.success.value)} [{words.span(t.success)}]"
        figures = [words.number(v) for v in (t.index, t.size, t.expected)]
        mark = " (flagged)" if t.flagged else ""
        table.add_row(words.printable(f"{source} to {name(t.target)}{mark}"), *figures, turned)
    return table


def _attacks(audit: MembershipAudit) -> RenderableType:
    rates = [f"TPR at {rate.fpr:.2%}" for rate in audit.result.attacks[0].rates]
    table = columns("attack", "AUC", *rates, no_wrap=True)
    for attack in audit.result.attacks:
        figures = [
            f"needs {rate.needed:,} others"
            if rate.true_positives is None
            else f"{words.percent(rate.true_positives.value)} [{words.span(rate.true_positives)}]"
            for rate in attack.rates
        ]
        table.add_row(attack.name, str(attack.auc), *figures)
    return table


def _substitutes(audit: ExtractionAudit) -> RenderableType:
    table = columns("queries", "answers", "agreement", "accuracy", "rows it turns", no_wrap=True)
    for copy in audit.result.substitutes:
        shares = (copy.agreement, copy.accuracy, copy.transfer)
        table.add_row(
            f"{copy.queries:,}",
            copy.answers,
            *(f"{words.percent(s.value)} [{words.span(s)}]" for s in shares),
        )
    return table


def _labels(audit: DataAudit) -> RenderableType:
    table = columns("label", "rows", "gap", "distance", "of the rest", "planted", no_wrap=True)
    name = _naming(audit)
    for one in audit.result.labels:
        figures = [words.number(v) for v in (one.rows, one.gap, one.apart, one.rest_apart)]
        share = words.percent(one.share) if one.flagged else "none found"
        if one.gap is None:
            share = "too few rows"
        table.add_row(words.printable(name(one.label)), *figures, share)
    r = audit.result
    said = Text(
        f"{r.doubted:,} labels in doubt; {r.twice:,} rows occur twice, {r.at_odds:,} with two "
        "labels."
    )
    if r.planted is not None:
        found, other = r.planted.found, r.planted.false_alarms
        said.append(
            f" Of the planted rows, {words.percent(found.value)} [{words.span(found)}] look "
            f"planted; of the others {words.percent(other.value)} [{words.span(other)}]."
        )
    return Group(table, said)


TABLES = {
    "backdoor": _triggers,
    "data": _labels,
    "membership": _attacks,
    "extraction": _substitutes,
}
