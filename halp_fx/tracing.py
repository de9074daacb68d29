"""trace: model + example inputs -> a graph of ATen operators with shapes (`Traced`).

The real forward runs once, in eval mode and without gradients, under a `TorchDispatchMode` that writes down every
operator. Python control flow simply runs, and modules, functional calls, parametrisations and custom autograd
functions all come down to the same few hundred operators: one rule each is enough (see `docs/tracing.md` for why
this level, and not module or Python-function level, was chosen).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .errors import ModelError, TraceError
from .inputs import normalize_inputs
from .types import TensorSpec, Traced

_TORCH_DIR = torch.__path__[0] + "/"
_OWN_FILE = __file__
_MODULE_TABLES = set(vars(nn.Module()))
# Integer and boolean results up to this many elements keep their value: index operators need it.
_MAX_KEPT_VALUE = 1 << 20


def trace(model: nn.Module, example_inputs: Any = None) -> Traced:
    """Run `model` once on `example_inputs` and record what happened.

    The model's modes, buffers, gradients and the random state are as before, also after an error. Parameters that
    the eval-mode forward does not reach (auxiliary heads) are looked for in a train-mode forward with `train_trace`.

    Args:
        model: an eager `nn.Module` with real (not meta) parameters.
        example_inputs: a tensor, tuple or dict as for `torch.onnx.export`; None infers an image batch.

    Raises:
        ModelError: the model is wrapped, scripted, or on the meta device.
        TraceError: the forward does not run on the inputs.
    """
    check_model(model)
    args, kwargs = normalize_inputs(model, example_inputs)
    return record(model, args, kwargs)


def train_trace(model: nn.Module, example_inputs: Any = None) -> Traced:
    """As `trace`, in train mode and on a batch of at least two (BatchNorm refuses one value per channel).

    Used for what only exists in training, such as GoogLeNet's auxiliary heads.
    """
    check_model(model)
    args, kwargs = normalize_inputs(model, example_inputs)
    args, kwargs = tree_map(_at_least_two, (args, kwargs))
    return record(model, args, kwargs, training=True)


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be pruned as it is, and say what to pass instead.

    Raises:
        ModelError: see above.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a ScriptModule: pass the nn.Module that was scripted, then script the result")
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise ModelError(
            "the model is wrapped by torch.compile: pass the original (model._orig_mod), then compile the result"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ModelError(
            f"the model is wrapped by {type(model).__name__}: pass model.module, then wrap the result again"
        )
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            raise ModelError(
                f"{name} (shape {tuple(tensor.shape)}) is on the meta device and has no values: "
                "load the weights first (model.to_empty(device=...) and load_state_dict)"
            )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then buffers, each once, by their first qualified name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give back each module's attributes (modes, caches), changed buffers, and the random state at the end."""
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    dicts = [vars(m)[k] for m in model.modules() for k in vars(m).keys() - _MODULE_TABLES if type(vars(m)[k]) is dict]
    caches = [(cache, dict(cache)) for cache in dicts]
    tables = [(m._buffers, dict(m._buffers)) for m in model.modules() if m._buffers]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    devices = sorted({t.device.index or 0 for _, t in named_tensors(model) if t.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        try:
            yield
        finally:
            for module, found in attributes:
                # What a forward caches on its module would be wrong later: a trial run works on meta tensors.
                for name in vars(module).keys() - found.keys():
                    del vars(module)[name]
                vars(module).update(found)
            for table, kept in (*caches, *tables):
                table.clear()
                table.update(kept)
            with torch.no_grad():
                # Version counters would not tell: below autograd, a BatchNorm updates its statistics unnoticed.
                for buffer, copy in buffers:
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)


@contextmanager
def decomposed() -> Iterator[None]:
    """Attention as matrix products and softmax, for which there are rules, instead of fused operators."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool = False) -> Traced:
    """Run the forward and write it down; the model is left as found. `trace` without the checks."""
    with preserved(model):
        model.train(training)
        return _record(model, args, kwargs)


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    recorder = _Recorder(model)
    args, kwargs = tree_map(recorder.placeholder, (args, kwargs))
    names = _PythonNames()
    try:
        with torch.no_grad(), decomposed(), recorder.module_hooks(), names, recorder:
            recorder.names = names
            result = model(*args, **kwargs)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        where = f" in module {recorder.module!r}" if recorder.module else ""
        shapes = _shapes((args, kwargs))
        raise TraceError(
            f"the model's forward failed on the example inputs {shapes}{where}: {error}\n"
            "Pass example_inputs with which model(*example_inputs) runs.",
            recorder.graph,
        ) from error
    recorder.finish(result)
    tensors = {name: TensorSpec.of(t) for name, t in named_tensors(model)}
    unused = tuple(name for name, _ in model.named_parameters() if name not in recorder.reached)
    return Traced(recorder.graph, tensors, unused)


def _shapes(inputs: Any) -> str:
    leaves = torch.utils._pytree.tree_leaves(inputs)
    return ", ".join(str(tuple(v.shape)) if isinstance(v, torch.Tensor) else repr(v)[:40] for v in leaves)


class _PythonNames(TorchFunctionMode):
    """Knows the outermost Python-level torch function that is running (`chunk` and `split` both reach ATen as
    `split`, but only one of them follows the width)."""

    def __init__(self) -> None:
        super().__init__()
        self.current = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The mode is off inside this call, so only the outermost function gets here.
        self.current = getattr(func, "__name__", "")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.current = ""


class _Recorder(TorchDispatchMode):
    """Writes operators into an fx graph. Tensors are known by identity while their recording is alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.names: _PythonNames | None = None
        self.module = ""
        self.reached: set[str] = set()
        self._stack: list[str] = []
        self._module_names = {id(m): name for name, m in reversed(list(model.named_modules()))}
        self._attributes = {id(t): name for name, t in named_tensors(model)}
        # id(tensor) -> (tensor, node). The tensor is held so that its id is not used again.
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._aliases: dict[int, list[int]] = {}
        self._pending: dict[int, tuple[torch.Tensor, fx.Node, int]] = {}

    @contextmanager
    def module_hooks(self) -> Iterator[None]:
        """Follow which module is running. Global hooks leave the model's own hooks alone."""

        def enter(module: nn.Module, _args: Any) -> None:
            self._stack.append(self.module)
            self.module = self._module_names.get(id(module), self.module)

        def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
            self.module = self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def placeholder(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # A fresh object per input: the same tensor may be passed twice.
            value = value.detach()
            node = self.graph.placeholder(f"input_{len(self._nodes)}")
            self._describe(node, value)
            self._remember(value, node)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Arguments are looked up first: an in-place operator returns one of them.
        node_args, node_kwargs = self._lookup(args), self._lookup(kwargs)
        result = _shape_only(func, args) if func is _BATCH_NORM else func(*args, **kwargs)
        if func.namespace == "prim" or not _has_tensor(result):
            return result
        node = self.graph.call_function(func, tuple(node_args), dict(node_kwargs))
        self._describe(node, result)
        mutated = self._mutated(func, args, kwargs)
        if isinstance(result, torch.Tensor):
            self._remember(result, node)
        else:
            for index, item in enumerate(result):
                if isinstance(item, torch.Tensor):
                    self._pending[id(item)] = (item, node, index)
                    self._nodes.pop(id(item), None)
        for tensor in mutated:
            self._after_write(tensor, node)
        return result

    def finish(self, result: Any) -> None:
        self.graph.output(self._lookup(_plain(result)))
        self._nodes.clear()
        self._pending.clear()

    def _lookup(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node_of(value)
        if isinstance(value, list | tuple):
            return [self._lookup(v) for v in value]
        if isinstance(value, Mapping):
            return {k: self._lookup(v) for k, v in value.items()}
        return value

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known[1]
        pending = self._pending.pop(id(tensor), None)
        if pending is not None:
            _, source, index = pending
            node = self.graph.call_function(_getitem, (source, index))
            node.meta.update(module=source.meta["module"], function="", source=source.meta["source"])
            self._set_spec(node, tensor)
        elif id(tensor) in self._attributes:
            name = self._attributes[id(tensor)]
            self.reached.add(name)
            node = self.graph.create_node("get_attr", name)
            self._describe(node, tensor)
        else:
            # Made before the forward, or by code that no operator shows (numpy): it has no labels.
            node = self.graph.create_node("get_attr", f"constant_{len(self._nodes)}")
            node.meta["constant"] = True
            self._describe(node, tensor)
        self._remember(tensor, node)
        return node

    def _remember(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = (tensor, node)
        self._aliases.setdefault(_storage(tensor), []).append(id(tensor))

    def _mutated(self, func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
        if not func._schema.is_mutable:
            return []
        written = []
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written += [v for v in (value if isinstance(value, list | tuple) else [value]) if v is not None]
        return [v for v in written if isinstance(v, torch.Tensor)]

    def _after_write(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Later readers of `tensor` see `node`; other views of its memory see that it was written."""
        if id(tensor) not in self._nodes or self._nodes[id(tensor)][1] is not node:
            if id(tensor) in self._attributes:
                return  # Running statistics of a train-mode BatchNorm; their slots are labelled by the rule.
            self._remember(tensor, node)
        for other in dict.fromkeys(self._aliases.get(_storage(tensor), ())):
            if other == id(tensor) or other not in self._nodes:
                continue
            view, old = self._nodes[other]
            written = self.graph.call_function(written_through_alias, (old, node))
            self._describe(written, view)
            self._nodes[other] = (view, written)

    def _describe(self, node: fx.Node, value: Any) -> None:
        node.meta["module"] = self.module
        node.meta["function"] = self.names.current if self.names is not None else ""
        node.meta["source"] = _caller() if node.op == "call_function" else ""
        self._set_spec(node, value)

    def _set_spec(self, node: fx.Node, value: Any) -> None:
        node.meta["spec"] = None
        if isinstance(value, torch.Tensor):
            node.meta["spec"] = TensorSpec(tuple(value.shape), _strides(value), value.dtype, value.device)
            if not value.is_floating_point() and value.numel() <= _MAX_KEPT_VALUE and not value.is_complex():
                node.meta["value"] = value


_BATCH_NORM = torch.ops.aten.native_batch_norm.default


def _shape_only(func: Any, args: Any) -> Any:
    """Batch norm; in eval mode on the meta device without PyTorch's decomposition, which takes 2 ms a layer."""
    x, training = args[0], args[5]
    if x.is_meta and not training:
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    return func(*args)


def written_through_alias(old: Any, writer: Any) -> Any:
    """Node target: the memory of `old` was written by `writer` through another view. Never executed."""
    raise NotImplementedError


def _getitem(values: Any, index: int) -> Any:
    """Node target: one result of an operator with several."""
    return values[index]


getitem = _getitem


def _has_tensor(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return True
    return isinstance(result, list | tuple) and any(isinstance(r, torch.Tensor) for r in result)


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()) if tensor.layout == torch.strided else ()


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _plain(result: Any) -> Any:
    """The output as nested lists, tuples and dicts (dataclass-like outputs by their fields)."""
    leaves, _ = torch.utils._pytree.tree_flatten(result)
    found = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module):
            found += [v for v in torch.utils._pytree.tree_leaves(vars(leaf)) if isinstance(v, torch.Tensor)]
    return tuple(found)


def _caller() -> str:
    """File and line of the user's (or torchvision's) code that called into torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_TORCH_DIR) and filename != _OWN_FILE:
            return f"{filename.rsplit('/', 2)[-2]}/{filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
