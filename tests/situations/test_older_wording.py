"""Runs made when findings were worded otherwise (see older_wording/README.md): verify confirms
them, and refuses words that no version of Holdfast has written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.small_runs import command, seal

from holdfast import wrap
from holdfast.attacks import parse_trial
from holdfast.errors import SpecError
from holdfast.evaluation.protocols import chosen
from holdfast.evaluation.verify import verify
from holdfast.reporting import html
from holdfast.runs import store
from holdfast.runs.migration import PHRASES, in_todays_words, with_todays_options
from holdfast.targets.loading import load

OLD = Path(__file__).parent / "older_wording"
ROUNDED = f"{OLD.parent / 'version1' / 'rounded.py'}:build"


@pytest.mark.parametrize(
    ("name", "model"),
    [("examined", "demo"), ("quick", "demo"), ("rounded", ROUNDED)],
    ids=["examined", "quick", "rounded"],
)
def test_it_is_confirmed(name: str, model: str) -> None:
    assert verify(OLD / name, wrap(load(model)), "digits") == []


@pytest.mark.parametrize(("name", "part"), [("examined", 0), ("quick", 1)])
def test_its_findings_are_not_what_is_written_today(name: str, part: int) -> None:
    """Else the runs above would show nothing."""
    text = store.read_manifest(OLD / name).verdict.findings[-1].text
    assert PHRASES[part][0] in text
    assert in_todays_words(text) != text


@pytest.mark.parametrize("place", ["text", "reason", "initial"])
def test_words_that_no_version_wrote_are_found(place: str, tmp_path: Path) -> None:
    name = {"initial": "examined"}.get(place, "quick")
    run = Path(shutil.copytree(OLD / name, tmp_path / "run"))
    manifest = store.read_manifest(run)
    noted, verdict = manifest.initial_findings, manifest.verdict
    if place == "reason":
        verdict = verdict.model_copy(update={"reason": "All is well."})
    elif place == "initial":
        noted = [noted[-1].model_copy(update={"text": "All is well."})]
    (finding, *others) = verdict.findings
    if place != "reason":
        finding = finding.model_copy(update={"text": "All is well."})
    verdict = verdict.model_copy(update={"findings": [finding, *others]})
    seal(run, manifest.model_copy(update={"verdict": verdict, "initial_findings": noted}))
    found = " ".join(verify(run, wrap(load("demo")), "digits"))
    seen = {"initial": "initial_findings: run.json says otherwise of binarisation"}
    assert seen.get(place, f"verdict.{'reason' * (place == 'reason')}") in found


def test_it_reads_the_same_everywhere_in_a_record() -> None:
    old, new = PHRASES[0]
    said = {"findings": [{"text": f"It {old}."}], "value": 0.5}
    assert in_todays_words(said) == {"findings": [{"text": f"It {new}."}], "value": 0.5}


def test_its_trials_are_named_as_today(tmp_path: Path) -> None:
    assert b"near=0.3" in (OLD / "rounded" / "run.json").read_bytes()
    manifest = store.read_manifest(OLD / "rounded")
    specs = [*manifest.protocol.trials, *(trial.spec for trial in manifest.trials)]
    assert not [text for text in specs if "near=" in text or "through=" in text]
    assert [text for text in specs if "max_margin=0.3" in text]
    assert [text for text in specs if "gradient='bpda'" in text]
    assert all(parse_trial(text).write(whole=True) == text for text in specs)
    run = Path(shutil.copytree(OLD / "rounded", tmp_path / "run"))
    assert command("report", str(run)).exit_code == 0
    assert "max_margin=0.3" in (run / "report.html").read_text("utf-8")


def test_a_page_in_the_words_of_then_is_no_contradiction(tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD / "rounded", tmp_path / "run"))
    page = html.write(run)
    for today, then in (
        ("max_margin=", "near="),
        ("gradient=&#39;bpda", "through=&#39;straight"),
        ("gradient=&#39;", "through=&#39;"),
    ):
        text = page.read_text("utf-8")
        assert today in text
        page.write_text(text.replace(today, then), "utf-8")
    assert list(html.differs(run)) == []
    page.write_text(page.read_text("utf-8").replace("near=0.3", "near=0.4"), "utf-8")
    assert len(list(html.differs(run))) == 1


def test_a_finished_run_is_compared_resumed_and_merged_as_one_of_today(tmp_path: Path) -> None:
    """Its trials are the same ones, and its rows end alike, but for what L2 has rounded otherwise
    since."""
    old, new, other = (str(tmp_path / name) for name in ("old", "new", "other"))
    shutil.copytree(OLD / "quick", old)
    asked = ("evaluate", "demo", "digits", "--threat", "l2(0.5)", "--protocol", "quick")
    asked += ("--seed", "3", "--samples")
    for call in (
        (*asked, "4", "--out", new),
        ("compare", old, new),
        (*asked, "4", "--out", old, "--resume"),
        (*asked, "4:8", "--out", other),
        ("merge", old, other, "--out", str(tmp_path / "merged")),
    ):
        done = command(*call)
        assert done.exit_code == 0, done.output
    ends, today = ([(row["status"], row["size"]) for row in _rows(run)] for run in (old, new))
    assert [status for status, _ in ends] == [status for status, _ in today]
    broken, again = ([size for _, size in rows if size is not None] for rows in (ends, today))
    assert broken == pytest.approx(again, rel=1e-6)


def _rows(run: str) -> list[dict[str, Any]]:
    return store.read_samples(Path(run)).to_pylist()


@pytest.mark.parametrize(
    ("then", "today"),
    [
        ("pgd(near=0.5)", "pgd(max_margin=0.5)"),
        ('apgd(steps=9, through="straight")', 'apgd(steps=9, gradient="bpda")'),
        ("apgd(through = 'blurred', near = 0.1)", "apgd(gradient = 'smoothed', max_margin = 0.1)"),
        ("apgd(through='estimated')", "apgd(gradient='estimated')"),
    ],
)
def test_who_writes_an_option_of_then_is_told_that_of_today(then: str, today: str) -> None:
    with pytest.raises(SpecError) as caught:
        chosen([then])
    assert str(caught.value).endswith(f"write {today!r}.")


def test_an_option_that_only_ends_alike_keeps_its_name() -> None:
    assert with_todays_options("own(linear=1, walkthrough='a')") == "own(linear=1, walkthrough='a')"
