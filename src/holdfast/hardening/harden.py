"""Harden: measure a network, train it against the threat, measure it again by the same judge,
compare."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from holdfast import attacks, usercode
from holdfast.arguments import checked
from holdfast.attacks.attack import check_fit
from holdfast.certification import Ladder
from holdfast.data import Source, to_train_and_measure
from holdfast.data.laid import laid_as
from holdfast.data.part import Part, divide
from holdfast.errors import InputError, SpecError, listed
from holdfast.evaluation.chunk import OnProgress
from holdfast.evaluation.contract import check_data
from holdfast.evaluation.evaluate import evaluate
from holdfast.evaluation.facts import Names
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import open_for, rows_asked, with_columns, with_texts_fixed
from holdfast.evaluation.tables import broken_rows, in_table
from holdfast.hardening import objectives, recipes
from holdfast.hardening.certified import Bounding
from holdfast.runs.compare import Comparison, compare
from holdfast.runs.journal import begin, run_folder
from holdfast.runs.run import Run
from holdfast.runs.store import write_bytes
from holdfast.targets import Target, TorchTarget, wrap
from holdfast.targets.target import copied
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.targets.wrapping import with_threshold
from holdfast.tasks import TaskWithTruth
from holdfast.threats.threat import Targeted, Threat, as_threat
from holdfast.training import tensorboard as tensorboard_log
from holdfast.training.balance import divide_fairly, labels_of
from holdfast.training.batches import GeneratedRows
from holdfast.training.estimator import Estimator, Refit, Refitting, estimator_of, refitting_of
from holdfast.training.loop import Training
from holdfast.training.network import wrapped_like
from holdfast.training.prepare import (
    at_threshold,
    network_of,
    single,
    training_of,
    training_of_truths,
)
from holdfast.training.recipe import Recipe
from holdfast.training.state import STATE, Epoch, read_log
from holdfast.training.truths import AtLoss, Own

PROOF_SECONDS = 0.1  # of a row, before and after a training for proofs


@dataclass(frozen=True)
class Hardened:
    """What hardening leaves."""

    model: Any  # the best averaged weights: a torch module in eval mode, or a Keras model
    before: Run
    after: Run
    comparison: Comparison
    log: list[Epoch]
    folder: Path
    file: (
        Path  # `model`, as its own framework reads it: weights for torch, the whole model for Keras
    )

    def __fspath__(self) -> str:
        return str(self.folder)

    def report(self, *, open: bool = False) -> Path:
        """The page report.html in the folder, with before and after side by side: see
        `holdfast.report`."""
        from holdfast.reporting.pages import report

        return report(self, open=open)

    def __repr__(self) -> str:
        return f"Hardened({str(self.folder)!r}, before={self.before}, after={self.after})"


@checked
def harden(
    model: Any,
    data: Any,
    threat: Threat | str,
    *,
    recipe: Recipe | Refit | str = "standard",
    objective: str | None = None,
    epochs: int | None = None,
    class_weights: str | None = None,
    test: Any = None,
    out: Path | str | None = None,
    resume: bool = False,
    protocol: str = "standard",
    train_samples: int | tuple[int, int] | None = None,
    test_samples: int | tuple[int, int] | None = None,
    min_clean: float = 0.0,
    min_recall: float = 0.0,
    seed: int = 0,
    every: float = 30.0,
    on_progress: OnProgress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    names: Names | None = None,
    synthetic: Any = None,
    synthetic_share: float = 0.7,
    devices: int = 1,
    precision: str = "float32",
    tensorboard: bool = False,
    task: str | TaskWithTruth | None = None,
    loss: Own | str | None = None,
) -> Hardened:
    """Train a network until it withstands a threat, and show by how much it does.

    The model given is not changed. Training starts from its weights and keeps the most robust
    ones, on rows held out of the training data and under an attack that does not train. The recipe
    `certified` takes new weights, and keeps those of which most rows held out are proved; then
    what is proved is measured too, before and after.

    Args:
        model: a torch module, a Keras model on any backend, or one of them wrapped with its bounds
            and preprocessing.
        data: rows to train on, in raw units: what `holdfast.data.as_source` takes. `test` and
            `synthetic` are the same.
        threat: what to withstand; one eps for all rows, untargeted.
        recipe: `fast`, `standard`, `strong`, `finetune` or `certified`, with any field changed as
            in `standard(epochs=30)`.
        objective: in place of the recipe's: `trades(beta=6)`.
        epochs: in place of what the recipe says of epochs and steps.
        class_weights: in place of the recipe's: `balanced` (a row weighs n / (k n_c) in the loss),
            `none`, or `auto`:
            balanced where a class has 3 times the rows of another or more.
        test: rows to measure on, before and after; None: the test split that `data` names, or a
            fifth of `data`, which then trains nothing.
        out: the folder; None: a new temporary one, which is the caller's to delete.
        resume: go on with an unfinished hardening in `out`.
        protocol: of the judge, before and after.
        train_samples: the first so many rows to train on, or a range of them: of `data` without
            what measures.
        test_samples: the first so many rows to measure on, or a range of them: of `test`, else of
            that fifth.
        min_clean: the least clean accuracy, on rows held out, of the weights chosen.
        min_recall: the least clean recall of any class, on the same rows.
        every: seconds from one stored state to the next.
        on_progress: called with the progress of the two measurements.
        on_epoch: called with each finished epoch.
        names: what the manifests call things.
        synthetic: generated rows, which take the place of real ones in each step; the rows held out
            stay real.
        synthetic_share: of each step, above 0 and below 1.
        devices: processes that share each step, on cores or CUDA devices; the steps are those of
            one.
        precision: of the passes that train, the inner attack's too: float32, or bfloat16 (mixed);
            not the judge's.
        tensorboard: write event files into `out` too.
        task: `detection(...)` or `segmentation(...)`, as `wrap` takes it. The rows held out then
            choose the weights by the share of their objects, or pixels, that are right.
        loss: of such a model, and what the inner attack raises: a function of the module, of
            inputs [n, c, h, w] as it takes them and of the truths [n, ...] as the data give them,
            which gives [n], or the mean; or its `path/file.py:function`. A segmenter needs none:
            by default it is the cross-entropy of the pixels.

    Raises:
        InputError: the model cannot be trained, the data do not fit it, `out` holds something else,
            or the training diverged.
        SpecError: the recipe, the objective or the threat cannot be understood.
    """
    from holdfast.reporting.pages import write_hardening  # which draws with matplotlib

    threat = as_threat(threat)
    given = in_table(copied(wrap(model) if task is None else wrap(model, task=task)), threat)
    bare = single(given)
    assert isinstance(bare, TorchTarget)
    # each trains from a training of its own kind
    network: Any = estimator_of(bare) or network_of(model, bare)
    if not isinstance(network, Estimator):
        chosen = _recipe(recipe, objective, epochs, class_weights)
    else:
        chosen = _refit(recipe, epochs)
        _refuse_for_estimators(
            objective=objective, class_weights=class_weights, synthetic=synthetic, loss=loss,
            devices=devices != 1, precision=precision != "float32",
        )  # fmt: skip
    own = _own_loss(bare, loss, class_weights, synthetic, min_recall)
    rows = _rows(bare, data, test, synthetic, threat, seed, train_samples, test_samples)
    network = estimator_of(rows.target) or network  # which knows the columns
    how: dict[str, Any] = {"seed": seed, "floor": min_clean, "on_epoch": on_epoch}
    if isinstance(chosen, Recipe):
        how |= {"devices": devices, "precision": precision, "every": every}
        training = _training(
            network, given, rows, threat, chosen, own, min_recall, synthetic_share, how
        )
    else:
        _check_threat(threat, rows.target)
        _check_counts(rows.source, rows.target.task.k)
        how |= {"min_recall": min_recall, "wrapped": functools.partial(_wrapped, given, rows)}
        training = refitting_of(network, rows.target, rows.source, threat, chosen, **how)
    _check_rows(threat, rows.target, rows.source)
    if tensorboard:
        tensorboard_log.writer()
    called = names or Names(type(rows.target.model).__name__)
    measured = functools.partial(
        evaluate,
        data=rows.judged,
        threat=threat,
        protocol=protocol,
        samples=test_samples,
        seed=seed,
        resume=True,
        certifier=_certifier(chosen),
        on_progress=on_progress,
    )
    with run_folder(out) as folder:
        begin(folder, "harden.json", _asked(training, rows.source), "a hardening", resume=resume)
        before = measured(given, out=folder / "before", names=called)
    if not (folder / "comparison.json").exists():  # or it is finished
        training.folder = folder
        if tensorboard:
            training.on_epoch = tensorboard_log.written(folder, on_epoch)
        network.train(training)
    hardened = network.read(folder)
    hard = _wrapped(given, rows, hardened)
    after = measured(hard, out=folder / "after", names=replace(called, model="hardened"))
    found = compare(folder / "before", folder / "after")
    write_bytes(folder / "comparison.json", found.model_dump_json(indent=1).encode())
    (folder / STATE).unlink(missing_ok=True)
    write_hardening(folder)
    return Hardened(hardened, before, after, found, read_log(folder), folder, folder / network.file)


@dataclass(frozen=True)
class _Rows:
    """What is trained on and measured, opened, and the network as it takes it."""

    target: TorchTarget
    source: Source
    judged: Source
    generated: Source | None


def _rows(
    bare: TorchTarget,
    data: Any,
    test: Any,
    synthetic: Any,
    threat: Threat,
    seed: int,
    train_samples: int | tuple[int, int] | None,
    test_samples: int | tuple[int, int] | None,
) -> _Rows:
    source, judged = _sources(bare, data, test, seed, boxed=threat.schema is None)
    source = _some(source, train_samples)
    rows_asked(test_samples, len(judged), judged.name, "test_samples")
    target = with_columns(bare, source)
    assert isinstance(target, TorchTarget)
    target.bind(source.shape)
    more = [] if synthetic is None else [laid_as(open_for(target, synthetic), source.shape)]
    if target.head.truth_task is None:
        (source, judged, *more), _ = numbered(target, source, judged, *more)
    return _Rows(target, source, judged, *(more or [None]))


def _wrapped(given: Target, rows: _Rows, hardened: Any) -> Target:
    """A network that training has changed, wrapped as the one given is."""
    hard: Target = wrapped_like(rows.target, hardened, rows.source.columns)
    if given.cost.draws > 1:
        hard = ExpectationOverTransformation(hard, given.cost.draws)
    return with_threshold(hard, getattr(given, "threshold", None))


def _training(
    network: Any,
    given: Target,
    rows: _Rows,
    threat: Threat,
    recipe: Recipe,
    own: Own | None,
    min_recall: float,
    synthetic_share: float,
    how: dict[str, Any],
) -> Training:
    """That of a network, checked."""
    target, source = rows.target, rows.source
    objective, penalties = recipes.parts(recipe)
    if target.head.truth_task is not None:
        training = training_of_truths(
            network, target, source, threat, recipe, objective, own, **how
        )
    else:
        how = how | {"min_recall": min_recall}
        if rows.generated is not None:
            boxed = threat.schema is None
            how["generated"] = _generated(
                target, rows.generated, synthetic_share, source, boxed=boxed
            )
        shifted = at_threshold(target, getattr(given, "odds", 0.0))
        training = training_of(
            network, shifted, source, threat, recipe, objective, penalties, **how
        )
        _check_counts(source, target.task.k)
    _check_threat(threat, target, recipe.judge)
    _check_parts(training)
    return training


def _recipe(
    recipe: Recipe | Refit | str,
    objective: str | None,
    epochs: int | None,
    class_weights: str | None,
) -> Recipe:
    """The recipe, with what is given in place of its own."""
    recipe = recipes.parse(recipe)
    changed: dict[str, Any] = {"objective": objective, "class_weights": class_weights}
    if epochs is not None:
        changed |= {"epochs": epochs, "steps": 10**9}
    made = replace(recipe, **{name: value for name, value in changed.items() if value is not None})
    return replace(made, objective=repr(objectives.parse(made.objective)))


def _certifier(recipe: Recipe | Refit) -> Ladder | None:
    """What proves rows before and after, where the recipe trains for proofs."""
    proves = isinstance(recipe, Recipe) and isinstance(recipes.parts(recipe)[0], Bounding)
    return Ladder(PROOF_SECONDS) if proves else None


def _refit(recipe: Recipe | Refit | str, epochs: int | None) -> Refit:
    """The recipe of an estimator, with as many rounds as `epochs` says."""
    recipe = recipes.parse(recipe, Refit)
    return recipe if epochs is None else replace(recipe, rounds=epochs)


def _refuse_for_estimators(**given: Any) -> None:
    """Raises SpecError: something is given that is of networks alone."""
    if names := [name for name, value in given.items() if value]:
        raise SpecError(
            f"{listed(names, 5)}: of networks alone, while an estimator is fitted by its own "
            "library with its own settings; leave it out."
        )


def _asked(training: Training | Refitting, source: Source) -> dict[str, str]:
    """What harden.json holds: all that must be equal for a hardening to be resumed."""
    recipe = training.recipe
    asked = {
        "threat": repr(training.threat),
        "recipe": f"{recipe.name} version {recipe.version}: {recipe!r}",
        "floor": str(training.floor),
        "seed": str(training.seed),
        "model": training.target.fingerprint()[:16],
        "data": source.fingerprint()[:16],
    }
    if isinstance(training, Refitting):
        return asked | {"floor of recall": str(training.min_recall)}
    generated = training.generated
    further = (
        ("floor of recall", training.min_recall, str(training.min_recall)),
        ("class weights", training.balance.weights, "balanced"),
        ("precision", training.precision != "float32", training.precision),
        ("task", training.target.head.truth_task, str(training.target.head.truth_task)),
        ("log odds of the threshold", training.balance.odds, f"{training.balance.odds:.6g}"),
    )
    asked |= {name: text for name, given, text in further if given}
    if isinstance(training.objective, AtLoss):
        asked["loss"] = str(training.objective.loss_of)
    if generated is not None:
        asked["synthetic"] = f"{generated.share:g} of {generated.data.fingerprint()[:16]}"
    return asked


def _sources(
    target: Target, data: Any, test: Any, seed: int, *, boxed: bool
) -> tuple[Source, Source]:
    """What to train on and what to measure on: checked, and never the same rows."""

    def opened(given: Any, split: str) -> Source:
        source = open_for(target, given, split=split)
        with_columns(target, source)
        check_data(source, target.bounds, boxed=boxed)
        return source

    whole, judged = to_train_and_measure(data, test, opened)
    if judged is None:
        target = with_columns(target, whole)
        target.bind(whole.shape)
        if target.head.truth_task is not None:
            return divide(whole, 0.2, 10_000, seed, "test")
        (whole,), _ = numbered(target, whole)  # to divide the classes fairly takes their numbers
        return divide_fairly(whole, 0.2, 10_000, seed, "test")
    source = laid_as(whole, judged.shape, f"those of {judged.name} are")
    if source.fingerprint() == judged.fingerprint():
        raise InputError(
            f"{source.name} would both train the network and measure it; give other rows to "
            "measure on (--test)."
        )
    return source, judged


def _generated(
    target: Target, rows: Source, share: float, real: Source, *, boxed: bool
) -> GeneratedRows:
    """Rows to train on in addition to the real ones, checked."""
    generated = GeneratedRows(rows, share)
    generated.check(real)
    check_data(rows, target.bounds, boxed=boxed)
    return generated


def _some(source: Source, samples: int | tuple[int, int] | None) -> Source:
    """These rows of a source to train on."""
    start, stop = rows_asked(samples, len(source), source.name, "train_samples")
    if samples is None:
        return source
    return Part(source, np.arange(start, stop), f"rows {start}:{stop}")


def _own_loss(
    target: TorchTarget,
    loss: Own | str | None,
    class_weights: str | None,
    synthetic: Any,
    min_recall: float,
) -> Own | None:
    """The loss that the user gives for a detector or a segmenter.

    Raises:
        InputError: the model is of another task, or something is asked for that its task has not.
    """
    task = target.head.truth_task
    if task is not None and not task.structured:
        raise InputError(
            f"hardening trains classifiers, detectors and segmenters; this model's task is {task}."
        )
    if task is None and loss is not None:
        raise InputError(
            "a loss of your own is of a detector or a segmenter: say --task detection or --task "
            "segmentation; classifiers take an objective."
        )
    if task is not None and (class_weights or min_recall or synthetic is not None):
        raise InputError(
            f"class weights, a floor of recall and generated rows are of classes, and this model's "
            f"task is {task}; leave them out."
        )
    if target.inputs.context:
        raise InputError(
            "hardening trains models of one input, all of which may change, and this one has "
            "several."
        )
    return usercode.find(loss) if isinstance(loss, str) else loss


def _check_parts(training: Training) -> None:
    """Refuse parts of a recipe that know no schema, where there is one.

    Raises:
        SpecError: a part changes inputs by an amount in raw units, which columns do not share.
    """
    if training.threat.schema is None:
        return
    augment = training.recipe.augment
    raw = [repr(part) for part in (training.objective, *training.penalties) if part.raw]
    if raw or augment:
        raise SpecError(
            f"{(raw or [augment])[0]} knows no schema: it changes inputs by amounts that "
            "mean the same in every column. Leave it out; objectives pgd, trades and mart do."
        )


def _check_rows(threat: Threat, target: TorchTarget, source: Source) -> None:
    """Refuse rows that a schema does not fit.

    Raises:
        InputError: the columns are others, or rows are not written as the schema says.
    """
    if threat.schema is not None:
        with_texts_fixed(threat, source)
        broken_rows(source, threat, target.batcher.dtype)


def _check_counts(source: Source, k: int) -> None:
    least = 10
    counts = np.bincount(labels_of(source), minlength=k)
    if int(counts.min()) < least:
        raise InputError(
            f"class {int(counts.argmin())} has {int(counts.min())} rows in {source.name}, but "
            f"training needs at least {least} of each of the {k} classes that the model knows."
        )


def _check_threat(threat: Threat, target: Target, judge: str = "") -> None:
    if isinstance(threat.goal, Targeted) or threat.limits or isinstance(threat.eps, Tensor):
        raise SpecError(
            "hardening takes an untargeted threat with one eps for all, without a mask, not "
            f"{threat}."
        )
    threat.check_box(target.bounds.low, target.bounds.high, target.shape or ())
    if judge:
        attack = attacks.parse(judge)
        check_fit(attack, target, threat)
        attack.check_target(target, threat)
