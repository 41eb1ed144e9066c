"""Generating: models that draw new rows of given classes, as data for hardening and for attackers."""

from __future__ import annotations

from holdfast.generate.folder import Generator, load
from holdfast.generate.train import generate

__all__ = ["Generator", "generate", "load"]
