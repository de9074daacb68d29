"""The table of accuracies at equal cost: means, deviations, what is missing and what missed its budget."""

from __future__ import annotations

import logging
import sys

import compare_training
import pytest
import torch
from comparing import data, networks, tables, tasks
from comparing.methods import Task


@pytest.fixture(autouse=True)
def _quiet_no_longer():
    """Tools want to hear of errors alone, and other tests of more."""
    logger = logging.getLogger("halp_fx")
    level = logger.level
    yield
    logger.setLevel(level)


def row(method, tuned=None, network="residual", draw=0, macs=0.1, **more):
    found = {"failed": "RuntimeError: no ratio"} if tuned is None else {"tuned": tuned, "macs": macs}
    key = {"data": "glyphs", "network": network, "budget": 0.1, "method": method, "seed": 0, "draw": draw}
    return key | {"dense": 0.9} | found | more


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_for_each_cell_and_means_of_what_is_common():
    rows = [
        *(row("uniform", 0.7), row("halp_fx", 0.7, draw=0), row("halp_fx", 0.8, draw=1)),
        *(row("other", 0.76, "dense", macs=0.097), row("halp_fx", 0.75, "dense"), row("uniform", network="dense")),
    ]
    head, _, dense, residual, means = (cells(line) for line in tables.markdown(rows).splitlines())
    assert head == ["data", "network", "dense", "MACs", "halp_fx", "other", "uniform"]
    assert dense == ["glyphs", "dense", "90.0", "10%", "75.0", "**76.0** (9.7)", "fails"]
    assert residual == ["glyphs", "residual", "90.0", "10%", "**75.0 ± 7.1**", "", "70.0"]
    assert means == ["mean", "", "", "10%", "75.0 of 2", "76.0 / 75.0 of 1", "70.0 / 75.0 of 1"]


def test_a_row_is_of_its_draw_and_cost():
    first = row("uniform", 0.7)
    del first["draw"]
    assert tables.key(first) == tables.key(row("uniform")) == tables.key(row("uniform", cost="macs"))
    assert len({tables.key(row("uniform", **more)) for more in ({}, {"draw": 1}, {"cost": "time"}, {"seed": 1})}) == 4


def test_every_dense_network_counts_alike():
    rows = [
        row("uniform", t, draw=d, seed=s, dense=0.9 - 0.1 * s) for t, d, s in ((0.7, 0, 0), (0.8, 1, 0), (0.5, 0, 1))
    ]
    line = cells(tables.markdown(rows).splitlines()[2])
    assert line[2:] == ["85.0", "10%", "**62.5 ± 15.3**"]


def test_times_may_differ_by_more_than_macs():
    rows = [row(name, 0.7, cost="time", time=share) for name, share in (("uniform", 0.1015), ("other", 0.0975))]
    head, _, line, _ = (cells(line) for line in tables.markdown(rows).splitlines())
    assert head[3:] == ["time", "other", "uniform"]
    assert line[4:] == ["**70.0** (9.8)", "**70.0**"]


@pytest.mark.parametrize("name", tasks.KINDS)
def test_a_task_is_what_its_network_can_be_trained_for(name):
    kind, data = tasks.KINDS[name], tasks.make(name, 6, 4)
    (inputs, targets), network = data.train, kind.network()
    kind.loss(network(inputs), targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not torch.equal(inputs[:4], data.test[0])
    perfect = {
        "segmentation": lambda t: torch.nn.functional.one_hot(t, 2).movedim(-1, 1).float(),
        "several labels": lambda t: 2 * t - 1,
    }.get(name, lambda t: t + 1e-4)
    worse = network.eval()(inputs)
    assert kind.metric(perfect(targets), targets) > kind.metric(worse.detach(), targets)


def test_ways_to_train_are_compared_once_each(monkeypatch, tmp_path, capsys):
    taken = []
    monkeypatch.setattr(compare_training.data, "make", lambda *_: None)
    monkeypatch.setattr(compare_training, "dense", lambda *_: None)
    monkeypatch.setattr(compare_training, "row", lambda task, way, _: taken.append(way) or {"tuned": 0.5 + task.budget})
    given = ["compare_training.py", "--folder", str(tmp_path), "--networks", "residual", "--budgets", "0.2", "--seeds"]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", [*given, *seeds, "--ways", "Pruner", "prune"])
        compare_training.main()
    assert taken == ["Pruner", "prune"] * 2
    assert "| Pruner | 70.0 / 70.0" in capsys.readouterr().out


def test_a_way_inside_training_ends_at_its_budget():
    draw = torch.Generator().manual_seed(0)
    some = torch.randn(256, 3, 32, 32, generator=draw), torch.arange(256) % 4
    model = networks.residual(4)
    small, _ = compare_training.inside(2, measured=True, branches=True)(
        Task(model, data.Data("made", 4, some, some), 0.5, seed=0), 1
    )
    assert small.halp.met
