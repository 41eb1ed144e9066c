"""Augmentation: what it does to rows and classes, and that training goes on with it bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.models import draw
from helpers.training import Killed, Normed, training
from torch import Tensor, nn

from holdfast.errors import InputError, SpecError
from holdfast.hardening import recipes
from holdfast.targets import wrap
from holdfast.training.augmentation import AUGMENTATIONS, Batch, augmented, disagreement, parse
from holdfast.training.loop import Training
from holdfast.training.state import State

HOW = 'epochs=2, batch_size=64, judge="pgd(steps=2)", objective="trades(steps=2)", ramp=0.1, '
HOW += "rate=0.01"


def asked(text: str, x: Tensor, seed: int = 3, **options: object) -> Batch:
    target = wrap(nn.Linear(1, 4), **options)  # pyright: ignore[reportArgumentType]
    return augmented(parse(text), x, torch.arange(len(x)) % 4, target, seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_changes_rows_within_the_box_and_by_the_seed(name: str, dtype: torch.dtype) -> None:
    x = (draw(8, 8, 8, 3) * 255).to(dtype)
    torch.manual_seed(0)
    first, again, other = (
        asked(name, x, seed, bounds=(0, 255), layout="nhwc") for seed in (3, 3, 4)
    )
    assert torch.initial_seed() == 0
    seen = first.views[0] if name == "augmix" else first.x
    assert seen.shape == x.shape
    assert seen.dtype == dtype
    assert not torch.equal(seen, x)
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 255
    assert torch.equal(first.x, again.x)
    assert all(torch.equal(a, b) for a, b in zip(first.views, again.views, strict=True))
    assert not torch.equal(seen, other.views[0] if name == "augmix" else other.x)


def test_gray_images_are_changed_too_and_steps_add_up() -> None:
    x = draw(6, 1, 8, 8).float()
    for text in (
        "augmix",
        "randaugment(n=4)",
        "flip, rotate(10), crop(2), noise(0.1), speckle, saltpepper, cutmix",
    ):
        batch = asked(text, x)
        assert batch.x.shape == x.shape
    with pytest.raises(InputError, match="three channels, but these have 1"):
        asked("color", x)
    with pytest.raises(InputError, match="shape \\(64,\\)"):
        asked("flip", x.flatten(1))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_classes_have_the_share_of_their_image(name: str) -> None:
    """Rows of one value each, their class: what is left of it says how much of the row is whose."""
    shares = set()
    for seed in range(6):
        x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8) / 3
        batch = asked(name, x, seed)
        assert batch.other is not None
        assert 0.5 <= batch.share <= 1
        means = (3 * batch.x).mean((1, 2, 3))
        expected = batch.share * batch.y + (1 - batch.share) * batch.other
        assert torch.allclose(means, expected, atol=1e-5)
        shares.add(batch.share)
    assert len(shares) > 3
    z = draw(4, 4).float()
    loss, _ = batch.loss(lambda y: (F.cross_entropy(z, y), z), lambda x: z)
    soft = batch.share * F.one_hot(batch.y, 4) + (1 - batch.share) * F.one_hot(batch.other, 4)
    assert torch.allclose(loss, F.cross_entropy(z, soft))


def test_the_divergence_is_that_of_jensen_and_shannon() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
    mean = p.mean(0)
    expected = (p * (p / mean).log()).sum() / 3
    assert torch.allclose(disagreement([row.log()[None] for row in p]), expected)
    x = draw(5, 1, 8, 8).float()
    batch = asked("augmix(weight=2)", x)
    net = nn.Linear(64, 3)
    answers = [net(view.flatten(1)) for view in (batch.x, *batch.views)]
    loss, _ = batch.loss(lambda y: (torch.tensor(1.0), answers[0]), lambda x: net(x.flatten(1)))
    assert torch.allclose(loss, 1 + 2 * disagreement(answers))
    assert float(loss.detach()) > 1


def bits(state: State) -> list[Tensor]:
    # read from a file, they come in another order
    best = [state.best[name] for name in sorted(state.best)]
    return [*state.net.state_dict().values(), *state.average.state_dict().values(), *best]


@pytest.mark.parametrize("text", ["crop(padding=1), noise, cutmix", "rotate, augmix"])
def test_a_killed_training_goes_on_with_the_same_bits(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = f'strong({HOW}, augment="{text}")'
    whole, net = training(recipe, rows=192, make=Normed)
    expected = bits(whole.fit(net))
    other, net = training(f"strong({HOW})", rows=192, make=Normed)
    assert not all(torch.equal(a, b) for a, b in zip(expected, bits(other.fit(net)), strict=True))

    cut, net = training(recipe, rows=192, make=Normed, folder=tmp_path, every=0.0)
    step = Training._step

    def dies(self: Training, s: State, *args: Tensor, **options: int) -> None:
        if s.progress.step == 4:
            raise Killed
        step(self, s, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", dies)
        with pytest.raises(Killed):
            cut.fit(net)
    again, net = training(recipe, rows=192, make=Normed, folder=tmp_path)
    found = again.fit(net, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, bits(found), strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "flop.*flip"),
        ("crop(padding=1.5)", "padding=1.5"),
        ("noise(sigma=-1)", "sigma=-1"),
        ("saltpepper(2)", "amount=2"),
        ("mixup(alpha=0)", "alpha=0"),
        ("randaugment(n=0)", "n=0"),
        ("cutmix, flip", "cutmix.*name it last"),
        ("flip +", "cannot read"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        recipes.parse(f'standard(augment="{text}")')
