"""Certificates: proofs that no input within a threat is answered wrongly."""

from holdfast.certification.certify import certify
from holdfast.certification.ladder import Ladder
from holdfast.certification.properties import Decision, decide

__all__ = ["Decision", "Ladder", "certify", "decide"]
