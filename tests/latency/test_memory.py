"""MemoryCost against a replay of the traced graph that frees every value after its last reader."""

from __future__ import annotations

import random

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.utils._pytree import tree_leaves

import halp_fx
from halp_fx.latency import MemoryCost
from halp_fx.latency.lookup import cost_at
from halp_fx.model.members import named_tensors
from halp_fx.trials.trials import channel_groups
from halp_fx.types import Plan


def replayed_peak(model, x, coupling):
    """Most bytes of live storages after any operator; those of parameters and buffers do not count."""
    graph, named = coupling.traced.graph, dict(named_tensors(model))
    own = {t.untyped_storage().data_ptr() for t in named.values()}
    last_reader = {argument: node for node in graph.nodes for argument in node.all_input_nodes}
    values, peak = {}, 0
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            values[node] = named[node.target]
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
        storages = [t.untyped_storage() for t in tree_leaves(list(values.values())) if isinstance(t, torch.Tensor)]
        peak = max(peak, sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values()))
        for value in (node, *node.all_input_nodes):
            if last_reader.get(value, node) is node:
                values.pop(value, None)
    return peak


def random_plan(coupling, seed):
    rng = random.Random(seed)
    return Plan({g.name: tuple(range(rng.randint(max(1, g.size // 8), g.size))) for g in coupling.prunable})


# squeezenet's peak is a max pool with its indices, which nobody reads.
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v3_small"])
def test_total_is_the_peak_of_a_replay(name):
    extra = {"init_weights": False} if name == "googlenet" else {}
    model, x = torchvision.models.get_model(name, weights=None, **extra).eval(), torch.rand(2, 3, 64, 64)
    coupling, cost = channel_groups(model, x), MemoryCost()
    assert cost.total(coupling) == replayed_peak(model, x, coupling)
    for seed in range(2):
        plan = random_plan(coupling, seed)
        small = halp_fx.rewrite(model, plan, x, coupling=coupling)
        again = channel_groups(small, x)
        assert cost.total(coupling, coupling.widths(plan)) == replayed_peak(small, x, again) == cost.total(again)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_the_largest_of_the_tables_sums_is_the_peak(name):
    model = torchvision.models.get_model(name, weights=None).eval()
    coupling, cost = channel_groups(model, torch.rand(1, 3, 64, 64)), MemoryCost()
    options = {g.name: (max(1, g.size // 8), g.size) for g in coupling.prunable}
    tables = cost.tables(coupling, options)
    for seed in range(3):
        widths = coupling.widths(random_plan(coupling, seed))
        sums = dict.fromkeys([t.resource for t in tables], 0.0)
        for table in tables:
            sums[table.resource] += cost_at(table, widths)
        assert max(sums.values()) == cost.total(coupling, widths)
    assert cost.limits(coupling, cost.total(coupling)).keys() == {"memory"}


def test_a_memory_budget_holds_for_the_peak_wherever_it_moves():
    model, x = torchvision.models.resnet18(weights=None).eval(), torch.rand(1, 3, 64, 64)
    budget = {"memory": 0.5}
    small = halp_fx.prune(model, budget, x, progress=False)
    peak = replayed_peak(small, x, channel_groups(small, x))
    assert peak == small.halp.measured <= small.halp.budget


def test_memory_is_the_peak_of_what_is_alive():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 32), nn.Linear(32, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.relu_(self.b(self.a(x))))

    coupling = channel_groups(Chain(), torch.rand(1, 4))
    cost = MemoryCost()
    assert cost.total(coupling) == 4 * (32 + 8)
    options = {"a": (4, 32), "b": (4, 8)}
    tables = cost.tables(coupling, options)
    peak = [t for t in tables if t.resource == "memory"]
    assert sum(cost_at(t, coupling.widths()) for t in peak) == cost.total(coupling)
    narrow = {**coupling.widths(), "a": 4}
    assert cost.total(coupling, narrow) == 4 * (4 + 8)


def test_memory_keeps_what_a_skip_connection_still_reads():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = self.a(x)
            return x + self.c(self.b(x))

    assert MemoryCost().total(channel_groups(Skip(), torch.rand(1, 8))) == 4 * (8 + 16 + 8)
