"""compile: model, budget -> a smaller network that meets the budget as compiled code, and is compiled in place."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..api import prune
from ..errors import BudgetError
from ..latency import MeasuredLatency
from ..latency.compiling import Counted, isolated, warm_up
from ..latency.runtimes import compile_options, compiled_network
from ..model.checks import check_model
from ..model.inputs import normalize_inputs
from ..model.preserving import preserved, set_mode
from ..pruning.budgets import BudgetLike
from ..reporting.report import Compilation, report_of
from ..scoring.losses import LossFn
from ..types import Inputs


def compile(
    model: nn.Module,
    budget: BudgetLike,
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    mode: str | None = None,
    fullgraph: bool = True,
    dynamic: bool | None = False,
    freeze: bool = False,
    **options: Any,
) -> nn.Module:
    """`halp_fx.prune` with compiled code as the clock, then `torch.compile` of what comes out, warm.

    The network is compiled in place (`small.compile`), so its class is kept, and its `state_dict` has no `_orig_mod.`
    names. It is in eval mode; call it under `torch.no_grad` or `torch.inference_mode`: with gradients it would be
    compiled again.

    Args:
        model, budget, example_inputs, data, loss_fn: as for `halp_fx.prune`.
        mode: of `torch.compile` ("reduce-overhead", "max-autotune"); networks are timed in it.
        fullgraph: refuse a forward that breaks into several graphs, before anything is measured.
        dynamic: whether the code is made for other shapes, too, as for `torch.compile`. Times are taken with code for
            the shapes of `example_inputs`.
        freeze: let inductor take weights for constants, which folds norms into convolutions and packs weights (on a
            CPU). The code then knows nothing of a later `load_state_dict`.
        options: whatever else `halp_fx.prune` takes.

    Returns:
        The pruned network; `halp` is its report, and `halp.compilation` says how it was compiled.

    Raises:
        LatencyError: torch.compile does not work here (no C++ compiler, no Triton), there is no such mode, or the
            forward breaks into several graphs.
        BudgetError, ModelError, SaliencyError: as `halp_fx.prune`.
    """
    if "latency" in options:
        raise BudgetError(
            "compile times compiled code: it takes no latency=. For another cost, or a table of your own, call "
            "halp_fx.prune(model, budget, latency=...) and then small.compile()"
        )
    check_model(model)
    runtime = ("inductor-frozen" if freeze else "inductor") + (f":{mode}" if mode else "")
    inputs = normalize_inputs(model, example_inputs)
    _check_compiles(model, inputs, runtime, fullgraph)
    cost = MeasuredLatency(runtime)
    small = prune(model, budget, example_inputs, data=data, loss_fn=loss_fn, latency=cost, **options)
    set_mode(small)
    compilation = _compiled(small, inputs, runtime, fullgraph, dynamic)
    small.halp = replace(report_of(small), compilation=compilation)  # type: ignore[assignment]
    return small


def _check_compiles(model: nn.Module, inputs: Inputs, runtime: str, fullgraph: bool) -> None:
    """Compile the dense network, which will be timed first in any case.

    Raises:
        LatencyError: it cannot be compiled here, or not as one graph.
    """
    args, kwargs = inputs
    with preserved(model), torch.no_grad():
        set_mode(model)
        compiled_network(model, runtime, fullgraph).warm_up(model, *args, **kwargs)


def _compiled(small: nn.Module, inputs: Inputs, runtime: str, fullgraph: bool, dynamic: bool | None) -> Compilation:
    """Compile a network in place, and call it until it is warm."""
    args, kwargs = inputs
    options = compile_options(runtime)
    backend = Counted(options)
    begun = time.perf_counter()
    small.compile(backend=backend, fullgraph=fullgraph, dynamic=dynamic, **isolated())
    with torch.no_grad():
        warm_up(lambda: small(*args, **kwargs), bool(options.get("freezing")))
    return Compilation(runtime, time.perf_counter() - begun, backend.graphs)
