"""How a runtime executes a network: which operators it fuses into one unit, and how a unit is called and timed.

eager: one kernel an operator. cudagraph: the same kernels, replayed without launch overhead. inductor: convolutions
and matrix products stay calls of the library (without weight freezing it does not fold norms into them), runs of
elementwise operators and norms between them become one kernel each, everything else is compiled on its own.
inductor-frozen folds norms and packs weights, and so does aoti, a package compiled ahead of time: their units are timed
like inductor's, and the calibration does the rest. onnxruntime has eager's units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import LatencyError
from ..internals import tree_flatten, tree_leaves, tree_unflatten
from ..model.inputs import own
from ..types import Coupling
from .clocks import Thunk, captured
from .compiling import Compiled, mode_options, nothing_compiled
from .deployed import deployed_call
from .fingerprint import kind_of
from .fusion import fused_layers
from .layers import Layer, layers
from .layouts import channels_last
from .timing import Timer, time_call, time_graph

EXTERN = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm"})
"""Operators that inductor calls from a library."""


def units(coupling: Coupling, runtime: str) -> tuple[Layer, ...]:
    """What the runtime executes, one `Layer` a unit."""
    if not _by_inductor(runtime):
        return layers(coupling)
    return fused_layers(coupling, channels_last(coupling, weights=kind_of(runtime)[0] == "inductor-frozen"))


def callable_for(layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: str) -> Thunk:
    """A function without arguments that runs the layer as the runtime does."""
    if _by_inductor(runtime) and layer.op not in EXTERN and not layer.op.startswith("_scaled_dot_product"):
        return _compiled_call(layer, args, dict(kwargs))
    return partial(layer.function, *args, **kwargs)


def _compiled_call(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Thunk:
    """The layer compiled once for all widths, with its constants built in, and warm.

    A compiled unit pays for its guards at every call, some 20 us that the whole network pays once: small units come
    out too slow by a constant. It does not depend on widths, so it does not change which widths are chosen, and the
    calibration takes it out of the total.
    """
    leaves, tree = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    constants = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    holes = tuple(isinstance(leaf, torch.Tensor) for leaf in leaves)

    def run(*given: torch.Tensor) -> Any:
        rest = iter(given)
        filled = [next(rest) if hole else constant for hole, constant in zip(holes, constants, strict=True)]
        row, named = tree_unflatten(filled, tree)
        return layer.function(*row, **named)

    key = (layer.key, repr(constants))
    known = _UNITS.pop(key, None)
    try:
        unit = known or Compiled(run, dynamic=True)
        unit.warm_up(*tensors)
    except LatencyError:
        if known is None:
            raise
        unit = Compiled(run, dynamic=True)  # As many versions as there may be: begin anew.
        unit.warm_up(*tensors)
    _UNITS[key] = unit
    if len(_UNITS) > MOST_UNITS:
        del _UNITS[next(iter(_UNITS))]
    return partial(unit.function, *tensors)


MOST_UNITS = 128
"""Compiled units that are kept, the latest used; a network has some tens."""

_UNITS: dict[tuple[str, str], Compiled] = {}


def network_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: str) -> Thunk:
    """A function without arguments that runs a network as the runtime does, warm.

    Raises:
        TimingError: the network cannot be captured in a CUDA graph.
        LatencyError: the runtime is not known; torch.compile would run eager code, or does not work here.
    """
    given, named = own((args, dict(kwargs)))
    if kind_of(runtime)[0].startswith("inductor"):
        compiled = compiled_network(model, runtime)
        compiled.warm_up(model, *own(given), **own(named))
        return _applying(partial(compiled.function, model), given, named)
    if runtime in ("aoti", "onnxruntime"):
        return deployed_call(model, given, named, runtime)
    call = _applying(model, given, named)
    return captured(call, device_of(given, named)) if kind_of(runtime)[0] == "cudagraph" else call


def _applying(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Thunk:
    """The function of these arguments; where there are containers among them, every call gets its own."""
    leaves, tree = tree_flatten((args, kwargs))
    if len(leaves) == len(args) + len(kwargs) and all(isinstance(v, torch.Tensor) for v in (*args, *kwargs.values())):
        return partial(function, *args, **kwargs)

    def run() -> Any:
        given, named = tree_unflatten(leaves, tree)
        return function(*given, **named)

    return run


def compiled_network(model: nn.Module, runtime: str = "inductor", fullgraph: bool = False) -> Compiled:
    """The network's code for a runtime of inductor, which takes the network as its first argument.

    Args:
        fullgraph: refuse a forward that breaks into several graphs, when it is compiled.
    """
    known = _NETWORKS.setdefault(model, {})
    if runtime not in known:
        known[runtime] = Compiled(_applied, options=compile_options(runtime), fullgraph=fullgraph)
    return known[runtime]


def compile_options(runtime: str) -> dict[str, Any]:
    """Inductor's options for one of its runtimes.

    Raises:
        LatencyError: torch.compile has no such mode.
    """
    kind, mode = kind_of(runtime)
    return mode_options(mode) | ({"freezing": True} if kind == "inductor-frozen" else {})


def _by_inductor(runtime: str) -> bool:
    return kind_of(runtime)[0].startswith(("inductor", "aoti"))


def _applied(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return model(*args, **kwargs)


_NETWORKS: WeakKeyDictionary[nn.Module, dict[str, Compiled]] = WeakKeyDictionary()
"""Each network's compiled code by runtime, which does not refer to it: it goes with the network. The dense one is timed
often."""


def device_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    """Where the first tensor of some inputs is."""
    leaves = tree_leaves((args, dict(kwargs)))
    return next((leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)), torch.device("cpu"))


def as_asked(runtime: str) -> AbstractContextManager[None]:
    """To be held while warm calls are timed: none of them becomes another runtime's."""
    return nothing_compiled() if _by_inductor(runtime) else nullcontext()


def timer_for(runtime: str) -> Timer:
    """The timer that sees what the runtime does."""
    return time_graph if kind_of(runtime)[0] == "cudagraph" else time_call
