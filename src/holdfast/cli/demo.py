"""holdfast demo: the whole story on embedded data, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.evaluate import conclude, progress_bar

THREAT = "linf(0.1)"


def demo(out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo")) -> int:
    """Train a small network on scikit-learn's digits, measure how robust it is, and check the evidence."""
    if (out / "run.json").exists():
        typer.echo(f"{out} holds an earlier demo; it is shown again. Choose another --out for a new one.", err=True)
        from holdfast.evaluate import Run

        return conclude(Run(out), [], strict=False, json=False)
    import torch

    from holdfast import evaluate
    from holdfast.data import open_data
    from holdfast.evaluate import Names
    from holdfast.evaluate.verify import verify
    from holdfast.harden.trainer import train
    from holdfast.targets import wrap
    from holdfast.targets.demo import demo_net

    typer.echo("1. train a small network on 1,437 digits", err=True)
    torch.set_num_threads(1)  # for a network this small a second thread only waits
    torch.manual_seed(0)
    net = train(demo_net(), open_data("digits", split="train"), epochs=30)
    typer.echo(f"2. attack it on 360 others, under {THREAT}", err=True)
    digits = open_data("digits")
    with progress_bar() as watch:
        run = evaluate(
            wrap(net),
            digits,
            THREAT,
            curve=(0.05, 0.15),
            out=out,
            resume=True,
            watch=watch,
            names=Names("demo", None, "test", f"holdfast demo --out {out}"),
        )
    typer.echo("3. judge the stored evidence again, from the folder alone", err=True)
    wrong = verify(out, wrap(net), digits)
    typer.echo("   it holds." if not wrong else "\n".join(wrong), err=True)
    return conclude(run, [], strict=False, json=False) or int(bool(wrong))
