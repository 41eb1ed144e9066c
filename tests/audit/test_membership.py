"""Membership: the attacks' scores against values by hand, intervals that cover, and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import holdfast, refused
from scipy.stats import norm
from torch import nn

from holdfast.audit.membership import (
    auc,
    audit_membership,
    lira,
    needed,
    out_variance,
    rate_at,
    rmia,
    shares_above,
)
from holdfast.audit.references import ToTrain, halves
from holdfast.audit.verify import verify
from holdfast.errors import InputError
from holdfast.reporting.pages import report
from holdfast.runs.store import read_tensors


def test_rmia_by_hand() -> None:
    """Two rows and two references, of which the second saw row 1."""
    p = np.array([[0.9, 0.5], [0.6, 0.4], [0.2, 0.8]])
    seen = np.array([[False, False], [False, True]])
    found = np.exp(rmia(np.log(p), seen, 0.3))
    first = 0.9 / (((1 + 0.3) * (0.6 + 0.2) / 2 + 1 - 0.3) / 2)
    second = 0.5 / (((1 + 0.3) * 0.4 + 1 - 0.3) / 2)
    assert found == pytest.approx([first, second])
    # of z with 0.5, 1.0, 2.0: more than 1.0 has only the first behind it
    z = np.log([2.0, 0.5, 1.0])
    assert shares_above(np.log([1.0, 3.0, 0.4]), z) == pytest.approx([1 / 3, 1, 0])


def test_lira_by_hand() -> None:
    odds = np.array([[3.0, 1.0], [1.0, 0.0], [2.0, 4.0], [0.0, 2.0]])
    seen = np.array([[False, False], [False, True], [False, False]])
    # row 0: 1, 2, 0 about 1; row 1: 0, 2 about 1
    variance = (0 + 1 + 1 + 1 + 1) / (2 + 1)
    no_rows = np.zeros((4, 0))
    assert out_variance((odds, no_rows), (seen, np.zeros((3, 0), bool))) == pytest.approx(variance)
    assert lira(odds, seen, variance) == pytest.approx([2 / math.sqrt(variance), 0.0])
    one = np.array([[3.0, 1.0], [1.0, 0.0]])  # of a single reference: over the rows
    assert out_variance((one,), (np.zeros((1, 2), bool),)) == pytest.approx(0.25)


def test_the_area_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 50).astype(float)
    pairs = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    assert float(auc(a, b)) == pytest.approx(pairs)
    apart = auc(np.arange(10.0) + 20, np.arange(10.0))
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert 0.6 < (apart.low or 0) < 0.75  # of 10 rows each: 0.025 ** (1 / 10)


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_the_interval_of_the_area_covers(shift: float) -> None:
    rng, true, covered = np.random.default_rng(1), norm.cdf(shift / math.sqrt(2)), 0
    for _ in range(400):
        found = auc(rng.normal(shift, 1, 50), rng.normal(0, 1, 60))
        covered += (found.low or 0) <= true <= (found.high or 0)
    assert 0.92 <= covered / 400 <= 0.985


def test_a_rate_has_exact_intervals_and_takes_enough_rows() -> None:
    rng, covered = np.random.default_rng(2), 0
    assert (needed(0.01), needed(0.001)) == (1000, 10_000)
    for _ in range(200):
        members, others = rng.normal(1, 1, 200), rng.normal(0, 1, 1000)
        found = rate_at(members, others, 0.01)
        assert found.true_positives is not None
        assert found.false_positives is not None
        assert found.false_positives.value == pytest.approx(0.01)
        true = norm.sf(np.sort(others)[-11] - 1)
        low, high = found.true_positives.low or 0, found.true_positives.high or 0
        covered += low <= true <= high
    assert covered / 200 >= 0.93
    assert rate_at(members, others, 0.001).true_positives is None


def fitted(x: np.ndarray, y: np.ndarray, epochs: int = 300) -> nn.Module:
    """A network that knows these rows by heart."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 3))
    adam, rows, labels = torch.optim.Adam(net.parameters(), 0.01), *map(torch.from_numpy, (x, y))
    for _ in range(epochs):
        adam.zero_grad()
        nn.functional.cross_entropy(net(rows), labels).backward()
        adam.step()
    return net.eval()


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in [0, 1] with labels that say nothing of them."""
    rng = np.random.default_rng(seed)
    return rng.random((n, 10), np.float32), rng.integers(0, 3, n)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = drawn(120, 0)
    others = [fitted(x[i : i + 60], y[i : i + 60], 100) for i in (0, 60)]
    folder = tmp_path_factory.mktemp("membership") / "run"
    seen = [np.arange(60), np.arange(60, 120)]
    audit_membership(fitted(x, y), (x, y), drawn(150, 1), references=others, seen=seen, out=folder)
    return folder


def test_what_a_network_knows_by_heart_is_known(audited: Path) -> None:
    from holdfast.runs import audits

    audit = audits.read_as(audited, audits.MembershipAudit)
    assert audit.verdict.found
    assert [attack.name for attack in audit.result.attacks] == ["loss", "rmia", "lira"]
    assert all((attack.auc.low or 0) > 0.8 for attack in audit.result.attacks)
    assert float(audit.result.member_accuracy) > 0.95
    assert float(audit.result.non_member_accuracy) < 0.5
    assert "not measured: needs 1,000 non-members" in report(audited).read_text()


def test_verify_computes_it_again(audited: Path, tmp_path: Path) -> None:
    assert verify(audited) == []
    for path in audited.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (audited / "run.json").read_text().replace('"references": 2', '"references": 3')
    (tmp_path / "run.json").write_text(text)
    assert any("references" in said for said in verify(tmp_path))


def test_a_network_that_did_not_see_them_does_not_know_them() -> None:
    x, y = drawn(100, 2)
    audit, _ = audit_membership(fitted(*drawn(100, 3)), (x, y), drawn(100, 4))
    assert audit.verdict.found is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fprs": [0.001]}, "needs 10,000 non-members, and there are 60"),
        ({"fprs": [0.0]}, "between 0 and 1"),
        ({"slope": 2.0}, "in 0 to 1"),
        ({"seen": [[0]]}, "one for each"),
        ({"non_members": "members"}, "60 rows are in both"),
        ({"members": drawn(20, 5)}, "at least 30"),
    ],
)
def test_bad_input(options: dict[str, Any], said: str) -> None:
    rows = drawn(60, 5)
    data: dict[str, Any] = {"members": rows, "non_members": drawn(60, 6)} | options
    if data["non_members"] == "members":
        data["non_members"] = rows
    with pytest.raises(InputError, match=said):
        audit_membership(fitted(*rows, 1), **data)


def test_references_that_saw_too_much() -> None:
    rows, net = drawn(60, 5), fitted(*drawn(60, 5), 1)
    for seen, said in (([[60]], "saw member 60"), ([[7]], "member 7 was seen by every")):
        with pytest.raises(InputError, match=said):
            audit_membership(net, rows, drawn(60, 6), references=[net], seen=seen)
    other = nn.Linear(10, 4).eval()
    with pytest.raises(InputError, match="4 classes"):
        audit_membership(net, rows, drawn(60, 6), references=[other])


def test_two_references_at_a_time_divide_every_row_between_them() -> None:
    for saw, n in zip(halves([41, 30], 4, 0), (41, 30), strict=True):
        assert saw.shape == (4, n)
        assert (saw[::2] != saw[1::2]).all()
        assert abs(saw.sum(1) - n / 2).max() <= 0.5
        assert 0 < (saw[0] != saw[2]).mean() < 1
    assert (halves([41], 2, 1)[0] != halves([41], 2, 0)[0]).any()


def interrupted(monkeypatch: pytest.MonkeyPatch, *, after: int) -> list[int]:
    """The seeds of the references that are trained from now on; after so many it is interrupted."""
    from holdfast.audit import references

    seeds, train = list[int](), references.train

    def counted(*given: Any, seed: int, **options: Any) -> Any:
        if len(seeds) == after:
            raise KeyboardInterrupt
        seeds.append(seed)
        return train(*given, seed=seed, **options)

    monkeypatch.setattr(references, "train", counted)
    return seeds


def test_references_are_trained_here_and_those_that_are_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = drawn(120, 0)
    asked: dict[str, Any] = {"references": ToTrain(4, epochs=40), "out": tmp_path / "run"}
    net = fitted(x, y)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with monkeypatch.context() as patch:
        interrupted(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            audit_membership(net, (x, y), drawn(150, 1), **asked)
    with pytest.raises(InputError, match="--resume"):
        audit_membership(net, (x, y), drawn(150, 1), **asked)
    with pytest.raises(InputError, match="it was made with seed 0"):
        audit_membership(net, (x, y), drawn(150, 1), **asked, resume=True, seed=1)
    seeds = interrupted(monkeypatch, after=1)
    audit, folder = audit_membership(net, (x, y), drawn(150, 1), **asked, resume=True)
    assert seeds == [3]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {f"reference-{i}.safetensors" for i in range(4)} < set(audit.files)
    assert not (folder / "journal").exists()
    assert [attack.name for attack in audit.result.attacks] == ["loss", "rmia", "lira"]
    assert all((attack.auc.low or 0) > 0.7 for attack in audit.result.attacks)
    assert verify(folder) == []
    (folder / "reference-2.safetensors").unlink()
    assert verify(folder) == ["reference-2.safetensors: missing."]


def test_each_reference_is_trained_on_the_rows_that_it_is_said_to_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.audit import references

    given, train = list[np.ndarray](), references.train

    def noted(start: Any, data: Any, **options: Any) -> Any:
        given.append(data.rows(0, len(data))[0])
        return train(start, data, **options)

    monkeypatch.setattr(references, "train", noted)
    rows, others = drawn(41, 0), drawn(50, 1)
    asked: dict[str, Any] = {"references": ToTrain(2, epochs=1), "out": tmp_path / "run"}
    _, folder = audit_membership(fitted(*rows, 1), rows, others, **asked)
    evidence = read_tensors(folder / "signals.safetensors")
    for i, x in enumerate(given):
        saw, saw_others = (evidence[name][i] for name in ("seen", "seen non-members"))
        assert np.array_equal(x, np.concatenate([rows[0][saw], others[0][saw_others]]))
    first, then = (read_tensors(folder / f"reference-{i}.safetensors") for i in (0, 1))
    assert first.keys() == then.keys()
    assert all((first[name] != then[name]).any() for name in first)


def test_a_row_that_occurs_again_counts_once() -> None:
    x, y = drawn(60, 5)
    rows = np.concatenate([x, x[:20]]), np.concatenate([y, y[:20]])
    net, others = fitted(x, y, 30), drawn(60, 6)
    once, _ = audit_membership(net, (x, y), others)
    again, _ = audit_membership(net, rows, others)
    assert (once.result.repeated, again.result.repeated) == (0, 20)
    assert again.result.members == 60
    assert again.result.attacks == once.result.attacks
    with pytest.raises(InputError, match="member 3 was seen by every"):
        audit_membership(net, rows, others, references=[net, net], seen=[[63], [3]])


class Own(nn.Module):
    """A layer that draws no new weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    ("model", "said"),
    [(Own(), "no reset_parameters"), (lambda x: x[:, :3], "torch modules")],
)
def test_what_cannot_begin_anew_is_refused(model: Any, said: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"references": ToTrain(2, epochs=1), "out": tmp_path / "run"}
    with pytest.raises(InputError, match=said):
        audit_membership(model, drawn(40, 0), drawn(40, 1), **asked)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="an even number"):
        ToTrain(3)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("audit", "membership", "demo", "--members", "digits")
    same = refused(*asked, "--non-members", "digits", "--split", "test")
    assert "are in both" in same
    Path("saw.txt").write_text("0\n1\n")
    one = ("--reference", "demo", "--saw", "saw.txt")
    assert "seen by every reference" in refused(*asked, "--non-members", "digits", *one)
    more = (*one, "--reference", "demo", "--saw", "none")
    shown = holdfast(*asked, "--non-members", "digits", *more, "--out", "run").stdout
    assert "Do answers give away training rows?" in shown
    said = holdfast("verify", "run").stdout
    assert "confirmed" in said
    assert "The model was not asked whether" in said
    Path("saw.txt").write_text("first\n")
    assert "place of a member" in refused(*asked, "--non-members", "digits", *more)
    own = (*asked, "--non-members", "digits", "--references", "2", "--epochs", "1")
    assert "give one of both" in refused(*own, "--reference", "demo")
    assert "give that too" in refused(*asked, "--non-members", "digits", "--resume", "--out", "run")
    assert "training reference 2 of 2" in holdfast(*own, "--out", "own").stderr
