"""The backend of `torch.compile`: a captured graph and a budget or a plan -> code of a smaller network.

A backend is expected to return an equivalent function, and this one does not: so it refuses whatever it is not meant
for, says in the log what it does, and is best used to apply a plan. It is registered by the entry point group
`torch_dynamo_backends` alone; to register it by a decorator, too, would be an error (a name twice).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from ..api import prune, rewrite
from ..errors import ModelError, PlanError
from ..files import path_of, write_text
from ..fitting import FILE
from ..internals import tracing
from ..latency import MeasuredLatency
from ..latency.compiling import backend_of, mode_options
from ..model.members import named_tensors
from ..model.naming import by_group
from ..model.tensors import parameter_count
from ..reporting.report import Report, report_of
from ..tracing.graph import of, op
from ..trials.trials import channel_groups
from ..types import Coupling, Plan
from .options import Options
from .resliced import Resliced, State, states_of
from .unlifting import Unlifted, unlifted

logger = logging.getLogger("halp_fx")

_INSTEAD = "Use halp_fx.prune or halp_fx.compile, or strict=False to compile it as it is"


class RefusedError(ModelError):
    """The graph is not one that the backend is meant for."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a budget came to.

    Attributes:
        parameters: that it is for.
        asked: what was asked for.
        weights: of the dense network, as they were then: name -> state.
        made: tensors of the pruned network, by name. With data they are not what the plan alone leads to: statistics
            are re-estimated, and layers compensated.
    """

    parameters: tuple[weakref.ref[torch.Tensor], ...]
    asked: Options
    plan: Plan
    weights: Mapping[str, State]
    made: Mapping[str, torch.Tensor]

    def fits(self, parameters: Sequence[torch.Tensor], asked: Options) -> bool:
        own = [ref() for ref in self.parameters]
        same = len(own) == len(parameters) and all(a is b for a, b in zip(own, parameters, strict=True))
        return same and self.asked.same(asked)

    def put_into(self, small: nn.Module, found: Unlifted) -> None:
        """Let a network of the same plan have what data made of the weights, unless they have changed since."""
        if self.asked.data is None or states_of(found) != self.weights:
            return
        with torch.no_grad():
            for name, tensor in named_tensors(small):
                if name in self.made and self.made[name].shape == tensor.shape:
                    tensor.copy_(self.made[name])


@dataclass(eq=False)
class Backend:
    """What `backend="halp_fx"` names; `torch.compile` calls it once for every graph.

    It has no slots, and is hashed by identity: PyTorch puts tags on a backend that it registers, and 2.11 keys by it.
    """

    _known: list[_Known] = field(default_factory=list)
    _reports: list[Report] = field(default_factory=list)
    _warned: bool = False

    @property
    def __name__(self) -> str:
        return "halp_fx"

    def __call__(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        options: Mapping[str, Any] | None = None,
        mode: str | None = None,
    ) -> Any:
        """A function of Dynamo's inputs that runs the smaller network.

        Raises:
            RefusedError: gradients, train mode, autocast, a graph break; see `Options.strict`.
            BudgetError, PlanError, ModelError: as `halp_fx.prune` and `halp_fx.rewrite`.
        """
        asked = Options.of(options if mode is None else {**(options or {}), "mode": mode})
        inner = backend_of(asked.inner)
        with_mode = {"config_patches": mode_options(asked.mode)} if asked.mode and asked.inner == "inductor" else {}
        try:
            _check_context(graph, example_inputs)
            found = unlifted(graph, example_inputs)
            # Dynamo is in the middle of its own work, which must not be mixed up with ours.
            with tracing(None), torch.inference_mode(False):
                small, plan, coupling = self._smaller(found, asked)
        except PlanError as error:
            if not any(isinstance(value, torch.SymInt) for value in example_inputs):
                raise
            raise PlanError(
                f"{error}. Sizes are left open in this graph, which may allow fewer widths than one of fixed sizes: "
                "torch.compile(..., dynamic=False) makes a graph for every shape"
            ) from error
        except RefusedError as error:
            if asked.strict:
                raise
            if not self._warned:
                logger.warning("backend halp_fx compiles a graph as it is: %s", error)
            self._warned = True
            return inner(graph, example_inputs, **with_mode)
        code = inner(_in_a_tuple(small, found), [example_inputs[i] for i in found.others], **with_mode)
        return Resliced(small, found, plan, coupling, code)

    def reset(self) -> None:
        """Forget all plans: `torch._dynamo.reset` calls it."""
        self._known.clear()
        self._reports.clear()
        self._warned = False

    @property
    def reports(self) -> tuple[Report, ...]:
        return tuple(self._reports)

    def _smaller(self, found: Unlifted, asked: Options) -> tuple[fx.GraphModule, Plan, Coupling]:
        """The network, the plan that leads to it, and the coupling of what it was."""
        parameters = tuple(found.network.parameters())
        known = next((k for k in self._known if k.fits(parameters, asked)), None) if asked.plan is None else None
        plan = known.plan if known is not None else asked.plan
        coupling = channel_groups(found.network, found.examples)
        _check_evaluates(coupling)
        if plan is not None:
            plan = by_group(_in_this_graph(plan, found), coupling)
            small = rewrite(found.network, plan, found.examples, coupling=coupling)
            if known is not None:
                known.put_into(small, found)
            what = "as planned"
        else:
            runtime = "eager" if asked.inner != "inductor" else f"inductor:{asked.mode}" if asked.mode else "inductor"
            small = prune(
                found.network, asked.budget, found.examples, data=asked.data, loss_fn=asked.loss_fn,
                latency=MeasuredLatency(runtime), branches=asked.branches, round_to=asked.round_to, progress=False,
            )  # fmt: skip
            report = report_of(small)
            self._reports.append(report)
            self._known = [k for k in self._known if all(ref() is not None for ref in k.parameters)]
            held = [weakref.ref[torch.Tensor](p) for p in parameters]
            self._known.append(_Known(tuple(held), asked, report.plan, states_of(found), dict(named_tensors(small))))
            plan, what = report.plan, _figures(report)
            if asked.report is not None:
                write_text(path_of(asked.report), report.summary(width=FILE))
        assert isinstance(small, fx.GraphModule)
        before, after = map(parameter_count, (found.network, small))
        logger.warning(
            "backend halp_fx: the compiled function is not equivalent to the model, it is a pruned one: %s, %s of %s "
            "parameters",
            what,
            f"{after:,}",
            f"{before:,}",
        )
        return small, plan, coupling


BACKEND = Backend()


def reports() -> tuple[Report, ...]:
    """Of every network that `torch.compile(model, backend="halp_fx")` has pruned to a budget, the latest last."""
    return BACKEND.reports


def _figures(report: Report) -> str:
    shares = (100 * cost / report.dense for cost in (report.budget, report.predicted, report.measured))
    return "budget {:.1f} %, predicted {:.1f} %, measured {:.1f} % of dense".format(*shares)


def _check_context(graph: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Raises RefusedError if the graph is no whole network at inference."""
    if torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in inputs):
        raise RefusedError(
            "gradients are on, and a pruned copy would be trained in vain: call the compiled model under "
            f"torch.no_grad() or torch.inference_mode(). {_INSTEAD}"
        )
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        raise RefusedError(
            "autocast is on around the compiled model, and the graph does not say so: put it into the model's forward, "
            f"or convert the model (model.to(torch.bfloat16)). {_INSTEAD}"
        )
    reason: Any = getattr(graph, "compile_subgraph_reason", None)
    stack = getattr(reason, "user_stack", None) or ()
    if getattr(reason, "graph_break", False):
        where = f" at {stack[-1].filename}:{stack[-1].lineno}" if stack else ""
        raise RefusedError(
            f"the forward breaks into several graphs{where} ({str(reason.reason).splitlines()[0]}), and a budget is "
            f"for the whole: compile with fullgraph=True to see why. {_INSTEAD}"
        )
    if any(frame.name.startswith("torch_dynamo_resume_in_") for frame in stack):
        raise RefusedError(f"this graph is the rest of a forward that broke into several. {_INSTEAD}")


def _in_this_graph(plan: Plan, found: Unlifted) -> Plan:
    """A plan of the whole model without the layers that this forward does not run: a head that only trains has."""
    here = {*found.names, *(name.rpartition(".")[0] for name in found.names)}
    gone = {
        group
        for group in plan.made_for
        if group.partition(":")[0] not in here and not any(m.tensor in here for m in plan.made_by.get(group, ()))
    }
    return replace(plan, kept={name: rows for name, rows in plan.items() if name not in gone})


_RANDOM = ("native_dropout", "bernoulli", "rrelu_with_noise", "feature_dropout", "alpha_dropout")
_NORM = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")


def _check_evaluates(coupling: Coupling) -> None:
    """Raises RefusedError if a layer of the graph is in train mode."""
    for node in coupling.traced.graph.nodes:
        name = op(node).rstrip("_")
        trains = name in _RANDOM and "dropout" in f"{name} {of(node).function}"
        if name in _NORM and of(node).function == "batch_norm":
            trains = bool(node.args[5]) and node.args[3] is not None
        if trains:
            raise RefusedError(
                f"{of(node).function or name} is in train mode ({of(node).source}): call model.eval() first. {_INSTEAD}"
            )


def _in_a_tuple(small: fx.GraphModule, found: Unlifted) -> fx.GraphModule:
    """The network as Dynamo wants it back: it returns a tuple."""
    if found.single:
        output = next(iter(reversed(small.graph.nodes)))
        output.args = ((output.args[0],),)
        small.recompile()
    return small
