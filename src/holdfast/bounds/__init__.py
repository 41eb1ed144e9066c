"""Lower bounds of a network's margins over all that a threat allows; no judge is known here."""

from holdfast.bounds.branching import METHODS, Judge, branch, climb, nearest
from holdfast.bounds.graph import Graph, trace
from holdfast.bounds.margins import Bounded, Margins, margins, region
from holdfast.bounds.propagate import Rows
from holdfast.bounds.regions import Region

__all__ = [
    "METHODS",
    "Bounded",
    "Graph",
    "Judge",
    "Margins",
    "Region",
    "Rows",
    "branch",
    "climb",
    "margins",
    "nearest",
    "region",
    "trace",
]
