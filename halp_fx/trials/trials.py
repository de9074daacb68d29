"""channel_groups: trace and couple a model, and try out what its forward takes for constant.

A trace cannot show whether `view(b, 12, 64)` was written with constants or computed from shapes. Where that matters, a
trial network with every group at another share of its width is built on the meta device and verified (`running`). Where
it fails, proposals of `mending` are tried until one gets further; if none does, the groups that the failing operator
handles are frozen, with that reason (`searching`). Whatever was mended must hold for a second choice of widths, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from ..coupling.algebra import varying
from ..coupling.propagation import Propagated, propagate
from ..model.checks import check_coupling, check_model
from ..model.inputs import normalize_examples
from ..model.naming import Ignored, ignored_names
from ..model.preserving import spared, uncollected
from ..rewriting.literals import lifted
from ..tracing.forward import Traces, all_traces
from ..tracing.matching import matched
from ..types import Coupling, Decisions, Traced
from .running import Runner
from .searching import Search


def channel_groups(
    model: nn.Module,
    example_inputs: Any = None,
    ignore: Ignored | Iterable[Ignored] = (),
    like: Coupling | None = None,
) -> Coupling:
    """`trace` and `couple` in one; constants in the forward that repeat a width are mended, or freeze its group.

    Parameters that only a train-mode forward or a later call reaches (auxiliary heads, a branch that is not taken every
    time) are coupled too: see `all_traces`.

    Args:
        model, example_inputs: as for `trace`.
        ignore: modules, parameters, names of these or of groups, or patterns ("layer1.*", "*.conv1"): these stay as
            they are.
        like: the coupling of the same network before it was pruned: what was decided then is followed.

    Raises:
        ModelError: the model cannot be handled, or an entry of `ignore` matches nothing.
    """
    check_model(model)
    if like is not None:
        check_coupling(like, "like")
    names = ignored_names(model, ignore)
    examples = normalize_examples(model, example_inputs)
    model = lifted(model)
    decisions = like.decisions if like is not None else Decisions()
    with spared():
        traces = all_traces(model, examples)
    # As for recording: passes of the collector take longer than a trial (`Runner` asks for some).
    with spared(), uncollected():
        further, known = _without_noise(traces, decisions)
        runner = Runner(model, examples, traces.first, further)
        return Search(runner, names, known).coupling(decisions, traces.unseen)


def coupling_of(model: nn.Module, example_inputs: Any, coupling: Coupling | None) -> Coupling:
    """A coupling at hand, or else as `channel_groups` finds it.

    Raises:
        ModelError: as `channel_groups`, and if what is at hand is none.
    """
    if coupling is None:
        return channel_groups(model, example_inputs)
    check_coupling(coupling)
    return coupling


def _without_noise(traces: Traces, decisions: Decisions) -> tuple[tuple[Traced, ...], Propagated | None]:
    """The further forwards but for those that do what the first one does with noise that all channels get alike
    (stochastic depth): they couple nothing else. And what spread through those that are left, if that is known by
    now."""
    found = [matched(traces.first, traced) for traced in traces.further]
    if not any(found):
        return traces.further, None
    alone = propagate(traces.first, (), decisions.choices)

    def channels(node: fx.Node) -> set[int]:
        return {dim for plane in alone.planes.get(node, ()) for dim in varying(plane)}

    pairs = zip(traces.further, found, strict=True)
    further = tuple(traced for traced, match in pairs if match is None or match.touches(channels))
    return further, None if further else alone
