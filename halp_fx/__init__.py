"""Hardware-aware latency pruning: `halp_fx.prune(model, budget)`."""

from .api import prune, rewrite, zero
from .coupling.branches import Branch, Branches
from .coupling.propagation import couple
from .coupling.residual import find_branches
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
    TrainingError,
)
from .latency import CallableCost, MacsCost, MeasuredLatency, MemoryCost, ParamsCost, RooflineCost
from .latency.allocator import keep_memory
from .reporting.explaining import dependency_graph, explain
from .reporting.profiling import Profile, profile
from .reporting.report import Report
from .rules import register_rule
from .scoring.recalibrating import recalibrate
from .scoring.saliency import Saliency, score
from .scoring.values import WidthValues
from .solver import WidthProblem, solve
from .tracing.forward import trace
from .training.distilling import distill, distill_features
from .training.optimizer import rebind
from .training.penalty import SparsityPenalty
from .training.pruner import Pruner
from .trials.trials import channel_groups
from .types import ChannelGroup, Coupling, DependencyGraph, Plan

__version__ = "0.1.0"

__all__ = [
    "Branch",
    "Branches",
    "BudgetError",
    "CallableCost",
    "ChannelGroup",
    "Coupling",
    "DependencyGraph",
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
    "Pruner",
    "Report",
    "RewriteError",
    "RooflineCost",
    "Saliency",
    "SaliencyError",
    "SparsityPenalty",
    "TraceError",
    "TrainingError",
    "WidthProblem",
    "WidthValues",
    "channel_groups",
    "couple",
    "dependency_graph",
    "distill",
    "distill_features",
    "explain",
    "find_branches",
    "keep_memory",
    "profile",
    "prune",
    "rebind",
    "recalibrate",
    "register_rule",
    "rewrite",
    "score",
    "solve",
    "trace",
    "zero",
]
