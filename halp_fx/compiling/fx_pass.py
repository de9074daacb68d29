"""PruneChannels: plan or budget -> a pass over `fx.GraphModule`s."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from ..api import prune, rewrite
from ..errors import BudgetError, ModelError, PlanError
from ..files import path_of, why_unreadable
from ..pruning.budgets import BudgetLike
from ..reporting.report import report_of
from ..trials.trials import channel_groups
from ..types import Plan

_PRUNED = "halp_fx.plan"
"""Key of a graph module's `meta` under which the plan is kept that led to it."""
_BY = "halp_fx.pruned_by"
"""Likewise, the marks of the passes that pruned it."""


class PruneChannels(PassBase):
    """Prunes every graph that it is called on; composes with others in torch.fx's `PassManager`.

    The graph that comes out is a copy; its `meta["halp_fx.plan"]` is the plan. What this pass has pruned comes back as
    it is, so a manager may run its passes several times; another one prunes it further.

    Args:
        target: a `Plan` (also as the path of its JSON, or as a mapping from groups to kept channels); or a budget, as
            for `halp_fx.prune`: a number, "60%", "4ms", or a mapping from resources to such.
        example_inputs: as for `halp_fx.prune`.
        options: what else `halp_fx.prune` takes; of a plan, only `ignore`.

    Attributes:
        target: the plan or budget.

    Raises:
        BudgetError: an option that `halp_fx.prune` does not have, or, with a plan, another one than `ignore`.
    """

    def __init__(
        self, target: Plan | Path | BudgetLike | Mapping[str, Any], example_inputs: Any = None, **options: Any
    ):
        self.target = plan_of(target)
        check_options(self.target, options)
        self._example_inputs, self._options = example_inputs, options
        self._mark = uuid.uuid4().hex

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """The graph, pruned.

        Raises:
            PlanError, BudgetError, ModelError, RewriteError: as `halp_fx.rewrite` and `halp_fx.prune`.
        """
        if not isinstance(graph_module, fx.GraphModule):
            raise ModelError(
                f"PruneChannels takes an fx.GraphModule, not a {type(graph_module).__name__}: capture the model first "
                "(torch.fx.symbolic_trace, torch.export.export(...).module()), call on_exported with an exported "
                "program, or call halp_fx.prune with the model"
            )
        before = graph_module.meta.get(_BY, ())
        if self._mark in before:
            return PassResult(graph_module, False)
        small, plan = pruned(graph_module, self.target, self._example_inputs, self._options)
        assert isinstance(small, fx.GraphModule)
        small.meta |= {_PRUNED: plan, _BY: (*before, self._mark)}
        return PassResult(small, True)

    def on_exported(
        self, program: torch.export.ExportedProgram, dynamic_shapes: Any = None
    ) -> torch.export.ExportedProgram:
        """An exported program, pruned and exported again.

        Args:
            dynamic_shapes: as for `torch.export.export`; needed if the program has sizes that are left open.

        Raises:
            ModelError: see above, or it is no exported program, or one without example inputs.
        """
        if not isinstance(program, torch.export.ExportedProgram):
            raise ModelError(
                f"on_exported takes what torch.export.export returned, not a {type(program).__name__}: call the pass "
                "itself with a graph module"
            )
        if program.range_constraints and dynamic_shapes is None:
            raise ModelError(
                f"the program leaves sizes open ({', '.join(map(str, program.range_constraints))}): pass the "
                "dynamic_shapes that it was exported with"
            )
        if program.example_inputs is None:
            raise ModelError("the program has no example inputs: export it again")
        args, kwargs = program.example_inputs
        small = self.call(program.module()).graph_module
        return torch.export.export(small, args, kwargs, dynamic_shapes=dynamic_shapes)


def plan_of(target: Any) -> Any:
    """The plan that a target is, or the budget as it is."""
    if isinstance(target, Path) or (isinstance(target, str) and target.endswith(".json")):
        path = path_of(target)
        try:
            return Plan.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(why_unreadable(path, error)) from error
    if isinstance(target, Mapping) and not isinstance(target, Plan):
        rows = [isinstance(value, list | tuple) for value in target.values()]
        return Plan(target) if rows and all(rows) else target
    return target


def meant(name: object, known: Iterable[str]) -> str:
    """ "did you mean …?", or nothing."""
    close = get_close_matches(str(name), list(known), 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def check_options(target: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that a plan, or a budget, has no use for.

    Raises:
        BudgetError: names it.
    """
    takes = inspect.signature(prune).parameters.keys() - {"model", "budget", "example_inputs"}
    for name in options:
        if name not in takes:
            hint = meant(name, takes)
            raise BudgetError(
                f"PruneChannels has no option {name!r}" + (f": {hint}" if hint else ", nor does halp_fx.prune")
            )
        if isinstance(target, Plan) and name != "ignore":
            raise BudgetError(f"a plan is applied as it is: option {name!r} is for a budget: leave it out")


def pruned(graph: fx.GraphModule, target: Any, examples: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Plan]:
    """A graph that a plan or a budget leads to, and its plan; under a budget its `halp` is the report."""
    if isinstance(target, Plan):
        coupling = channel_groups(graph, examples, **options)
        return rewrite(graph, target, examples, coupling=coupling), target
    small = prune(graph, target, examples, **options)
    return small, report_of(small).plan
