"""resuming: a folder and a call of `prune` or `pareto` -> a session that goes on from what the folder has of it.

A folder has a file for every place at which a search stood (`records`), and `search.json`, which says what it is of
(`asked`). The same call goes on from its last record. A call of `prune` with another budget goes on from the narrowest
network that costs more than it; if there is none, from the dense network and its scores. A call of `pareto` has a
record of every budget that it has passed (`begin`, `take_up`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from torch import nn

from ..errors import HalpError, StateError
from ..files import replacing
from ..latency import MeasuredLatency
from ..latency.files import read_table, write_table
from ..model.randomness import Stream
from ..model.tensors import overwrite
from ..rewriting.applying import rewrite
from ..types.plain import from_plain, to_plain
from .asked import Asked
from .budgets import Budget
from .distributed import changed
from .networks import Network
from .records import (
    FORMAT,
    KeptRound,
    Record,
    Tensors,
    check_format,
    read_record,
    read_tensors,
    saliency_of,
    saliency_tensors,
    scoring_of,
    write_record,
)  # fmt: skip
from .request import Request
from .session import Session
from .standing import standing

logger = logging.getLogger("halp_fx")

INDEX, TIMES = "search.json", "latency.json"

_NETWORK, _RANDOM = "network ", "random "


@dataclass(slots=True)
class Notebook:
    """Where a search writes down how far it is.

    Attributes:
        folder: of the search.
        stream: the random numbers of the caller.
        records: that were there, by number.
        at: the number of the place at which the search stands.
    """

    folder: Path
    stream: Stream
    records: dict[int, Record]
    at: int = -1

    @classmethod
    def open(
        cls,
        folder: Path,
        model: nn.Module,
        request: Request,
        stream: Stream,
        call: str = "prune",
    ) -> Notebook:
        """The notebook in a folder, begun if there is none.

        Args:
            call: the function that was called.

        Raises:
            StateError: it is of something else, or cannot be read; nothing was written.
        """
        asked, index = Asked.of(model, request, call), folder / INDEX
        files = sorted(folder.glob("[0-9]*.safetensors"))
        if index.exists():
            asked.check(_index(index), str(folder))
        elif files or (folder.exists() and not folder.is_dir()):
            what = f"holds {files[0].name}" if files else "is a file"
            raise StateError(f"{folder} {what}, and there is no {INDEX} in it: pass another folder")
        else:
            with replacing(index) as temporary:
                temporary.write_text(json.dumps({"format": FORMAT, "asked": to_plain(asked)}), encoding="utf-8")
        return cls(folder, stream, {int(path.stem): read_record(path) for path in files})

    def part(self, name: str, model: nn.Module, request: Request) -> Notebook:
        """The notebook of a part of this search, in a folder of its own."""
        return Notebook.open(self.folder / folder_name(name), model, request, self.stream)

    def start(self, model: nn.Module, request: Request) -> tuple[Session, tuple[float, ...]]:
        """A session that stands where the search came to, and the ways that it has to go (`Session.ways`): none where
        it is closed.

        Raises:
            As `Session.start`; StateError: the latency table is of another device.
        """
        self._take_times(model, request)
        aim = _aim(request)
        number = max((n for n, record in self.records.items() if record.aim == aim), default=None)
        same = number is not None
        if number is None:
            number = self._wider(request)
        if number is None:
            session = Session.start(model, request)
            self.at = max(self.records, default=-1) + 1
            return session, tuple(session.ways)
        record = self.records[number]
        session = Session.start(model, request, record.learned)
        tensors = read_tensors(self._path(number))
        self._restore(session, record, tensors)
        said = "the network" if record.plan else "the dense network"
        logger.info("going on from %s: %s at %.1f %% of the cost", self._path(number), said, 100 * record.share)
        if same:
            self.at = number
            session.clock.seconds = dict(record.seconds)
            self._resume(session, record)
            self.stream.restore({n.removeprefix(_RANDOM): t for n, t in tensors.items()}, record.random)
            return session, record.left
        self.at = max(self.records) + 1
        return session, tuple(session.ways)

    def begin(
        self,
        model: nn.Module,
        request: Request,
        falling: Callable[[float], Sequence[tuple[str, Budget]]],
    ) -> Session:
        """A session that knows what was found out before, at the dense network, for many budgets.

        Args:
            falling: the dense network's cost -> the budgets that it will be aimed at, the largest first.

        Raises:
            As `Session.start`; StateError: the times are of another device, or the budgets are others.
        """
        self._take_times(model, request)
        if not self.records:
            return Session.start(model, request)
        first = self.records[min(self.records)]
        session = Session.start(model, request, first.learned)
        if session.judgement is not None:
            session.judgement.scores = list(first.scores)
        self._check_order(session, [budget for _, budget in falling(session.yardstick.dense)])
        dense = [n for n, record in self.records.items() if record.scored and not (record.plan or record.done)]
        if dense:
            self._restore(session, self.records[dense[0]], read_tensors(self._path(dense[0])))
        return session

    def take_up(self, session: Session) -> tuple[float, ...]:
        """Let a session stand where the last record of the budget that it is aimed at has it; returns the ways that
        are left (`Session.ways`), none where it is closed."""
        aim = _aim(session.request)
        number = max((n for n, record in self.records.items() if record.aim == aim), default=None)
        if number is None:
            self.at = max((self.at, *self.records)) + 1
            return tuple(session.ways)
        self.at, record, before = number, self.records[number], session.network
        tensors = read_tensors(self._path(number))
        session.yardstick.take(record.learned)
        self._restore(session, record, tensors)
        self._resume(session, record)
        if record.done and session.request.data is None:
            session.network = before
        session.clock.seconds = dict(record.seconds)
        self.stream.restore({n.removeprefix(_RANDOM): t for n, t in tensors.items()}, record.random)
        return record.left

    def _check_order(self, session: Session, budgets: Sequence[Budget]) -> None:
        """Raises StateError unless the budgets are those that were passed, in this order, or go on from them."""
        there = list(dict.fromkeys(json.dumps(record.aim) for _, record in sorted(self.records.items())))
        lowest = min((record.learned.dense for record in self.records.values()), default=inf)
        here = []
        for budget in budgets:
            goals = replace(session.request.goals, budget=budget)
            aim = json.dumps(_aim(replace(session.request, goals=goals)))
            if aim in there or not goals.met_by(lowest, session.yardstick.coupling):  # Else nothing was kept of it.
                here.append(aim)
        for passed, wanted in zip(there, here, strict=False):
            if passed != wanted:
                raise StateError(
                    f"the state in {self.folder} has passed {', '.join(there)} in this order, and this call has "
                    f"{wanted} where it has {passed}: what follows depends on it. Nothing was changed: pass another "
                    "folder, or the same budgets and smaller ones"
                )

    def keep(self, session: Session, left: Sequence[float]) -> None:
        """Write down where a session stands.

        Args:
            left: the ways that it has to go yet; none where it is closed.
        """
        done = not left
        network = session.best.network if done else session.network
        trained = session.request.train_between is not None
        made = bool(network.plan) and not session.planned
        own = changed(network.model, session.request, trained) if made else {}
        tensors = {f"{_NETWORK}{name}": tensor for name, tensor in own.items()}
        random, words = self.stream.kept()
        tensors |= {f"{_RANDOM}{name}": tensor for name, tensor in random.items()}
        if network.saliency is not None:
            tensors |= saliency_tensors(network.saliency)
        best, judgement, yardstick = session.best if done else None, session.judgement, session.yardstick
        record = Record(
            aim=_aim(session.request),
            plan=network.plan,
            share=best.measured if best else yardstick.predict(yardstick.total(network.plan)) if network.plan else 1.0,
            left=tuple(left),
            scored=network.coupling is not None,
            learned=yardstick.learned,
            random=words,
            step=network.step,
            trail=tuple(session.trail),
            scores=tuple(judgement.scores) if judgement else (),
            stopped=session.stopped,
            scoring=None if network.saliency is None else scoring_of(network.saliency),
            compensation=session.compensation,
            rounds=tuple(KeptRound.of(c) for c in session.candidates) if done else (),
            best=next(i for i, c in enumerate(session.candidates) if c is best) if done else 0,
            seconds=dict(session.clock.seconds),
        )
        write_record(record, tensors, self._path(self.at))
        cost = session.request.goals.cost
        if isinstance(cost, MeasuredLatency) and yardstick.tables is not None:
            write_table(cost.measured, self.folder / TIMES)

    def turn(self) -> None:
        """What is kept next is another network."""
        self.at += 1

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"

    def _take_times(self, model: nn.Module, request: Request) -> None:
        path, cost = self.folder / TIMES, request.goals.cost
        if isinstance(cost, MeasuredLatency) and path.exists():
            try:
                cost.adopt(read_table(path), next(model.parameters()).device, str(path))
            except HalpError as error:
                raise StateError(f"the times in {self.folder} cannot be used: {error}") from error

    def _wider(self, request: Request) -> int | None:
        """The record of the narrowest network that costs more than the budget; None if several budgets hold."""
        if request.goals.further:
            return None
        found = {}
        for number, record in self.records.items():
            dense = record.learned.dense
            if record.share > request.goals.budget.limit(dense) / dense and not record.stopped:
                found[number] = record.share
        # Of one network, the record that has its scores.
        return min(found, key=lambda n: (found[n], not self.records[n].scored, n), default=None)

    def _restore(self, session: Session, record: Record, tensors: Tensors) -> None:
        """Let a session stand at the network of a record."""
        request, yardstick = session.request, session.yardstick
        model = yardstick.model
        if (record.plan or record.done) and not session.planned:
            model = rewrite(model, record.plan, request.examples, coupling=yardstick.coupling, check=False)
            overwrite(model, {n.removeprefix(_NETWORK): t for n, t in tensors.items() if n.startswith(_NETWORK)})
        saliency = None if record.scoring is None else saliency_of(record.scoring, tensors)
        network = Network(model, record.plan, saliency=saliency, step=record.step)
        if record.scored and not record.done:
            network = Network(model, record.plan, standing(network, request, yardstick), saliency)
        session.network = network
        session.trail = list(record.trail)
        if session.judgement is not None:
            session.judgement.scores = list(record.scores)
            session.judgement.sound = network

    def _resume(self, session: Session, record: Record) -> None:
        """What else a record of this very budget says."""
        session.compensation = record.compensation
        if session.judgement is not None:
            session.judgement.stopped = record.stopped
        if record.done:
            if not record.plan:
                session.yardstick.tables = None  # As `Session.as_it_is` leaves it.
            # The networks of other rounds are not looked at again.
            session.candidates = [
                kept.candidate(session.network if i == record.best else Network(session.yardstick.model, kept.plan))
                for i, kept in enumerate(record.rounds)
            ]


def folder_name(part: str) -> str:
    """Of the folder of a part of a search, in that of the search."""
    return part.replace(",", "").replace(" ", "-")


def _index(path: Path) -> Asked:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        check_format(data["format"], path)
        return from_plain(Asked, data["asked"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} cannot be read: {error}. Pass another folder as state") from error


def _aim(request: Request) -> dict[str, str]:
    def said(budget: Budget) -> str:
        return f"{budget.share!r} of dense" if budget.amount is None else repr(budget.amount)

    goals = request.goals
    return {cost.resource: said(budget) for cost, budget in ((goals.cost, goals.budget), *goals.further)}
