"""Property: a network drawn from the operators that have rules is pruned to what its zeroed twin computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx

SIDE = 6


@dataclass(frozen=True)
class Step:
    """One instruction: what to do, on which earlier tensors, how wide."""

    kind: str
    first: int
    second: int
    width: int
    variant: int


class Heads(nn.Module):
    """Attention with heads of size 4, their number from a shape; one layer for keys and values."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(inputs, 12), nn.Linear(inputs, 24), nn.Linear(12, outputs)

    def forward(self, x, y):
        kv = self.kv(y)
        half = kv.shape[-1] // 2
        rows = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (self.q(x), *kv.split([half, half], -1)))
        return self.out(F.scaled_dot_product_attention(*rows).transpose(1, 2).flatten(2))


class Parts(nn.Module):
    """Parts whose sizes attributes have: by a list, the first and the last of one size, or by slices."""

    def __init__(self, inputs, first, second, sliced):
        super().__init__()
        self.first, self.sizes, self.sliced = first, [first, second, first], sliced
        self.wide = nn.Conv2d(inputs, first + second if sliced else 2 * first + second, 1)

    def forward(self, x):
        x = self.wide(x)
        if self.sliced:
            return torch.cat([x[:, self.first :].sin(), x[:, : self.first]], 1)
        p, q, gate = torch.split(x, self.sizes, 1)
        return torch.cat([q.cos(), p * gate.sigmoid()], 1)


class Tokens(nn.Module):
    """A layer on the pixels as tokens."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, y=None):
        rows, other = (t.flatten(2).transpose(1, 2) if t is not None else None for t in (x, y))
        if isinstance(self.layer, Heads):
            rows = self.layer(rows, rows if other is None else other)
        elif isinstance(self.layer, nn.Bilinear):
            rows = self.layer(rows, rows.cos())
        else:
            rows = self.layer(rows)
        return rows.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def order(x):
    """Positions along one side, by values."""
    return x.mean((1, 3)).argsort(1)[:, None, :, None].expand(-1, x.shape[1], -1, SIDE)


# Functions of an image that leave its shape.
TABLE = {
    "length": (
        lambda x: x / (1 + x.norm()),
        lambda x: x / (1 + torch.linalg.vector_norm(x, 3, 1, True)),
        lambda x: x / (1 + torch.linalg.matrix_norm(x, "fro", (1, 2), True)),
        lambda x: x * torch.cdist(x.flatten(2).mT, x.flatten(2).mT).mean(2).unflatten(1, (1, SIDE, SIDE)),
    ),
    "position": (
        lambda x: x.gather(2, order(x)),
        lambda x: x.scatter(2, order(x), x.cos()),
        lambda x: x.index_add(3, torch.tensor([0, 2]), x[..., :2].sin()),
        lambda x: x.cummax(2)[0] + x.flip(1).flip(1),
    ),
    "moved": (
        lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
        lambda x: x.rot90(1, (2, 3)) + x.roll(1, 2),
        lambda x: F.conv2d(
            x, torch.ones(1, 1, 3, 3).to(x).expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1]
        ),
        lambda x: F.fold(F.unfold(x, 2, stride=2), (SIDE, SIDE), 2, stride=2),
    ),
    "quantised": (
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127),
        lambda x: x / (1 + F.mse_loss(x, x.cos())),
        lambda x: x * torch.std_mean(x, 1, correction=0, keepdim=True)[0],
        lambda x: x * torch.aminmax(x, dim=1, keepdim=True)[1],
    ),
}


class Drawn(nn.Module):
    """Runs instructions over a growing list of tensors (N, C, 6, 6) and classifies the last one."""

    def __init__(self, steps: list[Step]):
        super().__init__()
        self.steps, self.layers = [], nn.ModuleList()
        widths = [3]
        for step in steps:
            step, layer, width = self._understood(step, widths)
            self.steps.append(step)
            self.layers.append(layer)
            widths.append(width)
        self.head = nn.Linear(widths[-1], 3)

    @staticmethod
    def _understood(step, widths):
        a, b = step.first % len(widths), step.second % len(widths)
        c, w = widths[a], step.width
        kind = step.kind
        if kind in ("add", "mul", "minimum") and widths[b] != c:
            kind = "conv"
        if kind == "chunk" and c % 2:
            kind = "conv"
        layer: nn.Module = nn.Identity()
        if kind == "conv":
            layer = nn.Conv2d(c, w, 3, padding=1, bias=bool(step.variant % 2))
        elif kind == "grouped":
            groups = [g for g in range(1, c + 1) if c % g == 0][
                step.variant % len([g for g in range(1, c + 1) if c % g == 0])
            ]
            w = groups * max(1, w // groups)
            layer = nn.Conv2d(c, w, 3, padding=1, groups=groups)
        elif kind == "transposed":
            layer = nn.ConvTranspose2d(c, w, 3, padding=1)
        elif kind == "batch norm":
            layer, w = nn.BatchNorm2d(c), c
        elif kind == "group norm":
            groups = 2 if c % 2 == 0 and c > 2 else 1
            layer, w = nn.GroupNorm(groups, c), c
        elif kind == "layer norm":
            layer, w = nn.LayerNorm(c), c
        elif kind == "prelu":
            layer, w = nn.PReLU(c), c
        elif kind == "excite":
            layer, w = nn.Sequential(nn.Conv2d(c, w, 1), nn.SiLU(), nn.Conv2d(w, c, 1), nn.Sigmoid()), c
        elif kind == "tokens":
            layer = nn.Linear(c, w)
        elif kind == "cat":
            w = c + widths[b]
        elif kind == "chunk":
            w = c // 2
        elif kind == "shuffle":
            # Fixed here: a network that chooses by the width it finds is another network after pruning.
            layer.groups, w = 2 if c % 2 == 0 else 1, c
        elif kind == "free norm":
            layer, w = Tokens(nn.LayerNorm(c, elementwise_affine=False)), c
            if step.variant % 3:
                layer = (nn.GroupNorm(1, c, affine=False), nn.InstanceNorm2d(c))[step.variant % 3 - 1]
        elif kind == "attention":
            layer = Tokens(Heads(c, w))
        elif kind == "levels":
            layer, w = nn.Conv2d(c, 2 * c + 3, 1), c
        elif kind == "parts":
            layer, w = Parts(c, w, step.second + 1, bool(step.variant % 2)), w + step.second + 1
        elif kind == "bilinear":
            layer = Tokens(nn.Bilinear(c, c, w))
        elif kind in ("act", "pool", "softmax", "gate", "add", "mul", "minimum", *TABLE):
            w = c
        return Step(kind, a, b, w, step.variant), layer, w

    def forward(self, x):
        tensors = [x]
        for step, layer in zip(self.steps, self.layers, strict=True):
            tensors.append(self._run(step, layer, tensors[step.first], tensors[step.second]))
        return self.head(tensors[-1].mean((2, 3)))

    def _run(self, step, layer, x, y):
        kind = step.kind
        if kind in ("add", "mul", "minimum"):
            return {"add": torch.add, "mul": torch.mul, "minimum": torch.minimum}[kind](x, y)
        if kind == "cat":
            return torch.cat([x, y], 1)
        if kind == "chunk":
            p, q = x.chunk(2, 1)
            return p * q.tanh()
        if kind == "shuffle":
            n, c, h, w = x.shape
            groups = layer.groups
            return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "act":
            return (F.relu, torch.cos, F.gelu, F.hardswish)[step.variant % 4](x)
        if kind == "pool":
            return (F.max_pool2d, F.avg_pool2d)[step.variant % 2](x, 3, 1, 1)
        if kind == "softmax":
            return x.softmax(1)
        if kind == "gate":
            return x * torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, keepdim=True).sigmoid()
        if kind in TABLE:
            return TABLE[kind][step.variant % len(TABLE[kind])](x)
        if kind == "levels":
            x = layer(x)
            width = (x.shape[1] - 3) // 2
            p, q, gates = torch.split(x, (width, width, 3), 1)
            return p * q.cos() * gates[:, :1]
        if kind == "attention":
            return layer(x) if step.variant % 2 else layer(x, x.flip(2))
        if kind == "excite":
            return x * layer(x.mean((2, 3), keepdim=True))
        if kind == "layer norm":
            return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if kind == "tokens":
            return layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return layer(x)


KINDS = [
    *("conv", "conv", "conv", "grouped", "transposed", "batch norm", "group norm", "layer norm", "prelu", "excite"),
    *("free norm", "attention", "levels", "parts", "bilinear", *TABLE),
    *("tokens", "cat", "chunk", "shuffle", "act", "pool", "softmax", "gate", "add", "mul", "minimum"),
]
STEPS = st.builds(
    Step, st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9), st.integers(1, 12), st.integers(0, 5)
)


@settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEPS, min_size=2, max_size=9), st.integers(0, 1000))
def test_random_network_equals_its_twin(steps, seed):
    torch.manual_seed(seed)
    model = randomized(Drawn(steps)).eval()
    inputs = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    plan = random_plan(coupling, seed)
    with torch.no_grad():
        small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
        twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
        got, want = small(inputs), twin(inputs)
    assert got.shape == want.shape
    assert relative_error(got, want) <= 1e-9
