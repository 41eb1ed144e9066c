"""An audit by a plan: every step by one command, one report, resumed, verified; and bad plans."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import holdfast, names, refused

from holdfast.audit import membership
from holdfast.cli import audit_plan as command
from holdfast.data import open_data
from holdfast.reporting import audit, pages
from holdfast.reporting import audit_plan as reporting
from holdfast.runs import audit_plan, store

PLAN = """
evaluate:
  - {threat: linf(0.2), protocol: quick, samples: 8}
  - {threat: l2(0.001), attack: fgsm, samples: 6, seed: 1, gate: clean_accuracy>=0.5}
membership:
  members: members.npz
  non_members: others.npz
"""


CONFIRMED = "run is confirmed: the steps evaluate, evaluate-2, membership.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, its data, and the audit by it in `run`."""
    home = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        for name, split in (("members", "train"), ("others", "test")):
            x, y = open_data("digits", split=split).rows(0, 60)
            np.savez(home / f"{name}.npz", x=x, y=y)
        (home / "audit.yaml").write_text(PLAN)
        done = holdfast("audit", "demo", "digits", "--plan", "audit.yaml", "--out", "run")
        assert done.exit_code == 0, done.output
        names(done.stdout, "weaknesses found", "Of 3 questions", "Not tested: ")
        names(done.stderr, "1 of 3: evaluate demo digits", "report: run/report.html")
    return home


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def by_plan(*more: object) -> Any:
    return holdfast("audit", "demo", "digits", "--plan", "audit.yaml", *more)


def test_the_report_answers_and_says_what_it_does_not_know(made: Path) -> None:
    found = reporting.found(made / "run")
    first, second = (one for one in found.questions if one.topic == "evasion")
    assert (first.weak, first.step) == (True, "evaluate")
    assert (second.weak, second.step) == (None, "evaluate-2")  # one attack alone
    names(second.answer, "what is required holds: clean_accuracy>=0.5")
    states = {name: state for name, state, _ in found.coverage()}
    assert [states[name] for name in ("White box", "Membership")] == [audit.TESTED] * 2
    left_out = ("Corruptions", "Proof", "Backdoor", "Poisoning", "Extraction", "Availability")
    assert {states[name] for name in left_out} == {audit.NOT}
    page = (made / "run/report.html").read_text(encoding="utf-8")
    names(page, *states, found.word, found.audit.fingerprint, "Sign-off", "Signature")
    names(page, "AML.T0024.000", "ML04:2023", "NISTAML.033", "2 December 2027", "2 August 2028")
    names(page, 'href="evaluate/report.html"', "change every pixel by up to 0.2")
    for step in found.audit.steps:
        names(page, str(step.run))
        assert (made / "run" / step.name / "report.html").is_file()


def judged(made: Path, status: str, gates: list[str], **others: Any) -> list[reporting.Answer]:
    """What counts of the first step, with its verdict and its gates replaced."""
    found = reporting.found(made / "run")
    run, step = found.runs[0], found.audit.steps[0]
    assert run.metrics.counts["broken"]
    run = run.model_copy(update={"verdict": run.verdict.model_copy(update={"status": status})})
    run = run.model_copy(update=others)
    steps = [step.model_copy(update={"gates": gates})]
    whole = found.audit.model_copy(update={"steps": steps})
    return reporting.Found(whole, {step.name: run}).questions


@pytest.mark.parametrize(
    ("status", "gates", "weak"),
    [
        ("trusted", ["clean_accuracy>=0"], True),
        ("trusted", ["verdict==trusted"], True),
        ("trusted", ["corruptions.relative_drop>=0", "robust_accuracy>=0"], True),  # one is missed
        ("trusted", ["robust_accuracy.low>=0", "clean_accuracy>=0"], False),
        ("trusted", ["attack_success_rate<=1"], False),
        ("upper-bound", ["robust_accuracy>=0"], None),
        ("unreliable", ["robust_accuracy>=0"], None),
        ("unreliable", ["clean_accuracy>1"], True),
    ],
)
def test_only_a_requirement_on_robustness_replaces_broken_means_weak(
    made: Path, status: str, gates: list[str], weak: bool | None
) -> None:
    (answer,) = judged(made, status, gates)
    assert answer.weak is weak


def test_requirements_of_a_proof_are_judged_with_it(made: Path) -> None:
    metrics = reporting.found(made / "run").runs[0].metrics
    proof = {"certified_accuracy": metrics.robust_accuracy}
    alone: Any = {"trials": [], "metrics": metrics.model_copy(update=proof)}
    assert not judged(made, "trusted", [], **alone)
    (answer,) = judged(made, "trusted", ["certified_accuracy>=0"], **alone)
    assert (answer.topic, answer.weak) == ("proofs", False)
    (answer,) = judged(made, "trusted", ["certified_accuracy>1", "robust_accuracy>1"], **alone)
    assert (answer.topic, answer.weak) == ("proofs", True)
    names(answer.answer, "does not hold: certified_accuracy is", "; robust_accuracy is")


def test_places_follow_from_what_was_asked() -> None:
    none, every = audit.Covered(), audit.Covered(*[True] * 9)
    for place, full in zip(audit.places_of(none), audit.places_of(every), strict=True):
        assert place.name == full.name
        assert place.state == audit.NOT or place.name.startswith(("(1)", "(3)"))
    states = {place.name: place.state for place in audit.places_of(every)}
    assert states["NISTAML.031 Model Extraction"] == audit.TESTED
    assert states["AML.T0020 Training Data Poisoning"] == audit.PARTLY
    assert states["ML03:2023 Model Inversion Attack"] == audit.NOT
    of_data = audit.places_of(audit.Covered(data=True))
    assert {p.name for p in of_data if p.state != audit.NOT} > {"(5) Data poisoning"}
    assert not any(p.state == audit.TESTED for p in of_data)


def test_a_part_stays_as_it_is_done_and_the_rest_is_done(here: Path) -> None:
    """Without one step's folder, and with a new step, those two are done and the others are not."""
    kept = {name: (here / "run" / name / "run.json").stat().st_mtime_ns for name in ("evaluate",)}
    shutil.rmtree(here / "run/membership")
    (here / "run/report.html").unlink()
    more = "data: {samples: 400}\n"
    (here / "audit.yaml").write_text(PLAN + more)
    done = by_plan("--out", "run", "--resume")
    assert done.exit_code == 0, done.output
    found = reporting.found(here / "run")
    assert [step.name for step in found.audit.done] == [
        "evaluate",
        "evaluate-2",
        "membership",
        "data",
    ]
    for name, when in kept.items():
        assert (here / "run" / name / "run.json").stat().st_mtime_ns == when
    assert holdfast("verify", "run", "demo", "digits").exit_code == 0


def test_another_question_or_other_data_are_no_resumption(here: Path) -> None:
    text = refused("audit", "demo", "digits", "--plan", "audit.yaml", "--out", "run")
    names(text, "holds an audit", "--resume")
    (here / "audit.yaml").write_text(PLAN.replace("samples: 8", "samples: 9"))
    again = ("audit", "demo", "digits", "--plan", "audit.yaml", "--out", "run", "--resume")
    names(refusal(*again), "cannot resume run", "--samples=9")
    (here / "audit.yaml").write_text(PLAN)
    x, y = open_data("digits").rows(100, 160)
    np.savez(here / "others.npz", x=x, y=y)
    names(refusal(*again), "cannot resume run", "data of membership")


def test_another_run_in_the_place_of_a_step_is_not_gone_on_with(here: Path) -> None:
    shutil.copy(here / "run/evaluate/run.json", here / "run/evaluate-2/run.json")
    said = refusal("audit", "demo", "digits", "--plan", "audit.yaml", "--out", "run", "--resume")
    names(said, "evaluate-2/run.json is not the one that the audit wrote")


def test_time_that_ran_out_is_said_and_gone_on_with(here: Path) -> None:
    limited = "evaluate: {threat: linf(0.2), protocol: quick, samples: 8, max-seconds: 0}\n"
    (here / "audit.yaml").write_text(limited)
    done = by_plan("--out", "short")
    assert done.exit_code == 0
    names(done.stdout, "not known. ")
    names(done.stderr, "time ran out in evaluate; go on with the same command and --out short --r")
    assert "short/evaluate --resume" not in done.stderr
    (here / "audit.yaml").write_text(limited.replace(", max-seconds: 0", ""))
    done = by_plan("--out", "short", "--resume")
    assert done.exit_code == 0
    assert "time ran out" not in done.stderr
    names(done.stdout, "question that was asked shows a weakness")


def refusal(*args: object) -> str:
    done = holdfast(*args)
    assert done.exit_code == 2, done.output
    return done.stderr


def test_an_interrupted_audit_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(membership, "judged", stopped)
        done = by_plan("--out", "again")
    assert done.exit_code == 130
    assert "interrupted; go on with the same command and --out again --resume." in done.stderr
    assert "nothing was kept" not in done.stderr
    assert [s.name for s in audit_plan.read(here / "again").done] == ["evaluate", "evaluate-2"]
    assert by_plan("--out", "again", "--resume").exit_code == 0
    assert len(audit_plan.read(here / "again").done) == 3


@pytest.mark.slow
def test_what_a_step_keeps_is_gone_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    options = "members: members.npz, non-members: others.npz, references: 4, epochs: 1"
    (here / "audit.yaml").write_text(f"membership: {{{options}}}\n")
    with monkeypatch.context() as patched:
        patched.setattr(membership, "_answers", stopped)
        done = by_plan("--out", "again")
    assert (done.exit_code, done.stderr.count("training reference")) == (130, 4)
    done = by_plan("--out", "again", "--resume")
    assert (done.exit_code, done.stderr.count("training reference")) == (0, 0)


def test_a_step_that_is_refused_later_is_named_and_the_others_are_done(here: Path) -> None:
    plan = PLAN.replace("samples: 8}", "samples: 8, corruptions: true, baseline: gone}")
    (here / "audit.yaml").write_text(plan)
    done = by_plan("--out", "two")
    assert done.exit_code == 2
    names(done.stderr, "not done: evaluate.", "--out two --resume")
    found = reporting.found(here / "two")
    assert [step.name for step in found.left] == ["evaluate"]
    names({n: t for n, _, t in found.coverage()}["Corruptions"], "could not be done", "gone")
    names((here / "two/report.html").read_text(encoding="utf-8"), "could not be done")
    (here / "audit.yaml").write_text(PLAN)  # what was refused may be mended
    assert by_plan("--out", "two", "--resume").exit_code == 0


def test_a_requirement_that_does_not_hold_is_a_weakness(here: Path) -> None:
    gate = "gate: [robust_accuracy>=0.99, verdict==trusted]"
    (here / "audit.yaml").write_text(
        f"evaluate: {{threat: linf(0.2), attack: fgsm, samples: 8, {gate}}}\n"
    )
    done = by_plan("--out", "strict")
    assert done.exit_code == 1
    assert done.stderr.count("gate not held: robust_accuracy") == 1
    (answer,) = reporting.found(here / "strict").questions
    assert answer.weak
    names(answer.answer, "what is required does not hold: robust_accuracy is 0")


def test_what_is_changed_is_not_confirmed(here: Path) -> None:
    run = here / "run"
    shutil.rmtree(run / "evaluate-2")
    shutil.copytree(run / "evaluate", run / "evaluate-2")
    signals = store.read_tensors(run / "membership/signals.safetensors")
    signals["members log"] = signals["members log"] - 1
    store.write_tensors(run / "membership/signals.safetensors", signals)
    text = (run / "audit.json").read_text(encoding="utf-8")
    (run / "audit.json").write_text(text.replace('"data": "digits"', '"data": "mnist"'))
    done = holdfast("verify", "run", "demo", "digits")
    assert done.exit_code == 1
    names(
        done.stdout,
        "audit.json: it was changed after the audit",
        "evaluate-2: run.json: it is not the one that the audit wrote",
        "membership: signals.safetensors: its content was changed",
        "report.html: it does not say",
    )
    shutil.rmtree(run / "membership")
    done = holdfast("verify", "run", "demo", "digits")
    assert done.exit_code == 1
    names(done.stdout, "membership: ", "report.html: ")
    assert "audit.json was changed" in refused("report", "run")
    (run / "audit.json").write_text(text.replace('"name": "membership"', '"name": "../run"'))
    assert "which is no folder of membership" in refused("verify", "run", "demo", "digits")


def test_a_step_is_of_the_model_and_the_gates_of_the_audit(made: Path) -> None:
    audit = audit_plan.read(made / "run")
    for step in audit.done:
        assert not list(audit_plan.unlike(audit, step, audit.fingerprint))
    _, gated, _ = audit.done
    other = gated.model_copy(update={"gates": ["clean_accuracy>=0"]})
    model, gates = audit_plan.unlike(audit, other, "0" * 64)
    names(model, "its model is not that of the audit")
    names(gates, "other gates than its command")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_step_that_cannot_be_read_hides_no_other_finding(here: Path, damage: str) -> None:
    if damage == "missing":
        shutil.rmtree(here / "run/evaluate-2")
    else:
        (here / "run/evaluate-2/run.json").write_text("{")
    (here / "run/membership/signals.safetensors").unlink()
    done = holdfast("verify", "run", "demo", "digits")
    assert done.exit_code == 1
    names(done.stdout, "evaluate-2: run.json: ", "membership: signals.safetensors: missing")


def test_the_whole_is_confirmed_and_written_again(here: Path) -> None:
    done = holdfast("verify", "run", "demo", "digits")
    assert (done.exit_code, done.stdout) == (0, CONFIRMED)
    names(refused("verify", "run"), "holds evaluate, a run", "the MODEL and the DATA")
    page = here / "run/report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert pages.report(here / "run").read_text(encoding="utf-8") == before
    page.unlink()
    assert holdfast("report", "run").exit_code == 0
    assert page.read_text(encoding="utf-8") == before
    names(refused("report", "run", "--model-card", "-"), "give one of its steps")


def test_the_plan_to_start_from_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = holdfast("audit", "plan", "audit.yaml")
    assert (done.exit_code, done.stdout) == (0, "")
    names(done.stderr, "holdfast audit MODEL DATA --plan audit.yaml")
    file = tmp_path / "audit.yaml"
    steps = list(command.steps_of(file, file.read_text()))
    assert [name for name, *_ in steps] == list(command.COMMANDS)
    read = [command.read(file, *step, "demo", "digits", {"seed": 3}) for step in steps]
    assert all("--seed=3" in step.arguments for step in read)
    names(refused("audit", "plan", "audit.yaml"), "audit.yaml exists")


BAD = {
    "step": ("evalute: {threat: linf(0.1)}", "the step 'evalute'; did you mean evaluate"),
    "option": ("evaluate: {treat: linf(0.1)}", "step evaluate has the option 'treat'; did you"),
    "needed": ("evaluate: {protocol: quick}", "step evaluate: Missing option '--threat'"),
    "proof": ("certify: {samples: 5}", "step certify: there is no --threat"),
    "members": ("membership: {members: digits}", "step membership: Missing option '--non-members'"),
    "file": ("data: {data: gone.npz}", "step data: there is no file gone.npz"),
    "rows": ("membership: {members: digits, non-members: digits, split: test}", "row 0"),
    "whole": ("evaluate: {threat: linf(0.1), out: runs/a}", "out, which is for the whole audit"),
    "model": ("evaluate: {threat: linf(0.1), eot: 3}", "eot, which is for the whole audit"),
    "value": ("backdoor: {samples: many}", "step backdoor: Invalid value for '--samples'"),
    "flag": ("backdoor: {pairs: maybe}", "pairs is 'maybe'; it is true or false"),
    "none": ("evaluate: []", "step evaluate is an empty list"),
    "never": ("evaluate: {threat: linf(0.1), strict: true}", "which a plan does not take"),
    "nested": ("backdoor: {samples: {a: 1}}", "samples has no single value"),
    "empty": ("# nothing", "names no steps"),
    "list": ("- evaluate", "names no steps"),
    "text": ("evaluate: linf(0.1)", "is to hold options"),
    "twice": ("data: {}\ndata: {}", "'data' is there twice"),
    "broken": ("evaluate: {threat: [}", "no YAML text (line 1)"),
    "deep": ("data: " + "[" * 500, "nested too deeply"),
    "attack": ("evaluate: {threat: linf(0.1), attack: pgd(stepz=3)}", "stepz"),
    "protocol": ("evaluate: {threat: linf(0.1), protocol: quik}", "quik"),
    "threat": ("evaluate: {threat: linf(0.1)}\nextraction: {threat: lof(1)}", "step extraction"),
    "gate": ("evaluate: {threat: linf(0.1), gate: robust>=1}", "robust"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_is_refused_before_anything_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = BAD[name]
    Path("audit.yaml").write_text(text)
    assert said in refused("audit", "demo", "digits", "--plan", "audit.yaml", "--out", "run")
    assert [path.name for path in tmp_path.iterdir()] == ["audit.yaml"]


def test_a_plan_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused("audit", "demo", "digits", "--plan", "audit.yaml")
    names(said, "audit.yaml is not there", "holdfast audit plan audit.yaml")
    names(refused("audit", "demo", "digits", "--plan", "."), "cannot be read as text")
    Path("audit.yaml").write_bytes(b"\xff\xfe\x00")
    names(refused("audit", "demo", "digits", "--plan=audit.yaml"), "cannot be read as text")
    Path("audit.yaml").write_text("data: {}")
    names(refused("audit", "all", "gone.pt", "digits", "--plan", "audit.yaml"), "gone.pt")


@pytest.mark.slow
def test_the_whole_plan_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert holdfast("audit", "plan", "audit.yaml").exit_code == 0
    done = by_plan("--out", "run")
    assert done.exit_code == 0, done.output
    found = reporting.found(tmp_path / "run")
    assert not found.left
    assert {answer.topic for answer in found.answers} == set(reporting.MEANINGS)
    weak = {answer.topic: answer.weak for answer in found.questions}
    assert weak["evasion"]
    assert weak["backdoor"] is weak["data"] is False
    for figure in ("White box", "Corruptions", "Proof", "Backdoor", "Poisoning", "Extraction"):
        assert (figure, audit.TESTED) in [(name, state) for name, state, _ in found.coverage()]
    assert holdfast("verify", "run", "demo", "digits").exit_code == 0
