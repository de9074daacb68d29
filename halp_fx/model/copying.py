"""copied, hollowed, aliased, lent: copies of a model to work on, so that the caller's own is never touched.

`copy.deepcopy` alone is not enough: it refuses tensors with a history (features that the last training step left in a
list), and a hook that closes over its model goes on to write to the original. Both are seen to here.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelError
from .members import Members
from .preserving import INTERNAL, meta_twin, uncollected

_TABLES = (OrderedDict, dict)
_EMPTY = (*_TABLES, set)
_ATOMIC = (int, float, complex, bool, str, bytes, type(None), type, FunctionType, torch.dtype, torch.device, torch.Size)
_SHARED = frozenset(_ATOMIC)
_KEYS: tuple[type, ...] = (type({}.keys()), type(OrderedDict().keys()))
"""Views of keys, which `copy.deepcopy` refuses."""
_COMPILED = "_compiled_call_impl"
"""What `module.compile()` leaves: it runs the original."""


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy; `memo` maps ids of tensors to what stands in for their copies.

    Tensors with a history come detached. Hooks and other functions that close over a module of the model, or over what
    it holds (the dictionary that features are kept in), or have it for a default, get the copy of that.

    Raises:
        ModelError: the model cannot be copied; names the attribute.
    """
    known, modules = dict(memo or {}), list(model.modules())
    for module in modules:
        for name, value in vars(module).items():
            if type(value) in _KEYS:
                known[id(value)] = dict.fromkeys(value).keys()
            # What a hook computed (the old `weight_norm`) is computed again by the next forward.
            if type(value) not in _SHARED and name not in INTERNAL:
                known.update((id(t), t.detach().clone()) for t in _with_history((value,)) if id(t) not in known)
    try:
        with uncollected():
            _fill(modules, known)
            made = copy.deepcopy(model, known)
            copies = list(made.modules())
            _complete(modules, copies, known)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"the model cannot be copied (copy.deepcopy): {_culprit(model, memo or {})}{error}") from error
    _rebind(modules, copies, known)
    return made


def _fill(modules: Sequence[nn.Module], known: dict[int, Any]) -> None:
    """Copies of the modules that leave it to `copy.deepcopy` how they are copied: it would look at every number and at
    a dozen empty tables of each one by one. All are known before the first gets its attributes, and modules get theirs
    after those within them."""
    plain = {kind: _is_plain(kind) for kind in {type(module) for module in modules}}
    own = [m for m in modules if plain[type(m)] and id(m) not in known and "__deepcopy__" not in vars(m)]
    for module in own:
        known[id(module)] = type(module).__new__(type(module))
    for module in modules:
        if id(module) not in known:
            empty = (value for value in vars(module).values() if _is_table(value) and not value)
            known.update((id(value), type(value)()) for value in empty)
    for module in reversed(own):
        state = {name: _copy_of(value, known) for name, value in vars(module).items() if name != _COMPILED}
        known[id(module)].__setstate__(state)


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a copy of a module is an empty one of its class that is given copies of its attributes."""
    same = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    says = any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
    own = getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
    return same and own and not says and kind not in copyreg.dispatch_table


def _is_table(value: Any) -> bool:
    return type(value) in _EMPTY and not getattr(value, "__dict__", None)


def _copy_of(value: Any, known: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _SHARED or (kind is tuple and all(type(entry) in _SHARED for entry in value)):
        return value
    made = known.get(id(value))
    if made is not None:
        return made
    if kind is torch.Tensor and _is_bare(value):
        # Views of one memory stay that: `deepcopy` knows memory, too.
        memory = copy.deepcopy(value.untyped_storage(), known)
        made = known[id(value)] = value.new_empty(0)
        return made.set_(memory, value.storage_offset(), value.shape, value.stride())
    if kind not in _EMPTY or not _is_table(value) or (value and kind is set):
        return copy.deepcopy(value, known)
    made = known[id(value)] = kind()
    if value:
        made.update((_copy_of(key, known), _copy_of(entry, known)) for key, entry in value.items())
    return made


def _is_bare(tensor: torch.Tensor) -> bool:
    """Whether a tensor is numbers in memory and nothing else."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return False
    return not tensor.requires_grad and tensor.grad is None and not tensor.is_inference() and not vars(tensor)


def _complete(modules: Sequence[nn.Module], copies: Sequence[nn.Module], known: dict[int, Any]) -> None:
    """What the copy of an `fx.GraphModule` lacks: hooks, and attributes that its graph does not read; and what a module
    lacks that is made anew when it is copied (einops' layers): its mode and hooks."""
    for old, new in zip(modules, copies, strict=True):
        new.training = old.training
        if isinstance(old, fx.GraphModule):
            for name, value in vars(old).items():
                if name not in vars(new) or "_hooks" in name:
                    vars(new)[name] = copy.deepcopy(value, known)
        elif not _is_plain(type(old)):
            lost = {n: v for n, v in vars(old).items() if "_hooks" in n and v and not vars(new).get(n)}
            vars(new).update(copy.deepcopy(lost, known))


def hollowed(model: nn.Module, members: Members | None = None, floating: bool = False) -> nn.Module:
    """A copy with meta tensors for its parameters, buffers and constants among its attributes (or the floating ones of
    its parameters and buffers): it takes no memory."""
    members = members or Members.of(model)
    tensors = members.registered if floating else members.tensors
    return copied(model, {id(t): meta_twin(t) for t in tensors.values() if t.is_floating_point() or not floating})


def aliased(model: nn.Module, members: Members, own: bool) -> nn.Module:
    """A copy that runs with the values of the model's parameters, in the same memory unless it may write to them
    (`own`). Buffers are its own in any case."""
    return copied(model, {id(p): _alias(p, own) for p in members.parameters.values()})


def lent(model: nn.Module) -> nn.Module:
    """A copy for a function of the caller's, which may do to it what it likes: train it, hook it, write to it. It has
    the gradients that the model has."""
    made = copied(model)
    for old, new in zip(model.parameters(), made.parameters(), strict=True):
        if old.grad is not None:
            new.grad = old.grad.detach().clone()
    return made


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


def _rebind(modules: Sequence[nn.Module], copies: Sequence[nn.Module], known: Mapping[int, Any]) -> None:
    """Give the functions that a copy holds what it has itself, where they close over that of the original.

    Args:
        known: what was copied, by identity.
    """
    pairs = list(zip(modules, copies, strict=True))
    twins = {**known, **{id(old): new for old, new in pairs}}
    for old, new in pairs:
        own = vars(new)
        own.pop(_COMPILED, None)
        for name, value in vars(old).items():
            kind = type(value)
            if kind is FunctionType and name in own:
                own[name] = _rebound(value, twins)
            elif kind in _TABLES and value and name in INTERNAL and name not in ("_parameters", "_buffers"):
                for key, entry in value.items():
                    if isinstance(entry, FunctionType):
                        own[name][key] = _rebound(entry, twins)


def _rebound(function: FunctionType, twins: Mapping[int, Any]) -> FunctionType:
    """The function with cells and defaults of its own for what has a twin, also through other functions, which may
    close over each other. Other cells are shared: a count goes on."""
    cells: dict[int, CellType] = {}

    def own(cell: CellType) -> CellType:
        if id(cell) not in cells:
            content = _content(cell)
            cells[id(cell)] = cell
            if id(content) in twins:
                cells[id(cell)] = CellType(twins[id(content)])
            elif isinstance(content, FunctionType) and _reaches(content, twins):
                cells[id(cell)] = new = CellType()  # Before what goes in: that may close over it.
                new.cell_contents = remade(content)
        return cells[id(cell)]

    def remade(old: FunctionType) -> FunctionType:
        closure = tuple(map(own, old.__closure__ or ()))
        defaults = old.__defaults__ and tuple(twins.get(id(value), value) for value in old.__defaults__)
        made = FunctionType(old.__code__, old.__globals__, old.__name__, defaults, closure)
        made.__kwdefaults__ = {k: twins.get(id(v), v) for k, v in (old.__kwdefaults__ or {}).items()}
        made.__dict__.update(old.__dict__)
        return made

    return remade(function) if _reaches(function, twins) else function


def _reaches(function: FunctionType, twins: Mapping[int, Any]) -> bool:
    """Whether a function closes over something that has a twin or has it for a default, or closes over functions that
    do."""
    left, seen = [function], set[int]()
    while left:
        inner = left.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        held = list(map(_content, inner.__closure__ or ()))
        given = (*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values())
        if any(id(value) in twins for value in (*held, *given)):
            return True
        left += (value for value in held if isinstance(value, FunctionType))
    return False


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Empty.
        return None
