"""The registry, a user's rule, and explain."""

from __future__ import annotations

import pytest
import torch
from oracle import half_plan, relative_error
from torch import nn

import halp_fx
from halp_fx.rules import pointwise

LIBRARY = torch.library.Library("halp_fx_tests", "DEF")
LIBRARY.define("swish(Tensor x) -> Tensor")
LIBRARY.impl("swish", lambda x: x * x.sigmoid(), "CompositeExplicitAutograd")
LIBRARY.define("opaque(Tensor x) -> Tensor")
LIBRARY.impl("opaque", lambda x: x.flip(1), "CompositeExplicitAutograd")


class Net(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.b(self.operator(self.a(x)))


def test_a_users_rule():
    model, inputs = Net(torch.ops.halp_fx_tests.swish), torch.randn(1, 3, 4, 4)
    assert "no rule for operator swish" in halp_fx.channel_groups(model, inputs).frozen["a"]
    halp_fx.register_rule(torch.ops.halp_fx_tests.swish)(pointwise)
    coupling = halp_fx.channel_groups(model, inputs)
    assert [g.name for g in coupling.prunable] == ["a"]
    with torch.no_grad():
        small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
        twin = halp_fx.zero(model, half_plan(coupling), inputs, coupling=coupling)
        assert relative_error(small(inputs), twin(inputs)) < 1e-5
    with pytest.raises(ValueError, match="has a rule already"):
        halp_fx.register_rule(torch.ops.halp_fx_tests.swish)(pointwise)


def test_rule_with_wrong_labels_is_found_out():
    halp_fx.register_rule(torch.ops.halp_fx_tests.opaque)(lambda call, algebra: (torch.zeros(1, dtype=torch.int32),))
    with pytest.raises(halp_fx.HalpError, match="defect of the rule"):
        halp_fx.channel_groups(Net(torch.ops.halp_fx_tests.opaque), torch.randn(1, 3, 4, 4))


def test_explain():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.c(x + self.b(x))

    text = halp_fx.explain(Residual(), torch.randn(1, 3, 4, 4))
    for words in ("a: 8 channels", "producer: a.weight[0], b.weight[0]", "coupled by residual: add", "test_rules.py"):
        assert words in text
    assert "reaches the model's output" in text
