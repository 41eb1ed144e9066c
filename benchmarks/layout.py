"""Channels-last against contiguous: the time of a gradient step and of a forward, through
TorchTarget.

Float32 convolutional models on a CPU. Both targets are the same frozen copy of one model; a step is
`linearize` and a pullback, with contiguous inputs as attacks have them, so the conversion is in the
price.

    python benchmarks/layout.py [--batch 64] [--repeats 7] [--threads 1]
"""

from __future__ import annotations

from functools import partial

import torch
from common import CASES, case, interleaved, options, resnet18, save, table
from torch import Tensor, nn

from holdfast.targets import TorchTarget

MODELS = {
    "advertorch LeNet-5": ("torch_advertorch_lenet5", "adv"),
    "trades": ("torch_trades_mnist",),
    "kw": ("torch_kw_mnist",),
    "cnn_a, CIFAR-10": ("torch_cnn_a_cifar", "adv"),
    "marabou medium": ("torch_marabou_cifar", "medium"),
    "sigmoid": ("torch_sigmoid_cifar",),
}


def targets(model: nn.Module, shape: tuple[int, ...]) -> dict[str, TorchTarget]:
    """The model in both layouts."""
    last, contiguous = (TorchTarget(model, shape=shape) for _ in range(2))
    contiguous.channels_last = False
    contiguous.model.to(memory_format=torch.contiguous_format)  # pyright: ignore
    return {"last": last, "contiguous": contiguous}


def step(target: TorchTarget, x: Tensor, times: int) -> None:
    for _ in range(times):
        z, pullback = target.linearize(x)
        pullback(torch.ones_like(z))


def forward(target: TorchTarget, x: Tensor, times: int) -> None:
    for _ in range(times):
        target.scores(x)


def main() -> None:
    chosen = options(__doc__, repeats=7, batch=64)
    models = {name: case(*place) for name, place in MODELS.items() if (CASES / place[0]).is_dir()}
    models["ResNet-18, random weights"] = resnet18()
    rows: list[list[object]] = []
    for name, model in models.items():
        channels = next(part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d))
        shape = (1, 28, 28) if channels == 1 else (3, 32, 32)
        both = targets(model, shape)
        times, batches = (
            (1, [chosen.batch])
            if name.startswith("ResNet")
            else (5, [chosen.batch, 4 * chosen.batch])
        )
        for batch in batches:
            x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
            tasks = {
                f"{kind.__name__} {layout}": partial(kind, t, x, times)
                for kind in (step, forward)
                for layout, t in both.items()
            }
            interleaved(tasks, 1)  # warm-up
            spent = {
                task: 1e3 * got.cpu / times / batch
                for task, got in interleaved(tasks, chosen.repeats).items()
            }
            contiguous, last = spent["step contiguous"], spent["step last"]
            ahead = spent["forward contiguous"] / spent["forward last"]
            rows.append(
                [
                    name,
                    batch,
                    f"{contiguous:.3f}",
                    f"{last:.3f}",
                    f"{contiguous / last:.2f}",
                    f"{ahead:.2f}",
                ]
            )
    head = "model, batch, contiguous ms, channels-last ms, times faster, forward alone".split(", ")
    first = (
        f"CPU milliseconds of a gradient step an image, medians of {chosen.repeats} interleaved "
        "rounds."
    )
    absent = (
        ""
        if len(models) == len(MODELS) + 1
        else " The shared cases are absent, so their models are left out."
    )
    save(chosen.save, "Channels-last against contiguous", [first + absent, table(head, rows)])


if __name__ == "__main__":
    main()
