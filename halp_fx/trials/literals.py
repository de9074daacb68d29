"""literal_decisions: network -> what the literals of its graphs follow, before any trial.

The network runs once as it is, with tagged literals (`rewriting.literals` has lifted them): so it is known which
operator was given which. One that equals a size there is taken to follow it; trials then say whether that is so.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..coupling.sizes import takes_size
from ..rewriting.literals import has_literals, is_literal
from ..tracing.graph import of
from ..types import Coupling, Decisions
from .attributes import followed, joined
from .tagging import run_tagged

# Functions that are given sizes to compare them with those of their tensors.
_COMPARES = {"multi_head_attention_forward"}


def literal_decisions(model: nn.Module, coupling: Coupling, examples: Any) -> Decisions:
    """Mends for the literals of all operators that take sizes, and ties where one of them stands for two widths."""
    if not has_literals(model):
        return Decisions()
    found = []
    for view in coupling.views():
        for node, run in run_tagged(model, view.traced, examples):
            given = [s for s in of(run).sources if is_literal(s)]
            if given and (takes_size(node) or of(node).function in _COMPARES):
                found.append(followed(model, view, node, given))
    return joined(found)
