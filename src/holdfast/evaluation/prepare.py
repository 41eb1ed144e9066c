"""Model, data and threat brought together: what every measurement starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast import spec
from holdfast.attacks.attack import Attack, check_fit
from holdfast.attacks.trial import Trial
from holdfast.bounds.tree_models import has_trees
from holdfast.data import Source, as_source
from holdfast.data.laid import laid_as
from holdfast.data.part import in_random_order
from holdfast.data.source import group_names
from holdfast.diagnostics.checks import FOLLOWED
from holdfast.diagnostics.detectors import first_answers, no_place
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.diagnostics.scales import one_size
from holdfast.errors import InputError, SpecError, listed
from holdfast.evaluation import goals, judge, protocols
from holdfast.evaluation.chunk import chunks, growing_chunks
from holdfast.evaluation.contract import (
    averaged,
    check_data,
    check_model,
    check_range,
    randomised,
)
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.protocols import Protocol
from holdfast.evaluation.tables import broken_rows, in_table
from holdfast.evaluation.truths import since, with_truths
from holdfast.evaluation.until import Until
from holdfast.runs.manifest import Finding
from holdfast.targets.adapter import Adapter
from holdfast.targets.batch import read
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.preprocess import BGR, Normalize, Resize
from holdfast.targets.target import Target, copied
from holdfast.targets.truth import objects_at
from holdfast.targets.wrappers import ExpectationOverTransformation, innermost
from holdfast.threats import spatial
from holdfast.threats.patch import Patch
from holdfast.threats.spatial import Spatial
from holdfast.threats.table.schema import Schema
from holdfast.threats.threat import Targeted, Threat, as_threat
from holdfast.threats.transform import Transform


@dataclass(frozen=True)
class Prepared:
    """A model, its data and a threat that fit each other, and the attacks that are to be run."""

    target: Target  # a copy; asked with the truth of each row where its task needs it
    source: Source  # laid out as the model takes them, the labels numbered
    threat: Threat
    protocol: Protocol
    gradient_sources: GradientSources  # what trials may attack in place of the target
    rows: tuple[int, int]  # of the source: first, and past the last
    groups: np.ndarray | None = None  # of all rows of the source, where they have some
    noted: list[Finding] = field(default_factory=list)  # of the model and of the labels
    steady: bool = False  # two answers of the model agree but for rounding: see the judge
    until: Until | None = None  # when the run ends before its last row

    @property
    def chunks(self) -> list[tuple[int, int]]:
        divide = chunks if self.until is None else growing_chunks
        return divide(self.rows, self.source.shape)

    @property
    def attacks(self) -> list[Attack]:
        return [trial.attack for trial in self.protocol.trials]


def prepare(
    target: Target,
    data: Any,
    threat: Threat | str,
    protocol: str = "standard",
    attacks: Sequence[str | Attack | Trial] = (),
    samples: int | tuple[int, int] | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    until: Until | None = None,
    seed: int = 0,
) -> Prepared:
    """Bring model, data and threat together, and hold them against the contract: see `evaluate`.
    With `until` the rows are in random order, by the seed.

    What the texts say is refused before any row is read, and the data before the model is asked.
    A randomised model is measured by its mean under protocols that answer findings.

    Raises:
        InputError: the data or the model breaks the input contract.
        SpecError: the protocol, an attack or the threat cannot be understood.
    """
    own = protocols.chosen(attacks) if attacks else None
    target = copied(target)
    if isinstance(threat, Threat):
        target = in_table(target, threat)
    source = open_for(target, data)
    target = with_columns(target, source)
    groups = groups_of(source, groups)
    movement = spatial.parse(threat) if isinstance(threat, str) else None
    if movement is not None:
        threat = threat_of_movement(movement, target, source.shape)
    threat = as_threat(threat)
    if until is not None:
        source, groups, threat = shuffled(source, groups, threat, seed)
    threat, texts = with_texts_fixed(threat, source)
    threat = threat.in_layout(target.inputs.layout)
    target, source = with_truths(target, source, threat)
    if not attacks:
        protocols.asked(protocol, threat, target.access)  # which may refuse the name
    rows = rows_asked(samples, len(source), source.name)
    if until is not None:
        until.check_rows(rows[1] - rows[0])
        if not threat.bounded:
            raise SpecError(
                f"until stops by the interval of the robust accuracy, but {threat} has no eps, and "
                "so no robust accuracy; give an eps, or leave out until."
            )
    check_data(source, target.bounds, boxed=threat.schema is None)
    (source,), labels = numbered(target, source)
    labels += broken_rows(source, threat, target.batcher.dtype)
    noted = check_model(target, source)
    usual = threat.additive and not target.inputs.context and not attacks
    drawn = randomised(noted) and protocol in FOLLOWED and usual and target.cost.draws == 1
    if drawn:
        target = ExpectationOverTransformation(target)
        noted = averaged(check_model(target, source))
    if threat.schema is None:
        check_range(target, source)
    source = since(target, source)
    # the first inputs have shown what a plain function gives
    trees = threat.schema is not None and has_trees(target)
    task = str(target.describe().get("task", "classes"))
    sources = GradientSources(target, threat, source)
    steps = sources.steps if own is None and protocol in protocols.STEPPED else ""
    kind = {"drawn": drawn, "trees": trees, "task": task, "steps": steps}
    own = own or protocols.asked(protocol, threat, target.access, **kind)
    noted += [*labels, *texts, *one_size(source, threat), *first_answers(target, source)]
    noted += no_place(target, threat, source)
    steady = not randomised(noted) and judge.is_steady(target, read(source, 0, judge.FEW)[0])
    return Prepared(target, source, threat, own, sources, rows, groups, noted, steady, until)


def groups_of(source: Source, given: Sequence[Any] | np.ndarray | None) -> np.ndarray | None:
    """The name of the group of each row: those given, else the source's own."""
    return source.groups if given is None else group_names(given, len(source), source.name)


def shuffled(
    source: Source, groups: np.ndarray | None, threat: Threat, seed: int
) -> tuple[Source, np.ndarray | None, Threat]:
    """The rows in random order, their groups, and the threat to them, whose classes to reach may be
    one a row."""
    part = in_random_order(source, seed)
    goal = getattr(threat.goal, "t", None)
    if isinstance(goal, torch.Tensor) and len(goal) == len(source):  # else it is refused later
        threat = threat.of_rows(torch.from_numpy(part.ids))
    return part, None if groups is None else groups[part.ids], threat


def sizes_of(epsilons: Sequence[float] | None) -> list[float]:
    """The sizes that are asked for in addition to, or in place of, the threat's.

    Raises:
        InputError: a list of none.
    """
    sizes = [] if epsilons is None else [float(eps) for eps in epsilons]
    if epsilons is not None and not sizes:
        raise InputError("epsilons is empty; give at least one size, or leave it out.")
    return sizes


def check_threat(ready: Prepared, curve: Sequence[float] = ()) -> None:
    """Refuse a threat, or further eps, that these rows cannot have.

    Raises:
        InputError: eps or goals are not one a row.
        SpecError: they do not fit the inputs, the bounds or the model's classes.
    """
    target, threat, box = ready.target, ready.threat, ready.target.bounds
    form = threat.form(target.shape or ())
    if curve and threat.spatial is not None and isinstance(threat.spatial.transform, Patch):
        raise SpecError(
            f"a curve runs at further eps, but {spec.write(threat.spatial.transform)} has one "
            "size; give one run a side instead."
        )
    if not all(map(math.isfinite, curve)):
        raise SpecError(
            "the curve holds inf, but a robust accuracy needs a finite eps; give inf as the "
            "threat's own."
        )
    if threat.spatial is not None and threat.spatial.avoids:
        objects_at(target, read(ready.source, 0, 1)[0])
    goals.check(threat, target, len(ready.source), ready.source.name)
    threat.check_shape(form)
    threat.check_grid(box, moves=bool(target.inputs.context))
    for one in (threat, *(threat.at(eps) for eps in curve)):
        one.check_box(box.low, box.high, form)
    if isinstance(threat.eps, torch.Tensor) and len(threat.eps) != len(ready.source):
        raise InputError(
            f"eps holds {len(threat.eps)} sizes, but {ready.source.name} has {len(ready.source)} "
            "rows; give one a row."
        )


def check_trials(ready: Prepared, budget: int | None = None) -> None:
    """Refuse attacks that could not be run as they were asked for, before any pass is spent.

    Raises:
        AccessError: an attack needs more than the target gives.
        SpecError: an attack does not fit the threat, the classes or the budget of a row.
    """
    aimed, wrong_classes = isinstance(ready.threat.goal, Targeted), ready.target.task.k - 1
    for trial in ready.protocol.trials:
        if aimed and trial.targets:
            raise SpecError(
                f"targets aims at classes in turn, but the threat {ready.threat} has a goal of its "
                "own; leave it out."
            )
        # a protocol takes as many as there are
        if ready.protocol.name == "custom" and trial.targets > wrong_classes:
            raise SpecError(
                f"{trial!r} aims at {trial.targets} wrong classes, but the model has "
                f"{wrong_classes}."
            )
        attacked, pool = (
            ready.gradient_sources(trial.gradient),
            ready.gradient_sources.images(trial.attack),
        )
        check_fit(trial.attack, attacked, ready.threat, pool)
        if ready.protocol.name == "custom":
            trial.attack.check_target(attacked, ready.threat)
    least = 2 * ready.target.cost.forwards
    if budget is not None and budget < least:
        raise SpecError(
            f"the budget is {budget} forward passes a row, but a single step of an attack takes "
            f"{least}; give at least that, better some hundreds."
        )


def open_for(target: Target, data: Any, *, split: str = "test") -> Source:
    """Data in any form that `as_source` takes, as a source that fits the model.

    Bytes become [0, 1] unless the model's bounds are wider. Pictures become grey or RGB as the
    model takes them, and, where they differ in size and the model's preprocessing begins with a
    resize, are resized while loading. Where the shape of inputs is fixed already, the axes of other
    data are put in its order.

    Raises:
        InputError: as `as_source`; or inputs of another shape than the model takes.
    """
    source = as_source(data, split=split, scale=target.bounds.high <= 1)
    steps = getattr(innermost(target), "preprocess", ())
    size = next(((s.height, s.width) for s in steps[:1] if isinstance(s, Resize)), None)
    source = source.fitted(channels=channels_of(target), size=size)
    if target.shape is None:
        return source
    return laid_as(source, target.shape)


def with_columns(target: Target, source: Source) -> Target:
    """The model, which knows of which columns the rows are where the data are a table.

    Raises:
        InputError: it was fitted on others, or takes no texts.
    """
    return target if source.columns is None else target.of_table(source.columns)


def _check_names(source: Source, schema: Schema) -> None:
    """Raises InputError: the columns of a table, or the texts of one, are not those of a schema."""
    for column, feature in zip(source.columns or (), schema.features, strict=False):
        if column.name != feature.name:
            raise InputError(
                f"the schema has the column {feature.name} where {source.name} has {column.name}; "
                "expected the same columns in the same order."
            )
        if column.values and list(column.values) != list(feature.values):
            raise InputError(
                f"column {column.name} of {source.name} holds the texts "
                f"{listed(column.values, 5)}, and the schema has "
                f"{listed(feature.values, 5) or 'none'}; give these as its values, in this order."
            )


def with_texts_fixed(threat: Threat, source: Source) -> tuple[Threat, list[Finding]]:
    """The threat to rows of a table, whose texts stay as they are where the norm asks how far a
    value moves; and what a report says of it.

    Raises:
        InputError: nothing else could change.
    """
    texts = [column.name for column in source.columns or () if column.values]
    if threat.schema is not None:
        _check_names(source, threat.schema)
    if not texts or not threat.norm.scales or threat.schema is not None:
        return threat, []
    numbers = torch.tensor([not column.values for column in source.columns or ()])
    if threat.mask is not None and threat.mask.shape == numbers.shape:
        numbers &= threat.mask.cpu()
    said = f"{'columns' if len(texts) > 1 else 'column'} {listed(texts, 5)}"
    if not numbers.any():
        raise InputError(
            f"{threat} lets nothing change: {said} of {source.name} hold texts, and no step from "
            "one text to another has a size; l0(1) lets one column take any of its values."
        )
    text = (
        f"The texts of {said} stay as they are, for a step from one to another has no size in "
        f"{threat.norm}. In l0 they may become any other text of their column."
    )
    return threat.limited(mask=numbers), [Finding(check="texts", severity="info", text=text)]


def channels_of(target: Target) -> int | None:
    """How many channels the model's images have, 1 or 3; None where nothing says it."""
    inner: Any = innermost(target)
    shape, model = target.shape, getattr(inner, "model", None)
    if any(
        not isinstance(step, (BGR, Normalize, Resize, Defence))
        for step in getattr(inner, "preprocess", ())
    ):
        return None
    if shape is None and isinstance(model, Adapter):
        shape = model.shape
    if shape is not None:
        if len(shape) == 2:
            return 1
        return next((c for c in (1, 3) if len(shape) == 3 and c in shape[::2]), None)
    if not isinstance(model, nn.Module):
        return None
    channels = [layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return next((c for c in channels[:1] if c in (1, 3)), None)


def threat_of_movement(transform: Transform, target: Target, shape: tuple[int, ...]) -> Threat:
    """The whole of a transform as a threat to the target's inputs of this shape.

    Raises:
        InputError: they are no images, or each feature has bounds of its own.
    """
    target.bind(shape)
    if target.bounds.each is not None:
        raise InputError(
            "images are moved within one range, but each feature has bounds of its own."
        )
    placed = Spatial(transform, shape, target.inputs.layout, target.bounds.low, target.bounds.high)
    return Threat.linf(placed.reach, spatial=placed)


def rows_asked(
    samples: int | tuple[int, int] | None, total: int, name: str, what: str = "samples"
) -> tuple[int, int]:
    """The rows [start, stop) of a source of `total`; `what` is the option that says them."""
    if samples is None:
        samples = total
    start, stop = (0, samples) if isinstance(samples, int) else samples
    if not 0 <= start < stop:
        raise InputError(
            f"{what} {start}:{stop} is no range of rows; give a count of at least 1, or start:stop."
        )
    if stop > total:
        raise InputError(f"{what} up to row {stop} were asked for, but {name} has {total} rows.")
    return start, stop
