"""find_branches: coupling -> the residual branches that may be dropped whole, and how each would be.

A branch must have one way in and one way out, and own its parameters; whatever is not clear is refused with a reason
(conditions: `docs/rewriting.md`). Nothing here looks at names of layers: the graph says what depends on what, the runs
of modules say what may be replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush

import numpy as np
import torch
from torch import fx, nn

from ..tracing.graph import getitem, of, op, unread, written
from ..types import Axis, Coupling, Member, ModuleCall, Step
from .branches import Branch, Branches, Replacement


class _Unclear(Exception):
    """A branch must stay, and why."""


def find_branches(coupling: Coupling) -> Branches:
    """Residual branches of a network that was traced here (not read from elsewhere: the runs of modules are needed)."""
    network = _Network(coupling)
    found: dict[str, Branch] = {}
    refused: dict[str, str] = {}
    for add in network.nodes:
        if not _adds(add):
            continue
        try:
            branch = network.branch(add)
        except _Unclear as why:
            refused[f"{of(add).module or 'forward'}/{add.name}"] = str(why)
            continue
        if branch is not None:
            found[branch.name] = branch
    for name, branch in list(found.items()):
        inner = [b.name for b in found.values() if b is not branch and b.add in branch.nodes]
        if inner:
            refused[name] = f"contains the branch {inner[0]!r}, which may go by itself"
            del found[name]
    return Branches(tuple(found.values()), refused)


def _adds(node: fx.Node) -> bool:
    if op(node) not in ("add", "add_") or len(node.args) != 2 or node.kwargs:
        return False
    left, right = node.args
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)) or left is right:
        return False
    out = of(node).one
    specs = [of(n).spec for n in (left, right)]
    return all(s is not None and s.shape == out.shape and s.dtype == out.dtype for s in specs)


class _Network:
    """The graph with positions, and the runs of modules as a tree."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes: list[fx.Node] = list(coupling.traced.graph.nodes)
        self.unread = unread(coupling.traced.graph)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.by_name = {node.name: node for node in self.nodes}
        self.calls = coupling.traced.calls
        self.children: dict[int, list[int]] = {}
        self.times: dict[str, int] = {}
        for i, call in enumerate(self.calls):
            self.children.setdefault(call.parent, []).append(i)
            self.times[call.module] = self.times.get(call.module, 0) + 1

    def branch(self, add: fx.Node) -> Branch | None:
        """The branch that ends in an add, None if this is no residual add.

        Raises:
            _Unclear: it is one, but must stay.
        """
        sides = [self._between(add, side) for side in (0, 1)]
        owning = [side for side, parts in enumerate(sides) if any(map(_is_parameter, parts[0] | parts[1]))]
        if not owning:
            return None
        leading = [side for side in owning if self._leads(add.args[1 - side], add.args[side])]  # type: ignore[arg-type]
        if not leading:
            raise _Unclear(f"neither summand leads to the other: {_beside(sides, owning)}")
        side = leading[0]
        inside, entries = sides[side]
        value, shortcut = add.args[side], add.args[1 - side]
        assert isinstance(shortcut, fx.Node)
        assert isinstance(value, fx.Node)
        shared = [str(n.target) for n in entries if n.op == "get_attr"]
        if shared:
            raise _Unclear(f"shares {shared[0]} with other parts of the network")
        if len(entries) != 1 or not self._leads(shortcut, next(iter(entries))):
            raise _Unclear(f"reads {len(entries)} values from outside, not its shortcut alone")
        try:
            made = self._whole_module(add, shortcut, inside)
        except _Unclear as first:
            try:
                made = self._silenced(add, value, inside)
            except _Unclear as second:
                raise _Unclear(f"{first}; {second}") from second
        name, replacements, nodes, tensors = made
        self._check_owned(replacements, nodes, tensors)
        branch = Branch(name, add.name, side, shortcut.name, replacements, nodes, tensors)
        groups = tuple(g.name for g in self.coupling.groups if {m.axis.tensor for m in g.members} <= tensors)
        return replace(branch, groups=groups, output=self._output(tensors, groups))

    def _between(self, add: fx.Node, side: int) -> tuple[set[fx.Node], set[fx.Node]]:
        """Nodes that serve one summand alone, and the values that they read from outside."""
        value = add.args[side]
        assert isinstance(value, fx.Node)
        inside: set[fx.Node] = set()
        entries: set[fx.Node] = set()
        seen = {value}
        heap = [-self.position[value]]
        while heap:
            node = self.nodes[-heappop(heap)]
            served = all(user in inside or user is add or user in self.unread for user in node.users)
            if not served or node.op == "placeholder" or (node is not value and add in node.users):
                entries.add(node)
                continue
            inside.add(node)
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    heappush(heap, -self.position[source])
        return inside, entries

    def _leads(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether a value is, or is computed from, another one."""
        seen = {last}
        level = [last]
        while level:
            node = level.pop()
            if node is first:
                return True
            fresh = [n for n in node.all_input_nodes if n not in seen and self.position[n] >= self.position[first]]
            seen.update(fresh)
            level += fresh
        return False

    def _works(self, node: fx.Node) -> bool:
        return node.op == "call_function" and node.target is not getitem and node not in self.unread

    def _work(self, call: ModuleCall) -> list[fx.Node]:
        return [n for n in self.nodes[call.start : call.end] if self._works(n)]

    def _home(self, nodes: Iterable[fx.Node]) -> int:
        """The innermost run of a module that all nodes are part of."""
        places = [self.position[n] for n in nodes if self._works(n)]
        low, high = min(places), max(places)
        around = [i for i, c in enumerate(self.calls) if c.start <= low and high < c.end]
        return around[-1]

    def _items(self, home: int) -> list[fx.Node | int]:
        """The operators that a module runs itself, and the runs of its children (positions in `calls`), in order."""
        inner = self.children.get(home, [])
        covered = {n for i in inner for n in self._work(self.calls[i])}
        own = [((self.position[n], 1, 0), n) for n in self._work(self.calls[home]) if n not in covered]
        runs = [((self.calls[i].start, 0, i), i) for i in inner]
        return [item for _, item in sorted([*own, *runs], key=lambda row: row[0])]  # type: ignore[misc]

    def _whole_module(
        self, add: fx.Node, shortcut: fx.Node, inside: set[fx.Node]
    ) -> tuple[str, tuple[Replacement, ...], frozenset[str], frozenset[str]]:
        """Replace the smallest module that has the branch and the add with what it does after the add."""
        home = self._home({*inside, add})
        call = self.calls[home]
        where = f"module {call.module!r}" if call.module else "the model's own forward"
        if not call.module:
            raise _Unclear("the add is in the model's own forward")
        self._check_replaceable(call)
        if not (call.plain and call.single and call.inputs == (shortcut.name,)):
            raise _Unclear(f"{where} takes or returns more than one tensor")
        current: fx.Node | None = None
        steps: list[Step] = []
        kept: list[ModuleCall] = []
        for item in self._items(home):
            run = self.calls[item] if isinstance(item, int) else None
            work = self._work(run) if run is not None else [item]
            if current is None and add in work:
                if work != [add]:
                    raise _Unclear(f"{where} adds in a module that does more")
                current = add
            elif current is None:
                idle = run is not None and not work and {self.by_name.get(n or "") for n in run.inputs} <= inside
                if not (idle or (work and inside.issuperset(work)) or (run is not None and run.kind is nn.Identity)):
                    raise _Unclear(f"{where} does more than this branch before the add")
            elif run is None:
                steps.append(_operator_step(item, current, where))  # type: ignore[arg-type]
                current = item  # type: ignore[assignment]
            else:
                if not (run.plain and run.single and run.inputs == (current.name,)):
                    raise _Unclear(f"{where} does more than a chain of modules after the add")
                if run.kind is not nn.Identity:
                    kept.append(run)
                    steps.append(Step(child=run.module.removeprefix(f"{call.module}.")))
                current = self.by_name.get(run.outputs[0] or "", current)
        assert current is not None
        if call.outputs != (current.name,):
            raise _Unclear(f"{where} does not return what it added")
        if any("." in s.child for s in steps):
            raise _Unclear(f"{where} runs a module that is not its child after the add")
        tensors = frozenset(
            t
            for t in self.coupling.traced.tensors
            if t.startswith(f"{call.module}.") and not any(t.startswith(f"{run.module}.") for run in kept)
        )
        passed = current is add or getattr(current.target, "is_view", False)
        own = op(add) == "add" or add.args[0] is not shortcut
        if passed and own and (written(current, set()) or written(shortcut, {*inside, add})):
            steps.append(Step(operator=("clone", "default")))  # What was a tensor of its own must be one.
        replacement = Replacement(call.module, "shortcut", tuple(steps))
        return call.module, (replacement,), self._names({*inside, add}, [call], kept), tensors

    def _silenced(
        self, add: fx.Node, value: fx.Node, inside: set[fx.Node]
    ) -> tuple[str, tuple[Replacement, ...], frozenset[str], frozenset[str]]:
        """Put zeros in place of the branch's last modules and nothing in place of those before them."""
        runs = self._covering(self._home({*inside, add}), inside)
        for run in runs:
            self._check_replaceable(run)
            if self._result(run) is None:
                raise _Unclear(f"module {run.module!r} does not return one tensor of its input's shape")
        covered = {n for run in runs for n in self._work(run)}
        last = self._last(value, inside, covered, runs)
        nodes = {n for n in inside if n in covered or (n.target is getitem and n.args[0] in covered)}
        nodes |= {n for n in inside if n.op == "get_attr" and nodes.issuperset(n.users)}
        tensors = frozenset(t for run in runs for t in self.coupling.traced.tensors if t.startswith(f"{run.module}."))
        replacements = tuple(
            Replacement(run.module, "zeros" if run in last else "input", results=_results(run)) for run in runs
        )
        sizes = {run.module: self._size(run, tensors) for run in runs}
        return max(sizes, key=sizes.__getitem__), replacements, self._names(nodes, runs), tensors

    def _covering(self, home: int, inside: set[fx.Node]) -> list[ModuleCall]:
        """The children of a module that do the branch's work and no other."""
        if issubclass(self.calls[home].kind, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            raise _Unclear("torch's transformer layers have a fused path that reads the weights of their modules")
        runs = []
        for i in self.children.get(home, []):
            work = self._work(self.calls[i])
            if work and inside.issuperset(work):
                runs.append(self.calls[i])
            elif inside.intersection(work):
                raise _Unclear(f"module {self.calls[i].module!r} does other work, too")
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
                sources = _zero_if(node) if node in inside and node not in covered else []
                if not sources:
                    raise _Unclear(f"{node.target} in {of(node).module!r} may make something of zeros")
                level += sources
        return last

    def _result(self, run: ModuleCall) -> str | None:
        """The one tensor that a run returns, if it has the shape of its first input."""
        given = self.by_name.get(next((n for n in run.inputs if n), ""))
        results = [self.by_name[n] for n in run.outputs if n]
        if not run.plain or given is None or len(results) != 1:
            return None
        same = of(given).one.shape == of(results[0]).one.shape
        same &= of(given).one.dtype == of(results[0]).one.dtype
        return results[0].name if same and run.inputs[0] == given.name else None

    def _check_replaceable(self, call: ModuleCall) -> None:
        if self.times[call.module] != 1:
            raise _Unclear(f"module {call.module!r} runs {self.times[call.module]} times")
        hooked = [c.module for c in self.calls if c.hooked and f"{c.module}.".startswith(f"{call.module}.")]
        if hooked:
            raise _Unclear(f"module {hooked[0]!r} has hooks")

    def _check_owned(self, replacements: Sequence[Replacement], nodes: frozenset[str], tensors: frozenset[str]) -> None:
        for node in self.nodes:
            if _is_parameter(node) and (str(node.target) in tensors) != (node.name in nodes):
                raise _Unclear(f"{node.target} and the branch's modules do not belong together")
        unseen = [name for name in self.coupling.traced.unused if name in tensors]
        if unseen:
            raise _Unclear(f"{unseen[0]} was not reached by the forward: what it is for is not known")

    def _names(
        self, nodes: set[fx.Node], replaced: Sequence[ModuleCall], kept: Sequence[ModuleCall] = ()
    ) -> frozenset[str]:
        """Names of nodes that vanish: these, what comes to nothing behind them, and in the modules that go."""
        ranges = [{n for c in calls for n in self.nodes[c.start : c.end]} for calls in (replaced, kept)]
        unread = self.unread & (ranges[0] | {u for n in nodes for u in n.users}) - ranges[1]
        return frozenset(n.name for n in nodes | unread)

    def _size(self, run: ModuleCall, tensors: frozenset[str]) -> int:
        shapes = self.coupling.traced.tensors
        return sum(int(np.prod(shapes[t].shape)) for t in tensors if t.startswith(f"{run.module}."))

    def _output(self, tensors: frozenset[str], own: Sequence[str]) -> tuple[Member, ...]:
        """The axes that make the channels which a branch adds, of the group that they are in."""
        at = {str(n.target): self.position[n] for n in self.nodes if _is_parameter(n)}
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
        layers = (sorted(str(n.target).rpartition(".")[0] for n in a | b if _is_parameter(n)) for a, b in sides)
        return "both have layers of their own ({}; {})".format(*(_few(names) for names in layers))
    inside, _ = sides[1 - owning[0]]
    work = [n for n in inside if n.op == "call_function" and n.target is not getitem]
    if not work:
        return "the shortcut is a value that the branch does not start from"
    names = (f"{op(n)} at {of(n).source}" if of(n).source else op(n) for n in work)
    return f"the shortcut is computed, too ({_few(sorted(names))})"


def _few(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _is_parameter(node: fx.Node) -> bool:
    return node.op == "get_attr" and not of(node).constant


def _results(run: ModuleCall) -> tuple[int, int] | None:
    if run.single:
        return None
    return len(run.outputs), next(i for i, name in enumerate(run.outputs) if name)


def _zero_if(node: fx.Node) -> list[fx.Node]:
    """The value that makes an operator's result zero if it is zero itself; nothing where that is not known."""
    name = op(node).rstrip("_")
    computed = [n for n in node.args if isinstance(n, fx.Node) and n.op != "get_attr"]
    if name == "mul" or (name in _MOVING and node.all_input_nodes == computed):
        return computed[:1]
    return []


_MOVING = ("view", "_unsafe_view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "clone", "roll", "neg")


def _operator_step(node: fx.Node, current: fx.Node, where: str) -> Step:
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
        raise _Unclear(f"{where} runs {node.target} after the add")
    return Step(operator=(name, overload), arguments=tuple(node.args[1:]))


_ACTIVATIONS = ("hardtanh", "hardswish", "leaky_relu", "elu", "celu")
