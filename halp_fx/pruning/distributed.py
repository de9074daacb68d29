"""Several processes of one `torch.distributed` job prune to the same network: the first decides, the others follow.

Scores, measured times and rounds differ between processes; collective calls must not. So only the first process scores
(its shard of the data), times and solves. It tells the others the plan of each step, which they apply to their copy of
the network, and when to train in between, which all do together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import HalpError, ModelError, TrainingError
from ..model.copying import copied
from ..model.members import registered
from ..model.preserving import preserved
from ..model.tensors import overwrite, state_shapes
from ..rewriting.applying import rewrite
from ..scoring.recalibrating import statistics
from ..trials.trials import channel_groups
from ..types import Plan
from .asked import digest
from .meeting import meet
from .request import Request
from .widths import remaining

logger = logging.getLogger("halp_fx")


@dataclass(slots=True)
class Team:
    """The processes of the default group, or this one alone; `listening` while the others wait for what the first tells
    them."""

    rank: int = 0
    size: int = 1
    listening: bool = True

    @classmethod
    def here(cls) -> Team:
        """All processes of an initialised group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def check(self, model: nn.Module, asked: str) -> None:
        """See that all processes prune the same network to the same end.

        Raises:
            ModelError: they do not; raised in all of them.
            TrainingError: one does not answer, or is at another call.
        """
        if self.size == 1:
            return
        if self.leads:
            logger.info("pruning in %d processes: the first decides, all must take part", self.size)
        shapes = [*state_shapes(model).items()]
        self.meet("prune, or where a Pruner is made")
        with self.together():
            everyone = self.gather((type(model).__qualname__, shapes, asked))
        off = next((rank for rank, told in enumerate(everyone) if not isinstance(told, tuple) or len(told) != 3), None)
        if off is not None:
            raise TrainingError(
                f"process {off} of {self.size} exchanged something else than what is asked at the beginning of "
                "pruning: call it in all processes of the job, at the same place"
            )
        for rank, (kind, theirs, words) in enumerate(everyone):
            first = everyone[0]
            if (kind, theirs, words) == first:
                continue
            what = f"{kind} {words}" if theirs == first[1] else next(t for t, o in _paired(theirs, first[1]) if t != o)
            raise ModelError(
                f"the processes of this job prune different networks: process {rank} has {what}, process 0 has "
                f"{first[0]} {first[2]}. Call prune in all of them, with the same model and arguments"
            )

    def agreed(self, model: nn.Module) -> nn.Module:
        """The model, or a copy with the tensors of the first process where those of this one are others: a head that
        each has drawn for itself, which `DistributedDataParallel` would give the values of the first as well."""
        if self.size == 1:
            return model
        buffers = {id(buffer) for buffer in model.buffers()}
        tensors = registered(model)
        own = [digest([t for t in tensors.values() if (id(t) in buffers) is kind]) for kind in (False, True)]
        everyone = self.gather(own)
        if all(theirs == own for theirs in everyone):
            return model
        if self.leads:
            if any(theirs[0] != own[0] for theirs in everyone):
                logger.warning("the processes of this job have models with other weights: those of process 0 count")
            self.tell("weights", {name: tensor.detach().cpu() for name, tensor in tensors.items()})
            return model
        made = copied(model)
        overwrite(made, self.hear()[1])
        return made

    def tell(self, *message: Any) -> None:
        """From the first process to all others."""
        if self.size > 1:
            dist.broadcast_object_list([message], src=0)

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in all of them."""
        everyone: list[Any] = [value]
        if self.size > 1:
            everyone = [None] * self.size
            dist.all_gather_object(everyone, value)
        return everyone

    def meet(self, what: str) -> None:
        """See that all processes are at this call; who is missing for long is said.

        Raises:
            TrainingError: one is at another call; raised in all of them.
        """
        if self.size > 1:
            meet(self.rank, self.size, what)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A process that is gone ends the others with a message. Around what waits for them alone: what a process does
        by itself fails with its own words.

        Raises:
            TrainingError: see above.
        """
        try:
            yield
        except RuntimeError as error:  # As the backends say it.
            if self.size == 1:
                raise
            raise TrainingError(
                f"process {self.rank} of {self.size} waited in a step of pruning for another that does not answer: the "
                f"others' logs say why ({error})"
            ) from error

    @contextmanager
    def leading(self) -> Iterator[None]:
        """What makes the first process give up is told to the others."""
        try:
            yield
        except BaseException as error:
            if self.listening:
                self.tell("error", f"{type(error).__name__}: {error}")
            raise

    @contextmanager
    def training(self, plan: Plan, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """All processes train the network that a plan leads to.

        Args:
            tensors: of it that are not those of the wider network, by name.
        """
        self.tell("train", plan, tensors)
        self.listening = False
        yield
        self.listening = True

    def hear(self) -> tuple[Any, ...]:
        """What the first process tells next.

        Raises:
            HalpError: it gave up.
        """
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0)
        message: tuple[Any, ...] = box[0]
        if message[0] == "error":
            raise HalpError(f"prune failed in process 0 of the job: {message[1]}")
        return message


def check_alone(what: str) -> None:
    """Raises ModelError in a job of several processes."""
    team = Team.here()
    if team.size > 1:
        raise ModelError(
            f"{what} runs in one process, and this job has {team.size}: call it before the job starts, and "
            "halp_fx.prune with the budget that you chose in all of them"
        )


def changed(model: nn.Module, request: Request, trained: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a network that a plan alone does not lead to, on the CPU, by name; all, if it was `trained`."""
    if not (request.compensate or trained):
        return statistics(model)
    return {name: tensor.detach().cpu() for name, tensor in registered(model).items()}


def follow(team: Team, model: nn.Module, request: Request) -> nn.Module:
    """Do what the first process decides, on this process's copy of the network.

    Raises:
        HalpError: the first process gave up.
    """
    before, now_at = (model, Plan()), (model, Plan())
    with preserved(model):
        coupling = channel_groups(model, request.examples, request.ignore)
        while True:
            order, reached, tensors, *report = team.hear()
            # The first process may go back by one step, where the caller's score fell by too much.
            network, plan = now_at if _leads_on(now_at[1], reached) else before
            if plan != reached or network is model:
                now = channel_groups(network, request.examples, like=coupling) if plan else coupling
                network = rewrite(network, remaining(plan, reached), request.examples, coupling=now)
            before, now_at = now_at, (network, reached)
            overwrite(network, tensors)
            if order == "done":
                (network.halp,) = report
                return network
            if request.train_between is not None:
                request.train_between(network)


def _leads_on(done: Plan, reached: Plan) -> bool:
    """Whether a plan takes nothing back that another took."""
    kept = all(set(reached.get(name, ())) <= set(rows) for name, rows in done.items() if name in reached)
    return kept and done.kept.keys() <= reached.kept.keys() and set(done.dropped) <= set(reached.dropped)


def _paired(a: list[Any], b: list[Any]) -> list[tuple[Any, Any]]:
    return [(a[i] if i < len(a) else "no more", b[i] if i < len(b) else None) for i in range(max(len(a), len(b)) + 1)]
