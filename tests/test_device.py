"""What runs on an accelerator says what a CPU says. (In float64, on models whose rows do not feel their neighbours.)"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from laws.catalogue import every, short
from laws.world import bent, rows, threat, wrap

import holdfast
from holdfast.attacks import run
from holdfast.data import from_arrays
from holdfast.evaluate import judge
from holdfast.evaluate.verify import verify
from holdfast.harden import harden

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator here")


@every
def test_an_attack_finds_on_an_accelerator_what_it_finds_on_a_cpu(name: str, norm: str) -> None:
    here, there = wrap(bent()), wrap(bent(), device="cuda")
    x, y = rows(here, 12, wrong=True)
    attack, limits = short(name), threat(norm)
    mine, its = run(attack, here, x, y, limits), run(attack, there, x, y, limits)
    assert its.best.device.type == "cuda"
    fell = its.broken.cpu()
    assert judge.within(here, limits, x, its.best.cpu())[0][fell].all()
    # Sums may differ in their last bits, and a search with many branches may then take another: one row may.
    assert int((mine.broken != fell).sum()) <= 1


def test_an_evaluation_on_an_accelerator_is_verified_on_a_cpu(tmp_path) -> None:
    model = bent(dtype=torch.float32)
    x, y = rows(wrap(model), 32)
    there = holdfast.evaluate(wrap(model, device="cuda"), (x.numpy(), y.numpy()), "linf(0.08)", out=tmp_path / "run")
    here = holdfast.evaluate(wrap(model), (x.numpy(), y.numpy()), "linf(0.08)")
    assert abs(there.robust_accuracy.value - here.robust_accuracy.value) <= 1 / 32
    assert not verify(tmp_path / "run", wrap(model), from_arrays(x.numpy(), y.numpy()))


def test_hardening_on_an_accelerator(tmp_path) -> None:
    x, y = rows(wrap(bent(dtype=torch.float32)), 64)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5)).cuda()
    done = harden(net, (x.numpy(), y.numpy()), threat("linf"), recipe="fast(epochs=2)", out=tmp_path / "hard")
    assert next(done.model.parameters()).device.type == "cuda"
    assert np.isfinite(done.after.robust_accuracy.value)
