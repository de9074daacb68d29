"""Dropping branches: from a coupling (`without`) and from a model (`drop`), and whether that works (`tried`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from ..coupling.branches import Branch, Branches, Replacement
from ..coupling.residual import find_branches
from ..errors import HalpError, RewriteError
from ..types import Coupling, Plan, Traced
from .slicing import shrink
from .standins import Remainder, Silent
from .verification import verify


def without(coupling: Coupling, branches: Sequence[Branch]) -> Coupling:
    """The coupling of the network that is left when branches are dropped.

    What a remaining operator read from a dropped one, it reads from the shortcut. Groups stay what they are, though
    without the branch less may hold their channels together.
    """
    if not branches:
        return coupling
    gone = {name: b.shortcut for b in branches for name in b.nodes}
    tensors = frozenset(t for b in branches for t in b.tensors)
    names = {g for b in branches for g in b.groups}
    modules = tuple(m for b in branches for m in b.modules)
    traced = coupling.traced
    groups = tuple(
        replace(g, members=tuple(m for m in g.members if m.axis.tensor not in tensors))
        for g in coupling.groups
        if g.name not in names
    )
    rest = Traced(
        _without_nodes(traced.graph, gone),
        {name: spec for name, spec in traced.tensors.items() if name not in tensors},
        tuple(name for name in traced.unused if name not in tensors),
    )
    edits = tuple(e for e in coupling.edits if not any(f"{e.module}.".startswith(f"{m}.") for m in modules))
    # What the branch does in other forwards is not looked for: only the first one is compared from here on.
    return replace(coupling, traced=rest, groups=groups, edits=edits, further=())


def _without_nodes(graph: fx.Graph, gone: dict[str, str]) -> fx.Graph:
    """A copy without some nodes; each is read as the node that `gone` names for it. Names stay."""
    rest = fx.Graph()
    inside: dict[str, fx.Node] = {}

    def read_as(node: fx.Node) -> fx.Node:
        name = node.name
        while name in gone:  # A shortcut may itself be the add of a dropped branch.
            name = gone[name]
        return inside[name]

    for node in graph.nodes:
        if node.op == "output":
            rest.output(fx.node.map_arg(node.args[0], read_as))
        elif node.name not in gone:
            inside[node.name] = rest.node_copy(node, read_as)
            assert inside[node.name].name == node.name
    return rest


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


def _stand_in(module: nn.Module, row: Replacement) -> nn.Module:
    if row.kind == "shortcut":
        made: nn.Module = Remainder(module, row.steps) if row.steps else nn.Identity()
    else:
        made = Silent(row.kind == "zeros", row.results)
    return made if row.kind == "shortcut" and row.steps else made.train(module.training)


def tried(model: nn.Module, coupling: Coupling, example_inputs: Any, ignore: Sequence[str] = ()) -> Branches:
    """The branches of a network, each known to leave a network that runs and has the structure it should.

    All are dropped at once from a copy that runs without arithmetic; if that fails, each by itself.

    Args:
        ignore: modules and parameters that must stay.
    """
    found = find_branches(coupling)
    held = {b.name: f"ignored by the caller ({e!r})" for b in found.removable for e in ignore if _touches(b, e)}
    found = found.without(held)
    if not found.removable or _failure(model, coupling, found.removable, example_inputs) is None:
        return found
    reasons = {b.name: _failure(model, coupling, [b], example_inputs) for b in found.removable}
    return found.without({name: reason for name, reason in reasons.items() if reason is not None})


def _touches(branch: Branch, entry: str) -> bool:
    return any(
        t == entry or t.startswith(f"{entry}.") or f"{entry}.".startswith(f"{t}.")
        for t in (*branch.tensors, *branch.modules)
    )


def _failure(model: nn.Module, coupling: Coupling, branches: Sequence[Branch], example_inputs: Any) -> str | None:
    """Why a network without these branches does not work, None if it does."""
    plan = Plan({}, tuple(b.name for b in branches))
    small = shrink(model, plan, coupling)
    try:
        drop(small, branches)
        verify(small, plan, without(coupling, branches), example_inputs)
    except HalpError as error:
        return f"a trial without it failed: {str(error).splitlines()[0][:200]}"
    return None
