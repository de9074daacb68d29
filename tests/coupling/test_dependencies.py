"""The dependency graph: its edges, the questions to it, and what residual branches are found by."""

from __future__ import annotations

import pickle

import networkx as nx
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import halp_fx
from halp_fx.coupling.flow import Flow
from halp_fx.types import CONCAT, LAYER, Axis, in_runs


class Joined(nn.Module):
    """A residual block, a depthwise convolution beside it, and a layer that reads both."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.side, self.each = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.joined, self.head = nn.Conv2d(14, 10, 1), nn.Linear(10, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu())
        x = self.joined(torch.cat([x, self.each(self.side(x))], 1))
        return self.head(x.mean((2, 3)))


IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "joined": (Joined, 8),
    "resnet18": (torchvision.models.resnet18, 64),
    "googlenet": (lambda: torchvision.models.googlenet(weights=None, init_weights=False), 64),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, 64),
    "swin_t": (torchvision.models.swin_t, 64),
}


@pytest.fixture(scope="module")
def graph():
    return halp_fx.dependency_graph(Joined(), IMAGE)


def coupled(name):
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    return halp_fx.channel_groups(make().eval(), torch.randn(1, 3, size, size))


def axis(name):
    return Axis(name.partition("[")[0], int(name[-2]))


def kinds(path):
    return [step.kind for step in path]


def test_edges_carry_operator_kind_place_and_index_map(graph):
    (edge,) = graph.graph[axis("stem.weight[0]")][axis("two.weight[0]")].values()
    assert (edge["op"], edge["kind"]) == ("add", "residual")
    assert "test_dependencies.py" in edge["where"]
    assert in_runs(*edge["slots"]) == [("0-7", "0-7")]
    (edge,) = graph.graph[axis("each.weight[0]")][axis("joined.weight[1]")].values()
    assert (edge["op"], edge["kind"]) == ("convolution", CONCAT)
    assert in_runs(*edge["slots"]) == [("0-5", "8-13")]
    (edge,) = graph.graph[axis("one.weight[1]")][axis("one.weight[0]")].values()
    assert (edge["op"], edge["kind"], len(edge["slots"][0])) == ("convolution", LAYER, 0)
    found = {e.kind for e in graph.edges()}
    assert found == {"norm", "bias", "residual", "input", "depthwise", "elementwise", CONCAT, LAYER}
    assert repr(graph) == f"DependencyGraph({len(graph.graph)} axes, {graph.graph.number_of_edges()} edges)"
    assert graph.graph.nodes[axis("head.weight[0]")]["frozen"] == "reaches the model's output"
    assert graph.graph.nodes[axis("stem.weight[1]")]["role"] == "consumer", "it is in no group, but a layer reads it"


def test_the_way_between_coupled_axes(graph):
    path = graph.path(axis("two.weight[0]"), axis("norm.bias[0]"))
    assert kinds(path) == ["residual", "norm"]
    assert graph.path(axis("one.weight[0]"), axis("one.weight[1]")) == ()
    assert graph.path(axis("stem.weight[0]"), axis("each.weight[0]")) == (), "they meet in an axis, but in no slot"
    assert graph.beside(axis("stem.weight[0]"), axis("each.weight[0]")) == (axis("joined.weight[1]"),)


def test_the_way_from_what_an_axis_depends_on(graph):
    way = graph.way(axis("each.weight[0]"), axis("stem.weight[0]"))
    assert kinds(way) == ["input", LAYER, "depthwise"], "not through the concat, where their slots are apart"
    way = graph.way(axis("one.weight[0]"), axis("joined.weight[0]"))
    assert kinds(way) == ["input", LAYER, "residual", CONCAT, LAYER]
    assert graph.way(axis("one.weight[0]"), axis("one.weight[0]")) == ()


def test_ancestors_and_descendants_follow_the_values(graph):
    above = graph.ancestors(axis("side.weight[1]"))
    assert {a.tensor.partition(".")[0] for a in above} == {"stem", "norm", "one", "two"}
    below = graph.descendants(axis("side.weight[0]"))
    assert {a.tensor for a in below} > {"side.bias", "each.weight", "joined.weight", "head.weight"}
    assert axis("side.weight[1]") not in below
    for a in graph.graph:
        assert all(a in graph.descendants(b) for b in graph.ancestors(a))


def test_generations_are_in_the_order_of_the_values(graph):
    place = {a: i for i, generation in enumerate(graph.generations()) for a in generation}
    assert set(place) == set(graph.graph)
    names = "stem.weight[1] stem.weight[0] norm.weight[0] one.weight[1] one.weight[0] two.weight[1] two.weight[0]"
    names += " side.weight[1] side.weight[0] each.weight[0] joined.weight[1] joined.weight[0] head.weight[1]"
    found = [place[axis(name)] for name in names.split()]
    assert found == sorted(set(found))
    for a in graph.graph:
        assert all(place[b] <= place[a] for b in graph.ancestors(a))


def test_words():
    def words(*names):
        return halp_fx.explain(Joined(), IMAGE, between=names)

    text = words("stem", "two")
    assert "stem.weight[0] and two.weight[0] have channels in common:" in text
    assert "residual: slots 0-7 of stem.weight[0] go with 0-7 of two.weight[0], by add (" in text
    text = words("each", "joined")
    assert "concat: slots 0-5 of each.weight[0] go with 8-13 of joined.weight[1], by convolution in 'joined'" in text
    text = words("stem", "each")
    assert "not coupled" in text
    assert "side by side, they lie along joined.weight[1]" in text
    assert "layer: side.weight[0] is computed from side.weight[1]" in text
    assert words("one.bias", "one.bias[0]") == "one.bias and one.bias[0] are the same axis"
    with pytest.raises(halp_fx.ModelError, match=r"'nothing' matches no axis.*stem\.weight\[0\]"):
        words("stem", "nothing")


def test_index_maps_in_words():
    assert in_runs(np.arange(8), np.arange(8, 16)) == [("0-7", "8-15")]
    assert in_runs(np.repeat([0, 1], 4), np.arange(8)) == [("0", "0-3"), ("1", "4-7")]
    assert in_runs(np.array([0, 1, 2, 3]), np.array([0, 1, 6, 7])) == [("0-1", "0-1"), ("2-3", "6-7")]
    assert in_runs(np.array([2, 1, 1]), np.array([5, 4, 4])) == [("1-2", "4-5")]
    assert in_runs(np.array([3]), np.array([3])) == [("3", "3")]
    assert in_runs(np.array([], int), np.array([], int)) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_graphml_comes_back(name, tmp_path):
    graph = coupled(name).dependencies
    graph.write_graphml(tmp_path / "graph.xml")
    again = nx.read_graphml(tmp_path / "graph.xml", force_multigraph=True)
    plain = graph.plain()
    assert dict(again.nodes(data=True)) == dict(plain.nodes(data=True))
    assert sorted(map(repr, again.edges(data=True))) == sorted(map(repr, plain.edges(data=True)))
    assert again.number_of_edges() == graph.graph.number_of_edges()


@pytest.mark.parametrize("name", NETWORKS)
def test_components_agree_with_groups(name):
    """A group lies in one component; groups that share an axis share a component, and only groups that are connected
    so do."""
    coupling = coupled(name)
    component = {a: i for i, c in enumerate(coupling.dependencies.components()) for a in c}
    held = nx.Graph()
    for group in coupling.groups:
        members = [m.axis for m in group.members]
        assert len({component[a] for a in members}) == 1, group.name
        nx.add_path(held, members)
        held.add_nodes_from(members)
    for connected in nx.connected_components(held):
        (one,) = {component[a] for a in connected}
        inside = {a for a in component if component[a] == one}
        # What is in no group (kernels, what the forward makes) may hold several together.
        assert inside == connected or inside - set(held)


@pytest.mark.parametrize("name", ["joined", "resnet18", "shufflenet"])
def test_a_path_joins_the_slots_of_a_channel(name):
    """Between any two axes of a group there is a path; step by step, its index maps lead a channel from one to the
    other."""
    coupling = coupled(name)
    for group in coupling.groups:
        first, last = group.members[0], group.members[-1]
        at, slots = first.axis, set(first.slots[0].tolist())
        for step in coupling.dependencies.path(first.axis, last.axis):
            here, there = step.slots if step.first == at else step.slots[::-1]
            assert at in (step.first, step.second)
            at = step.second if step.first == at else step.first
            slots = set(there[np.isin(here, list(slots))].tolist())
        assert at == last.axis
        assert slots & set(last.slots[0].tolist())


def test_loops_are_the_only_cycles():
    graph = coupled("swin_t").dependencies.graph
    assert any(a == b for a, b in graph.edges())
    graph = nx.MultiDiGraph((a, b) for a, b in graph.edges() if a != b)
    assert nx.is_directed_acyclic_graph(graph)


def test_a_coupling_with_its_graph_can_be_pickled():
    coupling = coupled("joined")
    before = coupling.graph
    again = pickle.loads(pickle.dumps(coupling))
    assert list(again.graph.edges(keys=True)) == list(before.edges(keys=True))


def serving_by_definition(flow, value, add):
    """All from which no way leads to an end of the network but through the value."""
    if list(flow.reads.successors(value)) != [add]:
        return set()
    ends = [n for n, readers in flow.reads.out_degree() if not readers]
    rest = flow.reads.subgraph(n for n in flow.reads if n is not value)
    lasting = set().union(*(nx.ancestors(rest, end) | {end} for end in ends))
    return {n for n in flow.reads if n not in lasting and n.op != "placeholder"}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_serves_a_summand_alone_is_behind_its_post_dominator(name):
    flow = Flow(coupled(name).traced)
    adds = [n for n in flow.reads if getattr(n.target, "_opname", "") in ("add", "add_") and len(set(n.args)) == 2]
    adds = [n for n in adds if all(value in flow.reads for value in n.args)]
    assert adds or name in ("googlenet", "shufflenet")
    for add in adds:
        for value in add.args:
            inside, entries = flow.serving(value, add)
            assert inside == serving_by_definition(flow, value, add)
            read = {source for node in inside for source in node.all_input_nodes} - inside
            assert entries == (read if inside else {value})


def test_an_add_that_nothing_reads_keeps_no_branch():
    class Idle(Joined):
        def forward(self, x):
            y = self.stem(x)
            _ = y + self.two(self.one(y))
            return super().forward(x)

    branches = halp_fx.find_branches(halp_fx.channel_groups(Idle(), IMAGE))
    assert len([*branches.removable, *branches.refused]) == 1
