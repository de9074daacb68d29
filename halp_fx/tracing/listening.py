"""reaches: whether a forward that is called several times reads parameters that it did not read the first time.

Writing eight calls down takes longer than all else that is done with a network of thousands of operators. So they are
only listened to first, and written down where there is something to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from contextvars import copy_context
from typing import Any

import torch
from torch import nn

from ..internals import tree_leaves, tree_map
from ..model.copying import aliased, hollowed
from ..model.members import Members
from ..model.preserving import (
    decomposed,
    gpus,
    hooks_kept,
    meta_twin,
    random_kept,
    set_mode,
    spared,
    uncached_autocast,
    uncollected,
)
from . import meta_shapes
from .handing import OperatorMode
from .leaks import MetaWatch
from .memory import storage_of
from .opaque import closed
from .recording import SEED, empty_caches, forget_frames


def reaches(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], calls: int, names: Sequence[str], on_meta: bool
) -> bool:
    """Whether one of several calls of a copy's forward in eval mode reads one of these parameters; the model is left as
    found.

    Also where the forward fails, or leaves tensors without values behind: then it is for `record` to say what happened.

    Args:
        on_meta: run it on meta tensors.
    """
    live, watch = Members.of(model), MetaWatch(model)
    failed, heard = copy_context().run(_listened, model, args, kwargs, live, calls, names, watch if on_meta else None)
    return empty_caches(watch) is not None or failed or heard


def _listened(
    model: nn.Module, args: Any, kwargs: Any, live: Members, calls: int, names: Sequence[str], watch: MetaWatch | None
) -> tuple[bool, bool]:
    """Whether it failed, and whether one of the parameters was read; on meta tensors if they are watched."""
    used = aliased(model, live, own=False) if watch is None else hollowed(model, live)
    members = Members.of(used)
    wanted = (found[name] for found in (members.parameters, live.parameters) for name in names)
    listener = _Listener({storage_of(tensor) for tensor in wanted}, watch)
    collecting = nullcontext() if watch is None else uncollected()
    failed = False
    try:
        with spared(), collecting, hooks_kept(live), random_kept(gpus(live.tensors.values()), SEED):
            set_mode(used, False)
            closed(used, lambda *_: None)
            given, named = tree_map(_own if watch is None else meta_twin, (args, kwargs))
            with torch.no_grad(), decomposed(), uncached_autocast(), listener:
                for _ in range(calls):
                    used(*given, **named)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        forget_frames(error)
        failed = True
    finally:
        for module in members.modules.values():
            vars(module).clear()  # A copy that holds itself would last.
    return failed, listener.heard


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


class _Listener(OperatorMode):
    """Hears whether an operator is given a tensor that lies in certain memory."""

    def __init__(self, storages: set[int], watch: MetaWatch | None) -> None:
        super().__init__()
        self.heard = False
        self._storages = storages
        self._watch = watch

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and storage_of(value) in self._storages:
                self.heard = True
        result = meta_shapes.run(func, args, kwargs)
        if self._watch is not None:
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self._watch.see(value)
        return result
