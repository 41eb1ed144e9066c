"""Certificates: proofs that no input within a threat is answered wrongly."""

from holdfast.certification.certify import certify
from holdfast.certification.ladder import Ladder

__all__ = ["Ladder", "certify"]
