"""Attack from Python and from a command: what comes back, sizes, targets, images of 8 bits."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import holdfast as command
from helpers.commands import refused
from matplotlib.figure import Figure
from torch import nn

import holdfast
from holdfast import Threat
from holdfast.data import open_data
from holdfast.errors import SpecError
from holdfast.evaluation import judge
from holdfast.evaluation.verify import verify
from holdfast.reporting import words
from holdfast.runs import store
from holdfast.targets.demo import demo_model

ROWS = 24


def linear(k: int = 3, features: int = 4) -> nn.Module:
    """Class c has the score of feature c: the distances to its boundaries are known."""
    layer = nn.Linear(features, k, bias=False)
    layer.weight.data = torch.eye(k, features)
    return layer


def rows(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(0.2, 0.8, (n, 4)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def digits(n: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    return open_data("digits").rows(0, n)


def distance(x: np.ndarray) -> np.ndarray:
    """Linf distance of `linear` to the boundary: half the lead of the first class over the
    second."""
    top = np.sort(x[:, :3], 1)
    return (top[:, -1] - top[:, -2]) / 2


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_an_attack_from_python(kind: type) -> None:
    """Must show: holdfast.attack returns examples of the framework that came in, judged, with
    counts."""
    x, y = digits()
    net = demo_model()
    made = holdfast.attack(net, kind(x), kind(y), "linf(0.3)", "fgsm")
    assert type(made.x_adv) is type(made.success) is type(kind(x))
    found, hit = torch.as_tensor(made.x_adv), torch.as_tensor(made.success)
    right, broken = (
        net(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y),
        net(found).argmax(1) != torch.from_numpy(y),
    )
    assert torch.equal(hit, right & broken)
    assert hit.sum() > 10
    assert float((found - torch.from_numpy(x)).abs().max()) <= 0.3 + 1e-6
    np.testing.assert_allclose(
        made.size[hit.numpy()], np.abs(found.numpy() - x).max((1, 2, 3))[hit.numpy()], rtol=1e-6
    )
    assert (np.asarray(made.queries)[right.numpy()] > 0).all()
    assert f"broke {int(hit.sum())} of {int(right.sum())} rows" in repr(made)


def test_the_classes_are_there_and_say_the_same() -> None:
    """Must show: FGSM and its kin by their names, as classes of Python and as names of the command
    line."""
    x, y = digits()
    for name in ("FGSM", "BIM", "PGD", "MIFGSM", "CW", "DeepFool"):
        assert repr(getattr(holdfast.attacks, name)()) == repr(holdfast.attacks.parse(name.lower()))
    by_class = holdfast.attacks.FGSM()(demo_model(), x, y, "linf(0.3)")
    by_name = holdfast.attack(demo_model(), x, y, Threat.linf(0.3), "fgsm")
    assert np.array_equal(by_class.x_adv, by_name.x_adv)


def test_pictures_of_it() -> None:
    """Must show: original, adversarial and difference, with the classes before and after."""
    x, y = digits()
    made = holdfast.attack(demo_model(), x, y, "linf(0.3)", "fgsm")
    figure = made.plot(n=3)
    assert isinstance(figure, Figure)
    first = int(np.flatnonzero(made.success)[0])
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 9
    assert titles[:3] == [
        f"original: {y[first]}",
        f"adversarial: {made.after[first]}",
        "difference, at most 0.3",
    ]
    shown = figure.axes[1].images[0].get_array()
    np.testing.assert_allclose(shown, made.x_adv[first, 0])
    with pytest.raises(holdfast.InputError, match=r"images.*\(4,\)"):
        holdfast.attack(linear(), *rows(), "linf(0.3)", "fgsm").plot()


def test_a_search_for_the_smallest_reports_it_under_a_finite_eps() -> None:
    """Line 9: fmn at linf(0.3) and without a limit find examples of one size, near the known
    distance."""
    x, y = rows()
    within, free = (
        holdfast.evaluate(linear(), (x, y), threat, attacks=["fmn(steps=60)"])
        for threat in ("linf(0.3)", "linf(inf)")
    )
    sizes = [np.array(run.samples.column("size").to_pylist(), float) for run in (within, free)]
    np.testing.assert_allclose(sizes[0], distance(x), rtol=0.05, atol=1e-4)
    np.testing.assert_allclose(sizes[1], distance(x), rtol=0.05, atol=1e-4)
    made = holdfast.attack(linear(), x, y, "linf(0.3)", "fmn(steps=60)")
    np.testing.assert_allclose(made.size, distance(x), rtol=0.05, atol=1e-4)


SLOW_NORMS = [pytest.param(norm, marks=pytest.mark.slow) for norm in ("l0", "l2", "l1")]


@pytest.mark.parametrize("norm", ["linf", *SLOW_NORMS])
def test_the_smallest_changes_end_to_end(norm: str, tmp_path: Path) -> None:
    """Line 9: eps inf gives distances: a curve, quantiles, terminal and page; verify confirms
    it."""
    x, y = rows()
    run = holdfast.evaluate(
        linear(), (x, y), f"{norm}(inf)", protocol="quick", out=tmp_path / "run"
    )
    sizes = run.metrics.sizes
    found = np.array(run.samples.column("size").to_pylist(), float)
    assert sizes.n == len(x)
    assert sizes.quantiles["0.5"] == sizes.median == np.median(found)
    for point in run.metrics.curve:
        assert point.robust_accuracy.value == np.mean(found > point.eps)
    assert run.metrics.curve[-1].robust_accuracy.value == 0
    assert run.manifest.threat.eps == math.inf
    assert store.read_manifest(run.folder) == run.manifest
    assert verify(run.folder, holdfast.wrap(linear()), holdfast.data.as_source((x, y))) == []
    shown = command("report", run.folder)
    assert shown.exit_code == 0
    assert "median size" in " ".join(shown.stdout.split())
    median = f"size at which 50 % are broken {words.number(sizes.median)} "
    assert median in " ".join(shown.stdout.split())
    assert command("compare", run.folder, run.folder).exit_code == 0
    assert "median size" in " ".join((run.folder / "report.html").read_text().split())


def test_what_a_protocol_cannot_do_at_eps_inf_is_said() -> None:
    """Line 9: a ball of no size is refused before any pass."""
    with pytest.raises(SpecError, match="quick, standard or thorough"):
        holdfast.evaluate(linear(), rows(), "linf(inf)", protocol="autoattack")
    with pytest.raises(SpecError, match=r"finite eps.*fmn"):
        holdfast.evaluate(linear(), rows(), "linf(inf)", attacks=["pgd"])


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "slide", "mifgsm", "nifgsm", "apgd", "ddn"])
def test_named_attacks_ascend_their_papers_loss(name: str) -> None:
    """Line 10: the cross-entropy, which is these papers' loss."""
    assert holdfast.attacks.parse(name).loss == "ce"  # pyright: ignore[reportAttributeAccessIssue]


def test_fgsm_is_the_papers_step() -> None:
    """Line 10: the sign of the gradient of the cross-entropy, where that of the margin points
    elsewhere."""
    x = torch.tensor([[0.5, 0.45, 0.44, 0.5]])
    made = holdfast.attack(lambda v: v @ WEIGHTS, x, torch.tensor([0]), "linf(0.01)", "fgsm")
    leaf = x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(leaf @ WEIGHTS, torch.tensor([0])).backward()
    assert leaf.grad is not None
    step = x + 0.01 * leaf.grad.sign()
    torch.testing.assert_close(made.x_adv, step)
    margin = holdfast.attack(
        lambda v: v @ WEIGHTS, x, torch.tensor([0]), "linf(0.01)", 'fgsm(loss="margin")'
    )
    assert not torch.allclose(margin.x_adv, step)


WEIGHTS = torch.tensor([[2.0, 0.0, 0.3], [0.0, 2.0, -1.0], [0.0, -1.0, 2.0], [0.5, 0.9, 0.0]])


def goals(threat: Threat | str) -> np.ndarray:
    x, y = rows()
    made = holdfast.attack(linear(), x, y, threat, "fmn(steps=60)")
    assert made.success.sum() == len(x) - made.skipped.sum()
    return np.where(made.success, linear()(torch.from_numpy(made.x_adv)).argmax(1).numpy(), -1)


def test_targets_of_every_kind() -> None:
    """Line 24: one class, one a row, the least likely, and one at random by the row."""
    x, y = rows()
    assert set(goals(Threat.linf(math.inf, target=2))[y != 2]) == {2}
    assert set(goals("linf(inf, target=2)")[y == 2]) <= {-1}
    own = (y + 1) % 3
    assert np.array_equal(goals(Threat.linf(math.inf, target=own)), own)
    assert np.array_equal(goals(Threat.linf(math.inf, target=torch.from_numpy(own))), own)
    assert np.array_equal(goals("linf(inf, target='least-likely')"), x[:, :3].argmin(1))
    drawn = goals("linf(inf, target='random')")
    assert (drawn != y).all()
    assert len(set((drawn - y) % 3)) == 2
    one = holdfast.evaluate(
        linear(), (x, y), "linf(inf, target='random')", attacks=["fmn"], samples=(5, 9)
    )
    assert one.samples.column("target_class").to_pylist() == drawn[5:9].tolist()


SLOW_TARGETS = [
    pytest.param(target, marks=pytest.mark.slow) for target in ("least-likely", "random")
]


@pytest.mark.parametrize("target", ["1", "own.txt", *SLOW_TARGETS])
def test_targets_on_the_command_line(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 24: the same by --target, in the run and its verification."""
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text(
        "".join(f"{(c + 3) % 10}\n" for c in open_data("digits").rows(0, 360)[1])
    )
    asked = ("demo", "digits", "--threat", "linf(0.6)", "--samples", "0:12", "--target", target)
    done = command("evaluate", *asked, "--attack", "pgd(steps=5)", "--out", "run")
    assert done.exit_code == 0
    assert command("verify", "run", "demo", "digits").exit_code == 0
    run = holdfast.Run("run")
    label, broken = (
        np.array(run.samples.column(c).to_pylist()) for c in ("attacked_prediction", "status")
    )
    hit = broken == "broken"
    assert hit.any()
    if target == "1":
        assert (label[hit] == 1).all()
        skipped = np.array(run.samples.column("label").to_pylist()) == 1
        assert (broken[skipped] == "skipped").all()
    else:
        assert (label[hit] == np.array(run.samples.column("target_class").to_pylist())[hit]).all()


def test_targets_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 24: of no class, of other rows, or of no scores."""
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("1\n2\n")
    asked = ("attack", "demo", "digits", "--threat", "linf(0.3)")
    assert "0 to 9" in refused(*asked, "--target", "12")
    assert "360 rows" in refused(*asked, "--target", "few.txt")
    assert "least-likely" in refused(*asked, "--target", "unlikely")


def survivors(made: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether images still fool the demo model after the usual rounding to bytes and back."""
    back = np.rint(made * 255).astype(np.uint8).astype(np.float32) / 255
    return (
        judge.rule(holdfast.wrap(demo_model(), shape=(1, 8, 8)), torch.from_numpy(back)).label
        != torch.from_numpy(y)
    ).numpy()


def test_every_run_of_images_says_what_8_bits_leave(tmp_path: Path) -> None:
    """Line 25: accuracy after rounding, in run.json, confirmed by verify, which sees a forged
    one."""
    x, y = digits()
    run = holdfast.evaluate(
        demo_model(), (x, y), "l2(inf)", attacks=["fmn(steps=60)"], out=tmp_path / "run"
    )
    right = np.array(run.samples.column("clean_prediction").to_pylist()) == y
    ids, stored = (np.concatenate(part) for part in zip(*run.examples(), strict=True))
    fooled = survivors(stored, y[ids])
    assert run.metrics.accuracy_8bit is not None
    assert run.metrics.accuracy_8bit.value == (right.sum() - fooled.sum()) / len(y)
    assert 0 < run.metrics.accuracy_8bit.value < 1
    source, target = holdfast.data.as_source((x, y)), holdfast.wrap(demo_model())
    assert verify(run.folder, target, source) == []
    table = run.samples
    messages = [None if v is None else True for v in table.column("broken_8bit").to_pylist()]
    place = table.column_names.index("broken_8bit")
    store.write_samples(run.folder, table.set_column(place, "broken_8bit", [messages]))
    assert any("8 bits" in sentence for sentence in verify(run.folder, target, source))


def test_png_images_are_still_adversarial_when_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 25: attack --png counts and writes what survives; the folder is data again, of accuracy
    0."""
    monkeypatch.chdir(tmp_path)
    asked = (
        "attack",
        "demo",
        "digits",
        "--threat",
        "l2(inf)",
        "--attack",
        "fmn(steps=60)",
        "--samples",
        "0:30",
    )
    done = command(*asked, "--png", "images")
    assert done.exit_code == 0
    files = list(Path("images").rglob("*.png"))
    assert f"{len(files)} of these" in done.stdout
    assert 0 < len(files) < 28
    from PIL import Image

    x = np.stack([np.asarray(Image.open(f), np.float32)[None] / 255 for f in files])
    y = np.array([int(f.parent.name) for f in files])
    assert (
        holdfast.wrap(demo_model(), shape=(1, 8, 8)).labels(torch.from_numpy(x)).numpy() != y
    ).all()
    assert "exists" in refused(*asked, "--out", "b.npz", "--png", "images")


@pytest.mark.parametrize(
    "attack", ["pgd(steps=5)", "fmn(steps=30)", "square(steps=50)", "nes(steps=10, samples=8)"]
)
def test_the_grid_holds_for_every_attack(attack: str) -> None:
    """Line 25: with a grid of 8 bits each example lies on it, within eps, and rounding loses
    none."""
    x, y = digits()
    x = np.rint(x * 255).astype(np.float32) / 255
    made = holdfast.attack(demo_model(), x, y, "linf(0.2, grid='8bit')", attack)
    levels = made.x_adv[made.success] * 255
    assert made.success.any()
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.abs(made.x_adv - x).max() <= 0.2 + 1e-6
    assert np.array_equal(made.survives_8bit, made.success)


def test_the_judge_refuses_what_is_off_the_grid() -> None:
    """Line 25: an example between two levels is not legal, whoever found it."""
    target, x = holdfast.wrap(demo_model(), shape=(1, 8, 8)), torch.zeros(1, 1, 8, 8)
    threat = Threat.linf(0.5, grid="8bit")
    assert bool(judge.within(target, threat, x, x + 4 / 255)[0])
    assert not bool(judge.within(target, threat, x, x + 4.5 / 255)[0])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0.1", "linf(0.1), or l2(0.1)"),
        ("8/255", "linf(8/255)"),
        ("linf 0.1", "linf(0.1)?"),
        ("linf=0.1", "linf(0.1)?"),
        ("linf(0.1", "linf(0.1)?"),
        ("l∞(0.1)", "linf(0.1)?"),
        ("L_inf 8/255", "linf(8/255)?"),
        ("l2:0.5", "l2(0.5)?"),
        ("inf(0.3)", "linf(0.3)?"),
    ],
)
def test_a_threat_that_cannot_be_read_gets_an_example_of_one(text: str, meant: str) -> None:
    """Line 26: in every command the message shows a threat, never an attack."""
    for asked in (
        ("evaluate", "demo", "digits"),
        ("attack", "demo", "digits"),
        ("harden", "demo", "digits"),
    ):
        said = refused(*asked, "--threat", text)
        assert meant in said
        assert "pgd" not in said
    assert repr(Threat.parse("Linf(0.1)")) == "linf(0.1)"


def test_a_size_alone_is_no_threat_in_python() -> None:
    """Line 26: nor is a number."""
    with pytest.raises(SpecError, match=r"linf\(0\.1\)"):
        holdfast.attack(linear(), *rows(), 0.1)  # pyright: ignore[reportArgumentType]


def test_the_terminal_shows_precision_and_recall_under_attack() -> None:
    """Must show: accuracy, precision, recall and F1, clean and attacked, in the terminal and on
    Run."""
    x, y = digits()
    run = holdfast.evaluate(demo_model(), (x, y), "linf(0.2)", attacks=["pgd(steps=3)"])
    from sklearn.metrics import precision_score

    said = np.array(run.samples.column("attacked_prediction").to_pylist())
    expected = precision_score(y, said, average="macro", labels=np.unique(y), zero_division=0)
    assert run.precision.attacked == pytest.approx(expected)
    assert run.recall.clean > run.recall.attacked
    assert run.f1 == run.metrics.f1
    from rich.console import Console

    from holdfast.reporting.terminal import summary

    console = Console(record=True, width=100, file=io.StringIO())
    console.print(summary(run.manifest))
    text = console.export_text()
    pair = f"{words.percent(run.precision.clean)}, {words.percent(run.precision.attacked)}"
    assert f"precision, clean and under attack {pair}" in " ".join(text.split())
    assert "recall, clean and under attack" in text


def test_png_without_a_success_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 25: where nothing was broken, no image is said to be a success, and no folder is
    made."""
    monkeypatch.chdir(tmp_path)
    asked = [
        "attack",
        "demo",
        "digits",
        "--threat",
        "linf(0.0001)",
        "--attack",
        "fgsm",
        "--samples",
        "4",
    ]
    done = command(*asked, "--png", "pictures", "--out", "found.npz")
    assert done.exit_code == 0, done.output
    assert "images: none" in done.stdout
    assert not Path("pictures").exists()


@pytest.mark.parametrize("attack", [None, "apgd(steps=5)"])
@pytest.mark.parametrize("threat", ["rotation(30, 2)", "flow(1)", "patch(3)"])
def test_a_movement_gives_back_the_images_that_the_model_saw(
    threat: str, attack: str | None
) -> None:
    x, y = digits(8)
    net = demo_model()
    made = holdfast.attack(net, torch.from_numpy(x), torch.from_numpy(y), threat, attack)
    assert made.x_adv.shape == made.x.shape == x.shape
    assert torch.equal(made.x, torch.from_numpy(x))
    assert torch.equal(net(made.x_adv).argmax(1), made.after)
    assert made.threat.startswith(threat.split("(", maxsplit=1)[0])
    right = net(made.x).argmax(1) == torch.from_numpy(y)
    assert torch.equal(made.success, right & (made.after != torch.from_numpy(y)))
    if threat == "patch(3)":
        changed = (made.x_adv != made.x).flatten(1).sum(1)
        assert int(changed.max()) <= 9


def test_a_movement_of_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "moved.npz"
    made = command(
        "attack", "demo", "digits", "--threat", "rotation(20)", "--samples", 4, "--out", out
    )
    assert made.exit_code == 0, made.stderr
    with np.load(out) as held:
        assert held["x"].shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    "threat",
    [
        Threat.linf(0.2).limited(mask=torch.arange(4) < 3),
        Threat.linf(0.2).limited(scale=torch.tensor([1.0, 0.5, 1.0, 0.0])),
        Threat.linf(0.2, target="random"),
        Threat.linf(0.2, target="least-likely"),
        Threat.linf(0.5, grid="8bit"),
    ],
    ids=str,
)
def test_what_evaluate_takes_attack_takes(threat: Threat) -> None:
    x, y = rows()
    run = holdfast.evaluate(linear(), (x, y), threat, attacks=["apgd(steps=20)"])
    made = holdfast.attack(linear(), x, y, threat, "apgd(steps=20)")
    broken = run.samples.column("status").to_numpy(zero_copy_only=False) == "broken"
    np.testing.assert_array_equal(made.success, broken)
    if threat.mask is not None:
        assert (made.x_adv[:, 3] == made.x[:, 3]).all()
