"""Pruner: pruning inside a training loop, in steps, on a schedule (HALP, arXiv 2110.10811).

One `step()` after each `backward()` gathers what channels are worth from the gradients that are there; every so many of
them a step of the session is decided, and the model is masked or cut in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import TrainingError
from ..model.checks import check_finite, check_model
from ..model.copying import copied
from ..model.inputs import normalize_examples
from ..model.naming import Ignored, ignored_names
from ..model.preserving import Casting, preserved
from ..pruning.budgets import BudgetLike
from ..pruning.distributed import Team
from ..pruning.goals import make_goals
from ..pruning.networks import Network
from ..pruning.request import Request, Solver
from ..pruning.session import Session
from ..pruning.widths import remaining
from ..reporting.making import report_on
from ..reporting.report import Report
from ..rewriting.applying import rewrite
from ..rewriting.descent import ancestry, descend
from ..scoring.callables import Importance
from ..scoring.losses import Loss, LossFn
from ..scoring.saliency import Saliency
from ..trials.trials import channel_groups
from ..types import Coupling, Plan
from .asked import Mode, check_asked, check_data_asked, importance_of, in_words, shapes_of
from .averages import averages_checked
from .checkpoint import Identity, session_state, take_up
from .gathering import KEPT, Gathered, rows_that_tell, scale_of
from .leading import Lead
from .masks import Masks, check_maskable, given_closure
from .optimizer import Optimizers, check_bound, innermost
from .schedule import Schedule, ways_of
from .shrinking import Trained, check_trained
from .stepping import Stepped
from .valuing import LostWithout, saliency_of
from .wrapping import Rewrapped, check_free

logger = logging.getLogger("halp_fx")


class Pruner:
    """Prunes a model while it is trained.

        pruner = halp_fx.Pruner(model, 0.5, images[:1], optimizer=optimizer)
        for images, labels in loader:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            pruner.step()  # before clipping, and before optimizer.step()
            optimizer.step()
        pruner.finish()

    Call `step` once for each step of the optimizer, when the gradients are complete: added up over micro-batches, and
    averaged over processes. In a job of several processes all must do the same: the first decides, all cut alike.

    Attributes:
        model: the caller's own object: smaller after each step of pruning ("shrink"), or at the end ("mask").
        plan: what has been removed so far, in channels of the original network.
        done: whether the last step of pruning was taken.
        decisions: steps of pruning that were taken.
        skipped: batches whose gradients were not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: BudgetLike,
        example_inputs: Any = None,
        *,
        optimizer: Optimizers | None = None,
        averages: Iterable[nn.Module] = (),
        steps: int = 30,
        interval: int = 40,
        schedule: Schedule = "exponential",
        mode: Mode = "shrink",
        regrow: bool = False,
        importance: Importance | None = None,
        latency: Any = None,
        ignore: Ignored | Iterable[Ignored] = (),
        round_to: int | None = None,
        min_keep: float | int = 0.1,
        branches: bool | None = None,
        data: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        loss: Loss | None = None,
        solver: Solver = "auto",
        tolerance: float = 0.02,
    ) -> None:
        """Nothing is changed yet; layers are timed, if the budget is a time. Made under autocast, it times and cuts the
        network as it runs there, wherever `step` and `finish` are called.

        Args:
            model, budget, example_inputs, latency, ignore, round_to, min_keep, solver, tolerance: as for `prune`.
                The model is the bare one; `wrap` it for several processes.
            optimizer: of the model, or several that share it; their states are cut with the parameters. None if there
                is no state (plain SGD), or it will be made later.
            averages: moving averages of the model, as for `rebind`.
            steps, interval: steps of pruning, and calls of `step` before each.
            schedule: how the cost falls over the steps: "exponential", "linear", or a rising function from the share of
                the steps to the share of the way, in the logarithm of the cost.
            mode: "shrink" cuts the model at every step; "mask" holds removed channels at zero and cuts in `finish`.
            regrow: masks are straight-through, and every step chooses among all channels again (SMCP); with "mask".
            importance: "fisher" (None; at the grain of batches), "taylor" (the published mean of
                absolute values; None with solver="halp"), "magnitude", or a callable as for `prune`.
            branches: whether residual branches may go whole; None: with data. With "shrink".
            data, loss_fn, loss: batches, as for `prune`, by which branches are valued: what the network loses without
                each is measured (in the first process). With importance="fisher" alone. Like there, classifiers need no
                loss, and batches of another kind than (input, target) need `loss`.

        Raises:
            BudgetError, ModelError: as for `prune`; steps, interval or schedule out of range.
            SaliencyError: data, a loss or an importance that is none; a loss without data.
            InfeasibleError: no network within reach meets the budget; `minimum` is what the smallest one takes.
            TrainingError: the optimizer or an average is not of this model, or what was asked for does not go together.
        """
        check_model(model)
        check_finite(model)
        importance = importance_of(importance, solver)
        branches = data is not None if branches is None else branches
        names = ignored_names(model, ignore)
        asked = in_words({
            "budget": repr(budget), "latency": latency, "steps": steps, "interval": interval, "mode": mode,
            "regrow": regrow, "schedule": schedule, "importance": importance, "solver": solver, "round_to": round_to,
            "min_keep": min_keep, "branches": "measured" if branches and data is not None else branches,
            "ignore": names, "tolerance": tolerance,
        })  # fmt: skip
        self._optimizers = check_bound(optimizer if optimizer is not None else (), model)
        check_asked(asked, bool(self._optimizers))
        check_data_asked(data, branches, importance, loss_fn, loss)
        self.model = model
        self.plan = Plan()
        self.decisions = self.skipped = self._calls = self._fresh = 0
        averaged = averages_checked(averages, model)
        self._steps, self._interval, self._regrow = int(steps), int(interval), regrow
        self._importance: Importance = importance
        self._examples = normalize_examples(model, example_inputs)
        self._casting = Casting.now()
        request = Request(
            goals=make_goals(budget, latency), examples=self._examples, importance=self._importance, ignore=names,
            round_to=round_to, min_keep=min_keep, branches=branches, steps=steps, solver=solver, tolerance=tolerance,
            progress=False,
        )  # fmt: skip
        self._without = None if data is None else LostWithout.of(request, data, loss_fn, loss)
        asked["example_inputs"] = shapes_of(self._examples)
        dense = self._start(request, schedule, asked)
        self._trained = Trained(model, self._examples, dense, self._optimizers, averaged)
        if mode == "mask":
            check_maskable(model, dense, regrow)
        self._masks = Masks(self._optimizers, averaged, regrow) if mode == "mask" else None
        self._gathered, self._stepped = self._gather(dense, self.plan), Stepped()

    def _start(self, request: Request, schedule: Schedule, asked: Mapping[str, Any]) -> Coupling:
        """See that all processes were asked for the same; trace and time the dense network in the first of them, and
        see that the budget is within reach. Returns the network's coupling."""
        team = Team.here()
        team.check(self.model, ", ".join(f"{key}={value}" for key, value in asked.items()))
        with preserved(self.model):
            # What is timed beside the smaller networks is the dense one: a copy of it.
            self._lead = Lead.start(team, lambda: Session.start(copied(self.model), request))
            self._lead.ask(Session.check_possible)
            self._ways = self._lead.ask(lambda s: ways_of(schedule, self._steps, min(s.yardstick.budget, 1.0)))
            stops = {"stops": [round(way, 9) for way in self._ways]} if callable(schedule) else {}
            self._identity = Identity.of(self.model, {**asked, **stops}, team.size)
            self._removable = self._lead.ask(lambda s: tuple(b.name for b in s.branches.removable))
            self.done = self._lead.ask(lambda s: s.yardstick.met_already)
            session = self._lead.session
            self._ancestry = ancestry(self.model, self._examples)
            if session is not None:
                return session.yardstick.coupling
            return channel_groups(self.model, self._examples, request.ignore)

    def step(self, scale: float = 1.0) -> bool:
        """Take in the gradients that are there; every `interval` calls, prune.

        Args:
            scale: what the gradients are multiplied by: `scaler.get_scale()` of a `GradScaler`, unless
                `scaler.unscale_(optimizer)` was called before.

        Returns:
            Whether other channels are there than before.

        Raises:
            TrainingError: there are no gradients, or they cannot be cut, or none was finite since the last step of
                pruning; an optimizer keeps something that cannot be cut; a wrapper that `wrap` did not make.
            InfeasibleError: the budget is out of reach.
        """
        self._gathered.check()
        if self.done:
            self._still()
            return False
        self._gathered.check_same()
        with self._lifted():
            self._gathered.add(scale_of(scale))
        self._still()
        self._calls += 1
        self._fresh += 1
        return self._calls % self._interval == 0 and self._prune(last=self.decisions + 1 >= self._steps)

    def finish(self) -> nn.Module:
        """Take the last step of pruning if it has not been, cut what is masked, and measure.

        Returns:
            The model; its attribute `halp` is the `Report`, as of `prune`.

        Raises:
            TrainingError, InfeasibleError: as `step`.
        """
        self._gathered.check_same()
        self._lead.team.meet("Pruner.finish")
        self._lead.ask(lambda _: check_trained(self.model))
        if not self.done:
            logger.info("finish after %d of %d steps of pruning: the rest is one step", self.decisions, self._steps)
            self._prune(last=True)
        with self._casting.again():
            if self._masks is not None:
                self._masks.check(self.model)
                self._stepped.check(self.model, self._optimizers)
                self._unmask(self._masks, self.plan)
            with preserved(self.model):
                report = self._lead.ask(self._report)
            self._remember(self.plan)
        self._stepped.close()
        self.model.halp = report  # type: ignore[assignment]
        return self.model

    def attach(self) -> RemovableHandle:
        """For trainers that hide the optimizer's step (Hugging Face, timm): call `step` before each of them; of several
        optimizers, before each step of the first.

        Gradients are unscaled then, and clipped, if they are; steps that a `GradScaler` leaves out are left out.

        Raises:
            TrainingError: the pruner has no optimizer; later, where a step makes its gradients itself (Lightning).
        """
        if not self._optimizers:
            raise TrainingError("attach needs the optimizer: pass it to Pruner")

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if given_closure(args, kwargs):
                raise TrainingError("optimizer.step was given a closure: gradients are made inside, after this hook")
            self.step()

        handle = innermost(self._optimizers)[0].register_step_pre_hook(before)
        if self._masks is not None:
            self._masks.watch()  # After that: what is hidden comes back for the optimizer's step itself.
        return handle

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """The model in a wrapper (`DistributedDataParallel`) that is made anew whenever the model is cut.

        Build the optimizer of the bare model's parameters, then the pruner, then wrap; train what this returns.
        """
        self._trained.wrapped.append(Rewrapped(self.model, wrapper))
        return self._trained.wrapped[-1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the states of the model and the optimizer. In a job of several processes, that
        of the first process is enough."""
        state = self._identity.to_state() | {"plan": self.plan.to_json(), "done": self.done}
        state["counts"] = (self._calls, self._fresh, self.decisions, self.skipped)
        state["cut"] = self._masks is None
        state["rows"] = self._gathered.stacked()
        state["hidden"] = [h.clone() for h in self._masks.hidden] if self._masks is not None else []
        return state | (session_state(self._lead.session) if self._lead.session is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, in a pruner that has just been made of the original network.

        It cuts or masks the model: load the model's and the optimizer's own states after it.

        Raises:
            TrainingError: of another network, or another call of `Pruner`, or by another number of processes before
                the last step of pruning, or this one has been used. Nothing is changed.
        """
        self._identity.check(state)
        if self._calls or self.plan:
            raise TrainingError("this Pruner has been used: make a new one of the original network, then load")
        plan = Plan.from_json(state["plan"])
        with self._casting.again():
            if self._masks is not None and state.get("cut", False):
                self._unmask(self._masks, plan)
                self._remember(plan)
            else:
                self._take(plan)
        if self._masks is not None:
            places = zip(state["hidden"], self._masks.places, strict=False)
            self._masks.hidden = [hidden.to(parameter.device) for hidden, (parameter, _, _) in places]
        self.done = bool(state["done"])
        self._calls, self._fresh, self.decisions, self.skipped = state["counts"]
        self._gathered.rows = list(state["rows"])
        if self._lead.session is not None and "learned" in state:
            take_up(self._lead.session, state, self.model, plan)

    def _prune(self, last: bool) -> bool:
        """One step of pruning; whether other channels are there than before."""
        check_bound(self._optimizers, self.model)  # It keeps something now; masks are cut much later.
        self._stepped.check(self.model, self._optimizers)
        if self._masks is None:
            check_free(self.model, self._trained.wrapped)
        finite = self._gathered.finite(self._fresh)
        found = self._lead.gather(finite)
        rows = rows_that_tell(found, self._fresh, self._importance, self._gathered.trained)
        with self._casting.again():
            with self._lifted(), preserved(self.model):
                plan = self._lead.ask(lambda session: self._decided(session, rows, last))
            changed = plan != self.plan
            # They count from now on: of a step that failed all are there, finite or not, for the next to see.
            self.skipped += self._gathered.drop_broken()
            self._take(plan)
        self._lead.agree(self.model, self.plan)
        self.decisions, self.done, self._fresh = self.decisions + 1, last, 0
        return changed

    def _decided(self, session: Session, rows: torch.Tensor, last: bool) -> Plan:
        """The plan after this step, in the first process."""
        check_trained(self.model)
        now = Plan() if self._regrow else self.plan
        own = self._gathered.by_group(rows, now if self._masks is not None else Plan())
        network = self.model
        if self._masks is not None and now:
            network = rewrite(self.model, now, self._examples, coupling=self._trained.dense, check=False)
        known = session.network.saliency
        here = self._trained.here
        session.network = Network(network, now, here if self._masks is None else None)
        left = self._left(self.plan)

        def scorer(model: nn.Module, coupling: Coupling) -> Saliency:
            found = saliency_of(own, self._importance, model, coupling)
            if self._without is None or not left:
                return found
            return replace(found, dropping=self._without(session.network, here, left, known))

        if last:
            session.candidates = []
            session.close(scorer)
            return session.best.network.plan
        session.step(self._ways[self.decisions], scorer)
        return session.network.plan

    def _take(self, plan: Plan) -> None:
        """Mask or cut what a plan removes beyond what is gone."""
        if self._masks is not None:
            self._masks.set(self.model, self._trained.dense, plan)
        elif plan != self.plan:
            step, before = remaining(self.plan, plan), self._gathered
            self._gathered = self._trained.cut(step, lambda here: self._gather(here, plan).follow(before, step))
            self._remember(plan)
        self.plan = plan

    def _unmask(self, masks: Masks, plan: Plan) -> None:
        """Cut what is masked, or would be."""
        self._gathered = self._trained.cut(plan, lambda here: self._gather(here, plan))
        masks.close()
        self._masks, self.plan = None, plan

    def _remember(self, plan: Plan) -> None:
        """Let what was cut know where it comes from, so that it can be saved."""
        for network in (self.model, *self._trained.averages):
            descend(network, self._ancestry, plan)

    def _report(self, session: Session) -> Report:
        known = session.network.saliency or Saliency({}, str(self._importance))
        session.candidates = [session.as_it_is(Network(self.model, self.plan, self._trained.here, known))]
        return report_on(session)

    def _gather(self, coupling: Coupling, plan: Plan) -> Gathered:
        most = max(self._interval, KEPT)
        return Gathered.of(self.model, coupling, self._left(plan), readers=self._regrow, most=most)

    def _left(self, plan: Plan) -> tuple[str, ...]:
        """Branches that may go yet."""
        return tuple(name for name in self._removable if name not in plan.dropped)

    def _still(self) -> None:
        if self._masks is not None:
            self._masks.still()

    def _lifted(self) -> AbstractContextManager[None]:
        """With the weights that soft masks hide."""
        return self._masks.lifted() if self._masks is not None and self._regrow else nullcontext()
