"""find_branches: coupling -> the residual branches that may be dropped whole, and how each would be.

A branch must have one way in and one way out, and own its parameters; whatever is not clear is refused with a reason
(conditions: `docs/rewriting.md`). Nothing here looks at names of layers: the graph says what depends on what (the way
out is a post-dominator of all that is inside), the runs of modules say what may be replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx, nn

from ..errors import few
from ..model.checks import check_coupling
from ..tracing.graph import getitem, name_of, of, op, scope_of, where, written
from ..types import Axis, Coupling, ForwardPart, Member, ModuleCall
from .branches import Branch, Branches, Place, Replacement, forwards
from .flow import Flow, Runs, zero_if


class _Unclear(Exception):
    """A branch must stay, and why."""


def find_branches(coupling: Coupling) -> Branches:
    """Residual branches of a network that was traced here (not read from elsewhere: the runs of modules are needed).

    What another of its `forwards` runs of a branch must be the same branch there.

    Raises:
        ModelError: it is no coupling.
    """
    check_coupling(coupling)
    first, *others = forwards(coupling)
    found = _found_in(first)
    for view in others:
        found = _found_as_well(found, first, view) if found.removable else found
    return found


def _found_in(view: Coupling) -> Branches:
    network = _Network(view)
    found: dict[str, Branch] = {}
    refused: dict[str, str] = {}
    for add in network.flow.reads:  # An add that nothing reads keeps no branch.
        if not _adds(add):
            continue
        try:
            branch = network.branch(add)
        except _Unclear as why:
            refused[name_of(add)] = str(why)
            continue
        if branch is not None:
            found[branch.name] = branch
    for name, branch in list(found.items()):
        inner = [b.name for b in found.values() if b is not branch and b.first.add in branch.first.nodes]
        if inner:
            refused[name] = f"contains the branch {inner[0]!r}, which may go by itself"
            del found[name]
    return Branches(tuple(found.values()), refused)


def _found_as_well(known: Branches, first: Coupling, view: Coupling) -> Branches:
    """Branches of the first forward, each with its place in another one."""
    here = _found_in(view)
    same = {b.name: b for b in here.removable}
    home = {node.name: scope_of(node) for node in first.traced.graph.nodes}
    run = {call.module for call in view.traced.calls}
    read = [str(node.target) for node in view.traced.graph.nodes if _is_parameter(node)]
    found, refused = [], {}
    for branch in known.removable:
        other = same.get(branch.name)
        foreign = [name for name in read if name in branch.tensors]
        if other is not None and other.replacements == branch.replacements and other.tensors == branch.tensors:
            found.append(replace(branch, places=(*branch.places, other.first)))
        elif run.isdisjoint(branch.modules) and not foreign:
            found.append(replace(branch, places=(*branch.places, None)))
        else:
            why = (w for add, w in here.refused.items() if add.rpartition("/")[0] == home[branch.first.add])
            what = f"reads {foreign[0]} otherwise" if run.isdisjoint(branch.modules) else "runs something else of it"
            refused[branch.name] = f"the forward of example {view.traced.run.example + 1}: {next(why, what)}"
    return Branches(tuple(found), {**known.refused, **refused})


def _adds(node: fx.Node) -> bool:
    if op(node) not in ("add", "add_") or len(node.args) != 2 or node.kwargs:
        return False
    left, right = node.args
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)) or left is right:
        return False
    out = of(node).one
    specs = [of(n).spec for n in (left, right)]
    return all(s is not None and s.shape == out.shape and s.dtype == out.dtype for s in specs)


@dataclass(frozen=True, slots=True)
class _Way:
    """How a branch would be taken out; see `Branch` for the parts."""

    name: str
    replacements: tuple[Replacement, ...]
    nodes: frozenset[str]
    tensors: frozenset[str]


class _Network:
    """A coupled network, its operators as a graph, and the runs of its modules as a tree."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.flow = Flow(coupling.traced)
        self.runs = Runs(coupling.traced, self.flow)

    def branch(self, add: fx.Node) -> Branch | None:
        """The branch that ends in an add, None if this is no residual add.

        Raises:
            _Unclear: it is one, but must stay.
        """
        summands = [n for n in add.args if isinstance(n, fx.Node)]
        sides = [self.flow.serving(value, add) for value in summands]
        owning = [side for side, parts in enumerate(sides) if any(map(_is_parameter, parts[0] | parts[1]))]
        if not owning:
            return None
        leading = [side for side in owning if self.flow.leads(summands[1 - side], summands[side])]
        if not leading:
            raise _Unclear(f"neither summand leads to the other: {_beside(sides, owning)}")
        side = leading[0]
        inside, entries = sides[side]
        value, shortcut = summands[side], summands[1 - side]
        shared = [str(n.target) for n in self.flow.nodes if n in entries and n.op == "get_attr"]
        if shared:
            raise _Unclear(f"shares {shared[0]} with other parts of the network")
        if len(entries) != 1 or not self.flow.leads(shortcut, next(iter(entries))):
            raise _Unclear(f"reads {len(entries)} values from outside, not its shortcut alone")
        try:
            way = self._whole_module(add, shortcut, inside)
        except _Unclear as first:
            try:
                way = self._silenced(add, value, inside)
            except _Unclear as second:
                raise _Unclear(f"{first}; {second}") from second
        self._check_owned(way)
        place = Place(add.name, side, shortcut.name, way.nodes)
        groups = self._only_in(way.tensors)
        output = self._output(way.tensors, groups)
        return Branch(way.name, (place,), way.replacements, way.tensors, groups, output)

    def _whole_module(self, add: fx.Node, shortcut: fx.Node, inside: set[fx.Node]) -> _Way:
        """Replace the smallest module that has the branch and the add with what it does after the add."""
        home = self.runs.home({*inside, add})
        call = self.runs.calls[home]
        if not call.module:
            raise _Unclear("the add is in the model's own forward")
        self._check_replaceable(call)
        if not _maps(call, shortcut):
            raise _Unclear(f"module {call.module!r} takes or returns more than one tensor")
        items = self.runs.items(home)
        at = next(i for i, item in enumerate(items) if add in self._work(item))
        if not all(self._only_serves(item, inside) for item in items[:at]):
            raise _Unclear(f"module {call.module!r} does more than this branch before the add")
        if self._work(items[at]) != [add]:
            raise _Unclear(f"module {call.module!r} adds in a module that does more")
        parts, kept, result = self._chain(call, add, items[at + 1 :])
        if call.outputs != (result.name,):
            raise _Unclear(f"module {call.module!r} does not return what it added")
        if any("." in part.child for part in parts):
            raise _Unclear(f"module {call.module!r} runs a module that is not its child after the add")
        if self._would_share(add, shortcut, result, inside):
            parts.append(ForwardPart(operator=("clone", "default")))  # What was a tensor of its own must be one.
        tensors = self._tensors([call]) - self._tensors(kept)
        replacement = Replacement(call.module, "shortcut", tuple(parts))
        return _Way(call.module, (replacement,), self._names({*inside, add}, [call], kept), tensors)

    def _work(self, item: fx.Node | ModuleCall) -> list[fx.Node]:
        return self.runs.work(item) if isinstance(item, ModuleCall) else [item]

    def _only_serves(self, item: fx.Node | ModuleCall, inside: set[fx.Node]) -> bool:
        """Whether all that an operator or a run of a module does is part of the branch."""
        work = self._work(item)
        if work or not isinstance(item, ModuleCall):
            return inside.issuperset(work)
        # A dropout in eval mode runs nothing: it is part of the branch if what it is given is.
        return self.runs.passes(item) or {self.flow.by_name.get(n or "") for n in item.inputs} <= inside

    def _chain(
        self, call: ModuleCall, add: fx.Node, items: Sequence[fx.Node | ModuleCall]
    ) -> tuple[list[ForwardPart], list[ModuleCall], fx.Node]:
        """What a module does after the add, each with the result of the one before: as parts, the runs of modules
        among them, and the last result."""
        parts: list[ForwardPart] = []
        kept: list[ModuleCall] = []
        current = add
        for item in items:
            if isinstance(item, fx.Node):
                parts.append(_operator_part(item, current, call.module))
                current = item
            elif not _maps(item, current):
                raise _Unclear(f"module {call.module!r} does more than a chain of modules after the add")
            else:
                if item.kind is not nn.Identity:
                    kept.append(item)
                    parts.append(ForwardPart(child=item.module.removeprefix(f"{call.module}.")))
                current = self.flow.by_name.get(item.outputs[0] or "", current)
        return parts, kept, current

    def _would_share(self, add: fx.Node, shortcut: fx.Node, result: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether a module that returned a tensor of its own would return the shortcut's memory, and one of the two is
        written in place."""
        passed = result is add or getattr(result.target, "is_view", False)
        own = op(add) == "add" or add.args[0] is not shortcut
        return passed and own and (written(result, set()) or written(shortcut, {*inside, add}))

    def _silenced(self, add: fx.Node, value: fx.Node, inside: set[fx.Node]) -> _Way:
        """Put zeros in place of the branch's last modules and nothing in place of those before them."""
        runs = self._covering(self.runs.home({*inside, add}), inside)
        for run in runs:
            self._check_replaceable(run)
            if self._result(run) is None:
                raise _Unclear(f"module {run.module!r} does not return one tensor of its input's shape")
        covered = {n for run in runs for n in self.runs.work(run)}
        last = self._last(value, inside, covered, runs)
        nodes = {n for n in inside if n in covered or (n.target is getitem and n.args[0] in covered)}
        nodes |= {n for n in inside if n.op == "get_attr" and nodes.issuperset(n.users)}
        replacements = tuple(
            Replacement(run.module, "zeros" if run in last else "input", results=_results(run)) for run in runs
        )
        sizes = {run.module: self._size(run) for run in runs}
        name = max(sizes, key=sizes.__getitem__)
        self._check_rest(inside - nodes, self._only_in(self._tensors(runs)))
        return _Way(name, replacements, self._names(nodes, runs), self._tensors(runs))

    def _covering(self, home: int, inside: set[fx.Node]) -> list[ModuleCall]:
        """The children of a module that do the branch's work and no other."""
        if issubclass(self.runs.calls[home].kind, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            raise _Unclear("torch's transformer layers have a fused path that reads the weights of their modules")
        runs = []
        for run in self.runs.inner(home):
            work = self.runs.work(run)
            if work and inside.issuperset(work):
                runs.append(run)
            elif inside.intersection(work):
                raise _Unclear(f"module {run.module!r} does other work, too")
        if not runs:
            raise _Unclear("no module runs the branch")
        return runs

    def _last(
        self, value: fx.Node, inside: set[fx.Node], covered: set[fx.Node], runs: Sequence[ModuleCall]
    ) -> list[ModuleCall]:
        """The runs whose results the branch's value is made of, through operators that leave zeros zero."""
        made = {name: run for run in runs for name in run.outputs if name}
        last: list[ModuleCall] = []
        level = [value]
        while level:
            node = level.pop()
            if node.name in made:
                last.append(made[node.name])
            else:
                sources = zero_if(node) if node in inside and node not in covered else []
                if not sources:
                    raise _Unclear(f"{where(node)} may make something of zeros")
                level += sources
        return last

    def _result(self, run: ModuleCall) -> str | None:
        """The one tensor that a run returns, if it has the shape of its first input."""
        given = self.flow.by_name.get(next((n for n in run.inputs if n), ""))
        results = [self.flow.by_name[n] for n in run.outputs if n]
        if not run.plain or given is None or len(results) != 1:
            return None
        same = of(given).one.shape == of(results[0]).one.shape
        same &= of(given).one.dtype == of(results[0]).one.dtype
        return results[0].name if same and run.inputs[0] == given.name else None

    def _check_replaceable(self, call: ModuleCall) -> None:
        if self.runs.times[call.module] != 1:
            raise _Unclear(f"module {call.module!r} runs {self.runs.times[call.module]} times")
        hooked = [c.module for c in self.runs.calls if c.hooked and f"{c.module}.".startswith(f"{call.module}.")]
        if hooked:
            raise _Unclear(f"module {hooked[0]!r} has hooks")

    def _check_owned(self, way: _Way) -> None:
        for node in self.flow.nodes:
            if _is_parameter(node) and (str(node.target) in way.tensors) != (node.name in way.nodes):
                raise _Unclear(f"{node.target} and the branch's modules do not belong together")
        unseen = [name for name in self.coupling.traced.unused if name in way.tensors]
        if unseen:
            raise _Unclear(f"{unseen[0]} was not reached by the forward: what it is for is not known")

    def _check_rest(self, rest: set[fx.Node], own: Sequence[str]) -> None:
        """What of a branch goes on running must not do so on channels that are gone."""
        for node in rest:
            if any(group in own for extent in self.coupling.shapes.get(node.name, ()) for group, _ in extent.terms):
                raise _Unclear(f"{_placed(node)} runs between the modules of the branch: make a module of it")

    def _only_in(self, tensors: frozenset[str]) -> tuple[str, ...]:
        """The groups that exist in these tensors only."""
        return tuple(g.name for g in self.coupling.groups if {m.axis.tensor for m in g.members} <= tensors)

    def _names(
        self, nodes: set[fx.Node], replaced: Sequence[ModuleCall], kept: Sequence[ModuleCall] = ()
    ) -> frozenset[str]:
        """Names of nodes that vanish: these, what comes to nothing behind them, and in the modules that go."""
        ranges = [{n for c in calls for n in self.runs.span(c)} for calls in (replaced, kept)]
        unread = self.flow.unread & (ranges[0] | {u for n in nodes for u in n.users}) - ranges[1]
        return frozenset(n.name for n in nodes | unread)

    def _tensors(self, runs: Iterable[ModuleCall]) -> frozenset[str]:
        """The parameters and buffers that modules hold."""
        inside = tuple(f"{run.module}." for run in runs)
        return frozenset(t for t in self.coupling.traced.tensors if t.startswith(inside))

    def _size(self, run: ModuleCall) -> int:
        return sum(int(np.prod(self.coupling.traced.tensors[t].shape)) for t in self._tensors([run]))

    def _output(self, tensors: frozenset[str], own: Sequence[str]) -> tuple[Member, ...]:
        """The axes that make the channels which a branch adds, of the group that they are in."""
        at = {str(n.target): i for i, n in enumerate(self.flow.nodes) if _is_parameter(n)}
        outer = [m for g in self.coupling.groups if g.name not in own for m in g.members if m.axis.tensor in tensors]
        producers = [m for m in outer if m.role == "producer" and m.axis.tensor in at]
        if not producers:
            raise _Unclear("the layer that makes its channels was not found")
        last = max(producers, key=lambda m: at[m.axis.tensor]).axis
        size = self.coupling.traced.tensors[last.tensor].shape[last.dim]
        home = last.tensor.rpartition(".")[0]
        behind = {
            m.axis: m.role
            for m in outer
            if m.role in ("norm", "bias")
            and self.coupling.traced.tensors[m.axis.tensor].shape[m.axis.dim] == size
            and (m.axis.tensor.rpartition(".")[0] == home or at.get(m.axis.tensor, -1) > at[last.tensor])
        }
        slots = np.arange(size)[:, None]
        return tuple(
            Member(axis, slots, role) for axis, role in {Axis(last.tensor, last.dim): "producer", **behind}.items()
        )


def _beside(sides: Sequence[tuple[set[fx.Node], set[fx.Node]]], owning: Sequence[int]) -> str:
    """What is on the two ways into an add, where neither is a plain shortcut."""
    if len(owning) == 2:
        layers = (sorted({str(n.target).rpartition(".")[0] for n in a | b if _is_parameter(n)}) for a, b in sides)
        return "both have layers of their own ({}; {})".format(*(few(names) for names in layers))
    inside, _ = sides[1 - owning[0]]
    work = [n for n in inside if n.op == "call_function" and n.target is not getitem]
    if not work:
        return "the shortcut is a value that the branch does not start from"
    return f"the shortcut is computed, too ({few(sorted(set(map(_placed, work))))})"


def _placed(node: fx.Node) -> str:
    return f"{op(node)} at {of(node).source}" if of(node).source else op(node)


def _is_parameter(node: fx.Node) -> bool:
    return node.op == "get_attr" and not of(node).constant


def _results(run: ModuleCall) -> tuple[int, int] | None:
    if run.single:
        return None
    return len(run.outputs), next(i for i, name in enumerate(run.outputs) if name)


def _maps(run: ModuleCall, value: fx.Node) -> bool:
    """Whether a run takes one value and nothing else, and returns one tensor."""
    return run.plain and run.single and run.inputs == (value.name,)


def _operator_part(node: fx.Node, current: fx.Node, module: str) -> ForwardPart:
    """An elementwise operator after the add, without writing in place: its input is the shortcut now."""
    name, overload = op(node).rstrip("_"), getattr(node.target, "_overloadname", "")
    packet = getattr(torch.ops.aten, name, None)
    tags = getattr(node.target, "tags", ())
    understood = (
        (torch.Tag.pointwise in tags or name in _ACTIVATIONS)
        and torch.Tag.nondeterministic_seeded not in tags
        and node.all_input_nodes == [current]
        and node.args[0] is current
        and not node.kwargs
        and overload in getattr(packet, "overloads", list)()
    )
    if not understood:
        raise _Unclear(f"module {module!r} runs {node.target} after the add")
    return ForwardPart(operator=(name, overload), arguments=tuple(node.args[1:]))


# Elementwise, whatever the tags say. Torch 2.14 does not tag hardswish: without it here, a block that ends in one is
# silenced, and adds zeros, instead of being replaced. The others have the tag there.
_ACTIVATIONS = ("hardtanh", "hardswish", "leaky_relu", "elu", "celu")
