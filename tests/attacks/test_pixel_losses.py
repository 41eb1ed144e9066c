"""The losses of pixels, against plain formulas, and Auto-PGD in a ball that shrinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import EPS, bent, rows, threat, wrap
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from holdfast.attacks import parse, run
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.losses import PIXEL_LOSSES
from holdfast.tasks.pixels import LOSSES, balanced_ce, jsd, masked_ce


def pixels(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    keys = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=keys, dtype=torch.float64)
    truth = torch.randint(0, 3, (2, 4, 5), generator=keys)
    return logits, truth, torch.rand(2, 4, 5, generator=keys) < 0.8


def test_the_names_are_those_that_attacks_take():
    assert tuple(LOSSES) == PIXEL_LOSSES


def test_the_divergence_is_that_of_scipy():
    logits, truth, judged = pixels()
    p = logits.softmax(1).movedim(1, 3).numpy()
    divergence = jensenshannon(p, np.eye(3)[truth], axis=3) ** 2
    expected = (divergence * judged.numpy()).reshape(2, -1).mean(1)
    np.testing.assert_allclose(jsd(logits, truth, judged), expected, rtol=1e-10)


def test_cross_entropies_are_of_judged_pixels_that_are_right():
    logits, truth, judged = pixels()
    ce = -logits.log_softmax(1).gather(1, truth[:, None])[:, 0]
    right = judged & (logits.argmax(1) == truth)
    masked = torch.stack([(c * r).sum() / r.numel() for c, r in zip(ce, right, strict=True)])
    torch.testing.assert_close(masked_ce(logits, truth, judged), masked)
    balanced = [
        sum(ce[i][right[i] & (truth[i] == c)].sum() / (judged[i] & (truth[i] == c)).sum()
            for c in range(3))
        for i in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(balanced_ce(logits, truth, judged), torch.stack(balanced))


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_gradients_are_those_of_finite_differences(name: str):
    logits, truth, judged = pixels()
    leaf = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, truth, judged), leaf)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_one_class_alone_has_a_gradient_and_pixels_that_are_not_judged_none(name: str):
    logits, truth, judged = pixels()
    truth[:], logits[:, 0] = 0, 9  # right
    leaf = logits.requires_grad_()
    g = torch.autograd.grad(LOSSES[name](leaf, truth, judged).sum(), leaf)[0].movedim(1, 3)
    assert (g[~judged] == 0).all()
    assert (g[judged] != 0).any(1).all()


def test_a_model_of_classes_has_no_pixels():
    model = wrap(bent())
    x, y = rows(model, 4)
    with pytest.raises(SpecError, match="a loss of the pixels of a segmentation"):
        run(parse('pgd(loss="jsd")'), model, x, y, threat("linf"))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_shrinks_to_eps_and_only_points_within_it_count(norm: str, monkeypatch):
    sizes: list[float] = []
    ask = Problem.gradient

    def noted(p: Problem, d: Tensor, *args: object, **options: object) -> tuple[Tensor, Tensor]:
        sizes.append(float((p.norm.size(d) / EPS[norm]).max()))
        return ask(p, d, *args, **options)  # pyright: ignore

    monkeypatch.setattr(Problem, "gradient", noted)
    model = wrap(bent())
    x, y = rows(model, 6)
    found = run(parse("sea(steps=20)"), model, x, y, threat(norm), stop=False)
    assert len(sizes) == 21
    for radius, stage in ((2, sizes[:7]), (1.5, sizes[7:13]), (1, sizes[13:])):
        assert max(stage) <= radius * (1 + 1e-5)
        assert max(stage) > 0.9 * radius
    assert (found.size[found.broken] <= found.limit[found.broken]).all()
