"""trace: model + example inputs -> a graph of ATen operators with shapes (`Traced`).

The real forward runs once on a copy, in eval mode and without gradients, under a `TorchDispatchMode` that writes down
every operator. Python control flow simply runs, and modules, functional calls, parametrisations and custom autograd
functions all come down to the same few hundred operators: one rule each is enough (see `docs/tracing.md` for why
this level, and not module or Python-function level, was chosen).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from ..errors import TraceError, few
from ..internals import tree_map
from ..model.checks import check_model
from ..model.inputs import normalize_examples
from ..types import Inputs, Run, Traced
from .graph import first_counted, of, where
from .listening import reaches
from .matching import alike
from .modes import differs_in_training
from .recording import record


def trace(model: nn.Module, example_inputs: Any = None) -> Traced:
    """Run `model` once on `example_inputs` and record what happened.

    The forward runs on a copy: the model, its hooks and caches, and the random state are as before, also after an
    error.

    Args:
        model: an eager `nn.Module` with real (not meta) parameters.
        example_inputs: a tensor, tuple or dict as for `torch.onnx.export`; None infers an image batch. Of a list of
            examples, the first.

    Raises:
        ModelError: the model is wrapped, scripted, or on the meta device, or cannot be copied.
        TraceError: the forward does not run on the inputs.
    """
    check_model(model)
    return run_again(model, normalize_examples(model, example_inputs), Run())


def run_again(
    model: nn.Module, examples: Sequence[Inputs], run: Run, meta_only: bool = False, really: bool = False
) -> Traced:
    """Record a model in the way that `run` says; `meta_only` and `really` as for `record`."""
    args, kwargs = examples[run.example]
    # In inference mode PyTorch does not take operators to pieces: a convolution would be another one.
    with torch.inference_mode(False):
        if run.training:
            args, kwargs = tree_map(_at_least_two, (args, kwargs))
        return record(model, args, kwargs, run, meta_only, really)


@dataclass(frozen=True, slots=True)
class Traces:
    """Everything that was recorded of a model.

    Attributes:
        first: in eval mode on the first example: shapes and costs refer to it.
        further: other examples, train mode where it differs, and what else was tried to reach every parameter.
        unseen: why parameters stay unseen, and nothing is known about what they consume; empty if all is known.
    """

    first: Traced
    further: tuple[Traced, ...] = ()
    unseen: str = ""

    def unused(self) -> list[str]:
        """Parameters that none of the forwards reached."""
        return sorted(set(self.first.unused).intersection(*(t.unused for t in self.further)))


def all_traces(model: nn.Module, example_inputs: Any = None) -> Traces:
    """Record every example in eval mode, and train mode where a forward may do something else then.

    Auxiliary heads exist in train mode only. If that forward fails (they need larger images), what it did until then
    still counts. A branch that is not taken every time is found by several calls.
    """
    examples = normalize_examples(model, example_inputs)
    first, *others = (run_again(model, examples, Run(i)) for i in range(len(examples)))
    found = Traces(first, tuple(t for t in others if not alike(first, t)))
    missed = ""
    if found.unused() or differs_in_training(model):
        try:
            training = run_again(model, examples, Run(training=True))
        except TraceError as error:
            begun = _begun(error, found)
            if begun is not None:
                found = replace(found, further=(*found.further, begun))
            missed = str(error).splitlines()[0][:200]
        else:
            if not alike(first, training):
                found = replace(found, further=(*found.further, training))
    if found.unused() and missed and not any(t.run.training for t in found.further):
        names = _some(found.unused())
        reason = f"what reads {names} is not known: not the forward in eval mode, and in train mode {missed}"
        return replace(found, unseen=reason)
    if found.unused() and reaches(model, *examples[0], _CALLS, found.unused(), first.on_meta):
        with contextlib.suppress(TraceError):
            called = run_again(model, examples, Run(calls=_CALLS))
            if not _repeats(called, first):
                found = replace(found, further=(*found.further, called))
    decides = _decides(first, *found.further) if found.unused() else ""
    if decides:
        reason = (
            f"it may meet {_some(found.unused())}, which the example inputs do not reach: the forward decides by "
            f"values ({decides}). Pass example_inputs=[...], a list of examples that take every "
            "branch; what none can reach must go"
        )
        return replace(found, unseen=reason)
    return found


def _decides(*traces: Traced) -> str:
    """What a forward may decide by which its shapes do not tell: a value that it reads, or how many it found. Empty
    if there is nothing."""
    for traced in traces:
        nodes = {node.name: node for node in traced.graph.nodes} if traced.reads else {}
        for read in traced.reads:
            if not of(nodes[read.node]).fixed:  # A constant decides alike each time.
                return read.where
    found = next(filter(None, (first_counted(t.graph) for t in traces)), None)
    return "" if found is None else f"by how much {where(found)} finds"


def _repeats(several: Traced, traced: Traced) -> bool:
    """Whether all calls did the same as the one in `traced`: then they say nothing new, and would be gone through in
    every coupling."""
    done, once = ([_work(n) for n in t.graph.nodes if n.op == "call_function"] for t in (several, traced))
    return done == _CALLS * once


def _work(node: fx.Node) -> tuple[object, ...]:
    """An operator, and the parameters and buffers that it reads."""
    read = [n for n in node.all_input_nodes if n.op == "get_attr" and not of(n).constant]
    return (node.target, *(n.target for n in read))


# A branch that a coin decides is missed with a probability of 1/256.
_CALLS = 8


def _some(tensors: Sequence[str]) -> str:
    """The modules (or else parameters) that these are of, a few of them."""
    return few(list(dict.fromkeys(t.rpartition(".")[0] or t for t in tensors)))


def _begun(error: TraceError, found: Traces) -> Traced | None:
    """The part of a forward before it failed, if it reached parameters that no other did."""
    if error.recorded is None:
        return None
    reached = {str(n.target) for n in error.recorded.nodes if n.op == "get_attr" and not of(n).constant}
    unused = tuple(name for name in found.unused() if name not in reached)
    if len(unused) == len(found.unused()):
        return None
    return Traced(error.recorded, found.first.tensors, unused, run=Run(training=True, whole=False))


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value
