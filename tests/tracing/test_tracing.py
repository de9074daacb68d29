"""trace: what the graph holds, and that the model is as found."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

import halp_fx
from halp_fx import ModelError, TraceError
from halp_fx.tracing.forward import all_traces
from halp_fx.tracing.graph import of


def targets(traced):
    return [str(n.target) for n in traced.graph.nodes if n.op == "call_function"]


def test_records_operators_with_shapes_and_sources():
    model = torchvision.models.resnet18(weights=None)
    traced = halp_fx.trace(model, torch.randn(2, 3, 64, 64))
    traced.graph.lint()
    convolutions = [n for n in traced.graph.nodes if str(n.target) == "aten.convolution.default"]
    assert len(convolutions) == 20
    first = convolutions[0]
    assert of(first).one.shape == (2, 64, 32, 32)
    assert of(first).module == "conv1"
    assert of(first).function == "conv2d"
    assert of(first).source.startswith("models/resnet.py:")
    assert [a.target for a in first.args[:2]] == ["input_0", "conv1.weight"]
    assert traced.unused == ()


def test_python_control_flow_and_functional_calls():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, 1, 1))

        def forward(self, x, *, scale):
            x = nn.functional.conv2d(x, self.w)
            if float(x.sum()) > 1e9:
                x = x * 2
            for _ in range(int(scale)):
                x = x.relu()
            return {"out": (x, None)}

    traced = halp_fx.trace(Net(), (torch.randn(1, 3, 4, 4), {"scale": 3}))
    assert targets(traced).count("aten.relu.default") == 3
    assert "w" in [n.target for n in traced.graph.nodes]


def test_custom_autograd_function_is_seen_through():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, g):
            return g

    class Net(nn.Module):
        def forward(self, x):
            return Square.apply(x)

    assert "aten.mul.Tensor" in targets(halp_fx.trace(Net(), torch.randn(1, 3)))


class Counting(nn.Module):
    """Changes a buffer and draws random numbers in every forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.fail = False

    def forward(self, x):
        self.calls += 1
        torch.rand(3)
        if self.fail:
            raise ValueError("on purpose")
        return self.drop(self.bn(self.conv(x)))


@pytest.mark.parametrize("fail", [False, True], ids=["ok", "error"])
def test_model_is_as_before(fail):
    model = Counting().train()
    model.bn.eval()
    model.fail = fail
    inputs = torch.randn(2, 3, 4, 4)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    if fail:
        with pytest.raises(TraceError, match="on purpose"):
            halp_fx.trace(model, inputs)
    else:
        halp_fx.trace(model, inputs)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    model.fail = False
    model(inputs)
    assert model.calls == 1


class Wrapper(nn.Module):
    """As ultralytics' YOLO: a module whose `train` is a training."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x):
        return self.model(x)

    def train(self, trainer=None, **options):
        raise AssertionError("a training was started")


class Switch(Wrapper):
    def train(self, on=True):
        return nn.Module.train(self, on)


class Passed(Wrapper):
    def train(self, *args, **kwargs):
        return nn.Module.train(self, *args, **kwargs)


def test_a_wrapper_that_trains_is_refused_before_it_does():
    x = torch.rand(1, 3, 4, 4)
    for call in (
        lambda m: halp_fx.prune(m, 0.5, x, latency="macs"),
        lambda m: halp_fx.profile(m, x, latency="macs"),
        lambda m: halp_fx.explain(m, x),
        lambda m: halp_fx.pareto(m, [0.5], x, latency="macs"),
        lambda m: halp_fx.Pruner(m, 0.5, x, latency="macs"),
        lambda m: halp_fx.benchmark(m, x),
    ):
        with pytest.raises(ModelError, match=r"Wrapper is a wrapper whose train\(\) .* network inside \(model.model\)"):
            call(Wrapper())
    for kind in (Switch, Passed):
        assert halp_fx.prune(kind(), 0.5, x, latency="macs", progress=False).halp.met


def test_input_is_inferred_for_images(caplog):
    caplog.set_level("INFO", logger="halp_fx")
    traced = halp_fx.trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
    assert of(next(iter(traced.graph.nodes))).one.shape == (1, 1, 224, 224)
    assert "(1, 1, 224, 224)" in caplog.text
    with pytest.raises(ModelError, match="example_inputs"):
        halp_fx.trace(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (torch.jit.script, "ScriptModule"),
        (torch.compile, "_orig_mod"),
        (nn.DataParallel, "model.module"),
        (lambda m: m.to("meta"), "meta device"),
        (lambda m: m.state_dict(), "nn.Module"),
    ],
    ids=["scripted", "compiled", "data parallel", "meta", "no module"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_are_refused(wrap, words):
    with pytest.raises(ModelError, match=words):
        halp_fx.trace(wrap(nn.Sequential(nn.Conv2d(3, 4, 1))), torch.randn(1, 3, 4, 4))


def test_wrong_inputs_name_shape_and_module():
    with pytest.raises(TraceError, match=r"\(1, 5, 4, 4\)"):
        halp_fx.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.randn(1, 5, 4, 4))


def test_tracing_does_not_import_the_compiler():
    """It takes several seconds, in every process."""
    code = (
        "import sys, torch, halp_fx\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))\n"
        "small = halp_fx.rewrite(net, {'0': [1, 2]}, torch.randn(1, 3, 8, 8))\n"
        "halp_fx.zero(net.eval(), {'0': [1, 2]}, torch.randn(1, 3, 8, 8))(torch.randn(1, 3, 8, 8))\n"
        "print(small[0].out_channels, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


class Unread(nn.Module):
    """A parameter that no forward reads, and one that every third call reads."""

    def __init__(self, sometimes):
        super().__init__()
        self.conv, self.unread = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(4))
        self.extra, self.sometimes, self.calls = nn.Conv2d(8, 8, 1), sometimes, 0

    def forward(self, x):
        self.calls += 1
        x = self.conv(x)
        return self.extra(x) if self.sometimes and self.calls % 3 == 0 else x.relu()


@pytest.mark.parametrize("sometimes", [False, True])
def test_calls_that_repeat_the_first_are_not_gone_through_again(sometimes):
    net = Unread(sometimes).eval()
    x = torch.randn(1, 3, 8, 8)
    traces = all_traces(net, x)
    several = [t for t in traces.further if len(t.graph.nodes) > 2 * len(traces.first.graph.nodes)]
    assert traces.unseen == ""
    assert bool(several) == sometimes
    assert all("extra.weight" not in t.unused for t in several)


def rows(x):
    return x * torch.empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.5).div_(0.5)


def scaled(x):
    return x * torch.empty((x.shape[0], 1, 1, 1)).fill_(1 / x.shape[1])


NOISES = {
    "rows": (rows, False),
    "torchvision": (torchvision.ops.StochasticDepth(0.5, "row"), False),
    "older": (lambda x: x.div(0.5) * torch.rand(x.shape[0], 1, 1, 1).add(0.5).floor_(), False),
    "new": (lambda x: x.mul_(x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)), False),
    "dropout": (nn.Dropout(0.5), False),
    "dropout in place": (nn.Dropout(0.5, inplace=True), False),
    "dropout of channels": (nn.Dropout2d(0.5), False),
    "by channels": (lambda x: x * torch.rand(1, 8, 1, 1), True),
    "by all channels": (lambda x: x * torch.rand_like(x), True),
    "a width": (scaled, True),
    "not elementwise": (lambda x: x[torch.randperm(x.shape[0])], True),
    "a sum": (lambda x: x + x.mean(1, keepdim=True) * torch.rand(()), True),
    "a value": (lambda x: x * 2 if float(torch.rand(())) < 2 else x, True),
}


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", NOISES)
def test_noise_that_all_channels_get_alike_is_no_other_forward(name, batch):
    noise, other = NOISES[name]

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            y = self.second(self.first(x))
            if self.training:
                y = noise(y)
            return self.fc(y.flatten(2).mean(2))

    model, inputs = Noisy(), torch.randn(batch, 3, 8, 8)
    coupling = halp_fx.channel_groups(model, inputs)
    assert bool(coupling.further) == other
    plan = {g.name: range(g.size // 2) for g in coupling.prunable}
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    small.train()(torch.randn(2, 3, 8, 8))


class AsCaptured(nn.Module):
    """Attention as torch 2.11 exports it: the fused operator's result lies as the queries do, so no copy comes before
    the view."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        heads = self.inner(x).view(7, 8, 4).transpose(0, 1).view(2, 4, 7, 4)
        found = torch.ops.aten.scaled_dot_product_attention.default(heads, heads, heads)
        return self.outer(torch.ops.aten.view.default(found.permute(2, 0, 1, 3), [14, 16]))


def test_a_captured_view_of_fused_attention_is_recorded():
    model, x = AsCaptured().eval(), torch.rand(7, 2, 16)
    traced = halp_fx.trace(model, x)
    products = [n for n in traced.graph.nodes if str(n.target) == "aten.addmm.default"]
    assert [of(n).one.shape for n in products] == [(14, 16), (14, 16)]


def test_a_view_that_strides_forbid_is_still_an_error():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(x).t().view(-1)

    with pytest.raises(TraceError, match="view size is not compatible"):
        halp_fx.trace(Wrong(), torch.rand(4, 6))


class Picking(nn.Module):
    """Picks by values, and would go another way if that failed."""

    def __init__(self, caught):
        super().__init__()
        self.caught, self.a, self.b, self.other = caught, nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        try:
            best = x.sum(-1).topk(2).indices
            picked = x.gather(1, best[..., None].expand(-1, -1, 8))
        except self.caught:
            return self.other(x)
        return self.b(picked)


@pytest.mark.parametrize("caught", [RuntimeError, Exception, BaseException])
def test_what_lacks_values_is_recorded_with_values_whatever_the_forward_catches(caught):
    traced = halp_fx.trace(Picking(caught), torch.rand(1, 5, 4))
    assert not traced.on_meta
    assert set(traced.unused) == {"other.weight", "other.bias"}
