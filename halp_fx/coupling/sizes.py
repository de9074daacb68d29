"""Questions to a coupling: which groups an operator handles, what is given sizes, and which axis is a group's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from torch import fx, nn

from ..internals import ConvNd
from ..tracing.graph import of, op, place_of
from ..tracing.tags import FromAttribute, FromSize, Source
from ..types import Axis, ChannelGroup, Coupling, Mismatch

# Operators that make a tensor of equal elements, or a unit matrix: it follows the widths of what it meets, which a
# trial confirms.
_MADE = {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"}
_MADE |= {"empty_strided", "new_empty_strided", "eye"}
# And the zero that forward-mode differentiation has for what does not move.
FACTORIES = _MADE | {"_efficientzerotensor"}

# Python functions that take sizes along an axis from their argument, or cut it evenly.
_FOLLOWS_WIDTH = {"flatten", "linear", "matmul", "__matmul__", "einsum", "conv2d", "squeeze", "unsqueeze"}
_FOLLOWS_WIDTH |= {"instance_norm"}
_TAKES_SIZES = {"view", "_unsafe_view", "reshape", "expand", "repeat", "split", "split_with_sizes", "slice", "unfold"}
_TAKES_SIZES |= FACTORIES | {"index", "index_select", "unsafe_split", "constant_pad_nd"}
_POOLS = {f"{name}{n}d" for name in ("_adaptive_avg_pool", "adaptive_max_pool") for n in (2, 3)}
_TAKES_SIZES |= _POOLS
# Functions that compare the sizes that they are given with those of a tensor, and come to an operator without.
_COMPARES_SIZES = {"sum_to_size", "rnn_tanh_cell", "rnn_relu_cell"}
# These are of interest where they handle an axis that can shrink; padding and pooling, where it is along one.
_ON_CHANNELS = _MADE | _POOLS | {"constant_pad_nd"}
_TAKES_SHAPE = {"native_layer_norm", "_fused_rms_norm"}


def groups_of(node: fx.Node, coupling: Coupling) -> tuple[str, ...]:
    """Groups in the shapes of an operator's arguments and result. Of `x.new_zeros(sizes)`, the dtype of x counts, and
    not its shape."""
    nodes = [node] if op(node) in FACTORIES else [node, *node.all_input_nodes]
    return tuple(dict.fromkeys(name for n in nodes for e in coupling.shapes[n.name] for name, _ in e.terms))


def groups_at(found: Mismatch, coupling: Coupling, given: Mapping[str, frozenset[Source]]) -> set[str]:
    """Groups that the failing operator handles, in all modules that run it where the same dimensions of its arguments
    and result can shrink: a stage with one head fails for another reason than one with several, if it fails. An
    operator that handles none is held up by those whose widths it was given, or by what leads to it; so is one that
    runs with another number than before. Where the program compared widths and ended itself, it is these.

    Args:
        given: where the numbers come from that operators are given, by node.
    """
    able = {g.name for g in coupling.prunable}
    read = (groups_given(found.sources, coupling) | groups_followed(found.sources, coupling)) & able
    if found.compared and read:
        return read
    nodes = [n for n in coupling.traced.graph.nodes if found.place[0] and place_of(n) == found.place]
    failed = next((n for n in nodes if n.name == found.node), None)
    if failed is not None:
        # A layer's own view is another than that of an attention, though one line of the program runs both.
        nodes = [n for n in nodes if of(n).function == of(failed).function]
        moved = moving(failed, coupling)
        nodes = [n for n in nodes if moving(n, coupling) == moved]
        # Nor is one whose numbers follow widths by now the same case as one whose numbers do not.
        followed = bool(groups_followed(found.sources, coupling))
        nodes = [n for n in nodes if n is failed or bool(groups_followed(given.get(n.name, ()), coupling)) == followed]
    names: set[str] = set()
    for node in nodes:
        sources = found.sources if node.name == found.node else given.get(node.name, frozenset())
        held = groups_given(sources, coupling) | groups_followed(sources, coupling)
        if not (found.by_value and held & able):
            held = set(groups_of(node, coupling)) or held or set(_groups_above(node, coupling))
        names.update(held)
    return names or set(found.groups)


def groups_given(sources: Iterable[Source], coupling: Coupling) -> set[str]:
    """The groups whose widths are among the sizes that an operator was given."""
    sizes = (s for s in sources if isinstance(s, FromSize) and s.dim < len(coupling.shapes.get(s.node, ())))
    return {group for s in sizes for group, _ in coupling.shapes[s.node][s.dim].terms}


def groups_followed(sources: Iterable[Source], coupling: Coupling) -> set[str]:
    """The groups that attributes follow which an operator was given."""
    given = {(s.module, s.attribute) for s in sources if isinstance(s, FromAttribute)}
    return {name for e in coupling.mended if (e.module, e.attribute) in given for name, _ in e.extent.terms}


def moving(node: fx.Node, coupling: Coupling) -> list[list[bool]]:
    """Which dimensions of an operator's result and arguments can shrink."""
    return [[bool(e.terms) for e in coupling.shapes[n.name]] for n in (node, *node.all_input_nodes)]


def groups_around(node: fx.Node, coupling: Coupling) -> tuple[str, ...]:
    """Groups of what leads to an operator; if nothing does (a constant), of what its result meets."""
    level = [node]
    seen: set[fx.Node] = set()
    while level:
        for found in level:
            names = _groups_above(found, coupling, seen)
            if names:
                return names
        level = [user for user in dict.fromkeys(u for found in level for u in found.users) if user not in seen]
    return ()


def _groups_above(node: fx.Node, coupling: Coupling, seen: set[fx.Node] | None = None) -> tuple[str, ...]:
    """Groups of the nearest operators, going back from this one, that handle any. What is `seen` handles none."""
    seen = set() if seen is None else seen
    level = [node]
    while level:
        names = dict.fromkeys(name for n in level for name in groups_of(n, coupling))
        if names:
            return tuple(names)
        seen.update(level)
        level = [n for n in dict.fromkeys(n for found in level for n in found.all_input_nodes) if n not in seen]
    return ()


def reads_widths(coupling: Coupling) -> bool:
    """Whether the program asked for a size that depends on widths: it may compute with it, or branch on it."""
    return any(
        coupling.shapes[node.name][dim].terms for node in coupling.traced.graph.nodes for dim in of(node).sizes_read
    )


def takes_sizes(coupling: Coupling) -> bool:
    """Whether an operator was given sizes or positions from an unknown source. It need not handle an axis that can
    shrink: `C` of an activation may be the size of a view of something else. But a tensor of equal elements that meets
    none has the same sizes at all widths, unless the program has read one (those of differentiation none reads)."""
    return any(
        takes_size(node) and (op(node) not in _ON_CHANNELS or any(_given(node, coupling)))
        for node in coupling.traced.graph.nodes
    )


def _given(node: fx.Node, coupling: Coupling) -> list[bool]:
    """Whether a dimension that an operator of `_ON_CHANNELS` is given a size for can shrink."""
    if op(node) in _POOLS:
        sizes: list[int] = node.args[1]  # type: ignore[assignment]
        return [bool(e.terms) for e in coupling.shapes[node.all_input_nodes[0].name][-len(sizes) :]]
    extents = coupling.shapes[node.name]
    if op(node) in FACTORIES:
        return [bool(e.terms) for e in extents]
    pad: list[int] = node.args[1]  # type: ignore[assignment]
    return [bool(extents[len(extents) - 1 - i].terms) for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]]


def takes_size(node: fx.Node) -> bool:
    """Whether an operator was given sizes or positions that the program may have got from anywhere."""
    if op(node) in _TAKES_SHAPE or of(node).function == "rms_norm":
        # So are these; what a forward of the user's own hands to them is not.
        return not issubclass(of(node).layer, (nn.LayerNorm, nn.RMSNorm))
    if op(node) == "convolution":
        # The layers of PyTorch are looked after by the convolution's rule.
        return int(node.args[8]) > 1 and not issubclass(of(node).layer, ConvNd)  # type: ignore[arg-type]
    if op(node) == "native_group_norm":
        own = getattr(of(node).layer, "forward", None) is nn.GroupNorm.forward
        return int(node.args[6]) > 1 and not own  # type: ignore[arg-type]
    function = of(node).function
    return (op(node) in _TAKES_SIZES and function not in _FOLLOWS_WIDTH) or function in _COMPARES_SIZES


def own_axis(group: ChannelGroup, coupling: Coupling) -> Axis | None:
    """An axis all of whose slots are the group's, one that produces them if possible."""
    sizes = coupling.traced.tensors
    own = [m for m in group.members if m.slots.size == sizes[m.axis.tensor].shape[m.axis.dim]]
    return min(own, key=lambda m: m.role != "producer").axis if own else None


Width = tuple[Fraction, dict[Axis, Fraction]]
"""The width of a group: a number, and multiples of lengths of axes."""


def widths_by_axes(coupling: Coupling) -> dict[str, Width]:
    """The widths of groups by lengths of axes, without those of which these do not tell: the length of an axis of its
    own, or what is left of one (a layer that makes several parts) without the widths of the others on it."""
    on_axis: dict[Axis, dict[str, int]] = {}
    found: dict[str, Width] = {}
    for group in coupling.groups:
        for member in group.members:
            row = on_axis.setdefault(member.axis, {})
            row[group.name] = row.get(group.name, 0) + member.slots.shape[1]
        own = own_axis(group, coupling)
        if own is not None:
            found[group.name] = Fraction(0), {own: Fraction(1, on_axis[own][group.name])}
        elif group.frozen is not None:
            found[group.name] = Fraction(group.size), {}
    left = [group for group in coupling.groups if group.name not in found]
    while left:
        solved = {g.name: width for g in left if (width := _rest(g, on_axis, found)) is not None}
        if not solved:
            break
        found |= solved
        left = [group for group in left if group.name not in found]
    return found


def _rest(group: ChannelGroup, on_axis: Mapping[Axis, Mapping[str, int]], known: Mapping[str, Width]) -> Width | None:
    """What is left of an axis without the widths of the other groups on it, where all of these are known."""
    for axis in (m.axis for m in group.members):
        row = on_axis[axis]
        if any(name not in known for name in row if name != group.name):
            continue
        each, fixed, terms = row[group.name], Fraction(0), {axis: Fraction(1)}
        for name, beside in row.items():
            if name != group.name:
                fixed -= known[name][0] * beside
                for other, factor in known[name][1].items():
                    terms[other] = terms.get(other, Fraction(0)) - factor * beside
        return fixed / each, {other: factor / each for other, factor in terms.items() if factor}
    return None


def axes_by_groups(coupling: Coupling) -> dict[tuple[tuple[str, Fraction], ...], Width]:
    """Lengths of axes by the groups on them, in shares of all slots that may go: where several groups lie on every
    axis (a norm ties some channels of one layer with some of another), none tells the width of one of them."""
    rows: dict[Axis, dict[str, int]] = {}
    moving: dict[Axis, int] = {}
    for group in coupling.groups:
        for member in group.members if group.frozen is None else ():
            row = rows.setdefault(member.axis, {})
            row[group.name] = row.get(group.name, 0) + member.slots.shape[1]
            moving[member.axis] = moving.get(member.axis, 0) + member.slots.size
    found: dict[tuple[tuple[str, Fraction], ...], Width] = {}
    for axis, row in rows.items():
        if len(row) > 1:
            whole = sum(row.values())
            fixed = coupling.traced.tensors[axis.tensor].shape[axis.dim] - moving[axis]
            found.setdefault(shares_of(row.items()), (Fraction(-fixed, whole), {axis: Fraction(1, whole)}))
    return found


def shares_of(terms: Iterable[tuple[str, int]]) -> tuple[tuple[str, Fraction], ...]:
    """How often each group counts, of all counts."""
    counts = sorted(terms)
    whole = sum(count for _, count in counts)
    return tuple((name, Fraction(count, whole)) for name, count in counts)
