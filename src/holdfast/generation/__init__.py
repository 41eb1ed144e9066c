"""Generating: models that draw new rows of given classes, as data for hardening and for
attackers."""

from __future__ import annotations

from holdfast.generation.folder import Generator, load
from holdfast.generation.train import generate

__all__ = ["Generator", "generate", "load"]
