"""Lower bounds of a network's margins over all that a threat allows; no judge is known here."""

from holdfast.bounds.branching import METHODS, Judge, branch, climb, low_points, lowest, nearest
from holdfast.bounds.graph import Graph, trace
from holdfast.bounds.margins import Bounded, Margins, graph_of, margins, region
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
    "graph_of",
    "low_points",
    "lowest",
    "margins",
    "nearest",
    "region",
    "trace",
]
