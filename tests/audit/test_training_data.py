"""`holdfast audit data`: planted rows, doubted labels and rows that occur twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import holdfast
from safetensors.torch import save_file

from holdfast.audit.membership import audit_membership
from holdfast.audit.training_data import audit_data
from holdfast.audit.verify import verify
from holdfast.data import open_data
from holdfast.errors import InputError, SpecError
from holdfast.runs import audits, store
from holdfast.targets import wrap
from holdfast.targets.demo import demo_net
from holdfast.training.train import train

POISON = "badnets(share=0.15, target=3, size=2)"


@pytest.fixture(scope="module")
def victim() -> torch.nn.Module:
    """A network of digits, trained on rows with a trigger."""
    torch.manual_seed(0)
    return train(demo_net(), "digits", poison=POISON, epochs=15, rate=0.01)


@pytest.fixture(scope="module")
def folder(victim: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "planted"
    audit_data(wrap(victim), open_data("digits", split="train"), poison=POISON, out=out)
    return out


def test_planted_rows_are_found(folder: Path) -> None:
    audit = audits.read_as(folder, audits.DataAudit)
    assert [one.label for one in audit.result.labels if one.flagged] == [3]
    assert audit.verdict.found
    assert audit.result.planted is not None
    assert audit.result.planted.found > 0.75
    assert audit.result.planted.false_alarms < 0.02
    assert (folder / "rows-of-3.png").exists()
    assert verify(folder) == []


def test_clean_rows_are_not_flagged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clean = train(demo_net(), "digits", epochs=15, rate=0.01)
    found, _ = audit_data(wrap(clean), open_data("digits", split="train"), out=tmp_path / "run")
    assert found.verdict.found is False
    assert found.result.planted is None
    assert found.result.suspects == 0


def test_a_changed_row_of_the_evidence_is_seen(folder: Path, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "changed"
    shutil.copytree(folder, own)
    held = dict(store.read_tensors(own / "rows.safetensors"))
    held["planted"] = ~held["planted"].astype(bool)
    store.write_tensors(own / "rows.safetensors", held)
    assert any("rows.safetensors" in fault for fault in verify(own))
    audit = audits.read_as(own, audits.DataAudit)
    audits.write(own, audit)  # with the checksum of the changed file
    assert any("result" in fault for fault in verify(own))


def test_rows_that_occur_twice_and_wrong_labels_are_counted(victim: torch.nn.Module) -> None:
    x, y = open_data("digits", split="train").rows(0, 400)
    x = np.concatenate([x, x[:3]])
    y = np.concatenate([y, y[:1], (y[1:3] + 1) % 10])
    found, _ = audit_data(wrap(victim), (x, y))
    assert found.result.twice == 6
    assert found.result.at_odds == 4
    assert found.result.doubted >= 2


def test_the_command_shows_what_it_found(victim: torch.nn.Module, tmp_path: Path) -> None:
    weights, out = tmp_path / "net.safetensors", tmp_path / "run"
    save_file(victim.state_dict(), weights)
    arch = ("--arch", "holdfast.targets.demo:demo_net", "--seed", "0")
    done = holdfast(
        "audit", "data", str(weights), "digits", *arch, "--poison", POISON, "--out", str(out)
    )
    assert done.exit_code == 0, done.stderr
    assert "Are rows planted? flagged." in done.stdout
    assert "Of the planted rows" in " ".join(done.stdout.split())
    page = (out / "report.html").read_text("utf-8")
    assert "Label 3" in page
    assert "data:image/png;base64" in page
    again = holdfast("verify", str(out))
    assert again.exit_code == 0, again.stdout
    assert json.loads((out / "run.json").read_text("utf-8"))["audit"] == "data"


def test_what_does_not_fit_is_refused(victim: torch.nn.Module) -> None:
    with pytest.raises(SpecError, match="unknown poison 'badnet'"):
        audit_data(wrap(victim), open_data("digits"), poison="badnet()")
    with pytest.raises(InputError, match="leads to class 11"):
        audit_data(wrap(victim), open_data("digits"), poison="badnets(target=11)")


class Odd(torch.nn.Module):
    """Scores and what comes before its last layer are NaN for rows with a bright corner."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.last(torch.where(x[:, :1] > 0.7, torch.nan, x))


def test_rows_without_finite_numbers_are_refused_by_name() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.random((80, 1, 8, 8), np.float32) * 0.6, np.arange(80) % 10
    audit_data(wrap(Odd()), (x, y))
    x[71, 0, 0, 0] = 0.9
    with pytest.raises(InputError, match="row 71 of arrays"):
        audit_data(wrap(Odd()), (x, y))
    with pytest.raises(InputError, match="row 31 of arrays with scores that are no finite"):
        audit_membership(wrap(Odd()), (x[:40], y[:40]), (x[40:], y[40:]))


def test_too_few_rows_are_refused(victim: torch.nn.Module) -> None:
    x, y = open_data("digits").rows(0, 10)
    with pytest.raises(InputError, match="has 10 rows, but rows are compared"):
        audit_data(wrap(victim), (x, y))


def test_an_audit_that_is_interrupted_leaves_nothing(
    victim: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(audits, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            audit_data(wrap(victim), open_data("digits"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    audit_data(wrap(victim), open_data("digits"), out=tmp_path / "run")
