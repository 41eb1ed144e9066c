# pyright: strict
"""Uses of the public names as people write them. `make lint` checks their types, and runs none."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from torch import nn

import holdfast as hf


def measure(model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    result = hf.attack(model, x, y, "linf(8/255)", "pgd(steps=40)", seed=1)
    assert_type(result, hf.AttackResult)
    assert_type(
        hf.attack(model, x, y, hf.Threat.l2(0.5), epsilons=[0.1, 0.2]), list[hf.AttackResult]
    )
    attack = hf.attacks.PGD(steps=40, step_size=0.05, loss="margin")
    assert_type(attack, hf.attacks.PGD)
    assert_type(attack(model, x, y, "linf(0.3)"), hf.AttackResult)
    assert_type(hf.attacks.FGSM(loss="ce"), hf.attacks.PGD)
    assert_type(hf.attacks.AutoAttack()(model, x, y, "linf(0.3)").summary(), str)
    assert_type(hf.attacks.CW()(model, x, y, "l2(1)", epsilons=[0.5, 1]), list[hf.AttackResult])

    target = hf.wrap(model, bounds=(0, 255), preprocess=[hf.Resize(32, 32)], layout="nhwc")
    run = hf.evaluate(
        target, (x, y), "linf(8/255)", protocol="quick", on_progress=lambda p: print(p.share)
    )
    assert_type(run, hf.Run)
    assert_type(run.robust_accuracy, hf.Interval)
    assert_type(run.robust_accuracy >= 0.6, bool)
    assert_type(1 - run.robust_accuracy, float)
    assert_type(float(run.clean_accuracy), float)
    assert_type(run.report(open=True), Path)
    for ids, found in run.examples():
        print(ids.shape, found.shape)
    assert_type(hf.verify(run, model, (x, y)), list[str])
    assert_type(hf.merge([run, "runs/b"], "runs/whole"), hf.Run)
    print(hf.compare(run, "runs/b"), hf.as_source((x, y)).fingerprint())


def harden(model: nn.Module, data: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    losses: list[float] = []
    trained = hf.train(model, data, epochs=3, on_epoch=lambda epoch: losses.append(epoch.loss))
    hard = hf.harden(trained, data, "linf(8/255)", recipe="standard", test=data, out="runs/hard")
    assert_type(hard.after, hf.Run)
    assert_type(hard.after.robust_accuracy > hard.before.robust_accuracy, bool)
    made = hf.generate(data, "gan(steps=2000)", on_round=lambda one: print(one.fid))
    assert_type(made.folder, Path)
    try:
        hf.load("net.onnx", batch_size=64)
    except hf.InputError as error:
        print(error)
