"""record: one forward -> an fx graph of ATen operators (`Traced`).

The forward runs on meta tensors where it can, which costs no arithmetic, and otherwise really: where it reads values
(a detector's boxes), or where an operator has no meta implementation. What it computes from constants alone (index
tables) has its value in either case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from . import shapes
from .calls import CallLog, PythonNames, caller
from .constants import Constants
from .errors import ModelError, TraceError
from .preserving import Members, decomposed, hollow, meta_twin, preserved, uncollected
from .tags import active, with_sizes
from .types import ModuleCall, TensorSpec, Traced

# Arguments that are written down as they are; most are of these types.
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
_SEQUENCES = (list, tuple)

# `batch_norm` makes an empty tensor for a backward pass in another library and never returns it.
_EMPTY = torch.ops.aten.empty.memory_format
_RESERVING = ("batch_norm", "instance_norm")


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: bool = False,
    calls: int = 1,
    meta_only: bool = False,
) -> Traced:
    """Run the forward (`calls` times in a row) and write it down; the model is left as found.

    Args:
        meta_only: do not run it really if it fails on meta tensors.

    Raises:
        TraceError: the forward fails on these arguments.
    """
    if meta_only:
        return _record(model, args, kwargs, training, calls, on_meta=True)
    if not any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):  # Autocast leaves meta tensors as they are.
        with suppress(TraceError, NotImplementedError, RuntimeError):
            return _record(model, args, kwargs, training, calls, on_meta=True)
    return _record(model, args, kwargs, training, calls, on_meta=False)


def _record(model: nn.Module, args: Any, kwargs: Any, training: bool, calls: int, on_meta: bool) -> Traced:
    members = Members.of(model)
    recorder = (_ShieldedRecorder if "torch._dynamo" in sys.modules else _Recorder)(model, members, on_meta)
    twinned: AbstractContextManager[dict[int, Any]] = hollow(model, members=members) if on_meta else nullcontext({})
    # On meta tensors nothing of size waits for the garbage collection.
    with uncollected() if on_meta else nullcontext(), twinned as twins, preserved(model, members):
        model.train(training)
        recorder.name_attributes(twins)
        inputs = tree_map(recorder.placeholder, (args, kwargs))
        try:
            with torch.no_grad(), decomposed(), recorder.module_hooks(), recorder.names, recorder:
                result = [model(*inputs[0], **inputs[1]) for _ in range(calls)]
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            where = f" in module {recorder.module!r}" if recorder.module else ""
            raise TraceError(
                f"the model's forward failed on the example inputs {_shapes((args, kwargs))}{where}: {error}\n"
                "Pass example_inputs with which model(*example_inputs) runs.",
                recorder.graph,
                recorder.names.failed,
            ) from error
        recorder.finish(result)
    if recorder.missing:
        raise TraceError(f"{recorder.missing} depends on values, which a forward on meta tensors does not have")
    tensors = {name: TensorSpec.of(t) for name, t in members.tensors.items()}
    unused = tuple(name for name in members.parameters if name not in recorder.reached)
    return Traced(recorder.graph, tensors, unused, recorder.calls, on_meta)


def _shapes(inputs: Any) -> str:
    leaves = tree_leaves(inputs)
    return ", ".join(str(tuple(v.shape)) if isinstance(v, torch.Tensor) else repr(v)[:40] for v in leaves)


class _Recorder(TorchDispatchMode):
    """Writes operators into an fx graph. Tensors are known by identity while their recording is alive."""

    def __init__(self, model: nn.Module, members: Members, on_meta: bool) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.names = PythonNames(self.whole, self.sized)
        self.module = ""
        self.reached: set[str] = set()
        self.calls: tuple[ModuleCall, ...] = ()
        self.missing = ""
        self._constants = Constants(on_meta)
        self._log = CallLog(self.graph, self._known)
        self._layer: type = type(model)
        self._stack: list[tuple[str, type]] = []
        self._module_names = {id(m): name for name, m in members.modules.items()}
        self._members = members
        self._originals = members.tensors
        self._device = next((t.device for t in self._originals.values()), torch.device("cpu"))
        self._attributes: dict[int, str] = {}
        self._parameters: dict[int, str] = {}
        # Of parameters that have no node yet.
        self._sizes_read: dict[int, set[int]] = {}
        # id(tensor) -> (tensor, node, writes to its memory that the node knows of, its memory). The tensor is held so
        # that its id is not used again.
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node, int, int]] = {}
        self._writes: dict[int, list[tuple[int, fx.Node]]] = {}
        # The tensor that was last seen in each piece of memory.
        self._newest: dict[int, torch.Tensor] = {}
        self._pending: dict[int, tuple[torch.Tensor, fx.Node, int]] = {}
        # Most tensors of a network look like another one.
        self._specs: dict[tuple[Any, ...], TensorSpec] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Else PyTorch imports its compiler, which takes seconds, to switch it off around each operator.

    def name_attributes(self, twins: Mapping[int, torch.Tensor]) -> None:
        """Know the parameters and buffers that the forward will use: those of the model, or their meta twins."""
        self._attributes = {id(twins.get(id(t), t)): name for name, t in self._originals.items()}
        used = ((name, twins.get(id(p), p)) for name, p in self._members.parameters.items())
        self._parameters = {_storage(p): name for name, p in used}

    @contextmanager
    def module_hooks(self) -> Iterator[None]:
        """Follow which module is running. Global hooks leave the model's own hooks alone."""

        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append((self.module, self._layer))
            name = self._module_names.get(id(module))
            self.module, self._layer = self.module if name is None else name, type(module)
            self._log.enter(module, name, args)

        def leave(_module: nn.Module, _args: Any, result: Any) -> None:
            self.module, self._layer = self._stack.pop()
            self._log.leave(result)

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def placeholder(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # A fresh tensor per input: the same one may be passed twice, and the forward may write to it.
        seen = meta_twin(value) if self._constants.on_meta else value.detach().clone()
        node = self.graph.placeholder(f"input_{len(self._nodes)}")
        self._describe(node, seen)
        self._constants.seen(node, value)
        self._remember(seen, node)
        return seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _EMPTY and self.names.current in _RESERVING:
            return func(*args, **kwargs)
        # Arguments are looked up first: an in-place operator returns one of them.
        node_args, node_kwargs = self._lookup(args), self._lookup(kwargs) if kwargs else {}
        places = _written(func)
        written = _tensors_at(places, args, kwargs) if places else []
        for tensor in written:
            name = self._parameters.get(_storage(tensor))
            if name is not None:
                raise ModelError(f"the forward changes its own parameter {name} ({caller()}): make it a buffer")
        result = shapes.run(func, args, kwargs)
        if func.namespace == "prim" or not _has_tensor(result):
            if written:
                raise ModelError(f"{func} in {self.module!r} ({caller()}) writes to tensors without returning them")
            return result
        node = self._add(func, node_args, node_kwargs, result)
        for tensor in written:
            self._after_write(tensor, node)
        return result

    def whole(self, func: Any, args: Any, result: Any) -> Any:
        """Run an operator that PyTorch would take to pieces, unless its result is known, and write it down as one."""
        node_args = self._lookup(args)
        if result is None:
            with _disable_current_modes():
                result = shapes.run(func, args, {})
        self._add(func, node_args, {}, result)
        return result

    def sized(self, args: Any, result: Any) -> Any:
        """The program reads sizes of a tensor: `meta` of its node says of which dimensions. A parameter of which
        nothing else is read gets no node."""
        dims = (args[1] % args[0].dim(),) if len(args) > 1 and args[1] is not None else range(args[0].dim())
        known = self._known(args[0])
        if known is None:
            self._sizes_read.setdefault(id(args[0]), set()).update(dims)
            return result
        node = known if isinstance(known, fx.Node) else self._node_of(args[0])
        node.meta.setdefault("sizes_read", set()).update(dims)
        return with_sizes(result, node, dims) if active() else result

    def _add(self, func: Any, node_args: Any, node_kwargs: Any, result: Any) -> fx.Node:
        node = self.graph.create_node("call_function", func, name=func._opname)
        # Given to `create_node`, they would all be searched for symbolic numbers, one by one.
        node.args = tuple(node_args)
        if node_kwargs:
            node.kwargs = node_kwargs
        self._describe(node, result)
        self._constants.follow(node, result)
        self.missing = self.missing or self._constants.lacks(node)
        if isinstance(result, torch.Tensor):
            self._remember(result, node)
        else:
            for index, item in enumerate(result):
                if isinstance(item, torch.Tensor):
                    self._pending[id(item)] = (item, node, index)
                    self._nodes.pop(id(item), None)
        return node

    def finish(self, result: Any) -> None:
        self.graph.output(self._lookup(_plain(result)))
        self.calls = self._log.finish()
        self._nodes.clear()
        self._pending.clear()
        self._newest.clear()

    def _lookup(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, torch.Tensor):
            return self._node_of(value)
        if isinstance(value, _SEQUENCES):
            return [v if type(v) in _PLAIN else self._lookup(v) for v in value]
        if isinstance(value, Mapping):
            return {k: self._lookup(v) for k, v in value.items()}
        return value

    def _known(self, tensor: torch.Tensor) -> tuple[fx.Node, int] | fx.Node | None:
        """What a tensor is known as: a node, or a node with several results and which of them."""
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known[1]
        pending = self._pending.get(id(tensor))
        return None if pending is None else pending[1:]

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        known = self._nodes.get(id(tensor))
        if known is not None:
            writes = self._writes.get(known[3], ())
            return known[1] if known[2] == len(writes) else self._after_writes(tensor, known[1], writes[known[2] :])
        pending = self._pending.pop(id(tensor), None)
        if pending is not None:
            _, source, index = pending
            node = self.graph.call_function(getitem, (source, index))
            node.meta.update(module=source.meta["module"], function="", source=source.meta["source"])
            self._set_spec(node, tensor)
            self._constants.follow(node, tensor)
        elif id(tensor) in self._attributes:
            name = self._attributes[id(tensor)]
            self.reached.add(name)
            # Not given, fx makes the same name of it in more steps.
            node = self.graph.create_node("get_attr", name, name=name if name.islower() else None)
            node.meta["sizes_read"] = self._sizes_read.pop(id(tensor), set())
            self._describe(node, tensor)
            self._constants.seen(node, self._originals[name])
        elif (alias := self._alias(tensor)) is not None:
            node = alias
        else:
            # Made before the forward, or by code that no operator shows (numpy): it has no labels.
            node = self.graph.create_node("get_attr", f"constant_{len(self._nodes)}")
            node.meta["constant"] = True
            self._describe(node, tensor)
            self._constants.given(node, tensor)
        self._remember(tensor, node)
        return node

    def _alias(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of the same elements under another Python object (`as_subclass`)."""
        known = self._newest.get(_storage(tensor))
        if known is None or known.shape != tensor.shape or known.storage_offset() != tensor.storage_offset():
            return None
        return self._node_of(known) if known.stride() == tensor.stride() else None

    def _remember(self, tensor: torch.Tensor, node: fx.Node) -> None:
        storage = _storage(tensor)
        self._newest[storage] = tensor
        self._nodes[id(tensor)] = (tensor, node, len(self._writes.get(storage, ())), storage)

    def _after_write(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Later readers of `tensor` see `node`; readers of other views of its memory will see that it was written."""
        known = self._nodes.get(id(tensor))
        if known is None and id(tensor) in self._attributes:
            return  # Running statistics of a train-mode BatchNorm; their slots are labelled by the rule.
        self._writes.setdefault(_storage(tensor), []).append((id(tensor), node))
        self._remember(tensor, node if known is None or known[1] is not node else known[1])

    def _after_writes(self, tensor: torch.Tensor, node: fx.Node, writes: Any) -> fx.Node:
        """What a view holds after its memory was written through others."""
        for writer, written in writes:
            if writer != id(tensor):
                node = self.graph.call_function(written_through_alias, (node, written))
                self._describe(node, tensor)
        self._remember(tensor, node)
        return node

    def _describe(self, node: fx.Node, value: Any) -> None:
        source = caller() if node.op == "call_function" else ""
        node.meta.update(module=self.module, layer=self._layer, function=self.names.current, source=source)
        if self.names.sources:
            node.meta["sources"] = self.names.sources
        self._set_spec(node, value)

    def _set_spec(self, node: fx.Node, value: Any) -> None:
        node.meta["spec"] = self._spec(value)
        if isinstance(value, _SEQUENCES):
            node.meta["results"] = tuple(map(self._spec, value))

    def _spec(self, value: Any) -> TensorSpec | None:
        if not isinstance(value, torch.Tensor):
            return None
        device = self._device if value.is_meta else value.device
        key = (value.shape, _strides(value), value.dtype, device)
        spec = self._specs.get(key)
        if spec is None:
            spec = self._specs[key] = TensorSpec(tuple(value.shape), *key[1:])
        return spec


def written_through_alias(old: Any, writer: Any) -> Any:
    """Node target: the memory of `old` was written by `writer` through another view. Never executed."""
    raise NotImplementedError


def getitem(values: Any, index: int) -> Any:
    """Node target: one result of an operator with several."""
    return values[index]


class _ShieldedRecorder(_Recorder):
    """For a process that has the compiler: within a compiled part of a forward it would compile the recorder."""

    __torch_dispatch__ = _Recorder.__torch_dispatch__

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operator writes to."""
    found = ((i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write)
    return tuple(found)


def _tensors_at(places: Sequence[tuple[int, str]], args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that these arguments are, or hold."""
    found = [args[index] if index < len(args) else kwargs.get(name) for index, name in places]
    leaves = (leaf for v in found for leaf in ((v,) if isinstance(v, torch.Tensor) else tree_leaves(v)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


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
    found = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module):
            found += [v for v in tree_leaves(vars(leaf)) if isinstance(v, torch.Tensor)]
    return tuple(found)
