"""report.html of an audit by a plan: what its steps found, for who has to decide on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from holdfast.reporting import audit as auditor
from holdfast.reporting import audited, html, words
from holdfast.runs import audit_plan, audits, gates, store
from holdfast.runs.audit_plan import AuditPlan, Step
from holdfast.runs.audits import (
    AnyAudit,
    BackdoorAudit,
    DataAudit,
    ExtractionAudit,
    MembershipAudit,
)
from holdfast.runs.manifest import Manifest

# what each question means to who uses the model
MEANINGS = {
    "accuracy": "How good is it on inputs that nobody has changed?",
    "evasion": "Anyone who can change inputs a little could make it decide wrongly.",
    "corruptions": "Worse cameras, weather or transmission are enough to make it err.",
    "proofs": "For these inputs no change of that size, by whatever attack, can make it err.",
    "backdoor": "Anyone who knows a hidden sign could make it give the answer that they want.",
    "data": "Anyone who can write into the training data could steer what it learns.",
    "membership": "Whether someone was in the training data could be learned from its answers.",
    "extraction": "Anyone who can ask it could rebuild it, and prepare attacks on the copy unseen.",
}
FOUND = {True: "yes", False: "as far as it was searched", None: "no"}
BELIEVED = {"trusted": "yes", "upper-bound": "as an upper bound", "unreliable": "no"}
# what a requirement may be on, to say how much of what fools the model is no weakness
OF_ROBUSTNESS = "robust_accuracy", "attack_success_rate", "accuracy_8bit", "worst_group"
NOTHING = "where nothing is found, a stronger test may still find something"


@dataclass(frozen=True)
class Answer:
    """A question, what was found, and whether it may be believed."""

    topic: str  # key of `MEANINGS`
    question: str
    asked: str  # the threat, or how much was asked
    answer: str
    # whether it shows a weakness; None: nothing follows
    weak: bool | None
    figure: str
    interval: str
    believed: str
    reason: str
    step: str  # whose evidence it is
    counts: bool = True  # whether it is a question of security: else it says what to compare with

    @property
    def word(self) -> str:
        """Whether it is a weakness, in a word; of what only says what to compare with nothing."""
        if not self.counts:
            return ""
        return {True: "weakness", False: "no weakness found", None: "not known"}[self.weak]

    @property
    def mark(self) -> str:
        """The colour of the page that says it."""
        if not self.counts:
            return ""
        return {True: "red", False: "good", None: "amber"}[self.weak]


@dataclass(frozen=True)
class Found:
    """What an audit by a plan found: all that its page says."""

    audit: AuditPlan
    evidence: dict[str, Manifest | AnyAudit]  # by the names of the steps that are done

    @property
    def runs(self) -> list[Manifest]:
        return [one for one in self.evidence.values() if isinstance(one, Manifest)]

    @cached_property
    def outcomes(self) -> list[gates.Outcome]:
        """The conditions that steps were to hold."""
        return [one for step in self.audit.done for one in self.judged(step)]

    def judged(self, step: Step) -> list[gates.Outcome]:
        run = self.evidence[step.name]
        if not isinstance(run, Manifest):
            return []
        return gates.judge([gates.parse(text) for text in step.gates], run)

    @cached_property
    def answers(self) -> list[Answer]:
        said = list[Answer]()
        for step in self.audit.done:
            one = self.evidence[step.name]
            if isinstance(one, Manifest):
                known = {answer.topic for answer in said}
                said += [a for a in _of_run(one, step, self.judged(step)) if _new(a, known)]
            else:
                said.append(_of_audit(one, step))
        return said

    @property
    def questions(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.counts]

    def having(self, weak: bool | None) -> list[Answer]:
        return [answer for answer in self.questions if answer.weak is weak]

    @cached_property
    def covered(self) -> auditor.Covered:
        whole = auditor.Covered()
        for step in self.audit.done:
            one = self.evidence[step.name]
            if isinstance(one, Manifest):
                whole |= auditor.covered(one)
            else:
                whole |= auditor.Covered(**{one.audit: True})
        return whole

    @property
    def word(self) -> str:
        """The verdict, in a word or three."""
        if self.having(True):
            return "weaknesses found"
        if not self.questions or self.having(None) or self.left:
            return "not known"
        return "no weakness found"

    @property
    def tone(self) -> str:
        """The class of the page for it."""
        return {"weaknesses found": "unreliable", "not known": "upper-bound"}.get(self.word, "")

    @property
    def left(self) -> list[Step]:
        """The steps that are not done."""
        return [step for step in self.audit.steps if step.run is None]

    @property
    def headline(self) -> str:
        weak, sound, open_ = (len(self.having(one)) for one in (True, False, None))
        total = len(self.questions)
        if not total:
            return "No question of security was asked, or none of the steps was done."
        if total == 1 and not weak and not open_:
            return "The one question that was asked shows no weakness."
        if not weak and not open_:
            return f"None of the {_count(total, 'question')} that were asked shows a weakness."
        parts = [f"{sound} show{'s' * (sound == 1)} none"] if sound else []
        parts += [f"{open_} could not be answered"] if open_ else []
        ending = f"; {' and '.join(parts)}." if parts else "."
        shows = "shows" if weak < 2 else "show"
        if total == 1 and weak:
            return "The one question that was asked shows a weakness."
        return f"Of {_count(total, 'question')}, {weak or 'none'} {shows} a weakness{ending}"

    @cached_property
    def data(self) -> list[tuple[str, str, list[str]]]:
        """Each source of rows and its SHA-256, and the steps that read it."""
        read = dict[str, tuple[str, list[str]]]()
        for step in self.audit.done:
            for one, used in _sources(self.evidence[step.name]):
                named = f"{one.spec}, {one.total:,} rows"
                read.setdefault(one.fingerprint, (named, []))[1].append(f"{step.name}{used}")
        return [(said, fingerprint, steps) for fingerprint, (said, steps) in read.items()]

    def coverage(self) -> list[tuple[str, str, str]]:
        """Each topic, whether it was tested, and by what or why not."""
        return [(t.name, *self._state(t)) for t in auditor.TOPICS]

    def _state(self, topic: auditor.Topic) -> tuple[str, str]:
        if not topic.asked:
            return auditor.NOT, f"{topic.text} {topic.why}"
        command, option, what = TESTS[topic.asked]
        done = [step for step in self.audit.done if topic.asked in _asked(self, step)]
        if done:
            return auditor.TESTED, f"By {', '.join(step.name for step in done)}."
        own = [s for s in self.left if s.command == command and f" {option}" in s.line]
        if refused := [step for step in own if step.refused]:
            return auditor.NOT, f"{refused[0].name} could not be done: {refused[0].refused}"
        if own:
            return auditor.NOT, f"{own[0].name} is not done yet."
        return auditor.NOT, f"{topic.text} The plan leaves it out ({what})."


# of each topic that a step may test: the command, the option that it takes, what a plan would say
TESTS = {
    "white": ("evaluate", "", "evaluate"),
    "limited": ("evaluate", "--surrogate", "evaluate, with surrogate, or of an endpoint"),
    "corruptions": ("evaluate", "--corruptions", "evaluate, with corruptions: true"),
    "proofs": ("certify", "", "certify"),
    "backdoor": ("backdoor", "", "backdoor"),
    "data": ("data", "", "data"),
    "membership": ("membership", "", "membership"),
    "extraction": ("extraction", "", "extraction"),
}


def _asked(found: Found, step: Step) -> set[str]:
    """The topics that a step asked about."""
    one = found.evidence[step.name]
    if not isinstance(one, Manifest):
        return {one.audit}
    covered = auditor.covered(one)
    return {name for name in TESTS if getattr(covered, name)}


def _sources(one: Manifest | AnyAudit) -> list[tuple[Any, str]]:
    """What a step read, and for what."""
    if isinstance(one, Manifest):
        return [(one.data, f" ({one.metrics.clean_accuracy.n:,} of them)")]
    roles = {"rows": ""}
    return [(source, roles.get(source.role, f" ({source.role})")) for source in one.data]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _new(answer: Answer, known: set[str]) -> bool:
    """Accuracy on inputs as they are is said once."""
    return answer.counts or answer.topic not in known or answer.topic == "proofs"


def _of_run(run: Manifest, step: Step, judged: list[gates.Outcome]) -> Iterator[Answer]:
    """What a run of evaluate or certify says."""
    m, reason = run.metrics, run.verdict.reason
    sure = BELIEVED[run.verdict.status]
    clean = m.clean_accuracy
    yield Answer(
        "accuracy",
        "How often is it right?",
        "inputs as they are",
        f"on {round((clean.value or 0) * clean.n):,} of {clean.n:,}",
        None,
        words.percent(clean.value),
        words.span(clean),
        "yes" if clean.n else "no",
        "each input was asked" if clean.n else "no input was measured",
        step.name,
        counts=False,
    )
    if run.trials or (judged and m.certified_accuracy is None):
        yield _evasion(run, step, judged)
    if m.corruptions is not None:
        mean = m.corruptions.mean_accuracy
        lost = mean.high is not None and clean.low is not None and mean.high < clean.low
        drop = m.corruptions.relative_drop
        worse = f"no: it loses {words.percent(drop)} of its accuracy"
        yield Answer(
            "corruptions",
            "Does it stay right under noise, blur and weather?",
            f"{len({p.kind for p in m.corruptions.points})} kinds of corruption, 5 severities",
            worse if lost else "yes, nearly",
            lost,
            f"accuracy {words.percent(mean.value)}",
            words.span(mean),
            "no" if sure == "no" else "yes",
            "each corrupted input was asked",
            step.name,
        )
    if m.certified_accuracy is not None:
        proved = m.certified_accuracy
        said = f"right, and safe, on {words.percent(proved.value)}" if proved.value else "nothing"
        asked = judged if not run.trials else []  # else they are said of the attacks
        yield Answer(
            "proofs",
            "What is proved?",
            _threat(run),
            said + _required(asked),
            _missed(asked) or (None if sure == "no" else False),
            f"at least {words.percent(proved.value)}",
            words.span(proved),
            "no" if sure == "no" else "yes, a proof",
            reason if sure == "no" else "no attack can lower it; more may be safe than is proved",
            step.name,
            counts=bool(asked),
        )


def _threat(run: Manifest) -> str:
    """What changes are meant, for who does not know the notation too."""
    return f"anyone who can {words.capability(run)}: {words.asked(run)}"


def _evasion(run: Manifest, step: Step, judged: list[gates.Outcome]) -> Answer:
    m, broken = run.metrics, run.metrics.counts.get("broken", 0)
    sure, robust = BELIEVED[run.verdict.status], m.robust_accuracy
    success = words.percent(m.attack_success_rate.value)
    said, weak = "no change was found that does", None if sure != "yes" else False
    if broken:
        said, weak = f"yes, on {success} of the inputs that it has right", True
    if _missed(judged):
        weak = True
    elif any(one.gate.name.startswith(OF_ROBUSTNESS) for one in judged):
        weak = False if sure == "yes" else None
    said += _required(judged)
    figure, interval = f"it stays right on {words.percent(robust.value)}", words.span(robust)
    if not words.bounded(run):
        figure, interval = f"median size {words.number(m.sizes.median)}", words.NONE
    return Answer(
        "evasion",
        "Can changes made on purpose fool it?",
        _threat(run),
        said,
        weak,
        figure,
        interval,
        sure,
        run.verdict.reason,
        step.name,
    )


def _missed(judged: list[gates.Outcome]) -> bool:
    return not all(one.held for one in judged)


def _required(judged: list[gates.Outcome]) -> str:
    """Whether what is required holds, to be said after an answer."""
    if missed := [one.sentence for one in judged if not one.held]:
        return f"; what is required does not hold: {'; '.join(missed)}"
    if not judged:
        return ""
    return f"; what is required holds: {', '.join(one.gate.text for one in judged)}"


def _of_audit(one: AnyAudit, step: Step) -> Answer:
    """What an audit says."""
    question, yes, no = audited.QUESTIONS[one.audit]
    answers: dict[bool | None, str] = {True: yes, False: no, None: audited.UNKNOWN}
    asked, figure, interval = FIGURES[one.audit](one)
    found = one.verdict.found
    return Answer(
        one.audit,
        question,
        asked,
        answers[found],
        found,
        figure,
        interval,
        FOUND[found],
        f"{one.verdict.reason.rstrip('.')}" if found is not False else NOTHING,
        step.name,
    )


Figure = tuple[str, str, str]  # what was asked, the figure, its interval


def _triggers(one: BackdoorAudit) -> Figure:
    r = one.result
    asked = f"a small trigger was sought for each of {len(r.class_sizes)} classes"
    if not r.triggers:
        return asked, words.NONE, words.NONE
    first = r.triggers[0]
    if first.flagged:
        turns = f"a trigger on {words.percent(first.share)} of the input turns"
        return asked, f"{turns} {words.percent(first.success.value)}", words.span(first.success)
    index = f"index {words.number(first.index)} ({words.number(r.least_index)} is suspicious)"
    return asked, index, "no interval: all of one model"


def _planted(one: DataAudit) -> Figure:
    r = one.result
    return f"{r.rows:,} training rows", f"{r.suspects:,} look planted", "no interval: all were read"


def _members(one: MembershipAudit) -> Figure:
    r = one.result
    best = max(r.attacks, key=lambda attack: attack.auc.low or 0)
    low, high = (
        f"{edge:.3f}" if edge is not None else "" for edge in (best.auc.low, best.auc.high)
    )
    asked = f"{r.members:,} training rows, {r.non_members:,} others"
    return asked, f"AUC {best.auc.value:.3f} (0.5 is chance)", f"{low} to {high}"


def _copied(one: ExtractionAudit) -> Figure:
    best = max(one.result.substitutes, key=lambda copy: copy.agreement.value or 0)
    return (
        f"a copy made with {best.queries:,} queries",
        f"it agrees on {words.percent(best.agreement.value)}; attacks made on it turn "
        f"{words.percent(best.transfer.value)}",
        f"{words.span(best.agreement)}; {words.span(best.transfer)}",
    )


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "backdoor": _triggers,
    "data": _planted,
    "membership": _members,
    "extraction": _copied,
}


def found(folder: Path) -> Found:
    """What the steps in the folder of an audit by a plan found.

    Raises:
        InputError: it is none, or a step is missing or was changed.
    """
    return _found(folder, audit_plan.read(folder))


def _found(folder: Path, audit: AuditPlan) -> Found:
    evidence = dict[str, Manifest | AnyAudit]()
    for step in audit.done:
        own = folder / step.name
        one = audits.read(own) if store.is_audit(own) else store.read_manifest(own)
        evidence[step.name] = one
    return Found(audit, evidence)


def write(folder: Path) -> Path:
    """Write report.html into the folder of an audit by a plan.

    Raises:
        InputError: it is none, or a file of it is damaged.
    """
    path = folder / "report.html"
    store.write_bytes(path, _page(folder, found(folder)).encode())
    return path


def differs(folder: Path) -> Iterator[str]:
    """What report.html says otherwise than the folder does."""
    path = folder / "report.html"
    now = _page(folder, _found(folder, audit_plan.opened(folder)[0]))
    if path.exists() and store.read_bytes(path).decode("utf-8", "replace") != now:
        yield (
            "report.html: it does not say what this Holdfast writes of the audit; write it again "
            "with holdfast report."
        )


def _page(folder: Path, found: Found) -> str:
    with store.untrusted(folder):
        return html.rendered(
            "audit_plan.html.j2",
            f=found,
            a=found.audit,
            auditor=auditor,
            meanings=MEANINGS,
            isrun=lambda one: isinstance(one, Manifest),
        )


def summary(found: Found) -> RenderableType:
    """What the terminal shows: a verdict, a line for each question, and what was not tested."""
    table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2, 0, 0))
    for a in found.answers:
        said = Text(f"{a.question} ", "bold")
        figure = f"{a.answer}; {a.figure} [{a.interval}]. Believed: {a.believed}."
        said.append(words.printable(figure), "not bold")
        table.add_row(a.word, said)
    said = Text(f"{found.word}. ", "bold")
    said.append(found.headline, "not bold")
    missing = [name for name, state, _ in found.coverage() if state == auditor.NOT]
    return Group(said, table, Text(f"Not tested: {'; '.join(missing)}."))
