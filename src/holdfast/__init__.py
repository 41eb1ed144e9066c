"""Holdfast: how robust is a trained model against adversarial examples, and how is it made so."""

from holdfast import attacks
from holdfast.errors import AccessError, HoldfastError, InputError, SpecError
from holdfast.evaluate import Run, evaluate
from holdfast.targets import wrap
from holdfast.targets.preprocess import Normalize, Resize
from holdfast.threat import Targeted, Threat, Untargeted

__all__ = [
    "AccessError",
    "HoldfastError",
    "InputError",
    "Normalize",
    "Resize",
    "Run",
    "SpecError",
    "Targeted",
    "Threat",
    "Untargeted",
    "attacks",
    "evaluate",
    "wrap",
]
