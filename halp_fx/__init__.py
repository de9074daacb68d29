"""Hardware-aware latency pruning: `halp_fx.prune(model, budget)`."""

from .analysis import channel_groups
from .api import prune
from .branches import Branch, Branches
from .coupling import couple
from .errors import (
    BudgetError,
    HalpError,
    InfeasibleError,
    LatencyError,
    ModelError,
    PlanError,
    ProblemError,
    RewriteError,
    SaliencyError,
    TraceError,
)
from .explain import explain
from .latency import CallableCost, MacsCost, MeasuredLatency, MemoryCost, ParamsCost, RooflineCost
from .latency.allocator import keep_memory
from .latency.profile import Profile, profile
from .report import Report
from .residual import find_branches
from .rewriting import rewrite
from .rules import register_rule
from .saliency import Saliency, score
from .solver import WidthProblem, solve
from .tracing import trace
from .twin import zero
from .types import ChannelGroup, Coupling, Plan

__version__ = "0.1.0"

__all__ = [
    "Branch",
    "Branches",
    "BudgetError",
    "CallableCost",
    "ChannelGroup",
    "Coupling",
    "HalpError",
    "InfeasibleError",
    "LatencyError",
    "MacsCost",
    "MeasuredLatency",
    "MemoryCost",
    "ModelError",
    "ParamsCost",
    "Plan",
    "PlanError",
    "ProblemError",
    "Profile",
    "Report",
    "RewriteError",
    "RooflineCost",
    "Saliency",
    "SaliencyError",
    "TraceError",
    "WidthProblem",
    "channel_groups",
    "couple",
    "explain",
    "find_branches",
    "keep_memory",
    "profile",
    "prune",
    "register_rule",
    "rewrite",
    "score",
    "solve",
    "trace",
    "zero",
]
