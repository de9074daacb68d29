"""What `prune` did -> its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import few
from ..latency import MemoryCost
from ..latency.disturbance import load_notes
from ..model.images import are_images
from ..model.tensors import parameter_count
from ..pruning.networks import Contest
from ..pruning.outcome import verdict
from ..pruning.session import MAX_ROUNDS, Session
from ..scoring.batchwise import has_batch_norms
from ..scoring.recalibrating import without
from ..scoring.saliency import Saliency, left_out
from ..types import Coupling
from .detailing import (
    changes_of,
    conditions_of,
    flows_of,
    groups_of,
    macs_by_module,
    modules_of,
    steps_of,
    work_by_values,
)
from .details import Contender
from .report import Report, RewriteKind, Round

SEEN = 0.005
"""Share of the MACs from which on it is said that they depend on the input."""

WIDE = 0.01
"""Gap from which on it is said that a limit ended the search for widths; smaller ones cannot be seen in a network."""


def report_on(session: Session) -> Report:
    """What is to be said of a closed session's best candidate, and of how it was found."""
    yardstick, contest = session.yardstick, session.contest
    coupling, dense, unit = yardstick.coupling, yardstick.dense, yardstick.goals.cost.unit
    best, known = session.best, session.branches
    saliency = best.network.saliency
    plan = best.network.plan
    left, _, _ = yardstick.left(plan)
    widths = left.widths(plan)
    with session.clock("check layers"):
        layers = yardstick.goals.layer_errors(left, widths) if yardstick.tables is not None else ()
    macs = macs_by_module(coupling, coupling.widths()), macs_by_module(left, {**left.widths(), **widths})
    extra = {
        cost.resource: (total := cost.total(coupling), b.limit(total), cost.total(left, widths))
        for cost, b in yardstick.goals.further
    }
    return Report(
        unit=unit,
        dense=dense,
        budget=yardstick.budget * dense,
        predicted=best.predicted * dense,
        measured=best.measured * dense,
        uncalibrated=best.total,
        plan=plan,
        groups=groups_of(session, widths),
        frozen=coupling.frozen,
        rewrite_kind=RewriteKind.of(coupling),
        saliency=saliency.kind if saliency is not None else "not scored",
        tolerance=session.slack,
        parameters=(parameter_count(yardstick.model), parameter_count(best.network.model)),
        rounds=_rounds(session),
        layers=layers,
        scatter=best.scatter,
        busy=best.busy,
        notes=tuple(_notes(session, extra)),
        scores=tuple((s.share * dense, s.score) for s in (session.judgement.scores if session.judgement else ())),
        seconds=dict(session.clock.seconds),
        branches={b.name: "dropped" if b.name in plan.dropped else "kept" for b in known.removable}
        | dict(known.refused),
        extra=extra,
        macs=(sum(macs[0].values()), sum(macs[1].values())),
        memory=(MemoryCost().total(coupling), MemoryCost().total(left, widths)),
        modules=modules_of(session, macs),
        costs=changes_of(session, widths),
        flows=flows_of(coupling),
        steps=steps_of(session),
        conditions=conditions_of(session),
        contenders=tuple(
            Contender(j.name, j.measured * dense, j.distance, j.tuned) for j in (contest.judged if contest else ())
        ),
        judged_by=contest.said if contest else "",
    )


def _rounds(session: Session) -> tuple[Round, ...]:
    """What was tried, in the order of trying."""
    dense, saliency = session.yardstick.dense, session.best.network.saliency
    return tuple(
        Round(
            predicted=c.predicted * dense,
            measured=c.measured * dense,
            uncalibrated=c.total,
            saliency_kept=_kept(saliency, c.choice.solution.widths),
            gap=c.choice.solution.gap,
            smallest=c.smallest,
        )
        for c in session.candidates
    )


def _notes(session: Session, extra: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """What a reader should know beside the figures.

    Args:
        extra: of further budgets, the dense cost, the budget and what was reached.
    """
    yardstick, best, request = session.yardstick, session.best, session.request
    saliency = best.network.saliency
    notes = [*yardstick.coupling.notes, *yardstick.notes]
    if request.guessed:
        notes.append(_of_no_inputs(conditions_of(session).inputs))
    notes += _of_work(yardstick.coupling)
    if saliency is not None and request.blind:
        notes += _of_no_data(session)
    if saliency is not None and saliency.silent:
        notes.append(_silence(saliency))
    if session.compensation is not None:
        notes += session.compensation.notes
    if session.healing is not None:
        notes.append(str(session.healing))
    if session.contest is not None:
        notes.append(_won(session.contest))
        notes += [left_out(session.contest.lost)] if session.contest.lost else []
    if saliency is not None and saliency.lost:
        notes.append(left_out(saliency.lost))
    if session.lost and not (saliency is not None and set(session.lost) <= set(saliency.lost)):
        notes.append(f"batch norms: {without(session.lost)}")
    if best.choice.solution.limited and best.choice.solution.gap > WIDE:
        notes.append(_limited(best.choice.solution.gap))
    said = session.stopped or verdict(
        best.deviation(yardstick.budget), best.measured, len(session.candidates), MAX_ROUNDS, yardstick, request,
        dropped=best.network.plan.dropped, busy=bool(best.busy), stepped=bool(session.trail),
        wider=min((c.measured for c in session.candidates if c.measured > yardstick.budget), default=None),
        further={name: reached / limit for name, (_, limit, reached) in extra.items()},
    )  # fmt: skip
    return [*notes, *load_notes(best.busy, yardstick.waited), *([said] if said else [])]


def _of_work(coupling: Coupling) -> list[str]:
    """What to say of work that depends on what a network finds."""
    share, modules = work_by_values(coupling)
    if share <= SEEN:
        return []
    return [
        f"{share:.0%} of the MACs are in layers whose work depends on what the network finds in an image "
        f"({few(modules)}). They are counted, before and after, for what the dense network found in the example "
        "inputs: with other images, or where the pruned network finds more or less, the work is another"
    ]


def _of_no_inputs(shapes: Sequence[str]) -> str:
    """What to say where nobody said what the network is given."""
    return (
        f"no example_inputs: costs are those of {', '.join(shapes)}, a guess by the first convolution. Pass an input "
        "of the size that the network will run on"
    )


def _of_no_data(session: Session) -> list[str]:
    """What to say where nothing told how wide groups should be."""
    notes = [
        "no data was given: all groups became about equally narrow, and magnitudes chose the channels; pass data "
        "for widths that fit the network (and loss_fn, if targets are not classes)"
    ]
    request = session.request
    if not request.compensate and not has_batch_norms(session.yardstick.model) and are_images(request.inputs):
        notes.append(
            "without data layers are not compensated, and without batch norms little else restores what a cut "
            "takes: compensate=True does it with images that are drawn"
        )
    return notes


def _won(contest: Contest) -> str:
    """Which network won, and by how much."""
    first, tuned = contest.judged[0], contest.judged[0].tuned is not None
    kind = "squared Hellinger distance" if tuned and contest.kind == "divergence" else contest.kind
    found = [(j.name, j.tuned if tuned else j.distance) for j in contest.judged]
    figures = ", ".join(f"{name} {distance:.4g}" for name, distance in found if distance is not None)
    stands = (
        ". They were compensated to be judged, and this network is not: fine-tune it, or pass compensate=True for one "
        "that is used as it is"
    )
    return (
        f"of {len(found)} networks '{first.name}' was taken, by {kind} from the dense network"
        f"{' of a trained copy' if tuned else ''} on "
        f"{contest.samples} samples that nobody else has seen: {figures}"
        f"{stands if contest.compensated else ''}"
    )


def _limited(gap: float) -> str:
    """What to say of widths whose search a limit ended."""
    return (
        f"the search for widths reached its limit on work: a choice within the budget may be worth up to {gap:.2%} "
        "more (solver='exact' looks further)"
    )


def _silence(saliency: Saliency) -> str:
    """What to say of groups without a signal."""
    if len(saliency.silent) == len(saliency.scores):
        return "importance is the same for every channel: widths were chosen near uniform, channels by weight magnitude"
    return (
        f"no signal in {len(saliency.silent)} groups ({few(saliency.silent, 5)}): every score there is zero, as behind "
        "a zero-initialised layer, in a part that the loss does not depend on, or where gradients are stopped. They "
        "are kept about as wide as the others, their channels ranked by weight magnitude"
    )


def _kept(saliency: Saliency | None, widths: Mapping[str, int]) -> float:
    """The share of all scores that the best channels of each group have at these widths."""
    if saliency is None:
        return 1.0
    known = saliency.known
    everything = sum(float(v.value[-1]) for v in known.values()) or 1.0
    return sum(float(v.value[widths.get(name, 0)]) for name, v in known.items()) / everything
