"""Hardware-aware latency pruning: `halp_fx.prune(model, budget)`."""

from .coupling import channel_groups, couple
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
from .report import Report
from .rewriting import rewrite, zero
from .rules import register_rule
from .saliency import Saliency, score
from .solver import WidthProblem, solve
from .tracing import trace
from .types import ChannelGroup, Coupling, Plan

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "ChannelGroup",
    "Coupling",
    "HalpError",
    "InfeasibleError",
    "LatencyError",
    "ModelError",
    "Plan",
    "PlanError",
    "ProblemError",
    "Report",
    "RewriteError",
    "Saliency",
    "SaliencyError",
    "TraceError",
    "WidthProblem",
    "channel_groups",
    "couple",
    "register_rule",
    "rewrite",
    "score",
    "solve",
    "trace",
    "zero",
]
