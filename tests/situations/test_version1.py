"""Runs of schema version 1 (see version1/README.md) are read by every command; none goes on with
them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.small_runs import command

from holdfast.runs import store
from holdfast.runs.manifest import SCHEMA_VERSION
from holdfast.runs.migration import migrate

OLD = Path(__file__).parent / "version1"
MODEL = f"{OLD / 'rounded.py'}:build"
QUESTION = ("digits", "--threat", "linf(0.15)", "--samples", "4", "--seed", "3")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "rounded", tmp_path / "old"))


def test_what_was_renamed_is_found_under_its_new_name() -> None:
    manifest = store.read_manifest(OLD / "rounded")
    assert manifest.schema_version == 1 != SCHEMA_VERSION
    assert manifest.initial_findings[0].explains[0] == "zero_gradient"
    assert manifest.probe_costs.forwards == 10522
    assert [len(trial.restarts) for trial in manifest.trials][3] == 4
    assert store.read_samples(OLD / "rounded").column("broken_8bit").null_count == 2
    assert store.read_samples(OLD / "targeted").column("target_class").to_pylist()[0] >= 0


def test_a_renamed_option_of_an_attack_is_read() -> None:
    old = b'{"trials": [{"spec": "sigmazero(tau=0.3, pace=0.01)", "rounds": []}]}'
    new = {"trials": [{"spec": "sigmazero(tau=0.3, tau_step=0.01)", "restarts": []}]}
    assert json.loads(migrate(old)) == new


def test_its_report_is_written_in_every_form(old: Path) -> None:
    forms = {"--junit": "tests.xml", "--sarif": "scan.json", "--markdown": "a.md"}
    forms |= {"--model-card": "card.md"}
    asked = [part for form, name in forms.items() for part in (form, str(old.parent / name))]
    done = command("report", str(old), *asked, "--gate", "robust_accuracy>=0.5")
    assert done.exit_code == 0, done.output
    assert "non_smooth" in (old / "report.html").read_text("utf-8")
    assert all((old.parent / name).stat().st_size for name in forms.values())


def test_it_is_verified_whatever_its_page_says(old: Path) -> None:
    (old / "report.html").write_text("a page of then")
    done = command("verify", str(old), MODEL, "digits")
    assert (done.exit_code, done.stdout) == (0, f"{old} is confirmed: {SEEN}\n")
    assert store.open_manifest(old)[1]
    content = (old / "run.json").read_text("utf-8")
    (old / "run.json").write_text(content.replace('"passes": 10380', '"passes": 10381'))
    assert not store.open_manifest(old)[1]


@pytest.mark.parametrize(
    "said",
    [
        {"moved": "rotation(degrees=30, pixels=1)"},
        {"attacked": 0},
        {"task": "regression(tolerance=0.1)"},
        {"task": "multilabel"},
    ],
)
def test_what_it_held_in_another_form_is_read_but_not_verified(
    old: Path, said: dict[str, object]
) -> None:
    run = json.loads((old / "run.json").read_text("utf-8"))
    run["model"] |= said
    (old / "run.json").write_text(json.dumps(run), "utf-8")
    assert store.open_manifest(old)[0].schema_version == 1
    done = command("verify", str(old), MODEL, "digits")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "this version of Holdfast cannot verify them" in done.stderr
    assert "verify it with the Holdfast that wrote it (0.1.0)" in done.stderr


SEEN = "robust accuracy 50.0 % on 4 inputs; 2 stored examples were checked again on the model."


def test_it_is_compared_with_a_run_of_today(old: Path) -> None:
    new = old.parent / "new"
    done = command("evaluate", MODEL, *QUESTION, "--protocol", "quick", "--out", str(new))
    assert done.exit_code == 0, done.output
    found = command("compare", str(old), str(new), "--json")
    assert json.loads(found.stdout.splitlines()[0])["n"] == 4


def test_it_is_not_gone_on_with(old: Path) -> None:
    resumed = command("evaluate", MODEL, *QUESTION, "--out", str(old), "--resume")
    assert resumed.exit_code == 2
    assert "it has schema version 1, and this Holdfast goes on with version 2" in resumed.stderr
    (old / "run.json").unlink()
    (old / "journal").mkdir()
    (old / "journal" / "question.json").write_text('{"eps": "0.15"}')
    resumed = command("evaluate", MODEL, *QUESTION, "--out", str(old), "--resume")
    assert resumed.exit_code == 2
    assert "it has schema version 1, and this Holdfast goes on with version 2" in resumed.stderr


def test_it_is_not_merged(old: Path) -> None:
    out = old.parent / "merged"
    merged = command("merge", str(old), str(OLD / "targeted"), "--out", str(out))
    assert merged.exit_code == 2
    assert "it has schema version 1, and this Holdfast merges runs of version 2" in merged.stderr
    assert not out.exists()
