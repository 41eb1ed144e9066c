"""A cached target: no question is put twice, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.models import Narrow, bent, rows, same, threat, wrap
from torch import Tensor

import holdfast
from holdfast.attacks import parse, run
from holdfast.errors import InputError
from holdfast.targets import Access, Target
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.wrappers import Cached


class Seen(Narrow):
    """A target that notes every input that it is asked about."""

    def __init__(self, inner: Target, access: Access) -> None:
        super().__init__(inner, access)
        self.questions: list[bytes] = []

    def scores(self, x: Rows) -> Tensor:
        self.questions += [row.numpy().tobytes() for row in Batch.of(x).x]
        return super().scores(x)

    def labels(self, x: Rows) -> Tensor:
        if self.access < Access.SCORES:
            self.questions += [row.numpy().tobytes() for row in Batch.of(x).x]
            return super().labels(x)
        return Target.labels(self, x)


@pytest.mark.parametrize(
    ("access", "spec"), [(Access.SCORES, "signhunter(steps=20)"), (Access.LABELS, "rays(steps=30)")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_question_is_put_twice(
    access: Access, spec: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    seen = Seen(wrap(bent(dtype=dtype)), access)
    x, y = rows(seen.inner, 12)
    x, y = torch.cat([x, x[:4]]), torch.cat([y, y[:4]])
    ordinary = run(parse(spec), seen, x, y, threat("linf"), ids=torch.arange(16) % 12)
    assert len(set(seen.questions)) < len(seen.questions)
    seen.questions = []
    for _ in range(2):  # the second time as another process would: from the file alone
        cached = Cached(seen, tmp_path / "answers")
        same(run(parse(spec), cached, x, y, threat("linf"), ids=torch.arange(16) % 12), ordinary)
    assert len(set(seen.questions)) == len(seen.questions) > 0
    assert cached.asked == 0


def test_another_model_gets_no_answer_of_the_first(tmp_path: Path) -> None:
    first, second = wrap(bent(seed=0)), wrap(bent(seed=5))
    x, _ = rows(first, 6)
    for target in (first, second):
        assert torch.equal(Cached(target, tmp_path / "answers").scores(x), target.scores(x))


def test_an_evaluation_is_the_same(tmp_path: Path) -> None:
    """Also of a model that turns out to give probabilities only after its first answers."""
    for model in (
        bent(dtype=torch.float32),
        torch.nn.Sequential(bent(dtype=torch.float32), torch.nn.Softmax(1)),
    ):
        x, y = rows(wrap(model), 20)
        attacks = ["apgd(steps=5)", "signhunter(steps=10)"]
        ordinary = holdfast.evaluate(wrap(model), (x, y), "linf(0.08)", attacks=attacks)
        cached = holdfast.evaluate(
            Cached(wrap(model), tmp_path / "answers"), (x, y), "linf(0.08)", attacks=attacks
        )
        assert cached.samples.equals(ordinary.samples)
        assert cached.manifest.model.fingerprint == ordinary.manifest.model.fingerprint


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are no answers " * 200)
    target = wrap(bent())
    with pytest.raises(InputError, match="cannot be used"):
        Cached(target, tmp_path / "notes.txt").scores(rows(target, 2)[0])


def test_what_an_evaluation_asks_is_counted() -> None:
    """It works on a copy of the target, which shares the answers and their count."""
    cached = Cached(wrap(bent()))
    x, y = rows(cached, 6)
    holdfast.evaluate(cached, (x, y), "linf(0.05)", attacks=["fgsm"])
    asked = cached.asked
    assert asked > 0
    holdfast.evaluate(cached, (x, y), "linf(0.05)", attacks=["fgsm"])
    assert cached.asked == asked
