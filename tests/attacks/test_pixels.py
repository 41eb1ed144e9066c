"""L0 by pixels: the channels of a pixel count as one, in both layouts of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.catalogue import CLASSES, short
from helpers.exact import distance
from helpers.models import Linear, draw, same, wrap

import holdfast as hf
from holdfast.attacks import run
from holdfast.certification import Ladder
from holdfast.errors import SpecError
from holdfast.runs import store
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Threat

N, SHAPE = 40, {"nchw": (2, 3, 4), "nhwc": (3, 4, 2)}
ABLE = sorted(c.__name__.lower() for c in CLASSES if c.groups)
STEPS = {"onepixel": 400, "sparsers": 300}  # these see no gradients

each_attack = pytest.mark.parametrize("name", ABLE)
SLOW = pytest.mark.slow
each_layout = pytest.mark.parametrize("layout", SHAPE)


def first_channels(a: torch.Tensor, layout: str) -> np.ndarray:
    """Images, or weights for them, as [n, 2, 12]."""
    images = a.reshape(len(a), *SHAPE[layout])
    return (images.movedim(-1, 1) if layout == "nhwc" else images).reshape(len(a), 2, 12).numpy()


def problem(layout: str) -> tuple[TorchTarget, torch.Tensor, torch.Tensor, np.ndarray]:
    """A linear model of two classes, rows, and how many pixels each has to change."""
    w = draw(2, 24, seed=4) * 2 - 1
    b = -w.sum(1) / 2 + torch.tensor([2.0, 0.0], dtype=torch.float64)
    target = wrap(Linear(w, b), SHAPE[layout], layout=layout)
    x = draw(N, *SHAPE[layout], seed=5)
    y = target.labels(x)
    # the model sees the channels first
    slopes, flat = first_channels(w, "nchw"), first_channels(x, layout).reshape(N, -1)
    scores = target.scores(x).numpy()
    least = []
    for i, label in enumerate(y.tolist()):
        c = (slopes[1 - label] - slopes[label]).flatten()
        gap = scores[i, label] - scores[i, 1 - label]
        least.append(distance("pixels", c, gap + 1e-9, -flat[i], 1 - flat[i]))
    return target, x, y, np.array(least)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=[SLOW] * (name in STEPS and layout == "nchw"))
        for name in ABLE
        for layout in SHAPE
    ],
)
def test_what_is_found_changes_few_pixels(name: str, layout: str) -> None:
    target, x, y, least = problem(layout)
    assert set(least) >= {1, 2, 3}
    attack = short(name, steps=STEPS.get(name, 60))
    broken = {}
    for eps in (1, 2):
        found = run(attack, target, x, y, Threat.l0(eps, group="pixel"))
        pixels = (first_channels(found.best - x, layout) != 0).any(1).sum(1)
        broken[eps] = (found.size <= eps).numpy()
        met = found.size.isfinite().numpy()
        assert np.array_equal(pixels[met], found.size.numpy()[met])
        assert bool((target.labels(found.best) != y)[torch.from_numpy(met)].all())
        assert not broken[eps][least > eps].any()
        assert broken[eps][least <= eps].mean() >= (0.4 if name == "onepixel" else 0.8)
    assert (broken[2] & (pixels == 2)).any()


@each_attack
def test_rows_do_not_know_each_other(name: str) -> None:
    target, x, y, _ = problem("nhwc")
    attack, threat = short(name), Threat.l0(2, group="pixel")
    whole = run(attack, target, x, y, threat)
    at = torch.arange(3, N, 4)
    part = run(attack, target, x[at], y[at], threat, ids=at)
    same(part, type(whole)(**{n: column[at] for n, column in whole.columns().items()}))


def test_where_pixels_have_one_channel_they_are_the_features() -> None:
    target = wrap(Linear(draw(2, 16, seed=4) * 2 - 1, torch.zeros(2, dtype=torch.float64)))
    x = draw(N, 1, 4, 4, seed=5)
    y = target.labels(x)
    for name in ("sigmazero", "fmn", "sparsers", "brendelbethge"):
        threats = (Threat.l0(2), Threat.l0(2, group="pixel"))
        one, other = (run(short(name), target, x, y, threat) for threat in threats)
        assert torch.equal(one.size <= 2, other.size <= 2), name


@pytest.mark.parametrize("protocol", ["quick", pytest.param("standard", marks=SLOW)])
@each_layout
def test_a_run_counts_pixels_and_is_verified(layout: str, protocol: str, tmp_path: Path) -> None:
    target, x, y, least = problem(layout)
    data = (x.float().numpy(), y.numpy())
    threat, out = 'l0(1, group="pixel")', tmp_path / "run"
    measured = hf.evaluate(target, data, threat, protocol=protocol, certifier=Ladder(), out=out)
    said = measured.manifest.threat
    assert (said.text, said.norm, said.group) == ("l0(1, group='pixel')", "l0", "pixel")
    assert "up to 1 pixels of an image" in measured.report().read_text().replace("\xa0", " ")
    # what is proved and what is broken are exact here
    status = np.array(measured.samples["status"].to_pylist())
    assert np.array_equal(status == "broken", least <= 1)
    assert np.array_equal(status == "certified", least > 1)
    assert hf.verify(out, target, data, certifier=Ladder()) == []
    # without the group, what was proved is another claim
    other = said.model_copy(update={"group": None})
    manifest = measured.manifest.model_copy(update={"threat": other})
    store.write_manifest(out, manifest)
    assert any("its parts make l0(1)" in one for one in hf.verify(out, target, data))


@pytest.mark.parametrize(
    ("threat", "attack", "words"),
    [
        ('l2(1, group="pixel")', "fmn", "only l0"),
        ('l0(1, group="row")', "fmn", "'row'"),
        ('l0(1, group="pixel")', "jsma", "counts features, and not pixels.*sigmazero"),
    ],
)
def test_what_counts_no_pixels_is_refused(threat: str, attack: str, words: str) -> None:
    target, x, y, _ = problem("nchw")
    with pytest.raises(SpecError, match=words):
        hf.attack(target, x, y, threat, attack)


def test_rows_that_are_no_images_are_refused() -> None:
    target = wrap(Linear(draw(2, 5), torch.zeros(2, dtype=torch.float64)), (5,))
    x = draw(3, 5)
    for threat in ('l0(1, group="pixel")', Threat.l0(1, group="pixel")):
        with pytest.raises(SpecError, match=r"pixels of images.*\(5,\)"):
            hf.attack(target, x, target.labels(x), threat, "sigmazero")
        with pytest.raises(SpecError, match=r"pixels of images.*\(5,\)"):
            hf.evaluate(target, (x.float().numpy(), target.labels(x).numpy()), threat)
