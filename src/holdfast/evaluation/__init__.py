"""The judge, the protocols, and the one call that turns a model and data into evidence."""

from __future__ import annotations

from holdfast.evaluation.evaluate import Names, evaluate
from holdfast.runs.run import Run

__all__ = ["Names", "Run", "evaluate"]
