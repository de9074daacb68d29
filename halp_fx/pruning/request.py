"""What `prune` was asked for, understood and checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from torch import nn

from ..arguments import MOST_STEPS, check_switches, is_number, is_positive, is_whole
from ..errors import BudgetError, SaliencyError
from ..model.images import are_images
from ..model.inputs import Examples, normalize_examples
from ..model.naming import Ignored, ignored_names
from ..model.randomness import Stream
from ..scoring.callables import Importance, check_importance
from ..scoring.losses import Loss, LossFn, check_data, check_loss
from ..scoring.saliency import MAX_BATCHES
from ..solver import Method
from ..solver.solution import BASELINES
from ..types import Inputs
from .goals import Goals
from .limits import Limit, LimitLike, named_limits

Solver = Method | Literal["mdp"]
"""A method of `solve`, or a published method that is more than one (`published`)."""

SOLVERS = (*get_args(Method), "mdp")

Effort = Literal["fast", "normal", "thorough"]
"""How much is tried: larger steps, the default, or several ways and a judge (`contest`)."""


Judge = Literal["trained", "untrained"]
"""What is judged where several ways are gone: copies that were trained for a little while (`rehearsing`), or the
networks as they stand."""

MIN_KEEP = 0.1
"""The smallest share of a group that stays, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that `prune` was asked for. `of` makes it from a caller's arguments.

    Attributes:
        goals: budgets and costs.
        examples: arguments of the forward for each example. The first is timed.
        data: batches that can be read again for every step.
        batches: of the data, that a scoring uses at most.
        ignore: tensors and groups that stay (`ignored_names`).
        limits: with the names that their entries mean.
        evenness: weight of even widths beside the values; None: as scores have it.
        even: widths are even, and scores only say which channels stay.
        sooner: branches go sooner: what is lost without one is not held against what is left of the network.
        guessed: whether no example inputs were given.
        branches, compensate: "auto" where the caller left it open, and it is done; None until that is decided
            (`as_published`).
        on_the_way: samples that networks on the way are compensated with; 0: only the last one is compensated.
        The other attributes are as `prune` documents them.
    """

    goals: Goals
    examples: Examples
    data: Iterable[Any] | None = None
    loss_fn: LossFn | None = None
    loss: Loss | None = None
    importance: Importance | None = None
    ignore: tuple[str, ...] = ()
    round_to: int | None = None
    min_keep: float | int = MIN_KEEP
    limits: tuple[Limit, ...] = ()
    branches: bool | Literal["auto"] | None = None
    steps: int | None = None
    solver: Solver = "auto"
    tolerance: float = 0.02
    train_between: Callable[[nn.Module], Any] | None = None
    recalibrate: bool | None = None
    batches: int = MAX_BATCHES
    score_fn: Callable[[nn.Module], float] | None = None
    max_drop: float | None = None
    compensate: bool | Literal["auto"] | None = False
    on_the_way: int = 0
    heal: bool | int = False
    effort: Effort = "normal"
    judge: Judge = "trained"
    progress: bool = True
    evenness: float | None = None
    even: bool = False
    sooner: bool = False
    guessed: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        goals: Goals,
        example_inputs: Any,
        stream: Stream,
        *,
        data: Iterable[Any] | None,
        ignore: Ignored | Iterable[Ignored],
        limits: Mapping[str, LimitLike] | None,
        train_between: Callable[[nn.Module], Any] | None = None,
        score_fn: Callable[[nn.Module], float] | None = None,
        **options: Any,
    ) -> Request:
        """The arguments of a call, understood and checked: those named here are read with the model at hand, and the
        caller's functions go on with the caller's random numbers. `options` are fields as they are.

        Raises:
            BudgetError, ModelError, SaliencyError: as `prune`.
        """
        return cls(
            goals=goals,
            examples=normalize_examples(model, example_inputs),
            guessed=example_inputs is None,
            data=rereadable(data),
            ignore=ignored_names(model, ignore),
            limits=named_limits(model, limits or {}),
            train_between=stream.given(train_between, "train_between"),
            score_fn=stream.given(score_fn, "score_fn"),
            **options,
        )

    def __post_init__(self) -> None:
        if self.steps is not None and not (is_whole(self.steps) and self.steps <= MOST_STEPS):
            raise BudgetError(f"steps={self.steps!r} must be a whole number from 1 to {MOST_STEPS:,}, or None")
        left_open = {"branches": self.branches, "compensate": self.compensate}
        asked = {name: value for name, value in left_open.items() if value != "auto"}
        check_switches(BudgetError, optional=True, recalibrate=self.recalibrate, **asked)
        if not is_positive(self.tolerance):
            raise BudgetError(f"tolerance={self.tolerance!r} must be a positive relative deviation such as 0.02")
        if self.solver not in SOLVERS:
            raise BudgetError(f"solver={self.solver!r} is not one of {', '.join(SOLVERS)}")
        if self.max_drop is not None and self.score_fn is None:
            raise BudgetError("max_drop is a drop of what score_fn returns: pass score_fn as well")
        if self.max_drop is not None and not (is_number(self.max_drop) and 0 <= self.max_drop < math.inf):
            raise BudgetError(f"max_drop={self.max_drop!r} must be a number of at least 0, in the unit of score_fn")
        if self.effort not in get_args(Effort):
            raise BudgetError(f"effort={self.effort!r} is not one of {', '.join(get_args(Effort))}")
        if self.judge not in get_args(Judge):
            raise BudgetError(f"judge={self.judge!r} is not one of {', '.join(get_args(Judge))}")
        if self.effort == "thorough":
            self._check_thorough()
        self._check_heal()
        if self.compensate and self.data is None and not are_images(self.inputs):
            raise SaliencyError(
                "compensate=True needs data, unless what the forward is given are images: pass data, batches of inputs "
                "(128 samples or more)"
            )
        check_loss(self.data, self.loss_fn, self.loss)
        check_importance(self.importance)

    def _check_thorough(self) -> None:
        """Raises BudgetError or SaliencyError where several ways cannot be judged."""
        if self.data is None:
            raise SaliencyError("effort='thorough' judges networks by what they put out: pass data, batches of inputs")
        if self.solver == "mdp" or self.solver in BASELINES:
            raise BudgetError(f"effort='thorough' tries several ways, and solver={self.solver!r} is one: leave one out")
        if self.max_drop is not None:
            raise BudgetError("max_drop stops a way, and effort='thorough' tries several: leave one of them out")

    def _check_heal(self) -> None:
        """Raises BudgetError or SaliencyError where a network cannot be trained to do what the dense one does."""
        if not (isinstance(self.heal, bool) or is_whole(self.heal)):
            raise BudgetError(f"heal={self.heal!r} must be True, False, or a number of steps")
        if self.heal and self.data is None:
            raise SaliencyError(
                "heal=True trains the network on data: pass data, batches of inputs (labels are not needed)"
            )
        if self.heal and self.train_between is not None:
            raise BudgetError(
                "heal=True trains the network to do what the dense one does, which takes back what train_between "
                "taught: leave one of them out"
            )

    @property
    def blind(self) -> bool:
        """Whether nothing says how wide a group should be: there is no data, and no importance was asked for."""
        return self.data is None and self.importance in (None, "auto")

    @property
    def rehearses(self) -> bool:
        """Whether networks are judged by trained copies that no `train_between` trains."""
        return self.judge == "trained" and self.train_between is None

    @property
    def inputs(self) -> Inputs:
        """Arguments of the forward that is timed."""
        return self.examples[0]


def rereadable(data: Iterable[Any] | None) -> Iterable[Any] | None:
    """The batches, kept if they could be read only once (a generator).

    Raises:
        SaliencyError: nothing can be read.
    """
    check_data(data)
    return list(islice(data, MAX_BATCHES)) if isinstance(data, Iterator) else data
