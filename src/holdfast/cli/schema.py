"""holdfast schema: what the rows of a table may be, as a file to correct."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts
from holdfast.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from holdfast.threats.table.schema import Schema


def infer(
    data: options.Data,
    *,
    rows: options.DataOptions,
    out: Annotated[Path, typer.Option(help="A new file for the schema.", metavar="FILE")] = Path(
        "schema.toml"
    ),
) -> int:
    """Write a first draft of the schema of a table: types, bounds and one-hot groups, as the rows
    show them. Correct it, and give it as --schema."""
    if texts.exists(out):
        raise InputError(f"--out {out} exists; choose a new file.")
    from holdfast.threats.table.schema import Schema

    source = options.open_source(data, **rows)
    columns = source.columns or ()
    x = source.rows(0, len(source))[0]
    schema = Schema.infer(x, [c.name for c in columns] or None, [c.values for c in columns] or None)
    out.write_text(_draft(schema, x, source.name), encoding="utf-8")
    typer.echo(f"schema of {len(schema.names)} columns: {out}. Correct it before it is used.")
    return 0


def _draft(schema: Schema, x: np.ndarray, name: str) -> str:
    """The text of an inferred schema, with what was seen of each column, and what to decide."""
    from holdfast.threats.table.infer import seen

    head, *others = schema.text().splitlines()
    count = len(schema.features)
    features = [
        f"{line}  # {seen(x[:, j], feature)}"
        for j, (line, feature) in enumerate(zip(others, schema.features, strict=False))
    ]
    lines = [
        f"# A first draft from {len(x):,} rows of {' '.join(name.split())}: correct it.",
        "# What may an adversary change? Say mutability = 'fixed', 'increase' or 'decrease' where",
        "# a feature is not free. The bounds are those of these rows. Which relations always hold?",
        "",
        head,
        *features,
        *others[count:],
        "",
        "[relations]",
        '# opened = "open_accounts <= all_accounts"',
        "",
        "[derived]",
        '# ratio = "loan / income"',
    ]
    return "\n".join(lines) + "\n"
