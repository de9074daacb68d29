"""Hardware-aware latency pruning: `halp_fx.prune(model, budget)`."""

from .api import compensate, prune, rewrite, zero
from .compiling import compile, reports
from .coupling.branches import Branch, Branches
from .coupling.propagation import couple
from .coupling.residual import find_branches
from .errors import (
    BudgetError,
    CheckpointError,
    ExportError,
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
from .exporting import Export, export
from .latency import CallableCost, MacsCost, MeasuredLatency, MemoryCost, ParamsCost, RooflineCost
from .latency.allocator import keep_memory
from .passes import PruneChannels
from .reporting.explaining import dependency_graph, explain
from .reporting.profiling import Profile, profile
from .reporting.report import Report
from .rewriting.compensating import Compensation
from .rules import register_rule
from .saving import load, save
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
from .version import __version__ as __version__

__all__ = [
    "Branch",
    "Branches",
    "BudgetError",
    "CallableCost",
    "ChannelGroup",
    "CheckpointError",
    "Compensation",
    "Coupling",
    "DependencyGraph",
    "Export",
    "ExportError",
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
    "PruneChannels",
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
    "compensate",
    "compile",
    "couple",
    "dependency_graph",
    "distill",
    "distill_features",
    "explain",
    "export",
    "find_branches",
    "keep_memory",
    "load",
    "profile",
    "prune",
    "rebind",
    "recalibrate",
    "register_rule",
    "reports",
    "rewrite",
    "save",
    "score",
    "solve",
    "trace",
    "zero",
]
