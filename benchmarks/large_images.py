"""What an evaluation of large images asks and holds apart from its attacks.

`holdfast.evaluate` in a fresh process for each network: 40 images of 3x1024x1024 with a tiny
convolutional network, and ResNet-50, ViT-B/16, ConvNeXt-T and Swin-T of the transformers library at
3x224x224. Weights and images are random, labels the network's own answers. A hook counts the rows
of every forward; those that the run does not charge to its attacks are the overhead. A part of it
says what the model is, once; the rest grows with the rows. Peak memory is what the kernel says,
less what is resident before the evaluation, with model and data open.

The goals: fewer than 2 forwards a row, 3 GB for the 40 images, and 8 GB in all for the others.

With --protocol standard and without a budget (--queries 0) it is a whole run, and what the estimate
said of it next to what it took: hours on a CPU for each robust row. --only NAME runs one network,
--eps EPS at another size, in 255ths.

    python benchmarks/large_images.py [--rows 8] [--queries 6] [--protocol quick]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import options, save, table
from torch import Tensor, nn

import holdfast
from holdfast import memory
from holdfast.evaluation.estimate import Forecast

HERE = Path(__file__).resolve()


class Logits(nn.Module):
    """The logits of a network of transformers; it counts the rows of every forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, [0]
        net.register_forward_hook(self.note)

    def note(self, _: nn.Module, given: tuple[Tensor, ...], out: Any) -> None:
        self.seen[0] += len(getattr(out, "logits", out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return getattr(out, "logits", out)


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.Conv2d(8, 8, 5, 4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def of_transformers(name: str) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=1000)
        return getattr(transformers, f"{name}ForImageClassification")(config)

    return made


# network, side, rows (0: --rows), eps in 255ths
TASKS: dict[str, tuple[Callable[[], nn.Module], int, int, float]] = {
    "tiny, 40 of 3x1024x1024": (tiny, 1024, 40, 2.0),
    "ResNet-50": (of_transformers("ResNet"), 224, 0, 8.0),
    "ViT-B/16": (of_transformers("ViT"), 224, 0, 0.25),
    "ConvNeXt-T": (of_transformers("ConvNext"), 224, 0, 0.25),
    "Swin-T": (of_transformers("Swin"), 224, 0, 0.25),
}


def resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def once(name: str, n: int, queries: int, protocol: str, size: float) -> None:
    """One evaluation; prints what it took as JSON."""
    memory.manage()  # as the command line does
    make, side, rows, eps = TASKS[name]
    n, eps = rows or n, size or eps
    torch.manual_seed(0)
    net = Logits(make().eval())
    x = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    with torch.no_grad():
        y = torch.cat([net(torch.from_numpy(x[i : i + 1]) / 255) for i in range(n)]).argmax(1)
    target = holdfast.wrap(net, shape=(3, side, side))
    counter = target.model.seen
    before, counter[0], began = resident(), 0, time.process_time()
    said: list[tuple[float, float, float, float]] = []

    def note(cost: Forecast) -> None:
        said.append((time.process_time() - began, time.monotonic(), cost.passes, cost.seconds))

    with tempfile.TemporaryDirectory() as folder:
        run = holdfast.evaluate(
            *(target, (x, y.numpy()), f"linf({eps}/255)"),
            **{"protocol": protocol, "max_queries": queries or None, "out": Path(folder, "run")},
            on_estimate=note if protocol != "quick" else None,
        )
        costs, samples = run.manifest.costs, run.samples
    over, judged = counter[0] - costs.forwards, costs.judge_forwards
    found = {
        "rows": n,
        "broken": samples.column("status").to_pylist().count("broken"),
        "batch": run.manifest.settings["batch_size"],
        "attacks": costs.forwards,
        "judge": judged,
        "once": over - judged,
        "seconds": time.process_time() - began,
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if said:
        made, at, passes, seconds = said[-1]
        probe = run.manifest.probe_costs
        taken = (
            costs.forwards
            + costs.backwards
            + judged
            - len(said[1:]) * (probe.forwards + probe.backwards)
        )
        found["estimate"] = (
            f"eps {eps}/255: the estimate took {made:.0f} CPU s and said {passes * n:.0f} passes "
            f"in {seconds:.0f} s; they were {taken} in {time.monotonic() - at:.0f}"
        )
    print(json.dumps(found))


def main() -> None:
    also = {
        "--inner": {"action": "store_true", "help": "in this process"},
        "--only": {"default": "", "help": "one network"},
        "--protocol": {"default": "quick"},
        "--eps": {"type": float, "default": 0.0},
    }
    chosen = options(__doc__, also=also, rows=8, queries=6)
    if chosen.inner:
        asked = (chosen.rows, chosen.queries, chosen.protocol, chosen.eps)
        return once(chosen.only, *asked)
    lines, estimates = [], []
    for name in [chosen.only] if chosen.only else TASKS:
        numbers = ("--rows", str(chosen.rows), "--queries", str(chosen.queries))
        numbers += ("--protocol", chosen.protocol, "--eps", str(chosen.eps))
        command = [sys.executable, str(HERE), "--inner", "--only", name, *numbers]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        f = json.loads(done.stdout.splitlines()[-1])
        lines.append(
            [
                *(name, f["rows"], f["broken"], f["batch"], f"{f['attacks'] / f['rows']:.2f}"),
                *(f"{f['judge'] / f['rows']:.2f}", f["once"], f"{f['peak'] - f['before']:.0f}"),
                *(f"{f['peak']:.0f}", f"{f['seconds']:.0f}"),
            ]
        )
        print(*lines[-1], sep=" | ", flush=True)
        if "estimate" in f:
            estimates.append(f"- {name}, {f['estimate']}.")
    how = f"`{chosen.protocol}`" + " with a budget a row" * bool(chosen.queries)
    texts = [f"{how}, {TEXT}", table(HEAD, lines), "\n".join(estimates)]
    save(chosen.save, "Large images", [text for text in texts if text])


TEXT = (
    "2 cores, CPU seconds. Forwards of the attacks and of the judge "
    "are a row's; the judge asks one of each row and three of each broken one. Those of `once` "
    "say what the model is, whatever the number of rows. MiB are those above what is resident "
    "before the evaluation, and the peak of the process."
)
HEAD = ["network", "rows", "broken", "rows a pass", "forwards of attacks", "of the judge", "once"]
HEAD += ["MiB more", "peak MiB", "CPU s"]


if __name__ == "__main__":
    main()
