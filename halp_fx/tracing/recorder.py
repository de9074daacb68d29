"""Recorder: writes the operators of a running forward into an fx graph.

Which node a tensor is, `memory` knows; what runs above the operators is seen by `calls`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelError
from ..internals import disable_current_modes, tree_leaves
from ..model.members import Members
from ..model.preserving import meta_twin
from ..model.tensors import tensors_in
from ..types import ModuleCall, Record, Run, TensorSpec, ValueRead
from . import meta_shapes
from .calls import GRAPH_NODE, CallLog, PythonNames, caller, checked_by_torch, has_hooks
from .constants import Constants, says_finite
from .graph import ancestors, getitem, keep, of, operator, places_written, written_through_alias
from .handing import OperatorMode
from .leaks import MetaWatch, ValueWatch
from .memory import Held, Memory, Result, Write, same_elements, storage_of
from .tags import active, forget_compared, with_sizes

# Arguments that are written down as they are; most are of these types.
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
_SEQUENCES = (list, tuple)
_NO_DIMS = frozenset[int]()

# `batch_norm` makes an empty tensor for a backward pass in another library and never returns it.
_EMPTY = torch.ops.aten.empty.memory_format
_RESERVING = ("batch_norm", "instance_norm")
_ITEM = torch.ops.aten._local_scalar_dense.default


_NESTED = ": its rows have lengths of their own, and a trace has one shape for each tensor. Compute with a padded one"


class Lacking(BaseException):
    """An operator needs values that a forward on meta tensors does not have. No error, which the forward may catch."""


class Recorder(OperatorMode):
    """Writes operators into an fx graph."""

    def __init__(self, used: nn.Module, live: Members, watch: MetaWatch | None, run: Run) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.module = ""
        self.reached: set[str] = set()
        self.calls: tuple[ModuleCall, ...] = ()
        self.reads: list[ValueRead] = []
        self.missing = ""
        self._watch = watch
        # What it made that has values.
        self.made = ValueWatch()
        self._constants = Constants(on_meta=watch is not None)
        self._memory = Memory()
        self._log = CallLog(self.graph, self._memory.known)
        self._layer: type = type(used)
        self._stack: list[tuple[str, type]] = []
        # The last exception that a module was left by, and the innermost module.
        self._failed: tuple[BaseException | None, str] = (None, "")
        self._members = Members.of(used)
        self._originals = live.tensors
        self._device = next((t.device for t in self._originals.values()), torch.device(run.device or "cpu"))
        if self._device.type == "meta" and run.device:
            self._device = torch.device(run.device)
        self._run = replace(run, device=str(self._device))
        told = None if watch is None else self._device
        self.names = PythonNames(self.whole, self.sized, self.read, told, run.catches)
        # The forward uses the copy's tensors; code that closes over the caller's model uses those.
        tensors = self._members.tensors
        self._attributes = {id(t): name for found in (self._originals, tensors) for name, t in found.items()}
        parameters = self._members.parameters
        self._parameters = {} if run.training else {storage_of(p): name for name, p in parameters.items()}
        self._homes = {storage_of(t): (name, t) for name, t in tensors.items()}
        if watch is not None:
            for tensor in tensors.values():
                watch.see(tensor)
        # Of parameters that have no node yet.
        self._sizes_read: dict[int, frozenset[int]] = {}
        # Most tensors of a network look like another one.
        self._specs: dict[tuple[Any, ...], TensorSpec] = {}

    @property
    def run(self) -> Run:
        """How the forward ran, as far as it has."""
        return replace(self._run, catches=self.names.any_failed)

    def follow_modules(self) -> None:
        """Know from now on which module of the copy is running. The model's own hooks run between these."""
        for name, module in self._members.modules.items():
            hooked = has_hooks(module)

            def enter(module: nn.Module, args: Any, name: str = name, hooked: bool = hooked) -> None:
                self._stack.append((self.module, self._layer))
                self.module, self._layer = name, type(module)
                self._log.enter(module, name, hooked, args)

            module.register_forward_pre_hook(enter, prepend=True)
            # Also where the forward fails: what called it may catch that.
            module.register_forward_hook(self._leave, prepend=True, always_call=True)

    def _leave(self, _module: nn.Module, _args: Any, result: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and error is not self._failed[0]:
            self._failed = error, self.module
        self.module, self._layer = self._stack.pop()
        self._log.leave(result)

    def where(self, error: BaseException) -> str:
        """In which module the forward failed."""
        module = self._failed[1] if error is self._failed[0] else self.module
        return f" in module {module!r}" if module else ""

    def _where(self, what: str, line: str) -> str:
        return f"{what} in {self.module!r} ({line})" if self.module else f"{what} ({line})"

    def placeholder(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_nested and value.layout == torch.strided:
            raise ModelError(f"there is a nested tensor among the example inputs{_NESTED}")
        # A fresh tensor per input: the same one may be passed twice, and the forward may write to it.
        seen = meta_twin(value) if self._constants.on_meta else value.detach().clone()
        node = self.graph.placeholder(f"input_{len(self._memory)}")
        self._describe(node, seen)
        self._constants.seen(node, value)
        self._remember(seen, node)
        return seen

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _EMPTY and self.names.current in _RESERVING:
            return func(*args, **kwargs)
        # Arguments are looked up first: an in-place operator returns one of them.
        node_args, node_kwargs = self._lookup(args), self._lookup(kwargs) if kwargs else {}
        places = places_written(func)
        written = _tensors_at(places, args, kwargs) if places else []
        for tensor in written:
            name = self._parameters.get(storage_of(tensor))
            if name is not None:
                raise ModelError(
                    f"the forward changes its own parameter {name} ({caller()}): compute with what it should be "
                    "(`weight * mask`) instead of writing it, or make it a buffer"
                )
        if torch.Tag.data_dependent_output in func.tags:
            known = self._read_values(func, node_args, args)
            if known is not None:
                return known
        try:
            result = meta_shapes.run(func, args, kwargs)
        except Exception as error:
            if not self.names.current:
                self.names.fails(error)  # Scripted code runs it.
            raise
        if func.namespace == "prim" or not _has_tensor(result):
            if written:
                raise ModelError(f"{self._where(str(func), caller())} writes to tensors without returning them")
            if result == [] and node_args and isinstance(node_args[0], fx.Node):
                # It goes through the rows of what has none.
                record = of(node_args[0])
                record.sizes_read = record.sizes_read.union(range(args[0].dim()))
            return result
        node = self._add(func, node_args, node_kwargs, result)
        for tensor in written:
            self._after_write(tensor, node)
        return result

    def whole(self, func: Any, args: Any, result: Any) -> Any:
        """Run an operator that PyTorch would take to pieces, unless its result is known, and write it down as one."""
        node_args = self._lookup(args)
        if result is None:
            with disable_current_modes():
                result = meta_shapes.run(func, args, {})
        self._add(func, node_args, {}, result)
        return result

    def read(self, function: str, tensor: torch.Tensor) -> None:
        """The program takes values out of a tensor by a way that is no operator, and that may not fail where there are
        none (`data_ptr`)."""
        node = self._node_of(tensor)
        self._read(function, node)
        if tensor.is_meta and not of(node).fixed:
            self.missing = self.missing or function
            raise Lacking

    def _read_values(self, func: Any, node_args: Any, args: Any) -> Any:
        """The program takes values out of tensors; what it gets if they are known."""
        nodes = [n for n in node_args if isinstance(n, fx.Node)]
        finite = says_finite(nodes[0]) if func is _ITEM else None
        if finite is not None and not args[0].is_meta and bool(func(*args)) == finite:
            return finite  # Whether numbers overflow is no use of what they are.
        for node in nodes:
            self._read(self.names.current or operator(func), node)
        if func is _ITEM and of(nodes[0]).fixed:
            return of(nodes[0]).known.item()
        return None

    def _read(self, function: str, node: fx.Node) -> None:
        fixed = of(node).fixed
        # Constants among the attributes have slots, and other values with fewer of them.
        shrinks = fixed and any(str(n.target) in self._members.plain for n in ancestors([node]) if n.op == "get_attr")
        # PyTorch's own code tells right from wrong arguments so (an observer's range), and goes on alike.
        if (fixed and not shrinks) or (of(node).one.dtype is torch.bool and checked_by_torch()):
            return
        line = caller()
        self.reads.append(ValueRead(node.name, self._where(function, line), line.startswith(GRAPH_NODE)))
        self._constants.values_read = self._constants.values_read or not fixed

    def sized(self, args: Any, result: Any, part: int | slice) -> Any:
        """The program reads sizes of a tensor, or a part of them: the record of its node says of which dimensions. A
        parameter of which nothing else is read gets no node."""
        dims = (args[1] % args[0].dim(),) if len(args) > 1 and args[1] is not None else range(args[0].dim())
        part = slice(part, part + 1 or None) if isinstance(part, int) else part
        known = self._memory.known(args[0])
        if known is None:
            self._sizes_read[id(args[0])] = self._sizes_read.get(id(args[0]), _NO_DIMS).union(dims[part])
            name = self._attributes.get(id(args[0]))
            # A node that is made here would be another one than in the original graph; most will be called so.
            return with_sizes(result, name.replace(".", "_"), dims) if active() and name is not None else result
        node = known if isinstance(known, fx.Node) else self._node_of(args[0])
        record = of(node)
        record.sizes_read = record.sizes_read.union(dims[part])
        return with_sizes(result, node.name, dims) if active() else result

    def _add(self, func: Any, node_args: Any, node_kwargs: Any, result: Any) -> fx.Node:
        forget_compared()
        node = self.graph.create_node("call_function", func, name=operator(func))
        # Given to `create_node`, they would all be searched for symbolic numbers, one by one.
        node.args = tuple(node_args)
        if node_kwargs:
            node.kwargs = node_kwargs
        self._describe(node, result)
        self._constants.follow(node, result)
        self.made.see(result)
        self.missing = self.missing or self._constants.lacks(node)
        if self.missing:
            raise Lacking
        if isinstance(result, torch.Tensor):
            self._remember(result, node)
        else:
            self._memory.hold_results(result, node)
        return node

    def finish(self, result: Any) -> None:
        if self.names.end is not None:
            raise self.names.end  # The forward has caught even that.
        keep(self.graph.output(self._lookup(tuple(tensors_in(result)))), Record())
        self.calls = self._log.finish()

    def release(self) -> None:
        """Let go of all tensors, and of the copy that was run: the two hold each other."""
        self._memory.release()
        self._homes.clear()
        for module in self._members.modules.values():
            vars(module).clear()
        self._members = Members({}, {}, {}, {})

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

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        held = self._memory.held(tensor)
        if held is not None:
            missed = self._memory.missed(held)
            return self._after_writes(held, missed) if missed else held.node
        result = self._memory.take(tensor)
        if result is not None:
            node = self._taken(result)
        elif (name := self._attribute(tensor)) is not None:
            node = self._attribute_node(name, tensor)
        elif (alias := self._alias(tensor)) is not None:
            node = alias
        else:
            node = self._constant_node(tensor)
        self._remember(tensor, node)
        return node

    def _taken(self, result: Result) -> fx.Node:
        """The node of one of the results of an operator."""
        node = self.graph.call_function(getitem, (result.node, result.position))
        made = of(result.node)
        keep(node, Record(self._spec(result.tensor), (), made.module, made.layer, source=made.source))
        self._constants.follow(node, result.tensor)
        return node

    def _attribute_node(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """The node of a parameter or buffer."""
        self.reached.add(name)
        # Not given, fx makes the same name of it in more steps.
        node = self.graph.create_node("get_attr", name, name=name if name.islower() else None)
        record = self._describe(node, tensor)
        record.sizes_read = self._sizes_read.pop(id(tensor), _NO_DIMS)
        record.trained = name in self._members.parameters
        self._constants.seen(node, self._originals[name], name in self._members.plain)
        return node

    def _constant_node(self, tensor: torch.Tensor) -> fx.Node:
        """Of a tensor that was made before the forward, or by code that no operator shows (numpy): it has no labels."""
        node = self.graph.create_node("get_attr", f"constant_{len(self._memory)}")
        self._describe(node, tensor).constant = True
        self._constants.given(node, tensor)
        return node

    def _attribute(self, tensor: torch.Tensor) -> str | None:
        """The parameter or buffer that a tensor is, or has all elements of (`.data`)."""
        name = self._attributes.get(id(tensor))
        if name is not None or self._memory.newest(tensor) is not None:
            return name
        home, whole = self._homes.get(storage_of(tensor), (None, tensor))
        return home if same_elements(tensor, whole) else None

    def _alias(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of the same elements under another Python object (`as_subclass`)."""
        known = self._memory.newest(tensor)
        return self._node_of(known) if known is not None and same_elements(known, tensor) else None

    def _remember(self, tensor: torch.Tensor, node: fx.Node) -> None:
        if self._watch is not None:
            self._watch.see(tensor)
        self._memory.hold(tensor, node)

    def _after_write(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Later readers of `tensor` see `node`; readers of other views of its memory will see that it was written."""
        held = self._memory.held(tensor)
        if held is None and id(tensor) in self._attributes:
            return  # Running statistics of a train-mode BatchNorm; their slots are labelled by the rule.
        if held is not None and of(node).spec is None:
            node = held.node  # Running ranges, written on the way by an operator with results of its own.
        self._memory.write(tensor, node)
        self._remember(tensor, node)

    def _after_writes(self, held: Held, missed: Sequence[Write]) -> fx.Node:
        """What a view holds after its memory was written through others."""
        node = held.node
        for write in missed:
            if write.tensor != id(held.tensor):
                node = self.graph.call_function(written_through_alias, (node, write.node))
                self._describe(node, held.tensor)
        self._remember(held.tensor, node)
        return node

    def _describe(self, node: fx.Node, value: Any) -> Record:
        source = caller() if node.op == "call_function" else ""
        results = tuple(map(self._spec, value)) if isinstance(value, _SEQUENCES) else ()
        record = Record(self._spec(value), results, self.module, self._layer, self.names.current, source)
        record.sources = self.names.sources
        keep(node, record)
        return record

    def _spec(self, value: Any) -> TensorSpec | None:
        if not isinstance(value, torch.Tensor):
            return None
        if value.is_nested and value.layout == torch.strided:
            raise ModelError(f"the forward makes a nested tensor ({caller()}){_NESTED}")
        device = self._device if value.is_meta else value.device
        key = (value.shape, _strides(value), value.dtype, device)
        spec = self._specs.get(key)
        if spec is None:
            spec = self._specs[key] = TensorSpec(tuple(value.shape), *key[1:])
        return spec


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
