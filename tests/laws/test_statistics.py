"""Statistics: intervals that cover, tests that agree with statsmodels, and what confidence is
worth."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.commands import holdfast, names
from scipy.stats import binom, binomtest

from holdfast.evaluation.perceptual import image_distances, ssim
from holdfast.intervals import Interval, anytime_interval, at_most, interval
from holdfast.runs import store
from holdfast.runs.compare import paired
from holdfast.runs.manifest import Restart
from holdfast.runs.metrics import (
    calibration_error,
    mean_interval,
    risk_over_coverage,
    samples_for,
    survivors,
)
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Threat

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [30, 100, 300])
def test_the_interval_of_a_share_covers(n: int) -> None:
    """Over shares from 2 to 98 %, weighed with the true law of counts: no noise of a simulation."""
    bounds = [interval(k, n) for k in range(n + 1)]
    low, high = (np.array([getattr(b, name) for b in bounds]) for name in ("low", "high"))
    share = np.linspace(0.02, 0.98, 97)[:, None]
    covered = (low <= share) & (share <= high)
    assert 0.94 <= float((binom.pmf(np.arange(n + 1), n, share) * covered).sum(1).mean()) <= 0.97


def missed(bounds: dict[int, list[Interval]], share: float, rows: float = np.inf) -> float:
    """How probable it is that some interval of a sequence (by n, one for each count) does not cover
    the share: of a population, or of so many rows that are seen in random order. By the law of
    counts, without the noise of a simulation."""
    law, lost = np.ones(1), 0.0
    for n in range(max(bounds)):
        seen = np.arange(n + 1)
        left = share if np.isinf(rows) else (round(share * rows) - seen) / (rows - n)
        good = np.clip(left, 0, 1) * law
        law = np.append(law - good, 0) + np.insert(good, 0, 0)
        if n + 1 in bounds:
            found = bounds[n + 1]
            out = np.array([not (b.low or 0) <= share <= (b.high or 0) for b in found])
            lost += law[out].sum()
            law[out] = 0
    return lost


def test_a_sequence_of_intervals_covers_wherever_one_stops() -> None:
    """Also where one waits for the first interval that misses the true share."""
    sizes = [1, 2, 4, 8, *range(16, 257, 8)]
    bounds = {n: [anytime_interval(k, n) for k in range(n + 1)] for n in sizes}
    wilson = {n: [interval(k, n) for k in range(n + 1)] for n in sizes}
    for share in (0.02, 0.1, 0.3, 0.5, 0.85, 0.99):
        assert missed(bounds, share) <= 0.05
        assert missed(bounds, round(share * 300) / 300, rows=300) <= 0.05
    assert missed(bounds, 0.5) > 0.001  # and not by being endless
    assert missed(wilson, 0.5) > 0.15


@pytest.mark.parametrize("n", [1, 2, 7, 40, 333, 10_000])
def test_the_interval_of_a_share_is_scipys(n: int) -> None:
    """To the last bit, without the time that scipy.stats takes to be imported."""
    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        bounds = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert (interval(k, n).low, interval(k, n).high) == (bounds.low, bounds.high)


def test_the_interval_of_a_mean_covers() -> None:
    """Shares of 75 questions a row, as corruptions give them."""
    ability = RNG.beta(4, 2, (2000, 200))
    shares = RNG.binomial(75, ability) / 75
    found = [mean_interval(row) for row in shares]
    assert 0.94 <= np.mean([(f.low or 0) <= 2 / 3 <= (f.high or 0) for f in found]) <= 0.97


def test_the_interval_of_a_change_covers() -> None:
    n, law = 300, np.array([0.08, 0.05, 0.87])
    drawn, times = np.unique(RNG.multinomial(n, law, 4000), axis=0, return_counts=True)
    hit = []
    for gained, lost, same in drawn:
        first = np.repeat([False, True, True], [gained, lost, same])
        found = paired("x", first, np.repeat([True, False, True], [gained, lost, same]))
        hit.append(found.low <= law[0] - law[1] <= found.high)
    assert 0.94 <= np.average(hit, weights=times) <= 0.97


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 60), (3, 60), (700, 1000)])
def test_the_upper_limit_of_a_share_is_the_exact_one(k: int, n: int) -> None:
    test = binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact")
    assert at_most(k, n, 0.95) == pytest.approx(float(test.high), rel=1e-12)


def test_what_another_round_would_break_is_not_underestimated() -> None:
    """Rows of which each falls with a probability of its own; after three rounds the truth about a
    fourth is known."""
    none = survivors(Restart(attacked=60, broken=0))
    assert (none.expected, none.high) == (0, pytest.approx(60 * (1 - 0.05 ** (1 / 60))))
    assert survivors(Restart(attacked=8, broken=8)).high == survivors(Restart()).high == 0
    found, truth = [], []
    for _ in range(400):
        odds = RNG.beta(0.2, 2, 200)
        for _ in range(3):
            broken_rows = RNG.random(len(odds)) < odds
            found.append(survivors(Restart(attacked=len(odds), broken=int(broken_rows.sum()))))
            odds = odds[~broken_rows]
        truth.append(odds.sum())
    last = found[2::3]
    assert 1 <= np.mean([f.expected or 0 for f in last]) / np.mean(truth) <= 1.5
    assert np.mean([(f.high or 0) >= true for f, true in zip(last, truth, strict=True)]) >= 0.95


@pytest.mark.parametrize(
    ("gained", "lost", "same"), [(12, 3, 85), (0, 7, 20), (40, 41, 300), (0, 0, 9)]
)
def test_mcnemar_is_that_of_statsmodels(gained: int, lost: int, same: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    first = np.repeat([False, True, True], [gained, lost, same])
    found = paired("x", first, np.repeat([True, False, True], [gained, lost, same]))
    theirs = tables.mcnemar([[same, lost], [gained, 0]], exact=True).pvalue
    assert found.p == pytest.approx(min(float(theirs), 1.0) if gained + lost else 1.0, rel=1e-9)
    assert found.bootstrap[0] <= found.change <= found.bootstrap[1]
    if gained + lost > 50:  # where counts are many, both intervals of the change say the same
        assert found.bootstrap == pytest.approx((found.low, found.high), abs=0.01)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.02])
@pytest.mark.parametrize("width", [0.2, 0.05, 0.01])
def test_how_many_samples_a_width_takes(width: float, share: float) -> None:
    n = samples_for(width, share)

    def wide(n: int) -> float:  # Wilson's, at a count that need not be whole
        centre = (share + 1.959964**2 / (2 * n)) / (1 + 1.959964**2 / n)
        low = (
            share * n
            - 1.959964 * np.sqrt(n * share * (1 - share) + 1.959964**2 / 4)
            + 1.959964**2 / 2
        )
        return 2 * (centre - low / (n + 1.959964**2))

    assert wide(n) <= width * (1 + 1e-9)
    assert n == 1 or wide(n - 1) > width
    if width == 0.05 and share == 0.5:
        found = interval(n // 2, n)
        assert (found.high or 0) - (found.low or 0) == pytest.approx(width, rel=1e-3)


def test_calibration_on_known_cases() -> None:
    right = np.array([True, True, False, True])
    assert calibration_error(np.ones(4), right) == pytest.approx(0.25)
    assert calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    sure = np.array([0.9, 0.8, 0.7, 0.6])
    assert risk_over_coverage(sure, right) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    assert risk_over_coverage(sure, np.ones(4, bool)) == 0
    # ties: the order of rows says nothing
    assert risk_over_coverage(np.ones(4), right) == pytest.approx(0.25)
    assert risk_over_coverage(np.ones(4), right[::-1]) == pytest.approx(0.25)


def test_seeds_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = (
        "evaluate",
        "demo",
        "digits",
        "--threat",
        "linf(0.1)",
        "--attack",
        "fgsm()",
        "--samples",
        "40",
    )
    assert holdfast(*asked, "--out", "a").exit_code == 0
    shutil.copytree("a", "b")
    manifest, table = store.read_manifest(Path("b")), store.read_samples(Path("b"))
    status = table.column("status").to_pylist()
    status[status.index("robust")] = "broken"
    at = table.schema.get_field_index("status")
    store.write_samples(Path("b"), table.set_column(at, "status", pa.array(status)))
    store.write_manifest(Path("b"), manifest.model_copy(update={"seed": 5}))
    done = holdfast("compare", "a", "b")
    assert done.exit_code == 0
    names(
        " ".join(done.stdout.split()),
        "2 seeds (0: ",
        "5: ",
        "97.5 % of the inputs have the same result",
    )
    assert "seeds" not in holdfast("compare", "a", "a").stdout


def test_looks_are_those_of_the_definition() -> None:
    """SSIM written out pixel by pixel; equal images are alike; PSNR of a known error."""
    a = RNG.random((1, 1, 9, 12))
    b = np.clip(a + 0.2 * RNG.standard_normal(a.shape), 0, 1)
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    wide = [np.pad(v[0, 0], 5, mode="symmetric") for v in (a, b)]
    value = []
    for i in range(9):
        for j in range(12):
            p, q = (w[i : i + 11, j : j + 11] for w in wide)
            m, k = (window * p).sum(), (window * q).sum()
            vp, vq, c = (
                (window * (p - m) ** 2).sum(),
                (window * (q - k) ** 2).sum(),
                (window * (p - m) * (q - k)).sum(),
            )
            value.append(
                (2 * m * k + 1e-4) * (2 * c + 9e-4) / ((m * m + k * k + 1e-4) * (vp + vq + 9e-4))
            )
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    assert float(ssim(first, second, 1.0)) == pytest.approx(np.mean(value), rel=1e-9)
    assert float(ssim(first, first, 1.0)) == pytest.approx(1)
    target = TorchTarget(torch.nn.Flatten(), shape=(1, 9, 12))
    found = image_distances(target, Threat.linf(0.1), first, first + 0.1)
    assert float(found[0]) == pytest.approx(20)
    assert torch.isnan(
        torch.cat(image_distances(target, Threat.linf(0.1), first.flatten(1), second.flatten(1)))
    ).all()


def test_areas_under_curves_are_those_of_scikit_learn() -> None:
    """Scores with ties, as a forest gives them, and without; exact at both ends."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from holdfast.runs.metrics import area_under_roc, average_precision

    rng = np.random.default_rng(0)
    for levels in (3, 20, 10**9):
        bears = rng.random(200) < 0.07
        score = np.round((rng.random(200) + 0.3 * bears) * levels) / levels
        assert area_under_roc(bears, score) == pytest.approx(roc_auc_score(bears, score))
        expected = average_precision_score(bears, score)
        assert average_precision(bears, score) == pytest.approx(expected)
    assert area_under_roc(np.array([False, True]), np.array([0.1, 0.2])) == 1
    assert area_under_roc(np.array([False, True]), np.array([0.2, 0.1])) == 0
