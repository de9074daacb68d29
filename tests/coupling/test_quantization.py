"""Models prepared for quantisation-aware training: fake quantisation is elementwise, its ranges follow the widths."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.quantization as Q
from oracle import half_plan, relative_error
from torch import nn

import halp_fx

PER_CHANNEL = Q.FakeQuantize.with_args(
    observer=Q.PerChannelMinMaxObserver, quant_min=-128, quant_max=127, dtype=torch.qint8, ch_axis=0
)
PER_TENSOR = Q.FakeQuantize.with_args(observer=Q.MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
CONFIGS = {
    "fused": lambda: Q.get_default_qat_qconfig("fbgemm"),
    "fused, weights as one": lambda: Q.get_default_qat_qconfig("qnnpack"),
    "not fused": lambda: Q.QConfig(activation=PER_TENSOR, weight=PER_CHANNEL),
    "weights alone": lambda: Q.QConfig(activation=nn.Identity, weight=Q.default_per_channel_weight_fake_quant),
    "old": lambda: Q.get_default_qat_qconfig("fbgemm", version=0),
}


class Residual(nn.Module):
    """With a depthwise layer, a linear one, and an addition that is quantised on its own."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = Q.QuantStub(), Q.DeQuantStub()
        self.stem, self.norm, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()
        self.depthwise, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.inner, self.outer = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1)
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        x = self.act(self.norm(self.stem(self.quant(x))))
        y = self.outer(self.inner(self.norm2(self.depthwise(x))))
        return self.dequant(self.fc(self.add.add(x, y).mean((2, 3))))


def prepared(config, fused=False, runs=2):
    torch.manual_seed(0)
    model = Residual().train()
    model.qconfig = CONFIGS[config]()
    if fused:
        Q.fuse_modules_qat(model, [["stem", "norm", "act"], ["depthwise", "norm2"]], inplace=True)
    Q.prepare_qat(model, inplace=True)
    for _ in range(runs):
        model(torch.randn(2, 3, 6, 6))
    return model


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "with batch norms"])
@pytest.mark.parametrize("config", CONFIGS)
def test_equals_its_twin(config, fused):
    model = prepared(config, fused).eval()
    inputs = torch.randn(2, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 12, "inner": 8}, coupling.frozen
    plan = half_plan(coupling)
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    with torch.no_grad():
        twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
        assert relative_error(small(inputs), twin(inputs)) < 1e-5
    for name, value in small.state_dict().items():
        if name.startswith("inner.weight_fake_quant") and value.dim() == 1 and len(value) > 1:
            assert len(value) == 4, name
    small.train()(torch.randn(2, 3, 6, 6)).sum().backward()


def test_before_the_first_forward():
    model = prepared("fused", runs=0)
    small = halp_fx.prune(model, 0.5, torch.randn(2, 3, 6, 6), latency=halp_fx.MacsCost(), progress=False)
    assert small.halp.measured <= 0.55 * small.halp.dense
    small(torch.randn(2, 3, 6, 6)).sum().backward()


def test_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x)).relu()))

    torch.manual_seed(0)
    model = Twice().train()
    model.qconfig = CONFIGS["fused"]()
    Q.prepare_qat(model, inplace=True)
    inputs = torch.randn(2, 3, 4, 4)
    model(inputs)
    model.eval()
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name: g.size for g in coupling.prunable} == {"a": 8}
    plan = half_plan(coupling)
    with torch.no_grad():
        small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
        twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
        assert relative_error(small(inputs), twin(inputs)) < 1e-5
