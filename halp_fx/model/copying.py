"""copied, hollowed, aliased: copies of a model for the engine to work on, so that the caller's own is never touched.

`copy.deepcopy` alone is not enough: it refuses tensors with a history (features that the last training step left in a
list), and a hook that closes over its model goes on to write to the original. Both are seen to here.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType
from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelError
from .preserving import INTERNAL, Members, meta_twin, uncollected

_TABLES = (OrderedDict, dict)
_EMPTY = (*_TABLES, set)
_ATOMIC = (int, float, complex, bool, str, bytes, type(None), type, FunctionType, torch.dtype, torch.device, torch.Size)


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy; `memo` maps ids of tensors to what stands in for their copies.

    Tensors with a history come detached. Hooks and other functions that close over a module of the model get that
    module's copy.

    Raises:
        ModelError: the model cannot be copied; names the attribute.
    """
    known = dict(memo or {})
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) in _EMPTY and not value and not getattr(value, "__dict__", None):
                # A module has a dozen empty tables for hooks, and an empty set: most of the time of a copy went there.
                known[id(value)] = type(value)()
            elif name not in INTERNAL:
                # What a hook computed (the old `weight_norm`) is computed again by the next forward.
                known.update((id(t), t.detach().clone()) for t in _with_history((value,)) if id(t) not in known)
    try:
        with uncollected():
            made = copy.deepcopy(model, known)
            _complete(model, made, known)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"the model cannot be copied (copy.deepcopy): {_culprit(model, memo or {})}{error}") from error
    _rebind(model, made)
    return made


def _complete(model: nn.Module, made: nn.Module, known: dict[int, Any]) -> None:
    """What the copy of an `fx.GraphModule` lacks: hooks, and attributes that its graph does not read."""
    for old, new in zip(model.modules(), made.modules(), strict=True):
        if isinstance(old, fx.GraphModule):
            for name, value in vars(old).items():
                if name not in vars(new) or "_hooks" in name:
                    vars(new)[name] = copy.deepcopy(value, known)


def hollowed(model: nn.Module, members: Members | None = None, floating: bool = False) -> nn.Module:
    """A copy with meta tensors for its parameters and buffers (or the floating ones): it takes no memory."""
    members = members or Members.of(model)
    tensors = (t for t in members.tensors.values() if t.is_floating_point() or not floating)
    return copied(model, {id(t): meta_twin(t) for t in tensors})


def aliased(model: nn.Module, members: Members, own: bool) -> nn.Module:
    """A copy that runs with the values of the model's parameters, in the same memory unless it may write to them
    (`own`). Buffers are its own in any case."""
    return copied(model, {id(p): _alias(p, own) for p in members.parameters.values()})


def _alias(parameter: torch.Tensor, own: bool) -> torch.Tensor:
    data = parameter.detach()
    if own or data.is_inference():  # Which cannot be made to require a gradient.
        data = data.clone()
    kind = type(parameter) if isinstance(parameter, nn.Parameter) else nn.Parameter
    return kind(data, requires_grad=parameter.requires_grad)


def _with_history(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Tensors that autograd computed, in containers and plain objects at any depth."""
    left, seen = list(values), set[int]()
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            if not value.is_leaf:
                yield value
        elif not isinstance(value, (*_ATOMIC, nn.Module)) and id(value) not in seen:
            seen.add(id(value))
            left += _parts(value)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    return list(getattr(value, "__dict__", {}).values())


def _culprit(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """Which attribute it is that cannot be copied; empty if none is found."""
    whole = {id(m): m for m in model.modules()}
    for name, module in model.named_modules():
        if hasattr(type(module), "__deepcopy__"):
            try:
                type(module).__deepcopy__(module, {**whole, **memo})
            except Exception:
                return f"{type(module).__name__}.__deepcopy__ of {name or 'the model'!r} fails: "
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {**whole, **memo})
            except Exception:
                place = f"{name}.{attribute}" if name else attribute
                return f"attribute {place} ({type(value).__name__}) must go, or get a __deepcopy__. "
    return ""


def _rebind(model: nn.Module, made: nn.Module) -> None:
    """Give the functions that a copy holds its own modules, where they close over those of the original."""
    pairs = list(zip(model.modules(), made.modules(), strict=True))
    twins = {id(old): new for old, new in pairs}
    for old, new in pairs:
        own = vars(new)
        own.pop("_compiled_call_impl", None)  # Of `module.compile()`: it runs the original.
        for name, value in vars(old).items():
            if isinstance(value, FunctionType) and name in own:
                own[name] = _rebound(value, twins)
            elif name in INTERNAL and type(value) in _TABLES and value and name not in ("_parameters", "_buffers"):
                for key, entry in value.items():
                    if isinstance(entry, FunctionType):
                        own[name][key] = _rebound(entry, twins)


def _rebound(function: FunctionType, twins: Mapping[int, nn.Module]) -> FunctionType:
    """The function with cells of its own for the modules that it closes over, also through other functions, which may
    close over each other. Other cells are shared: a count goes on."""
    cells: dict[int, CellType] = {}

    def own(cell: CellType) -> CellType:
        if id(cell) not in cells:
            content = _content(cell)
            cells[id(cell)] = cell
            if isinstance(content, nn.Module) and id(content) in twins:
                cells[id(cell)] = CellType(twins[id(content)])
            elif isinstance(content, FunctionType) and _reaches(content, twins):
                cells[id(cell)] = new = CellType()  # Before what goes in: that may close over it.
                new.cell_contents = remade(content)
        return cells[id(cell)]

    def remade(old: FunctionType) -> FunctionType:
        closure = tuple(map(own, old.__closure__ or ()))
        made = FunctionType(old.__code__, old.__globals__, old.__name__, old.__defaults__, closure)
        made.__kwdefaults__ = old.__kwdefaults__
        made.__dict__.update(old.__dict__)
        return made

    return remade(function) if _reaches(function, twins) else function


def _reaches(function: FunctionType, twins: Mapping[int, nn.Module]) -> bool:
    """Whether a function closes over one of these modules, or over functions that do."""
    left, seen = [function], set[int]()
    while left:
        inner = left.pop()
        for content in map(_content, inner.__closure__ or () if id(inner) not in seen else ()):
            if isinstance(content, nn.Module) and id(content) in twins:
                return True
            if isinstance(content, FunctionType):
                left.append(content)
        seen.add(id(inner))
    return False


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Empty.
        return None
