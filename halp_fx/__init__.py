"""Hardware-aware latency pruning: `halp_fx.prune(model, budget)`.

Names are imported when they are first used: `import halp_fx` itself reads next to nothing, and no PyTorch. What type
checkers and editors see below, `_HOMES` says to Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import compensate, pareto, prune, rewrite, zero
    from .compiling import compile, reports
    from .coupling.branches import Branch, Branches
    from .coupling.residual import find_branches
    from .coupling.settling import couple
    from .errors import (
        BudgetError,
        CheckpointError,
        ExportError,
        HalpError,
        InfeasibleError,
        LatencyError,
        ModelError,
        PathError,
        PlanError,
        ProblemError,
        RewriteError,
        SaliencyError,
        StateError,
        TraceError,
        TrainingError,
    )
    from .exporting import Export, export, quantize
    from .latency import CallableCost, MacsCost, MeasuredLatency, MemoryCost, ParamsCost, RooflineCost
    from .latency.allocator import keep_memory
    from .latency.benchmarking import Benchmark, benchmark
    from .passes import PruneChannels
    from .pruning.healing import Healing, heal
    from .reporting.curve import Curve
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

_HOMES = {
    "api": ("compensate", "pareto", "prune", "rewrite", "zero"),
    "coupling.branches": ("Branch", "Branches"),
    "coupling.settling": ("couple",),
    "coupling.residual": ("find_branches",),
    "errors": (
        *("BudgetError", "CheckpointError", "ExportError", "HalpError", "InfeasibleError", "LatencyError"),
        *("ModelError", "PathError", "PlanError", "ProblemError", "RewriteError", "SaliencyError", "StateError"),
        *("TraceError", "TrainingError"),
    ),
    "exporting": ("Export", "export", "quantize"),
    "latency": ("CallableCost", "MacsCost", "MeasuredLatency", "MemoryCost", "ParamsCost", "RooflineCost"),
    "latency.allocator": ("keep_memory",),
    "latency.benchmarking": ("Benchmark", "benchmark"),
    "pruning.healing": ("Healing", "heal"),
    "reporting.curve": ("Curve",),
    "reporting.explaining": ("dependency_graph", "explain"),
    "reporting.profiling": ("Profile", "profile"),
    "reporting.report": ("Report",),
    "rewriting.compensating": ("Compensation",),
    "rules": ("register_rule",),
    "saving": ("load", "save"),
    "scoring.recalibrating": ("recalibrate",),
    "scoring.saliency": ("Saliency", "score"),
    "scoring.values": ("WidthValues",),
    "solver": ("WidthProblem", "solve"),
    "tracing.forward": ("trace",),
    "training.distilling": ("distill", "distill_features"),
    "training.optimizer": ("rebind",),
    "training.penalty": ("SparsityPenalty",),
    "training.pruner": ("Pruner",),
    "trials.trials": ("channel_groups",),
    "types": ("ChannelGroup", "Coupling", "DependencyGraph", "Plan"),
    "compiling": (
        "compile",
        "reports",
    ),
    "passes": ("PruneChannels",),
}
"""Module -> the public names that it is home to. `tests/test_lazy.py` holds it against the imports above."""

_ROOMS = (
    *("api", "cli", "compiling", "coupling", "errors", "exporting", "internals", "kernels"),
    *("latency", "model", "passes", "progress", "pruning", "reporting", "rewriting", "rules"),
    *("saving", "scoring", "solver", "tracing", "training", "trials", "types"),
)
"""Modules that are there as attributes of the package without an import of their own."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Benchmark",
    "Branch",
    "Branches",
    "BudgetError",
    "CallableCost",
    "ChannelGroup",
    "CheckpointError",
    "Compensation",
    "Coupling",
    "Curve",
    "DependencyGraph",
    "Export",
    "ExportError",
    "HalpError",
    "Healing",
    "InfeasibleError",
    "LatencyError",
    "MacsCost",
    "MeasuredLatency",
    "MemoryCost",
    "ModelError",
    "ParamsCost",
    "PathError",
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
    "StateError",
    "TraceError",
    "TrainingError",
    "WidthProblem",
    "WidthValues",
    "benchmark",
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
    "heal",
    "keep_memory",
    "load",
    "pareto",
    "profile",
    "prune",
    "quantize",
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


def __getattr__(name: str) -> Any:
    """PEP 562: a public name or a documented module, imported now and kept."""
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
