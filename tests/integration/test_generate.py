"""Generative models: their parts by hand, the loop's bits, its guards, and the commands from end to
end."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import holdfast as command
from helpers.commands import names, refused
from safetensors.torch import load_file
from torch import Tensor, nn

from holdfast.attacks.universal.advgan import advgan
from holdfast.data import Source, from_arrays, open_data
from holdfast.errors import InputError, SpecError
from holdfast.generation import folder, quality, train
from holdfast.generation import generate as make
from holdfast.generation.diffusion import Denoiser, Diffusion, sample
from holdfast.generation.gan import GAN
from holdfast.generation.model import Model
from holdfast.generation.nets import Critic, Decoder, Frame
from holdfast.rng import Keys
from holdfast.targets import wrap
from holdfast.targets.demo import demo_model
from holdfast.threats.threat import Threat
from holdfast.training.batches import GeneratedRows, shuffled


def keys(n: int) -> Keys:
    return Keys.of(3, torch.arange(n))


def blobs(n: int, shape: tuple[int, ...] = (3,), seed: int = 0) -> Source:
    """Two classes: bright and dark."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(0.3 + 0.4 * y.reshape(-1, *[1] * len(shape)), 0.05, (n, *shape))
    return from_arrays(x.clip(0, 1).astype(np.float32), y)


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 12, 20), (5,)]
)
def test_every_shape_is_drawn_judged_and_denoised(shape: tuple[int, ...]) -> None:
    y = torch.tensor([0, 2])
    drawer, critic = Decoder(shape, 3, 8, 16).eval(), Critic(shape, 3, 8, nn.Sequential)
    u = drawer(keys(2).normal((16,)), y)
    assert u.shape == (2, *shape)
    assert float(u.detach().abs().max()) <= 1
    assert critic(u, y).shape == (2,)
    assert Denoiser(shape, 3, 8)(u, torch.ones(2), y).shape == u.shape


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (4, 6, 3), (3,)])
def test_a_frame_is_undone(shape: tuple[int, ...]) -> None:
    frame = Frame(
        shape, "nhwc" if shape[-1] == 3 else "nchw", torch.tensor(-1.0), torch.tensor(3.0)
    )
    x = 4 * torch.rand(5, *shape) - 1
    assert float(frame.inward(x).abs().max()) <= 1
    assert torch.allclose(frame.outward(frame.inward(x)), x, atol=1e-6)
    assert frame.inward(x).ndim == (2 if len(shape) == 1 else 4)


def test_the_penalties_are_those_of_a_linear_critic() -> None:
    class Slope(nn.Module):
        def forward(self, u: Tensor, y: Tensor) -> Tensor:
            return 3 * u[:, 0] + 4 * u[:, 1]

    u, y = torch.rand(6, 2), torch.zeros(6).long()
    hinge, wgan = GAN(penalty=2.0), folder.parse("wgan-gp")
    assert isinstance(wgan, GAN)
    assert (wgan.loss, wgan.critics, wgan.penalty) == ("wasserstein", 5, 10)
    assert float(hinge._penalty(Slope(), u, -u, y, keys(6)).detach()) == pytest.approx(25)
    assert float(wgan._penalty(Slope(), u, -u, y, keys(6)).detach()) == pytest.approx(10 * 16)


def test_augmentation_moves_each_row_by_its_own_key() -> None:
    gan, u = GAN(augment=0.125), torch.rand(40, 1, 8, 8)
    changed = gan._changed(u, keys(40))
    assert torch.equal(changed[7:9], gan._changed(u[7:9], Keys(keys(40).rows[7:9])))
    ordinary = torch.equal(GAN(augment=0.0)._changed(u, keys(40)), u)
    assert ordinary
    kept = torch.stack(
        [
            (changed == u.roll((i, j), (2, 3))).double().mean((1, 2, 3))
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
    )
    # each row is moved by one pixel at most, a part of it cut out
    assert float(kept.amax(0).min()) > 0.5
    assert len(set(kept.argmax(0).tolist())) > 5


def test_heun_draws_from_the_normal_distribution_whose_denoiser_is_known() -> None:
    """For data N(m, s^2) the best denoiser is (s^2 u + sigma^2 m) / (s^2 + sigma^2)."""
    m, s = 0.2, 0.3

    class Known(nn.Module):
        def forward(self, u: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
            v = sigma[:, None].square()
            return (s**2 * u + v * m) / (s**2 + v)

    model = Diffusion(heun=40)
    drawn = sample(
        Known(), model.high * keys(4000).normal((1,), torch.float64), None, model.sigmas()
    )
    assert float(drawn.mean()) == pytest.approx(m, abs=0.02)
    assert float(drawn.std()) == pytest.approx(s, rel=0.05)


def test_models_are_calls() -> None:
    for text in ("gan(steps=3)", "diffusion(width=8)", "gan(loss='wasserstein')"):
        assert repr(folder.parse(text)) == text
    for bad in (
        "gun",
        "gan(steps=0)",
        "gan(rate=-1)",
        'gan(loss="l2")',
        "diffusion(heun=1)",
        "gan(ema=1)",
        "gan(steps=2.5)",
    ):
        with pytest.raises(SpecError):
            folder.parse(bad)


# ---------------------------------------------------------------------- quality


def test_distances_of_normal_distributions() -> None:
    """Of N(0, diag(1, 4)) and N((3, 0), diag(4, 4)): 9 + (1 - 2)^2."""
    a, b = np.random.default_rng(0).normal(size=(2, 200_000, 2)) * [[[1, 2]], [[2, 2]]] + [
        [[0, 0]],
        [[3, 0]],
    ]
    assert quality.fid(a, b) == pytest.approx(10, rel=0.02)
    assert quality.fid(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_by_hand_and_without_bias() -> None:
    """One feature: x in {1, 2}, y in {0, 1}; the kernel is (x y + 1)^3."""
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    assert quality.kid(x, y) == pytest.approx(27 + 1 - 2 * (1 + 8 + 1 + 27) / 4)
    rng = np.random.default_rng(0)
    found = [quality.kid(rng.normal(size=(50, 4)), rng.normal(size=(60, 4))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200)


def test_precision_and_recall_see_what_is_missing_and_what_is_odd() -> None:
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 1, (200, 2)), rng.normal(50, 1, (200, 2))])
    rng.shuffle(two)
    one = rng.normal(0, 1, (400, 2))
    precision, recall = quality.covered(one, two)
    assert precision > 0.9
    assert 0.35 < recall < 0.6
    assert quality.covered(two, one) == (recall, precision)


def test_copies_are_found() -> None:
    data, held = blobs(300), torch.from_numpy(blobs(300, seed=1).rows(0, 300)[0])
    fresh, stolen = (torch.from_numpy(blobs(300, seed=s).rows(0, 300)[0]) for s in (2, 0))
    assert quality.copies(fresh, held, data) < 0.05
    assert quality.copies(stolen + 1e-5, held, data) == 1


# ---------------------------------------------------------------------- the loop


class Killed(BaseException):
    pass


SEEN = "glance=40, judged=60"
SMALL = f"rounds=3, width=8, batch_size=16, {SEEN}"
TINY = {
    "gan": f"gan(steps=24, {SMALL})",
    "wgan-gp": f"wgan-gp(steps=24, {SMALL})",
    "diffusion": f"diffusion(steps=24, heun=4, {SMALL})",
}
SLOWER = ["gan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wgan-gp", "diffusion"))]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_READ", 4000)


@pytest.mark.parametrize("name", TINY)
def test_a_training_that_is_killed_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 8, 8) if name == "gan" else (3,)
    monkeypatch.setattr(train, "wrong", lambda *_: "")
    whole = make(blobs(200, shape), TINY[name], out=tmp_path / "whole")
    step = train.Training._step

    def dies(self: train.Training, s: train.State, *args: np.ndarray) -> None:
        if s.progress.step == 14:
            raise Killed
        step(self, s, *args)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "_step", dies)
        with pytest.raises(Killed):
            make(blobs(200, shape), TINY[name], out=tmp_path / "cut", every=0)
    again = make(blobs(200, shape), TINY[name], out=tmp_path / "cut", resume=True)
    first, second = (load_file(made.folder / "generator.safetensors") for made in (whole, again))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (tmp_path / "whole" / "log.csv").read_bytes() == (
        tmp_path / "cut" / "log.csv"
    ).read_bytes()
    assert whole.quality == again.quality
    assert (tmp_path / "whole" / "samples" / "round-003.png").exists() == (len(shape) == 3)
    part = again.generator.draw(torch.tensor([1, 0]), torch.tensor([5, 9]))
    both = again.generator.draw(torch.tensor([0, 1, 0]), torch.tensor([2, 5, 9]))
    assert torch.allclose(part, both[1:], atol=1e-6)  # a row follows from its id


CHILD = """
import sys
from test_generate import SHAPE, TINY, blobs, make, quality, train

step = train.Training._step

def stops(self, s, *args):
    if s.progress.step == 14:  # of 24: the second round has begun
        print("here", flush=True)
        sys.stdin.read()
    step(self, s, *args)

quality._READ, train.wrong, train.Training._step = 4000, lambda *_: "", stops
make(blobs(200, SHAPE), TINY[sys.argv[1]], out=sys.argv[2], every=0)
"""
SHAPE = (1, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_kill_9_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own is killed by the system; going on ends as a training of images that
    never stopped."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, name, "cut"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not Path("cut/quality.json").exists()
    monkeypatch.setattr(train, "wrong", lambda *_: "")
    for out in ("cut", "whole"):
        make(blobs(200, SHAPE), TINY[name], out=out, resume=True)
    for file in ("generator.safetensors", "log.csv", "quality.json", "samples/round-003.png"):
        assert Path("cut", file).read_bytes() == Path("whole", file).read_bytes()


def test_it_learns_the_rows_of_a_table() -> None:
    """Two clouds far apart, of different range in each feature."""
    model = f"diffusion(steps=150, rounds=2, width=16, heun=8, ema=0.9, {SEEN})"
    made = make(from_arrays(*table(600)), model, out="here", bounds=(-50, 100))
    x = made.generator.draw(torch.arange(400) % 2, torch.arange(400))
    real, y = table(600)
    for c in (0, 1):
        mine = x[c::2].double().numpy()
        assert mine.mean(0) == pytest.approx(real[y == c].mean(0), abs=3 * real.std(0).max())
        assert np.all(np.abs(mine.mean(0) - real[y == c].mean(0)) < 0.5 * real.std(0))
    assert made.quality.trained > 0.9
    assert min(made.quality.right) > 0.8


def table(n: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % 2
    x = np.random.default_rng(0).normal(y[:, None] * [30.0, 1.0, -1.0], [5.0, 0.2, 0.1])
    return x, y


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(number: int, fid: float, spread: float) -> train.Round:
    return train.Round(number, number, 0.0, 0.0, fid, 1.0, 1.0, 2, spread)


def test_collapse_and_divergence_have_names() -> None:
    log = [line(1, 1.0, 0.1), line(2, 0.4, 0.8)]
    # nothing has learnt to differ yet
    assert train.wrong([], line(1, 1.0, 0.1), [0.9, 0.1], 20) == ""
    names(train.wrong(log, line(3, 0.5, 0.1), [0.9, 0.1], 20), "mode collapse", "class 1", "10%")
    names(train.wrong(log, line(3, 1.2, 0.9), [0.9, 0.9], 20), "divergence", "1.2", "0.4")
    assert train.wrong(log, line(3, 0.8, 0.9), [0.9, 0.9], 20) == ""
    names(train.wrong([], line(11, 1.0, 0.1), [0.1, 0.9], 20), "class 0")


@pytest.mark.parametrize("name", SLOWER)
def test_a_collapse_keeps_the_last_good_generator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second round on, the generator forgets its noise."""
    kind = type(folder.parse(name))
    draw = kind.draw
    calls = []

    def forgetful(
        self: Model, net: nn.Module, shape: tuple[int, ...], y: Tensor, own: Keys
    ) -> Tensor:
        calls.append(len(y))
        return draw(self, net, shape, y, own if len(calls) < 2 else Keys(own.rows * 0))

    monkeypatch.setattr(kind, "draw", forgetful)
    wrong = train.wrong
    monkeypatch.setattr(
        train, "wrong", lambda log, line, spread, _: wrong(log, line, spread, 2 * (len(log) > 0))
    )
    with pytest.raises(InputError, match=r"round 3: mode collapse.*generator of round 1 is in"):
        make(blobs(200), TINY[name], out="out")
    assert folder.load("out").draw(torch.tensor([0]), torch.tensor([0])).shape == (1, 3)
    assert "mode collapse" in Path("out/log.csv").read_text()


def test_a_training_without_a_good_round_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    few = "gan(steps=2, rounds=1, width=8, batch_size=16, glance=40)"
    monkeypatch.setattr(train, "wrong", lambda *_: "mode collapse")
    with pytest.raises(
        InputError, match=r"ended with a mode collapse.*No generator was good enough to keep"
    ):
        make(blobs(200), few, out="out")
    with pytest.raises(
        InputError, match=r"holds no generator \(generator.safetensors is missing\)"
    ):
        folder.load("out")


@pytest.mark.parametrize("name", SLOWER)
def test_divergence_is_named_and_the_last_good_generator_kept(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(folder.parse(name))
    learn = kind.learn
    monkeypatch.setattr(train, "wrong", lambda *_: "")

    def poisoned(self: Model, nets: nn.ModuleDict, *args: object) -> tuple[Tensor | None, Tensor]:
        if args[-1] == 17:
            next(nets.parameters()).data.fill_(math.nan)
        return learn(self, nets, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(kind, "learn", poisoned)
    with pytest.raises(
        InputError, match=r"step 18: the training diverged. The generator of round [12] is in"
    ):
        make(blobs(200), TINY[name], out="out")
    assert all(value.isfinite().all() for value in load_file("out/generator.safetensors").values())


# ---------------------------------------------------------------------- use


def test_the_commands_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "wrong", lambda *_: "")
    done = command("generate", "train", "digits", "--model", TINY["gan"], "--out", "gen")
    assert done.exit_code == 0, done.output
    names(done.stdout, "FID", "KID", "real rows")
    page = Path("gen/report.html").read_text()
    names(page, "data:image/png", "Recall", "Trained on samples")
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert set(json.loads(Path("gen/quality.json").read_text())) >= {
        "fid",
        "kid",
        "copies",
        "trained",
    }
    names(refused("generate", "train", "digits", "--out", "gen"), "--resume")
    names(
        refused("generate", "train", "digits", "--out", "gen", "--resume"), "model", "cannot resume"
    )
    done = command("generate", "sample", "gen", "--per-class", 30, "--out", "made.npz")
    assert done.exit_code == 0, done.output
    source = open_data("made.npz")
    x, y = source.rows(0, len(source))
    assert (x.shape, x.dtype, np.bincount(y).tolist()) == ((300, 1, 8, 8), np.float32, [30] * 10)
    assert 0 <= x.min() < x.max() <= 1
    names(refused("generate", "sample", "gen", "--out", "made.npz"), "exists")
    never = ("--classifier", "demo", "--min-confidence", "1", "--per-class", 2)
    names(
        refused("generate", "sample", "gen", "--out", "sure.npz", *never),
        "class",
        "sure of 0",
        "--min-confidence",
    )
    names(refused("generate", "sample", "nowhere", "--out", "sure.npz"), "no generator", "nowhere")
    small = (
        "--recipe",
        'fast(epochs=1, judge="pgd(steps=2)")',
        "--protocol",
        "quick",
        "--test-samples",
        20,
    )
    mixed = ("--synthetic", "made.npz", "--out", "hard", "--threat", "linf(0.1)")
    done = command("harden", "demo", "digits", *small, *mixed)
    assert done.exit_code == 0, done.output
    names(json.loads(Path("hard/harden.json").read_text())["synthetic"], "0.7 of ")
    names(
        refused("harden", "demo", "digits", *small, *mixed, "--resume", "--synthetic-share", 0.5),
        "synthetic",
    )


def test_data_that_cannot_be_learnt_is_refused() -> None:
    x = np.zeros((40, 1, 8, 8), np.float32)
    with pytest.raises(InputError, match="expected each of 0 to 2"):
        make(from_arrays(x, np.arange(40) % 2 * 2), "gan", out="out")
    with pytest.raises(InputError, match="cannot be generated"):
        make(from_arrays(np.zeros((40, 1, 2, 2), np.float32), np.arange(40) % 2), "gan", out="out")
    Path("taken").mkdir()
    Path("taken/x").touch()
    with pytest.raises(InputError, match="other files"):
        make(blobs(40), "gan", out="taken")


def test_each_step_mixes_and_the_real_rows_still_come_round() -> None:
    real = from_arrays(np.arange(100.0)[:, None], np.zeros(100, int))
    made = from_arrays(1000 + np.arange(5000.0)[:, None], np.ones(5000, int))
    settings = shuffled(100, 10, 1)
    steps = list(GeneratedRows(made, 0.7).read(real, settings, 0, 1))
    assert [int(y.sum()) for _, y in steps] == [7] * 10
    seen = np.concatenate([x[:, 0] for x, _ in steps])
    assert len(set(seen.tolist())) == 100  # no row twice
    later = list(GeneratedRows(made, 0.7).read(real, settings, 4, 1))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(steps[4:], later, strict=True))
    few = GeneratedRows(from_arrays(-1.0 - np.arange(20.0)[:, None], np.ones(20, int)), 0.5)
    # fewer rows than an epoch asks for: again
    assert [len(x) for x, _ in few.read(real, settings, 0, 1)] == [10] * 10
    uneven = list(GeneratedRows(made, 0.7).read(real, shuffled(100, 16, 1), 0, 1))
    assert [(len(y), int(y.sum())) for _, y in uneven] == [(16, 11)] * 6 + [(4, 3)]
    with pytest.raises(SpecError, match="share"):
        GeneratedRows(made, 1.0)


def test_advgan_fools_rows_that_it_never_saw() -> None:
    x = torch.from_numpy(open_data("digits").rows(0, 360)[0])
    target, threat = wrap(demo_model()), Threat.linf(0.3)
    made = advgan(target, x[:200], x[200:], threat, steps=60, rows=32, width=8, rate=3e-3)
    assert made.rate > 0.6
    d = made(x) - x
    assert float(d.abs().max()) <= 0.3 + 1e-6
    assert 0 <= float(made(x).min()) <= float(made(x).max()) <= 1
    assert torch.allclose(made(x[3:5]), made(x)[3:5], atol=1e-6)
    again = advgan(target, x[:200], x[200:], threat, steps=2, rows=8, width=8)
    other = advgan(target, x[:200], x[200:], threat, steps=2, rows=8, width=8, seed=1)
    twin = advgan(target, x[:200], x[200:], threat, steps=2, rows=8, width=8)
    assert torch.equal(again(x), twin(x))
    assert not torch.equal(again(x), other(x))
    with pytest.raises(SpecError, match="finite eps"):
        advgan(target, x, x, Threat.l2(torch.inf))
