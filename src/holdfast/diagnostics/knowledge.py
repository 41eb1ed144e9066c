"""Findings on what the model knows: no attack moves one that knows nothing, so its robust accuracy
means nothing.

Pure functions of the run's facts and table, so that `verify` finds them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from holdfast.runs import chance
from holdfast.runs.manifest import Facts, Finding

_CAUSE = (
    "Likely the preprocessing, the layout or the order of the classes is wrong, or the model is "
    "not trained."
)


def knowledge(facts: Facts, table: pa.Table) -> list[Finding]:
    """What the clean answers show, on all rows that the model was asked about, attacked or not."""
    if not table.num_rows:
        return []
    if facts.model.task == "classes":
        label, predicted = (table.column(name).to_numpy() for name in ("label", "clean_prediction"))
        answers = chance.Answers(label, predicted, facts.model.classes)
        names = facts.data.class_names or [str(c) for c in range(facts.model.classes)]
        return list(_classes(answers, names))
    find = {"multilabel": _labels, "regression": _outputs}.get(facts.model.task.partition("(")[0])
    if find is None or table.num_rows < chance.ENOUGH:
        return []
    truth, said = (
        np.array(table.column(name).to_pylist(), float) for name in ("truth", "clean_output")
    )
    known = np.isfinite(said).all(1)
    truth, said = truth[known], said[known]
    return list(find(truth, said))


def _classes(a: chance.Answers, names: Sequence[str]) -> Iterator[Finding]:
    n, accuracy = len(a.label), a.right / len(a.label)
    at_chance, missing = a.chance_level(), a.never_given()
    if at_chance:
        text = (
            f"Clean accuracy is that of chance: {a.right} of {n} rows are right, and "
            f"{a.by_chance * n:.3g} would be if "
            f"the same answers were dealt out at random ({a.classes} classes). {_CAUSE}"
        )
        yield Finding(
            check="near_chance", severity="red", text=text, value=accuracy, threshold=a.by_chance
        )
    if missing:
        listed = ", ".join([*(names[c] for c in missing[:5]), "..."][: len(missing)])
        text = (
            f"The model never answers {len(missing)} of the {np.count_nonzero(a.rows)} classes in "
            f"the data ({listed}), "
            f"which have {a.rows[missing].sum()} rows: the figure says nothing of them. {_CAUSE}"
        )
        yield Finding(
            check="never_predicted", severity="red", text=text, value=len(missing), threshold=0
        )
    if a.no_better_than_majority() and not at_chance:
        most, share = a.majority
        text = (
            f"Always answering class {names[most]} would be right on {share:.1%} of the rows, and "
            "the model is on "
            f"{accuracy:.1%}: read the recall of each class. Their mean is {a.mean_recall:.1%} "
            "clean."
        )
        yield Finding(check="majority", severity="info", text=text, value=accuracy, threshold=share)
    if a.one_class is not None and n > 1:
        text = (
            f"All rows are of class {names[a.one_class]}, so accuracy is the recall of that class: "
            f"a model that always answered it would be right on all of them."
        )
        yield Finding(check="one_class", severity="info", text=text, value=accuracy)


def _labels(truth: np.ndarray, said: np.ndarray) -> Iterator[Finding]:
    """Of a multi-label model: truth [n, k] and answers [n, k], above 0 where a label holds."""
    truth, said = truth > 0, said > 0
    if not chance.labels_follow(truth, said):
        text = (
            f"No label's answers go with the truth more than chance would have it, on {len(truth)} "
            f"rows (1 is said on {said.mean():.1%} of them, and true on {truth.mean():.1%}). "
            f"{_CAUSE}"
        )
        right = float((truth == said).mean())
        yield Finding(check="near_chance", severity="red", text=text, value=right)


def _outputs(truth: np.ndarray, said: np.ndarray) -> Iterator[Finding]:
    """Of a regression: truth [n, k] and outputs [n, k]."""
    if chance.outputs_follow(truth, said) is False:
        off, mean_off = np.abs(said - truth).mean(), np.abs(truth - truth.mean(0)).mean()
        text = (
            "No output is nearer to its truth than the mean of the truths is: mean errors are "
            f"{off:.3g} and {mean_off:.3g} on {len(truth)} rows. Likely inputs or targets have "
            "another scale than in training, or the model is not trained."
        )
        yield Finding(
            check="near_chance",
            severity="red",
            text=text,
            value=float(off),
            threshold=float(mean_off),
        )
