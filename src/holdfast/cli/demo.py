"""holdfast demo: train, attack, harden and compare on embedded data, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import writing
from holdfast.cli.harden import echo_epoch

if TYPE_CHECKING:
    from holdfast.training.state import Epoch

THREAT = "linf(0.2)"


def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.", metavar="FOLDER")] = Path(
        "runs/demo"
    ),
    recipe: Annotated[
        str, typer.Option(help="How to harden (list recipes).", metavar="RECIPE")
    ] = "standard",
) -> int:
    """Train a small network on scikit-learn's digits, break it, harden it, attack it again, and
    compare."""
    import torch

    from holdfast.data import open_data
    from holdfast.evaluation.facts import Names
    from holdfast.evaluation.verify import verify
    from holdfast.hardening import recipes
    from holdfast.hardening.harden import harden
    from holdfast.reporting import paired
    from holdfast.targets import TorchTarget, wrap
    from holdfast.targets.demo import demo_net
    from holdfast.training.train import train

    recipes.parse(recipe)  # a mistake in it is refused before the training
    digits, test = open_data("digits", split="train"), open_data("digits")
    torch.set_num_threads(1)  # for a network this small a second thread only waits
    torch.manual_seed(0)
    typer.echo(f"1. train a small network on {len(digits):,} digits", err=True)
    undefended = wrap(demo_net())
    assert isinstance(undefended, TorchTarget)
    net = train(undefended, digits)
    typer.echo(
        f"2. attack it on {len(test)} other digits, under {THREAT}; harden it; attack it again",
        err=True,
    )
    with writing.progress_bar() as on_progress:
        made = harden(
            net,
            digits,
            THREAT,
            recipe=recipe,
            test=test,
            out=out,
            resume=True,
            on_progress=on_progress,
            on_epoch=_every_tenth,
            names=Names("undefended", None, "test", f"holdfast demo --out {out}"),
        )
    typer.echo("3. verify the stored evidence, from the folders alone", err=True)
    wrong = verify(out / "before", wrap(net), test) + verify(out / "after", wrap(made.model), test)
    typer.echo("\n".join(wrong) or "   it is confirmed.", err=True)
    writing.show(paired.summary(made.comparison))
    typer.echo(
        f"weights: {made.file}\nreport: {made.report()}, with links to those of the two runs",
        err=True,
    )
    return int(bool(wrong))


def _every_tenth(line: Epoch) -> None:
    if line.epoch % 10 == 0 or line.note:
        echo_epoch(line)
