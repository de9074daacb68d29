"""Takes candidates, returns a `Report`; and shows what is in a network before it is pruned."""

from .explaining import dependency_graph, explain
from .making import report_on
from .profiling import Profile, profile
from .report import Report

__all__ = ["Profile", "Report", "dependency_graph", "explain", "profile", "report_on"]
