"""A pass over captured graphs: alone, in a manager beside others, and on exported programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import Net, half_plan, randomized, relative_error
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import halp_fx
from halp_fx import Plan
from halp_fx.passes import PruneChannels

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def network():
    def forward(self, x):
        x = self.conv(x).relu()
        return self.head((x + self.other(x)).view(x.shape[0], 8, -1).mean(2))

    layers = {"conv": nn.Conv2d(3, 8, 3), "other": nn.Conv2d(8, 8, 1), "head": nn.Linear(8, 5)}
    return randomized(Net(forward, **layers)).eval()


class ReluToGelu(PassBase):
    """Another pass, that changes the graph in place."""

    def call(self, graph_module):
        found = [n for n in graph_module.graph.nodes if n.target == "relu"]
        for node in found:
            with graph_module.graph.inserting_after(node):
                new = graph_module.graph.call_function(nn.functional.gelu, node.args)
            node.replace_all_uses_with(new)
            graph_module.graph.erase_node(node)
        graph_module.recompile()
        return PassResult(graph_module, bool(found))


def test_a_plan():
    model = fx.symbolic_trace(network())
    plan = half_plan(halp_fx.channel_groups(model, X))
    small, modified = PruneChannels(plan, X)(model)
    assert modified
    assert isinstance(small, fx.GraphModule)
    assert small.conv.out_channels == 4
    assert relative_error(small(X), halp_fx.zero(model, plan, X)(X)) < 1e-10
    assert model.conv.out_channels == 8


def test_a_budget():
    model = fx.symbolic_trace(network())
    small = PruneChannels(0.6, X, latency="macs", round_to=1, progress=False)(model).graph_module
    assert small.halp.met
    assert small.meta["halp_fx.plan"] == small.halp.plan
    assert relative_error(small(X), halp_fx.zero(model, small.halp.plan, X)(X)) < 1e-10


def test_in_a_manager_it_prunes_once(tmp_path):
    model = fx.symbolic_trace(network())
    plan = half_plan(halp_fx.channel_groups(model, X))
    (tmp_path / "plan.json").write_text(plan.to_json())
    for passes in ([PruneChannels(tmp_path / "plan.json", X), ReluToGelu()], [ReluToGelu(), PruneChannels(plan, X)]):
        result = PassManager(passes=passes, steps=3, run_checks_after_each_pass=True)(fx.symbolic_trace(network()))
        assert result.modified
        assert result.graph_module.conv.out_channels == 4
        assert not any(n.target == "relu" for n in result.graph_module.graph.nodes)


def test_another_pass_prunes_further():
    first, second = ({"conv": rows} for rows in ((0, 1, 5, 6, 7), (1, 2, 4)))
    model, both = network(), [PruneChannels(plan, X) for plan in (first, second)]
    small = PassManager(passes=both, steps=2)(fx.symbolic_trace(model)).graph_module
    assert small.conv.out_channels == 3
    assert small.meta["halp_fx.plan"] == Plan(second)
    at_once = halp_fx.rewrite(fx.symbolic_trace(model), {"conv": (1, 5, 7)}, X)
    assert relative_error(small(X), at_once(X)) < 1e-10


def test_on_an_exported_program():
    program = torch.export.export(network(), (X,))
    dense = program.module()
    prune = PruneChannels({"conv": [0, 1, 5]}, X)
    small = prune.on_exported(program)
    assert isinstance(small, torch.export.ExportedProgram)
    assert small.state_dict["conv.weight"].shape[0] == 3
    twin = halp_fx.zero(dense, {"conv": [0, 1, 5]}, X)
    assert relative_error(small.module()(X), twin(X)) < 1e-10


def test_sizes_that_are_left_open_have_to_be_named():
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(network(), (X,), dynamic_shapes=({0: batch},))
    prune = PruneChannels({"conv": [0, 1, 5]}, X)
    with pytest.raises(halp_fx.ModelError, match="pass the dynamic_shapes"):
        prune.on_exported(program)
    small = prune.on_exported(program, dynamic_shapes=({0: batch},)).module()
    more = torch.cat([X, X])
    assert relative_error(small(more)[:2], small(X)) < 1e-12


def test_a_report_names_what_was_exported():
    program = torch.export.export(network(), (X,))
    small = PruneChannels(0.9, X, latency="macs", progress=False)(program.module()).graph_module
    assert small.halp.conditions.model == "Net"


def test_what_is_no_graph_is_refused():
    with pytest.raises(halp_fx.ModelError, match=r"takes an fx\.GraphModule, not a Net"):
        PruneChannels(0.5, X)(network())
    program = torch.export.export(network(), (X,))
    with pytest.raises(halp_fx.ModelError, match=r"not a ExportedProgram: .*call on_exported with an exported program"):
        PruneChannels(0.5, X)(program)
    with pytest.raises(halp_fx.ModelError, match=r"takes what torch\.export\.export returned, not a Net"):
        PruneChannels(0.5, X).on_exported(network())


class Attentive(nn.Module):
    """Self-attention whose eager forward allows fewer channels than its exported graph, where sizes are numbers."""

    def __init__(self, heads=4):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, heads, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


TOKENS = torch.randn(2, 7, 6, dtype=torch.float64)


def both_plans(model):
    program = torch.export.export(model, (TOKENS,)).module()
    # Half of each group, chosen as `prune` does.
    settings = {"latency": "macs", "progress": False, "round_to": 1}
    return program, [halp_fx.prune(net, 0.5, TOKENS, **settings).halp.plan for net in (model, program)]


def test_a_plan_for_coarser_channels_prunes_the_same():
    """Heads go with the features of the embedding in the model, and by themselves in the graph."""
    model = randomized(Attentive()).eval()
    program, (eager, exported) = both_plans(model)
    assert eager.made_for["embed"].number < exported.made_for["embed"].number, "too easy: the groups are the same"
    assert set(exported) - set(eager), "too easy: the graph has no groups of its own"
    wanted = halp_fx.rewrite(model, eager, TOKENS)(TOKENS)
    for plan in (eager, Plan.from_json(eager.to_json())):
        small = PruneChannels(plan, TOKENS)(program).graph_module
        assert relative_error(small(TOKENS), wanted) < 1e-10
        assert relative_error(halp_fx.zero(program, plan, TOKENS)(TOKENS), wanted) < 1e-10


def test_a_plan_for_other_channels_of_the_same_names_is_refused():
    model = randomized(Attentive()).eval()
    program, (eager, exported) = both_plans(model)
    with pytest.raises(
        halp_fx.errors.OtherChannelsError, match="'embed' has 4 channels of 4 outputs each; here it has"
    ):
        PruneChannels(replace(eager, made_by={}), TOKENS)(program)
    for apply in (halp_fx.rewrite, halp_fx.zero):
        with pytest.raises(halp_fx.PlanError, match="make the plan on what it is applied to"):
            apply(model, Plan.from_json(exported.to_json()), TOKENS)
    assert halp_fx.rewrite(model, eager, TOKENS).embed.out_features == 4 * len(eager["embed"])
    small = PruneChannels(exported, TOKENS)(program).graph_module
    assert relative_error(small(TOKENS), halp_fx.zero(program, exported, TOKENS)(TOKENS)) < 1e-10


def test_what_is_kept_whole_of_other_channels_is_no_matter():
    model = randomized(Attentive()).eval()
    program, (eager, _) = both_plans(model)
    whole = replace(eager, kept={"embed": range(eager.made_for["embed"].number)})
    assert PruneChannels(whole, TOKENS)(program).graph_module.embed.weight.shape == (16, 6)


def test_as_many_channels_of_other_outputs_are_others():
    model = randomized(Attentive()).eval()
    coupling = halp_fx.channel_groups(model, TOKENS)
    plan = half_plan(coupling)
    made = next(g for g in coupling.groups if g.name == "embed").channels
    assert halp_fx.rewrite(model, replace(plan, made_for={"embed": made}), TOKENS).embed.out_features == 8
    other = made._replace(digest=made.digest ^ 1)
    with pytest.raises(halp_fx.errors.OtherChannelsError, match="here as many, each of other outputs"):
        halp_fx.rewrite(model, replace(plan, made_for={"embed": other}), TOKENS)
