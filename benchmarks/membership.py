"""What regularisation and early stopping change of membership: the same small CNN trained by
different recipes on 1,000 images of CIFAR-10, audited with reference models that the audit trains.

Members and non-members are drawn at random from the shared training images.

    python benchmarks/membership.py [--epochs 40] [--references 4]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from common import case, options, save, table
from torch import Tensor, nn

from holdfast.audit.membership import audit_membership
from holdfast.audit.references import ToTrain
from holdfast.runs.audits import MembershipResult
from holdfast.training.train import train

Rows = tuple[np.ndarray, np.ndarray]
Change = Callable[[Tensor], Tensor]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)),
        *(nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10)),
    )


def to_the_end(
    net: nn.Module, rows: Rows, epochs: int, decay: float = 0.0, change: Change | None = None
) -> nn.Module:
    """Trained for all epochs, with decoupled weight decay and augmentation where they are given."""
    x, y = map(torch.from_numpy, rows)
    adam = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=decay)
    net.train()
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(64):
            seen = x[at] if change is None else change(x[at])
            adam.zero_grad()
            nn.functional.cross_entropy(net(seen), y[at]).backward()
            adam.step()
    return net.eval()


def flipped_and_shifted(x: Tensor) -> Tensor:
    """Half of the images flipped, and all of a batch shifted by up to 4 pixels."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    down, right = torch.randint(0, 9, (2,)).tolist()
    return nn.functional.pad(x, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]


def recipes(rows: Rows, epochs: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        f"{epochs} epochs to the end": lambda: to_the_end(network(), rows, epochs),
        "weight decay 1": lambda: to_the_end(network(), rows, epochs, decay=1.0),
        "dropout 0.5": lambda: to_the_end(network(0.5), rows, epochs),
        "flips and shifts": lambda: to_the_end(network(), rows, epochs, change=flipped_and_shifted),
        "the best epoch of `holdfast train`": lambda: train(network(), rows, epochs=epochs),
        "dropout, flips and shifts, a quarter of the epochs": lambda: to_the_end(
            network(0.5), rows, epochs // 4, change=flipped_and_shifted
        ),
    }


def line(name: str, result: MembershipResult) -> list[str]:
    areas = [str(attack.auc) for attack in result.attacks]
    best = max(
        (rate.true_positives for attack in result.attacks for rate in attack.rates[:1]),
        key=lambda share: -1.0 if share is None else float(share),
    )
    accuracy = [f"{float(result.member_accuracy):.1%}", f"{float(result.non_member_accuracy):.1%}"]
    return [name, *accuracy, *areas, str(best)]


def main() -> None:
    asked = options(__doc__, epochs=40, references=4)
    x, y = case("data_cifar10", "train2500")
    x, y = x.transpose(0, 3, 1, 2).astype(np.float32) / 255, y.astype(np.int64)
    drawn = np.random.default_rng(0).permutation(len(x))  # in the file they are sorted by class
    members, others = ((x[at], y[at]) for at in (drawn[:1000], drawn[1000:2000]))
    lines, began = list[list[str]](), time.process_time()
    for name, make in recipes(members, asked.epochs).items():
        references = ToTrain(asked.references, epochs=asked.epochs)
        audit, _ = audit_membership(make(), members, others, references=references)
        lines.append(line(name, audit.result))
        print(*lines[-1], f"{time.process_time() - began:.0f} CPU s", flush=True)
    heads = ["recipe", "accuracy on members", "on others", "AUC of the loss", "of RMIA", "of LiRA"]
    parts = [
        f"A small CNN, 1,000 members and 1,000 others of CIFAR-10, {asked.references} references "
        "trained by the audit on halves of both.",
        table([*heads, "most found at 1 % false positives"], lines),
        f"{time.process_time() - began:.0f} CPU seconds in all.",
    ]
    save("membership", "What regularisation and early stopping change of membership", parts)


if __name__ == "__main__":
    main()
