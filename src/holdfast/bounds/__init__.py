"""Lower bounds of a network's margins over all that a threat allows; no judge is known here."""

from holdfast.bounds.branching import METHODS, climb
from holdfast.bounds.graph import Graph, trace
from holdfast.bounds.margins import Bounded, Margins, margins, region
from holdfast.bounds.propagate import Rows
from holdfast.bounds.regions import Region

__all__ = [
    "METHODS",
    "Bounded",
    "Graph",
    "Margins",
    "Region",
    "Rows",
    "climb",
    "margins",
    "region",
    "trace",
]
