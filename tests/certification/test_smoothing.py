"""Randomised smoothing: the noise is exact, no radius is larger than the true one, and votes can be
counted again."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import mpmath
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import holdfast as command
from helpers.commands import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import holdfast
from holdfast.certification import Ladder
from holdfast.data.columns import Column
from holdfast.decisions import REFUSED
from holdfast.errors import AccessError, HoldfastError, InputError, SpecError
from holdfast.evaluation import votes
from holdfast.reporting import words
from holdfast.rng import Keys
from holdfast.runs import store
from holdfast.runs.run import Run
from holdfast.targets import exact_noise
from holdfast.targets.batch import Rows
from holdfast.targets.exact_noise import WHOLE, Table
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.smoothing_noise import Gaussian, Uniform
from holdfast.targets.target import Access, Target
from holdfast.tasks import Classes
from holdfast.threats.threat import Threat

SMOOTH = "gaussian(0.25, draws=500)"
CHANCE = NormalDist()


class Linear(nn.Module):
    """Two classes, by the side of a hyperplane."""

    def __init__(self, features: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.w = nn.Parameter(torch.randn(features))

    def forward(self, x: Tensor) -> Tensor:
        z = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([z, -z], 1)


def images(n: int = 12) -> Tensor:
    """Images of 8 bits [n, 1, 4, 4]."""
    return torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(5)) / 255


def data(net: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    x = images()
    y = (net or Linear(16))(x).argmax(1)
    y[::5] = 1 - y[::5]
    return x, y


def certified(out: Path | None = None, **options: Any) -> Run:
    options = {"smooth": SMOOTH} | options
    return holdfast.certify(Linear(16), data(), "l2(0.1)", out=out, **options)


def columns(run: Run) -> dict[str, np.ndarray]:
    table = store.read_samples(run.folder)
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


class Labels(Target):
    """A model that gives labels alone, by a function of inputs."""

    access = Access.LABELS
    task = Classes(2)

    def __init__(self, function: Any, shape: tuple[int, ...]) -> None:
        self.function, self.shape = function, shape

    def scores(self, x: Rows) -> Tensor:
        raise NotImplementedError

    def labels(self, x: Rows) -> Tensor:
        return self.function(getattr(x, "x", x))

    def fingerprint(self) -> str:
        return "0" * 64


def masses(table: Table) -> dict[int, int]:
    """How many words of 64 bits give each number, from the table as it is used."""
    full, found = WHOLE // len(table.least), dict[int, int]()
    for i, (least, alias) in enumerate(
        zip(table.least.tolist(), table.alias.tolist(), strict=True)
    ):
        for column, share in ((i, least), (alias, full - least)):
            number = column - table.zero
            found[number] = found.get(number, 0) + share
    return {number: share for number, share in found.items() if share}


@pytest.mark.parametrize("deviation", [1.0, 3.7, 40.0])
def test_the_table_is_the_rounded_gaussian_but_for_what_it_says(deviation: float) -> None:
    table = exact_noise.gaussian(deviation)
    found, apart = masses(table), mpmath.mpf(0)
    mpmath.mp.prec = 120
    assert sum(found.values()) == WHOLE
    last = max(found)
    for number in range(-last, last + 1):
        ends = (mpmath.ncdf((number + side) / mpmath.mpf(deviation)) for side in (0.5, -0.5))
        high, low = ends
        apart += abs(mpmath.mpf(found.get(number, 0)) / WHOLE - (high - low)) / 2
    apart += mpmath.ncdf(-(last + 0.5) / mpmath.mpf(deviation))
    assert apart <= table.apart < 1e-9


def test_the_uniform_table_is_even() -> None:
    found = masses(exact_noise.uniform(10))
    assert sorted(found) == list(range(-10, 11))
    assert sum(found.values()) == WHOLE
    assert max(found.values()) - min(found.values()) <= 1


def test_a_word_gives_the_number_of_its_share() -> None:
    table = exact_noise.gaussian(3.0)
    drawn = table.draw(Keys(torch.arange(2000)), (50,))
    share = {n: m / WHOLE for n, m in masses(table).items()}
    for number in (-3, 0, 1, 5):
        found = float((drawn == number).double().mean())
        assert found == pytest.approx(share[number], abs=5 * math.sqrt(share[number] / 1e5))


def test_draws_are_functions_of_the_row_and_the_draw_alone() -> None:
    x = images()
    target = Smoothed(holdfast.wrap(Linear(16)), Gaussian(0.25, draws=300))
    voted, counted = target.votes(x)
    for size in (1, 7, 64):
        other = Smoothed(holdfast.wrap(Linear(16), batch_size=size), Gaussian(0.25, draws=300))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(size))
        again = other.votes(x[order])
        assert again[0].equal(voted[order])
        assert again[1].equal(counted[order])
    reseeded = Smoothed(holdfast.wrap(Linear(16)), Gaussian(0.25, draws=300), seed=1)
    assert not reseeded.votes(x)[1].equal(counted)


def test_the_votes_that_choose_are_not_those_that_count() -> None:
    asked = list[Tensor]()

    def keep(x: Tensor) -> Tensor:
        asked.append(x)
        return torch.zeros(len(x), dtype=torch.int64)

    target = Smoothed(Labels(keep, (3,)), Gaussian(0.25, draws=100, first=100))
    target.votes(torch.full((1, 3), 0.5))
    rows = torch.cat(asked)
    assert len(rows) == 200
    assert len(rows.unique(dim=0)) == 200
    assert float(rows.min()) < 0  # nothing is clipped
    assert float(rows.max()) > 1


def test_no_radius_is_larger_than_that_of_a_linear_model() -> None:
    net = Linear(16)
    run = holdfast.certify(net, data(net), "l2(0.01)", smooth="gaussian(0.25, draws=2000)")
    w = net.w.detach().double()
    true = ((images().double().flatten(1) - 0.5) @ w).abs() / w.norm()
    radius = columns(run)["certified_radius"]
    known = np.isfinite(radius)
    assert known.sum() >= 8
    assert (radius[known] < true.numpy()[known]).all()
    small = true.numpy()[known] < 0.3  # where the ceiling of the draws is far
    assert (radius[known][small] > 0.6 * true.numpy()[known][small] - 0.05).all()


def test_no_radius_is_larger_than_that_of_a_threshold_under_uniform_noise() -> None:
    x = torch.tensor([[k / 255.0, 0.5] for k in range(130, 250, 20)])
    model = Labels(lambda x: (x[:, 0] > 0.5).long(), (2,))
    run = holdfast.certify(
        model, (x, torch.ones(6, dtype=torch.int64)), "l1(0.01)", smooth="uniform(0.5, draws=2000)"
    )
    radius = columns(run)["certified_radius"]
    true = x[:, 0].numpy() - 0.5  # for lambda (2 p - 1), with p = 1/2 + (x - 1/2) / (2 lambda)
    known = np.isfinite(radius)
    assert known.sum() >= 4
    assert (radius[known] < true[known]).all()
    assert (radius[known] > true[known] - 0.06).all()


@pytest.mark.parametrize(("kind", "norm", "share"), [(Gaussian, "l2", 0.03), (Uniform, "l1", 0.02)])
def test_images_of_8_bits_lose_nothing_to_the_lattice(kind: type, norm: str, share: float) -> None:
    net, x = Linear(16), images()
    y = net(x).argmax(1)
    smooth = kind(0.25, draws=500)
    radius = {}
    for grid in ("", ", grid='8bit'"):
        threat = Threat.parse(f"{norm}(0.01{grid})")
        run = holdfast.certify(net, (x, y), threat, smooth=smooth)
        radius[grid] = columns(run)["certified_radius"]
    target = Smoothed(holdfast.wrap(net), smooth)
    exact = target.radii(target.votes(x)[1]).numpy()
    known = np.isfinite(radius[""])
    assert (radius[""][known] < radius[", grid='8bit'"][known]).all()
    assert radius[", grid='8bit'"][known] == pytest.approx(exact[known], abs=2e-4)
    assert radius[""][known] == pytest.approx(exact[known], abs=share * 0.25)


@settings(max_examples=30, deadline=None)
@given(p=st.floats(0.51, 0.999), seed=st.integers(0, 1000))
def test_the_bound_of_the_chance_covers_it(p: float, seed: int) -> None:
    smooth = Gaussian(0.25, draws=200, alpha=0.05)
    counts = np.random.default_rng(seed).binomial(200, p, 400)
    too_high = np.mean([smooth.lower(int(k)) > p for k in counts])
    assert too_high <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)


def test_certified_rows_hold_what_the_smoothed_model_answers_elsewhere() -> None:
    """A model of 20 random features, asked with other noise at points within the radius."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = images(6)
    target = Smoothed(holdfast.wrap(net), Gaussian(0.2, draws=1000))
    voted, counted = target.votes(x)
    radius = target.radii(counted).float()
    assert bool((radius > 0).any())
    other = Smoothed(holdfast.wrap(net), Gaussian(0.2, draws=1000), seed=9)
    toward = torch.autograd.functional.jacobian(lambda z: net(z).logsumexp(1).sum(), x)
    held = radius > 0.05
    for direction in (toward, -toward, torch.randn(x.shape)):
        unit = direction.flatten(1) / direction.flatten(1).norm(dim=1, keepdim=True)
        step = (0.95 * radius[:, None] * unit).reshape(x.shape)
        assert other.votes((x + step)[held])[0].equal(voted[held])


def low_bits(x: Tensor) -> Tensor:
    """1 where a value close to 0 has bits that no sum with 8/255 has (in the manner of
    arXiv:2207.07209)."""
    small = x.abs() < 4 / 255
    fine = (x.double() * 2.0**29) % 1 != 0
    return (small & fine).any(1).long()


def test_a_model_of_the_last_bits_fools_floating_point_and_not_the_lattice() -> None:
    x, other = torch.zeros(1, 200), torch.full((1, 200), 8 / 255)
    apart, n, smooth = float((other - x).norm()), 2000, Gaussian(0.25, draws=2000)

    def naive(at: Tensor) -> int:
        noise = 0.25 * torch.randn((n, 200), generator=torch.Generator().manual_seed(1))
        return int(low_bits(at + noise).sum())

    radius = smooth.radius(smooth.lower(naive(x)))
    assert radius > apart  # so class 1 is "proved" there ...
    assert naive(other) < n / 10  # ... where it is hardly ever given

    target = Smoothed(Labels(low_bits, (200,)), smooth)
    voted, counted = target.votes(torch.cat([x, other]))
    radii = target.radii(counted)
    for i in (0, 1):
        assert radii[i] < apart or voted[0] == voted[1]


def test_what_is_no_class_counts_against() -> None:
    def odd(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0.5, 1, -1)  # NaN, or no answer

    target = Smoothed(Labels(odd, (1,)), Gaussian(0.25, draws=400))
    voted, counted = target.votes(torch.tensor([[0.5], [1.0]]))
    assert voted.tolist() == [1, 1]
    assert 150 < int(counted[0]) < 250
    assert target.labels(torch.tensor([[0.5], [1.0]])).tolist() == [REFUSED, 1]
    nothing = Smoothed(Labels(lambda x: torch.full((len(x),), -1), (1,)), Gaussian(0.25, draws=400))
    assert nothing.labels(torch.zeros(1, 1)).tolist() == [-1]


def test_abstentions_are_wrong_and_said() -> None:
    net = Linear(16)
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    x[1] += 0.4 * net.w.detach().sign().reshape(4, 4)
    run = holdfast.certify(net, (x, y), "l2(0.1)", smooth=SMOOTH)
    assert columns(run)["status"].tolist() == ["wrong", "certified"]
    assert columns(run)["clean_prediction"].tolist() == [REFUSED, 0]
    assert run.manifest.metrics.abstentions is not None
    assert float(run.manifest.metrics.abstentions) == 0.5
    assert "It abstains on 50.0 % of the inputs, which count as wrong." in " ".join(
        words.notes(run.manifest)
    )


def test_a_run_names_the_smoothed_model_and_what_it_cost(tmp_path: Path) -> None:
    run = certified(tmp_path / "run")
    info = run.manifest
    assert info.model.smoothing == "gaussian(sigma=0.25, draws=500, first=100, alpha=0.001)"
    assert info.costs.vote_forwards == 12 * 600
    assert run.certified_accuracy is not None
    assert info.metrics.certified_by == {
        "votes": int((columns(run)["status"] == "certified").sum())
    }


def test_verify_counts_again_and_finds_a_changed_count(tmp_path: Path) -> None:
    run = certified(tmp_path / "run")
    net = Linear(16)
    found = holdfast.verify(run, net, data(), certifier=Ladder(), full=True)
    assert found == []
    assert "The votes of all rows were counted again" in repr(found)
    file = run.folder / "samples.parquet"
    table = pq.read_table(file)
    place = table.column_names.index("votes")
    counts = table.column("votes").to_pylist()
    counts[3] += 1
    forged = table.set_column(place, table.field(place), [counts])
    pq.write_table(forged, file)
    wrong = holdfast.verify(run, net, data(), certifier=Ladder(), full=True)
    assert any("the votes for rows 3 are others" in sentence for sentence in wrong)


def test_shards_merge_into_the_run_of_one_process(tmp_path: Path) -> None:
    whole = certified(tmp_path / "whole")
    parts = [certified(tmp_path / str(i), samples=rows) for i, rows in enumerate([(0, 5), (5, 12)])]
    merged = holdfast.merge([part.folder for part in parts], tmp_path / "merged")
    assert store.read_samples(merged.folder).equals(store.read_samples(whole.folder))
    assert merged.manifest.costs.vote_forwards == whole.manifest.costs.vote_forwards
    assert not holdfast.verify(merged, Linear(16), data(), certifier=Ladder())


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows = certified(tmp_path / "whole"), list[int]()
    counted = Smoothed._counted

    def dies(self: Smoothed, row: Any) -> tuple[int, int]:
        rows.append(1)
        if len(rows) == 10:
            raise KeyboardInterrupt
        return counted(self, row)

    monkeypatch.setattr(Smoothed, "_counted", dies)
    with pytest.raises(KeyboardInterrupt):
        certified(tmp_path / "cut")
    again = certified(tmp_path / "cut", resume=True)
    assert len(rows) == 10 + len(images()) - votes.ROWS
    assert store.read_samples(again.folder).equals(store.read_samples(whole.folder))


def test_a_run_without_a_row_to_prove_ends() -> None:
    x = images()
    wrong = 1 - Linear(16)(x).argmax(1)
    run = holdfast.certify(Linear(16), (x, wrong), "l2(0.1)", smooth=SMOOTH)
    assert not run.unfinished
    assert set(columns(run)["status"]) == {"wrong"}


def test_data_in_float64_are_proved_from_what_the_model_takes() -> None:
    x, y = data()
    wide = np.asarray(x, np.float64) + 1e-9
    one, other = (
        holdfast.certify(Linear(16), (rows, y), "l2(0.1)", smooth=SMOOTH)
        for rows in (wide, wide.astype(np.float32))
    )
    for name in ("votes", "certified_radius"):
        assert np.array_equal(columns(one)[name], columns(other)[name], equal_nan=True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"smooth": 0.0}, "above 0"),
        ({"smooth": "gaussian(0.25, draws=9)"}, "abstains always"),
        ({"smooth": "gaussian(0.25, draws=9)"}, "at least 10 draws"),
        ({"smooth": "gaussian(0.25, alpha=0.2)"}, "at most 0.1"),
        ({"smooth": "laplace(0.25)"}, "unknown smoothing"),
        ({"smooth": "uniform(0.25)"}, "l1, which uniform noise proves"),
        ({"smooth": "gaussian(0.025)"}, "l2(0.1): where all 10,000 draws agree"),
        ({"smooth": "gaussian(0.025)"}, "draws, or a larger sigma"),
        ({"smooth": "gaussian(0.01)"}, "Give a larger sigma."),
        ({"smooth": 1e-12}, "sigma is 1e-12"),
        ({"smooth": 0.25, "max_seconds": 0.0}, "no limit of time"),
    ],
)
def test_what_proves_nothing_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(HoldfastError) as caught:
        certified(**options)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--smooth", "0"], "above 0"),
        (["--smooth", "gaussian(0.25, draws=5)"], "abstains always"),
        (["--smooth", "gaussian(0.25, alpha=0)"], "above 0"),
        (["--smooth", "0.25", "--max-seconds", "0"], "--max-seconds"),
        (["--smooth", "0.25", "--seconds-per-row", "5"], "--seconds-per-row"),
        (["--smooth", "0.25", "--radius"], "always say the radius"),
        (["--smooth", "gaussian(0.01)"], "proves nothing at l2(0.2)"),
        (["--smooth", "oops"], "unknown smoothing"),
    ],
)
def test_the_command_says_in_one_sentence_why_not(
    given: list[str], word: str, tmp_path: Path
) -> None:
    out = ["--samples", "2", "--out", tmp_path / "out"]
    assert word in refused("certify", "demo", "digits", "--threat", "l2(0.2)", *given, *out)
    assert not (tmp_path / "out").exists()


def test_the_command_certifies_and_verify_says_what_it_counted(tmp_path: Path) -> None:
    asked = ["demo", "digits", "--threat", "l2(0.1)", "--samples", "3", "--out", tmp_path]
    done = command("certify", *asked, "--smooth", "gaussian(0.25, draws=200)")
    assert done.exit_code == 0, done.output
    assert "smoothed with Gaussian noise of sigma 0.25" in " ".join(done.stdout.split())
    assert "300 passes each" in done.stderr
    done = command("verify", tmp_path, "demo", "digits")
    assert done.exit_code == 0, done.output
    assert "The votes of rows 0, 1, 2 were counted again" in done.stdout


def test_norms_without_a_noise_are_refused() -> None:
    with pytest.raises(SpecError, match="expected l2"):
        holdfast.certify(Linear(16), data(), "linf(0.1)", smooth=0.25)


def test_texts_and_several_inputs_are_refused() -> None:
    smoothed = Smoothed(holdfast.wrap(Linear(2)), Gaussian())
    with pytest.raises(InputError, match="column job holds texts"):
        smoothed.of_table([Column("job", "text", ("a", "b"))])
    two = holdfast.wrap(lambda a, b: torch.cat([a, b], 1), inputs=[(2,), (2,)])
    with pytest.raises(InputError, match="takes several"):
        Smoothed(two, Gaussian())
    with pytest.raises(AccessError, match="labels alone"):
        smoothed.scores(images())


class Counting(nn.Module):
    """Answers by how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return torch.stack([x.flatten(1).sum(1), torch.full((len(x),), float(self.asked))], 1)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), 2)


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :2]
        return z - z.mean(0)


@pytest.mark.parametrize(
    ("net", "word"),
    [(Counting(), "randomised"), (Random(), "randomised"), (Neighbours(), "others of its batch")],
)
def test_models_that_are_no_function_are_refused(net: nn.Module, word: str) -> None:
    with pytest.raises(InputError, match=word):
        holdfast.certify(net, data(), "l2(0.1)", smooth=SMOOTH)
