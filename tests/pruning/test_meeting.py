"""The processes of a job see whether all are at the same call."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pytest
import torch

import halp_fx
from halp_fx.pruning import meeting
from halp_fx.pruning.distributed import Team


@pytest.fixture
def met(monkeypatch):
    """`met((what, seconds until it is called), …)`: what comes of it in each process, here a thread each."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    store = torch.distributed.HashStore()
    monkeypatch.setattr(meeting, "job_store", lambda: store)
    monkeypatch.setattr(meeting, "_NUMBERS", repeat(0))
    monkeypatch.setattr(meeting, "PATIENCE", 0.3)

    def one(rank, size, what, late):
        time.sleep(late)
        try:
            return meeting.meet(rank, size, what)
        except halp_fx.TrainingError as error:
            return str(error)

    def all_of(*calls):
        with ThreadPoolExecutor(len(calls)) as pool:
            asked = [pool.submit(one, rank, len(calls), *call) for rank, call in enumerate(calls)]
            return [found.result(timeout=20) for found in asked]

    return all_of


def test_processes_at_the_same_call_go_on(met, caplog):
    assert met(("prune", 0), ("prune", 0.05), ("prune", 0)) == [None] * 3
    assert not caplog.records


def test_a_process_at_another_call_is_an_error_in_all(met):
    told = "process 1 of the job is in Pruner.finish, and process 0 in prune: all processes must make the same calls"
    found = met(("prune", 0), ("Pruner.finish", 0), ("prune", 0))
    assert [told in words for words in found] == [True] * 3


@pytest.mark.parametrize("late", [(0, 0.6, 0.6), (0, 0, 0.6)], ids=str)
def test_who_is_missing_is_said_and_may_come_yet(met, late, caplog):
    assert met(*(("prune", seconds) for seconds in late)) == [None] * 3
    missing = ", ".join(str(rank) for rank, seconds in enumerate(late) if seconds)
    assert f"process 0 of 3 has waited for 0.3 s in prune for process {missing}: all processes" in caplog.text


def test_a_first_process_that_is_missing_is_said(met, caplog):
    assert met(("prune", 0.6), ("prune", 0)) == [None] * 2
    assert "process 1 of 2 has waited for 0.3 s in prune for process 0:" in caplog.text


def test_one_process_meets_nobody():
    Team().meet("prune")
    assert meeting.meet(0, 2, "prune") is None, "no group is there, so there is nobody to wait for"


def test_what_is_no_answer_is_said(monkeypatch):
    """The others were exchanging something else: a TypeError of Python's."""
    monkeypatch.setattr(Team, "gather", lambda self, value: [value, 1])
    with pytest.raises(halp_fx.TrainingError, match=r"process 1 of 2 exchanged something else.* in all processes"):
        Team(0, 2).check(torch.nn.Linear(2, 2), "budget=0.5")
