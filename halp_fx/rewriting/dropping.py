"""Dropping branches from a model: their modules are replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from ..coupling.branches import Branch, Replacement
from ..errors import RewriteError
from .standins import Remainder, Silent


def drop(model: nn.Module, branches: Sequence[Branch]) -> None:
    """Replace the modules of branches, in place.

    Raises:
        RewriteError: a module is registered twice, or holds a tensor that is used elsewhere.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    objects = dict(model.named_modules(remove_duplicate=False))
    for row in (r for b in branches for r in b.replacements):
        twice = [n for n in names if n != row.module and objects[n] is objects[row.module]]
        if twice:
            raise RewriteError(f"module {row.module!r} is also {twice[0]!r}: its branch cannot be dropped")
        parent, _, own = row.module.rpartition(".")
        setattr(model.get_submodule(parent), own, _stand_in(objects[row.module], row))
    left = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    for name in (n for b in branches for n in b.tensors):
        module, _, own = name.rpartition(".")
        tensor = getattr(objects[module], own, None)
        if id(tensor) in left:
            raise RewriteError(f"{name} of a dropped branch is also {left[id(tensor)]}")


@contextmanager
def dropped(model: nn.Module, branches: Sequence[Branch]) -> Iterator[None]:
    """A model without branches for a while: as `drop`, and undone in the end. Modes are the caller's to set."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [row.module for b in branches for row in b.replacements]
    in_place = [m for name in names for m in modules[name].modules() if getattr(m, "inplace", False) is True]
    try:
        drop(model, branches)
        yield
    finally:
        for name in reversed(names):
            parent, _, own = name.rpartition(".")
            setattr(modules[parent], own, modules[name])
        for module in in_place:  # What stays of a replaced module does not write in place.
            module.inplace = True


def _stand_in(module: nn.Module, row: Replacement) -> nn.Module:
    if row.kind == "shortcut":
        made: nn.Module = Remainder(module, row.parts) if row.parts else nn.Identity()
    else:
        made = Silent(row.kind == "zeros", row.results)
    return made if row.kind == "shortcut" and row.parts else made.train(module.training)
