"""The shared cases of tables: rows, witnesses and attacks, held against their own rules."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import holdfast, names, refused
from helpers.tables import CASES, Scaled, halves_of_loans, schema_of, table_case

import holdfast as hf
from holdfast.targets.target import Bounds
from holdfast.threats.table.language import Vocabulary
from holdfast.threats.threat import Threat

# what the loaders of the cases leave open
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CASE_NAMES = ["lcld", "url", "botnet"]
NET = """
from helpers.tables import Scaled, table_case

def make():
    case = table_case("lcld")
    return Scaled(case.net("nn"), case, "lcld", 0.25).eval()
"""


@pytest.mark.parametrize("name", CASE_NAMES)
def test_a_schema_says_of_rows_what_the_case_says(name: str) -> None:
    case, schema = table_case(name), schema_of(name)
    x = torch.from_numpy(case.data()[0])
    schema.violations(x[:2], x[:2])
    started = time.process_time()
    found = schema.violations(x, x)
    assert time.process_time() - started < 1
    own = case.violations(x.numpy())
    assert np.array_equal(found[:, : own.shape[1]].numpy() > 0, own > 0)
    broken = (found > 0).any(1).nonzero()[:, 0].tolist()
    assert broken == ([299] if name == "lcld" else [])


@pytest.mark.parametrize("name", CASE_NAMES)
def test_every_stored_witness_is_accepted(name: str) -> None:
    case, schema = table_case(name), schema_of(name)
    x = torch.from_numpy(case.data()[0])
    stored = np.load(CASES / f"tabular_{name}" / "witnesses.npz")
    for key in (k.removesuffix("_x") for k in stored.files if k.endswith("_x")):
        found = torch.from_numpy(stored[f"{key}_x"])
        assert bool(schema.legal(found, x[stored[f"{key}_row"]]).all())


@pytest.mark.parametrize("name", CASE_NAMES)
def test_what_the_repair_makes_is_accepted_by_the_case(name: str) -> None:
    case, schema = table_case(name), schema_of(name)
    x = torch.from_numpy(case.data()[0][:64]).float()
    threat = Threat.l2(0.2, schema=schema)
    start = threat.origin(x)
    g = torch.Generator().manual_seed(0)
    d = torch.randn(x.shape, generator=g).double()
    low, high = threat.sides(x, None)
    point = (start + 0.2 * d / d.norm(dim=1, keepdim=True)).clamp(low, high)
    found = threat.repaired(x, point, torch.full((len(x),), 0.2))
    rows = threat.apply(x, found)
    assert (case.violations(rows.double().numpy()) == 0).all()
    assert bool(schema.legal(rows, x).all())
    size = (found - start).norm(dim=1)
    assert float(size.max()) <= 0.2 * (1 + 1e-6)
    assert float(size.mean()) > 0.05


def test_the_published_form_of_the_implications_always_holds() -> None:
    """It tests 0 <= a, where a > 0 was meant to need b > 0."""
    columns = {"a": 0, "b": 1}
    grid = torch.cartesian_prod(*[torch.arange(0, 4, dtype=torch.float64)] * 2).T
    words = Vocabulary(columns, {}, {}, 1e-6)
    published = words.condition("(0 <= a) or (0 < b)", "published").distance(grid)
    meant = words.condition("a > 0 implies b > 0", "meant").distance(grid)
    assert not published.any()
    assert (meant > 0).sum() == 3
    assert torch.equal(words.condition("not (a > 0) or b > 0", "infix").distance(grid), meant)


def test_projected_gradients_through_the_repair_on_loans() -> None:
    case, schema = table_case("lcld"), schema_of("lcld")
    x, y = case.data()
    rows = np.flatnonzero(y == 1)[:60]
    net = Scaled(case.net("nn"), case, "lcld", 0.25).eval()
    target = hf.wrap(net, bounds=Bounds.of(schema.extent))
    threat = Threat.l2(0.2, schema=schema)
    made = hf.attack(target, x[rows].astype(np.float32), y[rows], threat, "pgd(steps=20)")
    assert made.success.sum() >= 0.85 * (~made.wrong & ~made.skipped).sum()
    found = made.x_adv[made.success].astype(float)
    assert (case.violations(found) == 0).all()
    scaled = case.scale(found) - case.scale(x[rows][made.success].astype(np.float32))
    assert np.linalg.norm(scaled, axis=1).max() <= 0.2 * (1 + 1e-5)


CLIMBS = "capgd(steps=50, restarts=4)"


@pytest.mark.slow
@pytest.mark.cases
@pytest.mark.parametrize(
    ("name", "net", "eps", "attacks", "least"),
    [
        ("lcld", "nn", 0.2, [CLIMBS], 100),  # of 115
        ("lcld", "nn_gradient", 0.2, [CLIMBS], 100),  # of 111
        ("lcld", "nn_moeva", 0.2, [CLIMBS, "genetic(steps=60)"], 95.14),  # 98 of 103
        ("url", "", 0.2, [CLIMBS], 31.75),
        ("url", "", 0.5, [CLIMBS], 86.66),
        ("botnet", "nn", 1.0, [CLIMBS], 100),
        ("botnet", "nn_moeva", 1.0, [CLIMBS], 100),
        ("botnet", "nn", 0.5, [CLIMBS], 100),
        ("botnet", "nn_moeva", 0.5, ["capgd(steps=50, restarts=2)"], 29.5),
    ],
)
def test_legal_successes_on_all_rows_of_a_case(
    name: str, net: str, eps: float, attacks: list[str], least: float
) -> None:
    """In percent of the legal rows of class 1 that the net has right; 0.25 is LCLD's threshold."""
    case, schema = table_case(name), schema_of(name)
    x, y = case.data()
    x, legal = x.astype(np.float32), (case.violations(x) == 0).all(1)
    model = Scaled(
        case.net(net) if net else case.net(), case, name, 0.25 if name == "lcld" else 0.5
    )
    target = hf.wrap(model.eval(), bounds=(float(x.min()) - 1, float(x.max()) + 1))
    rows = np.flatnonzero(legal & (y == 1) & (target.labels(torch.tensor(x)).numpy() == 1))
    found, left = x.copy(), rows
    for attack in attacks:
        made = hf.attack(target, x[left], y[left], Threat.l2(eps, schema=schema), attack)
        found[left[made.success]] = made.x_adv[made.success]
        left = left[~made.success]
    hit = np.setdiff1d(rows, left)
    assert 100 * len(hit) / len(rows) >= least
    assert (case.violations(found[hit].astype(float)) == 0).all()
    assert (target.labels(torch.tensor(found[hit])) == 0).all()
    change = case.scale(found[hit]) - case.scale(x[hit])
    assert np.linalg.norm(change, axis=1).max() <= eps * (1 + 1e-5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows 290 to 320, their net and their schema."""
    case, schema = table_case("lcld"), schema_of("lcld")
    x, y = case.data()
    monkeypatch.chdir(tmp_path)
    np.savez("rows.npz", x=x[290:320].astype(np.float32), y=y[290:320])
    Path("net.py").write_text(NET)
    schema.save("schema.toml")
    return tmp_path


def test_a_run_reports_rows_that_break_the_schema_and_is_verified(here: Path) -> None:
    asked = ("net.py:make", "rows.npz", "--schema", "schema.toml")
    done = holdfast(
        "evaluate", *asked, "--threat", "l2(0.2)", "--attack", "pgd(steps=3)", "--out", "run"
    )
    assert done.exit_code == 0, done.output
    run = hf.Run("run")
    assert run.metrics.counts["skipped"] == 1
    noted = {finding.check: finding for finding in run.manifest.initial_findings}
    assert noted["broken_rows"].ids == [9]
    names(noted["broken_rows"].text, "row 9", "installment", "19.08")
    assert run.manifest.threat.table == Path("schema.toml").read_text()
    assert holdfast("verify", "run", *asked).exit_code == 0
    Path("other.toml").write_text(Path("schema.toml").read_text().replace("0.1", "0.2"))
    again = holdfast("verify", "run", *asked[:2], "--schema", "other.toml")
    assert again.exit_code == 1
    names(again.stdout, "another schema")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("open_acc <= total_acc", "open_acc <= -1"), ("no row", "open_total", "open_acc <= -1")),
        (('dti = { type = "real"', 'dti = { type = "integer"'), ("row 0", "dti", "whole")),
        (('["purpose_*"]', '["purpose_c*"]'), ("row", "group purpose", "one 1")),
        (("loan_amnt = {", "loan_amount = {"), ("loan_amnt",)),
    ],
)
def test_a_schema_that_does_not_fit_the_rows(
    here: Path, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    text = Path("schema.toml").read_text()
    assert change[0] in text
    Path("schema.toml").write_text(text.replace(*change))
    asked = ("net.py:make", "rows.npz", "--schema", "schema.toml", "--threat", "l2(0.2)")
    names(refused("evaluate", *asked, "--attack", "pgd", "--out", "run"), *words)


def test_what_a_schema_excludes_is_refused(here: Path) -> None:
    asked = ("net.py:make", "rows.npz", "--schema", "schema.toml", "--threat", "l2(0.2)")
    names(refused("certify", *asked, "--out", "c"), "schema")
    names(refused("evaluate", *asked, "--bounds", "0,1", "--out", "e"), "--bounds")


def test_a_first_draft_is_a_schema_that_its_rows_obey(here: Path) -> None:
    assert holdfast("schema", "infer", "rows.npz", "--out", "draft.toml").exit_code == 0
    draft = hf.Schema.load("draft.toml")
    x = np.load("rows.npz")["x"]
    rows = torch.from_numpy(x)
    assert not draft.violations(rows, rows).any()
    assert draft.text() == hf.Schema.infer(x).text()
    names(refused("schema", "infer", "rows.npz", "--out", "draft.toml"), "draft.toml exists")


@pytest.mark.slow
def test_hardening_on_one_half_of_the_loans_helps_on_the_other() -> None:
    """At least 20 points of robust accuracy under the full standard, for 3 points of AUROC."""
    case, schema = table_case("lcld"), schema_of("lcld")
    train, test = halves_of_loans()
    target = hf.wrap(Scaled(case.net("nn"), case, "lcld"), threshold=0.25)
    threat = Threat.l2(0.2, schema=schema)
    made = hf.harden(target, train, threat, recipe="standard(epochs=20)", test=test)
    before, after = made.before.metrics, made.after.metrics
    assert before.binary is not None
    assert after.binary is not None
    assert made.after.robust_accuracy > made.before.robust_accuracy + 0.2
    assert (after.binary.auroc.clean or 0) >= (before.binary.auroc.clean or 1) - 0.03
    assert (after.binary.auroc.attacked or 0) > (before.binary.auroc.attacked or 1) + 0.2
    for _, found in made.after.examples():
        assert (case.violations(found.astype(float)) == 0).all()
