"""Weights and layers of complex numbers: filters in the frequency domain."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx

X = torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


class Gated(nn.Module):
    """`gate` multiplies the channels that `made` computes."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(10, 4)
        self.gate = None  # A tensor of ten elements here would be ten for ever.

    def gated(self, x, dim):
        return x if self.gate is None else x * self.gate.view(-1, *[1] * dim)


class Parameter(Gated):
    """A layer whose weight is complex."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 8, dtype=torch.complex64) / 3)

    def forward(self, x):
        spectrum = torch.fft.rfft(self.stem(x), dim=-1)
        made = self.gated(torch.einsum("oc,bcl->bol", self.weight, spectrum), 1)
        return self.head(torch.fft.irfft(made, n=16).relu().mean(2))


class Filters(Gated):
    """Long filters, multiplied in the frequency domain (Hyena, S4)."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv1d(8, 10, 1, bias=False)
        self.weight = nn.Parameter(torch.randn(10, 16) / 4)

    def forward(self, x):
        x = self.mix(self.stem(x).relu())
        made = torch.fft.irfft(torch.fft.rfft(x, n=32) * torch.fft.rfft(self.weight, n=32), n=32)[..., :16]
        return self.head(self.gated(made, 1).relu().mean(2))


class Layer(Gated):
    """PyTorch's own layer with complex parameters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(8, 10, bias=False, dtype=torch.complex64)

    def forward(self, x):
        x = self.stem(x).mT
        return self.head(self.gated(self.weight(torch.complex(x, -x)), 0).abs().mean(1))


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", [Parameter, Filters, Layer])
def test_a_channel_is_worth_what_the_loss_says_of_its_gate(kind):
    model = made(kind)
    coupling = halp_fx.channel_groups(model, X)
    name = next(g.name for g in coupling.prunable if g.size == 10)
    found = halp_fx.score(model, coupling, data=[(X, Y)], loss_fn=F.cross_entropy, importance="taylor").scores
    model.gate = torch.ones(10, requires_grad=True)
    (by_gate,) = torch.autograd.grad(F.cross_entropy(model(X), Y), model.gate)
    torch.testing.assert_close(torch.tensor(found[name]), by_gate.abs().double(), rtol=1e-4, atol=1e-7)
    magnitudes = halp_fx.score(model, coupling).scores[name]
    assert magnitudes.min() > 0
    if kind is Parameter:
        norms = model.weight.detach().abs().square().sum(1).sqrt()
        torch.testing.assert_close(torch.tensor(magnitudes), (norms / norms.mean()).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("data", [None, [(X, Y)] * 2], ids=["magnitudes", "data"])
@pytest.mark.parametrize("kind", [Parameter, Filters, Layer])
def test_prune_takes_channels_from_both_sides(kind, data):
    model = made(kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Casting complex")
        small = halp_fx.prune(model, 0.6, X, data=data, latency="macs", compensate=data is not None, progress=False)
    assert small.halp.met
    assert {g.name for g in small.halp.groups if g.kept < g.size}
    plain = halp_fx.rewrite(model, small.halp.plan, X)
    torch.testing.assert_close(plain(X), halp_fx.zero(model, small.halp.plan, X)(X))
    assert [p.shape for p in small.parameters()] == [p.shape for p in plain.parameters()]
