"""A model and its data brought together for an audit, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from holdfast.data import Source
from holdfast.errors import AccessError, InputError, SpecError
from holdfast.evaluation.contract import check_data, check_model, check_range, randomised
from holdfast.evaluation.facts import Names, provenance_of
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import open_for, with_columns
from holdfast.rng import Keys
from holdfast.runs import audits
from holdfast.runs.audits import AuditedData, AuditedModel, Kind
from holdfast.runs.journal import left_as_found, refuse_taken, run_folder
from holdfast.targets import wrap
from holdfast.targets.target import Access, Target, copied


@dataclass(frozen=True)
class Audited:
    """A model of classes, and the sources that it is audited with, by their roles."""

    target: Target  # a copy
    sources: dict[str, Source]  # laid out as the model takes them, the labels numbered

    def written(
        self, kind: type[Kind], folder: Path, names: Names | None, seed: int, **found: Any
    ) -> Kind:
        """The audit of this kind, whose run.json is written into a folder.

        Args:
            names: None: by a command in Python.
            found: its settings, result, verdict and costs.
        """
        facts = self._facts(names or Names(command="holdfast.audit"), seed)
        audits.write(folder, kind(**facts, **found, files={}))
        return audits.read_as(folder, kind)

    def _facts(self, names: Names, seed: int) -> dict[str, Any]:
        """What run.json says of model and data."""
        target = self.target
        described = {**target.describe(), "layout": target.inputs.layout}
        fields = set(AuditedModel.model_fields) & described.keys()
        return {
            "model": AuditedModel(
                spec=names.model or target.name or type(target).__name__,
                arch=names.arch,
                fingerprint=target.fingerprint(),
                **{name: described[name] for name in fields},
            ),
            "data": [
                AuditedData(
                    role=role,
                    spec=source.name,
                    fingerprint=source.fingerprint(),
                    total=len(source),
                    class_names=list(source.class_names or ()) or None,
                )
                for role, source in self.sources.items()
            ],
            "seed": seed,
            "provenance": provenance_of(target, names),
        }


def opened(model: Any, data: dict[str, Any], access: Access) -> Audited:
    """A model and its data, checked as before a measurement.

    Args:
        model: what `holdfast.wrap` takes.
        data: by its role, each what `holdfast.data.as_source` takes.
        access: the least that the audit needs of the model.

    Raises:
        AccessError: the model gives less.
        SpecError: it is none of classes, or is randomised.
        InputError: the data or the model breaks the input contract.
    """
    target, sources = copied(wrap(model)), list[Source]()
    for one in data.values():
        sources.append(open_for(target, one))
        target = with_columns(target, sources[-1])
        target.bind(sources[-1].shape)
    if target.head.truth_task is not None:
        raise SpecError(
            f"an audit takes a model of classes, and the task of this is {target.head.truth_task}."
        )
    if target.inputs.context:
        raise SpecError("audits are of models with one input, and this one takes more.")
    if target.access < access:
        raise AccessError(
            f"this audit needs {access.name.lower()} of the model, which gives "
            f"{target.access.name.lower()}."
        )
    for source in sources:
        check_data(source, target.bounds)
    sources, _ = numbered(target, *sources)
    if randomised(check_model(target, sources[0])):
        raise SpecError(
            "the model answers at random, which no audit can follow; wrap it with --eot 20, whose "
            "mean is audited."
        )
    check_range(target, sources[0])
    return Audited(target, dict(zip(data, sources, strict=True)))


@contextmanager
def audit_folder(out: Path | str | None, *, resumable: bool = False) -> Iterator[Path]:
    """An empty folder for an audit: `out`, or a copy of it where it is a URL; None: a new temporary
    one. An audit that fails leaves it as it was.

    Args:
        resumable: it may hold a journal, which the caller opens; what that has by then stays.

    Raises:
        InputError: it holds something.
    """
    with run_folder(out) as folder, left_as_found(folder, resumable=resumable):
        if not resumable:
            refuse_taken(folder)
        yield folder


def check_class(label: int | None, target: Target, what: str) -> None:
    """Raises InputError: the model has no such class."""
    if label is not None and not 0 <= label < target.task.k:
        raise InputError(
            f"{what} is {label}, but the model has the classes 0 to {target.task.k - 1}."
        )


def chosen(n: int, most: int, seed: int) -> torch.Tensor:
    """The places of at most so many of n rows, in random order: [m] int64."""
    return Keys.of(seed, torch.arange(n)).fold("audit").uniform((), torch.float64).argsort()[:most]
