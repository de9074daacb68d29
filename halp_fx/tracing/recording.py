"""record: one forward -> an fx graph of ATen operators (`Traced`).

The forward runs on a copy of the model. It runs on meta tensors where it can, which costs no arithmetic, and otherwise
really: where it reads values (a detector's boxes), or where an operator has no meta implementation. What it computes
from constants alone (index tables) has its value in either case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import HalpError, ModelError, TraceError, words_of
from ..internals import tree_leaves, tree_map
from ..model.copying import aliased, hollowed
from ..model.members import Members
from ..model.preserving import (
    INTERNAL,
    decomposed,
    gpus,
    hooks_kept,
    random_kept,
    set_mode,
    spared,
    uncached_autocast,
    uncollected,
    unsynchronised,
)
from ..types import Cache, Run, TensorSpec, Traced
from .calls import Failing
from .leaks import Emptied, MetaWatch, ValueWatch, emptied
from .opaque import closed
from .recorder import Lacking, Recorder
from .tags import compared

SEED = 0
"""Random numbers are the same in every recording, so that a forward that draws them takes the same path again."""


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Run | None = None,
    meta_only: bool = False,
    really: bool = False,
) -> Traced:
    """Run the forward of a copy and write it down; the model is left as found.

    Args:
        run: in which mode, and how many times in a row.
        meta_only: do not run it really if it fails on meta tensors.
        really: do not try meta tensors.

    Raises:
        TraceError: the forward fails on these arguments.
        ModelError: the model cannot be copied, or a tensor without values stays behind where it cannot be removed.
    """
    with spared():
        return _recorded(model, args, kwargs, run or Run(), meta_only, really)


def _recorded(model: nn.Module, args: Any, kwargs: Any, run: Run, meta_only: bool, really: bool) -> Traced:
    # Autocast leaves meta tensors as they are. Those that a forward keeps in context variables go with the context.
    if meta_only or not (really or any(map(torch.is_autocast_enabled, ("cpu", "cuda")))):
        watch, traced = MetaWatch(model), None
        try:
            traced = copy_context().run(_record_filled, model, args, kwargs, run, watch)
        except (TraceError, NotImplementedError, RuntimeError) as error:
            forget_frames(error)
            if meta_only:
                empty_caches(watch)
                raise
        left = empty_caches(watch)
        if left is None:
            # An error that the forward catches may be one of tensors without values: what is on another device.
            if traced is not None and (meta_only or not traced.run.catches):
                return traced
        else:
            _fill(left, model, args, kwargs, run)
    return _record_filled(model, args, kwargs, run, None)


def _record_filled(model: nn.Module, args: Any, kwargs: Any, run: Run, watch: MetaWatch | None) -> Traced:
    """As `_record`; where the forward has left a table in a cache outside of its model, once more, with what it does
    when it finds it there: so will all later ones."""
    traced, made = _record(model, args, kwargs, run, watch)
    return _record(model, args, kwargs, run, watch)[0] if made.any_kept() else traced


def _fill(left: Emptied, model: nn.Module, args: Any, kwargs: Any, run: Run) -> None:
    """What a forward caches outside of its model has to have values, and later forwards will find it there, also where
    they fail. Names that were not there before must not be, where the forward asks for that."""
    try:
        _record(model, args, kwargs, run, None)
    except TraceError:
        if not left.names:
            return
        left.forget_names()
        try:
            _record(model, args, kwargs, run, None)
        except TraceError:
            left.restore_names()


def empty_caches(watch: MetaWatch) -> Emptied | None:
    """What the forward left meta tensors in; they are gone now. None if there are none.

    Raises:
        ModelError: names what holds one that cannot be removed.
    """
    alive = watch.alive()
    found = emptied(alive) if alive else None
    if found is not None and found.stuck:
        raise ModelError(
            f"the forward keeps a tensor outside of its model: {found.stuck[0]}. It was run on tensors without values, "
            "and this one could not be removed: keep it in an attribute of a module, or in a dictionary or list"
        )
    if found is not None:
        watch.names.put_back(found)
    return found


def forget_frames(error: BaseException | None) -> None:
    """Drop the frames of an error that nobody is shown, and of those that led to it: they hold what the forward had at
    hand."""
    left, seen = [error], set[int]()
    while left:
        known = left.pop()
        if known is not None and id(known) not in seen:
            seen.add(id(known))
            known.__traceback__ = None
            left += known.__cause__, known.__context__


def _record(model: nn.Module, args: Any, kwargs: Any, run: Run, watch: MetaWatch | None) -> tuple[Traced, ValueWatch]:
    """On meta tensors if they are watched, else with values; and what it made that has values."""
    live = Members.of(model)
    on_meta = watch is not None
    used = hollowed(model, live) if on_meta else aliased(model, live, own=run.training)
    with uncollected(), hooks_kept(live), random_kept(gpus(live.tensors.values()), SEED):
        set_mode(used, run.training)  # A module's own `train` may put other tensors in place of its buffers.
        recorder = Recorder(used, live, watch, run)
        lost = _without_devices(used) if on_meta else set()
        closed(used, recorder.whole)
        inputs = tree_map(recorder.placeholder, (args, kwargs))
        recorder.follow_modules()
        try:
            with torch.no_grad(), decomposed(), uncached_autocast(), unsynchronised(used), recorder.names, recorder:
                result = [used(*inputs[0], **inputs[1]) for _ in range(run.calls)]
            recorder.finish(result)
            caches = _caches(used, live, lost)
            del result, inputs
        except Lacking:
            pass
        except (Exception, Failing) as ended:
            error, call = (ended.error, ended.call) if isinstance(ended, Failing) else (ended, recorder.names.failed)
            if call is not None and call.function == "_assert":  # What fails is the program.
                call = None
            if isinstance(error, torch.OutOfMemoryError):
                raise error from ended.__cause__
            if isinstance(error, HalpError):  # It would run.
                raise TraceError(f"{error}{recorder.where(error)}", recorder.graph, call) from error
            raise TraceError(
                f"the model's forward failed on the example inputs {_shapes((args, kwargs))}{recorder.where(error)}: "
                f"{words_of(error)}\n"
                f"Pass example_inputs with which model(*example_inputs) runs{_remedy(used, (args, kwargs))}.",
                recorder.graph,
                call,
                compared() if call is None else frozenset(),
            ) from error
        finally:
            recorder.release()
    if recorder.missing:
        raise TraceError(f"{recorder.missing} depends on values, which a forward on meta tensors does not have")
    tensors = {name: TensorSpec.of(t) for name, t in live.tensors.items()}
    unused = tuple(name for name in live.parameters if name not in recorder.reached)
    reads = tuple(recorder.reads)
    traced = Traced(recorder.graph, tensors, unused, recorder.calls, on_meta, recorder.run, reads, caches)
    return traced, recorder.made


def _without_devices(used: nn.Module) -> set[tuple[str, str]]:
    """Take from dictionaries in attributes of a copy what they have for a device: that was computed with values, and
    at the widths of then. Which they are."""
    found = set()
    for name, attribute, table in _tables(used):
        stale = [key for key, value in table.items() if isinstance(value, torch.Tensor) and _names_device(key)]
        for key in stale:
            del table[key]
        if stale:
            found.add((name, attribute))
    return found


def _names_device(key: Any) -> bool:
    return isinstance(key, torch.device) or (isinstance(key, tuple) and any(map(_names_device, key)))


def _caches(used: nn.Module, live: Members, lost: set[tuple[str, str]]) -> tuple[Cache, ...]:
    """Attributes that have new tensors after the forward of a copy, with what tells beside these that they are there
    (the size that a grid is for), and dictionaries in attributes. The original may have something of its own width
    there later on, under the same key or another. `lost`: dictionaries of which the copy had lost some."""
    found = []
    for name, module in Members.of(used).modules.items():
        made = [*_made(live.modules.get(name), module)]
        if any(map(_has_tensors, (value for _, value in made))):
            found += [Cache(name, *cache) for cache, _ in made]
    for name, attribute, table in _tables(used):
        before = vars(live.modules[name]) if name in live.modules else {}
        known = () if (name, attribute) in lost else before.get(attribute, ())
        if any(isinstance(v, torch.Tensor) for k, v in table.items() if k not in known):
            found.append(Cache(name, attribute, "table"))
    return tuple(found)


def _made(before: nn.Module | None, after: nn.Module) -> Iterator[tuple[tuple[str, str, Any], Any]]:
    """Tensors, and what tells what they are for, in attributes and buffers that had no tensors before a forward."""
    for name in ("", "_buffers"):
        then, now = ({} if m is None else vars(m)[name] if name else vars(m) for m in (before, after))
        for attribute, value in now.items():
            old = then.get(attribute)
            if attribute in INTERNAL or value is None or isinstance(value, dict) or not _is_key(old):
                continue
            if _has_tensors(value) or (_is_key(value) and value != old):
                yield (attribute, "value" if attribute in then else "missing", old), value


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def _is_key(value: Any) -> bool:
    """Whether something may tell what a cache is for, or that there is none. Not whole numbers, which count."""
    return value is None or (isinstance(value, tuple) and all(isinstance(n, int | float) for n in value))


def _tables(model: nn.Module) -> Iterator[tuple[str, str, dict[Any, Any]]]:
    """Dictionaries in attributes of modules: the module's name, the attribute's, and the dictionary."""
    for name, module in Members.of(model).modules.items():
        for attribute, table in vars(module).items():
            if attribute not in INTERNAL and isinstance(table, dict):
                yield name, attribute, table


def _shapes(inputs: Any) -> str:
    return ", ".join(map(_shape, tree_leaves(inputs)))


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)[:40]


def _remedy(model: nn.Module, inputs: Any) -> str:
    """What probably was to be passed, in a few words; "" where nothing says so."""
    leaves = tree_leaves(inputs)
    if leaves and all(type(leaf) is int for leaf in leaves):
        return f", a tensor of that shape: torch.rand({', '.join(map(str, leaves))})"
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return ", tensors, not arrays of numpy: torch.from_numpy makes them"
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    given = {t.dtype for t in tensors if t.is_floating_point() or t.dtype == torch.uint8}
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if given and len(own) == 1 and given != own:
        return f", of the model's dtype: x.to({own.pop()}), or make all of this under torch.autocast if it runs so"
    image = len(leaves) == 1 and bool(tensors) and tensors[0].ndim == 3
    return ", the batch first: x[None]" if image and any(isinstance(m, nn.Conv2d) for m in model.modules()) else ""
