"""Runs made when findings were worded otherwise (see older_wording/README.md): verify confirms
them, and refuses words that no version of Holdfast has written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.small_runs import seal

from holdfast import wrap
from holdfast.evaluation.verify import verify
from holdfast.runs import store
from holdfast.runs.migration import PHRASES, in_todays_words
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
