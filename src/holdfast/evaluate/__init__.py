"""The judge, the protocols, and the one call that turns a model and data into evidence."""

from holdfast.evaluate.evaluate import Names, evaluate
from holdfast.evaluate.run import Run

__all__ = ["Names", "Run", "evaluate"]
