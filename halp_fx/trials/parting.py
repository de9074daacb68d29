"""Pieces that a tensor is cut into, whose sizes attributes have: each may follow a width of its own.

A rule cannot know where the sizes come from, so it lets all pieces keep their proportions (`coupling/rules/cuts.py`).
Tags say which were computed from attributes (`split(x, self.parts)`). Those may change by themselves; trials show
whether the attributes follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..coupling.algebra import without_pieces
from ..coupling.propagation import Propagated
from ..coupling.rules.cuts import ONE, OWN, is_cut
from ..tracing.graph import spot_of
from ..tracing.tags import FromAttribute
from ..types import Coupling, Decisions
from .choosing import removable
from .tagging import Given

WORTH = 1.05
"""So many times as much must go for pieces to be let change by themselves: to find out that they may not takes trials
(of efficientvit_m0 five seconds, for 1.7 % that were not to be had)."""


def parted(
    coupling: Coupling, found: Propagated, given: Callable[[int], Given], coupled: Callable[[Decisions], Coupling]
) -> Coupling:
    """The coupling with pieces that follow widths of their own, where attributes have the sizes and more can go then
    (`WORTH`).

    Args:
        found: what spread through the network. Pieces of what it makes itself (masks of windows) hold no channels.
        given: what operators of a forward are given, by its number.
        coupled: the coupling for other decisions.
    """
    choices = dict(coupling.decisions.choices)
    places = {place.rpartition("#")[0] for place, choice in choices.items() if choice.startswith(f"{ONE} ")}
    spots: set[str] = set()
    for number, view in enumerate(coupling.views() if places else ()):
        cuts = [n for n in view.traced.graph.nodes if is_cut(n) and spot_of(n) in places]
        cuts = found.with_channels(cuts)
        sources = given(number) if cuts else {}
        spots |= {spot_of(n) for n in cuts if any(isinstance(s, FromAttribute) for s in sources.get(n.name, ()))}
    if not spots:
        return coupling
    for place, choice in choices.items():
        if choice.startswith(f"{ONE} ") and place.rpartition("#")[0] in spots:
            choices[place] = choice.replace(ONE, OWN, 1)
    other = coupled(replace(coupling.decisions, choices=without_pieces(choices)))
    return other if removable(other) > WORTH * removable(coupling) else coupling
