"""What the tests measure a rewrite against: the zeroed twin."""

from __future__ import annotations

import random
from typing import Any

import torch
import torchvision
from sweeping.checking import difference, leaves, moving, randomize
from torch import nn

import halp_fx
from halp_fx import Coupling, Plan

TORCHVISION = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "vgg11_bn",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
)


def torchvision_network(name: str) -> nn.Module:
    """One of these, in eval mode. VGG has a narrower classifier: nine tenths of its numbers were in that."""
    model = torchvision.models.get_model(name, weights=None)
    if isinstance(model, torchvision.models.VGG):
        model.avgpool, width = nn.AdaptiveAvgPool2d(2), 256
        first, last = nn.Linear(512 * 4, width), nn.Linear(width, 1000)
        model.classifier[0], model.classifier[3], model.classifier[6] = first, nn.Linear(width, width), last
    return model.eval()


class Net(nn.Module):
    """Layers and a function of them: `function(self, x)`."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def randomized(model: nn.Module) -> nn.Module:
    """float64, and nothing at its initial value: see `randomize`."""
    randomize(model.double())
    return model


def half_plan(coupling: Coupling, seed: int = 0) -> Plan:
    """Every group loses half of its channels, at random places."""
    pick = random.Random(seed)
    return Plan({g.name: sorted(pick.sample(range(g.size), max(1, g.size // 2))) for g in coupling.prunable})


def random_plan(coupling: Coupling, seed: int = 0) -> Plan:
    """Every group keeps a random number of channels, one at least."""
    pick = random.Random(seed)
    return Plan({g.name: sorted(pick.sample(range(g.size), pick.randint(1, g.size))) for g in coupling.prunable})


def first_tensor(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def floating(output: Any) -> list[torch.Tensor]:
    """The outputs that can be compared."""
    return [t for t in leaves(output) if t.is_floating_point() and t.numel()]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def equals_twin_closely(
    model: nn.Module, plan: Plan, inputs: torch.Tensor, coupling: Coupling
) -> tuple[nn.Module, nn.Module]:
    """The rewritten network of one output equals the zeroed twin to 1e-9; both of them."""
    small, twin = (f(model, plan, inputs, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
    torch.testing.assert_close(small(inputs), twin(inputs), rtol=1e-9, atol=1e-9)
    return small, twin


def assert_equals_twin(model: nn.Module, plan: Plan, inputs: torch.Tensor, coupling: Coupling) -> nn.Module:
    """The rewritten network equals the zeroed twin, differs from the dense one, and trains."""
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    modes = [m.training for m in model.modules()]
    assert [m.training for m in small.modules()] == modes
    with torch.no_grad():
        got, want, dense = (floating(m.eval()(inputs)) for m in (small, twin, model))
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    assert [t.shape for t in got] == [t.shape for t in dense]
    assert all(torch.isfinite(t).all() for t in want)
    assert max(difference(a, b) for a, b in zip(got, want, strict=True)) <= 1e-5
    moved = [difference(a, b) > 1e-6 for a, b in zip(dense, want, strict=True)]
    still = [i for i, must in enumerate(moving(coupling, plan)) if must and not moved[i]]
    assert any(moved), "the plan changed nothing: the comparison proves nothing"
    assert not still, f"outputs {still} are constant: comparing them proves nothing"
    small.train()
    outputs = small(torch.cat([inputs, inputs]))
    sum(o.sum() for o in floating(outputs)).backward()
    missing = [n for n, p in small.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    return small
