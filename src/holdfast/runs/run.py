"""A finished run: its folder, and what it says."""

from __future__ import annotations

import html
import importlib
import math
import os
import shutil
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from holdfast.data.files import printable
from holdfast.errors import InputError
from holdfast.intervals import Interval
from holdfast.runs import store
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import Manifest, Metrics, Pair, Verdict
from holdfast.runs.remote import fetched


class Run:
    """Opens a run folder, or a copy of one at a URL such as `s3://bucket/run`. The folder of a run
    made without `out` is temporary and goes with this object."""

    def __init__(self, folder: Path | str, *, temporary: bool = False) -> None:
        self.folder = fetched(folder)
        if temporary:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @cached_property
    def manifest(self) -> Manifest:
        return store.read_manifest(self.folder)

    @cached_property
    def samples(self) -> pa.Table:
        """One row a sample; the columns are those of `holdfast.runs.metrics.SAMPLES`."""
        return store.read_samples(self.folder)

    def examples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The stored adversarial examples, shard by shard: ids [m], inputs [m, *shape]."""
        # a generator holds this object, and so its temporary folder, as long as it is read
        yield from store.examples(self.folder)

    def to_pandas(self) -> Any:
        """`samples` as a DataFrame.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            return self.samples.to_pandas()
        except ModuleNotFoundError as error:
            raise InputError(
                "to_pandas needs pandas, which is not installed: pip install pandas. `samples` is "
                "the same table without it."
            ) from error

    def report(self, *, open: bool = False) -> Path:
        """The page report.html in the folder, written where it is not there yet: see
        `holdfast.reporting`."""
        # The pages stand above the runs, which import nothing of them.
        return importlib.import_module("holdfast.reporting.pages").report(self, open=open)

    @property
    def unfinished(self) -> bool:
        """Whether time ran out before everything was run, so that `resume` goes on."""
        return Journal(self.folder).begun

    @property
    def metrics(self) -> Metrics:
        return self.manifest.metrics

    @property
    def clean_accuracy(self) -> Interval:
        return self.metrics.clean_accuracy

    @property
    def robust_accuracy(self) -> Interval:
        return self.metrics.robust_accuracy

    @property
    def certified_accuracy(self) -> Interval | None:
        """What is proved: the robust accuracy lies above it; None where nothing was certified."""
        return self.metrics.certified_accuracy

    @property
    def precision(self) -> Pair:
        """Macro average over classes or labels, on clean inputs (`clean`) and under attack
        (`attacked`)."""
        return self.metrics.precision

    @property
    def recall(self) -> Pair:
        """As `precision`."""
        return self.metrics.recall

    @property
    def f1(self) -> Pair:
        """As `precision`."""
        return self.metrics.f1

    @property
    def verdict(self) -> Verdict:
        return self.manifest.verdict

    def _repr_html_(self) -> str:
        """A small table, for a notebook; below it the page of the run, once it is written."""
        manifest, verdict = self.manifest, self.verdict
        lines = {
            "model": manifest.model.spec,
            "data": f"{manifest.data.spec}, {self.robust_accuracy.n:,} rows",
            "threat": manifest.asked,
            "protocol": f"{manifest.protocol.name}, version {manifest.protocol.version}",
            "clean accuracy": str(self.clean_accuracy),
            "robust accuracy": str(self.robust_accuracy),
            "verdict": f"{verdict.status}. {verdict.reason}".rstrip(),
            "folder": str(self.folder),
        }
        if math.isinf(manifest.threat.eps):
            lines["median size"] = _figure(self.metrics.sizes.median)
            del lines["robust accuracy"]
        rows = "".join(
            f"<tr><th style='text-align:left;white-space:nowrap'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(printable(text))}</td></tr>"
            for name, text in lines.items()
        )
        page, shown = self.folder / "report.html", ""
        if page.is_file():  # it may be of others: nothing in it runs
            text = html.escape(store.read_bytes(page).decode("utf-8", "replace"))
            style = "width:100%;height:40em;border:0"
            shown = f"<iframe sandbox style='{style}' srcdoc='{text}'></iframe>"
        return f"<table>{rows}</table>{shown}"

    def __repr__(self) -> str:
        m, manifest = self.metrics, self.manifest
        found = f"robust {_figure(m.robust_accuracy.value)}"
        if m.certified_accuracy is not None:
            found = f"proved {_figure(m.certified_accuracy.value)}"
            if manifest.trials:
                found = f"{found}, not broken {_figure(m.robust_accuracy.value)}"
        if math.isinf(manifest.threat.eps):
            found = f"median size {_figure(m.sizes.median)}"
        return (
            f"Run({str(self.folder)!r}: clean {_figure(m.clean_accuracy.value)}, {found} under "
            f"{manifest.asked}, n={m.robust_accuracy.n}, {self.verdict.status})"
        )


def folder_of(run: Run | os.PathLike[str] | str) -> Path:
    """The folder of a run that is open, or named; of a URL a copy, as `remote.fetched`."""
    return run.folder if isinstance(run, Run) else fetched(os.fspath(run))


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
