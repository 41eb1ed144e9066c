"""What runs on an accelerator says what a CPU says. (In float64, on models whose rows do not feel
their neighbours.)"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.catalogue import every, short
from helpers.models import bent, rows, threat, wrap

import holdfast
from holdfast.attacks import run
from holdfast.data import from_arrays
from holdfast.evaluation import judge
from holdfast.evaluation.verify import verify
from holdfast.generation import load, train
from holdfast.generation.sample import own_classifier, sample
from holdfast.hardening.harden import harden

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no accelerator here"
)


@every(0)
def test_an_attack_finds_on_an_accelerator_what_it_finds_on_a_cpu(name: str, norm: str) -> None:
    here, there = wrap(bent()), wrap(bent(), device="cuda")
    x, y = rows(here, 12, wrong=True)
    attack, limits = short(name), threat(norm)
    mine, its = run(attack, here, x, y, limits), run(attack, there, x, y, limits)
    assert its.best.device.type == "cuda"
    broken_rows = its.broken.cpu()
    assert judge.within(here, limits, x, its.best.cpu())[0][broken_rows].all()
    # Sums may differ in their last bits, and a search with many branches may then take another: one
    # row may.
    assert int((mine.broken != broken_rows).sum()) <= 1


def test_an_evaluation_on_an_accelerator_is_verified_on_a_cpu(tmp_path) -> None:
    model = bent(dtype=torch.float32)
    x, y = rows(wrap(model), 32)
    there = holdfast.evaluate(
        wrap(model, device="cuda"), (x.numpy(), y.numpy()), "linf(0.08)", out=tmp_path / "run"
    )
    here = holdfast.evaluate(wrap(model), (x.numpy(), y.numpy()), "linf(0.08)")
    assert abs(there.robust_accuracy.value - here.robust_accuracy.value) <= 1 / 32
    assert not verify(tmp_path / "run", wrap(model), from_arrays(x.numpy(), y.numpy()))


@pytest.mark.parametrize("objective", ["pgd(steps=2)", "advgan(width=2)"])
def test_hardening_on_an_accelerator(objective: str, tmp_path) -> None:
    x, _ = rows(wrap(bent(dtype=torch.float32)), 120)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5)).cuda()
    how = {"recipe": "fast(epochs=2)", "objective": objective, "out": tmp_path / "hard"}
    done = harden(net, (x.numpy(), np.arange(120) % 5), threat("linf"), **how)
    assert next(done.model.parameters()).device.type == "cuda"
    assert np.isfinite(done.after.robust_accuracy.value)


@pytest.mark.parametrize("name", ["gan", "wgan-gp", "diffusion"])
def test_a_generator_of_an_accelerator_draws_on_a_cpu(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "wrong", lambda *_: "")
    x = np.random.default_rng(0).random((200, 1, 8, 8), np.float32)
    model = f"{name}(steps=24, rounds=3, width=8, batch_size=16, glance=40, judged=60)"
    made = train.generate(
        from_arrays(x, np.arange(200) % 2), model, out=tmp_path / "made", device="cuda", every=0
    )
    assert made.generator.device.type == "cuda"
    assert np.isfinite(made.quality.fid)
    y, ids = torch.tensor([0, 1]), torch.tensor([3, 5])
    there, here = made.generator.draw(y, ids), load(made.folder).draw(y, ids)
    assert torch.allclose(there.cpu(), here, atol=0.01)
    # on a CPU, of rows drawn on the accelerator
    target = own_classifier(made.folder, load(made.folder))
    assert len(sample(made.generator, 2, target=target)[0]) == 4
