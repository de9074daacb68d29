"""prune: trace -> couple -> score -> time -> solve -> rewrite -> measure, again until the budget is met; and single
stages, with what they need of those before filled in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from .arguments import check_switches, whole
from .errors import PlanError, SaliencyError, StateError
from .files import path_of
from .model.checks import check_finite, check_model, check_module, check_whole
from .model.naming import Ignored
from .model.preserving import as_modes_of, making, preserved
from .model.randomness import Stream
from .progress import shown, work
from .pruning.budgets import BudgetLike
from .pruning.contest import contested
from .pruning.distributed import Team, changed, check_alone, follow
from .pruning.frontier import Frontier
from .pruning.goals import make_budgets, make_goals
from .pruning.limits import LimitLike
from .pruning.published import as_published
from .pruning.reached import nothing_lost
from .pruning.request import Effort, Judge, Request, Solver
from .pruning.resuming import Notebook
from .pruning.walking import walked
from .reporting.curve import Curve, curve_of
from .reporting.making import report_on
from .reporting.report import report_of
from .rewriting import applying, compensating, twin
from .rewriting.compensating import Compensation
from .rewriting.descent import ancestry, descend
from .scoring.callables import Importance
from .scoring.losses import Loss, LossFn
from .training.optimizer import Optimizers, check_bound, rebind
from .trials.trials import coupling_of
from .types import Coupling, Plan

logger = logging.getLogger("halp_fx")


def prune(
    model: nn.Module,
    budget: BudgetLike,
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    loss: Loss | None = None,
    importance: Importance | None = None,
    latency: Any = None,
    ignore: Ignored | Iterable[Ignored] = (),
    round_to: int | None = None,
    min_keep: float | int = 0.1,
    limits: Mapping[str, LimitLike] | None = None,
    branches: bool | None = None,
    steps: int | None = None,
    solver: Solver = "auto",
    tolerance: float = 0.02,
    train_between: Callable[[nn.Module], Any] | None = None,
    recalibrate: bool | None = None,
    score_fn: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    compensate: bool | None = None,
    heal: bool | int = False,
    optimizer: Optimizers | None = None,
    effort: Effort = "normal",
    judge: Judge = "trained",
    state: str | PathLike[str] | None = None,
    progress: bool = True,
) -> nn.Module:
    """A smaller network of the same class that meets the budget when measured.

    A budget that the dense network meets as it is returns a copy of it at once, with a note. A budget that the smallest
    network (that `min_keep` and `round_to` allow) is above, measured if the cost is a time, by more than the tolerance,
    raises `InfeasibleError`: what that network costs, the network, its plan, and what may help are in it. Both hold for
    every cost, and for one budget as for several. What is returned otherwise meets the budget, or `halp.met` is false
    and `halp.notes` say by how much it does not and why.

    In a job of several processes (`torch.distributed` is initialised) all must call it, with the same arguments but for
    their shards of the data: the first process decides, and all return the same network.

    Args:
        model: an eager `nn.Module`; it is not changed.
        budget: `0.6` or `"60%"` of the dense network's cost, or an amount such as `"4.0ms"`; or a mapping from
            "latency", "macs", "params", "memory" to such budgets, which then all hold.
        example_inputs: a tensor, tuple or dict as for `torch.onnx.export`: the shapes (batch!) that are timed.
            None infers an image batch of one and logs it. A list holds several examples, for forwards that take
            other branches by values: all are recorded and verified, the first is timed.
        data, loss_fn: batches of (input, target) and a scalar loss of (output, target): what groups are worth is told
            by the Fisher information of their channels, which needs no loss where targets are classes, or there are
            none. Without data nothing says how wide a group should be: all become about equally narrow.
        loss: instead of `loss_fn`, for batches of any kind: (model, batch) -> a scalar, or a dict of losses that are
            added up.
        importance: "fisher", "batches", "taylor" (the published sum of scores), "magnitude", or a callable from a
            `ChannelGroup`, or from a group and the model, to the scores of its channels or to `WidthValues`; both are
            given as they stand at the step. None and "auto": with data "batches" ("fisher" if `recalibrate` is
            off), without "magnitude".
        latency: None measures layers here; a path to a saved table; or another cost, e.g. `halp_fx.MacsCost()`, its
            class, or its name ("macs", "flops", "params", "memory").
        ignore: what must stay as it is: modules, parameters, names of these or of groups, or patterns such as
            "layer1.*".
        round_to: kept widths are multiples of this many slots; None: 8, fewer for small groups.
        min_keep: smallest width of a group: share (float) or channels (int).
        limits: for what single modules, parameters, groups or patterns produce, in place of `min_keep`: the smallest
            and the largest width, as shares of their channels (floats) or numbers of them (ints), or one width to have:
            `{"layer1.*": (0.5, 1.0), "layer4.2.conv1": 256}`. The last entry that is for a group holds. A number above
            the width of all that is meant is an error.
        branches: whether residual branches may be dropped whole (see `find_branches`). None: where their loss is
            measured, with data and values by Fisher information, and no width is held by `min_keep` above its default
            or, in the branch, by `limits`.
        steps: removal in so many steps with the saliency scored afresh; None chooses from the budget.
        solver: method of `halp_fx.solve`; "halp" and "mdp" are the published methods as their authors released them:
            Taylor scores, blocks of channels, HALP in 30 steps, MDP in one with branches as choices (docs/solver.md).
        tolerance: relative deviation from a measured budget at which the closing loop stops.
        train_between: called with the network between steps, e.g. to fine-tune. It may set any mode; the random
            numbers that it draws stay drawn.
        recalibrate: re-estimate the statistics of batch norms on the data (`halp_fx.recalibrate`) at the end, and after
            every step where something reads them. Without, and unless `compensate` is asked for, the result equals
            the zeroed twin. None: yes, but not for a published method.
        score_fn: called with a copy of the network after every step, its batch norms re-estimated: accuracy on the
            caller's data, or any number that is larger for a better network. The report has what it returned
            (`halp.scores`).
        max_drop: the most that the score may fall below the dense network's; where a step lets it fall further, the
            network of the step before is returned, with a note.
        compensate: fit the layers whose inputs were cut to what they put out in the dense network
            (`halp_fx.compensate`): at the end, before each `train_between`, and, without batch norms, after every step.
            Without data, at the end, with images that are drawn where the forward is given images. None: where there
            is data; not with `recalibrate=False`, and not for a published method.
        heal: at the end, train the network for a thousand steps, or for so many, to do what the dense network does
            (`halp_fx.heal`): without labels, on the data alone, where nobody will fine-tune it, or not at once.
        optimizer: of the model, or several; it gets the result's parameters, and its state is cut as they were
            (`rebind`).
        effort: "fast" takes fewer, larger steps; "thorough" goes several ways and returns the network that a judge
            prefers (docs/closing.md). It needs data, and takes seven to sixteen times as long.
        judge: with `effort="thorough"`, whose outputs are compared with the dense network's, on a quarter of the data
            that is held out: "trained", of a copy that was trained for some hundred steps on the rest, without labels,
            which foretells better what fine-tuning makes of a small one; "untrained", of the network as it stands,
            whose widths are then varied, too, for one that is used as it is.
        state: a folder in which scores, times, steps and rounds are kept. The same call goes on from there after an
            interruption, and a call with another budget from the narrowest network that is wider (docs/closing.md).
        progress: show how far it is: bars on a terminal and in a notebook, a line now and then in a log file.

    Returns:
        The pruned network, each module in the mode that it has in `model`; its attribute `halp` is the `Report`.

    Raises:
        BudgetError: malformed, out of range, or below what can be reached (`InfeasibleError`, see above).
        ModelError: the model cannot be handled, has NaN or infinite weights, or nothing in it can shrink; `ignore`
            names what it does not have; processes of a job do not agree. TraceError, one of them: its forward does not
            run on the example inputs.
        LatencyError: costs cannot be measured here, or are none; a table is damaged, or of another device.
        SaliencyError: no usable gradients, a batch that does not fit the loss, or no signal in any group.
        TrainingError: the optimizer cannot follow; said before anything runs.
        StateError: `state` is of another model, other data or options, or cannot be read; it is left as it was.
        Whatever ends a call early, Ctrl-C and errors of the caller's functions included, has the network that was
        reached by then as its attribute `reached` (docs/closing.md); nothing, where nothing was removed yet.
    """
    check_model(model)
    if optimizer is not None:
        check_bound(optimizer, model)
    check_finite(model)
    stream = Stream()
    with making(), stream.aside():
        asked = Request.of(
            model, make_goals(budget, latency), example_inputs, stream,
            data=data, loss_fn=loss_fn, loss=loss, importance=importance, ignore=ignore,
            round_to=round_to, min_keep=min_keep, limits=limits, branches=branches, steps=steps, solver=solver,
            tolerance=tolerance, train_between=train_between, recalibrate=recalibrate, score_fn=score_fn,
            max_drop=max_drop, compensate=compensate, heal=heal, effort=effort, judge=judge, progress=progress,
        )  # fmt: skip
        request = as_published(asked, model)
        team = Team.here()
        way = f"compensate={compensate}, heal={heal}, {'a' if train_between else 'no'} train_between"
        if state is not None and team.size > 1:
            raise StateError("state= is for one process: leave it out where torch.distributed is initialised")
        team.check(model, f"budget={budget!r}, steps={steps!r}, {way}")
        start = team.agreed(model)
        if team.leads:
            with team.leading():
                notebook = None if state is None else Notebook.open(path_of(state), model, request, stream)
                small = _pruned(model, request, team, notebook)
            team.tell("done", report_of(small).plan, changed(small, request, bool(request.heal)), report_of(small))
        else:
            small = follow(team, start, request)
    as_modes_of(small, model)
    report = report_of(small)
    if optimizer is not None:
        rebind(optimizer, model, small, report.plan, request.examples)
    descend(small, ancestry(model, request.examples), report.plan)  # At once, whatever steps it took.
    if not (report.met and report.trusted):
        logger.warning("%s", report.notes[-1])
    return small


def pareto(
    model: nn.Module,
    budgets: Sequence[float | str],
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    loss: Loss | None = None,
    importance: Importance | None = None,
    latency: Any = None,
    ignore: Ignored | Iterable[Ignored] = (),
    round_to: int | None = None,
    min_keep: float | int = 0.1,
    limits: Mapping[str, LimitLike] | None = None,
    branches: bool | None = None,
    solver: Solver = "lagrangian",
    tolerance: float = 0.02,
    recalibrate: bool | None = None,
    compensate: bool | None = None,
    score_fn: Callable[[nn.Module], float] | None = None,
    state: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Curve:
    """What the network costs at many budgets: traced and timed once, and scored once, or on one way past all of them.

    Without data every budget is a solution for the dense network's scores. With data the steps to the smallest budget
    pass the others (see docs/pareto.md). Networks are made when they are asked for: `curve.network(0.5)`.

    Args:
        model: an eager `nn.Module`; it is not changed. `Curve.network` needs it as it is.
        budgets: of one resource, as `prune` takes them: `[0.9, 0.7, "50%", "4.0ms"]`.
        solver: "lagrangian" has a certificate, too (`Point.gap`); "auto" looks further where the gap is above 0.1 %,
            which takes several times as long.
        score_fn: called with the network of every point, its batch norms re-estimated: accuracy on the caller's data.
        state: a folder in which scores, times, steps and points are kept. The same call goes on from there after an
            interruption, and one with smaller budgets beside these after the last of these (docs/pareto.md).
        example_inputs, data, loss_fn, loss, importance, latency, ignore: as for `prune`.
        round_to, min_keep, limits, branches, tolerance, recalibrate, compensate, progress: as for `prune`.

    Returns:
        A point for each budget that can be reached, the largest first. What cannot be reached is in `Curve.refused`.

    Raises:
        InfeasibleError: none of the budgets can be reached.
        BudgetError, LatencyError, ModelError, SaliencyError: as `prune`; ModelError in a job of several processes, too.
        StateError: `state` is of another model, other data or options, or has passed other budgets; it is left as it
            was. Whatever ends a call early has the curve up to there as its attribute `reached`.
    """
    check_model(model)
    check_finite(model)
    check_alone("pareto")
    goals, wanted = make_budgets(budgets, latency)
    stream = Stream()
    with making(), stream.aside():
        asked = Request.of(
            model, goals, example_inputs, stream,
            data=data, loss_fn=loss_fn, loss=loss, importance=importance, ignore=ignore,
            round_to=round_to, min_keep=min_keep, limits=limits, branches=branches, solver=solver,
            tolerance=tolerance, recalibrate=recalibrate, score_fn=score_fn, compensate=compensate, progress=progress,
        )  # fmt: skip
        with shown(progress), preserved(model), work("pareto", len(wanted), "budgets") as done:
            request, notebook = as_published(asked, model), None
            if state is not None:
                notebook = Notebook.open(path_of(state), model, request, stream, "pareto")
            return curve_of(Frontier.start(model, request, wanted, notebook), done)


def rewrite(
    model: nn.Module,
    plan: Plan | Mapping[str, Any],
    example_inputs: Any = None,
    *,
    coupling: Coupling | None = None,
    check: bool = True,
    optimizer: Optimizers | None = None,
) -> nn.Module:
    """A copy of `model` without the channels and branches that `plan` drops.

    Args:
        model: the network the plan was made for; it is not changed.
        plan: kept channels per group, and branches that go; groups not named keep all. A group may be named by any
            layer that produces it, with the output channels that this layer keeps.
        example_inputs: as for `trace`.
        coupling: of this model, if at hand; otherwise found afresh.
        check: run the copy once (on the meta device where it can) and compare every operator's shape and coupling
            with what the plan asks for.
        optimizer: of the model, or several; it gets the copy's parameters, and its state is cut as they were
            (`rebind`).

    Raises:
        ModelError: the model cannot be handled, as for `channel_groups`.
        PlanError: the plan does not fit the model.
        RewriteError: the copy does not do what the plan asks for.
        TrainingError: the optimizer cannot follow.
    """
    check_switches(PlanError, check=check)
    if optimizer is not None:
        check_bound(optimizer, model)
    with making():
        coupling = coupling_of(model, example_inputs, coupling)
        small = applying.rewrite(model, plan, example_inputs, coupling=coupling, check=check)
    if optimizer is not None:
        rebind(optimizer, model, small, plan, example_inputs, coupling=coupling)
    return small


def compensate(
    small: nn.Module,
    model: nn.Module,
    data: Iterable[Any],
    plan: Plan | Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    *,
    coupling: Coupling | None = None,
    loss: Loss | None = None,
    samples: int = 1024,
    recalibrate: bool = True,
) -> Compensation:
    """Let the layers of a rewritten network make up for the inputs that they lost, in place, without training.

    Every convolution and linear layer whose inputs were cut is fitted, in the order of the forward, to put out what it
    does in the dense network, by regularised least squares on what it gets in the narrow one. Samples that are left out
    choose the regularisation of each layer. All samples go through the network together.

    Args:
        small: the rewritten network; modes, gradients and random states are given back.
        model: the network that it was made of; it is not changed.
        data: batches as for `recalibrate`.
        plan: that `small` was rewritten with. None: of the report that `prune` leaves.
        example_inputs: as for `trace`.
        coupling: of `model`, if at hand; otherwise found afresh.
        loss: (model, batch) -> anything, for batches of another kind: it calls the model, with the first batch alone.
        samples: used at most; fewer where activations are large (2**28 elements).
        recalibrate: re-estimate the statistics of batch norms on the way.

    Returns:
        Which layers were fitted, how well, and which could not be, and why.

    Raises:
        ModelError: the model cannot be handled, as for `channel_groups`.
        PlanError: the plan does not fit the model, or is not the one that `small` was made with.
        SaliencyError: data has no batch, or the forward fails; `small` is as it was.
    """
    check_module(small)
    check_whole(small)
    samples = whole("samples", samples, SaliencyError)
    check_switches(SaliencyError, recalibrate=recalibrate)
    plan = report_of(small).plan if plan is None else plan
    with making():
        coupling = coupling_of(model, example_inputs, coupling)
        return compensating.compensate(
            small, model, plan, data, coupling=coupling, loss=loss, samples=samples, recalibrate=recalibrate
        )


def zero(
    model: nn.Module,
    plan: Plan | Mapping[str, Any],
    example_inputs: Any = None,
    *,
    coupling: Coupling | None = None,
) -> nn.Module:
    """The zeroed twin: a copy of `model` that computes what the rewritten network should.

    If a statistic runs over channels that the plan removes, or the plan drops branches, the twin's forward works in
    eval mode and without gradients only.

    Raises:
        ModelError: the model cannot be handled, as for `channel_groups`.
        PlanError: the plan does not fit the model.
    """
    with torch.inference_mode(False):
        return twin.zero(model, plan, coupling=coupling_of(model, example_inputs, coupling))


def _pruned(model: nn.Module, request: Request, team: Team, notebook: Notebook | None) -> nn.Module:
    """The stages in order."""
    with shown(request.progress):
        with preserved(model):
            go = contested if request.effort == "thorough" else walked
            session = go(model, request, team, notebook)
            with nothing_lost(lambda: session):
                session.heal()
        small = session.best.network.model
        with nothing_lost(lambda: session):
            small.halp = report_on(session)  # type: ignore[assignment]
    return small
