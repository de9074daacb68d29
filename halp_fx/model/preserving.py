"""Contexts for running a model's forward without leaving a trace on it."""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from operator import is_
from threading import RLock
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import SaliencyError, few
from ..internals import flex_in_pieces
from .members import Members, in_table

# Tables of `nn.Module` itself: a forward does not use them as caches, and buffers are looked after by value.
INTERNAL = frozenset(vars(nn.Module()))
_ORDERED = (list, deque)
_CONTAINERS = (dict, list, set, deque)

_process = RLock()
"""Held while something is changed that belongs to the whole process (docs/process.md)."""

_spared = False
"""Whether what lives is out of the collector's reach by now: `spared` may be entered again."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: thousands of small objects are made at once, and every collection that they set off
    would go through all that PyTorch has loaded."""
    with _process:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


@contextmanager
def spared() -> Iterator[None]:
    """With what lives already out of the collector's reach: a pass through all that PyTorch and other libraries have
    loaded takes longer than a recording."""
    global _spared
    with _process:
        ours = not _spared and not gc.get_freeze_count()
        if ours:
            gc.freeze()
            _spared = True
        try:
            yield
        finally:
            if ours:
                _spared = False
                gc.unfreeze()


@contextmanager
def within_reach() -> Iterator[None]:
    """Within `spared`: with all that lives, as `gc.get_referrers` finds nothing else."""
    with _process:
        if _spared:
            gc.unfreeze()
        try:
            yield
        finally:
            if _spared:
                gc.freeze()


@contextmanager
def random_kept(devices: Sequence[int] = (), seed: int | None = None) -> Iterator[None]:
    """Give back the random states of PyTorch (on these GPUs, too), NumPy and Python at the end.

    Args:
        seed: to start from in between, so that a coin falls the same way in every run of a forward.
    """
    with _process:
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=devices):
                if seed is not None:
                    random.seed(seed)
                    np.random.seed(seed)
                    # `torch.manual_seed` would seed every GPU of the process.
                    torch.default_generator.manual_seed(seed)
                    for device in devices:
                        torch.cuda.default_generators[device].manual_seed(seed)
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def hooks_kept(members: Members) -> Iterator[None]:
    """Give back the hooks of modules, and those of all modules, at the end."""
    tables = [value for module in members.modules.values() for name, value in vars(module).items() if "_hooks" in name]
    tables += [value for name, value in vars(nn.modules.module).items() if name.startswith("_global_")]
    tables = [table for table in tables if isinstance(table, dict)]
    kept = [dict(table) if table else {} for table in tables]
    try:
        yield
    finally:
        for table, items in zip(tables, kept, strict=True):
            if (table or items) and list(table) != list(items):
                table.clear()
                table.update(items)


def gpus(tensors: Iterable[torch.Tensor]) -> list[int]:
    """The GPUs that tensors lie on."""
    return sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})


@contextmanager
def preserved(model: nn.Module, members: Members | None = None) -> Iterator[None]:
    """Give back each module's attributes (modes, caches, hooks), changed buffers, and the random states at the end."""
    members = members or Members.of(model)
    found = _Found.of(members)
    with random_kept(gpus(members.tensors.values())):
        try:
            yield
        finally:
            found.give_back()


@contextmanager
def only_read(model: nn.Module, reader: str) -> Iterator[None]:
    """What a function of the caller's writes to parameters, which copies share with the model, is put back at the end.

    Args:
        reader: what the caller passed it as; "": there is none, and nothing is kept.

    Raises:
        SaliencyError: the function, `reader`, has written to one.
    """
    parameters = Members.of(model).parameters if reader else {}
    kept = [(name, p, p.detach().clone()) for name, p in parameters.items() if not p.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            # Version counters would not tell of what is written to `.data`.
            written = [(name, p, value) for name, p, value in kept if not _same_numbers(p, value)]
            for _, parameter, value in written:
                parameter.copy_(value)
    if written:
        names = few([name for name, *_ in written])
        raise SaliencyError(
            f"{reader} writes to parameters of the model ({names}), which has them as they were: it may compute with "
            "them, or with copies of them"
        )


def _same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Modules as they were found.

    Attributes:
        attributes: of each module.
        contents: containers among these, and in them, and what each held.
        values: buffers, and tensors among the attributes, and their numbers.
    """

    attributes: Sequence[tuple[nn.Module, dict[str, Any]]]
    contents: Sequence[tuple[Any, dict[Any, Any] | list[Any]]]
    values: Sequence[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, members: Members) -> _Found:
        attributes = [(module, dict(vars(module))) for module in members.modules.values()]
        own = [value for _, found in attributes for name, value in found.items() if name not in INTERNAL]
        # A forward may register hooks, or modules, and remember in an attribute that it has.
        tables = [value for _, found in attributes for name, value in found.items() if name in INTERNAL]
        tables = [value for value in tables if isinstance(value, _CONTAINERS)]
        tensors = (*in_table(members.modules, "_buffers").values(), *(v for v in own if isinstance(v, torch.Tensor)))
        return cls(
            attributes,
            _contents((*tables, *_containers(own))),
            [(tensor, tensor.detach().clone()) for tensor in tensors if not tensor.is_meta],
        )

    def give_back(self) -> None:
        for module, found in self.attributes:
            # What a forward caches on its module is the caller's to cache, in the caller's own forward.
            for name in vars(module).keys() - found.keys():
                del vars(module)[name]
            vars(module).update(found)
        for container, held in self.contents:
            if not _holds(container, held):  # One that cannot be written to was not.
                container.clear()
                (container.extend if isinstance(container, _ORDERED) else container.update)(held)
        with torch.no_grad():
            # Version counters would not tell: below autograd, a BatchNorm updates its statistics unnoticed.
            for tensor, kept in self.values:
                if not torch.equal(tensor, kept):
                    tensor.copy_(kept)


def snapshot(module: nn.Module) -> Callable[[], bool]:
    """What tells whether a module still has the very attributes that it has now, in the containers among them, too."""
    attributes = dict(vars(module))
    contents = _contents(_containers(attributes.values()))

    def stands() -> bool:
        now = vars(module)
        same = now.keys() == attributes.keys() and all(now[name] is value for name, value in attributes.items())
        return same and all(_holds(container, held) for container, held in contents)

    return stands


def _contents(containers: Iterable[Any]) -> list[tuple[Any, dict[Any, Any] | list[Any]]]:
    """Containers, and what each holds."""
    return [(c, dict(c) if isinstance(c, dict) else list(c)) for c in containers]


def _holds(container: Any, held: dict[Any, Any] | list[Any]) -> bool:
    """Whether a container still holds these very objects, in this order."""
    if len(container) != len(held) or not all(map(is_, container, held)):
        return False
    return not isinstance(held, dict) or all(map(is_, container.values(), held.values()))


def set_mode(model: nn.Module, training: bool = False) -> None:
    """`model.train(training)`, also where that refuses: the mode of an exported network is in its graph."""
    try:
        model.train(training)
    except NotImplementedError:
        nn.Module.train(model, training)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give back the mode of each module at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def as_modes_of(small: nn.Module, model: nn.Module) -> None:
    """Give each module of a copy the mode of the original's of the same name, or of the module around it."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in small.named_modules():
        known = name
        while known not in modes:
            known = known.rpartition(".")[0]
        module.training = modes[known]


def _containers(values: Iterable[Any]) -> list[Any]:
    """Dictionaries, lists, sets and queues among the values, and in them; each once: one may hold itself."""
    found: dict[int, Any] = {}
    left = list(values)
    while left:
        value = left.pop()
        if isinstance(value, _CONTAINERS) and id(value) not in found:
            found[id(value)] = value
            left += value.values() if isinstance(value, dict) else value
    return list(found.values())


@contextmanager
def decomposed() -> Iterator[None]:
    """Attention as matrix products and softmax, for which there are rules, instead of fused operators; what PyTorch
    writes out in other operators where algorithms are to be deterministic (bilinear resizing, on meta tensors also
    that of a network on a CPU) as it is elsewhere; and sums over several tensors (`einsum`) from left to right, not in
    the order that takes fewest operations at the widths of the moment, where opt_einsum is installed."""
    einsum = torch.backends.opt_einsum
    with _process, einsum.flags(enabled=False) if einsum.enabled else nullcontext():
        fast_path = torch.backends.mha.get_fastpath_enabled()
        deterministic = torch.get_deterministic_debug_mode()
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_deterministic_debug_mode("default")
        try:
            with sdpa_kernel(SDPBackend.MATH), flex_in_pieces():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.set_deterministic_debug_mode(deterministic)


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """With batch norms that look at the samples of this process alone: others need not run the forward now, and would
    be waited for."""
    norms = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm) and "forward" not in vars(m)]
    for norm in norms:
        norm.forward = MethodType(nn.BatchNorm2d.forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@contextmanager
def uncached_autocast() -> Iterator[None]:
    """Without autocast's cache of cast weights: in the same context, a second forward would not be seen to cast, and
    the weights that are scored would be hidden."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def making() -> Iterator[None]:
    """What is made meanwhile can be trained, also where the caller is in inference mode. And where the caller is under
    autocast, its cache keeps no weights of networks that are written to: they would go on computing with the old
    ones."""
    with torch.inference_mode(False), uncached_autocast():
        yield


@dataclass(frozen=True, slots=True)
class Casting:
    """How autocast stands on each kind of device, to stand so again where something goes on that was begun under it: a
    network records other operators without it.

    Attributes:
        states: kind of device, whether it is on, and the dtype.
    """

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls) -> Casting:
        return cls(tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")))

    @contextmanager
    def again(self) -> Iterator[None]:
        with ExitStack() as stack:
            for state in set(self.states) - set(Casting.now().states):
                device, enabled, dtype = state
                stack.enter_context(torch.autocast(device, dtype, enabled))
            yield


def meta_twin(value: Any) -> Any:
    """A tensor like `value` without memory; anything else as it is."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta") if isinstance(value, torch.Tensor) else value
