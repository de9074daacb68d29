"""The table of accuracies at equal cost: means, deviations, what is missing and what missed its budget."""

from __future__ import annotations

import logging
import sys

import compare_kinds
import compare_training
import pytest
import torch
from comparing import data, kinds, kinds_data, networks, tables, tasks
from comparing.methods import Task

import halp_fx


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


@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_kind_is_trained_and_pruned(name):
    kind = kinds.KINDS[name]
    data, network = kind.data(), kind.network()
    inputs, targets = (part[:16] for part in data.train)
    kind.loss(network(inputs), targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    coupling = halp_fx.channel_groups(network.eval(), inputs[:1])
    assert len(coupling.prunable) > 2
    assert all(isinstance(network.get_submodule(head), torch.nn.Linear) for head in kind.heads)
    seen = kinds_data.SEEN + 16
    with torch.no_grad():
        output = network(data.test[0][:seen])
    assert kind.metric(output, data.test[1][:seen]) <= 100


def test_kinds_are_compared_once_and_what_fails_is_told_below(monkeypatch, tmp_path, capsys):
    taken = []

    def small(cell):
        taken.append((cell.budget, cell.draw))
        if cell.draw:
            raise RuntimeError("no ratio reaches the budget\nat all")
        return cell.model

    monkeypatch.setitem(compare_kinds.METHODS, "even", small)
    monkeypatch.setattr(compare_kinds, "train", lambda model, *_: model.eval())
    given = ["compare_kinds.py", "--folder", str(tmp_path), "--kinds", "conv1d", "--methods", "even"]
    for budgets in (["1.0"], ["1.0", "0.9"]):
        monkeypatch.setattr(sys, "argv", [*given, "--draws", "2", "--budgets", *budgets])
        compare_kinds.main()
    assert taken == [(1.0, 0), (1.0, 1), (0.9, 0), (0.9, 1)]
    *_, whole, part, _, note, _ = capsys.readouterr().out.splitlines()
    assert [cells(line)[2] for line in (whole, part)] == ["100%", "90%"]
    assert cells(whole)[3].endswith("** [1]")
    assert cells(part)[3].endswith("** (100.0) [1]")
    assert note == "1. no ratio reaches the budget, in 1 of 2 draws"


def test_draws_of_a_kind_look_at_other_samples_and_have_standard_errors():
    kind = kinds.KINDS["bn8"]
    cell, other = (compare_kinds.Cell(kind, kind.data(), torch.nn.Identity(), 0.1, draw) for draw in (0, 1))
    (first, *rest), (moved, *_) = cell.calibration, other.calibration
    assert (len(first[0]), 1 + len(rest)) == (8, 64)
    assert torch.equal(first[0], kind.data().train[0][:8])
    assert torch.equal(moved[1], kind.data().train[1][700:708])
    own = {"kind": "bn8", "dense": 90.0, "budget": 0.1, "macs": 0.1}
    tuned = (("halp_fx", 80.0), ("halp_fx", 84.0), ("even", 81.0))
    rows = [own | {"method": method, "tuned": t, "draw": d} for d, (method, t) in enumerate(tuned)]
    line = cells(compare_kinds.table(rows).splitlines()[2])
    assert line == ["bn8", "90.0", "10%", "**82.0 ± 2.0**", "81.0"]
