"""Choices of rules that do not go together: where grouped layers meet that shrink by whole groups and by positions in
them, few channels are left, and the other choice may leave more. So it is where two widths lie along one dimension, and
where a row for each of several parts is added to them that are read one by one.

Each rule takes what is finer for its own layer alone (`coupling/rules/convolution.py`). Here the whole network counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from torch import fx

from ..coupling.algebra import without_pieces
from ..coupling.rules.channels import PARTS
from ..coupling.sizes import groups_of
from ..tracing.graph import of, op, place_of, spot_of
from ..types import Coupling, Decisions

OTHER_WAY = {"whole": "positions", "positions": "whole"}
"""Of a grouped layer: groups go, or the same positions of every group."""

_OTHER_SIDE = {"first": "second", "second": "first"}
"""Of two widths that are laid along one dimension (heads x positions of a flattened gate): which one stays."""

# The argument that says how many groups there are.
_GROUPS = {"convolution": 8, "_convolution": 8, "native_group_norm": 6}

MAX_GROUPS = 4
"""Groups of channels for which the other choice is tried; each try runs the rules of the whole network."""


def chosen(coupling: Coupling, coupled: Callable[[Decisions], Coupling]) -> Coupling:
    """The coupling, with the other choice of grouped layers that leave fewer channels than each would by itself, as
    long as more can go then.

    Args:
        coupled: the coupling for other decisions.
    """
    best = coupling
    while True:
        turned = [coupled(_with(best.decisions, turn)) for turn in _turns(best)]
        better = max(turned, key=removable, default=best)
        if removable(better) <= removable(best):
            return best
        best = better


def removable(coupling: Coupling, held: Collection[str] = ()) -> float:
    """How many slots may go at most, where one channel of each group stays and the groups that are held stay whole."""
    free = [g for g in coupling.prunable if g.name not in held]
    return sum(m.slots.size * (1 - 1 / g.size) for g in free for m in g.members)


def _turns(coupling: Coupling) -> Iterator[dict[str, str]]:
    """Other choices to try: for all layers together that are held up, for those that one group meets, and at each line
    of the program where two widths lie along one dimension, or where rows go and nothing else may of what they meet."""
    choices = coupling.decisions.choices
    sizes = {g.name: g.size for g in coupling.prunable}
    by_group: dict[str, dict[str, str]] = {}
    for view in coupling.views():
        for node in view.traced.graph.nodes:
            choice = choices.get(spot_of(node), "") if op(node) in _GROUPS else ""
            if choice in OTHER_WAY:
                for name in groups_of(node, view):
                    if sizes[name] < _alone(node, choice):
                        by_group.setdefault(name, {})[spot_of(node)] = choice
    for node in _fixed(coupling):
        by_group.setdefault(str(place_of(node)), {})[spot_of(node)] = "whole"
    for place in _held(coupling):
        by_group.setdefault(place.partition("/")[2], {})[place] = choices[place]
    for place, choice in choices.items():
        if place.endswith("#parted") and choice in _OTHER_SIDE:
            by_group.setdefault(place.partition("/")[2], {})[place] = choice
    several = [{k: v for spots in by_group.values() for k, v in spots.items()}] if len(by_group) > 1 else []
    tried: list[dict[str, str]] = []
    for spots in (*several, *sorted(by_group.values(), key=len)[:MAX_GROUPS]):
        for made, other in {**OTHER_WAY, **_OTHER_SIDE}.items():
            turn = {spot: other for spot, choice in spots.items() if choice == made}
            if turn and turn not in tried:
                tried.append(turn)
                yield turn


def _held(coupling: Coupling) -> Iterator[str]:
    """Places at which whole rows were to go, or the same positions of parts in the batch, and nothing can: what reads
    the rows takes one after the other, and what else the parts meet asks for whole ones."""
    choices = coupling.decisions.choices
    places = [p for p in choices if (p.endswith("#sides") and choices[p] == "whole") or p.endswith(PARTS)]
    moving = {
        spot_of(node)
        for view in (coupling.views() if places else ())
        for node in view.traced.graph.nodes
        if node.op == "call_function" and groups_of(node, view)
    }
    yield from (place for place in places if place.rpartition("#")[0] not in moving)


def _alone(node: fx.Node, choice: str) -> int:
    """How many channels a layer has by itself, 0 where it has no other choice."""
    count, given = int(node.args[_GROUPS[op(node)]]), of(node.all_input_nodes[0]).one  # type: ignore[arg-type]
    each = given.shape[1] // count
    if count == 1 or each == 1:
        return 0
    return count if choice == "whole" else each


def _fixed(coupling: Coupling) -> Iterator[fx.Node]:
    """Convolutions that keep all outputs, several of each group: whole groups cannot go where the input stays. What
    comes after such a one waits for what becomes of it."""
    choices, after = coupling.decisions.choices, set[fx.Node]()
    for node in coupling.traced.graph.nodes:
        if not after.isdisjoint(node.all_input_nodes):
            after.add(node)
        elif op(node) in ("convolution", "_convolution") and choices.get(spot_of(node)) == "whole":
            outputs = coupling.shapes[node.name][1]
            if not outputs.terms and outputs.fixed > int(node.args[8]):
                after.add(node)
                yield node


def _with(decisions: Decisions, turn: Mapping[str, str]) -> Decisions:
    return replace(decisions, choices=without_pieces({**decisions.choices, **turn}))
