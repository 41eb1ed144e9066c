"""Hardening: recipes that make a network robust, the loop that trains it, and the measure before and after."""

from __future__ import annotations

from holdfast.hardening.harden import Hardened, harden

__all__ = ["Hardened", "harden"]
