"""`torch.compile(model, backend="halp_fx")`: what it returns, what it reuses and what it refuses.

The inner backend runs graphs as they are, so that results can be compared to the last bit but one."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import weakref

import pytest
import torch
import torchvision
from oracle import half_plan, randomized, relative_error
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torchvision.models.resnet import BasicBlock

import halp_fx
from halp_fx import Plan
from halp_fx.compiling import BACKEND
from halp_fx.compiling.options import Options
from halp_fx.fitting import FILE

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, dropout=0.0, broken=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.dropout, self.head, self.broken = nn.Dropout(dropout), nn.Linear(8, 5), broken

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        if self.broken:
            torch._dynamo.graph_break()
        x = (x + self.block(x)).view(x.shape[0], x.shape[1], -1)
        return self.head(self.dropout(x).mean(2))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    BACKEND.reset()
    yield
    torch._dynamo.reset()


def network(**options):
    return randomized(Net(**options)).eval()


def compiled(model, fullgraph=True, **options):
    options = {"inner": "eager", **options}
    if "budget" not in options:
        options.setdefault("plan", half_plan(halp_fx.channel_groups(network(), X)))
    return torch.compile(model, backend=BACKEND, fullgraph=fullgraph, options=options)


def reference(model):
    coupling = halp_fx.channel_groups(model, X)
    return halp_fx.rewrite(model, half_plan(coupling), X, coupling=coupling)


NETWORKS = {
    "net": (network, 8),
    "resnet": (lambda: randomized(torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)).eval(), 40),
    "vit": (lambda: randomized(torchvision.models.VisionTransformer(16, 8, 2, 4, 64, 96, num_classes=10)).eval(), 16),
}


def test_a_report_names_the_model():
    def of(function):
        torch._dynamo.reset()
        with torch.no_grad():
            compiled(function, budget={"macs": 0.9})(X)
        return halp_fx.reports()[-1].conditions.model

    model, other = network(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).double().eval()
    assert of(model) == "Net"
    assert of(other) == "Sequential"
    assert of(lambda x: model(x) + 1) == "Net"
    assert of(lambda x: model(x).sum() + other(x)) == "CompiledFunction"


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_eager_network_with_the_same_plan(name):
    make, side = NETWORKS[name]
    model, x = make(), torch.randn(2, 3, side, side, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    plan = half_plan(coupling)
    small = halp_fx.rewrite(model, plan, x, coupling=coupling)
    fast = compiled(model, plan=plan)
    with torch.no_grad():
        assert relative_error(fast(x), small(x)) < 1e-10
        assert relative_error(fast(x), model(x)) > 1e-6


def swin():
    return randomized(torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [2, 2], num_classes=5)).eval()


def test_a_plan_of_a_model_whose_graph_has_finer_groups():
    model, x = swin(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    plan = Plan.from_json(coupling.planned(half_plan(coupling)).to_json())
    assert plan.made_for["features.0.0"].number == 2, "too easy: whole heads are no single features"
    small, fast = halp_fx.rewrite(model, plan, x), compiled(model, plan=plan)
    with torch.no_grad():
        assert relative_error(fast(x), small(x)) < 1e-10
        model.features[1][0].attn.qkv.weight.mul_(2)
        assert relative_error(fast(x), halp_fx.rewrite(model, plan, x)(x)) < 1e-10, "sliced again"


class Folding(nn.Module):
    """Two layers of one width, each of which is a factor of a size that is left open: Dynamo computes that once."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        for layer in (self.one, self.two):
            b, c, h, w = (y := layer(x)).shape
            x = y.reshape(b * c, h * w).relu().reshape(b, c, h, w)
        return self.head(x.mean((2, 3)))


def test_sizes_that_are_left_open_are_told_apart():
    model = randomized(Folding()).eval()
    plan = Plan({"one": (0, 3, 5), "two": (1, 2, 3, 7)})
    small, fast = halp_fx.rewrite(model, plan, X), compiled(model, plan=plan)
    with torch.no_grad():
        for batch in (X, torch.cat([X, X]), torch.cat([X, X, X])):
            assert relative_error(fast(batch), small(batch)) < 1e-10


def test_a_plan_that_a_graph_of_open_sizes_refuses():
    options = {"inner": "eager", "plan": {"nowhere": (0,)}}
    for dynamic in (True, False):
        fast = torch.compile(network(), backend=BACKEND, dynamic=dynamic, options=options)
        with torch.no_grad(), pytest.raises(BackendCompilerFailed, match="the plan names 'nowhere'") as refused:
            fast(X)
        assert ("dynamic=False) makes a graph for every shape" in str(refused.value)) == dynamic


def test_a_plan_that_drops_nothing():
    model = network()
    with torch.no_grad():
        assert relative_error(compiled(model, plan=Plan())(X), model(X)) < 1e-12


def test_a_plan_from_a_file(tmp_path):
    model = network()
    (tmp_path / "plan.json").write_text(half_plan(halp_fx.channel_groups(model, X)).to_json())
    with torch.no_grad():
        assert relative_error(compiled(model, plan=str(tmp_path / "plan.json"))(X), reference(model)(X)) < 1e-12


def test_a_budget_prunes_once_for_every_shape(caplog, tmp_path):
    model = network()
    fast = compiled(model, budget={"macs": 0.6}, report=tmp_path / "report.txt")
    with torch.no_grad(), caplog.at_level(logging.WARNING, "halp_fx"):
        outputs = [fast(x) for x in (X, torch.cat([X, X]), torch.cat([X, X, X]))]
    assert all(relative_error(out[:2], outputs[0]) < 1e-12 for out in outputs[1:])
    (report,) = halp_fx.reports()
    assert 0 < report.measured <= report.budget
    assert (tmp_path / "report.txt").read_text() == report.summary(width=FILE)
    assert "not equivalent" in caplog.text
    assert "budget 60.0 %, predicted" in caplog.text
    small = halp_fx.rewrite(model, report.plan, X)
    assert relative_error(outputs[0], small(X)) < 1e-12
    BACKEND.reset()
    assert halp_fx.reports() == ()


def test_a_graph_of_open_sizes_reads_no_values_that_decide():
    """The epsilons of its norms are inputs of the graph, which is one path whatever they are."""
    fast = torch.compile(network(), backend=BACKEND, dynamic=True, options={"inner": "eager", "budget": {"macs": 0.6}})
    with torch.no_grad():
        fast(X)
    (report,) = halp_fx.reports()
    assert "decides by values" not in str(report)
    assert "item" not in str(report)
    assert report.conditions.inputs == ("2x3x8x8 float64",)


def test_every_shape_runs_what_data_made_of_the_weights():
    """Statistics that were re-estimated and layers that were compensated, which a plan does not lead to."""
    model, data = network(), [torch.randn(32, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
    fast = compiled(model, budget={"macs": 0.6}, data=data)
    with torch.no_grad():
        first, other = fast(X), fast(torch.cat([X, X, X]))
        assert relative_error(other[:2], first) < 1e-12
        assert relative_error(halp_fx.rewrite(model, halp_fx.reports()[0].plan, X)(X), first) > 1e-6
        model.head.weight.add_(0.1)  # What was made of other weights is not used again.
        torch._dynamo.reset_code_caches()
        small = halp_fx.rewrite(model, halp_fx.reports()[0].plan, X)
        assert relative_error(fast(torch.cat([X, X])), small(torch.cat([X, X]))) < 1e-12


def test_another_dtype_reuses_the_plan():
    model = network()
    fast = compiled(model, budget={"macs": 0.6})
    with torch.no_grad():
        wide = fast(X)
        model.float()
        assert relative_error(fast(X.float()).double(), wide) < 1e-4
    assert len(halp_fx.reports()) == 1


def test_changed_weights_are_sliced_again():
    model, fast = network(), None
    fast = compiled(model)
    with torch.no_grad():
        before = fast(X)
        model.load_state_dict(network().state_dict())
        for p in model.parameters():
            p.add_(0.1)
        model.norm.running_mean.mul_(2)
        after = fast(X)
        assert relative_error(after, reference(model)(X)) < 1e-12
        assert relative_error(after, before) > 1e-6
        model.conv.weight = nn.Parameter(torch.randn_like(model.conv.weight))
        assert relative_error(fast(X), reference(model)(X)) < 1e-12


def test_two_networks_of_one_class_have_their_own_weights():
    torch.manual_seed(1)
    models = [network(), network()]
    for p in models[1].parameters():
        p.data.neg_()
    plan = half_plan(halp_fx.channel_groups(models[0], X))
    fast = [compiled(model, plan=plan) for model in models]
    with torch.no_grad():
        for _ in range(2):
            for model, run in zip(models, fast, strict=True):
                assert relative_error(run(X), reference(model)(X)) < 1e-12


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.b.weight, self.head = self.a.weight, nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.b(self.a(self.stem(x)).relu()).mean((2, 3)))

    model = randomized(Tied()).eval()
    coupling = halp_fx.channel_groups(model, X)
    plan = half_plan(coupling)
    assert plan
    fast = compiled(model, plan=plan)
    with torch.no_grad():
        for _ in range(2):
            small = halp_fx.rewrite(model, plan, X, coupling=coupling)
            assert relative_error(fast(X), small(X)) < 1e-12
            model.a.weight.mul_(2)


def test_dense_weights_are_not_kept_alive():
    model = network()
    fast = compiled(model, budget={"macs": 0.6})
    with torch.no_grad():
        fast(X)
    gone = weakref.ref(model.conv.weight)
    del model, fast
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


REFUSALS = {
    "gradients": (lambda: compiled(network())(X), r"gradients are on.*torch\.no_grad\(\).*halp_fx\.prune"),
    "train mode": (lambda: _quietly(compiled(network().train())), r"batch_norm is in train mode.*model\.eval\(\)"),
    "dropout": (lambda: _quietly(compiled(_dropping())), r"dropout is in train mode"),
    "autocast": (lambda: _autocast(compiled(network().float())), r"autocast is on"),
    "break": (
        lambda: _quietly(compiled(network(broken=True), fullgraph=False)),
        r"breaks into several graphs at .*test_backend\.py:\d+ \(Call to .torch\._dynamo\.graph_break",
    ),
}


def _dropping():
    model = network(dropout=0.5)
    model.dropout.train()
    return model


def _quietly(fast, x=X):
    with torch.no_grad():
        return fast(x)


def _autocast(fast):
    with torch.autocast("cpu"):
        return _quietly(fast, X.float())


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_to_do(name):
    run, match = REFUSALS[name]
    with pytest.raises(BackendCompilerFailed, match=f"(?s){match}"):
        run()


def test_not_strict_compiles_the_graph_as_it_is_and_warns_once(caplog):
    model = network(broken=True)
    fast = compiled(model, fullgraph=False, strict=False)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "halp_fx"):
        assert relative_error(fast(X), model(X)) < 1e-12
    assert sum("as it is" in r.message for r in caplog.records) == 1
    assert "not equivalent" not in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budgett": 0.5}, "no option 'budgett': did you mean 'budget'"),
        ({}, "needs options="),
        ({"budget": 0.5, "plan": Plan()}, "one of the two"),
        ({"plan": "60%"}, "is no plan"),
    ],
    ids=["unknown", "none", "both", "no plan"],
)
def test_options_are_checked(options, match):
    with pytest.raises(halp_fx.BudgetError, match=match):
        Options.of(options)


class Helped(Net):
    """With a second head that only the forward in train mode runs."""

    def __init__(self):
        super().__init__()
        self.aside, self.second = nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x):
        found = super().forward(x)
        if self.training:
            return found, self.second(self.aside(self.norm(self.conv(x)).relu()).mean((2, 3)))
        return found


def test_a_plan_may_name_layers_that_this_forward_does_not_run():
    model = randomized(Helped()).eval()
    plan = halp_fx.prune(model, 0.5, X, latency="macs", round_to=1, progress=False).halp.plan
    assert {"aside", "conv"} <= plan.keys(), "too easy: the plan names nothing else"
    fast = compiled(model, plan=plan)
    with torch.no_grad():
        assert relative_error(fast(X), halp_fx.rewrite(model, plan, X)(X)) < 1e-12
        model.head.bias.add_(1.0)
        assert relative_error(fast(X), halp_fx.rewrite(model, plan, X)(X)) < 1e-12, "sliced again"
    wrong = compiled(model, plan=Plan({"asides": (0,)}))
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match="which is no group and no layer"):
        wrong(X)


def test_it_can_be_registered_under_a_name():
    """As PyTorch does with what an entry point names."""
    name = "halp_fx_by_name"
    if name not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(BACKEND, name=name)
    assert {BACKEND: name}[BACKEND] == name, "torch 2.11 keys by it, later ones do not"
    model = network()
    plan = half_plan(halp_fx.channel_groups(model, X))
    fast = torch.compile(model, backend=name, options={"plan": plan, "inner": "eager"})
    with torch.no_grad():
        assert relative_error(fast(X), reference(model)(X)) < 1e-12


def test_the_entry_point_names_the_backend():
    found = [e for e in importlib.metadata.entry_points(group="torch_dynamo_backends") if e.name == "halp_fx"]
    if not found:
        pytest.skip("halp_fx is installed without this entry point, or not at all")
    assert found[0].load() is BACKEND
    assert torch._dynamo.lookup_backend("halp_fx") is BACKEND
