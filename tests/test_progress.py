"""Progress: seen by who asked for it only, on the level where the work is."""

from __future__ import annotations

import io
import sys
from itertools import count

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx import progress
from halp_fx.progress import _Lines, counted, shown, work


@pytest.fixture
def board(monkeypatch):
    """A log file, and a clock that goes on by 4 s at every look."""
    lines, now = [], count(0, 4)
    monkeypatch.setattr(progress, "_board", lambda: _Lines(clock=lambda: next(now), say=lines.append))
    return lines


def test_nobody_sees_what_nobody_asked_for(board):
    with work("dig", 3, "holes") as done:
        done()
    with shown(False), work("dig", 3, "holes") as done:
        done()
    assert list(counted([1, 2], "dig", "holes")) == [1, 2]
    assert board == []


def test_lines_come_now_and_then_with_what_is_left(board):
    with shown(True), work("prune", 2, "steps") as step:
        for _ in range(2):
            for _ in counted("abcd", "score", "batches"):
                pass
            step()
    assert board[0] == "halp_fx: prune: 0 of 2 steps > score: 2 of 4 batches (8 s, about 8 s left)"
    assert board[-1] == "halp_fx: prune: 2 of 2 steps (48 s, about 0 s left)"
    assert len(board) < 6


def test_a_total_that_nobody_knows_is_left_out(board):
    with shown(True), work("time networks", None, "turns") as done:
        for _ in range(4):
            done()
    assert board == ["halp_fx: time networks: 3 turns (12 s)"]


def test_at_most_so_many(board):
    taken = iter(range(10))
    with shown(True):
        for i, _ in enumerate(counted([0] * 10, "score", "batches", most=4)):
            if i == 3:
                break
    assert "of 4 batches" in board[0]
    assert list(taken)


def test_an_error_ends_the_level(board):
    with shown(True):
        with pytest.raises(ZeroDivisionError), work("a", 1, "x"):
            raise ZeroDivisionError
        with work("b", 9, "x") as done:
            for _ in range(4):
                done()
    assert all("a 0/1" not in line for line in board)


def test_a_terminal_has_bars(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with shown(True), work("time layers", 2, "layers") as done:
        done()
    assert "halp_fx: time layers:   0%|          | 0/2" in sys.stderr.getvalue()


@pytest.mark.parametrize("wanted", [True, False])
def test_pruning_is_quiet_when_asked(board, capsys, wanted):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    data = [torch.rand(2, 3, 12, 12) for _ in range(8)]
    halp_fx.prune(model, 0.4, data[0], data=data, latency="macs", progress=wanted)
    words = " ".join(board)
    assert ("score" in words and "prune" in words) == wanted
    assert capsys.readouterr().err == ""


def test_a_profile_says_how_far_it_is(board):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    halp_fx.profile(model, torch.rand(1, 3, 8, 8), progress=False)
    assert board == []
    halp_fx.profile(model, torch.rand(1, 3, 9, 9))
    assert any("time" in line for line in board)
