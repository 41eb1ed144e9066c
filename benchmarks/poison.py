"""What poisoned rows make of a small CNN on MNIST, and what `audit data` finds of them.

Accuracy and success on the 10,000 test images; the audit is of the 60,000 training rows, by the
seed that they were poisoned with.

    python benchmarks/poison.py
"""

from __future__ import annotations

import time

import torch
from common import mnist, mnist_train, save, table
from torch import nn

from holdfast.audit.training_data import audit_data
from holdfast.data import as_source
from holdfast.targets import wrap
from holdfast.training.poison import effect
from holdfast.training.train import train

POISONS = (
    None,
    "badnets(share=0.1, target=0)",
    "badnets(share=0.01, target=0, size=5)",
    "badnets(share=0.05, target=0, size=5)",
    "badnets(share=0.1, target=0, size=5)",
    "blended(share=0.1, target=0)",
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def main() -> None:
    rows, (x, y) = mnist_train(60_000), mnist(10_000)
    lines = list[tuple[str, ...]]()
    for poison in POISONS:
        model = wrap(network())
        trained = train(model, rows, poison=poison, epochs=4, batch_size=128)
        did = effect(model, trained, (x, y), poison or str(POISONS[1]))
        began = time.process_time()
        result = audit_data(wrap(trained), as_source(rows), poison=poison)[0].result
        took, planted = time.process_time() - began, result.planted
        found = [str(planted.found), str(planted.false_alarms)] if planted else ["", ""]
        flagged = ", ".join(str(one.label) for one in result.labels if one.flagged)
        success = str(did.success)
        lines.append((poison or "none", str(did.clean), success, flagged, *found, f"{took:.0f}"))
        print(*lines[-1], flush=True)
    heads = "poison", "clean accuracy", "trigger success", "labels flagged", "planted rows found"
    heads = (*heads, "other rows flagged", "CPU s of the audit")
    save(
        "poison", "Poisoned training data, and what `audit data` finds of it", [table(heads, lines)]
    )


if __name__ == "__main__":
    main()
