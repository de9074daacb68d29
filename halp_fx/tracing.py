"""trace: model + example inputs -> a graph of ATen operators with shapes (`Traced`).

The real forward runs once on a copy, in eval mode and without gradients, under a `TorchDispatchMode` that writes down
every operator. Python control flow simply runs, and modules, functional calls, parametrisations and custom autograd
functions all come down to the same few hundred operators: one rule each is enough (see `docs/tracing.md` for why
this level, and not module or Python-function level, was chosen).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from .errors import ModelError, TraceError
from .inputs import normalize_examples
from .modes import differs_in_training
from .preserving import named_tensors
from .recorder import getitem
from .recording import record
from .types import Inputs, Run, Traced


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
    check_model(model)
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
    if found.unused():
        with contextlib.suppress(TraceError):
            called = run_again(model, examples, Run(calls=_CALLS))
            if not _repeats(called, first):
                found = replace(found, further=(*found.further, called))
    reads = [read for t in (first, *found.further) for read in t.reads]
    if found.unused() and reads:
        reason = (
            f"it may meet {_some(found.unused())}, which the example inputs do not reach: the forward decides by "
            f"values ({reads[0].where}). Pass example_inputs=[...], a list of examples that take every "
            "branch; what none can reach must go"
        )
        return replace(found, unseen=reason)
    return found


def _repeats(several: Traced, traced: Traced) -> bool:
    """Whether all calls did the same as the one in `traced`: then they say nothing new, and would be gone through in
    every coupling."""
    done, once = ([_step(n) for n in t.graph.nodes if n.op == "call_function"] for t in (several, traced))
    return done == _CALLS * once


def _step(node: fx.Node) -> tuple[object, ...]:
    """An operator, and the parameters and buffers that it reads."""
    read = [n for n in node.all_input_nodes if n.op == "get_attr" and not n.meta.get("constant")]
    return (node.target, *(n.target for n in read))


# A branch that a coin decides is missed with a probability of 1/256.
_CALLS = 8


def _some(tensors: Sequence[str]) -> str:
    """The modules (or else parameters) that these are of, a few of them."""
    names = list(dict.fromkeys(t.rpartition(".")[0] or t for t in tensors))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _begun(error: TraceError, found: Traces) -> Traced | None:
    """The part of a forward before it failed, if it reached parameters that no other did."""
    if error.recorded is None:
        return None
    reached = {str(n.target) for n in error.recorded.nodes if n.op == "get_attr" and not n.meta.get("constant")}
    unused = tuple(name for name in found.unused() if name not in reached)
    if len(unused) == len(found.unused()):
        return None
    return Traced(error.recorded, found.first.tensors, unused, run=Run(training=True, whole=False))


def alike(a: Traced, b: Traced) -> bool:
    """Whether two forwards ran the same operators at the same places on the same things, up to sizes."""
    found = matched(a, b)
    return found is not None and not found.noisy


@dataclass(frozen=True, slots=True)
class Matched:
    """Two forwards of which the second does what the first one does, but for random numbers that something is
    computed with, element by element (stochastic depth).

    Attributes:
        pairs: the operators, one beside the other.
        noisy: operators of the second with noise, beside the operator of the first whose result they take, and the
            dimensions along which the noise varies.
    """

    pairs: list[tuple[fx.Node, fx.Node]]
    noisy: list[tuple[fx.Node, fx.Node, set[int]]]

    def touches(self, channels: Callable[[fx.Node], set[int]]) -> bool:
        """Whether noise varies along a dimension of which `channels` says that it has some, or the second forward
        reads the size of one that the first does not read."""
        if any(dims & channels(old) for old, _, dims in self.noisy):
            return True
        for old, new in (*self.pairs, *(row[:2] for row in self.noisy)):
            read = new.meta.get("sizes_read", set()) - old.meta.get("sizes_read", set())
            if read and read & channels(old):
                return True
        return False


def matched(a: Traced, b: Traced) -> Matched | None:
    """How two forwards go together; None if the second does something else, or reads other values. Dropout, which does
    nothing in eval mode, is looked through."""
    if set(a.unused) - set(b.unused) or {r.where for r in b.reads} - {r.where for r in a.reads}:
        return None
    number: dict[fx.Node, int] = {}
    rows: list[tuple[fx.Node, tuple[Any, ...]]] = []
    for node in _lasting(a.graph):
        if not _looked_through(node, number):
            number[node] = len(rows)
            rows.append((node, _wiring(node, number)))
    found = Matched([], [])
    noise: set[fx.Node] = set()
    ordinal: dict[fx.Node, int] = {}
    for node in _lasting(b.graph):
        if _looked_through(node, ordinal):
            continue
        real = [n for n in node.all_input_nodes if n not in noise]
        following = len(found.pairs)
        if (
            following < len(rows)
            and len(real) == len(node.all_input_nodes)
            and _wiring(node, ordinal) == rows[following][1]
        ):
            ordinal[node] = following
            found.pairs.append((rows[following][0], node))
        elif _is_noise(node, real):
            noise.add(node)
        elif len(real) == 1 and _elementwise(node, real[0]):
            ordinal[node] = ordinal[real[0]]
            found.noisy.append((rows[ordinal[node]][0], node, _wide(node, noise)))
        else:
            return None
    return found if len(found.pairs) == len(rows) else None


def _lasting(graph: fx.Graph) -> Iterator[fx.Node]:
    counting = _counting(graph)
    return (node for node in graph.nodes if node not in counting)


def _looked_through(node: fx.Node, number: dict[fx.Node, int]) -> bool:
    """Whether a node is known by the number of what it takes: dropout, and copies, which a reshape makes or not as the
    batch size has it."""
    dropout = _opname(node) == "native_dropout" or (
        node.target is getitem and _opname(node.all_input_nodes[0]) == "native_dropout"
    )
    if not (dropout or _opname(node) == "clone") or node.all_input_nodes[0] not in number:
        return False
    number[node] = number[node.all_input_nodes[0]]
    return True


def _wiring(node: fx.Node, number: dict[fx.Node, int]) -> tuple[Any, ...]:
    """What an operator is and reads, and where."""
    kind = str(node.target) if node.op == "call_function" else node.op
    name: Any = node.target if node.op == "get_attr" and not node.meta.get("constant") else ""
    if node.target is getitem:
        name = node.args[1]
    elif _opname(node) in ("view", "_unsafe_view"):
        kind = "view"
    return kind, name, tuple(number.get(n) for n in node.all_input_nodes), node.meta.get("source", "")


def _opname(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", ""))


def _is_noise(node: fx.Node, real: Sequence[fx.Node]) -> bool:
    """Whether an operator makes numbers out of nothing but a shape, or computes with such."""
    name = _opname(node)
    return node.op == "call_function" and (not real or name.startswith("new_") or name.endswith("_like"))


def _elementwise(node: fx.Node, taken: fx.Node) -> bool:
    before, after = taken.meta.get("spec"), node.meta.get("spec")
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise and before is not None and after is not None and before.shape == after.shape


def _wide(node: fx.Node, noise: set[fx.Node]) -> set[int]:
    """Dimensions of an operator's result along which its noise varies. That of PyTorch's dropouts has the shape of what
    they are given."""
    if "dropout" in node.meta.get("function", ""):
        return set()
    rank = len(node.meta["spec"].shape)
    shapes = [n.meta["spec"].shape for n in node.all_input_nodes if n in noise]
    return {rank - len(shape) + d for shape in shapes for d, size in enumerate(shape) if size > 1}


def _counting(graph: fx.Graph) -> set[fx.Node]:
    """Buffers that are counted up and not read otherwise, and the operators that do it: how often a norm has run."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        counts = node.op == "call_function" and all(n.op == "get_attr" for n in node.all_input_nodes)
        whole = node.meta.get("spec") is not None and not node.meta["spec"].dtype.is_floating_point
        if whole and ((counts and not node.users) or (node.op == "get_attr" and found.issuperset(node.users))):
            found.add(node)
    return found


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be pruned as it is, and say what to pass instead.

    Raises:
        ModelError: see above.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a ScriptModule: pass the nn.Module that was scripted, then script the result")
    # Who has one has imported this module, which takes seconds.
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    if isinstance(model, compiled):
        raise ModelError(
            "the model is wrapped by torch.compile: pass the original (model._orig_mod), then compile the result"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ModelError(
            f"the model is wrapped by {type(model).__name__}: pass model.module, then wrap the result again"
        )
    for name, tensor in named_tensors(model):
        _check_tensor(name, tensor)


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise ModelError(f"{name} is not initialised yet (a lazy module): run the model once first")
    shape = tuple(tensor.shape)
    if tensor.is_meta:
        raise ModelError(
            f"{name} (shape {shape}) is on the meta device and has no values: "
            "load the weights first (model.to_empty(device=...) and load_state_dict)"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else f"sparse ({tensor.layout})"
        raise ModelError(f"{name} (shape {shape}) is {kind}: only dense tensors can be pruned")
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise ModelError(f"{name} (shape {shape}) is a {type(tensor).__name__}, a kind of tensor not known here")


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value
