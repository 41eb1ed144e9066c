"""The attacks meant for other models, against plain rewrites; their changes of images, against
values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import EPS, Narrow, Then, bent, close, draw, pool, rows, run, same, threat, wrap
from scipy.ndimage import correlate1d
from scipy.stats import norm as gaussian
from torch import Tensor, nn

from holdfast.attacks import CATALOGUE, Outcome, SearchResult, parse
from holdfast.attacks.attack import Search, point
from holdfast.attacks.problem import Problem
from holdfast.attacks.shared.image_blocks import rebuilt, shuffled, strips
from holdfast.attacks.shared.pool import others
from holdfast.attacks.transfer.difgsm import smaller
from holdfast.attacks.transfer.tifgsm import blurred
from holdfast.errors import SpecError
from holdfast.losses import ce
from holdfast.rng import Keys
from holdfast.targets.batch import Batch, Batcher, Rows
from holdfast.targets.target import Inputs
from holdfast.targets.wrappers import Surrogate

KEYS = Keys.of(0, torch.arange(6))
IMAGES = draw(6, 2, 7, 5)


class Curved(nn.Module):
    """A model whose gradient turns at every point."""

    def forward(self, x: Tensor) -> Tensor:
        w = draw(3, 16, seed=4) * 2 - 1
        return torch.sin(3 * (x.flatten(1)[:, None] * w).sum(-1))


def problem(norm: str = "linf") -> Search:
    target = wrap(Curved())
    target.batcher = Batcher(dtype=torch.float64)
    x, y = rows(target, 6)
    return Search(target, x, y, threat(norm), Keys.of(3, torch.arange(6)), pool=pool(target))


def slope(p: Problem, *points: Tensor) -> Tensor:
    """The gradient of the mean loss at functions of one leaf, by autograd alone: [n, *shape]."""
    value = sum(ce(Curved()(at), p.y, None) for at in points)
    assert isinstance(value, Tensor)
    leaf = points[0]
    return torch.autograd.grad(value.sum() / len(points), leaf)[0]


@pytest.mark.parametrize("ahead", [0.0, 1.0])
def test_the_path_is_that_of_a_plain_rewrite(ahead: float) -> None:
    p = problem()
    attack = parse(f"mifgsm(ahead={ahead}, decay=0.7)")
    s, d, v = attack.start(p), torch.zeros_like(p.x), torch.zeros_like(p.x)
    eps = EPS["linf"]
    for t in range(10):
        s = attack.step(p, s, t)
        look = (d + ahead * 0.07 * eps * v.sign()).clamp(-eps, eps).clamp(-p.x, 1 - p.x)
        g = slope(p, (p.x + look).requires_grad_())
        v = 0.7 * v + g / g.abs().sum((1, 2, 3), keepdim=True)
        d = (d + 0.1 * eps * v.sign()).clamp(-eps, eps).clamp(-p.x, 1 - p.x)
        close(s.d, d, rtol=0, atol=1e-12)


def test_mi_fgsm_is_pgd_with_momentum() -> None:
    target = wrap(bent())
    x, y = rows(target, 30)
    other = 'pgd(steps=10, momentum=1, start_at="zero", loss="ce")'
    for norm in ("linf", "l2"):
        same(
            run(parse("mifgsm"), target, x, y, threat(norm)),
            run(parse(other), target, x, y, threat(norm)),
        )
    assert CATALOGUE["nifgsm"]() == parse("mifgsm(ahead=1)")


def test_faded_copies_and_neighbours_give_the_mean_gradient() -> None:
    p = problem()
    leaf = p.x.clone().requires_grad_()
    exact = slope(p, leaf, leaf / 2, leaf / 4)
    attack = parse("sifgsm(copies=2)")
    close(
        attack.step(p, attack.start(p), 0).v,
        exact / exact.abs().sum((1, 2, 3), keepdim=True),
        rtol=1e-9,
    )
    attack = parse("vmifgsm(neighbours=2, radius=0.5)")
    first = attack.step(p, attack.start(p), 0)
    shifts = [
        EPS["linf"] / 2 * (p.noise(f"neighbour {i}").uniform((1, 4, 4), p.x.dtype) * 2 - 1)
        for i in range(2)
    ]
    nearby = [slope(p, (p.x + shift).clamp(0, 1).requires_grad_()) for shift in shifts]
    own = slope(p, p.x.clone().requires_grad_())
    close(first.excess, (nearby[0] + nearby[1]) / 2 - own, rtol=1e-9, atol=1e-12)
    p.t = 1
    second, g = (
        attack.step(p, first, 1),
        slope(p, (p.x + first.momentum.d).requires_grad_()) + first.excess,
    )
    close(
        second.momentum.v,
        first.momentum.v + g / g.abs().sum((1, 2, 3), keepdim=True),
        rtol=1e-9,
        atol=1e-12,
    )


def test_mixed_copies_give_the_mean_gradient() -> None:
    """Two images of other classes, three brightnesses each, and the input itself; white stays
    white."""
    p = problem()
    attack = parse("admix(samples=2, share=0.3, copies=3)")
    leaf, mixed_in = p.x.clone().requires_grad_(), others(p, 2)
    mixed = [(leaf + 0.3 * mixed_in[:, i]) / 2**j for i in range(2) for j in range(3)]
    exact = slope(p, leaf, *(image.clamp(0, 1) for image in mixed))
    close(
        attack.step(p, attack.start(p), 0).v,
        exact / exact.abs().sum((1, 2, 3), keepdim=True),
        rtol=1e-9,
    )


def test_others_are_of_other_classes_evenly_and_a_rows_own() -> None:
    p = problem()
    assert p.pool is not None
    drawn = others(p, 4000)
    place = (drawn[:, :, None] == p.pool[0]).flatten(3).all(3).int().argmax(2)
    for row, y in zip(place, p.y, strict=True):
        counts = row.bincount(minlength=30)
        assert torch.equal(counts == 0, p.pool[1] == y)
        assert int(counts[counts > 0].min()) > 4000 / 20 * 0.6
    p.take(torch.tensor([4, 1]))
    assert torch.equal(others(p, 4000), drawn[[4, 1]])


def test_without_images_of_two_classes_nothing_is_mixed() -> None:
    target = wrap(Curved())
    x, y = rows(target, 6)
    x1, y1 = pool(target)
    for held, text in (
        (None, "no other images"),
        ((x1[y1 == 1], y1[y1 == 1]), "images of one class alone"),
    ):
        with pytest.raises(SpecError, match=text):
            run(parse("admix"), target, x, y, threat("linf"), pool=held)


@pytest.mark.parametrize("name", ["difgsm", "bsr", "sia"])
def test_gradients_come_back_through_the_change(name: str) -> None:
    """They are those of the model behind the change, as autograd has them in one piece."""
    p = problem()
    attack = parse(f"{name}(copies=2)")
    leaf = p.x.clone().requires_grad_()
    noise = [p.noise(f"copy {i}") for i in range(2)]
    if name == "difgsm":
        changed = [smaller(leaf, keys, 0.1, 0) for keys in noise]
    elif name == "sia":
        changed = [rebuilt(leaf, keys, 3, 0, 16 / 255).clamp(0, 1) for keys in noise]
    else:
        changed = [shuffled(leaf, noise[0], 2, 24, 0), shuffled(leaf.mT, noise[0], 2, 24, 0).mT]
    exact = slope(p, leaf, *changed)
    g = exact / exact.abs().sum((1, 2, 3), keepdim=True)
    close(attack.step(p, attack.start(p), 0).v, g, rtol=1e-9, atol=1e-12)


def test_the_gaussian_is_the_papers() -> None:
    """15 pixels of 299, cut at three deviations; smaller in proportion, and none in a small
    image."""
    weights = gaussian.pdf(np.linspace(-3, 3, 15))
    image = draw(1, 1, 2, 299)
    exact = correlate1d(image.numpy(), weights / weights.sum(), axis=3, mode="constant")
    close(blurred(image, 0.05), torch.from_numpy(exact), rtol=1e-12)
    assert torch.equal(blurred(IMAGES, 0.05), IMAGES)
    assert not torch.equal(blurred(IMAGES, 0.5), IMAGES)


def test_strips_fill_the_side() -> None:
    which, start, width = strips(KEYS.uniform((3,)), 7)
    assert width.sum(1).tolist() == [7] * 6
    assert torch.equal(start[:, 0], torch.zeros(6, dtype=torch.int64))
    for i in range(6):
        assert which[i].bincount(minlength=3).tolist() == width[i].tolist()


def test_a_smaller_copy_lies_in_a_black_frame() -> None:
    close(smaller(IMAGES, KEYS, 0.0, 0.2), IMAGES, rtol=1e-9)
    white = torch.ones(200, 1, 40, 40, dtype=torch.float64)
    share = (smaller(white, Keys.of(1, torch.arange(200)), 0.5, -1.0) + 1).mean((1, 2, 3)) / 2
    assert 0.25 < float(share.min()) < 0.3
    assert 0.9 < float(share.max()) <= 1


def test_shuffled_blocks_are_a_permutation_and_turn_about_their_middles() -> None:
    new = shuffled(IMAGES, KEYS, 3, 0.0, 0.0)
    close(new.flatten(2).sort(2).values, IMAGES.flatten(2).sort(2).values, rtol=1e-9)
    assert bool(((new - IMAGES).abs() > 1e-9).flatten(1).any(1).all())
    close(shuffled(IMAGES, KEYS, 1, 0.0, 0.0), IMAGES, rtol=1e-9)
    turned = shuffled(IMAGES, KEYS, 1, 90.0, 0.0)
    close(turned[:, :, 3, 2], IMAGES[:, :, 3, 2], rtol=1e-9)  # the middle stays
    assert not np.allclose(turned, IMAGES)


def test_blocks_that_are_moved_keep_their_pixels() -> None:
    """One block a copy: of the seven ways five move pixels, one dims them all, one shakes each by a
    little."""
    image = draw(300, 1, 5, 5)
    new = rebuilt(image, Keys.of(2, torch.arange(300)), 1, 0.0, 0.01)
    held = (new.flatten(1).sort(1).values == image.flatten(1).sort(1).values).all(1)
    ratio = (new / image).flatten(1)
    dimmed = (ratio - ratio[:, :1]).abs().amax(1) < 1e-9
    shaken = ((new - image).abs() <= 0.01).flatten(1).all(1)
    assert bool((held | dimmed | shaken).all())
    assert 0.6 < float(held.double().mean()) < 0.82
    assert 20 < int((dimmed & ~held).sum()) < 70
    mirrors = [(new == image.flip(axes)).flatten(1).all(1) for axes in (2, 3, (2, 3))]
    assert all(int(found.sum()) > 20 for found in mirrors)


class Victim(Narrow):
    """Counts what it is asked, and how far from a clean input that lies."""

    asked: list[Tensor]

    def scores(self, x: Rows) -> Tensor:
        self.asked.append(Batch.of(x).x.clone())
        return super().scores(x)


@pytest.mark.parametrize("name", ["admix", "bsr", "sia", "vmifgsm", "difgsm"])
def test_copies_beyond_eps_are_no_successes_and_cost_the_victim_nothing(name: str) -> None:
    """On any moved pixel the surrogate cries success; the victim falls only far beyond eps."""
    far = wrap(Then(bent(), lambda x, z: torch.where((x.mean((1, 2, 3)) < 0.3)[:, None], -z, z)))
    victim = Victim(far, far.access)
    victim.asked = []
    x, y = rows(far, 20)
    fooled = Then(bent(), lambda x, z: z - 100 * nn.functional.one_hot(bent()(x).argmax(1), 5))
    substitutes = Surrogate(victim, wrap(fooled))
    eps = 0.001
    ledger: SearchResult = run(CATALOGUE[name](steps=3), substitutes, x, y, threat("linf", eps))
    sizes = torch.cat(
        [(x[None] - at[:, None]).flatten(2).abs().amax(2).amin(1) for at in victim.asked]
    )
    assert bool((sizes <= eps * (1 + 1e-6)).all())
    assert bool(((ledger.best - x).abs() <= eps * (1 + 1e-6)).all())
    assert bool((ledger.size.isinf() | ledger.broken).all())
    assert int((ledger.outcome == Outcome.SURVIVED).sum()) > 10
    open_ = run(CATALOGUE[name](steps=3), wrap(bent()), x, y, threat("linf", eps))
    assert bool((open_.size.isinf() | open_.broken).all())


@pytest.mark.parametrize("name", ["admix", "bsr", "difgsm", "sia", "tifgsm"])
def test_images_of_any_layout_and_inputs_that_are_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels last is the same search, turned; one axis is one row of pixels."""
    w = draw(3, 2 * 4 * 5, seed=1) * 2 - 1

    def ask(x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None] * w).sum(-1)

    x, attack = draw(8, 2, 4, 5), parse(name)
    found: list[Tensor] = []
    for turned, layout in ((x, "nchw"), (x.movedim(1, -1), "nhwc")):
        model = Then(nn.Identity(), lambda _, z: ask(z if z.shape[1] == 2 else z.movedim(-1, 1)))
        target = wrap(model, tuple(turned.shape[1:]), layout="nchw")  # takes either as it is
        target.inputs, target.batcher = Inputs(layout), Batcher(dtype=torch.float64)
        images = draw(30, 2, 4, 5, seed=9)
        held = images if layout == "nchw" else images.movedim(1, -1), torch.arange(30) % 3
        monkeypatch.setattr(target, "_before", lambda x: Batch.of(x).x)
        keys = Keys.of(0, torch.arange(8))
        p = Problem(target, turned, ask(x).argmax(1), threat("l2"), keys, pool=held)
        shifted = point(attack.step(p, attack.start(p), 0))
        found.append(shifted if layout == "nchw" else shifted.movedim(-1, 1))
    close(found[0], found[1], rtol=1e-6, atol=1e-12)
    flat = wrap(bent(), (16,))
    x, y = rows(flat, 12)
    assert int(run(CATALOGUE[name](), flat, x, y, threat("l2", 1.0)).broken.sum()) > 0
